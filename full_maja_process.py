#!/usr/bin/env python
"""Order a time series of one tile from PEPS: Sentinel-2 images corrected by MAJA."""

from __future__ import annotations

from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import peps_common as common
from peps_common import (
    L1C,
    PepsError,
    Service,
    Status,
    UsageError,
    called,
    console,
    one_line,
)

FIRST_START = date(2016, 4, 1)
DAYS_MIN, DAYS_MAX = 55, 366


def build_parser() -> common.Parser:
    parser = common.Parser(
        "Order a time series of one Sentinel-2 tile, corrected by MAJA. The log file\n"
        "leads full_maja_download to the products.",
        "  %(prog)s -t 31TCJ -d 2017-07-01 -e 2018-01-01 -l 31TCJ.log\n"
        "  %(prog)s -t 31TCJ -o 51 -d 2017-07-01 -e 2018-01-01 -n\n",
    )
    add = parser.add_argument
    add(
        "-t",
        "--tile",
        required=True,
        type=common.as_tile,
        help="MGRS tile, such as 31TCJ",
    )
    day = partial(add, required=True, metavar="DATE", type=common.as_date)
    day("-d", "--start_date", help="first day, YYYY-MM-DD")
    day("-e", "--end_date", help="day after the last, YYYY-MM-DD")
    parser.add_orbit()
    add(
        "-l",
        "--log",
        metavar="FILE",
        type=Path,
        default="Full_Maja.log",
        help="where the order is kept, its own for each (default: Full_Maja.log)",
    )
    parser.add_dry_run("only print the URL of the request, order nothing")
    add(
        "--force",
        action="store_true",
        help="order whatever the log holds, which is kept as FILE.1, .2 ...",
    )
    add(
        "--json",
        metavar="FILE",
        type=Path,
        help="also save the catalogue's list of the L1C products to process",
    )
    parser.other_letter("-f", "-e")
    parser.other_letter("-p", "-l")
    return parser


def check_period(start: date, end: date) -> None:
    """FULL_MAJA's rules: from 2016-04-01 on, 55 to 366 days. Raises PepsError (2)."""
    common.check_dates(str(start), str(end))
    if start < FIRST_START:
        raise UsageError(
            f"the start date {start} is before {FIRST_START}, the first possible"
        )
    days = (end - start).days
    if not DAYS_MIN <= days <= DAYS_MAX:
        raise UsageError(
            f"{start} to {end} is {common.plural(days, 'day')}; a job takes "
            f"{DAYS_MIN} to {DAYS_MAX}, so change -d or -e"
        )


def save_list(args: Any, service: Service) -> None:
    """Save which L1C products the job will cover, and say what that means in time."""
    area, dates = f"tileid={args.tile}", (str(args.start_date), str(args.end_date))
    features = service.search(area, *dates, args.orbit)
    if not features:
        raise PepsError(
            "the catalogue has no product of that tile, time and orbit; nothing was "
            "ordered"
        )
    common.save_features(args.json, features)
    products = [one for one in map(L1C.from_feature, features) if one]
    days = {one.start[:10] or one.name for one in products}
    hours = (60 + 25 * (len(days) - 1)) / 60
    count = common.plural(len(days), "date")
    console.say(f"{count}, listed in {args.json}: usually {hours:.0f} h of processing")


def execute_url(args: Any) -> str:
    """The request that orders what the command line asks for."""
    period = f"startDate={args.start_date};completionDate={args.end_date}"
    inputs = f"{period};tileid={args.tile}"
    if args.orbit:
        inputs = f"{inputs};relativeOrbitNumber={args.orbit}"
    flags = "status=true&storeExecuteResponse=true"
    return common.wps_url(args.server, "FULL_MAJA", inputs, flags)


def how_to_order_again(args: Any) -> str:
    """The command that orders the same whatever the log holds."""
    dates = ("-d", args.start_date, "-e", args.end_date)
    orbit = ("-o", args.orbit) if args.orbit else ()
    words = ("-t", args.tile, *dates, *orbit, "-l", args.log, "--force")
    return f"order it with: {called('full_maja_process', *words)}"


def order(args: Any, service: Service) -> None:
    """Order, unless the log holds a job already, or -n: then say what would be."""
    url, again = execute_url(args), how_to_order_again(args)
    if args.dry_run:
        console.say(url)
    held = None if args.force else common.read_log(args.log, again)
    if held and held.holds_job:
        words = f"{args.log} already holds job {one_line(held.job_id)}"
        if not args.dry_run:
            advice = "choose another log with -l, or add --force"
            raise UsageError(f"{words}, so nothing was ordered; {advice}")
        console.warn(words)
    if args.json:
        save_list(args, service)
    if not args.dry_run:
        job = common.order_once(service, url, args.log, args.force, again)
        name = one_line(job.job_id)
        console.say(f"{args.log}: ordered as job {name}, status {job.place}")
        folder = args.log.with_suffix("")
        if folder == args.log or folder.is_file():
            folder = Path(f"{args.log}_products")
        download = called("full_maja_download", "-l", args.log, "-w", folder)
        console.say(f"when it has run: {download}")


def run(args: Any) -> Status:
    check_period(args.start_date, args.end_date)
    service = Service(args.server, common.read_account(args.auth))
    beside = [common.beside(args.log, suffix) for suffix in (".stat", ".json")]
    common.check_files(args.auth, args.log, *beside, args.json)
    order(args, service)
    return Status.OK


def main(argv: list[str] | None = None) -> int:
    return common.run_script(build_parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
