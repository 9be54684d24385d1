#!/usr/bin/env python
"""Ask how the MAJA jobs of a product list stand, and download what is finished."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import peps_common as common
from full_maja_download import Job, add_download_options, follow_up
from peps_common import Status, UsageError


def build_parser() -> common.Parser:
    parser = common.Parser(
        "Ask how the MAJA jobs of a product list stand, and download the products of\n"
        "those that are finished. What is on disk is not fetched again.",
        "  %(prog)s -p prod_list_toulouse.txt -a peps.txt -w PEPS_MAJA\n"
        "  %(prog)s -p prod_list_toulouse.txt -w PEPS_MAJA --wait\n",
    )
    listed = "the product list that peps_maja_process wrote"
    parser.add_argument(
        "-p", "--prod_list", required=True, metavar="FILE", type=Path, help=listed
    )
    add_download_options(parser)
    parser.other_letter("-l", "-p")
    return parser


def make_job(name: str, folder: Path, prod_list: Path) -> Job:
    """A product's job: it was ordered where its log is, whatever -w says now."""
    log = common.find_log(name, folder, prod_list)
    again = f"remove {log}, and its line in {prod_list}, and order again"
    if_missing = "no log in -w, beside the list or here; give its folder with -w"
    status_file = log.with_name(f"update_{name}.txt")
    report_file = log.with_name(f"{name}.stat")
    return Job(name, log, status_file, report_file, again, if_missing)


def run(args: Any) -> Status:
    names = common.read_list(args.prod_list)
    if not names:
        raise UsageError(f"product list {args.prod_list} is empty, or not there")

    def find_jobs() -> list[Job]:
        return [make_job(name, args.write_dir, args.prod_list) for name in names]

    names_of_logs = [f"{job.log}{end}" for job in find_jobs() for end in ("", ".part")]
    if not any(map(os.path.lexists, names_of_logs)):
        raise UsageError(
            f"no product of {args.prod_list} has a log in {args.write_dir}, beside the "
            "list or here; give the folder that they were ordered with (-w)"
        )
    return follow_up(find_jobs, args, [], True)


def main(argv: list[str] | None = None) -> int:
    return common.run_script(build_parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
