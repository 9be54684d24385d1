"""Stops a script at one of its steps: `python order_steps.py`, with a line of JSON for each run on standard input.

{"argv": [script, ...], "stop": "exit" | "SIGINT" | "SIGTERM" | "OSError" | "", "step": N, "folder": where to run}

A step is a line that the process executes in this project's own code, from the first look at the log on; for "OSError"
it is a call of the system that handles a file. The answer is a line of JSON: the exit status, whether the step was
reached, and standard error. Each run is a fork of this one process, which has loaded all that it needs.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import sys
import traceback
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

# Loaded once, for all the runs.
import xml.etree.ElementTree  # noqa: E402, F401

import requests  # noqa: E402, F401

import full_maja_process  # noqa: E402
import peps_common  # noqa: E402

OWN = {peps_common.__file__, full_maja_process.__file__}
REACHED = 77
peps_common.BACKOFF_S = 0


def stop_at(step: int, stop: str, reached: Path):
    """Count the steps of this process from the first look at the log, and stop it at one of them."""
    count = [0, False]

    def trace(frame, event, arg):
        if frame.f_code.co_filename not in OWN:
            return None
        if frame.f_code.co_name in ("look_at", "order"):
            count[1] = True
        if count[1] and event == "line":
            count[0] += 1
            if count[0] == step:
                reached.touch()
                sys.settrace(None)
                if stop == "exit":
                    os._exit(REACHED)
                os.kill(os.getpid(), getattr(signal, stop))
        return trace

    sys.settrace(trace)


def fail_at(step: int, reached: Path):
    """Let the N-th call of the system that handles a file fail."""
    numbers = itertools.count(1)

    def failing(real):
        def call(*args, **options):
            if next(numbers) == step:
                reached.touch()
                raise OSError(5, "Input/output error")
            return real(*args, **options)

        return call

    class File(io.FileIO):
        write, truncate, read = (failing(getattr(io.FileIO, name)) for name in ("write", "truncate", "read"))

    @failing
    def own_open(path, mode="r", **options):
        opener = options.get("opener")
        return File(path, "r+", opener=opener) if opener else open(path, mode, **options)

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, failing(getattr(os, name)))
    peps_common.open = own_open


def run(argv: list[str], stop: str, step: int, folder: str) -> None:
    """One run, in a process of its own that does not come back."""
    os.chdir(folder)
    os.dup2(os.open("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["full_maja_process.py", *argv]
    reached = Path("reached").absolute()
    if stop == "OSError":
        fail_at(step, reached)
    elif stop:
        stop_at(step, stop, reached)
    os._exit(full_maja_process.main())


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            try:
                run(**asked)
            except BaseException:
                traceback.print_exc()
            os._exit(99)
        _, status = os.waitpid(child, 0)
        reached, words = (Path(asked["folder"], name) for name in ("reached", "stderr.txt"))
        ended = {"status": os.waitstatus_to_exitcode(status), "reached": reached.exists()}
        print(json.dumps({**ended, "stderr": words.read_text("utf-8", "replace")}), flush=True)
        reached.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
