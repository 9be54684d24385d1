#!/usr/bin/env python
"""Ask how FULL_MAJA jobs stand and download the products of those that are finished."""

from __future__ import annotations

import os
from pathlib import Path

import peps_common as common
from peps_common import L1C, Acquisition, Job, PepsError, State, Status, Unreadable

HINTS = {
    State.WAITING: "the computing centre is busy, or ten tiles, the limit for all users, are running already",
    State.RUNNING: "a job usually takes 1 h for the first date and 25 min for each further one",
}


def build_parser() -> common.Parser:
    parser = common.make_parser(
        __file__,
        "Ask how FULL_MAJA jobs stand and download the products of those that are finished.",
        """
        full_maja_download.py -a peps.txt -l 31TCJ_20170101.log -w /path/to/31TCJ
        full_maja_download.py -a peps.txt -l logs/*.log -w products --wait
        full_maja_download.py -q -a peps.txt -l 31TCJ_20170101.log -w /path/to/31TCJ    (for cron)
        """,
    )
    parser.add_argument(
        "-l", "--log", metavar="FILE", nargs="+", type=Path, default=[Path("Full_Maja.log")],
        help="log files that full_maja_process wrote (default: Full_Maja.log)",
    )  # fmt: skip
    common.add_download_options(parser)
    parser.add_argument(
        "--json", metavar="FILE", type=Path,
        help="the list that full_maja_process --json wrote: name every acquisition without a result",
    )  # fmt: skip
    return parser


def read_expected(path: Path) -> list[Acquisition]:
    """The acquisitions of a catalogue answer; raises PepsError (status 2) if the file is none."""
    try:
        features = common.parse_page(path.read_bytes()).features
    except OSError as err:
        raise PepsError(
            f"list {common.os_reason(err)}; give the one of full_maja_process --json", Status.USAGE
        ) from err
    except Unreadable as err:
        raise PepsError(f"{path} is {err}; give the list of full_maja_process --json", Status.USAGE) from err
    products = filter(None, map(L1C.from_feature, features))
    return [product.acquisition for product in products if product.acquisition]


def name_missing(expected: list[Acquisition], jobs: list[Job], console: common.Console) -> int | None:
    """List the acquisitions without a result, once all jobs have finished; return their number."""
    if not all(job.report for job in jobs):
        console.say("missing acquisitions are looked for when every job has finished")
        return None
    missing = common.missing_acquisitions(expected, [url for job in jobs for url in job.report.results])
    for platform, day, tile in missing:
        console.error(f"warning: no result for {platform} of {day[:4]}-{day[4:6]}-{day[6:]}, tile {tile}")
    return len(missing)


def run(args, console: common.Console) -> Status:
    account = common.read_account(args.auth, console)
    expected = read_expected(args.json) if args.json else None
    common.make_folder(args.write_dir)
    jobs = [
        Job(str(log), log, common.sibling(log, ".stat"), common.sibling(log, ".json"))
        for log in {os.path.abspath(log): log for log in args.log}.values()
    ]
    follow = common.FollowUp(
        jobs, args.write_dir, console, lambda: common.Service(args.server, account, args.jobs),
        args.jobs, args.check, HINTS,
    )  # fmt: skip
    follow.run(args.interval * 60 if args.wait else None)
    return follow.finish(name_missing(expected, jobs, console) if expected is not None else None)


def main(argv=None) -> int:
    return common.run_script(build_parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
