"""Fixtures of the stories: one local PEPS for the whole session, and two ways to run a script against it."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).resolve().parent
CHECKOUT = TESTS.parent
sys.path[:0] = [str(CHECKOUT), str(TESTS)]

import local_peps  # noqa: E402

import peps_common  # noqa: E402

PERIOD = ("-d", "2017-07-01", "-e", "2018-01-01")


class Result(NamedTuple):
    """What a finished script left on its streams."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def one_peps():
    with local_peps.LocalPeps() as peps:
        yield peps


@pytest.fixture
def peps(one_peps, monkeypatch):
    """The local PEPS as if just started, and an environment in which it is the default server."""
    one_peps.reset()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PEPS_URL", one_peps.url)
    monkeypatch.setattr(peps_common, "BACKOFF_S", 0)
    yield one_peps
    one_peps.reset()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory with nothing but an account file."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def account(folder, peps):
    """The account file, under its default name in the current directory."""
    path = folder / "peps.txt"
    path.write_text(peps.account + "\n", "utf-8")
    path.chmod(0o600)
    return path


@pytest.fixture
def run(capsys, account):
    """Run a script's main in this process; fails the test unless it ends with `status`."""

    def run(script: str, *argv: object, status: int | None = 0) -> Result:
        capsys.readouterr()
        found = importlib.import_module(script).main([str(arg) for arg in argv])
        result = Result(found, *capsys.readouterr())
        assert status is None or found == status, result
        assert "Traceback" not in result.err, result
        return result

    return run


@pytest.fixture
def launch(account):
    """Start a script as a process of its own, as a shell or cron does."""
    started = []

    def launch(script: str, *argv: object, **options) -> subprocess.Popen:
        command = [sys.executable, str(CHECKOUT / f"{script}.py"), *map(str, argv)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, **{**pipes, **options}))
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def finished_job(run, peps):
    """Order 31TCJ and let the service finish it; returns the job id."""

    def order(log: str = "31TCJ.log", tile: str = "31TCJ") -> str:
        run("full_maja_process", "-t", tile, *PERIOD, "-l", log)
        peps.advance(hours=100)
        return list(peps.jobs)[-1]

    return order


@pytest.fixture
def terminal(launch):
    """Run a script with all its streams on a terminal of a hundred columns; returns what the terminal shows."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))

    def terminal(script: str, *argv: object, answer: bytes = b"", status: int = 0) -> str:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 100, 0, 0))
        process = launch(script, *argv, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux says EIO when the last writer has left
            while chunk := os.read(ours, 65536):
                shown += chunk
                if answer and b"yes/no" in shown:
                    os.write(ours, answer)
                    answer = b""
        os.close(ours)
        text = shown.decode().replace("\r\n", "\n")
        assert process.wait(30) == status, text
        return text

    return terminal


@pytest.fixture
def meeting():
    """Make a fault that holds the first requests until so many are there; its barrier breaks if they never are."""

    def meeting(count: int):
        barrier, numbers = threading.Barrier(count), itertools.count(1)

        def gather(handler) -> bool:
            if next(numbers) <= count:
                with contextlib.suppress(threading.BrokenBarrierError):
                    barrier.wait(10)
            return False

        gather.barrier = barrier
        return gather

    return meeting
