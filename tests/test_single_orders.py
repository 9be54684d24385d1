"""Orders of single products: the search, the question, one log each, and the list."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import threading
from pathlib import Path

import pytest
from faulty_http import Server, endless, hold, status
from local_peps import SEARCH, acquisitions
from stories import (
    NOVEMBER,
    answer,
    json_document,
    json_error,
    last,
    names_in,
    only_line,
    refusal,
    xml,
)

EXECUTE = "identifier=MAJA&"
SCRIPT = "peps_maja_process"
ORDER = (SCRIPT, "-t", "31TCJ", *NOVEMBER)  # twelve products, six of them of orbit 51
NAMES = [seen.l1c for seen in acquisitions("31TCJ", "2017-11-01", "2017-12-01", 51)]
NAMES.reverse()  # as the catalogue has them
FIRST, SECOND = NAMES[:2]
LIST = Path("list.txt")
JOB = answer("http://127.0.0.1:9/wps/outputs/first.xml")


def order(run, *more, **ends):
    return run(*ORDER, "-o", 51, *more, **ends)


def ordered(peps):
    """The products that were ever ordered, in order."""
    return [job.subject for job in peps.jobs.values()]


def entry(name, **more):
    """The least that a product of the catalogue can be."""
    return {"properties": {"productIdentifier": name, **more}}


@pytest.mark.parametrize("line", ["-l Toulouse", "2 --lon 1 --lat 43.5 -o 51"])
def test_documented_line_asks_and_orders(terminal, peps, line):
    line += " -a peps.txt -d 2017-11-01 -f 2017-12-01 -p prod_list_toulouse.txt"
    shown = terminal(SCRIPT, *line.split(), answer=b"yes\n")
    names = ordered(peps)
    found = 6 if "51" in line else 12
    assert ("yes/no" in shown, len(names)) == (found > 10, found)
    assert Path("prod_list_toulouse.txt").read_text().split() == names
    assert peps.journal[-1].query == (
        "request=execute&service=WPS&version=1.0.0&identifier=MAJA&datainputs=product="
        f"{names[-1]}&storeExecuteResponse=true&status=true&title=Maja-Process"
    )
    for name, job in zip(names, peps.jobs):
        assert job in Path(f"{name}.log").read_text()
        assert f"{name}: ordered as job {job}, status {peps.url}" in shown


SEARCHES = {
    "-t T31TCJ": "tileid=31TCJ",
    "-l 'Saint-Étienne & fils'": "q=Saint-%C3%89tienne%20%26%20fils",
    "-l Le%20Mans": "q=Le%20Mans",
    "-l '100% Toulouse'": "q=100%25%20Toulouse",
    "--lat -43. --lon -1e-3": "lat=-43.000000&lon=-0.001000",
    "--latmin -43 --latmax 44 --lonmin -1.5 --lonmax 2":
    "box=-1.500000,-43.000000,2.000000,44.000000",
}  # fmt: skip


@pytest.mark.parametrize("line", SEARCHES)
def test_search_on_the_wire(run, peps, line):
    run(SCRIPT, *shlex.split(line), "-d", "2017-11-01T10:00:00", "-p", LIST, "-n")
    assert peps.journal[0].target == (
        f"{SEARCH}?{SEARCHES[line]}&startDate=2017-11-01T10:00:00"
        "&completionDate=9999-01-01&maxRecords=500&productType=S2MSI1C"
    )


def test_list_grows_and_keeps_its_entries(run, peps):
    LIST.write_bytes(b"\xef\xbb\xbfS2A_older  \nS2A_another")  # with a BOM
    order(run, "-w", "logs")
    kept = b"\xef\xbb\xbfS2A_older  \nS2A_another\n%s\n"
    assert LIST.read_bytes() == kept % "\n".join(NAMES).encode()
    assert names_in("logs") == {f"{name}.log" for name in NAMES}


@pytest.mark.parametrize(("typed", "ends"), [
    ("yes\n", 0), ("what?\ny\n", 0), ("no\n", 1), ("what?\n", 2), (None, 2),
])  # fmt: skip
def test_large_order_asks_also_a_pipe(finish, peps, typed, ends):
    found = finish(*ORDER, status=ends, input=typed)
    assert "12 products" in found.err
    assert len(peps.jobs) == (0 if ends else 12)
    assert ends != 2 or "--yes" in found.err


def test_answer_is_heard_where_no_question_can_be_asked(finish, peps):
    """As with `echo yes | ... 2>&-`, and 2>/dev/full."""
    finish(*ORDER, input="yes\n", preexec_fn=lambda: os.close(2))
    with open("/dev/full", "w") as full:
        finish(*ORDER, "--force", input="yes\n", stderr=full)
    assert len(peps.jobs) == 24


def test_product_that_is_listed_twice_is_ordered_once(run, peps):
    peps.catalogue = [entry(FIRST), entry(FIRST, mgrs="31TCJ")]
    assert "1 product found: 1 ordered now" in order(run, "--force").out
    assert len(peps.jobs) == 1


def test_yes_and_what_is_ordered_before_ask_nothing(run, peps):
    order(run)
    found = run(*ORDER)
    assert "12 products found: 6 ordered before, 6 ordered now\n" in found.out
    run(*ORDER, "--force", "-y")
    assert (len(peps.jobs), found.err) == (24, "")


def test_refused_products_stop_no_other(run, peps):
    peps.refuse = {FIRST: "lost"}
    peps.faults.append((SECOND, json_error(404, "lost")))
    found = order(run, status=1)
    assert [name in found.err for name in NAMES[:3]] == [True, True, False]
    assert "6 products found: 4 ordered now, 2 not ordered\n" in found.out
    assert LIST.read_text().split() == NAMES[2:]


def test_doubt_ends_the_list_and_a_note_does_not(run, peps):
    peps.faults.append((SECOND, status(500)))
    for count in (1, 5):
        line = only_line(order(run, status=1), "in doubt", f"{SECOND}.log", "list.txt")
        assert "--force" not in line
        assert len(peps.jobs) == count
    Path(f"{SECOND}.log").unlink()
    order(run)
    assert sorted(ordered(peps)) == sorted(NAMES)


def test_note_that_another_run_writes_meanwhile_does_not_end_it(run, peps):
    note = Path(f"{SECOND}.log")
    peps.faults.append(
        (FIRST, lambda _: note.write_text("PEPS order of noon") and None)
    )
    only_line(order(run, status=1), "in doubt", SECOND)
    assert ordered(peps) == [name for name in NAMES if name != SECOND]


def test_old_doubt_in_any_folder_of_logs_is_looked_at_first(run, peps):
    Path("lists").mkdir()
    old = [Path(f"lists/{FIRST}.log.part"), Path(f"{SECOND}.log.part")]
    for part in old:
        part.touch()
    line = order(run, "-p", "lists/list.txt", "-w", "logs", status=1).err
    assert [str(part) in line for part in old] == [True, True]
    assert ordered(peps) == NAMES[2:]


@pytest.mark.parametrize(
    ("code", "ends"), [(401, 1), (429, 75), (503, 75), ("ServerBusy", 75)]
)
def test_one_cause_ends_the_list(run, peps, code, ends):
    busy = xml(refusal("full", "ServerBusy"))
    peps.always.append((EXECUTE, busy if code == "ServerBusy" else status(code)))
    only_line(order(run, status=ends), FIRST)
    assert (len(peps.requests(EXECUTE)), names_in()) == (1, {"peps.txt"})


def test_service_that_leaves_ends_the_list(run, peps):
    """It takes one connection, that of the search."""
    service, gone = Server(peps), threading.Event()

    def serve():
        service.handle_request()
        service.server_close()
        gone.set()

    threading.Thread(target=serve).start()
    peps.always.append((SEARCH, hold(gone, None)))
    server = f"http://127.0.0.1:{service.server_address[1]}"
    only_line(order(run, "--server", server, status=75), FIRST)
    assert names_in() == {"peps.txt"}


def test_killed_order_goes_on_with_the_rest(launch, run, peps):
    peps.faults.append((SECOND, hold(threading.Event(), None)))
    process = order(launch)
    peps.wait_for(lambda: peps.requests(SECOND))
    process.kill()
    process.wait()
    assert LIST.read_text().split() == [FIRST]
    only_line(order(run, status=1), SECOND)
    assert LIST.read_text().split() == ordered(peps) == [FIRST, *NAMES[2:]]


@pytest.mark.parametrize("where", ["logs", "lists", "."])
def test_product_with_a_job_counts_as_ordered(run, peps, where):
    Path("logs").mkdir()
    Path("lists").mkdir()
    Path(where, f"{FIRST}.log").write_bytes(JOB)
    found = order(run, "-w", "logs", "-p", "lists/list.txt")
    assert "6 products found: 1 ordered before, 5 ordered now\n" in found.out
    assert FIRST in Path("lists/list.txt").read_text()


def test_listed_product_without_a_log_was_ordered_elsewhere(run, peps):
    LIST.write_text(FIRST)
    found = order(run).out
    assert f"{FIRST}: stands in list.txt, its log is elsewhere" in found
    assert "6 products found: 1 ordered elsewhere, 5 ordered now" in found
    assert ordered(peps) == NAMES[1:]


def test_force_orders_anew_and_keeps_the_log(run, peps):
    LIST.write_text(f"\ufeff{FIRST}", "utf-8")
    Path(f"{SECOND}.log").write_bytes(JOB)
    order(run, "--force")
    assert LIST.read_text("utf-8-sig").split() == ordered(peps) == NAMES
    assert Path(f"{SECOND}.log.1").read_bytes() == JOB


@pytest.mark.parametrize("content", [b"# MAJA images from PEPS\n", bytes(range(256))])
def test_file_that_is_no_list_is_left_alone(run, peps, content):
    LIST.write_bytes(content)
    only_line(order(run, status=2), "list.txt")
    assert (LIST.read_bytes(), peps.journal) == (content, [])


def test_dry_run_shows_all_and_writes_nothing(run, peps):
    shown = order(run, "-n", "-w", "logs").out.split()
    assert (names_in(), peps.requests(EXECUTE)) == ({"peps.txt"}, [])
    order(run)
    urls = {f"{peps.url}{sent.target}" for sent in peps.journal}
    assert {*urls, *NAMES} <= {*shown}


def test_all_pages_are_saved(run, peps):
    peps.catalogue = [entry(f"S2A_R051_{number}") for number in range(1200)]
    order(run, "-n", "--json", "all.json")
    assert json.loads(Path("all.json").read_text())["features"] == peps.catalogue
    assert [sent.query[-7:] for sent in peps.journal[1:]] == ["&page=2", "&page=3"]


def page(name):
    """A page of the catalogue, which says that there is another one."""
    more = {"links": [{"rel": "next"}]}
    return json_document({"properties": more, "features": [entry(name)]})


def test_server_that_ignores_the_page_ends_the_search(run, peps):
    peps.always.append((SEARCH, page(FIRST)))
    order(run)
    assert (len(peps.requests(SEARCH)), ordered(peps)) == (2, [FIRST])


def test_catalogue_without_end_is_an_error(run, peps):
    numbers = itertools.count()
    fault = lambda handler: page(f"S2A_R051_{next(numbers)}")(handler)  # noqa: E731
    peps.always.append((SEARCH, fault))
    only_line(order(run, status=1), "100 pages")
    assert (len(peps.journal), LIST.exists()) == (100, False)


def test_odd_and_missing_keys(run, peps):
    useless = [*map(entry, (None, 51, "../S2A_x")), {"properties": None}, None]
    usable = [entry(FIRST), entry(SECOND, storage=["?"], mgrs=31, startDate=None)]
    peps.catalogue = [*useless, *usable, entry("S2B_x", storage={"mode": "tape"})]
    found = run(*ORDER)
    only_line(found, "warning", "5 results")
    assert ordered(peps) == [FIRST, SECOND, "S2B_x"]
    assert "\nS2B_x  (tape)\n" in found.out


FAILED = {
    "empty": (json_document({"features": []}), 1, "no product"),
    "JSON": (json_error(400), 1, "Unauthorized"),
    "404": (status(404), 1, "--server"),
    "401": (status(401), 1, "peps.txt"),
    "503": (status(503), 75, "503"),
    "page": (status(200, body=b"<html>"), 75, "later"),
}


@pytest.mark.parametrize("name", FAILED)
def test_search_that_fails(run, peps, name):
    fault, ends, word = FAILED[name]
    peps.always.append((SEARCH, fault))
    only_line(order(run, status=ends), word)
    assert names_in() == {"peps.txt"}


def test_quiet_orders_print_nothing(run, peps):
    assert order(run, "-q")[1:] == ("", "")


@pytest.mark.parametrize(("count", "ends"), [(10, 0), (11, 2)])
def test_ten_products_are_ordered_unasked(finish, peps, count, ends):
    peps.catalogue = [entry(f"S2A_{number}") for number in range(count)]
    finish(*ORDER, status=ends)
    assert len(peps.jobs) == (0 if ends else count)


def test_log_with_a_job_or_a_note_counts_wherever_it_is(run, peps):
    peps.catalogue = [entry(FIRST)]
    here = Path(f"{FIRST}.log")
    here.write_bytes(JOB)
    Path("logs").mkdir()
    Path("logs", here).write_bytes(refusal("no"))
    assert "1 ordered before" in order(run, "-w", "logs").out
    here.write_text("PEPS order of noon")
    only_line(order(run, "-w", "logs", status=1), "in doubt")
    assert not peps.jobs


def test_doubt_stops_no_download(run, make_job):
    make_job(SECOND)
    Path(f"{FIRST}.log").write_text("PEPS order of noon")
    LIST.write_text(f"{FIRST} {SECOND}")
    ended = run("peps_maja_download", "-p", LIST, "-w", "products", status=1)
    assert "--force" not in only_line(ended, "in doubt", f"{FIRST}.log", "list.txt")
    assert "3 products downloaded" in last(ended)


def test_search_without_end_is_given_up(run, peps, monkeypatch):
    monkeypatch.setattr("peps_common.PATIENCE_S", 1)
    peps.always.append((SEARCH, endless(b"HTTP/1.1 200 OK\r\n\r\n", b" ", 0.05)))
    only_line(order(run, status=75), peps.url[7:], "no answer")
