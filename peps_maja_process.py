#!/usr/bin/env python
"""Search the PEPS catalogue and order one MAJA job for each Sentinel-2 product found."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import SUPPRESS
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import peps_common as common
from peps_common import L1C, PepsError, Status

CONFIRM_ABOVE = 10

latitude = common.number(float, -90, 90, "a latitude, -90 to 90 degrees")
longitude = common.number(float, -180, 180, "a longitude, -180 to 180 degrees")


def build_parser() -> common.Parser:
    parser = common.make_parser(
        __file__,
        "Search the catalogue and order one MAJA job for each Sentinel-2 L1C product found. For a whole time series "
        "of a tile, full_maja_process.py is far cheaper. The product list leads peps_maja_download.py to the products.",
        """
        peps_maja_process.py -l Toulouse -a peps.txt -d 2017-11-01 -f 2017-12-01 -p prod_list_toulouse.txt
        peps_maja_process.py --lon 1 --lat 43.5 -a peps.txt -d 2017-11-01 -f 2017-12-01 -p prod_list_toulouse.txt
        peps_maja_process.py -t 31TCJ -o 51 -a peps.txt -d 2017-11-01 -f 2017-12-01 -p list.txt -n    (only show)
        """,
    )
    add = parser.add_argument
    add("-t", "--tile", type=common.tile, help="area: an MGRS tile, such as 31TCJ")
    add("-l", "--location", metavar="TOWN", help="area: a town, such as Toulouse")
    add("--lat", type=latitude, help="area: a point, with --lon; degrees")
    add("--lon", type=longitude, help="longitude of the point")
    for name, kind in (("latmin", latitude), ("latmax", latitude), ("lonmin", longitude), ("lonmax", longitude)):
        add(f"--{name}", type=kind, help="area: a box, these four together; degrees" if name == "latmin" else " ")
    add("-d", "--start_date", required=True, metavar="DATE", type=common.day, help="first day, YYYY-MM-DD")
    add("-f", "--end_date", metavar="DATE", type=common.day, help="day after the last, YYYY-MM-DD (default: none)")
    add("-o", "--orbit", metavar="N", type=common.orbit, help="this relative orbit alone (default: all)")
    add("-p", "--prod_list", required=True, metavar="FILE", type=Path, help="list of the products ordered; it grows")
    add("-w", "--write_dir", metavar="DIR", type=Path, default=Path("."), help="folder for the logs (default: .)")
    add("-n", "--no_download", "--dry-run", dest="dry_run", action="store_true", help="only show what would be ordered")
    add("-y", "--yes", action="store_true", help=f"do not ask before ordering more than {CONFIRM_ABOVE} products")
    add("--json", metavar="FILE", type=Path, help="also save the catalogue's answer")
    add("--windows", action="store_true", help=SUPPRESS)
    return parser


def area_query(args) -> str:
    """The area's part of the catalogue request; raises PepsError (status 2) unless there is exactly one kind."""
    point, box = (args.lat, args.lon), (args.lonmin, args.latmin, args.lonmax, args.latmax)
    given = [args.tile is not None, args.location is not None, point != (None, None), any(v is not None for v in box)]
    if sum(given) != 1:
        raise PepsError(
            "give exactly one area: -t TILE, -l TOWN, --lat and --lon, or --latmin --latmax --lonmin --lonmax",
            Status.USAGE,
        )
    if args.tile:
        return f"tileid={args.tile}"
    if args.location is not None:
        if not args.location.strip():
            raise PepsError("the town (-l) is empty", Status.USAGE)
        try:
            return f"q={quote(args.location, safe='')}"
        except UnicodeEncodeError:
            raise PepsError("the town (-l) is not UTF-8 text", Status.USAGE) from None
    if None in (point if given[2] else box):
        raise PepsError("a point takes --lat and --lon, a box --latmin --latmax --lonmin --lonmax", Status.USAGE)
    if given[2]:
        return f"lat={args.lat:.6f}&lon={args.lon:.6f}"
    if args.latmin >= args.latmax or args.lonmin >= args.lonmax:
        raise PepsError("--latmin must be below --latmax, and --lonmin below --lonmax", Status.USAGE)
    return "box=" + ",".join(f"{value:.6f}" for value in box)


def confirm(count: int, yes: bool, ask: Callable[[str], str] = input) -> None:
    """Ask before a large order; raises PepsError if the answer is no (status 1) or nobody is there (status 2)."""
    if yes or count <= CONFIRM_ABOVE:
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise PepsError(f"{count} products are many, and nobody is there to ask: add --yes to order them", Status.USAGE)
    answer = ""
    while answer not in ("yes", "y", "no", "n"):
        try:
            answer = ask(f"Order {count} products? yes/no: ").strip().lower()
        except EOFError:
            answer = "no"
        except ValueError:  # bytes that are no text
            answer = ""
    if answer[0] == "n":
        raise PepsError("nothing was ordered, as you said")


def add_to_list(path: Path, name: str = "") -> None:
    """Add a product to a product list, durably, unless it is there; without a name, see that it can be written."""
    try:
        with open(path, "a+b") as file:
            file.seek(0)
            text = file.read()
            if name and name.encode() not in text.split():
                file.write(b"\n" * (text[-1:] not in (b"", b"\n")) + name.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
    except OSError as err:
        raise common.os_error(err, path, "put that right, or choose another product list with -p") from err


def sort_out(
    products: list[L1C], folder: Path, listed: Path, console: common.Console
) -> tuple[list[L1C], list[Status]]:
    """The products to order, and the status of each other one.

    Those with a job are put on the list, where a killed run may have left them out.
    """
    todo, statuses = [], []
    for product in products:
        try:
            held = common.held_job(folder / f"{product.name}.log")
        except PepsError as err:
            console.error(f"{product.name}: {err}")
            statuses.append(err.status)
            continue
        if held is None:
            todo.append(product)
        else:
            add_to_list(listed, product.name)
            statuses.append(Status.OK)
            console.say(f"{product.name}: ordered before, as job {held.job_id}")
    return todo, statuses


def order_each(products: list[L1C], service: common.Service, folder: Path, listed: Path, console) -> list[Status]:
    """Order product by product, each with its log and then its line in the list; the status of each."""
    statuses = []
    for product in products:
        try:
            answer = common.order(service, job_url(service.base, product), folder / f"{product.name}.log")
            console.say(f"{product.name}: ordered job {answer.job_id}, status {answer.status_location}")
            add_to_list(listed, product.name)
            statuses.append(Status.OK)
        except common.Held as held:  # another run was quicker
            console.say(f"{product.name}: {held}")
            add_to_list(listed, product.name)
            statuses.append(Status.OK)
        except PepsError as err:
            console.error(f"{product.name}: {err}")
            statuses.append(err.status)
            if isinstance(err, common.General):
                break
        except KeyboardInterrupt as stop:
            raise type(stop)(f"{product.name}: {stop}" if str(stop) else "") from stop
    return statuses


def job_url(base: str, product: L1C) -> str:
    flags = "storeExecuteResponse=true&status=true&title=Maja-Process"
    return common.execute_url(base, "MAJA", {"product": product.name}, flags)


def find(service: common.Service, args, console: common.Console) -> list[L1C]:
    """The products of the catalogue, shown; raises PepsError (status 1) if there are none."""
    answer = service.search(args.area, args.start_date, args.end_date, args.orbit)
    if args.json:
        common.write_json(args.json, answer)
    products = [L1C.from_feature(feature) for feature in answer["features"]]
    nameless = products.count(None)
    if nameless:
        console.error(f"warning: {nameless} entries of the catalogue's answer have no usable name and are left out")
    products = [product for product in products if product]
    if not products:
        raise PepsError("no product answers the search; look at the area, the dates and the orbit")
    for product in products:
        console.say(f"{product.name}  ({product.storage})")
    return products


def run(args, console: common.Console) -> Status:
    args.area = area_query(args)
    if args.end_date and args.start_date >= args.end_date:
        raise PepsError(f"the start date {args.start_date} is not before the end date {args.end_date}", Status.USAGE)
    account = common.read_account(args.auth, console)
    common.refuse_same(account_file=args.auth, product_list=args.prod_list, catalogue_answer=args.json)
    if args.json:
        common.require_writable(args.json)
    if not args.dry_run:
        common.make_folder(args.write_dir)
        add_to_list(args.prod_list)
    service = common.Service(args.server, account)
    if args.dry_run:
        console.say(common.search_url(service.base, args.area, args.start_date, args.end_date))
        for product in find(service, args, console):
            console.say(job_url(service.base, product))
        return Status.OK
    found = find(service, args, console)
    todo, others = sort_out(found, args.write_dir, args.prod_list, console)
    confirm(len(todo), args.yes)
    ordered = order_each(todo, service, args.write_dir, args.prod_list, console)
    before, now = others.count(Status.OK), ordered.count(Status.OK)
    console.say(
        f"{common.plural(len(found), 'product')} found: {before} ordered before, {now} ordered now, "
        f"{len(found) - before - now} not ordered. When they have run: python peps_maja_download.py "
        f"-a {shlex.quote(str(args.auth))} -p {shlex.quote(str(args.prod_list))} -w {shlex.quote(str(args.write_dir))}"
    )
    return common.worst(others + ordered)


def main(argv=None) -> int:
    return common.run_script(build_parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
