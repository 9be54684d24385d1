"""The stories of the time series pair: full_maja_process orders, full_maja_download follows up and downloads."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from local_peps import OUTPUTS, WPS, acquisitions, cut, hold, make_product, reset, status

import peps_common

EXECUTE = "identifier=FULL_MAJA"
REFRESH = "identifier=PROCESSING_STATUS"
SHORT = ("-d", "2017-07-01", "-e", "2017-09-01")
EXPECTED = acquisitions("31TCJ", "2017-07-01", "2017-09-01")
QUERY = (
    "request=execute&service=WPS&version=1.0.0&identifier=FULL_MAJA&datainputs="
    "startDate=2017-07-01;completionDate={};tileid=31TCJ{}&status=true&storeExecuteResponse=true"
)

PROCESS_LINES = [
    pytest.param(
        "python ./full_maja_process.py -t 31TCJ -a peps.txt -d 2017-07-01 -e 2018-01-01 -l 31TCJ_20170101.log",
        QUERY.format("2018-01-01", ""),
        id="tile",
    ),
    pytest.param(
        "python ./full_maja_process.py -t 31TCJ -o 51 -a peps.txt -d 2017-07-01 -e 2018-01-01 -l 31TCJ_20170101.log",
        QUERY.format("2018-01-01", ";relativeOrbitNumber=51"),
        id="orbit",
    ),
]
DOWNLOAD_LINES = [
    pytest.param("python full_maja_download.py -a peps.txt -l 31TCJ_20170101.log", ".", id="here"),
    pytest.param(
        "python full_maja_download.py -a peps.txt -l 31TCJ_20170101.log -w {folder}/31TCJ", "31TCJ", id="elsewhere"
    ),
]


def words_of(line):
    """A documented command line as script and arguments."""
    _, script, *argv = shlex.split(line)
    return [Path(script).stem, *argv]


def order(run, log="31TCJ.log", tile="31TCJ", *more):
    """Order two months of a tile."""
    return run("full_maja_process", "-t", tile, *SHORT, "-l", log, *more)


def follow(run, *logs, status=0, more=()):
    """Follow up jobs."""
    return run("full_maja_download", "-l", *(logs or ("31TCJ.log",)), *more, status=status)


def only_line(result):
    """The one line that the script had to say on stderr."""
    lines = result.err.splitlines()
    assert len(lines) == 1, result
    return lines[0]


def orders(peps):
    """The execute requests so far."""
    return peps.requests(EXECUTE)


def products_in(folder):
    """The names of the products in a folder, and of whatever is left of their downloads."""
    return {path.name for path in Path(folder).iterdir() if ".zip" in path.name}


def clear_products(seen):
    """The file names of those acquisitions that have a product."""
    return {acquisition.l2a for acquisition in seen if not acquisition.cloudy}


def closed_port():
    """The URL of a server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(autouse=True)
def small_products(peps):
    """Products of a few kB: what is in them does not matter here."""
    peps.product_size = 3000


# ---- ordering


@pytest.mark.parametrize(("line", "query"), PROCESS_LINES)
def test_documented_order_works_as_written(launch, peps, folder, line, query):
    """A documented line, run as a process, sends one request as documented and leaves the answer as the log."""
    process = launch(*words_of(line))
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert [(request.method, request.path, request.query) for request in peps.journal] == [("GET", WPS, query)]
    job_id, log = next(iter(peps.jobs)), (folder / "31TCJ_20170101.log").read_text()
    assert f"{peps.url}{OUTPUTS}{job_id}.xml" in log
    assert job_id in out
    assert f"{peps.url}{OUTPUTS}{job_id}.xml" in out
    assert "full_maja_download.py -a peps.txt -l 31TCJ_20170101.log" in out


@pytest.mark.parametrize(("line", "query"), PROCESS_LINES)
def test_documented_order_works_in_process(run, peps, line, query):
    """The main function does the same as the process."""
    run(*words_of(line))
    assert [request.query for request in peps.journal] == [query]


@pytest.mark.parametrize(("line", "where"), DOWNLOAD_LINES)
def test_documented_download_works_as_written(run, launch, peps, folder, line, where):
    """A documented line, run as a process, brings every product byte for byte."""
    order(run, "31TCJ_20170101.log")
    peps.advance(hours=100)
    process = launch(*words_of(line.format(folder=folder)))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert products_in(where) == clear_products(EXPECTED)
    for name in products_in(where):
        assert (folder / where / name).read_bytes() == make_product(name, peps.product_size)


def test_tile_may_bear_its_t_and_small_letters(run, peps):
    """T31tcj is ordered as 31TCJ."""
    order(run, "a.log", "T31tcj")
    assert orders(peps)[0].query == QUERY.format("2017-09-01", "")


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(b'<?xml version="1.0"?><wps:ExecuteResponse xmlns:wps="http://www.opengis.net/wps/1.0.0" '
                     b'statusLocation="http://127.0.0.1:1/wps/outputs/pywps-154901234567.xml"/>', id="one line"),
        pytest.param(b'\r\n\r\n<ExecuteResponse\r\n\txmlns="http://www.opengis.net/wps/1.0.0"\r\n statusLocation='
                     b"'http://127.0.0.1:1/wps/outputs/pywps-154901234567.xml'>\r\n<!-- \xc3\xa9 -->"
                     b"</ExecuteResponse>\r\n\r\n", id="many lines and white space"),
    ],
)  # fmt: skip
def test_log_is_the_answer_byte_for_byte(run, peps, folder, document):
    """Whatever the answer looks like, its bytes are the log."""
    peps.faults.append((EXECUTE, status(200, body=document, content_type="text/xml")))
    result = order(run)
    assert (folder / "31TCJ.log").read_bytes() == document
    assert "154901234567" in result.out


def test_log_has_a_default_name(run, peps, folder):
    """Without -l both scripts use Full_Maja.log."""
    run("full_maja_process", "-t", "31TCJ", *SHORT)
    assert next(iter(peps.jobs)) in (folder / "Full_Maja.log").read_text()
    assert "Full_Maja.log: waiting" in run("full_maja_download", "-w", ".", status=75).out


def test_same_line_twice_orders_once(run, peps, folder):
    """A log that holds a job is refused, with the job and the way out named, and stays as it is."""
    order(run)
    before = (folder / "31TCJ.log").read_bytes()
    again = run("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log", status=2)
    line = only_line(again)
    assert next(iter(peps.jobs)) in line
    assert "--force" in line
    assert len(orders(peps)) == 1
    assert (folder / "31TCJ.log").read_bytes() == before


def test_force_orders_again_and_keeps_the_old_logs(run, folder):
    """--force keeps what it replaces as .1, .2 and so on."""
    logs = []
    for _ in range(3):
        order(run, "31TCJ.log", "31TCJ", "--force")
        logs.append((folder / "31TCJ.log").read_bytes())
    assert len(set(logs)) == 3
    assert [(folder / f"31TCJ.log.{number}").read_bytes() for number in (1, 2)] == logs[:2]
    assert not (folder / "31TCJ.log.3").exists()


def test_two_orders_at_once_for_one_log_order_once(launch, peps, folder):
    """While one run waits for the service's answer, another one with the same log leaves the job to it."""
    answer = threading.Event()
    peps.always.append((EXECUTE, hold(answer, None)))
    command = ("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log")
    first = launch(*command)
    peps.wait_for(lambda: orders(peps))
    second = launch(*command)
    _, err = second.communicate(timeout=30)
    assert second.returncode == 75, err
    assert "another run" in err
    answer.set()
    assert first.wait(30) == 0
    assert len(orders(peps)) == len(peps.jobs) == 1
    assert next(iter(peps.jobs)) in (folder / "31TCJ.log").read_text()


def test_run_that_dies_before_the_answer_leaves_the_old_log(run, launch, peps, folder):
    """A run killed while it waits leaves the old log whole, and the next one is not held up by it."""
    order(run)
    before = (folder / "31TCJ.log").read_bytes()
    peps.faults.append((EXECUTE, hold(threading.Event(), None)))
    killed = launch("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log", "--force")
    peps.wait_for(lambda: len(orders(peps)) == 2)
    killed.kill()
    killed.wait(30)
    assert (folder / "31TCJ.log").read_bytes() == before
    order(run, "31TCJ.log", "31TCJ", "--force")
    assert (folder / "31TCJ.log.1").read_bytes() == before


@pytest.mark.parametrize(
    ("number", "expected"),
    [pytest.param(signal.SIGINT, 130, id="Ctrl-C"), pytest.param(signal.SIGTERM, 143, id="SIGTERM")],
)
def test_interrupted_order_says_that_it_may_have_arrived(launch, peps, number, expected):
    """A signal while the service is asked ends the run at once, with its status and the doubt spelled out."""
    peps.faults.append((EXECUTE, hold(threading.Event(), None)))
    process = launch("full_maja_process", "-t", "31TCJ", *SHORT)
    peps.wait_for(lambda: orders(peps))
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == expected
    assert len(err.splitlines()) == 1
    assert "may have been accepted" in err


@pytest.mark.parametrize(
    "log",
    [
        pytest.param("no/such/folder/31TCJ.log", id="folder missing"),
        pytest.param(".", id="a folder"),
        pytest.param("x" * 300, id="name too long"),
        pytest.param("peps.txt/31TCJ.log", id="below a file"),
        pytest.param("/proc/31TCJ.log", id="folder read-only"),
    ],
)
def test_log_that_cannot_be_written_stops_the_order(run, peps, log):
    """Nothing is sent while the log is not provably writable."""
    result = run("full_maja_process", "-t", "31TCJ", *SHORT, "-l", log, status=2)
    assert only_line(result).startswith("full_maja_process.py: ")
    assert peps.journal == []


def test_full_disk_stops_the_order(launch, peps):
    """Room for the answer is proven before the order; a limit of 1000 bytes a file stands for the full disk."""
    resource = pytest.importorskip("resource")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    process = launch("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log", preexec_fn=limit)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert len(err.splitlines()) == 1
    assert "31TCJ.log" in err
    assert peps.journal == []


def test_file_that_is_no_log_is_not_overwritten(run, peps, folder):
    """A file that somebody needs is not lost to a slip in -l."""
    (folder / "thesis.tex").write_text("\\documentclass{book}")
    run("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "thesis.tex", status=2)
    assert (folder / "thesis.tex").read_text() == "\\documentclass{book}"
    assert peps.journal == []


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(cut(None), id="closed before the head"),
        pytest.param(reset(None), id="reset before the head"),
        pytest.param(cut(0), id="closed after the head"),
        pytest.param(cut(200), id="closed in the body"),
        pytest.param(reset(200), id="reset in the body"),
    ],
)
def test_lost_answer_is_not_asked_for_again(run, peps, folder, fault):
    """An order that may have arrived is sent once, whatever becomes of its answer, and the doubt is said."""
    peps.faults.append((EXECUTE, fault))
    result = run("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log", status=1)
    assert "may have been accepted" in only_line(result)
    assert len(peps.journal) == 1
    assert not (folder / "31TCJ.log").exists()


def test_order_that_never_left_can_be_repeated(run, folder):
    """Where no connection is made nothing was ordered: status 75, and no doubt is cast."""
    result = run("full_maja_process", "-t", "31TCJ", *SHORT, "--server", closed_port(), status=75)
    line = only_line(result)
    assert "127.0.0.1" in line
    assert "may have been accepted" not in line
    assert sorted(path.name for path in folder.iterdir()) == ["peps.txt"]


@pytest.mark.parametrize("code", [429, 503])
def test_busy_service_is_asked_once(run, peps, folder, code):
    """A service that is out of order gets one order, and the user the status for later."""
    peps.always.append((EXECUTE, status(code, {"Retry-After": "0"})))
    result = run("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log", status=75)
    assert str(code) in only_line(result)
    assert len(peps.journal) == 1
    assert not (folder / "31TCJ.log").exists()
    peps.always.clear()
    order(run)


def test_wrong_password_is_refused(run, peps, account):
    """401 is for good, and neither the password nor any of its words is echoed."""
    account.write_text("jean.dupont@example.org wrong-secret")
    result = run("full_maja_process", "-t", "31TCJ", *SHORT, status=1)
    assert "401" in only_line(result)
    assert "wrong-secret" not in result.out + result.err
    assert len(peps.journal) == 1


PROCESS_FAILED = (
    b'<wps:ExecuteResponse xmlns:wps="http://www.opengis.net/wps/1.0.0" xmlns:ows="http://www.opengis.net/ows/1.1" '
    b'statusLocation="http://127.0.0.1:1/wps/outputs/1.xml"><wps:Status><wps:ProcessFailed><ows:ExceptionReport>'
    b"<ows:Exception><ows:ExceptionText>tile 31TCJ is locked</ows:ExceptionText></ows:Exception>"
    b"</ows:ExceptionReport></wps:ProcessFailed></wps:Status></wps:ExecuteResponse>"
)
REFUSALS = [
    pytest.param(status(200, body=PROCESS_FAILED), id="ProcessFailed"),
    pytest.param(status(200, body=b'{"ErrorCode": 400, "ErrorMessage": "tile 31TCJ is locked"}'), id="JSON, 200"),
    pytest.param(status(400, body=b'{"ErrorCode": 400, "ErrorMessage": "tile 31TCJ is locked"}'), id="JSON, 400"),
    pytest.param(lambda handler: handler.peps.refuse.update({"31TCJ": "tile 31TCJ is locked"}), id="ExceptionReport"),
]


@pytest.mark.parametrize("fault", REFUSALS)
def test_refused_order_tells_the_services_reason(run, peps, folder, fault):
    """A refusal in any form is status 1 with the service's words, and leaves the log's name free."""
    peps.faults.append((EXECUTE, fault))
    result = run("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log", status=1)
    assert "tile 31TCJ is locked" in only_line(result)
    assert len(peps.journal) == 1
    peps.refuse.clear()
    order(run)
    assert list(peps.jobs)[-1] in (folder / "31TCJ.log").read_text()


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(b"<html><body>Maintenance</body></html>", id="page"),
        pytest.param(b"PEPS is resting", id="text"),
        pytest.param(b'<ExecuteResponse xmlns="http://www.opengis.net/wps/1.0.0"/>', id="no statusLocation"),
    ],
)
def test_answer_that_is_no_job_is_kept(run, peps, folder, document):
    """What cannot be followed is status 1; the answer is kept, as the order may have been accepted."""
    peps.faults.append((EXECUTE, status(200, body=document)))
    result = run("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log", status=1)
    assert "31TCJ.log" in only_line(result)
    assert (folder / "31TCJ.log").read_bytes() == document
    follow(run, status=2)
    assert len(peps.journal) == 1


@pytest.mark.parametrize("flag", ["-n", "--no_download", "--dry-run"])
def test_dry_run_shows_the_request_and_sends_nothing(run, peps, folder, flag):
    """What a dry run prints is what the order then sends; a log that holds a job does not matter to it."""
    shown = order(run, "31TCJ.log", "31TCJ", flag).out
    assert peps.journal == []
    assert not (folder / "31TCJ.log").exists()
    order(run)
    assert f"{peps.url}{WPS}?{orders(peps)[0].query}" in shown.split()
    assert order(run, "31TCJ.log", "31TCJ", flag).out == shown


# ---- how a job stands


def percentage(peps):
    """The percentage that the service gives for the only job."""
    return f"{peps.state(next(iter(peps.jobs)))[1]}%"


STATES = [
    pytest.param({"minutes": 0}, None, 75, "out", "waiting", id="waiting"),
    pytest.param({"minutes": 70}, None, 75, "out", "running", id="running"),
    pytest.param({"hours": 100}, None, 0, "out", "finished", id="finished"),
    pytest.param({"hours": 100}, ("ERROR", "no DTM for 31TCJ"), 1, "err", "no DTM for 31TCJ", id="failed"),
    pytest.param({"hours": 100}, ("CANCELED", "by the operator"), 1, "err", "by the operator", id="canceled"),
    pytest.param({"hours": 100}, ("ProcessFailed", "bad input"), 1, "err", "bad input", id="failed in the WPS"),
    pytest.param({"hours": 100}, ("SUSPENDED", ""), 75, "out", "SUSPENDED", id="unknown word"),
]


@pytest.mark.parametrize(("clock", "end", "expected", "stream", "words"), STATES)
def test_each_state_has_its_message_and_status(run, peps, clock, end, expected, stream, words):
    """How a job stands is said in words of its own, errors on stderr, and in the exit status."""
    if end:
        peps.ends["31TCJ"] = end
    order(run)
    peps.advance(**clock)
    result = follow(run, status=expected)
    assert any("31TCJ.log" in line and words in line for line in getattr(result, stream).splitlines()), result
    assert products_in(".") == (clear_products(EXPECTED) if expected == 0 else set())


def test_states_read_differently(run, peps):
    """No two states are told with the same words."""
    told = []
    for number, state in enumerate(STATES):
        clock, end, expected, stream, _ = state.values
        peps.ends["31TCJ"] = end or ("FINISHED", "")
        order(run, f"{number}.log")
        peps.advance(**clock)
        result = follow(run, f"{number}.log", status=expected)
        told.append(getattr(result, stream).splitlines()[0].partition(".log")[2])
    assert len(set(told)) == len(STATES)


def test_running_job_shows_the_services_percentage(run, peps):
    """The percentage is the service's, said to be optimistic, with the time that a job usually takes."""
    order(run)
    peps.advance(minutes=70)
    line = follow(run, status=75).out.splitlines()[0]
    assert percentage(peps) in line
    assert re.search("optimistic|exaggerat", line)
    assert "25 min" in line


def test_waiting_job_says_why(run):
    """A waiting job is told with both reasons that there are."""
    order(run)
    line = follow(run, status=75).out.splitlines()[0]
    assert "busy" in line
    assert re.search(r"\b(ten|10)\b", line)


def test_job_without_a_report_yet_is_waiting(run, peps):
    """A job that was only just accepted has no report to ask for."""
    peps.handover_s = 3600
    order(run)
    assert "waiting" in follow(run, status=75).out
    assert peps.requests("report") == []


@pytest.mark.parametrize("document", [PROCESS_FAILED, b"<html>no</html>", b"", b'{"USER_INFO": 7}'])
def test_odd_report_is_not_taken_for_finished(run, peps, document):
    """What is no report ends neither in a traceback nor in a success."""
    order(run)
    peps.advance(hours=100)
    peps.always.append(("report.json", status(200, body=document, content_type="application/json")))
    assert follow(run, status=75).status == 75


def test_job_that_is_gone_must_be_ordered_again(run, peps):
    """404 on the status document means that the service does not keep jobs for ever."""
    order(run)
    peps.forget(next(iter(peps.jobs)))
    line = only_line(follow(run, status=1))
    assert "31TCJ.log" in line
    assert "404" in line
    assert "order" in line


def test_service_out_of_order_names_host_and_tries(run, peps):
    """After all retries the line says which host did not answer and how often it was tried, and nothing is lost."""
    order(run)
    log = Path("31TCJ.log").read_bytes()
    peps.always.append((OUTPUTS, status(503)))
    line = only_line(follow(run, status=75))
    tries = len(peps.requests(OUTPUTS))
    assert tries > 1
    assert "127.0.0.1" in line
    assert f"{tries} times" in line
    assert Path("31TCJ.log").read_bytes() == log


@pytest.mark.parametrize("fault", [cut(None), cut(20), reset(10), status(503), status(429, {"Retry-After": "0"})])
def test_passing_fault_is_not_noticed(run, peps, fault):
    """One broken answer to each kind of request is made good by another try."""
    order(run)
    peps.advance(hours=100)
    peps.faults += [(".xml", fault), (REFRESH, fault), ("report.json", fault)]
    result = follow(run)
    assert result.err == ""
    assert products_in(".") == clear_products(EXPECTED)


def test_follow_up_asks_in_the_documented_order(run, peps):
    """Status document, refresh, report: the report is read after it was brought up to date."""
    order(run)
    peps.journal.clear()
    follow(run, status=75)
    job_id = next(iter(peps.jobs))
    assert [request.target for request in peps.journal] == [
        f"{OUTPUTS}{job_id}.xml",
        f"{WPS}?request=execute&service=WPS&version=1.0.0&identifier=PROCESSING_STATUS&datainputs=wps_id={job_id}"
        "&status=false&storeExecuteResponse=false",
        f"{OUTPUTS}{job_id}/report.json",
    ]


def test_log_of_an_older_script_is_followed(run, peps, folder):
    """A PyWPS 3 answer, another prefix, xlink:href: the job id is the number after `pywps-`."""
    location = f"{peps.url}/old/pywps-154901234567.xml"
    answer = (
        '<ns0:ExecuteResponse xmlns:ns0="http://www.opengis.net/wps/1.0.0" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'statusLocation="{location}"><ns0:Status creationTime="2019-02-01T10:00:00Z">'
        "<ns0:{0}</ns0:Status>{1}</ns0:ExecuteResponse>"
    )
    output = (
        "<ns0:ProcessOutputs><ns0:Output><ns0:Reference "
        f'xlink:href="{peps.url}/old/report.json"/></ns0:Output></ns0:ProcessOutputs>'
    )
    succeeded = answer.format("ProcessSucceeded>done</ns0:ProcessSucceeded>", output)
    report = b'{"USER_INFO": {"job_status": "STALLED", "process": "37%"}}'
    (folder / "old.log").write_text(answer.format("ProcessAccepted/>", ""))
    peps.always += [
        ("pywps-154901234567.xml", status(200, body=succeeded.encode(), content_type="text/xml")),
        ("/old/report.json", status(200, body=report, content_type="application/json")),
    ]
    assert "37%" in follow(run, "old.log", status=75).out
    assert len(peps.requests(f"{REFRESH}&datainputs=wps_id=154901234567&")) == 1


# ---- what is left on disk, and what it spares


def test_status_document_and_report_stand_beside_the_log(run, peps, folder):
    """X.stat and X.json are the service's documents byte for byte, and only the suffix differs from the log's name."""
    (folder / "a.log.d").mkdir()
    for log, name in (("31TCJ.log", "31TCJ"), ("a.log.d/job", "a.log.d/job")):
        order(run, log)
        job_id = list(peps.jobs)[-1]
        follow(run, log, status=75)
        assert (folder / f"{name}.stat").read_bytes() == peps.output(f"{job_id}.xml")
        assert (folder / f"{name}.json").read_bytes() == peps.output(f"{job_id}/report.json")
    assert [path.name for path in folder.rglob("*.part")] == []


def test_finished_job_costs_no_request(run, peps):
    """When every product is on disk the files alone settle the job, in silence or not."""
    order(run)
    peps.advance(hours=100)
    follow(run)
    peps.journal.clear()
    assert "finished" in follow(run).out
    assert peps.journal == []


def test_finished_job_is_settled_offline(run, peps):
    """Without a service it is settled as well."""
    order(run)
    peps.advance(hours=100)
    follow(run)
    result = follow(run, more=("--server", closed_port()))
    assert (result.err, "finished" in result.out) == ("", True)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.unlink(), id="deleted"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-30]), id="cut short"),
    ],
)
def test_product_that_is_missing_is_fetched_alone(run, peps, spoil):
    """A product that was deleted or damaged comes again, and no other one does."""
    order(run)
    peps.advance(hours=100)
    follow(run)
    name, before = sorted(products_in("."))[0], peps.sent.copy()
    spoil(Path(name))
    follow(run)
    assert Path(name).read_bytes() == make_product(name, peps.product_size)
    assert [Path(path).name for path in peps.sent - before if path.endswith(".zip")] == [name]


def test_three_hundred_finished_jobs_cost_no_request(run, peps, folder):
    """A season's worth of finished jobs is settled without the service."""
    (folder / "product.zip").write_bytes(make_product("product.zip", 3000))
    report = {"USER_INFO": {"job_status": "FINISHED", "results": [f"{peps.url}/product.zip"]}}
    for number in range(300):
        location = f"{peps.url}{OUTPUTS}{number}.xml"
        answer = f'<ExecuteResponse xmlns="http://www.opengis.net/wps/1.0.0" statusLocation="{location}"/>'
        (folder / f"{number}.log").write_text(answer)
        (folder / f"{number}.stat").write_text(answer)
        (folder / f"{number}.json").write_text(json.dumps(report))
    result = follow(run, *sorted(folder.glob("*.log")))
    assert peps.journal == []
    assert "300 finished" in result.out.splitlines()[-1]


def test_renamed_log_is_asked_anew(run, peps, folder):
    """The report of another job, which the old name left behind, does not speak for a log that took its place."""
    order(run, "a.log")
    peps.advance(hours=100)
    follow(run, "a.log")
    order(run, "b.log")
    os.replace("b.log", "a.log")
    assert "waiting" in follow(run, "a.log", status=75).out


def test_job_ordered_anew_is_asked_anew(run, peps):
    """After --force the old report does not count."""
    order(run)
    peps.advance(hours=100)
    follow(run)
    order(run, "31TCJ.log", "31TCJ", "--force")
    assert "waiting" in follow(run, status=75).out


# ---- several jobs in one command


def test_several_logs_each_to_its_end(run, peps, folder):
    """A bad log, a failed, a running and a finished job: each is named with its reason, and the worst status wins."""
    peps.ends["30TYP"] = ("ERROR", "tape robot on fire")
    order(run, "a.log")
    order(run, "b.log", "30TYP")
    peps.advance(hours=100)
    order(run, "c.log", "32TLP")
    (folder / "bad.log").write_text("not a log")
    result = follow(run, "bad.log", "a.log", "b.log", "c.log", "gone.log", status=1)
    for name, words in (("bad.log", "bad.log"), ("b.log", "tape robot on fire"), ("gone.log", "No such file")):
        assert any(name in line and words in line for line in result.err.splitlines())
    assert any("c.log" in line and "waiting" in line for line in result.out.splitlines())
    assert products_in(".") == clear_products(EXPECTED)


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        pytest.param(["done.log", "waiting.log"], 75, id="75 over 0"),
        pytest.param(["waiting.log", "failed.log", "done.log"], 1, id="1 over 75"),
        pytest.param(["done.log", "bad.log"], 2, id="2 over 0"),
        pytest.param(["bad.log", "failed.log"], 1, id="1 over 2"),
    ],
)
def test_worst_status_wins(run, peps, folder, logs, expected):
    """A person is called when one is needed, whatever the other jobs do."""
    peps.ends["30TYP"] = ("ERROR", "")
    order(run, "done.log")
    order(run, "failed.log", "30TYP")
    peps.advance(hours=100)
    order(run, "waiting.log", "32TLP")
    (folder / "bad.log").write_text("not a log")
    follow(run, *logs, status=expected)


def test_same_log_twice_is_one_job(run, peps):
    """A shell pattern that meets a log twice asks for it once."""
    order(run)
    result = follow(run, "31TCJ.log", "./31TCJ.log", os.path.abspath("31TCJ.log"), status=75)
    assert len(peps.requests(".xml")) == 1
    assert "1 waiting" in result.out.splitlines()[-1]


def test_sixty_jobs_are_asked_side_by_side(run, peps, folder, meeting):
    """Eight jobs are asked at once at least: the first eight answers wait for each other."""
    gather = meeting(8)
    for number in range(60):
        location = f"{peps.url}{OUTPUTS}{number}.xml"
        (folder / f"{number}.log").write_text(
            f'<ExecuteResponse xmlns="http://www.opengis.net/wps/1.0.0" statusLocation="{location}"/>'
        )
    waiting = b'<ExecuteResponse xmlns="http://www.opengis.net/wps/1.0.0"/>'
    peps.always += [(".xml", gather), (".xml", status(200, body=waiting, content_type="text/xml"))]
    result = follow(run, *sorted(folder.glob("*.log")), status=75)
    assert not gather.barrier.broken
    assert len(peps.requests(".xml")) == 60
    assert "60 waiting" in result.out.splitlines()[-1]


def test_products_of_several_jobs_share_one_pool(run, peps, meeting):
    """-j 3 fetches three products at once, though each job has but one."""
    gather = meeting(3)
    for number in range(3):
        order(run, f"{number}.log")
        job_id = list(peps.jobs)[-1]
        peps.results[job_id] = [f"{peps.url}/cgi-bin/mapcache_results/maja/{job_id}/product{number}.zip"]
    peps.advance(hours=100)
    peps.always.append(("/maja/", lambda handler: handler.command == "GET" and gather(handler)))
    follow(run, "0.log", "1.log", "2.log", more=("-j", 3))
    assert not gather.barrier.broken
    assert products_in(".") == {"product0.zip", "product1.zip", "product2.zip"}


# ---- cloudy, lost and missing


def test_cloudy_dates_are_counted_and_not_asked_for(run, peps):
    """A NOVALD result is named as too cloudy; there is no product behind it to ask for."""
    cloudy = [seen for seen in EXPECTED if seen.cloudy]
    assert cloudy, "the story needs a cloudy date"
    order(run)
    peps.advance(hours=100)
    result = follow(run)
    assert f"{len(cloudy)} too cloudy" in result.out.splitlines()[-1]
    assert peps.requests("NOVALD") == []
    assert products_in(".") == clear_products(EXPECTED)


@pytest.mark.parametrize("form", ["number", "text", "names"])
def test_lost_dates_are_a_warning(run, peps, form):
    """What was not processed is counted, listed as far as it is named, and no reason to run again."""
    lost = EXPECTED[3:5]
    peps.unprocessed_as, peps.lost = form, {seen.l1c for seen in lost}
    order(run)
    peps.advance(hours=100)
    line = only_line(follow(run))
    assert "warning" in line
    assert re.search(r"\b2\b", line)
    assert "31TCJ.json" in line
    assert all((seen.l1c in line) == (form == "names") for seen in lost)


def named_in(lines, seen):
    """Whether a line names an acquisition by platform, date and tile."""
    day = f"{seen.day[:4]}-{seen.day[4:6]}-{seen.day[6:]}"
    return any(seen.l1c[:3] in line and day in line and seen.tile in line for line in lines)


def test_missing_acquisitions_are_exactly_the_lost_ones(run, peps, folder):
    """Comparing the catalogue's list with the results names what was lost, and no cloudy date."""
    lost = [seen for seen in EXPECTED if not seen.cloudy][::4]
    peps.lost = {seen.l1c for seen in lost}
    result = order(run, "31TCJ.log", "31TCJ", "--json", "list.json")
    days = len({seen.day for seen in EXPECTED})
    assert re.search(rf"\b{days} dates", result.out)
    peps.advance(hours=100)
    result = follow(run, more=("--json", "list.json"))
    assert [seen.l1c for seen in EXPECTED if named_in(result.err.splitlines(), seen)] == [seen.l1c for seen in lost]
    assert f"{len(lost)} missing" in result.out.splitlines()[-1]


def test_list_holds_the_merged_answer_of_the_catalogue(run, peps, folder):
    """The list is a FeatureCollection of the products that the job covers, of its orbit alone if it has one."""
    order(run, "31TCJ.log", "31TCJ", "-o", "51", "--json", "list.json")
    saved = json.loads((folder / "list.json").read_text())
    assert saved["type"] == "FeatureCollection"
    assert {feature["properties"]["productIdentifier"] for feature in saved["features"]} == {
        seen.l1c for seen in EXPECTED if "_R051_" in seen.l1c
    }


def test_missing_dates_wait_for_the_last_job(run, peps):
    """While a job runs nothing is called missing."""
    order(run, "31TCJ.log", "31TCJ", "--json", "list.json")
    result = follow(run, status=75, more=("--json", "list.json"))
    assert not any(named_in(result.err.splitlines(), seen) for seen in EXPECTED)


@pytest.mark.parametrize(
    "text", [pytest.param(None, id="missing"), pytest.param("{", id="half"), pytest.param("[1]", id="no collection")]
)
def test_bad_list_is_said_before_anything_is_asked(run, peps, folder, text):
    """A list that cannot be read is a slip of the command line."""
    order(run)
    peps.journal.clear()
    if text is not None:
        (folder / "list.json").write_text(text)
    assert "list.json" in only_line(follow(run, status=2, more=("--json", "list.json")))
    assert peps.journal == []


# ---- waiting, quiet and loud


def test_wait_stays_until_the_job_has_ended(run, peps):
    """--wait lives through waiting, an outage and running, and says each change once."""
    out_of_order = status(503)
    outage = [out_of_order] * 12  # enough for two looks at the service, whatever the tries of a look
    start = [lambda handler: handler.peps.advance(minutes=70)]
    finish = [lambda handler: handler.peps.advance(hours=100)]
    look = [lambda handler: False]
    steps = iter(look * 3 + outage + start + look * 2 + finish)
    peps.always.append((".xml", lambda handler: bool(next(steps)(handler))))
    order(run)
    result = follow(run, more=("--wait", "--interval", "0.001"))
    assert re.findall(r"^31TCJ\.log: (waiting|running|finished)", result.out, re.MULTILINE) == [
        "waiting",
        "running",
        "finished",
    ]
    assert "503" in only_line(result)
    assert next(steps, None) is None
    assert products_in(".") == clear_products(EXPECTED)


def test_wait_downloads_what_finishes_meanwhile(launch, peps, run):
    """A job's products are on disk before another job has ended."""
    order(run, "a.log")
    order(run, "b.log", "32TLP")
    peps.ends["32TLP"] = ("STALLED", "")
    peps.advance(hours=100)
    process = launch("full_maja_download", "-l", "a.log", "b.log", "--wait", "--interval", "0.001")
    late = list(peps.jobs)[-1]
    # Two looks after the last product: the first of them may have begun before it.
    peps.wait_for(lambda: {Path(path).name for path in peps.sent} >= clear_products(EXPECTED))
    looks = len(peps.requests(f"{late}.xml"))
    peps.wait_for(lambda: len(peps.requests(f"{late}.xml")) >= looks + 2)
    assert products_in(".") == clear_products(EXPECTED)
    peps.ends["32TLP"] = ("FINISHED", "")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert "2 finished" in out.splitlines()[-1]


def test_interrupt_ends_the_wait(run, launch, peps):
    """Ctrl-C ends a waiting run at once, with its status and without a traceback."""
    order(run)
    process = launch("full_maja_download", "-l", "31TCJ.log", "--wait")
    peps.wait_for(lambda: peps.requests("report.json"))
    process.stdout.readline()  # how the job stands, so the look is over
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_quiet_is_silent_unless_there_is_news(run, peps):
    """With -q a look without news prints nothing, a job's end does, and the next look is silent again."""
    order(run)
    assert follow(run, status=75, more=("-q",))[1:] == ("", "")
    peps.advance(minutes=70)
    assert follow(run, status=75, more=("-q",))[1:] == ("", "")
    peps.advance(hours=100)
    assert "finished" in follow(run, more=("-q",)).out
    assert follow(run, more=("-q",))[1:] == ("", "")


def test_quiet_order_prints_nothing(run, peps):
    """An order is what was asked for, not news; its log tells the rest."""
    assert order(run, "31TCJ.log", "31TCJ", "-q")[1:] == ("", "")
    assert len(peps.jobs) == 1


def test_errors_speak_in_spite_of_quiet(run, peps):
    """-q does not hide what a person must know."""
    peps.ends["31TCJ"] = ("ERROR", "no DTM for 31TCJ")
    order(run)
    peps.advance(hours=100)
    assert "no DTM for 31TCJ" in follow(run, status=1, more=("-q",)).err


def test_last_line_sums_up(run, peps):
    """Jobs by state, then products downloaded, on disk, too cloudy, missing and failed."""
    order(run, "a.log")
    order(run, "b.log", "32TLP")
    peps.ends["32TLP"] = ("CANCELED", "")
    peps.lost = {next(seen.l1c for seen in EXPECTED if not seen.cloudy)}
    peps.advance(hours=100)
    cloudy = sum(seen.cloudy for seen in EXPECTED)
    brought = len(EXPECTED) - cloudy - 1
    first = follow(run, "a.log", "b.log", status=1).out.splitlines()[-1]
    again = follow(run, "a.log", "b.log", status=1).out.splitlines()[-1]
    for line, downloaded, there in ((first, brought, 0), (again, 0, brought)):
        for words in ("1 finished", "1 canceled", f"{downloaded} downloaded", f"{there} on disk",
                      f"{cloudy} too cloudy", "1 missing", "0 failed"):  # fmt: skip
            assert re.search(rf"\b{words}\b", line), line


def test_terminal_shows_a_bar_below_clean_lines(run, terminal, peps):
    """The bar counts bytes, rate and products, and each line stands above it, unmixed."""
    order(run)
    peps.advance(hours=100)
    pytest.importorskip("tqdm")
    shown = terminal("full_maja_download", "-l", "31TCJ.log")
    count = len(clear_products(EXPECTED))
    assert f"{count}/{count} products" in shown
    assert "B/s]" in shown
    lines = [line.rpartition("\r")[2] for line in shown.splitlines()]
    for name in clear_products(EXPECTED):
        assert any(name in line and "%|" not in line for line in lines), shown


def test_quiet_shows_no_bar_on_a_terminal(run, terminal, peps):
    """-q is for runs that nobody looks at."""
    order(run)
    peps.advance(hours=100)
    assert "%|" not in terminal("full_maja_download", "-q", "-l", "31TCJ.log")


def test_pipe_gets_a_line_a_product_and_no_bar(run, launch, peps):
    """Without a terminal there is a line a product, with its size and rate."""
    order(run)
    peps.advance(hours=100)
    out, err = launch("full_maja_download", "-l", "31TCJ.log").communicate(timeout=30)
    assert err == ""
    assert "\r" not in out
    for name in clear_products(EXPECTED):
        assert re.search(rf"{re.escape(name)}.* kB .*B/s", out)


def test_reader_that_leaves_stops_no_download(run, launch, peps):
    """`| head -1` costs the lines and no product."""
    order(run)
    peps.advance(hours=100)
    process = launch("full_maja_download", "-l", "31TCJ.log")
    process.stdout.close()
    assert process.wait(30) == 0
    assert products_in(".") == clear_products(EXPECTED)


def test_host_of_the_journal_is_the_server(run, peps):
    """Every request of an order and its follow-up goes to the server that was named."""
    order(run)
    peps.advance(hours=100)
    follow(run)
    assert {request.host for request in peps.journal} == {urlsplit(peps.url).netloc}


# ---- what no second look may lose


def answer_of(job: str, where: str = "http://127.0.0.1:9/wps/outputs/{}.xml") -> bytes:
    """An accepted order, as short as it can be."""
    location = where.format(job)
    return (
        f'<w:ExecuteResponse xmlns:w="http://www.opengis.net/wps/1.0.0" statusLocation="{location}">'
        "<w:Status><w:ProcessAccepted/></w:Status></w:ExecuteResponse>"
    ).encode()


def test_answer_that_a_killed_run_left_unnamed_becomes_the_log(run, peps, folder):
    """Killed between the answer and its name, a run leaves the whole answer in the part file."""
    (folder / "31TCJ.log.part").write_bytes(answer_of("first"))
    result = run("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log", status=2)
    assert "job first" in result.err
    assert (folder / "31TCJ.log").read_bytes() == answer_of("first")
    assert not (folder / "31TCJ.log.part").exists()
    assert peps.journal == []


def test_unnamed_answer_does_not_displace_the_old_log(run, peps, folder):
    """With --force there were two jobs: both are kept."""
    (folder / "31TCJ.log").write_bytes(answer_of("old"))
    (folder / "31TCJ.log.part").write_bytes(answer_of("new"))
    run("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log", "--force", status=2)
    assert (folder / "31TCJ.log").read_bytes() == answer_of("new")
    assert (folder / "31TCJ.log.1").read_bytes() == answer_of("old")
    assert peps.journal == []


@pytest.mark.parametrize("log", ["logs", "."])
def test_folder_is_no_log_even_by_force(log, run, peps, folder):
    (folder / "logs").mkdir()
    run("full_maja_process", "-t", "31TCJ", *SHORT, "-l", log, "--force", status=2)
    assert peps.journal == []


@pytest.mark.parametrize("json_file", ["31TCJ.log", "31TCJ.stat", "31TCJ.json", "peps.txt", "./sub/../31TCJ.log"])
def test_list_never_takes_the_place_of_another_file(json_file, run, peps, folder):
    (folder / "sub").mkdir()
    (folder / "31TCJ.log").write_bytes(answer_of("old"))
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    result = run(
        "full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log", "--json", json_file, "--force", status=2
    )
    assert "another name" in result.err
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert peps.journal == []


def test_list_that_cannot_be_written_stops_before_anything_is_sent(run, peps):
    run("full_maja_process", "-t", "31TCJ", *SHORT, "--json", "no/such/list.json", status=2)
    assert peps.journal == []


def test_relative_status_location_is_followed_beside_the_server(run, peps, folder):
    """Any WPS may have answered; what holds a job is never ordered twice."""
    body = answer_of("here", "/wps/outputs/{}.xml")
    peps.faults.append(("identifier=FULL_MAJA", status(200, body=body, content_type="text/xml")))
    run("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log")
    run("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log", status=2)
    run("full_maja_download", "-l", "31TCJ.log", status=1)
    assert [request.path for request in peps.requests(OUTPUTS)] == ["/wps/outputs/here.xml"]


@pytest.mark.parametrize(
    ("code", "ends", "words"), [(503, 75, "later"), (401, 1, "account"), (500, 1, "may have been")]
)
def test_json_error_with_http_200_to_an_order_is_what_it_says(code, ends, words, run, peps, folder):
    body = json.dumps({"ErrorCode": code, "ErrorMessage": "no"}).encode()
    peps.faults.append(("identifier=FULL_MAJA", status(200, body=body, content_type="application/json")))
    result = run("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log", status=ends)
    assert words in result.err
    assert not (folder / "31TCJ.log").exists()


def test_an_error_of_the_service_with_words_is_still_only_for_now(run, peps, finished_job):
    """One hiccup of the service must not end a --wait."""
    finished_job()
    body = json.dumps({"ErrorCode": 500, "ErrorMessage": "database away"}).encode()
    peps.always.append((OUTPUTS, status(500, body=body, content_type="application/json")))
    result = run("full_maja_download", "-l", "31TCJ.log", status=75)
    assert "database away" in result.err


def test_report_that_is_not_there_is_no_reason_to_order_again(run, peps, finished_job):
    finished_job()
    peps.always.append(("report.json", status(404)))
    result = run("full_maja_download", "-l", "31TCJ.log", status=75)
    assert "order" not in result.err


def test_lengths_are_asked_in_vain_once(run, peps, finished_job, monkeypatch):
    """A server that does not answer HEAD holds the downloads up for one short timeout, not for one a product."""
    finished_job()
    monkeypatch.setattr(peps_common, "LENGTH_TIMEOUT_S", 0.2)
    stalled = hold(threading.Event(), None)
    peps.always.append(("/maja/", lambda handler: handler.command == "HEAD" and stalled(handler)))
    result = run("full_maja_download", "-l", "31TCJ.log", "-j", "2")
    assert len(peps.requests("/maja/", method="HEAD")) <= 2
    assert ", 0 failed, 0 left" in result.out
