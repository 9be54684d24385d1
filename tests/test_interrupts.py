"""Runs that are killed, interrupted or left without a reader, again and again: nothing is lost or doubled."""

from __future__ import annotations

import gzip
import itertools
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import pytest
from faulty_http import cut, for_gets, no_range, reset, stall, status
from stories import (
    CHECKOUT,
    FinishedJob,
    answer,
    json_document,
    limited,
    only_line,
    report_of,
    wait_until,
    xml,
)

import peps_common

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

HELD = 70_000
SIGNALS = pytest.mark.parametrize(
    ("number", "ends"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["INT", "TERM"],
)


def range_start(request) -> int:
    """The first byte that a request asks for."""
    return int(
        re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", "bytes=0-"))[1]
    )


def dice() -> random.Random:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    return random.Random(seed)  # noqa: S311


def test_killed_again_and_again(make_job, launch):
    """Each run continues from the byte that the last one left, and no product is ever half under its name."""
    chance, kills, size = dice(), 5, 2_000_000
    job, share = make_job(count=4, size=size), size // (kills + 1)
    for _ in range(kills):
        # A run gets no further than that, so that its kill always lands inside the downloads.
        job.mend()
        job.hit(for_gets(stall(share), for_ever=True), "/maja/")
        held, asked = (
            {name: job.size_on_disk(name) for name in job.bodies},
            len(job.peps.journal),
        )
        process = launch("full_maja_download", *job.argv)
        enough = sum(held.values()) + chance.randrange(len(held) * share)
        wait_until(lambda: sum(map(job.size_on_disk, job.bodies)) >= enough)  # noqa: B023
        process.kill()
        process.wait()
        for name in job.bodies:
            assert not (job.products / name).exists()
            first = next(
                (
                    request
                    for request in job.peps.journal[asked:]
                    if request in job.gets(name)
                ),
                None,
            )
            assert first is None or range_start(first) == held[name]
    job.mend()
    assert launch("full_maja_download", *job.argv).wait(60) == 0
    job.require_whole()
    assert any(
        range_start(request) for name in job.bodies for request in job.gets(name)
    ), "no kill hit a download"
    assert (
        sum(map(job.sent, job.bodies))
        <= sum(map(len, job.bodies.values())) + kills * len(job.bodies) * share
    )


def interrupt(process: subprocess.Popen, number: int, ends: int, times: int = 1) -> str:
    """Send a signal; the run must end at once, with its status and one line; returns its stdout."""
    for _ in range(times):
        process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == ends, err
    only_line(err)
    return out


@SIGNALS
@pytest.mark.parametrize("times", [2, 5])
def test_interrupted_in_a_stalled_download(number, ends, times, make_job, launch, run):
    """It does not hold up the others; the last line tells what came."""
    job = make_job()
    name = next(iter(job.bodies))
    job.hit(for_gets(stall(HELD), for_ever=True))
    process = launch("full_maja_download", *job.argv, "-j", 2)
    wait_until(
        lambda: (
            job.size_on_disk(name) == HELD
            and len(list(job.products.glob("*.zip"))) == 2
        )
    )
    for _ in range(3):  # how the job stands, and the two products
        process.stdout.readline()
    last = interrupt(process, number, ends, times).splitlines()[-1]
    assert re.match(
        r"1 job finished\. 2 products downloaded .*, 1 left for the next run, in ", last
    ), last
    assert job.part(name).read_bytes() == job.bodies[name][:HELD]
    job.mend()
    run("full_maja_download", *job.argv)
    assert sum(map(job.sent, job.bodies)) == sum(map(len, job.bodies.values()))
    job.require_whole()


@pytest.mark.parametrize(("text", "method", "number", "ends"), [
    (".xml", "GET", signal.SIGINT, 130), ("PROCESSING_STATUS", "GET", signal.SIGTERM, 143),
    ("r.json", "GET", signal.SIGTERM, 143), ("/maja/", "HEAD", signal.SIGINT, 130),
    ("/maja/", "GET", signal.SIGINT, 130),
])  # fmt: skip
def test_interrupted_while_the_service_does_not_answer(
    number, ends, text, method, make_job, launch, run
):
    job, stalled = make_job(), stall(None)
    job.hit(lambda handler: handler.command == method and stalled(handler), text)
    process = launch("full_maja_download", *job.argv)
    job.peps.wait_for(
        lambda: any(r.method == method and text in r.target for r in job.peps.journal)
    )
    interrupt(process, number, ends)
    job.mend()
    run("full_maja_download", *job.argv)
    job.require_whole()


@SIGNALS
def test_interrupted_between_two_looks(number, ends, make_job, launch):
    job = make_job()
    job.hit(xml(answer(f"{job.base}.xml")), "/31TCJ.xml")
    process = launch("full_maja_download", *job.argv, "--wait")
    assert "waiting" in process.stdout.readline()
    process.wait_asleep()
    interrupt(process, number, ends, 2)


@pytest.mark.parametrize(("script", "line"), [
    ("full_maja_process", "-n -t 31TCJ -d 2017-07-01 -e 2017-09-01"), ("peps_maja_download", "-p list.txt"),
])  # fmt: skip
def test_interrupted_at_any_time(script, line, account, peps):
    """From the line by which a script guards itself to the interpreter's very end there is no traceback."""
    script_path = CHECKOUT / f"{script}.py"
    guard = script_path.read_text("utf-8").partition("SIG_DFL)")[0].count("\n") + 1
    peps.always.append(("", stall(None)))
    chance = dice()
    Path("list.txt").write_text("a\n")
    starts = (
        "import os, runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, os.path.dirname(sys.argv[0])); "
        "os.write(1, b'own code next'); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    for _ in range(8):
        command = [sys.executable, "-c", starts, str(script_path), *line.split()]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process.stdout.read(len("own code next"))
        time.sleep(
            chance.random() * 0.2
        )  # any time is a good one, so that no machine is too slow for this
        for _ in range(2):
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        own = re.findall(rf'File "{CHECKOUT}/\w+\.py", line (\d+)', err)
        assert all(int(number) <= guard for number in own), err
        assert process.returncode in (0, 2, 130, -signal.SIGINT, 1), (
            process.returncode,
            err,
        )


def test_streams_without_a_reader(make_job, finish):
    """`| head -1` costs the lines and no product; an order without a reader is kept."""
    reader, nobody = os.pipe()
    os.close(reader)
    buffered = {
        name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"
    }
    assert finish("full_maja_process", "-h", stdout=nobody, env=buffered).err == ""
    assert (
        finish("full_maja_process", "--version", stdout=nobody, env=buffered).err == ""
    )
    job = make_job()
    assert finish("full_maja_download", *job.argv, stdout=nobody).err == ""
    job.require_whole()
    gone = next(iter(job.bodies))
    (job.products / gone).unlink()
    job.hit(status(404), gone)
    finish("full_maja_download", *job.argv, stderr=nobody, status=1)
    finish(
        "full_maja_process",
        "-t",
        "31TCJ",
        "-d",
        "2017-07-01",
        "-e",
        "2017-09-01",
        "-l",
        "J.log",
        stdout=nobody,
    )
    os.close(nobody)
    assert next(iter(job.peps.jobs)) in Path("J.log").read_text("utf-8")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, make_job):
    """The first file that the script opens gets the number of a closed stream; no words may end up in it."""
    job = make_job()
    script = str(CHECKOUT / "full_maja_download.py")
    command = [
        "sh",
        "-c",
        f'exec "$@" {closed}',
        "sh",
        sys.executable,
        script,
        *map(str, job.argv),
    ]
    process = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (process.returncode, process.stderr) == (0, "")
    job.require_whole()


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="no file that is always full"
)
def test_an_output_that_takes_nothing_more_does_not_stop_the_download(make_job, finish):
    job = make_job()
    with open("/dev/full", "w") as full:
        only_line(
            finish("full_maja_download", *job.argv, stdout=full), "standard output"
        )
    job.require_whole()


class Story:
    """A job, a service that may do anything, and runs that may end in any way."""

    def __init__(self, job: FinishedJob, launch, chance: random.Random):
        self.job, self.launch, self.chance, self.repeated = job, launch, chance, 0

    def happen(self):
        """One run with one mishap; `repeated` counts the bytes that may have been sent in vain."""
        mishap = self.chance.choice([
            self.cuts, self.cuts, self.ignored_range, self.outage, self.outage, self.kill, self.kill, self.second_run,
            self.spoilt, self.spoilt, self.restarted, self.full_disk,
        ])  # fmt: skip
        self.job.mend()
        mishap()

    def some(self) -> str:
        return self.chance.choice(list(self.job.bodies))

    def run(self, *options: object, **more):
        process = self.launch("full_maja_download", *self.job.argv, *options, **more)
        _, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        assert process.returncode in (0, 1, 75), (process.returncode, err)

    def cuts(self):
        at = [self.chance.randrange(1, 20_000) for _ in range(3)]
        self.job.hit(
            for_gets(*(self.chance.choice((cut, reset))(after) for after in at)),
            self.some(),
        )
        self.repeated += 3 * 20_000  # what a reset takes with it
        self.run()

    def ignored_range(self):
        name = self.some()
        self.repeated += self.job.size_on_disk(name)
        self.job.hit(for_gets(no_range), name)
        self.run()

    def outage(self):
        self.job.hit(
            status(self.chance.choice((404, 500, 503, 429)), {"Retry-After": "999"}),
            self.some(),
        )
        self.run()

    def kill(self):
        self.job.hit(
            for_gets(stall(self.chance.randrange(20_000)), for_ever=True), self.some()
        )
        process = self.launch("full_maja_download", *self.job.argv)
        seen = len(self.job.peps.journal)
        wait_until(
            lambda: (
                process.poll() is not None
                or len(self.job.peps.journal) > seen + self.chance.randrange(8)
            )
        )
        process.stop(
            self.chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        )
        self.repeated += 8 * 20_000  # what is on its way, too

    def second_run(self):
        first = self.launch("full_maja_download", *self.job.argv)
        self.run()
        first.communicate(timeout=60)

    def spoilt(self):
        """A product is taken away, or loses its end."""
        path = self.job.products / self.some()
        if path.exists():
            self.repeated += path.stat().st_size
            path.write_bytes(
                path.read_bytes()[:-10]
            ) if self.chance.random() < 0.5 else path.unlink()
        self.run()

    def restarted(self):
        """The service comes back with another state of the job."""
        state = self.chance.choice(("PENDING", "STALLED", "ERROR", "EATEN"))
        self.job.hit(json_document(report_of([], job_status=state)), "/r.json")
        Path("31TCJ.json").unlink(missing_ok=True)
        self.run()

    def full_disk(self):
        self.repeated += 3 * 20_000  # what came and could not be written
        self.run(preexec_fn=limited(self.chance.randrange(5000, 20_000)))


def test_random_story(make_job, launch, request, peps):
    """Some mishaps in a row, then a healthy run: all is there, nothing else is, and no byte came twice without need."""
    for _ in range(500 if request.config.getoption("--every-step") else 4):
        for path in Path().iterdir():
            if path.name != "peps.txt":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        peps.sent.clear()
        job = make_job(count=3, size=20_000)
        story = Story(job, launch, dice())
        for _ in range(story.chance.randrange(2, 6)):
            story.happen()
        job.mend()
        assert launch("full_maja_download", *job.argv).wait(60) == 0
        job.require_whole()
        assert (
            sum(map(job.sent, job.bodies))
            <= sum(map(len, job.bodies.values())) + story.repeated
        )
        job.peps.always.clear()


# A child's peak memory begins with that of the process that starts it.
MEASURE = """
import resource, subprocess, sys
ended = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(ended.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_mib(*argv: object) -> tuple[int, float]:
    """Run full_maja_download; returns its status and its peak memory, measured by a small process in between."""
    if not sys.platform.startswith("linux"):
        pytest.skip("ru_maxrss has other units elsewhere")
    script = str(CHECKOUT / "full_maja_download.py")
    command = [sys.executable, "-c", MEASURE, sys.executable, script, *map(str, argv)]
    measured = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True
    )
    ended, kib = map(int, measured.stdout.split())
    return ended, kib / 1024


def test_memory_does_not_grow_with_a_product(make_job, tmp_path_factory):
    job, path = make_job(count=4, size=1000), tmp_path_factory.mktemp("big") / "big.zip"
    with zipfile.ZipFile(path, "w") as archive, archive.open("image.tif", "w") as image:
        for _ in range(105):
            image.write(bytes(2**20))
    job.peps.products.update(dict.fromkeys(job.bodies, path))
    ended, peak = peak_mib(*job.argv)
    sizes = {(job.products / name).stat().st_size for name in job.bodies}
    shutil.rmtree(job.products)
    assert (ended, sizes) == (0, {path.stat().st_size})
    path.unlink()  # pytest keeps its folders for a while
    assert peak < 64


@pytest.mark.parametrize(
    "packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_STORED], ids=["swells", "many members"]
)
def test_memory_of_a_hostile_product(make_job, packing):
    """Much of nothing in few bytes, a directory larger than its product: neither takes the memory."""
    job = make_job(count=1)
    (path,) = (job.products / name for name in job.bodies)
    with zipfile.ZipFile(path, "w", packing) as archive:
        if packing == zipfile.ZIP_BZIP2:
            with archive.open("image.tif", "w") as image:
                for _ in range(128):
                    image.write(bytes(2**20))
        else:
            archive.writestr("x" * 30, b"")
            archive.filelist *= 130_000
    job.peps.products[path.name] = path.read_bytes()
    ended, peak = peak_mib(*job.argv, "--check")
    assert ended == (packing != zipfile.ZIP_BZIP2)
    assert peak < 100


def test_a_record_that_drips_is_read_to_its_end():
    """Of a TLS record that has only begun to come the system says that it can be read, and it gives nothing."""
    patience, (ours, theirs), looks = (
        peps_common.Patience(),
        socket.socketpair(),
        iter(range(2000)),
    )

    def recv_into(buffer):
        if next(looks, None) is not None:
            raise ssl.SSLWantReadError
        return ours.recv_into(buffer)

    with ours, theirs:
        theirs.send(b"x")
        patience.ordering = True
        sock = types.SimpleNamespace(
            recv_into=recv_into, settimeout=ours.settimeout, fileno=ours.fileno
        )
        assert patience.receive(sock, bytearray(1)) == 1


def test_a_redirect_is_not_read(make_job, monkeypatch):
    """Neither its body, which may swell, nor ~/.netrc, which would hang here."""
    os.mkfifo("netrc")
    monkeypatch.setenv("NETRC", "netrc")
    job = make_job()
    there, swelling = (
        {"Location": f"/{job.identity}/r.json", "Content-Encoding": "gzip"},
        gzip.compress(bytes(2**28), 1),
    )
    job.hit(
        lambda handler: (
            "?" not in handler.record.target and status(302, there, swelling)(handler)
        ),
        ".xml",
    )
    ended, peak = peak_mib(*job.argv)
    assert ended == 75
    assert peak < 64


MANY = {
    "a million elements": (".xml", b"<a>" + b"<a/>" * 1_000_000 + b"</a>"),
    "elements, as many as are read": (".xml", b"<a>" + b"<a/>" * 400_000 + b"</a>"),
    "attributes": (
        ".xml",
        b"<a " + b" ".join(b'a%d=""' % n for n in range(190_000)) + b"/>",
    ),
    "lists": ("/r.json", b"[" + b"[]," * 200_000 + b"[]]"),
    "objects": ("/r.json", b'[{"a":1}' + b',{"a":1}' * 200_000 + b"]"),
    "one long text": (".xml", b"<a>" + b"x" * 2_050_000 + b"</a>"),
}


@pytest.mark.parametrize("name", MANY)
def test_memory_of_sixteen_documents(make_job, name, capsys, request):
    """Every other one comes with an error."""
    if "as are read" in name and not request.config.getoption("--every-step"):
        pytest.skip("takes seven seconds; --every-step")
    (place, document), codes = MANY[name], itertools.cycle((200, 400))
    jobs = [make_job(f"job{number}") for number in range(16)]
    jobs[0].hit(lambda handler: status(next(codes), body=document)(handler), place)
    ended, peak = peak_mib("-l", *(job.log for job in jobs), "-w", "products")
    assert ended in (1, 75)
    assert not list(Path("products").iterdir())
    assert peak < 256, peak
    with capsys.disabled():
        print(
            f"\n16 documents of {name}, {len(document) / 1e6:.1f} MB each: {peak:.0f} MiB",
            end=" ",
        )
