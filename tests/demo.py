"""The four scripts as a user runs them, from the order to the products on disk, against a local PEPS.

The service's hours pass in no time, and no request leaves this machine. Ends with status 1, and says what is
wrong, unless every command does what it should.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from local_peps import LocalPeps, acquisitions

CHECKOUT = Path(__file__).resolve().parent.parent

ORDER = "full_maja_process.py -t 31TCJ -a peps.txt -d 2017-07-01 -e 2018-01-01 -l 31TCJ_20170101.log"
FETCH = "full_maja_download.py -a peps.txt -l 31TCJ_20170101.log"
ORDER_LISTED = "full_maja_process.py -t 31TCJ -o 51 -a peps.txt -d 2017-07-01 -e 2017-09-01 -l summer.log --json l1c.json"
FETCH_LISTED = (
    "full_maja_download.py -a peps.txt -l summer.log -w summer --json l1c.json"
)
ORDER_EACH = "peps_maja_process.py 2 --lon 1 --lat 43.5 -a peps.txt -d 2017-11-01 -f 2017-12-01 -o 51 -p prod_list.txt"
FETCH_EACH = "peps_maja_download.py -p prod_list.txt -a peps.txt -w PEPS_MAJA"


class Demo:
    """A user's folder and shell, and a note of all that was not as it should be."""

    def __init__(self, peps: LocalPeps, folder: Path):
        self.peps, self.folder, self.problems = peps, folder, []
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith("_proxy")
        }
        self.environment = {**kept, "PEPS_URL": peps.url, "PYTHONUTF8": "1"}
        account = folder / "peps.txt"
        account.touch(0o600)
        account.write_text(peps.account + "\n", "utf-8")

    def run(
        self, line: str, status: int, *texts: str, requests: int | None = None
    ) -> None:
        """Show a command; note it unless it ends with `status`, says the `texts`, and sends so many `requests`."""
        before = len(self.peps.requests())
        script, *arguments = shlex.split(line)
        print(f"\n$ python {line}", flush=True)
        done = subprocess.run(
            [sys.executable, str(CHECKOUT / script), *arguments], cwd=self.folder, env=self.environment, timeout=60,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False,
        )  # fmt: skip
        sent = len(self.peps.requests()) - before
        print(f"{abridged(done.stdout)}[exit status {done.returncode}]")
        self.expect(
            done.returncode == status,
            f"{line}: ended with {done.returncode}, not with {status}",
        )
        self.expect(
            requests in (None, sent), f"{line}: sent {sent} requests, not {requests}"
        )
        for text in texts:
            self.expect(text in done.stdout, f"{line}: did not say '{text}'")

    def expect(self, true: bool, problem: str) -> None:
        if not true:
            self.problems.append(problem)

    def expect_products(self, name: str, count: int) -> None:
        whole = sum(
            zipfile.is_zipfile(path)
            for path in self.folder.glob(f"{name}/SENTINEL2*.zip")
        )
        self.expect(whole == count, f"{name}: {whole} whole products, not {count}")
        self.expect(
            not list(self.folder.glob(f"{name}/*.part")),
            f"{name}: partial files are left",
        )

    def later(self, hours: int) -> None:
        print(f"\n... {hours} {'hour' if hours == 1 else 'hours'} later")
        self.peps.advance(hours=hours)


def abridged(text: str) -> str:
    """A command's output, the middle of one that fills the screen left out."""
    lines = text.splitlines(keepends=True)
    if len(lines) > 16:
        lines[5:-5] = [f"    [{len(lines) - 10} lines like these]\n"]
    return "".join(lines)


def time_series(demo: Demo) -> None:
    """A time series: half a year of one tile."""
    clear = sum(
        not seen.cloudy for seen in acquisitions("31TCJ", "2017-07-01", "2018-01-01")
    )
    demo.run(ORDER, 0, "/wps/outputs/", requests=1)
    demo.run(ORDER, 2, "--force", requests=0)
    demo.run(FETCH, 75, "waiting")
    demo.later(hours=20)
    demo.run(FETCH, 75, "running", "%")
    demo.later(hours=20)
    demo.run(f"{FETCH} -w 31TCJ", 0, "finished", f"{clear} products downloaded")
    demo.expect_products("31TCJ", clear)
    demo.run(f"{FETCH} -w 31TCJ", 0, f"{clear} products on disk before", requests=0)


def missing_date(demo: Demo) -> None:
    """Two months of one orbit, of which the tape robot loses a date."""
    seen = acquisitions("31TCJ", "2017-07-01", "2017-09-01", 51)
    lost = next(one for one in seen[5:] if not one.cloudy)
    demo.peps.lost.add(lost.l1c)
    demo.run(ORDER_LISTED, 0, f"{len(seen)} dates")
    demo.later(hours=10)
    demo.run(
        FETCH_LISTED, 0, "1 date lost", f"{lost.day[:4]}-{lost.day[4:6]}-{lost.day[6:]}"
    )
    demo.expect_products("summer", sum(not one.cloudy for one in seen) - 1)


def single_products(demo: Demo) -> None:
    """Single products: a month around a point."""
    clear = sum(
        not seen.cloudy
        for seen in acquisitions("31TCJ", "2017-11-01", "2017-12-01", 51)
    )
    demo.run(ORDER_EACH, 0, "ignored", "/wps/outputs/")
    demo.later(hours=1)
    demo.run(FETCH_EACH, 75, "running")
    demo.later(hours=1)
    demo.run(FETCH_EACH, 0, f"{clear} products downloaded")
    demo.expect_products("PEPS_MAJA", clear)
    demo.run(FETCH_EACH, 0, f"{clear} products on disk before", requests=0)


def main() -> int:
    sys.stdout.reconfigure(errors="backslashreplace")
    with (
        LocalPeps() as peps,
        tempfile.TemporaryDirectory(prefix="peps_demo_") as folder,
    ):
        demo = Demo(peps, Path(folder))
        print(
            f"A local PEPS stands in for the service: PEPS_URL={peps.url}, its account is in peps.txt."
        )
        for part in (time_series, missing_date, single_products):
            print(f"\n--- {part.__doc__}")
            part(demo)
    for problem in demo.problems:
        print(f"NOT AS IT SHOULD BE: {problem}")
    print("\nThe demo failed." if demo.problems else "\nAll was as it should be.")
    return 1 if demo.problems else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
