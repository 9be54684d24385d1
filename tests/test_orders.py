"""Orders of a time series: what is sent, what the log keeps, that none is placed twice.

A log that is in doubt begins with a note, and is never sent again unasked.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from faulty_http import cut, endless, hold, reset, status
from local_peps import OUTPUTS, SEARCH, WPS, acquisitions, feature
from stories import (
    NOBODY,
    SHORT,
    answer,
    failed,
    json_error,
    last,
    limited,
    names_in,
    only_line,
    refusal,
    wait_until,
    xml,
)

import peps_common

EXECUTE = "identifier=FULL_MAJA"
ORDER = ("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "J.log")
LOG = Path("J.log")
PLACE = "http://127.0.0.1:9/wps/outputs/first.xml"
JOB = answer(PLACE)
NOTE = b"PEPS order"


def order(run, *more, status=0):
    return run(*ORDER, *more, status=status)


def hit(peps, fault):
    """Let a fault hit each order."""
    peps.always.append((EXECUTE, fault))


def only_job(peps):
    """The id of the one job that was ever placed."""
    (job,) = peps.jobs
    return job


def run_as_printed(line):
    """Run the command that a line ends with."""
    subprocess.run(shlex.split(line[line.index(sys.executable) :]), check=True)


def require_doubt(run, peps):
    """What is in doubt is not sent again, and both scripts say so of its log."""
    kept, sent = LOG.read_bytes(), len(peps.journal)
    assert kept.startswith(NOTE)
    ended = order(run, status=1)
    line = only_line(ended, "J.log", "in doubt", peps.url, "--force", "status URL")
    assert re.search(r"20\d\d-\d\d-\d\dT\d\d:\d\d", line)
    only_line(run("full_maja_download", "-l", LOG, status=1), "J.log", "in doubt")
    assert (LOG.read_bytes(), len(peps.journal)) == (kept, sent)
    return line


@pytest.mark.parametrize(
    ("more", "orbit"), [("", ""), ("-o 51 ", ";relativeOrbitNumber=51")]
)
def test_documented_line_works_as_written(finish, peps, more, orbit):
    log = Path("31TCJ_20170101.log")
    line = f"-t 31TCJ {more}-a peps.txt -d 2017-07-01 -e 2018-01-01 -l {log}"
    ended = finish("full_maja_process", *line.split())
    (sent,) = peps.journal
    assert sent.target == (
        f"{WPS}?request=execute&service=WPS&version=1.0.0&identifier=FULL_MAJA&datainputs="
        f"startDate=2017-07-01;completionDate=2018-01-01;tileid=31TCJ{orbit}"
        "&status=true&storeExecuteResponse=true"
    )
    assert sent.headers["authorization"] == peps.authorization
    place = f"{peps.url}{OUTPUTS}{only_job(peps)}.xml"
    first = f"{log}: ordered as job {only_job(peps)}, status {place}"
    assert (ended.out.splitlines()[0], ended.err) == (first, "")
    assert place in log.read_text()


def test_log_has_a_default_name(run, peps):
    run(*ORDER[:-2])
    assert "Full_Maja.log" in run("full_maja_download", "-w", ".", status=75).out


def test_hostile_statuslocation_forges_no_line(run, peps):
    hostile = JOB.replace(b"first", b"a&#10;J.log: all is well&#155;31m&#8238;")
    hit(peps, xml(hostile))
    lines = order(run).out.splitlines()
    assert [line.isprintable() for line in lines] == [True, True]


def test_command_to_give_next_works_as_printed(finish, peps, monkeypatch):
    ordered = finish(*ORDER[:-1], "south west.log")
    monkeypatch.delenv("PEPS_URL")
    peps.advance(hours=48)
    run_as_printed(last(ordered))
    assert any(Path("south west").glob("*.zip"))


def test_default_server_is_not_named(run, peps):
    LOG.touch()
    ended = order(run, "--server", peps_common.DEFAULT_SERVER, status=2)
    assert "--server" not in only_line(ended)


def test_same_line_orders_once_and_force_keeps_each_log(run, peps):
    Path("J.log.1").mkdir()
    os.mkfifo("J.log.2")
    Path("J.log.3").symlink_to("nowhere")
    order(run)
    only_line(order(run, status=2), "J.log", only_job(peps), "--force")
    assert len(peps.journal) == 1
    order(run, "--force")
    order(run, "--force")
    logs = [Path(name).read_text() for name in ("J.log.4", "J.log.5", "J.log")]
    assert all(job in log for job, log in zip(peps.jobs, logs))


@pytest.mark.parametrize("content", [b"", b"\n", b"\\begin{book}", b"<html>502</html>"])
def test_what_is_no_log_is_replaced_by_force_alone(run, peps, content):
    LOG.write_bytes(content)
    only_line(order(run, status=2), "J.log", "--force")
    assert (LOG.read_bytes(), peps.journal) == (content, [])
    order(run, "--force")
    assert Path("J.log.1").read_bytes() == content


@pytest.mark.parametrize(
    "content", [refusal("no"), answer(PLACE, failed("no")), b'{"ErrorCode": 400}']
)
def test_log_of_a_refusal_is_set_aside(run, peps, content):
    LOG.write_bytes(content)
    order(run)
    assert Path("J.log.1").read_bytes() == content
    assert only_job(peps) in LOG.read_text()


def test_note_is_a_doubt_whatever_follows(run, peps):
    LOG.write_bytes(NOTE + JOB)
    only_line(order(run, status=1), "J.log", "in doubt")
    assert (LOG.read_bytes(), peps.journal) == (NOTE + JOB, [])


def test_printed_way_out_of_a_doubt_orders_the_same(finish, peps, monkeypatch):
    peps.faults.append((EXECUTE, status(504)))
    line = only_line(finish(*ORDER, "-o", 51, status=1))
    note = LOG.read_bytes()
    monkeypatch.delenv("PEPS_URL")
    run_as_printed(line)
    assert Path("J.log.1").read_bytes() == note
    assert only_job(peps) in LOG.read_text()
    first, second = peps.requests(EXECUTE)
    assert first.target == second.target


def test_status_url_alone_is_a_log(run, peps):
    """The other way out: the job of an order in doubt was found at the service."""
    hit(peps, cut(0))
    order(run, status=1)
    LOG.write_text(f"{peps.url}{OUTPUTS}{only_job(peps)}.xml\n")
    only_line(order(run, status=2), only_job(peps))
    assert "J.log: waiting" in run("full_maja_download", "-l", LOG, status=75).out


def test_note_of_version_1_1_is_to_be_looked_at(run, peps):
    Path("J.log.part").touch()
    only_line(order(run, status=1), "J.log.part")
    assert (peps.journal, LOG.exists()) == ([], False)


def test_force_puts_back_what_it_set_aside_when_nothing_was_ordered(run, peps):
    LOG.write_bytes(JOB)
    hit(peps, xml(refusal("no")))
    order(run, "--force", status=1)
    order(run, "--force", "--server", NOBODY, status=75)
    assert LOG.read_bytes() == JOB
    assert names_in() == {"peps.txt", "J.log"}


def refuse(handler):
    """Let PyWPS make the ExceptionReport."""
    handler.peps.refuse["31TCJ"] = "locked"


def json_errors(*pairs):
    """The service's JSON error, by its code and the HTTP status that comes with it."""
    return {
        f"JSON {code}, {http}": (json_error(code, "locked", http), "locked")
        for code, http in pairs
    }


def statuses(*codes):
    return {str(code): (status(code, body=PAGE), str(code)) for code in codes}


LOCKED, PAGE = refusal("locked"), b"<html>Bad Gateway</html>"
REFUSED = {
    "ExceptionReport": (refuse, "locked"),
    "ExceptionReport, 200": (xml(LOCKED), "locked"),
    "ExceptionReport, 504": (status(504, body=LOCKED), "locked"),
    "ProcessFailed": (xml(answer(PLACE, failed("locked"))), "locked"),
    "JSON 401": (json_error(401), "account peps.txt"),
    **json_errors((400, 200), (17, 200), ("400", 500), (None, 400), ("E17", 418)),
    "401": (status(401), "account peps.txt"),
    "404": (status(404), "404 --server"),
    **statuses(403, 418),
}
NOT_NOW = {
    "ServerBusy": (xml(refusal("full", "ServerBusy")), "full"),
    **json_errors((503, 200), (429, 500)),
    **statuses(429, 503),
}


@pytest.mark.parametrize("name", [*REFUSED, *NOT_NOW])
def test_refusal_leaves_no_log(run, peps, name):
    fault, words = {**REFUSED, **NOT_NOW}[name]
    hit(peps, fault)
    ended = order(run, status=75 if name in NOT_NOW else 1)
    assert "in doubt" not in only_line(ended, peps.url[7:], *words.split())
    assert (len(peps.journal), names_in()) == (1, {"peps.txt"})


# With what a person finds behind the note.
IN_DOUBT = {
    **statuses(408, 500, 502, 524),
    **json_errors((500, 200), ("504", 400), (408, 200), (None, 200), ("E17", 500)),
    "empty": (status(200), ""),
    "page": (status(200, body=PAGE), "Bad Gateway"),
    "no statusLocation": (xml(answer()), "ProcessAccepted"),
    "DTD": (xml(b'<!DOCTYPE x SYSTEM "y">' + JOB), "DOCTYPE first.xml"),
    "too long": (xml(b"<x>" + b" " * peps_common.DOCUMENT_MAX_BYTES), "<x>"),
    "closed before the head": (cut(None), ""),
    "closed behind the head": (cut(0), ""),
    "reset": (reset(20), ""),
    "redirect to a 404": (status(302, {"Location": "/none"}), "404"),
    "redirect to itself": (lambda h: status(302, {"Location": h.path})(h), "redirect"),
}


@pytest.mark.parametrize("name", IN_DOUBT)
def test_other_answer_without_a_job_leaves_a_doubt(run, peps, name):
    fault, words = IN_DOUBT[name]
    hit(peps, fault)
    only_line(order(run, status=1), "in doubt")
    assert name == "redirect to itself" or len(peps.requests(EXECUTE)) == 1
    require_doubt(run, peps)
    assert all(word in LOG.read_text() for word in words.split())


LINES = JOB.replace(b" xmlns", b"\r\n xmlns").replace(
    b"first.xml", b"pywps-first.xml?a&b"
)
HEADLESS = (
    b"Warning: 1 < 2\n<ExecuteResponse statusLocation='" + PLACE.encode() + b"'/>\n"
)
TWO = answer("http://a/b") + JOB
CUT = JOB[: JOB.index(b"<Status")]
# With the log that it becomes.
ACCEPTED = {
    **{str(code): (status(code, body=JOB), JOB) for code in (404, 500, 503)},
    "length too long": (status(200, {"Content-Length": 9999}, JOB), JOB),
    "length too short": (status(200, {"Content-Length": 300}, JOB), JOB[:300]),
    "cut behind the start tag": (xml(CUT), CUT),
    "gzip": (status(200, {"Content-Encoding": "gzip"}, gzip.compress(JOB)), JOB),
    "many lines, bare &": (xml(LINES), LINES),
    "words before, no namespace": (xml(HEADLESS), HEADLESS),
    "two answers": (xml(TWO), TWO),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_answer_with_a_job_is_the_log(run, peps, name):
    fault, log = ACCEPTED[name]
    hit(peps, fault)
    assert "ordered as job first," in order(run).out
    assert (LOG.read_bytes(), names_in()) == (log, {"peps.txt", "J.log"})


NOT_CONNECTED = {
    "service": (NOBODY, ""),
    "proxy": ("http://peps.cnes", NOBODY),
    "tunnel": ("https://peps.cnes", "http://{}"),
    "TLS": ("https://{}", ""),
}


@pytest.mark.parametrize("name", NOT_CONNECTED)
def test_without_a_connection_nothing_is_ordered(run, peps, monkeypatch, name):
    server, proxy = (text.format(peps.url[7:]) for text in NOT_CONNECTED[name])
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    only_line(order(run, "--server", server, status=75), "later")
    assert names_in() == {"peps.txt"}


def test_proxy_that_wants_an_account_has_ordered_nothing(run, peps, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", peps.url)
    hit(peps, status(407))
    only_line(order(run, "--server", "http://peps.cnes", status=1), "407")
    assert names_in() == {"peps.txt"}


def test_answer_without_end_is_a_doubt(run, peps, monkeypatch):
    monkeypatch.setattr(peps_common, "PATIENCE_S", 1)
    head = b"HTTP/1.1 200 OK\r\n\r\n<html>slow"
    hit(peps, endless(head, b".", pause_s=0.05))
    only_line(order(run, status=1), "in doubt")
    assert b"<html>slow.." in LOG.read_bytes()
    require_doubt(run, peps)


def test_eight_orders_at_once_order_once(launch, peps):
    free = threading.Event()
    hit(peps, hold(free, None))
    processes = [launch(*ORDER) for _ in range(8)]
    wait_until(lambda: [one.poll() for one in processes].count(None) == 1)
    free.set()
    ends = [one.wait() for one in processes]  # 2: it saw the log before the note
    assert (ends.count(0), {*ends} <= {0, 1, 2, 75}) == (1, True)
    assert only_job(peps) in LOG.read_text()


def test_three_forced_at_once_lose_no_copy(launch, peps):
    """Each sets the log of the one before aside, and the last one has the log."""
    LOG.write_bytes(JOB)
    free = threading.Event()
    hit(peps, hold(free, None))
    runs = [launch(*ORDER, "--force") for _ in range(3)]
    wait_until(lambda: len(peps.journal) == [one.poll() for one in runs].count(None))
    free.set()
    assert 0 in [one.wait() for one in runs]
    # Where two set the same log aside at once, one of them leaves an empty copy.
    kept = {path.read_bytes() for path in Path().glob("J.log*")}
    assert JOB in kept
    assert len(kept - {JOB, b""}) == len(peps.jobs)


@pytest.mark.parametrize(("name", "ends"), [
    ("SIGKILL", -9), ("SIGTERM", 143), ("SIGINT", 130),
])  # fmt: skip
def test_stopped_while_the_answer_is_awaited(launch, run, peps, name, ends):
    hit(peps, hold(threading.Event(), None))
    process = launch(*ORDER)
    peps.wait_for(lambda: peps.requests(EXECUTE))
    note = LOG.read_text()
    process.send_signal(getattr(signal, name))
    _, err = process.communicate()
    assert process.returncode == ends
    if ends > 0:
        only_line(err, "J.log", "in doubt", "--force")
    secrets = (*peps.account.split(" ", 1), peps.authorization[6:])
    assert not any(map(note.count, secrets))
    require_doubt(run, peps)


def test_killed_at_random_moments(launch, run, peps):
    """No order is placed twice, and none that was accepted is forgotten."""
    seed = random.randrange(10**6)  # noqa: S311
    moments = random.Random(seed)  # noqa: S311
    for number in range(15):
        LOG.unlink(missing_ok=True)
        peps.journal.clear()
        before = len(peps.jobs)
        process = launch(*ORDER)
        wait_until(lambda: LOG.exists() or peps.journal)  # most of the time goes by
        time.sleep(moments.uniform(0, 0.08))
        process.kill()
        process.wait()
        peps.wait_idle()
        accepted = len(peps.jobs) > before
        again = order(run, status=None)
        told = (f"seed {seed}", number, again)
        placed, kept = list(peps.jobs)[before:], LOG.read_text()
        assert len(placed) <= 1, told
        assert not accepted or again.status in (1, 2), told
        doubt_or_job = kept.startswith("PEPS order") or any(map(kept.count, placed))
        assert doubt_or_job or not (kept or accepted), told


def test_full_disk_while_the_answer_is_awaited(finish, run, peps):
    hit(peps, xml(JOB + b" " * 9000))
    ended = finish(*ORDER, status=1, preexec_fn=limited(3000))
    only_line(ended, "J.log", "job first", PLACE)
    require_doubt(run, peps)


@pytest.mark.parametrize(("number", "ends"), [(errno.EIO, 2), (errno.ENOSPC, 1)])
def test_note_that_the_disk_does_not_take(run, peps, monkeypatch, number, ends):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(number, "no room")))
    only_line(order(run, status=ends), "J.log", "no room")
    assert not LOG.exists()
    LOG.write_bytes(JOB)
    order(run, "--force", status=ends)
    assert (LOG.read_bytes(), names_in()) == (JOB, {"peps.txt", "J.log"})
    assert peps.journal == []


def test_answer_leaves_the_note_of_another_run_alone(run, peps):
    """The job is named instead, and its status URL."""
    theirs = NOTE + b" of another run"
    change = lambda _: LOG.write_bytes(theirs) and False  # noqa: E731
    peps.always += [(EXECUTE, change), (EXECUTE, xml(JOB))]
    only_line(order(run, status=1), "J.log", "job first", PLACE)
    assert LOG.read_bytes() == theirs


def test_log_that_can_be_no_file(run, peps):
    Path("folder").mkdir()
    os.mkfifo("pipe")
    for log in ("folder", "pipe", "missing/J.log"):
        line = only_line(order(run, "-l", log, status=2), log.split("/")[0])
        assert "--force" not in line
    assert peps.journal == []


def test_dry_run_prints_the_url_and_sends_nothing(run, peps):
    url = order(run, "-n")
    assert (peps.journal, names_in()) == ([], {"peps.txt"})
    order(run)
    assert url[1:] == (f"{peps.url}{peps.journal[0].target}\n", "")
    assert order(run, "-n").out == url.out
    assert len(peps.journal) == 1


def test_list_holds_all_pages_of_the_orbit(run, peps):
    """Of 730 products on two pages; half of them are of the orbit."""
    period = ("2015-07-04", "2019-01-01")
    seen = [*acquisitions("31TCJ", *period), *acquisitions("31TCK", *period)]
    peps.catalogue = [*map(feature, seen)]
    shown = order(run, "-n", "-o", "51", "--json", "list.json").out
    saved = json.loads(Path("list.json").read_text())
    of_orbit = [one for one in peps.catalogue if "_R051_" in str(one)]
    assert (saved["type"], saved["features"]) == ("FeatureCollection", of_orbit)
    assert "183 dates" in shown
    assert "77 h" in shown
    assert [sent.path for sent in peps.journal] == [SEARCH, SEARCH]
    assert names_in() == {"peps.txt", "list.json"}


def test_order_with_a_list(run, peps):
    """The catalogue is not asked where nothing will be ordered."""
    peps.catalogue = []
    only_line(order(run, "--json", "list.json", status=1), "nothing was ordered")
    assert names_in() == {"peps.txt"}
    peps.catalogue = None
    order(run, "--json", "list.json")
    assert [sent.path for sent in peps.journal] == [SEARCH, SEARCH, WPS]
    order(run, "--json", "list.json", status=2)
    assert len(peps.journal) == 3


@pytest.mark.parametrize("fault", [xml(LOCKED), status(500)], ids=["no", "500"])
def test_end_of_an_order_leaves_the_note_of_another_run_alone(run, peps, fault):
    theirs = NOTE + b" of another run"
    replace = (EXECUTE, lambda _: LOG.write_bytes(theirs) and False)
    peps.always += [replace, (EXECUTE, fault)]
    order(run, status=1)
    assert LOG.read_bytes() == theirs
