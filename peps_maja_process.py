#!/usr/bin/env python
"""Search the PEPS catalogue and order one MAJA job for each product found."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import peps_common as common
from peps_common import (
    L1C,
    PepsError,
    Refused,
    Service,
    Status,
    UsageError,
    WpsAnswer,
    called,
    console,
    one_line,
    plural,
)

CONFIRM_ABOVE = 10
NO_END = "9999-01-01"

latitude = common.number_between(float, -90, 90, "a latitude, -90 to 90 degrees")
longitude = common.number_between(float, -180, 180, "a longitude, -180 to 180 degrees")


def as_moment(text: str) -> str:
    """argparse type: YYYY-MM-DD or YYYY-MM-DDThh:mm:ss, with fraction and Z or without.

    It is UTC, and stays a text, for ISO 8601 sorts as time does.
    """
    day, mark, clock = text.partition("T")
    common.as_date(day)
    form = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?Z?"
    if mark and not re.fullmatch(form, clock, re.ASCII):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not of the form YYYY-MM-DD or YYYY-MM-DDThh:mm:ss"
        )
    return text


class SearchParser(common.Parser):
    """Takes a lone number before the options, and negative numbers of any form."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words, lone = list(args), ""
        joined: list[str] = []
        if re.fullmatch("[0-9]+", words[0]):  # as documented; it never meant anything
            lone = words.pop(0)
        for word in words:
            before = joined[-1] if joined else ""
            if re.match("-[0-9.]", word) and re.fullmatch("--l[a-z]+", before):
                joined[-1] += f"={word}"  # argparse takes -1e-3 for an option
            else:
                joined.append(word)
        parsed = super().parse_args(joined, namespace)
        if lone and not parsed.quiet:
            console.warn(f"ignored: {lone}")
        return parsed


def build_parser() -> common.Parser:
    parser = SearchParser(
        "Search the catalogue and order one MAJA job for each Sentinel-2 L1C product\n"
        "found. For a whole time series of a tile full_maja_process is far cheaper.\n"
        "The product list leads peps_maja_download to the products.",
        "  %(prog)s -l Toulouse -d 2017-11-01 -f 2017-12-01 -p list.txt\n"
        "  %(prog)s --lat 43.5 --lon 1 -d 2017-11-01 -p list.txt\n"
        "  %(prog)s -t 31TCJ -o 51 -d 2017-11-01 -f 2017-12-01 -p list.txt -n\n",
    )
    add = parser.add_argument
    add("-t", "--tile", type=common.as_tile, help="area: an MGRS tile, such as 31TCJ")
    add("-l", "--location", metavar="TOWN", help="area: a town, such as Toulouse")
    add("--lat", type=latitude, help="area: a point, with --lon; degrees north")
    add("--lon", type=longitude, help="longitude of the point, degrees east")
    add("--latmin", type=latitude, help="area: a box, its southern edge")
    add("--latmax", type=latitude, help="northern edge of the box")
    add("--lonmin", type=longitude, help="western edge of the box")
    add("--lonmax", type=longitude, help="eastern edge of the box")
    day = partial(add, metavar="DATE", type=as_moment)
    day("-d", "--start_date", required=True, help="first day, YYYY-MM-DD")
    day("-f", "--end_date", default=NO_END, help="day after the last (default: none)")
    parser.add_orbit()
    add(
        "-p",
        "--prod_list",
        required=True,
        metavar="FILE",
        type=Path,
        help="list of the products ordered, which grows",
    )
    parser.add_folder("folder for the logs (default: .)")
    parser.add_dry_run("only say what would be ordered")
    add(
        "-y",
        "--yes",
        action="store_true",
        help=f"do not ask before ordering more than {CONFIRM_ABOVE} products",
    )
    add(
        "--force",
        action="store_true",
        help="order anew what has a job; its log is kept as FILE.1, .2 ...",
    )
    add("--json", metavar="FILE", type=Path, help="also save the catalogue's answer")
    add("--windows", action="store_true", help=argparse.SUPPRESS)
    parser.other_letter("-e", "-f")
    return parser


def area_query(args: Any) -> str:
    """The area's part of the catalogue request.

    Raises PepsError (status 2) unless there is exactly one kind of area.
    """
    point = (args.lat, args.lon)
    box = (args.lonmin, args.latmin, args.lonmax, args.latmax)
    kinds = ((args.tile,), (args.location,), point, box)
    given = [kind for kind in kinds if any(value is not None for value in kind)]
    if len(given) != 1 or None in given[0]:
        raise UsageError(
            "give exactly one area: -t TILE, -l TOWN, --lat with --lon, or all of "
            "--latmin --latmax --lonmin --lonmax"
        )
    if args.tile:
        return f"tileid={args.tile}"
    if args.location is not None:
        return town_query(args.location.strip())
    if args.lat is not None:
        return f"lat={args.lat:.6f}&lon={args.lon:.6f}"
    if args.latmin >= args.latmax or args.lonmin >= args.lonmax:
        raise UsageError("--latmin must be below --latmax, --lonmin below --lonmax")
    return "box=" + ",".join(f"{value:.6f}" for value in box)


def town_query(town: str) -> str:
    """The query for a town, which users of older scripts had to encode themselves."""
    if not town or not town.isprintable():
        raise UsageError("the town (-l) is empty, or not UTF-8 text")
    encoded = re.search(r"%[0-9A-Fa-f]{2}|\+", town)
    return f"q={quote(town, safe='%+' if encoded else '')}"


def confirm(count: int) -> None:
    """Ask before a large order; raises PepsError: 1 for a no, 2 if nobody answers."""
    answer = ""
    while answer not in ("yes", "y", "no", "n"):
        if sys.stderr:
            question = f"Order {count} products? yes/no: "
            with contextlib.suppress(OSError):
                print(question, end="", file=sys.stderr, flush=True)
        line = ""
        with contextlib.suppress(OSError, ValueError):  # what is no text is no answer
            line = sys.stdin.readline() if sys.stdin else ""
        if not line:
            raise UsageError(
                f"{count} products are many, and nobody answers: add --yes"
            )
        answer = line.strip().lower()
    if answer.startswith("n"):
        raise PepsError("nothing was ordered, as you said")


def add_to_list(path: Path, name: str) -> None:
    """Add a product to a product list, durably, unless it is there."""
    advice = f"put that right, and add {name} to the list"
    with common.named_file(path, advice), open(path, "a+b") as file:
        file.seek(0)
        text = file.read()
        if name in common.as_text(text).split():
            return
        if text and not text.endswith(b"\n"):
            file.write(b"\n")
        file.write(f"{name}\n".encode())
        common.make_durable(file)


def job_url(args: Any, product: L1C) -> str:
    flags = "storeExecuteResponse=true&status=true&title=Maja-Process"
    return common.wps_url(args.server, "MAJA", f"product={product.name}", flags)


def how_to_order_again(args: Any, log: Path) -> str:
    """How to order one product again: --force would order the others anew, too."""
    return f"remove {log}, and its line in {args.prod_list}, and order again"


def find(service: Service, args: Any, area: str) -> list[L1C]:
    """The products of the catalogue, shown; raises PepsError if there are none."""
    features = service.search(area, args.start_date, args.end_date, args.orbit)
    if args.json:
        common.save_features(args.json, features)
    products = [L1C.from_feature(feature) for feature in features]
    named = {product.name: product for product in products if product}
    if None in products:
        nameless = plural(products.count(None), "result")
        console.warn(f"without a usable name, and left out: {nameless}")
    if not named:
        raise PepsError(
            "no product answers the search; look at the area, the dates, the orbit"
        )
    for product in named.values():
        console.say(f"{product.name}  ({product.storage})")
    return list(named.values())


class Orders:
    """What a run orders, and what becomes of it."""

    def __init__(self, args: Any, listed: list[str]):
        self.args, self.listed = args, listed
        self.failures: list[tuple[str, PepsError]] = []
        self.before = self.elsewhere = self.now = 0

    def log_of(self, product: L1C) -> Path:
        """A product's log, or where it is to be."""
        args = self.args
        return common.find_log(product.name, args.write_dir, args.prod_list)

    def is_free(self, product: L1C) -> bool:
        """Whether a product is to be ordered: nothing of it was ordered before."""
        if self.args.force:
            return True
        log = self.log_of(product)
        try:
            held = common.read_log(log, how_to_order_again(self.args, log))
        except PepsError as err:
            self.failures.append((product.name, err))
            return False
        if held and held.holds_job:
            self.note(product, held, False)
            return False
        if held is None and product.name in self.listed:
            self.elsewhere += 1
            place = f"stands in {self.args.prod_list}, its log is elsewhere"
            console.say(f"{product.name}: {place}: left out; --force orders it anew")
            return False
        return True

    def place(self, service: Service, products: list[L1C]) -> None:
        """Order product by product, each with its log and then its line in the list."""
        for product in products:
            if not self.is_free(product):  # another run has been at work
                continue
            log = self.log_of(product)
            url, way = job_url(self.args, product), how_to_order_again(self.args, log)
            try:
                job = common.order_once(service, url, log, self.args.force, way)
            except Refused as err:
                self.failures.append((product.name, err))
            except PepsError as err:
                self.failures.append((product.name, err))
                return
            else:
                self.note(product, job, True)

    def note(self, product: L1C, job: WpsAnswer, new: bool) -> None:
        """Say that a product is ordered, and put it on the list."""
        self.now += new
        self.before += not new
        status = f"status {job.place}" if new else "before"
        console.say(f"{product.name}: ordered as job {one_line(job.job_id)}, {status}")
        if not self.args.dry_run:
            add_to_list(self.args.prod_list, product.name)

    def sum_up(self, found: int) -> None:
        """Say what failed, and how many of the products found were ordered."""
        for who, err in common.by_reason("product", self.failures):
            console.error(err, who)
        counts = [
            (self.before, "ordered before"),
            (self.elsewhere, "ordered elsewhere"),
            (self.now, "ordered now"),
            (found - self.before - self.elsewhere - self.now, "not ordered"),
        ]
        words = ", ".join(f"{number} {words}" for number, words in counts if number)
        console.say(f"{plural(found, 'product')} found: {words}")


def run(args: Any) -> Status:
    area = area_query(args)
    common.check_dates(args.start_date, args.end_date)
    account = common.read_account(args.auth)
    common.check_files(args.auth, args.prod_list, args.json)
    orders = Orders(args, common.read_list(args.prod_list))
    service = Service(args.server, account)
    if args.dry_run:
        dates = args.start_date, args.end_date
        console.say(common.search_url(args.server, area, *dates))
    else:
        common.make_folder(args.write_dir)
    found = find(service, args, area)
    todo = [product for product in found if orders.is_free(product)]
    if args.dry_run:
        for product in todo:
            console.say(job_url(args, product))
    else:
        if len(todo) > CONFIRM_ABOVE and not args.yes:
            confirm(len(todo))
        orders.place(service, todo)
    orders.sum_up(len(found))
    if (orders.before or orders.now) and not args.dry_run:
        options = ("-p", args.prod_list, "-w", args.write_dir)
        console.say(f"when they have run: {called('peps_maja_download', *options)}")
    return common.worst(err.status for _, err in orders.failures)


def main(argv: list[str] | None = None) -> int:
    return common.run_script(build_parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
