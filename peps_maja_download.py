#!/usr/bin/env python
"""Ask how the MAJA jobs of a product list stand and download the products of those that are finished."""

from __future__ import annotations

if __name__ == "__main__":  # until `run_script` takes over, Ctrl-C ends the script without a word
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
from pathlib import Path
from typing import Any

import peps_common as common
from full_maja_download import FollowUp, Job, State, add_download_options
from peps_common import PepsError, Status, one_line

HINTS = {
    State.WAITING: "the computing centre is busy",
    State.RUNNING: "its count is optimistic; a product usually takes one to two hours",
    State.CANCELED: "this can happen outside |lat| < 60°, for lack of an SRTM terrain model",
}


def build_parser() -> common.Parser:
    parser = common.Parser(
        "peps_maja_download",
        "Ask how the MAJA jobs of a product list stand and download the products of those that are finished.",
        "-p prod_list_toulouse.txt -a peps.txt -w /mnt/data/PEPS_MAJA",
        "-p prod_list_toulouse.txt -a peps.txt --wait --interval 30",
    )
    parser.add_argument(
        "-p", "--prod_list", required=True, metavar="FILE", type=Path, help="the list that peps_maja_process wrote"
    )
    add_download_options(parser)
    return parser


def read_list(path: Path) -> list[str]:
    """The products of a product list, each once, in order; raises PepsError (status 2) if it is none."""
    with common.named_file(path, "give a product list that was written when ordering"):
        common.require_plain(path)
        content = path.read_bytes()
    try:
        lines = content.decode("utf-8").splitlines()
    except ValueError as err:
        raise PepsError(f"product list {path} is not a text file", Status.USAGE) from err
    names = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    if not names:
        raise PepsError(f"product list {path} is empty", Status.USAGE)
    for name in names:
        if not common.is_file_name(name):
            words = f"product list {path}: '{one_line(name, 80)}' is no product's name; take that line out"
            raise PepsError(words, Status.USAGE)
    return names


def find_job(name: str, folders: list[Path]) -> Job:
    """A product's job: it was ordered where its log is, whatever -w says now."""
    log = common.find_log(name, folders)
    return Job(name, log, log.with_name(f"update_{name}.txt"), log.with_name(f"{name}.stat"))


def run(args: Any) -> Status:
    token = common.read_account(args.auth)
    folders = [args.write_dir, args.prod_list.parent, Path(".")]
    names = read_list(args.prod_list)
    logs = [folder / f"{name}.log{suffix}" for name in names for folder in folders for suffix in ("", ".part")]
    if not any(map(os.path.lexists, logs)):
        words = f"no product of {args.prod_list} has a log in {args.write_dir}, beside the list or here"
        raise PepsError(f"{words}; give the folder that they were ordered with (-w)", Status.USAGE)
    anew = f"to order it again remove its log; to order all anew: {common.called('peps_maja_process')} --force ..."
    hints = {**HINTS, State.GONE: anew}
    return FollowUp([find_job(name, folders) for name in names], args, token, hints).run()


def main(argv: list[str] | None = None) -> int:
    return common.run_script(build_parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
