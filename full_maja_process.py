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
        "full_maja_process",
        "Order a time series of one Sentinel-2 tile, corrected by MAJA. The log file\n"
        "leads full_maja_download to the products.",
        "-t 31TCJ -a peps.txt -d 2017-07-01 -e 2018-01-01 -l 31TCJ.log",
        "-t 31TCJ -o 51 -d 2017-07-01 -e 2018-01-01 -n",
    )
    add = parser.add_argument
    tile = "MGRS tile, such as 31TCJ"
    add("-t", "--tile", required=True, type=common.as_tile, help=tile)
    day = partial(add, required=True, metavar="DATE", type=common.as_date)
    day("-d", "--start_date", help="first day, YYYY-MM-DD")
    day("-e", "--end_date", help="day after the last, YYYY-MM-DD")
    orbit = "this relative orbit alone (default: all)"
    add("-o", "--orbit", metavar="N", type=common.as_orbit, help=orbit)
    log = "where the order is kept, its own for each (default: Full_Maja.log)"
    file = Path("Full_Maja.log")
    add("-l", "--log", metavar="FILE", type=Path, default=file, help=log)
    only = "only print the URL of the request, order nothing"
    names = ("-n", "--no_download", "--dry-run")
    add(*names, dest="dry_run", action="store_true", help=only)
    force = "order whatever the log holds, which is kept as FILE.1, .2 ..."
    add("--force", action="store_true", help=force)
    listed = "also save the catalogue's list of the L1C products to process"
    add("--json", metavar="FILE", type=Path, help=listed)
    parser.other_letter("-f", "-e")
    parser.other_letter("-p", "-l")
    return parser


def check_period(start: date, end: date) -> None:
    """FULL_MAJA's rules: from 2016-04-01 on, 55 to 366 days. Raises PepsError (2)."""
    common.check_dates(str(start), str(end))
    if start < FIRST_START:
        words = f"the start date {start} is before {FIRST_START}, the first possible"
        raise UsageError(words)
    days = (end - start).days
    if not DAYS_MIN <= days <= DAYS_MAX:
        long = f"{start} to {end} is {common.plural(days, 'day')}"
        words = f"{long}; a job takes {DAYS_MIN} to {DAYS_MAX}, so change -d or -e"
        raise UsageError(words)


def save_list(args: Any, service: Service) -> None:
    """Save which L1C products the job will cover, and say what that means in time."""
    area, dates = f"tileid={args.tile}", (str(args.start_date), str(args.end_date))
    features = service.search(area, *dates, args.orbit)
    if not features:
        words = "the catalogue has no product of that tile, time and orbit"
        raise PepsError(f"{words}; nothing was ordered")
    common.save_features(args.json, features)
    products = [one for one in map(L1C.from_feature, features) if one]
    days = {one.start[:10] or one.name for one in products}
    hours = (60 + 25 * (len(days) - 1)) / 60
    count = common.plural(len(days), "date")
    console.say(f"{count}, listed in {args.json}: usually {hours:.0f} h of processing")


def execute_url(args: Any) -> str:
    """The request that orders what the command line asks for."""
    inputs: dict[str, object] = {
        "startDate": args.start_date,
        "completionDate": args.end_date,
        "tileid": args.tile,
    }
    if args.orbit:
        inputs["relativeOrbitNumber"] = args.orbit
    flags = "status=true&storeExecuteResponse=true"
    return common.execute_url(args.server, "FULL_MAJA", inputs, flags)


def run(args: Any) -> Status:
    check_period(args.start_date, args.end_date)
    account = common.read_account(args.auth)
    log, url = args.log, execute_url(args)
    beside = [common.beside(log, suffix) for suffix in (".stat", ".json")]
    common.check_files(args.auth, log, *beside, args.json)
    words: list[object] = [
        "-t",
        args.tile,
        "-d",
        args.start_date,
        "-e",
        args.end_date,
        "-l",
        log,
    ]
    if args.orbit:
        words += ["-o", args.orbit]
    again = f"order it with: {called('full_maja_process', *words, '--force')}"
    if args.dry_run:
        console.say(url)
    held_now = None if args.force else common.read_log(log, again)
    taken = held_now if held_now and held_now.holds_job else None
    if taken and args.dry_run:
        console.warn(f"{log} holds job {one_line(taken.job_id)}")
    if args.json and (args.dry_run or not taken):
        save_list(args, Service(args.server, account))
    if args.dry_run:
        return Status.OK
    job, new = common.order(Service(args.server, account), url, log, args.force, again)
    name, place = one_line(job.job_id), one_line(job.status_location)
    if not new:
        held = f"{log} already holds job {name}, so nothing was ordered"
        remedy = "choose another log with -l, or add --force"
        raise UsageError(f"{held}; {remedy}")
    console.say(f"{log}: ordered as job {name}, status {place}")
    folder = (
        log.with_suffix("") if log.suffix else log.with_name(f"{log.name}_products")
    )
    download = called("full_maja_download", "-l", log, "-w", folder)
    console.say(f"when it has run: {download}")
    return Status.OK


def main(argv: list[str] | None = None) -> int:
    return common.run_script(build_parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
