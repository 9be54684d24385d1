#!/usr/bin/env python
"""Order a time series of one tile from PEPS: Sentinel-2 images corrected by MAJA (FULL_MAJA)."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from shlex import quote

import peps_common as common
from peps_common import L1C, Held, PepsError, Status

FIRST_START = date(2016, 4, 1)
DAYS_MIN, DAYS_MAX = 55, 366


def build_parser() -> common.Parser:
    parser = common.make_parser(
        __file__,
        "Order a time series of one Sentinel-2 tile, corrected by MAJA. The log file leads full_maja_download.py "
        "to the products.",
        """
        full_maja_process.py -t 31TCJ -a peps.txt -d 2017-07-01 -e 2018-01-01 -l 31TCJ_20170101.log
        full_maja_process.py -t 31TCJ -o 51 -a peps.txt -d 2017-07-01 -e 2018-01-01 -l 31TCJ_20170101.log
        full_maja_process.py -t 31TCJ -a peps.txt -d 2017-07-01 -e 2018-01-01 -n    (only show the request)
        """,
    )
    add = parser.add_argument
    add("-t", "--tile", required=True, type=common.tile, help="MGRS tile, such as 31TCJ")
    add("-d", "--start_date", required=True, metavar="DATE", type=common.day, help="first day, YYYY-MM-DD")
    add("-e", "--end_date", required=True, metavar="DATE", type=common.day, help="day after the last, YYYY-MM-DD")
    add("-o", "--orbit", metavar="N", type=common.orbit, help="this relative orbit alone (default: all)")
    add(
        "-l", "--log", metavar="FILE", type=Path, default=Path("Full_Maja.log"),
        help="log file to write, one a job (default: Full_Maja.log)",
    )  # fmt: skip
    add("-n", "--no_download", "--dry-run", dest="dry_run", action="store_true", help="show the request, send nothing")
    add("--force", action="store_true", help="order even if the log holds a job; the old log is kept as FILE.1 ...")
    add("--json", metavar="FILE", type=Path, help="also save the catalogue's list of the L1C products to process")
    return parser


def check_period(start: date, end: date) -> None:
    """FULL_MAJA's rules: from 2016-04-01 on, 55 to 366 days. Raises PepsError (status 2)."""
    days = (end - start).days
    if start < FIRST_START:
        raise PepsError(
            f"the start date {start} is before {FIRST_START}, the first that can be processed", Status.USAGE
        )
    if days <= 0:
        raise PepsError(f"the start date {start} is not before the end date {end}", Status.USAGE)
    if not DAYS_MIN <= days <= DAYS_MAX:
        raise PepsError(
            f"{start} to {end} is {days} days; a job takes {DAYS_MIN} to {DAYS_MAX}, so change -d or -e", Status.USAGE
        )


def save_list(args, service: common.Service, console: common.Console) -> None:
    """Save which L1C products the job will cover, and say what that means in time."""
    answer = service.search(f"tileid={args.tile}", args.start_date, args.end_date, args.orbit)
    if not answer["features"]:
        raise PepsError("the catalogue has no product of that tile, time and orbit; nothing was ordered")
    common.write_json(args.json, answer)
    products = filter(None, map(L1C.from_feature, answer["features"]))
    dates = {product.acquisition.day if product.acquisition else product.name for product in products}
    hours = (60 + 25 * (len(dates) - 1)) / 60
    console.say(f"{len(dates)} dates, listed in {args.json}: usually about {hours:.0f} h once the job has started")


def place(url: str, args, account: common.Account, console: common.Console) -> common.WpsAnswer | None:
    """Save the list, if asked, and order, unless it is a dry run."""
    if args.dry_run:
        console.say(url)
    elif not args.force:
        common.refuse_held(args.log)
    if args.json:
        save_list(args, common.Service(args.server, account), console)
    return None if args.dry_run else common.order(common.Service(args.server, account), url, args.log, args.force)


def run(args, console: common.Console) -> Status:
    check_period(args.start_date, args.end_date)
    account = common.read_account(args.auth, console)
    inputs = {"startDate": args.start_date, "completionDate": args.end_date, "tileid": args.tile}
    if args.orbit:
        inputs["relativeOrbitNumber"] = args.orbit
    url = common.execute_url(args.server, "FULL_MAJA", inputs, "status=true&storeExecuteResponse=true")
    common.refuse_same(
        account_file=args.auth, log=args.log, list=args.json,
        status_document=common.sibling(args.log, ".stat"), report=common.sibling(args.log, ".json"),
    )  # fmt: skip
    if args.json:
        common.require_writable(args.json)
    try:
        answer = place(url, args, account, console)
    except Held as err:
        raise PepsError(
            f"{err}; choose another log file with -l, or add --force to order anew and keep this one as a copy",
            err.status,
        ) from err
    if answer is None:
        return Status.OK
    console.say(f"ordered job {answer.job_id}: tile {args.tile}, {args.start_date} to {args.end_date}")
    console.say(f"its status: {answer.status_location}")
    console.say(
        "when it has run, usually by tomorrow: "
        f"python full_maja_download.py -a {quote(str(args.auth))} -l {quote(str(args.log))}"
    )
    return Status.OK


def main(argv=None) -> int:
    return common.run_script(build_parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
