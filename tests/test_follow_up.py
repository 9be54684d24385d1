"""How jobs stand: what is asked, what is said, what is kept, and what that spares."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from faulty_http import cut, endless, for_gets, stall, status
from local_peps import OUTPUTS, WPS, make_product
from stories import (
    NOBODY,
    answer,
    failed,
    json_document,
    json_error,
    last,
    lines_of,
    names_in,
    only_line,
    refusal,
    report_of,
    xml,
)

import full_maja_download
import peps_common

table = pytest.mark.parametrize
FOLLOW, SINGLES = "full_maja_download", "peps_maja_download"
L1C = "S2A_MSIL1C_20170704T105021_N0205_R051_T31TCJ_20170704T105605"
OLD_L1C = (
    "S2A_OPER_PRD_MSIL1C_PDMC_20160712T121910_R051_V20160712T105032_20160712T105032"
)
CLOUDY = "SENTINEL2A_20170704-105605-456_L2A_T31TCJ_D_V1-4_NOVALD.zip"
PACKED = {"Content-Encoding": "gzip"}
LOOKS = ("--wait", "--interval", "0.001")
STATUS, REPORT = f"{OUTPUTS}31TCJ.xml", f"{OUTPUTS}31TCJ/r.json"
REFRESH = (
    f"{WPS}?request=execute&service=WPS&version=1.0.0&identifier=PROCESSING_STATUS"
    "&datainputs=wps_id=31TCJ&status=false&storeExecuteResponse=false"
)


@pytest.fixture
def job(make_job):
    return make_job()


@pytest.fixture
def follow(run, job):
    """Follow this job, and what is named besides."""
    return partial(run, FOLLOW, *job.argv)


def report(word: str, results: object = (), **info: object):
    told = {"process": "37%", **info}
    return json_document(report_of(list(results), job_status=word, **told))


def says(job, word: str):
    """Let a job's report say something else."""
    job.hit(report(word), f"/{job.name}/r.json")


def write_logs(peps, count: int) -> list[object]:
    """The options that name so many jobs."""
    for number in range(count):
        place = f"{peps.url}{OUTPUTS}{number}.xml"
        Path(f"{number}.log").write_bytes(answer(place))
    return ["-l", *Path().glob("*.log")]


@table(("said", "ends", "words"), [
    ("PENDING", 75, "^31TCJ.log: waiting"),
    ("STALLED", 75, "^31TCJ.log: running, 37%"),
    ("FINISHED", 0, "^31TCJ.log: finished"),
    ("ERROR", 1, ".py: 31TCJ.log: failed.* no DTM.*31TCJ.json"),
    ("CANCELED", 1, ".py: 31TCJ.log: canceled.* no DTM.*31TCJ.json"),
    ("SUSPENDED", 75, ".py: warning: 31TCJ.log: .*SUSPENDED"),
    ("<ProcessPaused/>", 75, "^31TCJ.log: waiting"),
    ('<ProcessStarted percentCompleted="42"/>', 75, "^31TCJ.log: running, 42%"),
    ("<ProcessSucceeded/>", 75, "^31TCJ.log: .*without a report"),
    (failed("no DTM"), 1, ".py: 31TCJ.log: failed.* no DTM.*31TCJ.stat"),
])  # fmt: skip
def test_each_state_reads_differently(follow, job, said, ends, words):
    """What says it is kept byte for byte; with -q nothing but a trouble is said."""
    told = report_of([], job_status=said, process="37%", message="no DTM")
    place, kept, document = "r.json", "31TCJ.json", json.dumps(told).encode()
    if "<" in said:
        place, kept, document = ".xml", "31TCJ.stat", answer(f"{job.base}.xml", said)
    job.hit(status(200, body=document), place)
    loud, quiet = follow(status=ends), follow("-q", status=ends)
    assert re.search(words, loud.err if ".py" in words else loud.out)
    assert Path(kept).read_bytes() == document
    assert quiet.err == loud.err
    assert ends == 1 or not quiet.out


def test_a_message_is_not_called_optimistic(follow, job):
    job.hit(report("PENDING", message="ten tiles are before it"), "r.json")
    assert "optimistic" not in follow(status=75).out


def test_wait_says_what_is_new_until_the_job_has_ended(follow, job):
    """It is found waiting twice, then not at all, then running, and finished."""
    pending, outage = [report("PENDING")] * 2, [status(503)] * peps_common.TRIES
    stalled = (report("STALLED", process=f"{n}%") for n in (37, 37, 42))
    job.hit(for_gets(*pending, *outage, *stalled), "r.json")
    result = follow(*LOOKS)
    clock, later = r"20\d\d-\d\d-\d\d \d\d:\d\d", r"; next look at \d\d:\d\d\n"
    first, further = rf"running, 37% .*optimistic.*{later}", f"running, 42%{later}"
    lines = f"waiting{later}", first, further, "finished: 3 products.*\n"
    whole = "".join(f"{clock} 31TCJ.log: {line}" for line in lines)
    whole += rf"({clock} \[\d/3\] .*\n){{3}}{clock} 1 job finished.*\n"
    assert re.fullmatch(whole, result.out)
    assert re.fullmatch(f"{clock} .*503.*{later}", result.err)
    job.require_whole()


def test_wait_downloads_what_finishes_meanwhile(follow, job, make_job):
    """The second job ends only when the first one's products are on disk."""
    late, pending = make_job("late", count=0), report("PENDING")
    late.add("late.zip", make_product("late.zip", 9000))
    late.hit(lambda handler: len(job.on_disk()) < 3 and pending(handler), "late/r")
    out = follow("-l", "late.log", *LOOKS).out
    assert names_in(job.products) == {*job.bodies, "late.zip"}
    assert len(lines_of(out, "31TCJ.log: finished")) == 1


def test_wait_fetches_no_damaged_product_at_each_look(follow, job, make_job, peps):
    bad = make_job("bad", count=0)
    bad.add("bad.zip", job.bodies[job.first][:-9])
    looks, pending = itertools.count(), report("PENDING")
    job.hit(lambda handler: next(looks) < 5 and pending(handler), "31TCJ/r")
    follow("-l", "bad.log", *LOOKS, status=1)
    assert len(peps.requests("/bad.zip", "GET")) == 2


@table("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_two_looks(launch, job, number):
    says(job, "PENDING")
    process = launch(FOLLOW, *job.argv, "--wait")
    assert "next look at" in process.stdout.readline()
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number
    only_line(err, "interrupted")
    assert out.endswith(" 1 job waiting.\n")


BARE = answer("", "<ProcessSucceeded/>")


@table(("looks", "asked"), [
    ([], [STATUS, REFRESH, REPORT]),
    ([BARE], [STATUS, REFRESH, STATUS, REPORT]),
    ([BARE, BARE], [STATUS, REFRESH, STATUS]),
    ([answer("", failed("no DTM"))], [STATUS]),
], ids=["named", "named after the refresh", "not named", "failed"])  # fmt: skip
def test_what_is_asked_in_which_order(follow, peps, job, looks, asked):
    job.hit(for_gets(*map(xml, looks)), ".xml")
    follow("-n", status=None)
    assert [request.target for request in peps.requests(method="GET")] == asked


@table("fault", [
    status(500),
    json_error(401, http=401),
    cut(None),
    stall(),
    json_error(401),
    endless(b"HTTP/1.1 200 OK\r\n", b"x", 0.05),
], ids=["500", "401", "cut", "stalled", "JSON", "endless"])  # fmt: skip
def test_the_refresh_is_a_wish(follow, peps, job, fault, monkeypatch):
    """It is tried once, stops nothing, and is worth a line where the job goes on."""
    monkeypatch.setattr(peps_common, "TIMEOUTS_S", (5, 0.5))
    monkeypatch.setattr(full_maja_download, "REFRESH_PATIENCE_S", 1)
    job.hit(fault, WPS)
    job.hit(for_gets(report("PENDING")), "r.json")
    only_line(follow("-q", status=75), "31TCJ.log", "not refreshed")
    assert len(peps.requests(WPS)) == 1
    assert follow().err == ""
    job.require_whole()


FAULTS = {"no answer": cut(None), "cut": cut(20)}
for code in (404, 408, 425, 429, 500, 503, 520, 524):
    FAULTS[str(code)] = status(code)


@table("text", [".xml", "r.json"])
@table("fault", FAULTS)
def test_a_document_is_tried_five_times(follow, peps, job, text, fault):
    job.hit(FAULTS[fault], text)
    only_line(follow(status=75), "31TCJ.log", "127.0.0.1:", "later")
    assert len(peps.requests(text)) == 5
    job.mend()
    peps.faults.append((text, FAULTS[fault]))
    assert follow().err == ""
    job.require_whole()


@table(("text", "fault", "ends", "words"), [
    (".xml", status(404), 1, "404.* order again.*--force.*gone"),
    ("r.json", status(404), 75, "404"),
    (".xml", status(202), 75, "202"),
    (".xml", xml(refusal("too much at work", "ServerBusy")), 75, "too much at work"),
    (".xml", json_error(503), 75, "503"),
    ("r.json", json_error(403), 1, "403.*Unauthorized"),
    (".xml", json_error(401), 1, "401.*Unauthorized.*peps.txt"),
    (".xml", status(200, body=b"<html>Maintenance</html>"), 75, "page"),
])  # fmt: skip
def test_what_an_answer_means_for_an_old_job(follow, job, text, fault, ends, words):
    os.utime(job.log, (0, 0))
    job.hit(fault, text)
    result = follow(status=ends)
    line = only_line(result, "31TCJ.log", "127.0.0.1:") + last(result)
    assert re.search(words, line)
    assert ("later" in line) == (ends == 75)
    assert "failed" not in line


OTHER = b'<Reference href="other.txt"/>'
CHANGES = {
    "the last Reference": (b"<Ref", OTHER + b"<Ref"),
    "the one of JSON": (b"<Ref(.*?>)", rb"<Reference mimeType='text/json' \1" + OTHER),
    "a bare &": (b"r.json", b"r.json?a&b"),
    "a prefix without namespace": (b"<Exec", b"<wps:Exec"),
    "words before the root": (b"^", b"Notice: old\n"),
    "no end": (b".{40}$", b""),
}


@table("change", CHANGES)
def test_a_document_is_read_all_the_same(follow, job, change):
    document = answer(f"{job.base}.xml", "<ProcessSucceeded/>", f"{job.base}/r.json")
    job.hit(xml(re.sub(*CHANGES[change], document)), ".xml")
    follow()
    job.require_whole()


def test_gzip_that_nobody_asked_for_is_undone(follow, job):
    document = answer(f"{job.base}.xml", "<ProcessSucceeded/>", f"{job.base}/r.json")
    job.hit(status(200, PACKED, gzip.compress(document)), ".xml")
    follow()
    job.require_whole()


@table(("fault", "word"), [
    (xml(b"<!DOCTYPE a []>" + BARE), "DTD"),
    (xml(BARE + b" " * 2**21), " MB"),
    (status(200, PACKED, gzip.compress(BARE + b" " * 2**24)), " MB"),
])  # fmt: skip
def test_a_document_that_is_refused(follow, job, make_job, fault, word):
    """The other job goes on."""
    make_job("a", count=0).hit(fault, "/a.xml")
    only_line(follow("-l", "a.log", status=1), "a.log", word, "refused")
    assert job.on_disk() == job.bodies


@table("content", [
    "{place}\n", "\ufeff{place}", "{alias}", "\ufeff{ours}", "{other}\n{ours}",
])  # fmt: skip
def test_an_odd_log_is_followed(follow, job, content):
    place = f"{job.base}.xml"
    other, ours = (answer(url).decode() for url in (f"{NOBODY}/a.xml", place))
    named = {"place": place, "alias": place.replace("127.0.0.1", "localhost")}
    job.log.write_text(content.format(**named, ours=ours, other=other), "utf-8")
    follow()
    job.require_whole()
    asked = len(job.peps.journal)
    follow()
    assert len(job.peps.journal) == asked


def test_a_job_may_be_named_by_the_query_alone(follow, job):
    for number in (1, 2):
        place = f"{job.base}.xml?id={number}"
        job.log.write_bytes(answer(place))
        job.hit(xml(answer(place, "<ProcessSucceeded/>", f"{job.base}/r.json")), ".xml")
        follow(status=75 * (number - 1))
        says(job, "PENDING")


def test_what_a_running_job_names_is_no_result(follow, job):
    job.hit(report("STALLED", "none yet"), "r.json")
    result = follow(status=75)
    assert (last(result), result.err) == ("1 job running.", "")


def test_a_log_of_the_older_scripts_is_followed(follow, peps, job):
    """PyWPS 3: a number for the id, places without a host, and xlink:href."""
    place = "/old/pywps-154901234567.xml"
    named = answer(place, "<ProcessSucceeded/>", "r.json")
    job.log.write_bytes(answer(place))
    job.hit(xml(named.replace(b" href", b" xlink:href")), place)
    job.hit(report("STALLED"), "/old/r.json")
    assert "running, 37%" in follow(status=75).out
    assert peps.requests(REFRESH.replace("31TCJ", "154901234567"))
    job.hit(json_document(report_of(job.results)), "/old/r.json")
    follow()
    assert job.on_disk() == job.bodies


def test_a_log_of_another_servers_domain(follow, peps, job):
    says(job, "PENDING")
    other = peps.url.replace("127.0.0.1", "localhost")
    result = follow("-q", "--server", other, status=75)
    only_line(result, "warning", "31TCJ.log", "--server", peps.url[7:], other[7:])
    assert not peps.requests(WPS)


def test_documents_stand_beside_a_log_of_any_name(run, job):
    Path("logs.log").mkdir()
    run(FOLLOW, "-l", job.log.rename("logs.log/job"))
    assert names_in("logs.log") == {"job", "job.stat", "job.json"}


def test_documents_that_cannot_be_kept_are_a_warning(follow, job, monkeypatch):
    def refuse(source, target, replace=os.replace):
        if ".zip" not in str(target):
            raise PermissionError(13, "Permission denied", target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    only_line(follow(), "warning", "kept in", "Permission denied")
    assert job.on_disk() == job.bodies


@table(("more", "said"), [
    ("", "all on disk"),
    ("-q", "^$"),
    ("--check", "3 read, none damaged"),
    (f"--server {NOBODY}", "all on disk"),
])  # fmt: skip
def test_a_finished_job_costs_no_request(follow, peps, more, said):
    """Not even where a page was kept for its status document."""
    assert "1 job finished" in follow("-q").out
    Path("31TCJ.stat").write_text("<html>")
    peps.journal.clear()
    result = follow(*more.split())
    assert (peps.journal, result.err) == ([], "")
    assert re.search(said, result.out)


def test_a_report_speaks_for_its_own_job_alone(follow, job):
    follow()
    job.hit(status(404), "r.json")
    Path("31TCJ.stat").write_bytes(answer(f"{NOBODY}/other.xml"))
    follow(status=75)
    follow(status=75)  # by now its own status document stands beside the report


def test_a_finished_job_without_results_is_asked_again(run, make_job):
    job = make_job(count=0)
    run(FOLLOW, *job.argv, *LOOKS)
    job.add("a.zip", make_product("a.zip", 9000))
    run(FOLLOW, *job.argv)
    assert names_in(job.products) == {"a.zip"}


@table(("code", "ends"), [(503, 75), (404, 1)])
def test_known_products_are_checked_without_the_service(follow, job, code, ends):
    follow()
    os.utime(job.log, (0, 0))
    (job.products / job.first).write_bytes(b"PK")
    job.hit(status(code), ".xml")
    result = follow("--check", status=ends)
    assert "3 read, 1 damaged" in result.out
    assert re.search("2 (products )?on disk before", last(result))


def test_what_a_vanished_job_brought_comes_as_long_as_it_is_there(follow, job):
    follow()
    os.utime(job.log, (0, 0))
    (job.products / job.first).unlink()
    job.hit(status(404), ".xml")
    only_line(follow(status=1).err, "31TCJ.log", "404")
    job.require_whole()


@table(("argv", "ends", "words"), [
    ("none.log failed.log", 1, "1 job finished, 1 without a usable log, 1 failed. 3 "),
    ("peps.txt --log=waits.log", 2, "1 job finished, 1 without a usable log, 1 wait"),
    ("waits.log -l ./waits.log waits.log", 75, "1 job finished, 1 waiting. 3 "),
])  # fmt: skip
def test_several_logs_each_to_its_end(follow, make_job, argv, ends, words):
    """The worst status wins, and a log that is named twice is one."""
    says(make_job("waits"), "PENDING")
    says(make_job("failed"), "ERROR")
    assert last(follow("-l", *argv.split(), status=ends)).startswith(words)


def test_eight_jobs_are_asked_side_by_side(run, peps):
    barrier = threading.Barrier(8)
    peps.always += [(".xml", lambda handler: barrier.wait(20) < 0), ("", xml(BARE))]
    run(FOLLOW, *write_logs(peps, 8), status=75)
    assert not barrier.broken


@table(("text", "fault", "ends", "words", "most"), [
    ("", status(401), 1, "62 jobs: .*refused.*401.*peps.txt", 8),
    ("", status(503), 75, "62 jobs: 127.*503.*later", 62 * 5),
    ("", cut(None), 75, "62 jobs: 127.*later", 11 * 5),
    (WPS, status(500), 75, "62 jobs: .*500", 62 * 3),
])  # fmt: skip
def test_one_reason_is_one_line(run, peps, text, fault, ends, words, most):
    """A host is given up after four things without an answer, and seven under way."""
    peps.always += [(text, fault), ("", xml(answer()))]
    result = run(FOLLOW, *write_logs(peps, 62), status=ends)
    assert re.search(words, only_line(result))
    assert len(peps.journal) <= most


@table("there", [True, False])
def test_a_single_product(run, make_job, there):
    """A NOVALD zip is fetched where there is one; the documents' names differ."""
    job = make_job(L1C, count=0)
    job.add(CLOUDY, make_product(CLOUDY, 9000))
    Path("list.txt").write_text(L1C)
    if not there:
        job.hit(status(404), CLOUDY)
    result = run(SINGLES, "-p", "list.txt")
    assert ("too cloudy" in last(result), Path(CLOUDY).exists()) == (not there, there)
    assert b"Succeeded" in Path(f"update_{L1C}.txt").read_bytes()
    assert b"FINISHED" in Path(f"{L1C}.stat").read_bytes()


@table(("lost", "words"), [
    (2, "save.*--json"), ("2", "save.*--json"), (["S2A_a", "S2B_b"], "S2A_a, S2B_b$"),
])  # fmt: skip
def test_lost_dates_are_a_warning(follow, job, lost, words):
    job.hit(report("FINISHED", job.results, unprocessed=lost), "r.json")
    line = only_line(follow(), "warning", "31TCJ.log", "2 dates lost")
    assert re.search(words, line)


def test_a_list_names_exactly_the_missing_acquisitions(follow, job):
    """The products are of the first three days, the fourth is too cloudy."""
    job.add(CLOUDY, b"")
    names = [OLD_L1C, *(L1C.replace("04T10", f"0{day}T10") for day in range(1, 7))]
    features = [{"properties": {"productIdentifier": name}} for name in names]
    Path("list.json").write_text(json.dumps({"features": features}))
    err = follow("--json", "list.json").err
    assert re.findall("S2A .*2017-07-0(.).*31TCJ", err) == ["5", "6"]
    assert "1 product of the list" in err


@table(("name", "content"), [
    ("missing.json", ""), ("list.json", "{"), ("31TCJ.json", '{"features": []}'),
])  # fmt: skip
def test_a_bad_list_is_said_before_anything_is_asked(follow, peps, name, content):
    Path(name.replace("missing", "other")).write_text(content)
    only_line(follow("--json", name, status=2), name)
    assert peps.journal == []


def test_a_pipe_is_no_list(follow):
    os.mkfifo("pipe")
    only_line(follow("--json", "pipe", status=2), "pipe")


def test_dry_run_says_what_would_come_and_fetches_nothing(follow, peps, job):
    (job.products / job.first).write_bytes(job.bodies[job.first])
    result = follow("-n", status=75)
    assert [name in result.out for name in job.bodies] == [False, True, True]
    assert "2 products to fetch" in last(result)
    follow("-n", "-w", "new", status=75)
    left = {"31TCJ.log", "31TCJ.stat", "31TCJ.json", "peps.txt", "products"}
    assert names_in() == left
    assert not peps.requests("maja/", "GET")
    follow()
    follow("-n")


def test_the_last_line_sums_up(follow, peps, job, make_job):
    """Too cloudy dates have a line of their own, and nothing is fetched of them."""
    first, second, _ = job.bodies
    (job.products / first).write_bytes(job.bodies[first])
    for name in (CLOUDY, CLOUDY.replace("0704", "0820")):
        job.add(name, b"")
    job.hit(report("FINISHED", job.results, unprocessed=1), "31TCJ/r.json")
    job.hit(status(503), second)
    says(make_job("b"), "CANCELED")
    result = follow("-l", "b.log", status=1)
    jobs = "1 job finished, 1 canceled, 1 product left for the next run"
    ends = r"\(\d+ kB in \S+ s\), 1 on disk before, 2 too cloudy, 1 date lost"
    line = (
        rf"{jobs}\. 1 product downloaded {ends}, in {re.escape(os.getcwd())}/products"
    )
    assert re.fullmatch(line, last(result)), result
    line = "31TCJ.log: too cloudy: 2017-07-04, 2017-08-20"
    assert lines_of(result.out, ": too cloudy") == [line]
    assert not peps.requests("NOVALD")


def test_a_pipe_gets_a_numbered_line_a_product(finish, make_job):
    job, body = make_job(count=0), make_product("a", 60_000)
    for number in range(120):
        job.add(f"SENTINEL2A_2017{number:04}-105605-456_L2A_T31TCJ_D_V1-4.zip", body)
    job.add("NO" + 55 * "-" + ".zip", body)
    result = finish(FOLLOW, *job.argv)
    _, *lines, _ = result.out.splitlines()
    numbers = [f"[{number}/121]" for number in range(1, 122)]
    assert [line.split()[0] for line in lines] == numbers
    assert result.err == ""
    assert max(map(len, lines)) <= 80


def test_a_terminal_shows_a_bar_below_clean_lines(terminal, job):
    shown = terminal(FOLLOW, *job.argv)
    assert "%|" in shown
    lines = re.findall(r"^(?:.*\r)?\[\d/3\] SEN\S+  ?\S+ kB, \S+ .B/s$", shown, re.M)
    assert len(lines) == 3


def test_a_log_in_doubt_names_both_ways_out(follow, peps, job):
    job.log.write_text("PEPS order of noon: URL")
    line = only_line(follow(status=1), "31TCJ.log")
    assert re.search("in doubt.*noon.*status URL.*--force", line)
    assert follow("-q", status=1).out == ""
    assert peps.journal == []


def test_a_list_without_any_log_is_one_line(run):
    Path("list.txt").write_text(f"{L1C}\n{OLD_L1C}\n")
    only_line(run(SINGLES, "-p", "list.txt", status=2), "list.txt", "-w")


def test_a_host_is_given_up_for_one_look(run, peps, make_job):
    for name in "abcde":
        make_job(name, count=0)
    asked = itertools.count()
    silent = peps_common.SILENT_MAX * peps_common.TRIES
    peps.always.insert(0, (".xml", lambda one: next(asked) < silent and cut(None)(one)))
    run(FOLLOW, "-l", *Path().glob("?.log"), *LOOKS)


def test_a_host_is_given_up_after_four_in_a_row(run, make_job):
    job = make_job(count=9)
    bad = [*job.bodies][::2]
    for name in bad:
        job.hit(for_gets(cut(None), for_ever=True), name)
    run(FOLLOW, *job.argv, "-j", 1, status=75)
    assert names_in(job.products) == {*job.bodies} - {*bad}


def test_quiet_runs_print_only_news(follow, job):
    job.add(CLOUDY, b"")
    job.hit(report("FINISHED", job.results, unprocessed=1), "r.json")
    first = follow("-q")
    assert (len(first.out.splitlines()), first.err) == (3 + 2, "")
    (job.products / job.first).unlink()
    again = follow("-q", "--check")
    assert (len(again.out.splitlines()), again.err) == (3, "")
    assert follow("-q", "--check").out == ""
    assert "too cloudy:" not in follow().out


@table(("age_s", "ends"), [(3500, 75), (3700, 1)])
def test_a_status_document_may_take_an_hour_to_be_there(follow, job, age_s, ends):
    then = time.time() - age_s
    os.utime(job.log, (then, then))
    job.hit(status(404), ".xml")
    follow(status=ends)


@table("name", ["31TCJ.stat", "31TCJ.json"])
def test_a_pipe_in_the_place_of_a_document_is_left_alone(follow, job, name):
    os.mkfifo(name)
    only_line(follow(), "warning", "kept")
    assert job.on_disk() == job.bodies


def test_wait_goes_on_beside_a_failed_job(follow, job, make_job):
    says(make_job("bad", count=0), "ERROR")
    job.hit(for_gets(report("PENDING"), report("PENDING")), "31TCJ/r")
    follow("-l", "bad.log", *LOOKS, status=1)
    assert job.on_disk() == job.bodies


def test_dry_run_does_not_wait(follow):
    follow("-n", "--wait", status=75)


def test_a_log_that_names_no_job(follow, peps, job):
    for content, word in ((refusal("locked"), "locked"), (answer(), "statusLocation")):
        job.log.write_bytes(content)
        only_line(follow(status=2), "31TCJ.log", word, "--force")
    assert peps.journal == []


def test_a_shells_background_job_hears_no_ctrl_c(launch, job):
    says(job, "PENDING")
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    argv = *job.argv, "--wait", "--interval", "0.02"
    process = launch(FOLLOW, *argv, preexec_fn=ignore)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    job.mend()
    process.communicate()
    assert process.returncode == 0


@table("text", [".xml", "r.json"])
def test_a_document_without_end_is_given_up(follow, job, monkeypatch, text):
    monkeypatch.setattr(peps_common, "PATIENCE_S", 1)
    job.hit(endless(b"HTTP/1.1 200 OK\r\n\r\n", b" ", 0.05), text)
    only_line(follow(status=75), "31TCJ.log", job.peps.url[7:], "no answer")


@table(("told", "count"), [(1, 2), (3, 3)])
def test_of_told_and_found_lost_dates_the_more_count(follow, job, told, count):
    names = [L1C.replace("04T10", f"0{day}T10") for day in (1, 5, 6)]
    names.append(OLD_L1C)
    features = [{"properties": {"productIdentifier": name}} for name in names]
    features[-1]["properties"]["mgrs"] = "32TCJ"
    Path("list.json").write_text(json.dumps({"features": features[:3]}))
    job.hit(report("FINISHED", job.results, unprocessed=told), "r.json")
    assert f", {count} dates lost, in" in last(follow("--json", "list.json"))
    Path("list.json").write_text(json.dumps({"features": features[3:]}))
    assert "2016-07-12, tile 32TCJ" in follow("--json", "list.json").err
