"""Runs that are killed, interrupted, raced against each other or left without a reader: nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import local_peps
import pytest
from local_peps import hold, status

import peps_common

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

JOBS = 4
HELD = 70_000
PIECE = 32 * 1024
# The paced server lets the client's disk fall behind by one read of the client and two of its own pieces.
AHEAD = peps_common.CHUNK_BYTES + 2 * PIECE
AT_ONCE_S = 10  # far below the read timeout of a minute, far above what a loaded machine needs


class Job(NamedTuple):
    """A finished job at the service, its products' folder, and what is to stand there in the end."""

    peps: object
    identity: str
    products: Path
    bodies: dict[str, bytes]

    @property
    def argv(self) -> list[object]:
        return ["-l", "31TCJ.log", "-w", self.products]

    def part(self, name: str) -> Path:
        return self.products / f"{name}.part"

    def size_on_disk(self, name: str) -> int:
        """How much of a product is on disk, under either name."""
        for path in (self.products / name, self.part(name), self.products / name):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size
        return 0

    def sent(self, name: str) -> int:
        return sum(size for path, size in self.peps.sent.items() if path.endswith(name))

    def gets(self, name: str) -> list:
        return self.peps.requests(f"/{name}", "GET")

    def require_whole(self):
        """Every product byte for byte, and no other file in any folder."""
        assert {path.name: path.read_bytes() for path in self.products.iterdir()} == self.bodies
        left = {path.name for path in self.products.parent.iterdir()}
        assert left == {"31TCJ.log", "31TCJ.stat", "31TCJ.json", "peps.txt", self.products.name}


@pytest.fixture
def make_job(peps, finished_job, folder):
    """Make a job with so many products of a size."""

    def make(count: int, size: int) -> Job:
        identity = finished_job()
        names = [f"SENTINEL2A_201707{day + 1:02}-105605-456_L2A_T31TCJ_D_V1-4.zip" for day in range(count)]
        peps.results[identity] = [f"{peps.url}/cgi-bin/mapcache_results/maja/{identity}/{name}" for name in names]
        peps.products = {name: local_peps.make_product(name, size) for name in names}
        (folder / "products").mkdir()
        return Job(peps, identity, folder / "products", dict(peps.products))

    return make


@pytest.fixture(autouse=True)
def interruptible():
    """A shell that starts pytest in the background has SIGINT ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def for_gets(fault):
    return lambda handler: handler.command == "GET" and fault(handler)


def wait_until(predicate: Callable[[], object], timeout_s: float = 30):
    """Wait for what another process does to files, of which there is no event."""
    end = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def one_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


def range_start(request) -> int:
    """The first byte that a request asks for."""
    found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", "bytes=0-"))
    return int(found[1])


# ---- SIGKILL


class Pace:
    """A fault that makes the service wait for the client's disk, so that a kill always lands inside a download.

    It is never more than AHEAD bytes before what stands in the .part; so that much may be lost with a kill, at most.
    """

    def __init__(self, job: Job):
        self.job, self.over = job, threading.Event()

    def __call__(self, handler) -> bool:
        if handler.command == "GET":
            name = handler.record.path.rpartition("/")[2]
            offset, pump = range_start(handler.record), handler.pump
            handler.pump = lambda send, start, end: self.pump(pump, name, offset, send, start, end)
        return False

    def pump(self, pump, name: str, offset: int, send, start: int, end: int):
        while start < end:
            stop = min(end, start + PIECE)
            while offset + stop - self.job.size_on_disk(name) > AHEAD:
                if self.over.wait(0.001):
                    raise ConnectionError("the client was killed")
            pump(send, start, stop)
            start = stop


def kill_after(process: subprocess.Popen, job: Job, size: int):
    """Kill a run when so many bytes of all products are on disk, or let it end if it is through before."""
    wait_until(lambda: process.poll() is not None or sum(map(job.size_on_disk, job.bodies)) >= size)
    process.kill()
    process.wait()


def require_no_broken_product(job: Job):
    for name, body in job.bodies.items():
        path = job.products / name
        assert not path.exists() or path.read_bytes() == body


def require_continued(job: Job, held: dict[str, int], asked: int):
    """The first request for each product in this run asks for what is not yet on disk, and not for less or more."""
    for name, size in held.items():
        requests = [request for request in job.peps.journal[asked:] if request in job.gets(name)]
        assert not requests or range_start(requests[0]) == size


def test_killed_again_and_again(make_job, launch):
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    chance, kills = random.Random(seed), 7  # noqa: S311
    job = make_job(JOBS, 10 * AHEAD)
    total = sum(map(len, job.bodies.values()))
    for _ in range(kills):
        pace = Pace(job)
        job.peps.always = [("/maja/", pace)]
        held = {name: job.size_on_disk(name) for name in job.bodies}
        asked = len(job.peps.journal)
        process = launch("full_maja_download", *job.argv, "-j", JOBS)
        kill_after(process, job, sum(held.values()) + chance.randrange(total // (kills - 1)))
        pace.over.set()
        require_no_broken_product(job)
        require_continued(job, held, asked)
    job.peps.always.clear()
    assert launch("full_maja_download", *job.argv, "-j", JOBS).wait(60) == 0
    job.require_whole()
    assert any(range_start(request) for name in job.bodies for request in job.gets(name)), "no kill hit a download"
    assert sum(map(job.sent, job.bodies)) <= total + kills * JOBS * max(AHEAD, local_peps.CHUNK_BYTES)


def test_a_kill_lets_go_of_the_lock(make_job, launch):
    job = make_job(1, 200_000)
    name = next(iter(job.bodies))
    job.peps.always.append(("/maja/", for_gets(hold(threading.Event(), HELD))))
    process = launch("full_maja_download", *job.argv)
    wait_until(lambda: job.size_on_disk(name) == HELD)
    second = launch("full_maja_download", *job.argv)
    _, err = second.communicate(timeout=30)
    assert second.returncode == 75
    assert "another run" in one_line(err)
    assert name in err
    assert len(job.gets(name)) == 1
    process.kill()
    process.wait()
    job.peps.always.clear()
    assert launch("full_maja_download", *job.argv).wait(30) == 0
    assert range_start(job.gets(name)[-1]) == HELD
    assert job.sent(name) == len(job.bodies[name])
    job.require_whole()


# ---- runs against each other


def test_six_runs_at_once_send_no_byte_twice(make_job, launch, run):
    job = make_job(12, 100_000)
    all_there = threading.Event()
    job.peps.always.append(("/maja/", for_gets(hold(all_there, 1000))))
    processes = [launch("full_maja_download", *job.argv, "-j", 2) for _ in range(6)]
    job.peps.wait_for(lambda: sum(r.path.endswith("report.json") for r in job.peps.journal) >= 6, 60)
    all_there.set()
    ends = [process.communicate(timeout=60) for process in processes]
    assert {process.returncode for process in processes} <= {0, 75}, ends
    assert not any("Traceback" in err for _, err in ends), ends
    run("full_maja_download", *job.argv)
    job.require_whole()
    assert {name: job.sent(name) for name in job.bodies} == {name: len(body) for name, body in job.bodies.items()}


def test_two_runs_share_the_work(make_job, launch):
    """The second run leaves alone what the first is at, and brings the rest."""
    job = make_job(3, 100_000)
    release = threading.Event()
    name = next(iter(job.bodies))
    job.peps.always.append((name, for_gets(hold(release, HELD))))
    first = launch("full_maja_download", *job.argv, "-j", 1)
    wait_until(lambda: job.size_on_disk(name) == HELD)
    second = launch("full_maja_download", *job.argv, "-j", 1)
    _, err = second.communicate(timeout=30)
    assert second.returncode == 75
    assert name in one_line(err)
    assert len(list(job.products.glob("*.zip"))) == 2
    release.set()
    assert first.wait(30) == 0
    job.require_whole()
    assert sum(map(job.sent, job.bodies)) == sum(map(len, job.bodies.values()))


# ---- SIGINT and SIGTERM

SIGNALS = pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)


def interrupt(process: subprocess.Popen, number: int, ends: int) -> tuple[str, str]:
    """Send a signal; the run must end at once, with its status and one line. Returns stdout and that line."""
    process.send_signal(number)
    out, err = process.communicate(timeout=AT_ONCE_S)
    assert process.returncode == ends, err
    line = one_line(err)
    assert ".py: " in line
    return out, line


@SIGNALS
def test_interrupted_in_a_stalled_download(number, ends, make_job, launch, run):
    job = make_job(3, 200_000)
    name = next(iter(job.bodies))
    job.peps.always.append((name, for_gets(hold(threading.Event(), HELD))))
    process = launch("full_maja_download", *job.argv)
    wait_until(lambda: job.size_on_disk(name) == HELD and len(list(job.products.glob("*.zip"))) == 2)
    interrupt(process, number, ends)
    assert job.part(name).read_bytes() == job.bodies[name][:HELD]
    job.peps.always.clear()
    run("full_maja_download", *job.argv)
    assert range_start(job.gets(name)[-1]) == HELD
    assert sum(map(job.sent, job.bodies)) == sum(map(len, job.bodies.values()))
    job.require_whole()


@SIGNALS
@pytest.mark.parametrize(
    ("text", "method"),
    [(".xml", "GET"), ("PROCESSING_STATUS", "GET"), ("report.json", "GET"), ("/maja/", "HEAD"), ("/maja/", "GET")],
    ids=["status document", "refresh", "report", "length", "head of the product"],
)
def test_interrupted_while_the_service_does_not_answer(number, ends, text, method, make_job, launch, run):
    job = make_job(2, 50_000)
    stalled = hold(threading.Event(), None)
    job.peps.always.append((text, lambda handler: handler.command == method and stalled(handler)))
    process = launch("full_maja_download", *job.argv)
    job.peps.wait_for(lambda: any(r.method == method and text in r.target for r in job.peps.journal))
    interrupt(process, number, ends)
    job.peps.always.clear()
    run("full_maja_download", *job.argv)
    job.require_whole()


@SIGNALS
def test_interrupted_between_two_looks(number, ends, run, launch):
    run("full_maja_process", "-t", "31TCJ", "-d", "2017-07-01", "-e", "2018-01-01", "-l", "31TCJ.log")
    process = launch("full_maja_download", "-l", "31TCJ.log", "--wait")
    assert "waiting" in process.stdout.readline()
    interrupt(process, number, ends)


@SIGNALS
def test_interrupted_while_an_order_waits_for_its_answer(number, ends, peps, launch, folder):
    peps.always.append(("identifier=FULL_MAJA", hold(threading.Event(), None)))
    period = ("-d", "2017-07-01", "-e", "2018-01-01")
    process = launch("full_maja_process", "-t", "31TCJ", *period, "-l", "31TCJ.log")
    peps.wait_for(lambda: any("identifier=FULL_MAJA" in request.target for request in peps.journal))
    out, line = interrupt(process, number, ends)
    assert "may have been accepted" in line
    assert peps.url in line
    assert out == ""
    assert [path.name for path in folder.iterdir()] == ["peps.txt"]
    assert len(peps.requests("identifier=FULL_MAJA")) == 1


@SIGNALS
def test_interrupted_between_the_orders_of_a_list(number, ends, peps, launch, folder):
    """What was ordered stands in the list; the one that was asked for last may have been accepted."""
    orders = []

    def hold_the_second(handler):
        orders.append(handler.record)
        return len(orders) == 2 and hold(threading.Event(), None)(handler)

    peps.always.append(("identifier=MAJA", hold_the_second))
    argv = ("-t", "31TCJ", "-d", "2017-07-01", "-f", "2017-08-01", "-p", "list.txt", "--yes")
    process = launch("peps_maja_process", *argv)
    peps.wait_for(lambda: len(peps.requests("identifier=MAJA")) == 2)
    _, line = interrupt(process, number, ends)
    assert "may have been accepted" in line
    (listed,) = (folder / "list.txt").read_text("utf-8").split()
    assert {path.name for path in folder.iterdir()} == {"list.txt", "peps.txt", f"{listed}.log"}


# ---- nobody reads the output


@pytest.fixture
def nobody():
    """The writing end of a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_stdout_without_a_reader(make_job, launch, nobody):
    job = make_job(3, 50_000)
    process = launch("full_maja_download", *job.argv, stdout=nobody)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0
    job.require_whole()


def test_stderr_without_a_reader(make_job, launch, nobody):
    job = make_job(3, 50_000)
    gone = next(iter(job.bodies))
    job.peps.always.append((gone, status(404)))
    process = launch("full_maja_download", *job.argv, stderr=nobody)
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert {path.name for path in job.products.iterdir()} == set(job.bodies) - {gone}


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, make_job, account):
    """The first file that the script opens gets the number of a closed stream; no words may end up in it."""
    job = make_job(3, 50_000)
    script = Path(peps_common.__file__).with_name("full_maja_download.py")
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, script, *job.argv]
    process = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert process.returncode == 0
    assert process.stderr == ""
    job.require_whole()


def test_an_order_without_a_reader_is_kept(peps, launch, nobody):
    argv = ("-t", "31TCJ", "-d", "2017-07-01", "-e", "2018-01-01", "-l", "31TCJ.log")
    process = launch("full_maja_process", *argv, stdout=nobody)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0
    assert next(iter(peps.jobs)) in Path("31TCJ.log").read_text("utf-8")


# ---- memory

MEASURE = """
import resource, subprocess, sys
ended = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(ended.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.fixture
def big_product(tmp_path_factory):
    """A zip of more than 100 MB, removed at the end because pytest keeps its folders for a while."""
    path = tmp_path_factory.mktemp("big") / "big.zip"
    nothing = bytes(2**20)
    with zipfile.ZipFile(path, "w") as archive, archive.open("image.tif", "w") as image:
        for _ in range(105):
            image.write(nothing)
    yield path
    path.unlink()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has other units elsewhere")
def test_memory_stays_flat(make_job, account, big_product):
    """Measured by a small process in between: a child's peak begins with that of the process that starts it."""
    job = make_job(JOBS, 1000)
    job.peps.products = dict.fromkeys(job.bodies, big_product)
    script = Path(peps_common.__file__).with_name("full_maja_download.py")
    command = [sys.executable, "-c", MEASURE, sys.executable, script, *job.argv, "-j", str(JOBS)]
    measured = subprocess.run(command, capture_output=True, text=True, timeout=120)
    ended, peak_kib = map(int, measured.stdout.split())
    sizes = [(job.products / name).stat().st_size for name in job.bodies]
    for name in job.bodies:
        (job.products / name).unlink()
    assert ended == 0, measured.stderr
    assert sizes == [big_product.stat().st_size] * JOBS
    assert peak_kib < 64 * 1024


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file that is always full")
def test_an_output_that_takes_nothing_more_does_not_stop_the_download(make_job, launch):
    job = make_job(3, 50_000)
    with open("/dev/full", "w") as full:
        process = launch("full_maja_download", *job.argv, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "standard output" in err
    assert len(err.splitlines()) == 1
    job.require_whole()
