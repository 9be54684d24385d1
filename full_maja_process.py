#!/usr/bin/env python
"""Order a time series of one tile from PEPS: Sentinel-2 images corrected by MAJA (FULL_MAJA)."""

from __future__ import annotations

if __name__ == "__main__":  # until `run_script` takes over, Ctrl-C ends the script without a word
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

from datetime import date
from pathlib import Path
from typing import Any

import peps_common as common
from peps_common import OrderInDoubt, PepsError, Service, Status, called, console, one_line

FIRST_START = date(2016, 4, 1)
DAYS_MIN, DAYS_MAX = 55, 366


def build_parser() -> common.Parser:
    parser = common.Parser(
        "full_maja_process",
        "Order a time series of one Sentinel-2 tile, corrected by MAJA. The log file leads full_maja_download to the "
        "products.",
        "-t 31TCJ -a peps.txt -d 2017-07-01 -e 2018-01-01 -l 31TCJ_20170101.log",
        "-t 31TCJ -o 51 -a peps.txt -d 2017-07-01 -e 2018-01-01 -l 31TCJ_20170101.log",
        "-t 31TCJ -a peps.txt -d 2017-07-01 -e 2018-01-01 -n    (only show the request)",
    )
    add = parser.add_argument
    add("-t", "--tile", required=True, type=common.as_tile, help="MGRS tile, such as 31TCJ")
    add("-d", "--start_date", required=True, metavar="DATE", type=common.as_date, help="first day, YYYY-MM-DD")
    add("-e", "--end_date", required=True, metavar="DATE", type=common.as_date, help="day after the last, YYYY-MM-DD")
    add("-o", "--orbit", metavar="N", type=common.as_orbit, help="this relative orbit alone (default: all)")
    log = Path("Full_Maja.log")
    add("-l", "--log", metavar="FILE", type=Path, default=log, help=f"log file to write, one a job (default: {log})")
    add("-n", "--no_download", "--dry-run", dest="dry_run", action="store_true", help="show the request, order nothing")
    add("--force", action="store_true", help="order whatever the log holds; what it held is kept as FILE.1 ...")
    add("--json", metavar="FILE", type=Path, help="also save the catalogue's list of the L1C products to process")
    return parser


def check_period(start: date, end: date) -> None:
    """FULL_MAJA's rules: from 2016-04-01 on, 55 to 366 days. Raises PepsError (status 2)."""
    common.check_dates(str(start), str(end))
    if start < FIRST_START:
        raise PepsError(f"the start date {start} is before {FIRST_START}, the first that is processed", Status.USAGE)
    days = (end - start).days
    if not DAYS_MIN <= days <= DAYS_MAX:
        long = common.plural(days, "day")
        words = f"{start} to {end} is {long}; a job takes {DAYS_MIN} to {DAYS_MAX}, so change -d or -e"
        raise PepsError(words, Status.USAGE)


def save_list(args: Any, service: Service) -> None:
    """Save which L1C products the job will cover, and say what that means in time."""
    answer, products = service.search(f"tileid={args.tile}", str(args.start_date), str(args.end_date), args.orbit)
    if not answer["features"]:
        raise PepsError("the catalogue has no product of that tile, time and orbit; nothing was ordered")
    common.write_json(args.json, answer)
    dates = {product.start[:10] or product.name for product in products}
    hours = (60 + 25 * (len(dates) - 1)) / 60
    words = f"{common.plural(len(dates), 'date')}, listed in {args.json}: usually {hours:.0f} h of processing"
    console.say(f"{args.log}: {words}")


def run(args: Any) -> Status:
    check_period(args.start_date, args.end_date)
    token = common.read_account(args.auth)
    common.check_files({
        "account file (-a)": args.auth, "log (-l)": args.log, "list (--json)": args.json,
        "note beside the log": common.part_path(args.log),
        "status document beside the log": common.beside(args.log, ".stat"),
        "report beside the log": common.beside(args.log, ".json"),
    })  # fmt: skip
    inputs = {"startDate": args.start_date, "completionDate": args.end_date, "tileid": args.tile}
    if args.orbit:
        inputs["relativeOrbitNumber"] = args.orbit
    url = common.execute_url(args.server, "FULL_MAJA", inputs, "status=true&storeExecuteResponse=true")
    try:
        return show(args, url, token) if args.dry_run else place(args, url, token)
    except OrderInDoubt as err:
        orbit = ["-o", args.orbit] if args.orbit else []
        words = ["-t", args.tile, "-d", args.start_date, "-e", args.end_date, *orbit, "-l", args.log, "--force"]
        way = called("full_maja_process", *words)
        raise PepsError(f"{err}; if it is not there, order it with: {way}", err.status) from err


def show(args: Any, url: str, token: str) -> Status:
    """Say what would be ordered, and what stands in the way."""
    console.say(url)
    if args.json:
        save_list(args, Service(args.server, token))
    if not args.force and (held := common.look_at(args.log)).holds_job:
        console.say(f"{args.log}: holds job {one_line(held.job_id)}; choose another log file with -l, or add --force")
    return Status.OK


def place(args: Any, url: str, token: str) -> Status:
    """Order, unless the log holds a job, and say how it goes on."""
    job, new = common.WpsAnswer("") if args.force else common.look_at(args.log), False
    if not job.holds_job:
        service = Service(args.server, token)
        if args.json:
            save_list(args, service)
        job, new = common.order(service, url, args.log, args.force)
    if not new:
        words = f"already holds job {one_line(job.job_id)}, so nothing was ordered; choose another log file with -l"
        raise PepsError(f"{args.log} {words}, or add --force", Status.USAGE)
    console.say(f"{args.log}: ordered as job {one_line(job.job_id)}, status {one_line(job.status_location)}")
    console.say(f"when it has run: {called('full_maja_download', '-l', args.log)}")
    return Status.OK


def main(argv: list[str] | None = None) -> int:
    return common.run_script(build_parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
