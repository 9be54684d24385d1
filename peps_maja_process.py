#!/usr/bin/env python
"""Search the PEPS catalogue and order one MAJA job for each Sentinel-2 product found."""

from __future__ import annotations

if __name__ == "__main__":  # until `run_script` takes over, Ctrl-C ends the script without a word
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import peps_common as common
from peps_common import L1C, CommonCause, OrderInDoubt, PepsError, Service, Status, called, console, one_line, plural

CONFIRM_ABOVE = 10
NO_END = "9999-01-01"
ADVICE = "move it away, or let --force replace it"

latitude = common.number_between(float, -90, 90, "a latitude, -90 to 90 degrees")
longitude = common.number_between(float, -180, 180, "a longitude, -180 to 180 degrees")


def as_moment(text: str) -> str:
    """argparse type: YYYY-MM-DD or YYYY-MM-DDThh:mm:ss (UTC); it stays a text, for ISO 8601 sorts as time does."""
    day, mark, clock = text.partition("T")
    common.as_date(day)
    if mark and not re.fullmatch("([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]", clock):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form YYYY-MM-DD or YYYY-MM-DDThh:mm:ss")
    return text


def build_parser() -> common.Parser:
    parser = common.Parser(
        "peps_maja_process",
        "Search the catalogue and order one MAJA job for each Sentinel-2 L1C product found. For a whole time series "
        "of a tile, full_maja_process is far cheaper. The product list leads peps_maja_download to the products.",
        "-l Toulouse -a peps.txt -d 2017-11-01 -f 2017-12-01 -p prod_list_toulouse.txt",
        "--lon 1 --lat 43.5 -a peps.txt -d 2017-11-01 -f 2017-12-01 -p prod_list_toulouse.txt",
        "-t 31TCJ -o 51 -a peps.txt -d 2017-11-01 -f 2017-12-01 -p list.txt -n    (only show)",
    )
    add = parser.add_argument
    add("-t", "--tile", type=common.as_tile, help="area: an MGRS tile, such as 31TCJ")
    add("-l", "--location", metavar="TOWN", help="area: a town, such as Toulouse")
    add("--lat", type=latitude, help="area: a point, with --lon; degrees")
    add("--lon", type=longitude, help="longitude of the point")
    for name, kind in (("latmin", latitude), ("latmax", latitude), ("lonmin", longitude), ("lonmax", longitude)):
        add(f"--{name}", type=kind, help="area: a box, these four together; degrees" if name == "latmin" else " ")
    add("-d", "--start_date", required=True, metavar="DATE", type=as_moment, help="first day, YYYY-MM-DD")
    add("-f", "--end_date", default=NO_END, metavar="DATE", type=as_moment, help="day after the last (default: none)")
    add("-o", "--orbit", metavar="N", type=common.as_orbit, help="this relative orbit alone (default: all)")
    add("-p", "--prod_list", required=True, metavar="FILE", type=Path, help="list of the products ordered; it grows")
    add("-w", "--write_dir", metavar="DIR", type=Path, default=Path("."), help="folder for the logs (default: .)")
    add("-n", "--no_download", "--dry-run", dest="dry_run", action="store_true", help="only show what would be ordered")
    add("-y", "--yes", action="store_true", help=f"do not ask before ordering more than {CONFIRM_ABOVE} products")
    add("--force", action="store_true", help="order anew what has a job; its log is kept as FILE.1 ...")
    add("--json", metavar="FILE", type=Path, help="also save the catalogue's answer")
    add("--windows", action="store_true", help=argparse.SUPPRESS)
    return parser


def area_query(args: Any) -> str:
    """The area's part of the catalogue request; raises PepsError (status 2) unless there is exactly one kind."""
    point, box = (args.lat, args.lon), (args.lonmin, args.latmin, args.lonmax, args.latmax)
    kinds = ([args.tile], [args.location], point, box)
    given = [kind for kind in kinds if any(value is not None for value in kind)]
    if len(given) != 1 or None in given[0]:
        ways = "-t TILE, -l TOWN, --lat with --lon, or all of --latmin --latmax --lonmin --lonmax"
        raise PepsError(f"give exactly one area: {ways}", Status.USAGE)
    if args.tile:
        return f"tileid={args.tile}"
    if args.location is not None:
        town = args.location.strip()
        if not (town and town.isprintable()):
            raise PepsError("the town (-l) is empty, or not UTF-8 text", Status.USAGE)
        encoded = re.search(r"%[0-9A-Fa-f]{2}|\+", town)  # as users of older scripts had to write it themselves
        return f"q={quote(town, safe='%+' if encoded else '')}"
    if args.lat is not None:
        return f"lat={args.lat:.6f}&lon={args.lon:.6f}"
    if args.latmin >= args.latmax or args.lonmin >= args.lonmax:
        raise PepsError("--latmin must be below --latmax, and --lonmin below --lonmax", Status.USAGE)
    return "box=" + ",".join(f"{value:.6f}" for value in box)


def confirm(count: int, yes: bool) -> None:
    """Ask before a large order; raises PepsError if the answer is no (status 1) or there is none (status 2)."""
    answer = "yes" if yes or count <= CONFIRM_ABOVE else ""
    while answer not in ("yes", "y", "no", "n"):
        try:
            print(f"Order {count} products? yes/no: ", end="", file=sys.stderr, flush=True)
            answer = input().strip().lower()
        except (EOFError, RuntimeError, ValueError) as err:  # no more input, none at all, or no text
            if not (sys.stdin and sys.stdin.isatty()):
                words = f"{count} products are many, and nobody answers: add --yes to order them"
                raise PepsError(words, Status.USAGE) from err
            answer = "no"
    if answer[0] == "n":
        raise PepsError("nothing was ordered, as you said")


def add_to_list(path: Path, name: str = "") -> None:
    """Add a product to a product list, durably, unless it is there; without a name, see that it can be written."""
    with common.named_file(path, "put that right, or choose another product list with -p"):
        common.require_plain(path)
        with open(path, "a+b") as file:
            file.seek(0)
            text = file.read()
            if name and name.encode() not in text.split():
                file.write(b"\n" * (text[-1:] not in (b"", b"\n")) + name.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())


class Order:
    """What a run orders: the products found, each with its log, and what becomes of each."""

    def __init__(self, args: Any, service: Service):
        self.args, self.service = args, service
        self.folders = [args.write_dir, args.prod_list.parent, Path(".")]
        self.statuses: list[Status] = []
        self.before = self.now = self.elsewhere = 0

    def is_free(self, product: L1C) -> bool:
        """Whether a product is to be ordered; one with a job is put on the list, where a killed run may lack it."""
        log = common.find_log(product.name, self.folders)
        try:
            held = common.WpsAnswer("") if self.args.force else common.look_at(log, advice=ADVICE)
        except PepsError as err:
            self.refuse(product, err, log)
            return False
        if held.holds_job:
            self.note(product, held, False)
        return not held.holds_job

    def place(self, todo: list[L1C]) -> None:
        """Order product by product, each with its log and then its line in the list."""
        confirm(len(todo), self.args.yes)
        for product in todo:
            log = common.find_log(product.name, self.folders)
            try:
                answer, new = common.order(self.service, job_url(self.args, product), log, self.args.force)
            except PepsError as err:
                self.refuse(product, err, log)
                if isinstance(err, (CommonCause, OrderInDoubt)):
                    break
            else:
                self.note(product, answer, new)

    def note(self, product: L1C, answer: common.WpsAnswer, new: bool) -> None:
        self.now, self.before = self.now + new, self.before + (not new)
        words = f", status {one_line(answer.status_location)}" if new else ", before"
        console.say(f"{product.name}: ordered as job {one_line(answer.job_id)}{words}")
        if not self.args.dry_run:
            add_to_list(self.args.prod_list, product.name)

    def refuse(self, product: L1C, err: PepsError, log: Path) -> None:
        self.statuses.append(err.status)
        if isinstance(err, common.AnotherRun):
            self.elsewhere += 1
            return
        way = f"; {common.way_out(log)}" if isinstance(err, OrderInDoubt) else ""
        words = str(err) if product.name in str(err) else f"{product.name}: {err}"
        console.error(PepsError(words + way, err.status))


def job_url(args: Any, product: L1C) -> str:
    flags = "storeExecuteResponse=true&status=true&title=Maja-Process"
    return common.execute_url(args.server, "MAJA", {"product": product.name}, flags)


def find(service: Service, args: Any, area: str) -> list[L1C]:
    """The products of the catalogue, shown; raises PepsError (status 1) if there are none."""
    answer, named = service.search(area, args.start_date, args.end_date, args.orbit)
    if args.json:
        common.write_json(args.json, answer)
    nameless = len(answer["features"]) - len(named)
    if nameless:
        entries = "1 entry" if nameless == 1 else f"{nameless} entries"
        console.error(f"warning: {entries} of the catalogue's answer without a usable name, left out")
    if not named:
        raise PepsError("no product answers the search; look at the area, the dates and the orbit")
    for product in named:
        console.say(f"{product.name}  ({product.storage})")
    return named


def run(args: Any) -> Status:
    area = area_query(args)
    common.check_dates(args.start_date, args.end_date)
    token = common.read_account(args.auth)
    files = {"account file (-a)": args.auth, "product list (-p)": args.prod_list, "answer (--json)": args.json}
    common.check_files(files)
    service = Service(args.server, token)
    if args.dry_run:
        console.say(common.search_url(args.server, area, args.start_date, args.end_date))
    else:
        common.make_folder(args.write_dir)
        add_to_list(args.prod_list)
    found, order = find(service, args, area), Order(args, service)
    todo = [product for product in found if order.is_free(product)]
    if args.dry_run:
        for product in todo:
            console.say(job_url(args, product))
    else:
        order.place(todo)
    if order.elsewhere:
        console.error(PepsError(f"{plural(order.elsewhere, 'product')}: another run is at work there", Status.NOT_YET))
    done = order.before + order.now
    if done and not args.dry_run:
        way = called("peps_maja_download", "-p", args.prod_list, "-w", args.write_dir)
        console.say(f"when they have run: {way}")
    counts = ((order.before, "ordered before"), (order.now, "ordered now"), (len(found) - done, "not ordered"))
    console.say(f"{plural(len(found), 'product')} found: {', '.join(f'{n} {words}' for n, words in counts if n)}")
    return common.worst(order.statuses)


def words_of(argv: list[str]) -> list[str]:
    """The command line without the lone number of a documented line, which never meant anything."""
    if len(argv) > 1 and re.fullmatch("[0-9]+", argv[0]):
        console.error(f"warning: ignored: {argv[0]}")
        argv = argv[1:]
    # argparse takes `-43.` and `-1e-3` for options.
    return re.sub(r"(--\w+)\0(-[0-9.])", r"\1=\2", "\0".join(argv)).split("\0") if argv else []


def main(argv: list[str] | None = None) -> int:
    return common.run_script(build_parser, run, argv, words_of)


if __name__ == "__main__":
    raise SystemExit(main())
