"""Fixtures of the stories: one local PEPS for all, and the ways to run a script."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

# A shell that starts pytest in the background has SIGINT ignored, and children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Some hundred processes would each compile the scripts anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import local_peps  # noqa: E402
from stories import CHECKOUT, FinishedJob, Result  # noqa: E402

import peps_common  # noqa: E402


@pytest.fixture(scope="session")
def one_peps():
    with local_peps.LocalPeps() as peps:
        yield peps


@pytest.fixture
def peps(one_peps, monkeypatch):
    """The local PEPS as if just started, the default server of this environment."""
    one_peps.reset()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PEPS_URL", one_peps.url)
    monkeypatch.setattr(peps_common, "BACKOFF_S", 0)  # five tries take 7 s otherwise
    yield one_peps
    one_peps.reset()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory."""
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
def run(capsys, account, monkeypatch):
    """Run a script's main in this process; it must end with `status`."""

    def run(script: str, *argv: object, status: int | None = 0) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [f"{script}.py"])
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
        command = [sys.executable, CHECKOUT / f"{script}.py", *map(str, argv)]
        streams = {"stdin": subprocess.DEVNULL, "text": True}
        streams |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, **{**streams, **options}))
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def finish(launch):
    """Run a script as a process to its end; it must end with `status`."""

    def finish(script, *argv, status: int | None = 0, input=None, **options) -> Result:
        if input is not None:
            options["stdin"] = subprocess.PIPE
        process = launch(script, *argv, **options)
        out, err = process.communicate(input)
        result = Result(process.returncode, out or "", err or "")
        assert status is None or result.status == status, result
        assert "Traceback" not in result.err, result
        return result

    return finish


@pytest.fixture
def make_job(peps, account):
    """Make finished jobs, with so many products of a size."""
    return lambda name="31TCJ", count=3, size=100_000: FinishedJob(
        peps, name, count, size
    )


@pytest.fixture
def terminal(launch):
    """Run a script on a terminal of 80 columns; returns what the terminal shows.

    `answer` is typed when it asks yes/no; `see(shown, process)` may act on what is
    shown so far.
    """
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))

    def terminal(script, *argv, answer=b"", status=0, see=lambda shown, process: None):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 80, 0, 0))
        process = launch(script, *argv, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux says EIO when the last has left
            while chunk := os.read(ours, 65536):
                shown += chunk
                see(shown, process)
                if answer and b"yes/no" in shown:
                    os.write(ours, answer)
                    answer = b""
        os.close(ours)
        text = shown.decode().replace("\r\n", "\n")
        assert process.wait() == status, text
        return text

    return terminal
