"""The four scripts as a user runs them, from the order to the products on disk.

A local PEPS stands in for the service: its hours pass in no time, and no request leaves
this machine. Ends with status 1, and says what is wrong, unless all is as it should be.
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
YEAR = "-d 2017-07-01 -e 2018-01-01 -l 31TCJ.log"
SUMMER = "-o 51 -a peps.txt -d 2017-07-01 -e 2017-09-01 -l summer.log --json l1c.json"
ORDER = f"full_maja_process.py -t 31TCJ -a peps.txt {YEAR}"
FETCH = "full_maja_download.py -a peps.txt -l 31TCJ.log -w 31TCJ"
ORDER_LISTED = f"full_maja_process.py -t 31TCJ {SUMMER}"
FETCH_LISTED = "full_maja_download.py -l summer.log -w summer --json l1c.json"
NOVEMBER = "-d 2017-11-01 -f 2017-12-01 -o 51 -p prod_list.txt"
ORDER_EACH = f"peps_maja_process.py 2 --lon 1 --lat 43.5 -a peps.txt {NOVEMBER}"
FETCH_EACH = "peps_maja_download.py -p prod_list.txt -a peps.txt -w PEPS_MAJA"


class Demo:
    """A user's folder and shell, and a note of all that was not as it should be."""

    def __init__(self, peps: LocalPeps, folder: Path):
        self.peps, self.folder, self.problems = peps, folder, []
        kept = {n: v for n, v in os.environ.items() if not n.lower().endswith("_proxy")}
        self.environment = {**kept, "PEPS_URL": peps.url, "PYTHONUTF8": "1"}
        account = folder / "peps.txt"
        account.touch(0o600)
        account.write_text(peps.account + "\n", "utf-8")

    def run(self, line: str, status: int, *texts: str, requests: int | None = None):
        """Show a command; note it if status, words or number of requests are wrong."""
        before = len(self.peps.requests())
        script, *words = shlex.split(line)
        print(f"\n$ python {line}", flush=True)
        done = subprocess.run(
            [sys.executable, str(CHECKOUT / script), *words],
            cwd=self.folder, env=self.environment, encoding="utf-8", timeout=60,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        sent = len(self.peps.requests()) - before
        print(f"{abridged(done.stdout)}[exit status {done.returncode}]")
        self.expect(done.returncode == status, f"{line}: did not end with {status}")
        self.expect(requests in (None, sent), f"{line}: sent {sent} requests")
        for text in texts:
            self.expect(text in done.stdout, f"{line}: did not say '{text}'")

    def expect(self, true: bool, problem: str) -> None:
        if not true:
            self.problems.append(problem)

    def expect_products(self, name: str, count: int) -> None:
        products = list(self.folder.glob(f"{name}/SENTINEL2*"))
        whole = sum(map(zipfile.is_zipfile, products))
        self.expect(whole == len(products) == count, f"{name}: {whole} of {count}")

    def later(self, hours: int) -> None:
        print(f"\n... {hours} h later")
        self.peps.advance(hours=hours)


def abridged(text: str) -> str:
    """A command's output, the middle of one that fills the screen left out."""
    lines = text.splitlines(keepends=True)
    if len(lines) > 16:
        lines[5:-5] = [f"    [{len(lines) - 10} lines like these]\n"]
    return "".join(lines)


def clear(start: str, end: str, orbit: int | None = None) -> list:
    """The acquisitions that bring a product."""
    return [one for one in acquisitions("31TCJ", start, end, orbit) if not one.cloudy]


def time_series(demo: Demo) -> None:
    """A time series: half a year of one tile."""
    count = len(clear("2017-07-01", "2018-01-01"))
    demo.run(ORDER, 0, "/wps/outputs/", requests=1)
    demo.run(ORDER, 2, "--force", requests=0)
    demo.run(FETCH, 75, "waiting")
    demo.later(hours=20)
    demo.run(FETCH, 75, "running", "%")
    demo.later(hours=20)
    demo.run(FETCH, 0, "finished", f"{count} products downloaded")
    demo.expect_products("31TCJ", count)
    demo.run(FETCH, 0, f"{count} products on disk before", requests=0)


def missing_date(demo: Demo) -> None:
    """Two months of one orbit, of which the service loses a date."""
    seen = clear("2017-07-01", "2017-09-01", 51)
    lost = seen[5]
    demo.peps.lost.add(lost.l1c)
    demo.run(ORDER_LISTED, 0, "12 dates")
    demo.later(hours=10)
    day = f"{lost.day[:4]}-{lost.day[4:6]}-{lost.day[6:]}"
    demo.run(FETCH_LISTED, 0, "1 date lost", day)
    demo.expect_products("summer", len(seen) - 1)


def single_products(demo: Demo) -> None:
    """Single products: a month around a point."""
    count = len(clear("2017-11-01", "2017-12-01", 51))
    demo.run(ORDER_EACH, 0, "ignored", "/wps/outputs/")
    demo.later(hours=1)
    demo.run(FETCH_EACH, 75, "running")
    demo.later(hours=1)
    demo.run(FETCH_EACH, 0, f"{count} products downloaded")
    demo.expect_products("PEPS_MAJA", count)
    demo.run(FETCH_EACH, 0, f"{count} products on disk before")


def main() -> int:
    sys.stdout.reconfigure(errors="backslashreplace")
    with LocalPeps() as peps, tempfile.TemporaryDirectory(prefix="demo_") as folder:
        demo = Demo(peps, Path(folder))
        print(f"A local PEPS stands in for the service: PEPS_URL={peps.url}")
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
