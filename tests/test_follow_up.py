"""How jobs stand: what is asked, what is said of it, what is kept beside the log, and what that spares."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import threading
import time
from pathlib import Path

import pytest
from faulty_http import cut, for_gets, hold, reset, status
from local_peps import OUTPUTS, WPS, acquisitions, feature
from stories import (
    NOBODY,
    NOVEMBER,
    SHORT,
    answer,
    flipped,
    json_document,
    lines_of,
    names_in,
    only_line,
    xml,
)

import peps_common

REFRESH = "identifier=PROCESSING_STATUS"
EXPECTED = acquisitions("31TCJ", "2017-07-01", "2017-09-01")
CLEAR = {seen.l2a for seen in EXPECTED if not seen.cloudy}
SINGLES = [
    seen
    for seen in acquisitions("31TCJ", "2017-11-01", "2017-12-01")
    if not seen.cloudy
]


def order(run, log: object = "31TCJ.log", tile: str = "31TCJ", *more: object):
    return run("full_maja_process", "-t", tile, *SHORT, "-l", log, *more)


def follow(run, *logs: object, status: int | None = 0, more=()):
    return run(
        "full_maja_download", "-l", *(logs or ("31TCJ.log",)), *more, status=status
    )


def order_singles(run, peps, *seen):
    peps.catalogue = [feature(one) for one in seen]
    run("peps_maja_process", "-t", "31TCJ", *NOVEMBER)


def follow_singles(run, *more: object, status: int = 0):
    return run("peps_maja_download", "-p", "list.txt", *more, status=status)


def zips(folder: Path | str = ".") -> set[str]:
    """The names of the products in a folder, and of whatever is left of their downloads."""
    return {name for name in names_in(folder) if ".zip" in name}


def last(result) -> str:
    return result.out.splitlines()[-1]


def counts(line: str) -> dict[str, int]:
    """The counts of a last line, as a script may read them."""
    found = re.findall(
        r"(\d+) (?:jobs? |products? )?([a-z][a-z ]*?)(?= \(|,|\.|$)", line
    )
    return {words: int(number) for number, words in found}


def test_documented_single_download_works_as_written(run, finish, peps, folder):
    """The products come to the folder of -w, while the logs stay where the order wrote them."""
    line = "2 --lon 1 --lat 43.5 -a peps.txt -d 2017-11-01 -f 2017-12-01 -o 51 -p prod_list_toulouse.txt"
    run("peps_maja_process", *line.split())
    peps.advance(hours=3)
    result = finish(
        "peps_maja_download",
        "-p",
        "prod_list_toulouse.txt",
        "-a",
        "peps.txt",
        "-w",
        folder / "PEPS_MAJA",
    )
    seen = acquisitions("31TCJ", "2017-11-01", "2017-12-01", 51)
    assert zips("PEPS_MAJA") == {one.l2a for one in seen if not one.cloudy}
    assert counts(last(result))["too cloudy"] == sum(one.cloudy for one in seen)


STATES = {  # by a log's name: the clock, what the job comes to, the exit status, the stream and its words
    "waiting": ({"minutes": 0}, None, 75, "out", "waiting"),
    "running": ({"minutes": 70}, None, 75, "out", "running"),
    "finished.log": ({"hours": 100}, None, 0, "out", "finished"),
    "failed.log": (
        {"hours": 100},
        ("ERROR", "no DTM for 31TCJ"),
        1,
        "err",
        "no DTM for 31TCJ",
    ),
    "canceled.log": (
        {"hours": 100},
        ("CANCELED", "by the operator"),
        1,
        "err",
        "by the operator",
    ),
    "job": ({"hours": 100}, ("ProcessFailed", "bad input"), 1, "err", "bad input"),
    "state": ({"hours": 100}, ("SUSPENDED", ""), 75, "out", "SUSPENDED"),
}


def test_each_state_has_its_message_and_status(run, peps):
    """Each line says which job, also where the name is a word of what is said."""
    told = set()
    for log, (clock, end, expected, stream, words) in STATES.items():
        peps.ends["31TCJ"] = end or ("FINISHED", "")
        order(run, log)
        peps.advance(**clock)
        result = follow(run, log, status=expected)
        line = (
            getattr(result, stream)
            .splitlines()[0]
            .removeprefix("full_maja_download.py: ")
        )
        assert line.startswith(f"{log}: ")
        assert words in line.removeprefix(log), result
        assert re.match(
            r"1 job (waiting|running|finished|failed|canceled|in an unknown state)\.",
            last(result),
        )
        told.add(line.removeprefix(log))
    assert len(told) == len(STATES)


def test_waiting_and_running_are_explained_once(run, peps):
    for number in range(3):
        order(run, f"{number}.log")
    logs = ("0.log", "1.log", "2.log")
    result = follow(run, *logs, status=75)
    assert (
        len(
            [
                line
                for line in result.out.splitlines()
                if "busy" in line and "ten tiles" in line
            ]
        )
        == 1
    )
    peps.advance(minutes=70)
    result = follow(run, *logs, status=75)
    percent = peps.state(next(iter(peps.jobs)))[1]
    assert [f"running, {percent}%" in line for line in result.out.splitlines()] == [
        True
    ] * 3 + [False]
    assert (
        len(
            [
                line
                for line in result.out.splitlines()
                if "optimistic" in line and "25 min" in line
            ]
        )
        == 1
    )
    assert result.out.count("run this again later") == 1
    assert last(result) == "3 jobs running."


@pytest.mark.parametrize(("state", "words"), [
    ("<ProcessAccepted/>", "waiting"), ("<ProcessPaused/>", "waiting"), ("<ProcessStarted/>", "running"),
    ('<ProcessStarted percentCompleted="42"/>', "running, 42%"), ("<ProcessSucceeded/>", "names no report"),
])  # fmt: skip
def test_status_document_without_a_report(run, peps, make_job, state, words):
    """Said as what it is, after PROCESSING_STATUS and one more look; the document is kept in every state."""
    job = make_job()
    document = answer(f"{job.base}.xml", state)
    job.hit(xml(document), f"/{job.identity}.xml")
    for _ in ("alone", "beside what was kept"):
        line = lines_of(follow(run, status=75).out, "31TCJ.log: ")[0]
        assert words in line
        assert words != "waiting" or "names no report" not in line
    paths = [request.path for request in peps.journal][:3]
    assert paths == [f"{OUTPUTS}31TCJ.xml", WPS, f"{OUTPUTS}31TCJ.xml"]
    assert Path("31TCJ.stat").read_bytes() == document


def test_report_that_is_named_only_after_the_refresh(run, peps, make_job):
    """A service may add the Reference on PROCESSING_STATUS: it is found in the same run."""
    job = make_job()
    asked = lambda: peps.requests(REFRESH)  # noqa: E731
    bare = xml(answer(f"{job.base}.xml", "<ProcessSucceeded/>"))
    job.hit(lambda handler: not asked() and bare(handler), f"/{job.identity}.xml")
    run("full_maja_download", *job.argv)
    job.require_whole()


def test_follow_up_asks_in_the_documented_order(run, peps):
    order(run)
    peps.journal.clear()
    follow(run, status=75)
    job_id = next(iter(peps.jobs))
    refresh = f"{WPS}?request=execute&service=WPS&version=1.0.0&identifier=PROCESSING_STATUS&datainputs=wps_id={job_id}"
    refresh += "&status=false&storeExecuteResponse=false"
    expected = [f"{OUTPUTS}{job_id}.xml", refresh, f"{OUTPUTS}{job_id}/report.json"]
    assert [request.target for request in peps.journal] == expected


@pytest.mark.parametrize(
    "fault",
    [status(500), cut(None), hold(threading.Event(), None)],
    ids=["500", "cut", "stalls"],
)
def test_refresh_is_a_wish_and_tried_once(run, peps, make_job, fault, monkeypatch):
    monkeypatch.setattr("full_maja_download.WISH_PATIENCE_S", 0.2)
    job = make_job()
    job.hit(fault, REFRESH)
    assert run("full_maja_download", *job.argv).err == ""
    assert len(peps.requests(REFRESH)) == 1
    job.require_whole()


@pytest.mark.parametrize("code", [404, 410])
@pytest.mark.parametrize("sent", [None, 200], ids=["", "as JSON"])
def test_job_that_is_gone_is_seen_twice(run, peps, make_job, code, sent):
    """Neither a report's 404 is a reason to order again nor a single one; two are, and the words say how."""
    job, gone = (
        make_job(),
        status(
            sent or code, body=b'{"ErrorCode": %d, "ErrorMessage": "Not Found"}' % code
        ),
    )
    peps.faults.append((f"/{job.identity}.xml", gone))
    job.hit(gone, "/r.json")
    assert "order" not in only_line(
        run("full_maja_download", *job.argv, status=75), "later"
    )
    assert Path("31TCJ.stat").exists()
    job.hit(gone, f"/{job.identity}.xml")
    only_line(
        run("full_maja_download", *job.argv, "--wait", status=1),
        str(code),
        "order it again",
        "--force",
    )


def test_what_is_known_of_a_job_outlives_an_outage(run, peps, make_job):
    """The products that its report on disk names are still checked and counted; nothing is fetched until it answers."""
    job = make_job()
    run("full_maja_download", *job.argv)
    first, second, _ = (job.products / name for name in job.bodies)
    first.write_bytes(flipped(first.read_bytes(), 30_000))
    second.unlink()
    job.hit(status(503), f"/{job.identity}.xml")
    result = run("full_maja_download", *job.argv, "--check", status=75)
    only_line(result, "31TCJ.log", "answers 503")
    assert "--check: 2 read, 1 damaged\n" in result.out
    assert counts(last(result)) == {
        "without an answer": 1,
        "on disk before": 1,
        "left for the next run": 2,
    }
    job.mend()
    run("full_maja_download", *job.argv, "--check")
    assert job.on_disk() == job.bodies


def test_what_cannot_be_had_is_not_on_disk(run, make_job):
    job = make_job()
    (job.products / next(iter(job.bodies))).mkdir()
    assert (
        "3 products (2 to fetch, 203.6 kB, 1 that cannot be had)"
        in run("full_maja_download", *job.argv, status=1).out
    )
    again = run("full_maja_download", *job.argv, status=1)
    assert "3 products (2 on disk, 1 that cannot be had)" in again.out


def test_quiet_says_once_that_a_job_has_finished(run, make_job):
    job = make_job()
    job.hit(status(503))
    assert "finished" in run("full_maja_download", "-q", *job.argv, status=75).out
    assert run("full_maja_download", "-q", *job.argv, status=75).out == ""


def test_a_list_without_any_log_is_one_line(run, peps):
    Path("list.txt").write_text("".join(f"{single.l1c}\n" for single in SINGLES))
    only_line(follow_singles(run, status=2), "list.txt", "-w")
    assert peps.journal == []


@pytest.mark.parametrize(
    "fault",
    [cut(None), cut(20), reset(10), status(503), status(429, {"Retry-After": "0"})],
)
def test_passing_fault_is_not_noticed(run, peps, make_job, fault):
    job = make_job()
    peps.faults += [(f"/{job.identity}.xml", fault), ("/r.json", fault)]
    assert run("full_maja_download", *job.argv).err == ""
    job.require_whole()


def test_log_of_an_older_script_is_followed(run, peps):
    """A PyWPS 3 answer: the job id is the number after `pywps-`, the report's place is an xlink:href.

    Places without a host are beside the server, or the document that names them.
    """
    place = "/old/pywps-154901234567.xml"
    succeeded = answer(place, "<ProcessSucceeded/>", "report.json").replace(
        b" href=", b" xlink:href="
    )
    succeeded = succeeded.replace(
        b"<ExecuteResponse",
        b'<ExecuteResponse xmlns:xlink="http://www.w3.org/1999/xlink"',
    )
    Path("old.log").write_bytes(answer(place))
    peps.always += [
        (place, xml(succeeded)),
        (
            "/old/report.json",
            json_document({"USER_INFO": {"job_status": "STALLED", "process": "37%"}}),
        ),
    ]
    assert "37%" in follow(run, "old.log", status=75).out
    assert len(peps.requests(f"{REFRESH}&datainputs=wps_id=154901234567&")) == 1


def test_status_document_and_report_stand_beside_the_log(run, peps, folder):
    """X.stat and X.json are the service's documents byte for byte, and only the suffix differs from the log's name."""
    (folder / "a.log.d").mkdir()
    for log, name in (("31TCJ.log", "31TCJ"), ("a.log.d/job", "a.log.d/job")):
        order(run, log)
        job_id = list(peps.jobs)[-1]
        follow(run, log, status=75)
        assert Path(f"{name}.stat").read_bytes() == peps.output(f"{job_id}.xml")
        assert Path(f"{name}.json").read_bytes() == peps.output(f"{job_id}/report.json")
    order_singles(run, peps, SINGLES[0])
    follow_singles(run, status=75)
    job_id, name = list(peps.jobs)[-1], SINGLES[0].l1c
    assert Path(f"update_{name}.txt").read_bytes() == peps.output(f"{job_id}.xml")
    assert Path(f"{name}.stat").read_bytes() == peps.output(f"{job_id}/report.json")
    assert [path.name for path in folder.rglob("*.part")] == []


@pytest.mark.parametrize(
    "more",
    [(), ("--server", "http://127.0.0.1:9"), ("-q",), ("--check",)],
    ids=" ".join,
)
def test_finished_job_costs_no_request(run, peps, make_job, more):
    job = make_job()
    run("full_maja_download", *job.argv)
    peps.journal.clear()
    result = run("full_maja_download", *job.argv, *more)
    assert peps.journal == []
    assert result.err == ""
    assert ("finished: 3 products (all on disk)" in result.out) == ("-q" not in more)
    assert ("3 read, none damaged" in result.out) == ("--check" in more)


@pytest.mark.parametrize("how", ["renamed", "ordered anew"])
def test_report_speaks_for_its_own_job_alone(run, peps, how):
    order(run)
    peps.advance(hours=100)
    follow(run)
    if how == "renamed":
        order(run, "b.log")
        os.replace("b.log", "31TCJ.log")
    else:
        order(run, "31TCJ.log", "31TCJ", "--force")
        # Without a report its status document is kept nonetheless, and must not vouch for the old one.
        peps.always.append(("report.json", status(404)))
        follow(run, status=75)
        assert list(peps.jobs)[-1] in Path("31TCJ.stat").read_text()
        peps.always.clear()
    assert "waiting" in follow(run, status=75).out


def test_several_logs_each_to_its_end(run, peps):
    peps.ends["30TYP"] = ("ERROR", "tape robot on fire")
    order(run, "done.log")
    order(run, "failed.log", "30TYP")
    peps.advance(hours=100)
    order(run, "waiting.log", "32TLP")
    Path("bad.log").write_text("not a log")
    odd = f"{'a' * 300}/x.log"
    words = {
        "done.log": "finished", "failed.log": "robot on fire", "waiting.log": "waiting", "bad.log": "no XML",
        odd: "File name too long",
    }  # fmt: skip
    for logs, expected in (
        (["bad.log", "failed.log"], 1), (["done.log", odd], 2), (["waiting.log", "failed.log", "done.log"], 1),
        (["waiting.log", "bad.log", "done.log"], 2), (["done.log", "waiting.log"], 75),
    ):  # fmt: skip
        result = follow(run, *logs, status=expected)
        for log in logs:
            assert any(
                words[log] in line for line in lines_of(result.out + result.err, log)
            ), result
        assert zips() == (set() if logs[0] == "bad.log" else CLEAR)


def test_logs_may_be_named_one_by_one_or_twice(run, peps, folder):
    order(run, "a.log")
    order(run, "b.log")
    for argv in (
        "-l a.log b.log",
        "-l a.log --log=b.log",
        f"-l a.log -l ./a.log b.log {folder}/a.log",
    ):
        peps.journal.clear()
        assert (
            last(run("full_maja_download", *argv.split(), status=75))
            == "2 jobs waiting."
        )
        assert len(peps.requests(".xml")) == 2


def test_jobs_are_asked_side_by_side(run, peps, folder):
    """Eight jobs are asked at once at least: the first eight answers wait for each other."""
    barrier, numbers = threading.Barrier(8), itertools.count(1)
    for number in range(20):
        (folder / f"{number}.log").write_bytes(
            answer(f"{peps.url}{OUTPUTS}{number}.xml")
        )

    def gather(handler) -> bool:
        if next(numbers) <= 8:
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(10)
        return False

    peps.always += [(".xml", gather), (".xml", xml(answer()))]
    result = follow(run, *sorted(folder.glob("*.log")), status=75)
    assert not barrier.broken
    assert last(result) == "20 jobs waiting."


@pytest.mark.parametrize(("fault", "ends", "words", "most"), [
    (status(401), 1, ("62 jobs", "refused the account (401)", "peps.txt"), 16),
    (status(503), 75, ("62 jobs", "answers 503, tried 5 times", "127.0.0.1:", "run this again later"), 5 * 20),
    (cut(None), 75, ("62 jobs", "gives no answer", "tried 5 times", "run this again later"), 5 * 20),
], ids=["wrong password", "503", "no answer"])  # fmt: skip
def test_one_reason_is_one_line(run, peps, folder, fault, ends, words, most):
    for number in range(62):
        (folder / f"{number}.log").write_bytes(
            answer(f"{peps.url}{OUTPUTS}{number}.xml")
        )
    peps.always.append(("", fault))
    result = follow(run, *sorted(folder.glob("*.log")), status=ends)
    only_line(result, *words)
    assert len(peps.journal) <= most
    assert last(result).startswith("62 jobs ")


@pytest.mark.parametrize("form", ["same", "loose"])
def test_mixed_list_from_trouble_to_rest(run, peps, form):
    """Finished, running, canceled and lost: the worst status wins, later all is well, then nothing is asked."""
    peps.single_report = form
    finished, canceled, running, lost = SINGLES[:4]
    peps.ends[canceled.l1c] = ("CANCELED", "")
    order_singles(run, peps, finished, canceled)
    peps.advance(hours=3)
    order_singles(run, peps, running)
    assert (
        "waiting" in lines_of(follow_singles(run, "-n", status=1).out, running.l1c)[0]
    )
    peps.advance(minutes=40)
    with open("list.txt", "a") as file:
        file.write(f"{lost.l1c}\n\n{finished.l1c}\r\n")
    result = follow_singles(run, status=1)
    assert zips() == {finished.l2a}
    assert (
        f"{peps.state(list(peps.jobs)[-1])[1]}%" in lines_of(result.out, running.l1c)[0]
    )
    (line,) = lines_of(result.err, canceled.l1c)
    assert all(
        word in line
        for word in ("60°", "SRTM", "|lat|", "peps_maja_process.py", "--force")
    )
    assert f"{lost.l1c}.log: no such file" in lines_of(result.err, lost.l1c)[0]
    assert last(result).startswith(
        "1 job finished, 1 canceled, 1 running, 1 without a usable log. 1 product downloaded ("
    )

    peps.ends.clear()
    Path(f"{canceled.l1c}.log").unlink()
    order_singles(run, peps, finished, canceled, running, lost)
    assert len(peps.jobs) == 5
    peps.always.append(
        (".xml", lambda handler: handler.peps.advance(minutes=20) and False)
    )
    assert "next look at" in follow_singles(run, "--wait", "--interval", "0.001").out
    assert zips() == {seen.l2a for seen in (finished, canceled, running, lost)}
    peps.journal.clear()
    follow_singles(run)
    assert peps.journal == []


def test_cloudy_dates_are_counted_and_named_once(run, peps):
    cloudy = [seen.l2a for seen in EXPECTED if seen.cloudy]
    order(run)
    peps.advance(hours=100)
    result = follow(run, status=75, more=("-n",))
    assert all(len(lines_of(result.out, name)) == 1 for name in cloudy)
    again = follow(run)
    assert (
        counts(last(result))["too cloudy"]
        == counts(last(again))["too cloudy"]
        == len(cloudy)
        > 0
    )
    assert "NOVALD" not in again.out
    assert peps.requests("NOVALD") == []


@pytest.mark.parametrize("form", ["number", "text", "names"])
def test_lost_dates_are_a_warning(run, peps, form):
    """Counted, listed as far as they are named, no reason to run again, and said in the run that learns it."""
    lost = EXPECTED[3:5]
    peps.unprocessed_as, peps.lost = form, {seen.l1c for seen in lost}
    order(run)
    peps.advance(hours=100)
    result = follow(run, more=("-q",))
    line = only_line(result, "warning", "31TCJ.log", "2 dates lost", "31TCJ.json")
    assert all((seen.l1c in line) == (form == "names") for seen in lost)
    assert ("--json" in line) == (form != "names")
    assert counts(last(result))["dates lost"] == 2
    assert follow(run, more=("-q",)) == (0, "", "")
    assert "2 dates lost" in follow(run).out.splitlines()[0]


def named_in(text: str, seen) -> bool:
    day = f"{seen.day[:4]}-{seen.day[4:6]}-{seen.day[6:]}"
    return any(
        seen.l1c[:3] in line and day in line and seen.tile in line
        for line in text.splitlines()
    )


def test_missing_acquisitions_are_exactly_the_lost_ones(run, peps):
    """The list is that of one job; what another one lost is counted beside."""
    lost, others = (
        [seen for seen in EXPECTED if not seen.cloudy][::4],
        acquisitions("32TLP", SHORT[1], SHORT[3])[:2],
    )
    peps.lost = {seen.l1c for seen in [*lost, *others]}
    shown = order(run, "31TCJ.log", "31TCJ", "--json", "list.json").out
    assert f"{len({seen.day for seen in EXPECTED})} dates" in shown
    order(run, "b.log", "32TLP")
    compare = ("31TCJ.log", "b.log", "--json", "list.json")
    assert not any(
        named_in(follow(run, *compare, status=75).err, seen) for seen in EXPECTED
    )
    peps.advance(hours=100)
    result = follow(run, *compare)
    assert [seen.l1c for seen in EXPECTED if named_in(result.err, seen)] == [
        seen.l1c for seen in lost
    ]
    assert counts(last(result))["dates lost"] == len(lost) + len(others)
    assert follow(run, *compare, "-q") == (0, "", "")


def test_list_that_cannot_be_compared_is_counted(run, peps):
    order(run, "31TCJ.log", "31TCJ", "--json", "list.json")
    peps.advance(hours=100)
    listed = json.loads(Path("list.json").read_text())
    name = (
        "S2A_OPER_PRD_MSIL1C_PDMC_20160712T121910_R051_V20160712T105032_20160712T105032"
    )
    listed["features"].append({"properties": {"productIdentifier": name, "mgrs": None}})
    Path("list.json").write_text(json.dumps(listed))
    only_line(
        follow(run, more=("--json", "list.json")),
        "warning",
        "1 product of the list cannot be compared",
    )


@pytest.mark.parametrize(("name", "text", "words"), [
    ("list.json", None, "list.json"), ("list.json", "{", "list.json"), ("list.json", "[1]", "list.json"),
    ("31TCJ.json", '{"features": []}', "31TCJ.json cannot be both"),
], ids=["missing", "half", "no collection", "the report's name"])  # fmt: skip
def test_bad_list_is_said_before_anything_is_asked(run, peps, name, text, words):
    order(run)
    peps.journal.clear()
    if text is not None:
        Path(name).write_text(text)
    only_line(follow(run, status=2, more=("--json", name)), words)
    assert peps.journal == []


def test_dry_run_says_how_things_stand_and_fetches_nothing(run, make_job, peps):
    job = make_job(size=612_000)
    first, *_ = job.bodies
    (job.products / first).write_bytes(job.bodies[first])
    result = run("full_maja_download", *job.argv, "-n", status=75)
    lines = result.out.splitlines()
    assert re.match(
        r"31TCJ\.log: finished: 3 products \(1 on disk, 2 to fetch, 1\.\d MB\)",
        lines[0],
    )
    assert [
        re.fullmatch(r"to fetch: (\S+)  \d{3}\.\d kB", line)[1] for line in lines[1:3]
    ] == list(job.bodies)[1:]
    assert counts(lines[-1]) == {"finished": 1, "on disk before": 1, "to fetch": 2}
    assert names_in(job.products) == {first}
    run("full_maja_download", "-l", job.log, "-w", "new", "-n", status=75)
    assert not Path("new").exists()
    assert peps.requests("/maja/", "GET") == []
    run("full_maja_download", *job.argv)
    run("full_maja_download", *job.argv, "-n")


def test_wait_stays_until_the_job_has_ended(run, peps, monkeypatch):
    monkeypatch.setattr(peps_common, "TRIES", 2)
    start = [lambda handler: handler.peps.advance(minutes=70)]
    finish = [lambda handler: handler.peps.advance(hours=100)]
    look = [lambda handler: False]
    steps = iter(look * 3 + [status(503)] * 4 + start + look * 2 + finish)
    peps.always.append((".xml", lambda handler: bool(next(steps)(handler))))
    order(run)
    result = follow(run, more=("--wait", "--interval", "0.001"))
    clock = r"20\d\d-\d\d-\d\d \d\d:\d\d "
    states = re.findall(
        rf"^{clock}31TCJ\.log: (waiting|running, \d+%|finished)(.*)$",
        result.out,
        re.MULTILINE,
    )
    assert [words.partition(",")[0] for words, _ in states] == [
        "waiting",
        "running",
        "finished",
    ]
    assert [
        bool(re.search(r"; next look at \d\d:\d\d$", rest)) for _, rest in states
    ] == [True, True, False]
    line = only_line(result, "503", "31TCJ.log", "next look at")
    assert re.match(rf"^{clock}full_maja_download\.py: ", line)
    assert "again later" not in result.out + result.err
    assert next(steps, None) is None
    assert zips() == CLEAR
    assert all(re.match(clock, text) for text in result.out.splitlines())


def test_what_is_known_is_not_said_again_after_an_outage(run, peps):
    """The service falls silent in the middle of the products: each cloudy date and the lost ones are named once."""
    peps.lost = {EXPECTED[0].l1c}
    peps.always.append(
        (
            "/maja/",
            lambda handler: (
                len(peps.requests("report.json")) < 2 and status(503)(handler)
            ),
        )
    )
    order(run)
    peps.advance(hours=100)
    result = follow(run, more=("--wait", "--interval", "0.001"))
    assert result.out.count(": too cloudy: ") == sum(
        seen.cloudy for seen in EXPECTED[1:]
    )
    assert result.err.count("1 date lost") == 1
    assert zips() == CLEAR - {EXPECTED[0].l2a}


def test_a_next_look_is_never_announced_for_the_past(monkeypatch):
    monkeypatch.setattr(peps_common.console, "due", time.time() - 3600)
    minutes = [
        time.strftime("next look at %H:%M", time.localtime(time.time() + more))
        for more in (0, 60)
    ]
    assert peps_common.console.later in minutes


@pytest.mark.parametrize("before", [b"", None], ids=["an empty log", "a job"])
def test_a_doubt_ends_a_wait(run, peps, before):
    """A log without a job, or with an older one: what is in doubt is said, counted, and what helps is named."""
    if before is None:
        order(run)
        peps.advance(hours=100)
    else:
        Path("31TCJ.log").write_bytes(before)
    peps.faults.append(("FULL_MAJA", status(504)))
    run(
        "full_maja_process",
        "-t",
        "31TCJ",
        *SHORT,
        "-l",
        "31TCJ.log",
        *(["--force"] * (before is None)),
        status=1,
    )
    result = follow(run, status=1, more=("--wait", "--interval", "0.001"))
    only_line(
        result, "31TCJ.log: the order of", "in doubt", "order again",
        "move 31TCJ.log.part and 31TCJ.log away" if before is None else "31TCJ.log",
    )  # fmt: skip
    assert ("1 in doubt beside it. " if before is None else " 1 job in doubt.") in last(
        result
    )


def test_wait_downloads_what_finishes_meanwhile(launch, peps, run):
    order(run, "a.log")
    order(run, "b.log", "32TLP")
    peps.ends["32TLP"] = ("STALLED", "")
    peps.advance(hours=100)
    process = launch(
        "full_maja_download", "-l", "a.log", "b.log", "--wait", "--interval", "0.001"
    )
    late = list(peps.jobs)[-1]
    # Two looks after the last product: the first of them may have begun before it.
    peps.wait_for(lambda: {Path(path).name for path in peps.sent} >= CLEAR)
    looks = len(peps.requests(f"{late}.xml"))
    peps.wait_for(lambda: len(peps.requests(f"{late}.xml")) >= looks + 2)
    assert zips() == CLEAR
    peps.ends["32TLP"] = ("FINISHED", "")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert "2 jobs finished." in out.splitlines()[-1]


def test_wait_for_an_order_that_is_being_placed(launch, peps):
    free = threading.Event()
    peps.always.append(("identifier=FULL_MAJA", hold(free, None)))
    placing = launch("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "31TCJ.log")
    peps.wait_for(lambda: peps.requests("FULL_MAJA"))
    process = launch(
        "full_maja_download", "-l", "31TCJ.log", "--wait", "--interval", "0.001"
    )
    assert "another run" in process.stderr.readline()
    free.set()
    assert placing.wait(30) == 0
    assert "waiting" in process.stdout.readline()


def test_quiet_is_silent_unless_there_is_news(run, peps):
    order(run)
    for minutes in (0, 70):
        peps.advance(minutes=minutes)
        assert follow(run, status=75, more=("-q",))[1:] == ("", "")
    peps.advance(hours=100)
    assert "finished" in follow(run, more=("-q",)).out
    assert follow(run, more=("-q",))[1:] == ("", "")
    peps.ends["31TCJ"] = ("ERROR", "no DTM for 31TCJ")
    order(run, "b.log")
    peps.advance(hours=100)
    assert "no DTM for 31TCJ" in follow(run, "b.log", status=1, more=("-q",)).err


def test_last_line_sums_up(run, peps, folder):
    """Jobs by state, then what became of the products, bytes, time and folder; no zero is counted."""
    order(run, "a.log")
    order(run, "b.log", "32TLP")
    peps.ends["32TLP"] = ("CANCELED", "")
    peps.lost = {next(seen.l1c for seen in EXPECTED if not seen.cloudy)}
    peps.advance(hours=100)
    cloudy = sum(seen.cloudy for seen in EXPECTED)
    brought = len(EXPECTED) - cloudy - 1
    size = rf"\(\d+\.\d kB in \d+(\.\d)? s\), {cloudy} too cloudy, 1 date lost, in {re.escape(str(folder))}"
    first = last(follow(run, "a.log", "b.log", status=1))
    assert re.fullmatch(
        rf"1 job finished, 1 canceled\. {brought} products downloaded {size}", first
    ), first
    again = last(follow(run, "a.log", "b.log", status=1))
    jobs = {
        "finished": 1,
        "canceled": 1,
        "on disk before": brought,
        "too cloudy": cloudy,
        "date lost": 1,
    }
    assert counts(again) == jobs
    assert not re.search(r"(?<![.0-9])0 ", first + again)


def test_pipe_gets_a_numbered_line_a_product_and_no_bar(run, finish, peps):
    order(run)
    peps.advance(hours=100)
    result = finish("full_maja_download", "-l", "31TCJ.log")
    assert (result.err, "\r" in result.out) == ("", False)
    lines = re.findall(
        r"^\[(\d+)/(\d+)\] (\S+)  \d\.\d kB in \d\.\d s, \d+\.\d [kM]B/s$",
        result.out,
        re.MULTILINE,
    )
    assert [line[:2] for line in lines] == [
        (str(n), str(len(CLEAR))) for n in range(1, len(CLEAR) + 1)
    ]
    assert {name for _, _, name in lines} == CLEAR
    assert (
        len(result.out.splitlines())
        == 1 + sum(seen.cloudy for seen in EXPECTED) + len(CLEAR) + 1
    )


def test_terminal_shows_a_bar_below_clean_lines(terminal, make_job):
    """The bar counts products, what failed beside them, and bytes, and each line stands above it, unmixed."""
    pytest.importorskip("tqdm")
    job = make_job(size=3000)
    job.hit(status(404))
    shown = terminal("full_maja_download", *job.argv, status=1)
    assert "2/3 products, 1 failed" in shown
    assert "B/s]" in shown
    lines = [line.rpartition("\r")[2] for line in shown.splitlines()]
    for name in job.bodies:
        assert any(name in line and "%|" not in line for line in lines), shown
    assert "%|" not in terminal("full_maja_download", "-q", *job.argv, status=1)


def test_the_bar_tells_the_truth_when_the_server_dies(terminal, make_job):
    """Its rate sinks while nothing comes, instead of standing still."""
    pytest.importorskip("tqdm")
    job, stopped = make_job(count=1), threading.Event()
    job.hit(for_gets(hold(stopped, 60_000)))

    def see(shown: bytes, process):
        rates = [
            float(rate)
            for rate in re.findall(rb"60\.\dk/\S+ \[[^\]]*, *([0-9.]+)kB/s", shown)
        ]
        if rates and rates[-1] < rates[0] / 2:
            stopped.set()

    shown = terminal("full_maja_download", *job.argv, see=see)
    assert "1/1 product" in shown


def test_the_default_servers_end_is_said_with_its_outage(run, make_job, monkeypatch):
    monkeypatch.setattr(peps_common, "DEFAULT_SERVER", NOBODY)
    job = make_job()
    job.log.write_bytes(answer(f"{peps_common.DEFAULT_SERVER}/a.xml"))
    result = run(
        "full_maja_download",
        *job.argv,
        "--server",
        peps_common.DEFAULT_SERVER,
        status=75,
    )
    only_line(result, "2026-03-25", "gives no answer")
