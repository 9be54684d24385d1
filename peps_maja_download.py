#!/usr/bin/env python
"""Ask how the MAJA jobs of a product list stand and download the products of those that are finished."""

from __future__ import annotations

from pathlib import Path

import peps_common as common
from peps_common import Job, PepsError, State, Status

HINTS = {
    State.WAITING: "the computing centre is busy",
    State.RUNNING: "a product usually takes one to two hours",
    State.CANCELED: "this can happen outside |lat| < 60°, for lack of an SRTM terrain model",
}


def build_parser() -> common.Parser:
    parser = common.make_parser(
        __file__,
        "Ask how the MAJA jobs of a product list stand and download the products of those that are finished.",
        """
        peps_maja_download.py -p prod_list_toulouse.txt -a peps.txt -w /mnt/data/PEPS_MAJA
        peps_maja_download.py -p prod_list_toulouse.txt -a peps.txt --wait --interval 30
        """,
    )
    parser.add_argument(
        "-p", "--prod_list", required=True, metavar="FILE", type=Path, help="the list that peps_maja_process wrote"
    )
    common.add_download_options(parser)
    return parser


def read_list(path: Path) -> list[str]:
    """The products of a product list, each once, in order; raises PepsError (status 2) if it is none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as err:
        raise PepsError(
            f"product list {common.os_reason(err)}; give one that was written when ordering", Status.USAGE
        ) from err
    except ValueError as err:
        raise PepsError(f"product list {path} is not a text file", Status.USAGE) from err
    names = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    wrong = [name for name in names if not common.is_file_name(name)]
    if wrong or not names:
        raise PepsError(f"product list {path} {f'has a line {wrong[0]!r}' if wrong else 'is empty'}", Status.USAGE)
    return names


def find_job(name: str, folders: list[Path]) -> Job:
    """A product's job, in the first folder that has its log: it was ordered there, whatever -w says now."""
    logs = [folder / f"{name}.log" for folder in folders]
    log = next((log for log in logs if log.exists()), logs[0])
    return Job(name, log, log.with_name(f"update_{name}.txt"), log.with_name(f"{name}.stat"))


def run(args, console: common.Console) -> Status:
    account = common.read_account(args.auth, console)
    names = read_list(args.prod_list)
    common.make_folder(args.write_dir)
    folders = [args.write_dir, args.prod_list.parent, Path(".")]
    follow = common.FollowUp(
        [find_job(name, folders) for name in names], args.write_dir, console,
        lambda: common.Service(args.server, account, args.jobs), args.jobs, args.check, HINTS,
    )  # fmt: skip
    follow.run(args.interval * 60 if args.wait else None)
    return follow.finish()


def main(argv=None) -> int:
    return common.run_script(build_parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
