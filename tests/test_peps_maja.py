"""The stories of the single-product pair: peps_maja_process searches and orders, peps_maja_download downloads."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
from local_peps import OUTPUTS, SEARCH, WPS, acquisitions, cut, feature, hold, make_product, status

EXECUTE = "identifier=MAJA&"
ORDER = "request=execute&service=WPS&version=1.0.0&identifier=MAJA&datainputs=product={}"
ORDER += "&storeExecuteResponse=true&status=true&title=Maja-Process"
SEARCHED = "{}&startDate=2017-11-01&completionDate=2017-12-01&maxRecords=500&productType=S2MSI1C"
NOVEMBER = ("-d", "2017-11-01", "-f", "2017-12-01", "-p", "list.txt")
BOTH_ORBITS = acquisitions("31TCJ", "2017-11-01", "2017-12-01")
ORBIT_51 = acquisitions("31TCJ", "2017-11-01", "2017-12-01", 51)
CLEAR = [seen for seen in BOTH_ORBITS if not seen.cloudy]

LINES = [
    pytest.param(
        "python ./peps_maja_process.py -l Toulouse -a peps.txt -d 2017-11-01 -f 2017-12-01 -p prod_list_toulouse.txt",
        "q=Toulouse",
        BOTH_ORBITS,
        id="town",
    ),
    pytest.param(
        "python ./peps_maja_process.py --lon 1 --lat 43.5 -a peps.txt -d 2017-11-01 -f 2017-12-01 "
        "-p prod_list_toulouse.txt",
        "lat=43.500000&lon=1.000000",
        BOTH_ORBITS,
        id="point",
    ),
    pytest.param(
        "python ./peps_maja_process.py 2 --lon 1 --lat 43.5 -a peps.txt -d 2017-11-01 -f 2017-12-01 -o 51 "
        "-p prod_list_toulouse.txt",
        "lat=43.500000&lon=1.000000",
        ORBIT_51,
        id="stray 2",
    ),
]
DOWNLOAD_LINE = "python peps_maja_download.py -p prod_list_toulouse.txt -a peps.txt -w {folder}/PEPS_MAJA"


def words_of(line):
    """A documented command line as script and arguments."""
    _, script, *argv = shlex.split(line)
    return [Path(script).stem, *argv]


def order(run, *more, status=0):
    """Search November 2017 over Toulouse and order what is found."""
    return run("peps_maja_process", "-t", "31TCJ", *NOVEMBER, *more, status=status)


def follow(run, *more, status=0):
    """Follow up the products of the list."""
    return run("peps_maja_download", "-p", "list.txt", *more, status=status)


def listed(path="list.txt"):
    """The lines of a product list."""
    return Path(path).read_text().splitlines()


def names(seen):
    """The L1C names of acquisitions."""
    return [acquisition.l1c for acquisition in seen]


def ordered(peps):
    """How often the service has taken on each product."""
    return Counter(job.subject for job in peps.jobs.values())


def once(seen):
    """Each acquisition ordered once."""
    return Counter(names(seen))


def lines_of(text, name):
    """The lines that speak of a product."""
    return [line for line in text.splitlines() if name in line]


def zips(folder="."):
    """The names of the products in a folder, and of whatever is left of their downloads."""
    return {path.name for path in Path(folder).iterdir() if ".zip" in path.name}


def shows(*seen):
    """The catalogue's features of acquisitions."""
    return [feature(acquisition) for acquisition in seen]


@pytest.fixture(autouse=True)
def small_products(peps):
    """Products of a few kB: what is in them does not matter here."""
    peps.product_size = 3000


# ---- the documented lines


@pytest.mark.parametrize(("line", "area", "found"), LINES)
def test_documented_line_searches_asks_and_orders(terminal, peps, folder, line, area, found):
    """A documented line, typed at a terminal: one search, a question above ten products, one job a product."""
    shown = terminal(*words_of(line), answer=b"yes\n")
    assert [request.query for request in peps.requests(SEARCH)] == [SEARCHED.format(area)]
    assert ("yes/no" in shown) == (len(found) > 10)
    assert {request.query for request in peps.requests(EXECUTE)} == {ORDER.format(name) for name in names(found)}
    assert ordered(peps) == once(found)
    assert sorted(listed("prod_list_toulouse.txt")) == sorted(names(found))
    jobs = {job.subject: job.id for job in peps.jobs.values()}
    for name in names(found):
        assert f"{peps.url}{OUTPUTS}{jobs[name]}.xml" in (folder / f"{name}.log").read_text()
        assert any(jobs[name] in text for text in lines_of(shown, name))


def test_stray_word_is_ignored_with_a_warning(run, peps):
    """The 2 of the third documented line does no harm, and is not passed over in silence."""
    result = run(*words_of(LINES[2].values[0]))
    assert len(result.err.splitlines()) == 1
    assert re.search(r"warning.*\b2\b", result.err)


def test_documented_download_works_as_written(run, launch, peps, folder):
    """The products come to the folder of -w, while the logs stay where the order wrote them."""
    run(*words_of(LINES[2].values[0]))
    peps.advance(hours=3)
    process = launch(*words_of(DOWNLOAD_LINE.format(folder=folder)))
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    clear = {seen.l2a for seen in ORBIT_51 if not seen.cloudy}
    assert zips("PEPS_MAJA") == clear
    for name in clear:
        assert (folder / "PEPS_MAJA" / name).read_bytes() == make_product(name, 3000)
    assert f"{len(clear)} downloaded" in out.splitlines()[-1]
    assert f"{len(ORBIT_51) - len(clear)} too cloudy" in out.splitlines()[-1]


def test_documents_stand_beside_the_log(run, peps, folder):
    """update_<product>.txt and <product>.stat are the service's documents byte for byte."""
    peps.catalogue = shows(CLEAR[0])
    order(run, "-w", "logs")
    job_id, name = next(iter(peps.jobs)), CLEAR[0].l1c
    follow(run, "-w", "logs", status=75)
    assert (folder / "logs" / f"update_{name}.txt").read_bytes() == peps.output(f"{job_id}.xml")
    assert (folder / "logs" / f"{name}.stat").read_bytes() == peps.output(f"{job_id}/report.json")
    assert {path.name for path in (folder / "logs").iterdir()} == {
        f"{name}.log",
        f"update_{name}.txt",
        f"{name}.stat",
    }


# ---- searching


AREAS = [
    pytest.param(("-t", "T31TCJ"), "tileid=31TCJ", id="tile"),
    pytest.param(("-l", "Saint-Étienne & fils"), "q=Saint-%C3%89tienne%20%26%20fils", id="town"),
    pytest.param(("--lat", "43.5", "--lon", "1"), "lat=43.500000&lon=1.000000", id="point"),
    pytest.param(("--lat", "-0.5", "--lon", "-71.25"), "lat=-0.500000&lon=-71.250000", id="point south and west"),
    pytest.param(
        ("--latmin", "43", "--latmax", "44", "--lonmin", "-1.5", "--lonmax", "2"),
        "box=-1.500000,43.000000,2.000000,44.000000",
        id="box",
    ),
]


@pytest.mark.parametrize(("area", "query"), AREAS)
def test_area_on_the_wire(run, peps, area, query):
    """Each kind of area goes over the wire as the service knows it."""
    run("peps_maja_process", *area, *NOVEMBER, "-n")
    assert peps.journal[0].query == SEARCHED.format(query)
    assert {request.path for request in peps.journal} == {SEARCH}


def test_town_arrives_as_it_was_typed(run, peps):
    """Accents, blanks and an ampersand are the town's, not the query's."""
    run("peps_maja_process", "-l", "Saint-Étienne & fils", *NOVEMBER, "-n")
    assert peps.towns == ["Saint-Étienne & fils"]


def test_open_end_is_the_last_of_all_days(run, peps):
    """Without -f the search has no end."""
    run("peps_maja_process", "-t", "31TCJ", "-d", "2017-11-01", "-p", "list.txt", "-n")
    assert "&completionDate=9999-01-01&" in peps.journal[0].query


def test_twelve_hundred_products_are_three_requests(run, peps, folder):
    """Each page is fetched once, in order, and the merged answer holds every product."""
    named = [f"S2A_MSIL1C_20170704T105621_N0205_R051_T31TCJ_{number:06}" for number in range(1200)]
    peps.catalogue = [{"properties": {"productIdentifier": name}} for name in named]
    result = order(run, "-n", "--json", "answer.json")
    assert [re.findall(r"&page=(\d+)", request.query) for request in peps.journal] == [[], ["2"], ["3"]]
    assert [name for name in named if not lines_of(result.out, name)] == []
    saved = json.loads((folder / "answer.json").read_text())
    assert saved["type"] == "FeatureCollection"
    assert [found["properties"]["productIdentifier"] for found in saved["features"]] == named
    assert not any(link.get("rel") == "next" for link in saved["properties"].get("links", []))


def test_server_that_ignores_the_page_ends_the_search(run, peps):
    """A catalogue that sends its first page for ever is not asked for ever."""
    page = {
        "type": "FeatureCollection",
        "properties": {"links": [{"rel": "next", "href": peps.url}]},
        "features": shows(*ORBIT_51),
    }
    same = status(200, body=json.dumps(page).encode(), content_type="application/json")
    # A search without end is to fail here, and not to hang.
    answers = itertools.chain([same] * 3, itertools.repeat(status(404)))
    peps.always.append((SEARCH, lambda handler: next(answers)(handler)))
    order(run)
    assert ordered(peps) == once(ORBIT_51)


def test_missing_and_null_keys_do_not_matter(run, peps):
    """All that a feature must have is the product's name."""
    bare, null, odd, whole = ORBIT_51[:4]
    nothing = dict.fromkeys(feature(null)["properties"])
    peps.catalogue = [
        {"properties": {"productIdentifier": bare.l1c}},
        {"id": None, "properties": {**nothing, "productIdentifier": null.l1c}},
        {"id": 7, "properties": {**feature(odd)["properties"], "storage": ["tape"], "mgrs": 31}},
        feature(whole),
    ]
    assert order(run).err == ""
    assert ordered(peps) == once(ORBIT_51[:4])


@pytest.mark.parametrize(
    "nameless",
    [
        pytest.param({"properties": {"productIdentifier": None}}, id="null"),
        pytest.param({"properties": {"productIdentifier": 51}}, id="number"),
        pytest.param({"properties": {}}, id="missing"),
        pytest.param({"properties": None}, id="no properties"),
        pytest.param(None, id="no feature"),
        pytest.param({"properties": {"productIdentifier": "../../etc/passwd"}}, id="path"),
        pytest.param({"properties": {"productIdentifier": ".hidden"}}, id="hidden"),
        pytest.param({"properties": {"productIdentifier": "a\nb"}}, id="control character"),
    ],
)
def test_product_without_a_usable_name_is_warned_of(run, peps, folder, nameless):
    """It is left out with a warning, and the others are ordered."""
    peps.catalogue = [nameless, *shows(CLEAR[0])]
    result = order(run)
    assert "warning" in result.err
    assert len(result.err.splitlines()) == 1
    assert ordered(peps) == once(CLEAR[:1])
    assert {path.name for path in folder.iterdir()} == {"peps.txt", "list.txt", f"{CLEAR[0].l1c}.log"}


def test_storage_is_shown_before_the_order(run, peps):
    """Each product is listed with where the service keeps it."""
    peps.catalogue = shows(*ORBIT_51)
    for number, mode in enumerate(("disk", "tape", "staging", "unknown")):
        peps.catalogue[number]["properties"]["storage"] = {"mode": mode}
    result = order(run)
    for number, mode in enumerate(("disk", "tape", "staging", "unknown")):
        first, *_, last = lines_of(result.out, ORBIT_51[number].l1c)
        assert mode in first
        assert next(job.id for job in peps.jobs.values() if job.subject == ORBIT_51[number].l1c) in last


def test_search_without_result_is_status_1(run, peps):
    """Nothing found is a failure that a person looks at."""
    result = run("peps_maja_process", "-l", "Nowhere", *NOVEMBER, status=1)
    assert len(result.err.splitlines()) == 1
    assert peps.requests(WPS) == []


@pytest.mark.parametrize("code", [200, 400])
def test_error_of_the_catalogue_is_told(run, peps, code):
    """A JSON error is recognised, whatever the HTTP status it comes with."""
    peps.always.append((SEARCH, status(code, body=b'{"ErrorCode": 400, "ErrorMessage": "no such collection"}')))
    result = order(run, status=1)
    assert "no such collection" in result.err
    assert len(result.err.splitlines()) == 1
    assert len(peps.journal) == 1


@pytest.mark.parametrize("body", [b"<html>busy</html>", b"", b"[]", b'{"features": 3}', b'{"features": ['])
def test_page_that_is_no_answer_is_not_taken_for_nothing_found(run, peps, body):
    """Something else than an answer is the service out of order: status 75, nothing ordered."""
    peps.always.append((SEARCH, status(200, body=body, content_type="application/json")))
    assert len(order(run, status=75).err.splitlines()) == 1
    assert peps.requests(WPS) == []


def test_dry_run_orders_nothing(run, peps, folder):
    """-n shows the search, the products and the requests that the order then sends, and writes nothing."""
    shown = order(run, "-n", "-o", "51").out.split()
    assert {path.name for path in folder.iterdir()} == {"peps.txt"}
    assert peps.requests(WPS) == []
    order(run, "-o", "51")
    assert {f"{peps.url}{request.target}" for request in peps.journal} <= set(shown)
    assert set(names(ORBIT_51)) <= set(shown)


# ---- asking first


@pytest.mark.parametrize(
    ("answer", "expected", "count"),
    [
        pytest.param(b"yes\n", 0, 12, id="yes"),
        pytest.param(b"no\n", 1, 0, id="no"),
        pytest.param(b"perhaps\nno\n", 1, 0, id="neither, then no"),
        pytest.param(b"\x04", 1, 0, id="end of input"),
    ],
)
def test_large_order_asks(terminal, peps, answer, expected, count):
    """More than ten products are ordered after a yes alone."""
    shown = terminal("peps_maja_process", "-t", "31TCJ", *NOVEMBER, answer=answer, status=expected)
    assert "12 products" in shown
    assert "Traceback" not in shown
    assert len(peps.jobs) == count


def test_large_order_without_a_terminal_needs_yes(run, peps):
    """Where nobody can be asked, --yes is named and nothing is ordered."""
    result = order(run, status=2)
    assert len(result.err.splitlines()) == 1
    assert "--yes" in result.err
    assert peps.requests(WPS) == []


@pytest.mark.parametrize("flag", ["-y", "--yes"])
def test_yes_asks_nothing(run, peps, flag):
    """--yes orders at once."""
    order(run, flag)
    assert ordered(peps) == once(BOTH_ORBITS)


def test_ten_products_need_no_question(run, peps):
    """Ten are not more than ten."""
    peps.catalogue = shows(*BOTH_ORBITS[:10])
    order(run)
    assert len(peps.jobs) == 10


def test_what_is_ordered_already_is_not_asked_about(run, peps):
    """The question is about the rest of an order."""
    peps.catalogue = shows(*BOTH_ORBITS[:10])
    order(run)
    peps.catalogue = None
    order(run)
    assert ordered(peps) == once(BOTH_ORBITS)


# ---- ordering once


def test_same_line_twice_orders_once(run, peps):
    """A product whose log holds a job counts as ordered."""
    order(run, "-o", "51")
    logs = {name: Path(f"{name}.log").read_bytes() for name in names(ORBIT_51)}
    order(run, "-o", "51")
    assert ordered(peps) == once(ORBIT_51)
    assert sorted(listed()) == sorted(names(ORBIT_51))
    assert {name: Path(f"{name}.log").read_bytes() for name in names(ORBIT_51)} == logs


def test_list_grows_and_keeps_its_entries(run, peps, folder):
    """What stands in the list stays, even without a newline at its end."""
    (folder / "list.txt").write_text("an_older_product\nanother_one")
    peps.catalogue = shows(*CLEAR[:2])
    order(run)
    peps.catalogue = shows(*CLEAR[:4])
    order(run)
    assert listed() == ["an_older_product", "another_one", *names(CLEAR[:4])]
    assert ordered(peps) == once(CLEAR[:4])


def test_lost_line_of_the_list_is_put_back(run, peps, folder):
    """A run killed between log and list leaves a job that the next run finds by its log."""
    order(run, "-o", "51")
    (folder / "list.txt").write_text("\n".join(listed()[:-1]) + "\n")
    order(run, "-o", "51")
    assert ordered(peps) == once(ORBIT_51)
    assert sorted(listed()) == sorted(names(ORBIT_51))


def test_killed_order_goes_on_with_the_rest(run, launch, peps):
    """Killed on the fourth of six and run again: each product ordered once, and the list complete."""
    never, numbers = threading.Event(), itertools.count(1)

    def lose_the_fourth(handler):
        # The client is dead when this ends: its request must not become a job after that.
        return next(numbers) == 4 and (hold(never, None)(handler) or cut(None)(handler))

    peps.always.append((EXECUTE, lose_the_fourth))
    process = launch("peps_maja_process", "-t", "31TCJ", *NOVEMBER, "-o", "51")
    peps.wait_for(lambda: len(peps.requests(EXECUTE)) == 4)
    process.kill()
    process.wait(30)
    assert sorted(listed()) == sorted(ordered(peps))
    order(run, "-o", "51")
    assert ordered(peps) == once(ORBIT_51)
    assert sorted(listed()) == sorted(names(ORBIT_51))


def test_interrupted_order_goes_on_with_the_rest(run, launch, peps):
    """Ctrl-C keeps what is ordered, says which doubt is left, and the next run does the rest."""
    never, numbers = threading.Event(), itertools.count(1)
    peps.always.append(
        (EXECUTE, lambda handler: next(numbers) == 3 and (hold(never, None)(handler) or cut(None)(handler)))
    )
    process = launch("peps_maja_process", "-t", "31TCJ", *NOVEMBER, "-o", "51")
    peps.wait_for(lambda: len(peps.requests(EXECUTE)) == 3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "may have been accepted" in err
    order(run, "-o", "51")
    assert ordered(peps) == once(ORBIT_51)


def test_refused_product_does_not_stop_the_others(run, peps):
    """It is named with the service's reason and stays off the list; the next run orders it alone."""
    refused = ORBIT_51[2].l1c
    peps.refuse[refused] = "no such product on tape"
    result = order(run, "-o", "51", status=1)
    assert ["no such product on tape" in line for line in lines_of(result.err, refused)] == [True]
    assert sorted(listed()) == sorted(set(names(ORBIT_51)) - {refused})
    assert not Path(f"{refused}.log").exists()
    peps.refuse.clear()
    peps.journal.clear()
    order(run, "-o", "51")
    assert [request.query for request in peps.requests(EXECUTE)] == [ORDER.format(refused)]
    assert ordered(peps) == once(ORBIT_51)


def test_lost_answer_does_not_stop_the_others(run, peps):
    """One order in doubt is named and not repeated; the others go on."""
    peps.faults.append((EXECUTE, cut(None)))
    result = order(run, "-o", "51", status=1)
    assert "may have been accepted" in result.err
    assert len(peps.requests(EXECUTE)) == len(ORBIT_51)
    assert len(listed()) == len(ORBIT_51) - 1


def test_refused_account_stops_the_order_at_once(run, peps):
    """There is no use in showing a wrong password six times."""
    peps.always.append((EXECUTE, status(401)))
    result = order(run, "-o", "51", status=1)
    assert "401" in result.err
    assert len(peps.requests(EXECUTE)) == 1


def test_wrong_password_is_refused_by_the_search(run, peps, account):
    """401 is for good, and the password is not echoed."""
    account.write_text("jean.dupont@example.org wrong-secret")
    result = order(run, status=1)
    assert "401" in result.err
    assert "wrong-secret" not in result.out + result.err
    assert len(peps.journal) == 1


def test_last_line_counts_what_was_really_ordered(run, peps, folder):
    """A log that is none and an answer that is no job count as not ordered."""
    earlier, spoilt, plain, unclear = ORBIT_51[:4]
    peps.catalogue = shows(earlier)
    order(run)
    (folder / f"{spoilt.l1c}.log").write_text("somebody's notes")
    peps.catalogue = shows(earlier, spoilt, plain, unclear)
    peps.faults.append((f"product={unclear.l1c}&", status(200, body=b"<html>busy</html>")))
    result = order(run, status=1)
    for words in ("4 products found", "1 ordered before", "1 ordered now", "2 not ordered"):
        assert words in result.out.splitlines()[-1]
    assert listed() == names([earlier, plain])


def test_list_that_cannot_be_written_stops_the_order(run, peps):
    """Nothing is sent where the list could not be kept."""
    result = run("peps_maja_process", "-t", "31TCJ", *NOVEMBER[:-1], "no/such/folder/list.txt", status=2)
    assert "no/such/folder" in result.err
    assert peps.journal == []


# ---- following up


def two_orders(run, peps, first, second):
    """Order some products, and others so much later that those have ended and these are running."""
    peps.catalogue = shows(*first)
    order(run)
    peps.advance(hours=3)
    peps.catalogue = shows(*second)
    order(run)
    peps.advance(minutes=40)


def test_mixed_list_from_trouble_to_rest(run, peps, folder):
    """Finished, running, cancelled and lost: the worst status wins, later all is well, then nothing is asked."""
    finished, cancelled, running, lost = CLEAR[:4]
    peps.ends[cancelled.l1c] = ("CANCELED", "")
    two_orders(run, peps, [finished, cancelled], [running])
    with open("list.txt", "a") as file:
        file.write(lost.l1c + "\n")
    result = follow(run, status=1)
    assert zips() == {finished.l2a}
    percent = peps.state(list(peps.jobs)[-1])[1]
    assert any(f"{percent}%" in line for line in lines_of(result.out, running.l1c))
    assert any("60°" in line and "SRTM" in line for line in lines_of(result.err, cancelled.l1c))
    assert any(f"{lost.l1c}.log" in line for line in lines_of(result.err, lost.l1c))
    for words in ("1 finished", "1 running", "1 canceled", "1 downloaded"):
        assert words in result.out.splitlines()[-1]

    peps.ends.clear()
    (folder / f"{cancelled.l1c}.log").unlink()
    peps.catalogue = shows(finished, cancelled, running, lost)
    order(run)
    assert ordered(peps) == once([finished, cancelled, running, lost]) + Counter([cancelled.l1c])
    peps.advance(hours=3)
    follow(run)
    assert zips() == {seen.l2a for seen in (finished, cancelled, running, lost)}
    peps.journal.clear()
    follow(run)
    assert peps.journal == []


def test_missing_log_alone_is_status_2(run, peps, folder):
    """A product of the list that was never ordered here is a slip of a person, and costs no request."""
    (folder / "list.txt").write_text(CLEAR[0].l1c + "\n")
    assert CLEAR[0].l1c in follow(run, status=2).err
    assert peps.journal == []


@pytest.mark.parametrize(
    ("minutes", "end", "expected", "words"),
    [
        pytest.param(0, None, 75, "waiting", id="waiting"),
        pytest.param(55, None, 75, "%", id="running"),
        pytest.param(180, None, 0, "finished", id="finished"),
        pytest.param(180, "ERROR", 1, "failed", id="failed"),
        pytest.param(180, "CANCELED", 1, "SRTM", id="canceled"),
    ],
)
@pytest.mark.parametrize("form", ["same", "loose"])
def test_each_form_of_report_is_understood(run, peps, minutes, end, expected, words, form):
    """Reports with and without USER_INFO tell the same."""
    peps.single_report, peps.catalogue = form, shows(CLEAR[0])
    if end:
        peps.ends[CLEAR[0].l1c] = (end, "")
    order(run)
    peps.advance(minutes=minutes)
    result = follow(run, status=expected)
    assert any(words in line for line in lines_of(result.out + result.err, CLEAR[0].l1c))
    assert zips() == ({CLEAR[0].l2a} if expected == 0 else set())


def test_cancelled_job_names_the_terrain_model(run, peps):
    """What a cancellation can mean is said."""
    peps.catalogue, peps.ends[CLEAR[0].l1c] = shows(CLEAR[0]), ("CANCELED", "")
    order(run)
    peps.advance(hours=3)
    line = follow(run, status=1).err.splitlines()[0]
    assert "|lat|" in line
    assert "60°" in line
    assert "SRTM" in line


def test_states_are_asked_side_by_side(run, peps, folder, meeting):
    """Eight products are asked for at once at least: the first eight answers wait for each other."""
    gather = meeting(8)
    for number in range(40):
        location = f"{peps.url}{OUTPUTS}{number}.xml"
        (folder / f"product{number}.log").write_text(
            f'<ExecuteResponse xmlns="http://www.opengis.net/wps/1.0.0" statusLocation="{location}"/>'
        )
    (folder / "list.txt").write_text("".join(f"product{number}\n" for number in range(40)))
    waiting = b'<ExecuteResponse xmlns="http://www.opengis.net/wps/1.0.0"/>'
    peps.always += [(".xml", gather), (".xml", status(200, body=waiting, content_type="text/xml"))]
    result = follow(run, status=75)
    assert not gather.barrier.broken
    assert len(peps.requests(".xml")) == 40
    assert "40 waiting" in result.out.splitlines()[-1]


def test_product_named_twice_is_one_job(run, peps, folder):
    """Lists that were put together may name a product twice."""
    peps.catalogue = shows(CLEAR[0])
    order(run)
    (folder / "list.txt").write_text(f"{CLEAR[0].l1c}\n\n{CLEAR[0].l1c}\r\n")
    follow(run, status=75)
    assert len(peps.requests(".xml")) == 1


def test_list_and_logs_may_stand_elsewhere(run, peps, folder):
    """List, logs and products may each have a folder of their own."""
    (folder / "lists").mkdir()
    peps.catalogue = shows(CLEAR[0])
    run("peps_maja_process", "-t", "31TCJ", *NOVEMBER[:-1], "lists/list.txt", "-w", "logs")
    peps.advance(hours=3)
    run("peps_maja_download", "-p", "lists/list.txt", "-w", "logs")
    assert zips("logs") == {CLEAR[0].l2a}


def test_wait_stays_until_the_last_product(run, peps):
    """--wait stays while a job runs, driven here by its own looks at the service."""
    steps = itertools.chain([0, 0, 40, 0], itertools.repeat(180))

    def advance(handler):
        handler.peps.advance(minutes=next(steps))
        return False

    peps.catalogue = shows(CLEAR[0])
    order(run)
    peps.always.append((".xml", advance))
    result = follow(run, "--wait", "--interval", "0.001")
    assert re.findall(r": (waiting|running|finished)", result.out) == ["waiting", "running", "finished"]
    assert len(peps.requests(".xml")) == 5
    assert zips() == {CLEAR[0].l2a}


def test_quiet_is_silent_unless_there_is_news(run, peps):
    """With -q a waiting product prints nothing, a finished one a line, and a look at it later nothing again."""
    peps.catalogue = shows(CLEAR[0])
    assert order(run, "-q")[1:] == ("", "")
    assert follow(run, "-q", status=75)[1:] == ("", "")
    peps.advance(hours=3)
    assert CLEAR[0].l1c in follow(run, "-q").out
    assert follow(run, "-q")[1:] == ("", "")


def test_product_that_another_run_has_just_ordered_counts_as_ordered(run, peps, folder):
    """Two runs at once: what one of them orders, the other finds ordered when its turn comes."""
    first = ORBIT_51[0]
    answer = Path(f"{first.l1c}.log")
    peps.catalogue = shows(first)

    def order_it_meanwhile(handler) -> bool:
        answer.write_text(
            '<w:ExecuteResponse xmlns:w="http://www.opengis.net/wps/1.0.0" '
            'statusLocation="http://127.0.0.1:9/theirs.xml"><w:Status><w:ProcessAccepted/></w:Status>'
            "</w:ExecuteResponse>"
        )
        Path(f"{answer}.part").write_bytes(answer.read_bytes())
        answer.unlink()
        return False

    peps.faults.append(("search.json", order_it_meanwhile))
    result = order(run)
    assert "job theirs" in result.out
    assert result.err == ""
    assert listed() == [first.l1c]
    assert peps.requests("identifier=MAJA") == []


def test_account_file_and_catalogue_answer_are_no_product_list(run, peps, folder, account):
    for files in (("-p", "peps.txt"), ("-p", "list.txt", "--json", "list.txt")):
        run("peps_maja_process", "-t", "31TCJ", *NOVEMBER[:-2], *files, status=2)
    assert account.read_text("utf-8") == f"{peps.account}\n"
    assert peps.journal == []
