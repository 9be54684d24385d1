"""Runs that are killed, interrupted or left without a reader: nothing is lost."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys

import pytest
from faulty_http import cut, for_gets, no_range, reset, stall, status
from stories import CHECKOUT, limited, only_line, wait_until

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
MORE_THAN_A_CHUNK = 300_000  # so that some of it is on disk


@pytest.fixture
def chance() -> random.Random:
    seed = random.randrange(2**32)  # noqa: S311
    print(f"seed {seed}")
    return random.Random(seed)  # noqa: S311


def wait_for_more(job, size: int):
    """Wait until so many bytes have come."""

    def held() -> int:
        return sum(map(job.size_on_disk, job.bodies))

    enough = held() + size
    wait_until(lambda: held() >= enough)


def test_killed_again_and_again_it_goes_on_where_it_was(make_job, launch, run, chance):
    job = make_job(count=2, size=3_000_000)
    job.hit(for_gets(stall(2 * MORE_THAN_A_CHUNK), for_ever=True), "/maja/")
    for _ in range(4):
        job.peps.journal.clear()
        held = {name: job.size_on_disk(name) for name in job.bodies}
        process = launch("full_maja_download", *job.argv)
        wait_for_more(job, chance.randrange(10**6))
        process.kill()
        process.wait()
        for name in job.bodies:
            assert not (job.products / name).exists()
            asked = {one.headers.get("range", "bytes=0-") for one in job.gets(name)}
            assert asked <= {f"bytes={held[name]}-"}
    job.mend()
    run("full_maja_download", *job.argv)
    job.require_whole()


@pytest.mark.parametrize(("number", "ends"), SIGNALS)
def test_interrupted_in_a_stalled_download(number, ends, make_job, launch, run):
    job = make_job(size=600_000)
    job.hit(for_gets(stall(MORE_THAN_A_CHUNK), for_ever=True))
    process = launch("full_maja_download", *job.argv, stderr=subprocess.STDOUT)
    for _ in range(3):  # how the job stands, and two products
        process.stdout.readline()
    wait_until(lambda: job.size_on_disk(job.first))
    process.send_signal(number)
    said, end = process.stdout.read().splitlines()
    assert process.wait() == ends
    only_line(said, "interrupted")
    assert re.match("1 job finished, 1 product left .* 2 products downloaded", end)
    job.mend()
    run("full_maja_download", *job.argv)
    job.require_whole()


def test_further_signals_change_nothing(make_job, launch):
    job = make_job()
    job.hit(for_gets(stall(0), for_ever=True))
    for number, ends in SIGNALS:
        job.peps.journal.clear()
        process = launch("full_maja_download", *job.argv)
        job.peps.wait_for(lambda: job.gets(job.first))
        for _ in range(3):
            process.send_signal(number)
        assert process.wait() == ends
        only_line(process.stderr.read(), "interrupted")


@pytest.mark.parametrize(("text", "method"), [
    ("31TCJ.xml", "GET"), ("PROCESSING_STATUS", "GET"), ("r.json", "GET"),
    ("/maja/", "HEAD"), ("/maja/", "GET"),
])  # fmt: skip
def test_interrupted_while_the_service_does_not_answer(
    text, method, make_job, launch, run
):
    job, stalled = make_job(), stall(None)
    job.hit(lambda handler: handler.command == method and stalled(handler), text)
    process = launch("full_maja_download", *job.argv)
    job.peps.wait_for(lambda: job.peps.requests(text, method))
    process.send_signal(signal.SIGINT)
    only_line(process.communicate()[1], "interrupted")
    assert process.returncode == 130
    job.mend()
    run("full_maja_download", *job.argv)
    job.require_whole()


@pytest.mark.parametrize(
    "streams", ["| head -1", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full"]
)
def test_no_stream_is_needed(streams, make_job, monkeypatch):
    """No words may end up in the first file that is opened, either."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    job = make_job()
    script = CHECKOUT / "full_maja_download.py"
    command = ["sh", "-c", f'"$@" {streams}', "sh", sys.executable, script, *job.argv]
    ended = subprocess.run(command, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")
    job.require_whole()


@pytest.mark.parametrize("round_", range(3))
def test_after_any_story_all_is_there(round_, make_job, launch, run, chance):
    """Faults, a full disk, a second run and signals, at random."""
    job = make_job(size=500_000)
    signals = (0, 0, 0, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    for _ in range(3):
        for name in chance.sample([*job.bodies], 2):
            (job.products / name).write_bytes(job.bodies[name][:-10])
        after, number = chance.randrange(500_000), chance.choice(signals)
        outage = status(chance.choice((404, 429)), {"Retry-After": 999})
        fault = chance.choice((cut(after), reset(after), no_range, outage))
        if number:
            fault = stall(after)
        job.hit(for_gets(fault, fault), "/maja/")
        room = limited(after) if chance.random() < 0.3 else None
        job.peps.journal.clear()
        runs = [launch("full_maja_download", *job.argv, preexec_fn=room)]
        job.peps.wait_for(lambda: len(job.gets("maja/")) >= 2)
        if chance.random() < 0.5:
            runs.append(launch("full_maja_download", *job.argv))
        runs[0].send_signal(number)
        for process in runs:
            assert "Traceback" not in process.communicate()[1]
            assert process.returncode in (0, 1, 75, 130, 143, -signal.SIGKILL)
        job.mend()
    run("full_maja_download", *job.argv)
    job.require_whole()
