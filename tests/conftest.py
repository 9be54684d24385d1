"""Fixtures of the stories: one local PEPS for the whole session, and the ways to run a script against it."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

# A shell that starts pytest in the background has SIGINT ignored, nohup SIGHUP, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if os.name == "posix":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Some hundred processes would each compile the scripts anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False  # nor must one compile them whose files may not grow
sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import local_peps  # noqa: E402
from stories import CHECKOUT, FinishedJob, Result, wait_until  # noqa: E402

import peps_common  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--every-step", action="store_true", help="stop an order at each step, not at each few")


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


class Process(subprocess.Popen):
    def wait_asleep(self):
        """Wait until it waits for something, where Linux tells: a signal just before that would not wake it up."""
        status, looks = Path(f"/proc/{self.pid}/status"), []

        def still() -> bool:
            if self.poll() is not None:
                return True
            text = status.read_text()
            looks.append(re.findall(r"ctxt_switches:\s*(\d+)", text) if "(sleeping)" in text else len(looks))
            return looks[-10:] == looks[-1:] * 10

        if status.exists():
            wait_until(still)

    def stop(self, number: int) -> str:
        """Send a signal, which ends it at once; returns its stderr."""
        self.send_signal(number)
        return self.communicate(timeout=10)[1]


@pytest.fixture
def launch(account):
    """Start a script as a process of its own, as a shell or cron does."""
    started = []

    def launch(script: str, *argv: object, **options) -> Process:
        command = [sys.executable, str(CHECKOUT / f"{script}.py"), *map(str, argv)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(Process(command, **{**pipes, **options}))
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def finish(launch):
    """Run a script as a process to its end; fails the test unless it ends with `status`."""

    def finish(script: str, *argv: object, status: int | None = 0, input: str | None = None, **options) -> Result:
        process = launch(script, *argv, **({} if input is None else {"stdin": subprocess.PIPE}), **options)
        out, err = process.communicate(input, timeout=60)
        result = Result(process.returncode, out or "", err or "")
        assert status is None or result.status == status, result
        assert "Traceback" not in result.err, result
        return result

    return finish


@pytest.fixture
def make_job(peps, account):
    """Make finished jobs, with so many products of a size."""
    return lambda identity="31TCJ", count=3, size=100_000: FinishedJob(peps, identity, count, size)


@pytest.fixture
def terminal(launch):
    """Run a script with all its streams on a terminal of a hundred columns; returns what the terminal shows."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))

    def terminal(script: str, *argv: object, answer=b"", status=0, see=lambda shown, process: None) -> str:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 100, 0, 0))
        process = launch(script, *argv, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux says EIO when the last writer has left
            while chunk := os.read(ours, 65536):
                shown += chunk
                see(shown, process)
                if answer and b"yes/no" in shown:
                    os.write(ours, answer)
                    answer = b""
        os.close(ours)
        text = shown.decode().replace("\r\n", "\n")
        assert process.wait(30) == status, text
        return text

    return terminal
