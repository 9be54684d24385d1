"""Orders: what is sent, what is kept, and that none is placed twice, whatever happens on the way."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from faulty_http import cut, hold, reset, stall, status
from local_peps import OUTPUTS, SEARCH, WPS, acquisitions, feature
from stories import (
    CHECKOUT,
    NOVEMBER,
    SHORT,
    answer,
    failed,
    limited,
    names_in,
    only_line,
    refusal,
    wait_until,
    xml,
)

import peps_common

EXECUTE = "identifier=FULL_MAJA"
SINGLE = "identifier=MAJA&"
QUERY = (
    "request=execute&service=WPS&version=1.0.0&identifier=FULL_MAJA&datainputs="
    "startDate=2017-07-01;completionDate={};tileid=31TCJ{}&status=true&storeExecuteResponse=true"
)
SINGLE_QUERY = (
    "request=execute&service=WPS&version=1.0.0&identifier=MAJA&datainputs=product={}"
    "&storeExecuteResponse=true&status=true&title=Maja-Process"
)
BOTH_ORBITS = acquisitions("31TCJ", "2017-11-01", "2017-12-01")
ORBIT_51 = acquisitions("31TCJ", "2017-11-01", "2017-12-01", 51)
PLACE = "http://127.0.0.1:9/wps/outputs/{}.xml"
ORDER = ("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "J.log")


def order(run, *more: object, status: int | None = 0):
    return run(*ORDER, *more, status=status)


def order_each(run, *more: object, status: int | None = 0):
    return run("peps_maja_process", "-t", "31TCJ", *NOVEMBER, *more, status=status)


NOTE = Path("J.log.part")


def require_doubt(run, peps):
    """An order in doubt is not sent again, but with --force; and the download says the same of such a log."""
    kept, sent = NOTE.read_bytes(), len(peps.requests(WPS))
    line = only_line(order(run, status=1), "J.log", "in doubt", peps.url, "--force")
    assert re.search(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", line)
    only_line(
        run("full_maja_download", "-l", "J.log", status=1),
        "J.log",
        "in doubt",
        f"remove {NOTE}",
    )
    assert len(peps.requests(WPS)) == sent
    assert NOTE.read_bytes() == kept
    peps.always.clear()
    shown = shlex.split(line.partition("order it with: ")[2])
    assert Path(shown[1]).name == "full_maja_process.py"
    run("full_maja_process", *shown[2:])
    assert Path("J.log.1").read_bytes() == kept.rstrip(b"\0")
    assert not NOTE.exists()


@pytest.mark.parametrize(("more", "query"), [
    ("", ""), ("-o 1 ", ";relativeOrbitNumber=1"), ("-o 143 ", ";relativeOrbitNumber=143"),
], ids=["tile", "first orbit", "last orbit"])  # fmt: skip
def test_documented_order_works_as_written(finish, peps, more, query):
    line = (
        f"-t 31TCJ {more}-a peps.txt -d 2017-07-01 -e 2018-01-01 -l 31TCJ_20170101.log"
    )
    result = finish("full_maja_process", *line.split())
    assert result.err == ""
    expected = QUERY.format("2018-01-01", query)
    assert [
        (request.method, request.path, request.query) for request in peps.journal
    ] == [("GET", WPS, expected)]
    job_id, log = next(iter(peps.jobs)), Path("31TCJ_20170101.log").read_text()
    first, following = result.out.splitlines()
    assert f"{peps.url}{OUTPUTS}{job_id}.xml" in log
    assert (
        first
        == f"31TCJ_20170101.log: ordered as job {job_id}, status {peps.url}{OUTPUTS}{job_id}.xml"
    )
    assert "full_maja_download.py -a peps.txt -l 31TCJ_20170101.log" in following


@pytest.mark.parametrize(("line", "area", "found"), [
    ("-l Toulouse -a peps.txt -d 2017-11-01 -f 2017-12-01", "q=Toulouse", BOTH_ORBITS),
    ("2 --lon 1 --lat 43.5 -a peps.txt -d 2017-11-01 -f 2017-12-01 -o 51", "lat=43.500000&lon=1.000000", ORBIT_51),
], ids=["town", "point and stray 2"])  # fmt: skip
def test_documented_line_searches_asks_and_orders(terminal, peps, line, area, found):
    shown = terminal(
        "peps_maja_process",
        *line.split(),
        "-p",
        "prod_list_toulouse.txt",
        answer=b"yes\n",
    )
    searched = f"{area}&startDate=2017-11-01&completionDate=2017-12-01&maxRecords=500&productType=S2MSI1C"
    assert [request.query for request in peps.requests(SEARCH)] == [searched]
    assert ("yes/no" in shown) == (len(found) > 10)
    names = [seen.l1c for seen in found]
    assert sorted(r.query for r in peps.requests(SINGLE)) == sorted(
        map(SINGLE_QUERY.format, names)
    )
    assert sorted(Path("prod_list_toulouse.txt").read_text().split()) == sorted(names)
    for job in peps.jobs.values():
        assert (
            f"{peps.url}{OUTPUTS}{job.id}.xml" in Path(f"{job.subject}.log").read_text()
        )
        assert f"{job.subject}: ordered as job {job.id}, status {peps.url}" in shown
    assert re.search(
        rf"\n{len(found)} products found: {len(found)} ordered now\n$", shown
    )


OPEN = "&startDate=2017-11-01&completionDate=9999-01-01&"
SEARCHES = {
    "-t T31TCJ": f"tileid=31TCJ{OPEN}", "-l 'Saint-Étienne & fils'": f"q=Saint-%C3%89tienne%20%26%20fils{OPEN}",
    "-l Le%20Mans": f"q=Le%20Mans{OPEN}", "-l Le+Mans": f"q=Le+Mans{OPEN}",
    "-l 'Le%20Mans & Été'": f"q=Le%20Mans%20%26%20%C3%89t%C3%A9{OPEN}",
    "-l '100% Toulouse'": f"q=100%25%20Toulouse{OPEN}", "--lat 43.5 --lon 1": f"lat=43.500000&lon=1.000000{OPEN}",
    "--lat -43. --lon -1e-3": f"lat=-43.000000&lon=-0.001000{OPEN}",
    "--lat -.5 --lon=-71.25": f"lat=-0.500000&lon=-71.250000{OPEN}",
    "--latmin -43 --latmax 44 --lonmin -1.5 --lonmax 2": f"box=-1.500000,-43.000000,2.000000,44.000000{OPEN}",
    "-t 31TCJ -d 2017-11-01T10:00:00 -f 2017-11-01T11:00:00":
    "tileid=31TCJ&startDate=2017-11-01T10:00:00&completionDate=2017-11-01T11:00:00&",
}  # fmt: skip


@pytest.mark.parametrize("line", SEARCHES)
def test_search_on_the_wire(run, peps, line):
    run(
        "peps_maja_process",
        "-d",
        "2017-11-01",
        *shlex.split(line),
        "-p",
        "list.txt",
        "-n",
        status=None,
    )
    assert peps.journal[0].query.startswith(SEARCHES[line])


ANSWERS = {
    "one line": b'<?xml version="1.0"?><wps:ExecuteResponse xmlns:wps="http://www.opengis.net/wps/1.0.0" '
    b'statusLocation="http://127.0.0.1:1/wps/outputs/pywps-154901234567.xml"/>',
    "many lines": b'\r\n\r\n<ExecuteResponse\r\n\txmlns="http://www.opengis.net/wps/1.0.0"\r\n statusLocation='
    b"'http://127.0.0.1:1/wps/outputs/pywps-154901234567.xml'>\r\n<!-- \xc3\xa9 --></ExecuteResponse>\r\n\r\n",
}


@pytest.mark.parametrize("document", ANSWERS.values(), ids=ANSWERS)
def test_log_is_the_answer_byte_for_byte(run, peps, document):
    peps.faults.append((EXECUTE, xml(document)))
    assert "154901234567" in order(run).out
    assert Path("J.log").read_bytes() == document
    assert names_in() == {"peps.txt", "J.log"}


def test_log_has_a_default_name(run, peps):
    run("full_maja_process", "-t", "31TCJ", *SHORT)
    assert (
        "Full_Maja.log: waiting" in run("full_maja_download", "-w", ".", status=75).out
    )


def test_same_line_orders_once_and_force_keeps_the_old_logs(run, peps):
    """What is in the way of a copy is neither waited for nor a reason to lose the new order's answer."""
    Path("J.log.1").mkdir()
    os.mkfifo("J.log.2")
    Path("J.log.3").symlink_to("nowhere")
    order(run)
    logs = [Path("J.log").read_bytes()]
    only_line(order(run, status=2), next(iter(peps.jobs)), "--force")
    assert (len(peps.jobs), Path("J.log").read_bytes()) == (1, logs[0])
    for _ in range(2):
        order(run, "--force")
        logs.append(Path("J.log").read_bytes())
    assert len(set(logs)) == 3
    assert [Path(f"J.log.{number}").read_bytes() for number in (4, 5)] == logs[:2]
    assert names_in() == {
        "peps.txt",
        "J.log",
        *(f"J.log.{number}" for number in (1, 2, 3, 4, 5)),
    }


@pytest.mark.parametrize(
    "content", [b"\\documentclass{book}", b"<html>502 Bad Gateway</html>"]
)
def test_file_that_is_no_log_is_replaced_by_force_alone(run, peps, content):
    Path("J.log").write_bytes(content)
    only_line(order(run, status=2), "J.log")
    assert (Path("J.log").read_bytes(), peps.journal) == (content, [])
    order(run, "--force")
    assert Path("J.log.1").read_bytes() == content
    assert next(iter(peps.jobs)) in Path("J.log").read_text()


def test_the_log_of_a_refused_order_is_free(run, peps):
    Path("J.log").write_bytes(refusal("no"))
    order(run)
    assert next(iter(peps.jobs)) in Path("J.log").read_text()


@pytest.mark.parametrize("flag", ["-n", "--no_download", "--dry-run"])
def test_dry_run_shows_the_request_and_sends_nothing(run, peps, flag):
    shown = order(run, flag).out
    assert (peps.journal, names_in()) == ([], {"peps.txt"})
    order(run)
    assert f"{peps.url}{WPS}?{peps.requests(EXECUTE)[0].query}" in shown.split()
    again = order(run, flag).out
    assert again.startswith(shown)
    assert next(iter(peps.jobs)) in again


def test_dry_run_with_a_list_asks_the_catalogue(run, peps):
    shown = order(run, "-n", "--json", "list.json").out
    dates = len(
        {seen.day for seen in acquisitions("31TCJ", "2017-07-01", "2017-09-01")}
    )
    assert f"{dates} dates" in shown
    assert f"{(60 + 25 * (dates - 1)) / 60:.0f} h" in shown
    assert {request.path for request in peps.journal} == {SEARCH}


def test_nothing_is_ordered_where_the_catalogue_has_nothing(run, peps):
    peps.catalogue = []
    only_line(
        order(run, "--json", "list.json", status=1), "no product", "nothing was ordered"
    )
    assert peps.requests(WPS) == []
    assert names_in() == {"peps.txt"}


def test_statuslocation_cannot_forge_a_line(run, peps):
    hostile = answer("http://127.0.0.1:1/a.xml").replace(
        b"a.xml", b"a&#10;full_maja: all is well&#155;31m&#8238;.xml"
    )
    peps.faults.append((EXECUTE, xml(hostile)))
    lines = order(run).out.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert Path("J.log").read_bytes() == hostile


def test_full_disk_stops_the_order(finish, peps):
    result = finish(*ORDER, preexec_fn=limited(1000), status=2)
    only_line(result, "J.log")
    assert peps.journal == []
    assert names_in() == {"peps.txt"}


def test_what_is_in_the_way_of_the_log_stops_the_order(run, peps):
    """The line names it, and nothing was sent."""
    Path("J.log.new").mkdir()
    only_line(order(run, status=2), "J.log.new")
    NOTE.symlink_to("nowhere")
    line = only_line(order(run, status=2), "J.log.part", "a link")
    assert "--force" not in line
    assert peps.journal == []


def test_disk_that_fills_while_the_answer_is_awaited(finish, run, peps):
    """An answer that is too long for the room that was taken: what arrived leads to the job."""
    long = answer(
        PLACE.format("first"), f"<ProcessAccepted>{'x' * 100_000}</ProcessAccepted>"
    )
    peps.faults.append((EXECUTE, xml(long)))
    finish(*ORDER, preexec_fn=limited(70_000), status=None)
    order(run, status=2)
    assert len(peps.requests(WPS)) == 1
    assert b"first" in Path("J.log").read_bytes()


def error(code: object, sent: int = 200, words: str = "tile 31TCJ is locked"):
    """The service's JSON error, sent with an HTTP status."""
    return status(
        sent, body=json.dumps({"ErrorCode": code, "ErrorMessage": words}).encode()
    )


LOCKED = "tile 31TCJ is locked"
REFUSE = lambda handler: handler.peps.refuse.update({"31TCJ": LOCKED})  # noqa: E731
JOB = answer(PLACE.format("first"))
WPS2 = b'<wps:StatusInfo xmlns:wps="http://www.opengis.net/wps/2.0"><wps:JobID>17</wps:JobID></wps:StatusInfo>'
TOO_LONG = b" " * (peps_common.DOCUMENT_MAX_BYTES + 1)
# How an order ends whose request arrived: a job, a refusal, not now, or a doubt; and in what words.
ENDINGS: dict[str, tuple] = {
    "ExceptionReport": (REFUSE, "refused", LOCKED),
    "ExceptionReport, 504": (status(504, body=refusal(LOCKED)), "refused", LOCKED),
    "ProcessFailed": (xml(answer(PLACE.format(1), failed(LOCKED))), "refused", LOCKED),
    "ExceptionReport with a page": (xml(refusal(f"<![CDATA[<!DOCTYPE html>]]>{LOCKED}")), "refused", LOCKED),
    "JSON, 200": (error(400), "refused", LOCKED),
    "JSON 400, 500": (error(400, 500), "refused", LOCKED),
    "JSON without a code, 400": (status(400, body=b'{"ErrorMessage": "tile 31TCJ is locked"}'), "refused", LOCKED),
    "JSON without a code, 200": (status(200, body=b'{"ErrorMessage": "a timeout"}'), "doubt"),
    "JSON 401, 200": (error(401), "refused", "account"),
    "401": (status(401), "refused", "401", "peps.txt"),
    "403": (status(403), "refused", "403", "peps.txt"),
    "404": (status(404), "refused", "404", "--server"),
    "418 and a page": (status(418, body=b"<html>tea</html>"), "refused", "418"),
    "429": (status(429, {"Retry-After": "0"}), "not now", "429", "later"),
    "503": (status(503, body=b"<html>busy</html>"), "not now", "503", "later"),
    "503 and an ExceptionReport": (status(503, body=refusal("busy")), "not now", "503", "later"),
    "JSON 503, 200": (error(503), "not now", "503", "later"),
    "JSON 429, 500": (error(429, 500), "not now", "429", "later"),
    "408": (status(408), "doubt", "408"),
    "500": (status(500), "doubt", "500"),
    "502 and a page": (status(502, body=b"<html>Bad Gateway</html>"), "doubt", "502", "J.log.part"),
    "524": (status(524), "doubt", "524"),
    "JSON 500, 200": (error(500), "doubt"),
    "JSON 504, 400": (error("504", 400), "doubt"),
    "JSON 408, 200": (error(408), "doubt"),
    "JSON of no code that there is": (error("E17"), "doubt"),
    "JSON without a code, 500": (status(500, body=b'{"ErrorMessage": "database away"}'), "doubt", "500"),
    "empty": (status(200), "doubt", "empty"),
    "page": (status(200, body=b"<html>Maintenance</html>"), "doubt", "html", "J.log.part"),
    "no statusLocation": (xml(answer()), "doubt", "statusLocation", "J.log.part"),
    "WPS 2.0": (xml(WPS2), "doubt", "StatusInfo", "J.log.part"),
    "DTD": (xml(b"<!DOCTYPE x>" + JOB), "doubt", "DTD"),
    "too long": (xml(b"<x>" + TOO_LONG), "doubt", "larger"),
    "redirect to itself": (lambda h: status(302, {"Location": h.record.target})(h), "doubt", "redirect"),
    "redirect to nobody": (status(302, {"Location": "http://127.0.0.1:9/"}), "doubt", "127.0.0.1:9"),
    "closed before the head": (cut(None), "doubt"),
    "reset before the head": (reset(None), "doubt"),
    "closed after the head": (cut(0), "doubt"),
    "reset in the start tag": (reset(60), "doubt"),
    "a job with 500": (status(500, body=JOB), "job"),
    "a job and a comment": (xml(JOB.replace(b"<Status>", b"<!-- <!DOCTYPE x> --><Status>")), "job"),
    "a job with 404": (status(404, body=JOB), "job"),
    "a job with 503": (status(503, body=JOB), "job"),
    "a length one too long": (status(200, {"Content-Length": len(JOB) + 1}, JOB), "job"),
    "a length that is short": (status(200, {"Content-Length": len(JOB) - 20}, JOB), "job"),
    "a length that is none": (status(200, {"Content-Length": "many"}, JOB), "job"),
    "no last chunk": (status(200, {"Transfer-Encoding": "chunked"}, b"%x\r\n%s\r\n" % (len(JOB), JOB)), "job"),
    "gzip that is none": (status(200, {"Content-Encoding": "gzip"}, JOB), "job"),
    "the last 20 bytes missing": (xml(JOB[:-20]), "job"),
    "cut behind the start tag": (xml(JOB[: JOB.index(b"<Status")]), "job"),
    "a job that is too long": (xml(JOB.replace(b"<ProcessAccepted/>", TOO_LONG)), "job"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_endings_of_an_order(run, peps, name):
    """One request; a refusal leaves the name free, a doubt its note, and an imperfect answer is a job nonetheless."""
    fault, ends, *words = ENDINGS[name]
    peps.always.append((EXECUTE, fault))
    result = order(
        run, status={"refused": 1, "not now": 75, "doubt": 1, "job": 0}[ends]
    )
    assert len(peps.requests(EXECUTE)) == (10 if name == "redirect to itself" else 1)
    if ends == "job":
        assert "ordered as job first" in result.out
        assert names_in() == {"peps.txt", "J.log"}
        order(run, status=2)
        assert (
            "gives no answer" in run("full_maja_download", "-l", "J.log", status=75).err
        )
        return
    line = only_line(result, *words)
    assert ("may have been accepted" in line) == (ends == "doubt")
    assert not Path("J.log").exists()
    if ends == "doubt":
        require_doubt(run, peps)
    else:
        assert names_in() == {"peps.txt"}
        peps.refuse.clear()
        peps.always.clear()
        order(run)


def test_an_answer_that_never_ends_is_a_doubt(run, peps, monkeypatch):
    """The patience with an order has an end, and no byte of what came is lost."""
    monkeypatch.setattr(peps_common, "PATIENCE_S", 0.5)
    peps.always.append((EXECUTE, stall(20)))
    only_line(order(run, status=1), "may have been accepted", "timed out")
    assert NOTE.read_bytes().rstrip(b"\0").endswith(b'\n\n<?xml version="1.0" ')
    require_doubt(run, peps)


def test_eight_orders_at_once_order_once(launch, peps):
    free = threading.Event()
    peps.always.append((EXECUTE, hold(free, None)))
    processes = [launch(*ORDER) for _ in range(8)]
    peps.wait_for(lambda: peps.requests(EXECUTE))
    wait_until(lambda: sum(process.poll() is not None for process in processes) == 7)
    free.set()
    ends = sorted(process.wait(30) for process in processes)
    assert ends == [0, *[75] * 7]
    assert len(peps.requests(EXECUTE)) == len(peps.jobs) == 1
    assert next(iter(peps.jobs)) in Path("J.log").read_text()


def test_three_forced_orders_beside_downloads(finish, launch, peps):
    order(finish)
    downloads = [
        launch("full_maja_download", "-l", "J.log", "--wait", "--interval", "0.001")
        for _ in range(2)
    ]
    for _ in range(3):
        order(finish, "--force")
    for process in downloads:
        process.terminate()
        assert process.wait(30) == 143
    kept = [
        Path(name).read_text() for name in ("J.log.1", "J.log.2", "J.log.3", "J.log")
    ]
    assert all(job in log for job, log in zip(peps.jobs, kept))
    assert not Path("J.log.4").exists()


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, signal.SIGHUP, signal.SIGINT, signal.SIGTERM],
    ids=lambda n: n.name,
)
def test_stopped_while_the_answer_is_awaited(launch, run, peps, number):
    """The doubt is there before the answer could be; Ctrl-C ends the run at once, and says so."""
    peps.always.append((EXECUTE, hold(threading.Event(), None)))
    process = launch(*ORDER)
    peps.wait_for(lambda: peps.requests(EXECUTE))
    process.wait_asleep()
    err = process.stop(number)
    if number in (signal.SIGINT, signal.SIGTERM):
        assert process.returncode == (130 if number == signal.SIGINT else 143)
        only_line(err, "may have been accepted")
    assert peps.authorization.split()[1].encode() not in NOTE.read_bytes()
    require_doubt(run, peps)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT], ids=lambda n: n.name
)
def test_an_error_that_was_not_awaited_to_its_end_refuses_nothing(
    launch, run, peps, number
):
    """A 504 in JSON, whose end does not come: whoever stops the run, the order is in doubt."""
    text = json.dumps({"ErrorCode": 504, "ErrorMessage": "upstream timed out"}).encode()
    ends = threading.Event()
    peps.always.append(
        (
            EXECUTE,
            lambda handler: (
                hold(ends, len(text))(handler) or status(200, body=text + b" ")(handler)
            ),
        )
    )
    process = launch(*ORDER)
    wait_until(
        lambda: Path("J.log.part").exists() and text in Path("J.log.part").read_bytes()
    )
    process.stop(number)
    require_doubt(run, peps)


def test_an_answer_that_the_part_file_does_not_take_is_a_job(run, peps, monkeypatch):
    real, calls = peps_common.write, itertools.count()

    def write(file, chunk):
        if next(calls) == 1:  # after the note, the answer
            raise OSError(5, "Input/output error")
        real(file, chunk)

    monkeypatch.setattr(peps_common, "write", write)
    assert "ordered as job" in order(run).out
    assert next(iter(peps.jobs)) in Path("J.log").read_text()


INTERRUPTED_LATE = """
import itertools, os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import full_maja_process
calls, real = itertools.count(), os.fsync
os.fsync = lambda file: (real(file), next(calls) == 2 and os.kill(os.getpid(), signal.SIGINT))
sys.exit(full_maja_process.main())
"""


def test_an_interrupt_with_the_last_word_of_an_order_tells_the_doubt(run, peps):
    """It comes in the fsync after the answer, in a process of one thread."""
    peps.always.append((EXECUTE, status(500)))
    command = [sys.executable, "-c", INTERRUPTED_LATE, str(CHECKOUT), *ORDER[1:]]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 130
    only_line(
        ended.stderr, "interrupted: J.log: the order of", "may have been accepted"
    )
    require_doubt(run, peps)


def test_the_way_out_of_a_doubt_leaves_out_what_orders_nothing(run, peps):
    peps.always.append((EXECUTE, status(504)))
    order(run, "--force", status=1)
    for more in ("-n", "--force"):
        line = only_line(order(run, more, status=1), "order it with: ")
        words = shlex.split(line.partition("order it with: ")[2])
        assert ("-n" in words, words.count("--force")) == (False, 1)


def test_stopped_while_no_connection_is_made(launch, run, peps):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as busy:
        filler = [socket.socket() for _ in range(4)]
        for one in filler:
            one.setblocking(False)
            one.connect_ex(busy.getsockname())
        server = f"http://127.0.0.1:{busy.getsockname()[1]}"
        process = launch(*ORDER, "--server", server)
        wait_until(lambda: NOTE.exists() and NOTE.stat().st_size > 1000)
        process.wait_asleep()
        err = process.stop(signal.SIGINT)
        for one in filler:
            one.close()
    assert (process.returncode, "may have been" in err) == (130, False)
    assert names_in() == {"peps.txt"}


class Steps:
    """Runs of an order that are stopped at a step, and the same command once more."""

    def __init__(self, peps):
        self.peps, command = (
            peps,
            [sys.executable, str(Path(__file__).with_name("order_steps.py"))],
        )
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, argv: list[str], stop: str = "", step: int = 0) -> dict:
        asked = {
            "argv": argv,
            "stop": stop,
            "step": step,
            "folder": str(Path().absolute()),
        }
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        ended = json.loads(self.process.stdout.readline())
        assert "Traceback" not in ended["stderr"], (asked, ended)
        assert ended["status"] in (
            0,
            1,
            2,
            75,
            77,
            130,
            143,
            -signal.SIGINT,
            -signal.SIGTERM,
        ), (asked, ended)
        self.peps.wait_idle()
        return ended


@pytest.fixture
def steps(account, peps):
    found = Steps(peps)
    yield found
    found.process.communicate(timeout=10)


CASES = {
    "answered": lambda handler: False, "answered late": lambda handler: threading.Event().wait(0.02), "refused": REFUSE,
    "not connected": None,
}  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each run is a fork")
@pytest.mark.parametrize(("case", "stop"), [
    (case, stop) for case in CASES for stop in ("signal", "exit", "OSError")
    if case != "answered late" or stop == "signal"  # which alone can come while nothing else does
])  # fmt: skip
def test_stopped_at_every_step(case, stop, steps, peps, request, capsys):
    """No accepted order is repeated, no whole answer lost, and what certainly was not sent can be ordered again."""
    stride = 1 if request.config.getoption("--every-step") or stop == "OSError" else 41
    offset = random.SystemRandom().randrange(1, stride + 1)
    server = "http://127.0.0.1:9" if case == "not connected" else peps.url
    argv = ["-t", "31TCJ", *SHORT, "-l", "J.log", "--server", server]
    if CASES[case]:
        peps.always.append((EXECUTE, CASES[case]))
    for step in itertools.count(offset, stride):
        for path in [*Path().glob("J.log*")]:
            path.unlink()
        sent, jobs = len(peps.requests(EXECUTE)), len(peps.jobs)
        how = (
            ("SIGINT", "SIGTERM")[step % 2] if stop == "signal" else stop
        )  # they are handled as one
        first = steps.run(argv, how, step)
        if not first["reached"]:
            break
        told = (case, how, step, first)
        note = NOTE.read_bytes() if NOTE.exists() else b""
        answered = any(
            re.search(rb'statusLocation="[^"]+"', path.read_bytes())
            for path in Path().glob("J.log*")
        )
        arrived = len(peps.requests(EXECUTE)) - sent
        again = steps.run(argv)
        assert len(peps.jobs) - jobs <= 1, (told, again)
        assert arrived <= 1, told
        if len(peps.jobs) > jobs and arrived:
            assert again["status"] in (1, 2), (told, again)  # in doubt, or named
        if answered:
            assert again["status"] == 2, (told, again)
            assert list(peps.jobs)[-1] in Path("J.log").read_text(), told
        certain = not arrived and (
            not note.startswith(peps_common.NOTE) or first["status"] == 75
        )
        if certain or "is locked" in first["stderr"]:
            expected = {"refused": 1, "not connected": 75}.get(case, 0)
            assert again["status"] == expected, (told, again)
            assert (
                case == "not connected"
                or len(peps.requests(EXECUTE)) == sent + arrived + 1
            ), told
    assert step > 6
    with capsys.disabled():
        print(
            f"\n{case}, {stop}: {step} steps, one in {stride} from {offset} on", end=" "
        )


def ordered(peps) -> list[str]:
    return sorted(job.subject for job in peps.jobs.values())


def names(seen) -> list[str]:
    return sorted(acquisition.l1c for acquisition in seen)


def listed() -> list[str]:
    return Path("list.txt").read_text().splitlines()


@pytest.mark.parametrize(("typed", "expected"), [
    (b"perhaps\nno\n", 1), (b"\x04", 1), (b"", 130),
], ids=["neither, then no", "end of input", "Ctrl-C twice"])  # fmt: skip
def test_large_order_asks(terminal, peps, typed, expected):
    def see(text: bytes, process):
        if not typed and b"yes/no" in text:
            process.wait_asleep()
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)

    shown = terminal(
        "peps_maja_process",
        "-t",
        "31TCJ",
        *NOVEMBER,
        answer=typed,
        status=expected,
        see=see,
    )
    assert "12 products" in shown
    assert "Traceback" not in shown
    assert not peps.jobs


@pytest.mark.parametrize(
    ("typed", "ends", "count"),
    [("no\n", 1, 0), ("", 2, 0), ("what?\n", 2, 0), ("\xff\nyes\n", 0, 12)],
)
def test_large_order_asks_a_pipe_too(finish, peps, typed, ends, count):
    result = order_each(
        lambda *argv, status: finish(*argv, status=status, input=typed), status=ends
    )
    assert len(peps.jobs) == count
    assert "yes/no" not in result.out
    assert ends != 2 or "--yes" in result.err.splitlines()[-1]


def test_what_is_ordered_already_is_not_asked_about(run, peps):
    peps.catalogue = list(map(feature, BOTH_ORBITS[:10]))
    order_each(run)
    peps.catalogue = None
    shown = order_each(run).out
    assert ordered(peps) == names(BOTH_ORBITS)
    assert (
        shown.splitlines()[-1] == "12 products found: 10 ordered before, 2 ordered now"
    )
    assert sorted(listed()) == names(BOTH_ORBITS)


def test_list_grows_and_keeps_its_entries(run, peps):
    Path("list.txt").write_text("an_older_product\nanother_one")
    peps.catalogue = list(map(feature, ORBIT_51[:2]))
    order_each(run)
    Path("list.txt").write_text("\n".join(listed()[:-1]) + "\n")
    order_each(run)
    first, second = (seen.l1c for seen in ORBIT_51[:2])
    assert listed() == ["an_older_product", "another_one", first, second]
    assert len(peps.jobs) == 2


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT], ids=lambda n: n.name
)
def test_stopped_order_of_a_list_goes_on_with_the_rest(run, launch, peps, number):
    """Stopped on the fourth of six: the next run leaves that one out, names it and its file, and orders the rest."""
    never, numbers = threading.Event(), itertools.count(1)
    # The client is dead when this ends: its request must not become a job after that.
    lost = lambda handler: hold(never, None)(handler) or cut(None)(handler)  # noqa: E731
    peps.always.append((SINGLE, lambda handler: next(numbers) == 4 and lost(handler)))
    process = launch("peps_maja_process", "-t", "31TCJ", *NOVEMBER, "-o", "51")
    peps.wait_for(lambda: len(peps.requests(SINGLE)) == 4)
    process.wait_asleep()
    process.stop(number)
    doubtful = peps.requests(SINGLE)[3].query.partition("product=")[2].partition("&")[0]
    assert sorted(listed()) == ordered(peps)
    only_line(
        order_each(run, "-o", "51", status=1),
        doubtful,
        f"remove {doubtful}.log.part",
        "in doubt",
    )
    assert ordered(peps) == sorted(set(names(ORBIT_51)) - {doubtful})
    Path(f"{doubtful}.log.part").unlink()
    order_each(run, "-o", "51")
    assert ordered(peps) == names(ORBIT_51)
    assert sorted(listed()) == names(ORBIT_51)


def test_first_doubt_of_a_list_ends_the_run(run, peps):
    peps.always.append((SINGLE, status(504)))
    only_line(
        order_each(run, "--yes", status=1),
        "may have been accepted",
        ".log.part",
        "order again",
    )
    assert len(peps.requests(SINGLE)) == 1
    order_each(run, "--yes", status=1)
    assert (
        len({request.query for request in peps.requests(SINGLE)})
        == len(peps.requests(SINGLE))
        == 2
    )


@pytest.mark.parametrize(
    ("fault", "ends"),
    [(status(503), 75), (status(401), 1), (status(403), 1), (status(404), 1)],
)
def test_one_cause_ends_the_run(run, peps, fault, ends):
    peps.catalogue = list(map(feature, ORBIT_51[:3]))
    peps.always.append((SINGLE, fault))
    only_line(order_each(run, status=ends))
    assert len(peps.requests(SINGLE)) == 1
    peps.always.clear()
    order_each(run)
    assert ordered(peps) == names(ORBIT_51[:3])


def test_refused_product_does_not_stop_the_others(run, peps):
    refused = ORBIT_51[2].l1c
    peps.refuse[refused] = "no such product on tape"
    only_line(order_each(run, "-o", "51", status=1), refused, "no such product on tape")
    assert sorted(listed()) == sorted(set(names(ORBIT_51)) - {refused})
    peps.refuse.clear()
    order_each(run, "-o", "51")
    assert ordered(peps) == names(ORBIT_51)


@pytest.mark.parametrize(
    "where", ["logs", "lists", "."], ids=["-w", "beside the list", "the current folder"]
)
def test_orders_are_found_where_the_download_looks(run, peps, where):
    for folder in ("logs", "lists"):
        Path(folder).mkdir()
    peps.catalogue = list(map(feature, ORBIT_51[:2]))
    argv = ("peps_maja_process", "-t", "31TCJ", *NOVEMBER[:-1], "lists/list.txt")
    peps.faults.append((f"product={ORBIT_51[1].l1c}", cut(None)))
    run(*argv, "-w", where, status=1)
    run(*argv, "-w", "logs", status=1)
    assert ordered(peps) == [ORBIT_51[0].l1c]
    assert len(peps.requests(SINGLE)) == 2
    run("peps_maja_download", "-p", "lists/list.txt", "-w", "logs", status=75)


def test_force_orders_single_products_anew(run, peps):
    peps.catalogue = list(map(feature, ORBIT_51[:2]))
    order_each(run)
    before = {name: Path(f"{name}.log").read_bytes() for name in names(ORBIT_51[:2])}
    order_each(run, "--force", "-w", "elsewhere")
    assert len(peps.jobs) == 4
    for name, log in before.items():
        assert Path(f"{name}.log.1").read_bytes() == log
        assert Path(f"{name}.log").read_bytes() != log
    assert listed() == [seen.l1c for seen in ORBIT_51[:2]]
    assert names_in("elsewhere") == set()


def test_products_that_another_run_is_at_do_not_stop_the_others(run, peps):
    fcntl = pytest.importorskip("fcntl")
    peps.catalogue = list(map(feature, ORBIT_51[:4]))
    with (
        open(f"{ORBIT_51[1].l1c}.log.part", "wb") as one,
        open(f"{ORBIT_51[2].l1c}.log.part", "wb") as two,
    ):
        fcntl.flock(one, fcntl.LOCK_EX)
        fcntl.flock(two, fcntl.LOCK_EX)
        only_line(order_each(run, "--force", status=75), "2 products", "another run")
    assert ordered(peps) == [ORBIT_51[0].l1c, ORBIT_51[3].l1c]


def test_product_that_another_run_has_just_ordered_counts_as_ordered(run, peps):
    log = Path(f"{ORBIT_51[0].l1c}.log")
    peps.catalogue = [feature(ORBIT_51[0])]
    peps.faults.append(
        (
            SEARCH,
            lambda handler: (
                bool(log.write_bytes(answer(PLACE.format("theirs")))) and False
            ),
        )
    )
    result = order_each(run)
    assert ("job theirs" in result.out, result.err) == (True, "")
    assert listed() == [ORBIT_51[0].l1c]
    assert peps.requests(SINGLE) == []


def test_last_line_counts_what_was_really_ordered(run, peps):
    earlier, spoilt, plain = ORBIT_51[:3]
    peps.catalogue = [feature(earlier)]
    order_each(run)
    Path(f"{spoilt.l1c}.log").write_text("somebody's notes")
    peps.catalogue = list(map(feature, ORBIT_51[:3]))
    lines = order_each(run, status=2).out.splitlines()
    assert (
        lines[-1] == "3 products found: 1 ordered before, 1 ordered now, 1 not ordered"
    )
    assert "peps_maja_download.py -a peps.txt -p list.txt -w ." in lines[-2]
    assert listed() == [earlier.l1c, plain.l1c]


def test_twelve_hundred_products_are_three_requests(run, peps):
    named = [
        f"S2A_MSIL1C_20170704T105621_N0205_R051_T31TCJ_{number:06}"
        for number in range(1200)
    ]
    peps.catalogue = [{"properties": {"productIdentifier": name}} for name in named]
    result = order_each(run, "-n", "--json", "answer.json")
    assert [re.findall(r"&page=(\d+)", request.query) for request in peps.journal] == [
        [],
        ["2"],
        ["3"],
    ]
    assert all(name in result.out for name in named)
    saved = json.loads(Path("answer.json").read_text())
    assert saved["type"] == "FeatureCollection"
    assert [
        found["properties"]["productIdentifier"] for found in saved["features"]
    ] == named
    assert not any(
        link.get("rel") == "next" for link in saved["properties"].get("links", [])
    )


def test_server_that_ignores_the_page_ends_the_search(run, peps):
    properties = {"links": [{"rel": "next", "href": peps.url}]}
    page = {
        "type": "FeatureCollection",
        "properties": properties,
        "features": list(map(feature, ORBIT_51)),
    }
    peps.always.append((SEARCH, status(200, body=json.dumps(page).encode())))
    order_each(run)
    assert len(peps.requests(SEARCH)) == 2
    assert ordered(peps) == names(ORBIT_51)


def test_catalogue_without_end_is_an_error(run, peps):
    numbers = itertools.count()

    def page(handler):
        features = [{"properties": {"productIdentifier": f"S2A_{next(numbers)}"}}]
        document = {"properties": {"links": [{"rel": "next"}]}, "features": features}
        return status(200, body=json.dumps(document).encode())(handler)

    peps.always.append((SEARCH, page))
    only_line(order_each(run, status=1), "100 pages", "narrow the search")
    assert len(peps.requests(SEARCH)) == 100
    assert peps.requests(WPS) == []


def test_missing_and_null_keys_do_not_matter(run, peps):
    bare, null, odd, whole = ORBIT_51[:4]
    nothing = dict.fromkeys(feature(null)["properties"])
    usable = [
        {"properties": {"productIdentifier": bare.l1c}},
        {"id": None, "properties": {**nothing, "productIdentifier": null.l1c}},
        {
            "id": 7,
            "properties": {
                **feature(odd)["properties"],
                "storage": ["tape"],
                "mgrs": 31,
            },
        },
        feature(whole),
    ]
    names_of_none = [None, 51, "../../etc/passwd", ".hidden", "a\nb", "a b"]
    useless = [{"properties": {"productIdentifier": name}} for name in names_of_none]
    peps.catalogue = [*usable, *useless, {"properties": {}}, {"properties": None}, None]
    only_line(order_each(run), "warning", "9 entries")
    assert ordered(peps) == names(ORBIT_51[:4])


def test_storage_is_shown_before_the_order(run, peps):
    peps.catalogue = list(map(feature, ORBIT_51[:4]))
    modes = ("disk", "tape", "staging", "unknown")
    for found, mode in zip(peps.catalogue, modes):
        found["properties"]["storage"] = {"mode": mode}
    lines = order_each(run).out.splitlines()
    assert lines[:4] == [f"{seen.l1c}  ({mode})" for seen, mode in zip(ORBIT_51, modes)]


@pytest.mark.parametrize(("fault", "ends", "words"), [
    (error(400, 200, "Bad collection"), 1, ("Bad collection",)),
    (error(400, 400, "Bad collection"), 1, ("Bad collection",)),
    (error(404, 404, "Bad collection"), 1, ("Bad collection", "--server")),
    (status(200, body=b'{"features": []}'), 1, ("no product",)), (status(401), 1, ("401", "peps.txt")),
    (status(503), 75, ("503", "127.0.0.1:", "tried 5 times", "later")),
    *((status(200, body=body), 75, ("later",)) for body in (b"<html>busy</html>", b"", b"[]", b'{"features": ['))
])  # fmt: skip
def test_search_that_fails(run, peps, fault, ends, words):
    peps.always.append((SEARCH, fault))
    line = only_line(order_each(run, status=ends), *words)
    assert line.count("later") == (ends == 75)
    assert peps.requests(WPS) == []


def test_single_dry_run_orders_nothing(run, peps):
    shown = order_each(run, "-n", "-o", "51", "-w", "logs").out.split()
    assert names_in() == {"peps.txt"}
    assert {request.path for request in peps.journal} == {SEARCH}
    order_each(run, "-o", "51")
    assert {f"{peps.url}{request.target}" for request in peps.journal} <= set(shown)
    assert set(names(ORBIT_51)) <= set(shown)
    again = order_each(run, "-n", "-o", "51").out
    assert (again.count("identifier=MAJA"), again.count(", before\n")) == (
        0,
        len(ORBIT_51),
    )


def test_quiet_orders_print_nothing(run, peps):
    assert order(run, "-q")[1:] == ("", "")
    assert order_each(run, "-q", "-o", "51")[1:] == ("", "")
    assert len(peps.jobs) == 7
