"""Documents, names, addresses and words of every shape: text in, values out."""

from __future__ import annotations

import contextlib
import json
import re
from argparse import ArgumentTypeError
from base64 import b64decode
from datetime import datetime
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stories import answer

import full_maja_download as download
import peps_common as common
from peps_common import PepsError, Status, Unreadable, parse_wps
from peps_maja_process import as_moment, latitude

# The same examples in every run, however slow the machine.
settings.register_profile("steady", deadline=None, database=None, derandomize=True)
settings.load_profile("steady")


def table(names: str, text: str):
    """A test's parameters: a table written as text, two blanks between its columns."""
    rows = [re.split("  +", line.strip()) for line in text.strip().splitlines()]
    return pytest.mark.parametrize(names.split(", "), rows, ids=map(" ".join, rows))


ACCEPTED = """<?xml version="1.0" encoding="utf-8"?>
<wps:ExecuteResponse xmlns:wps="http://www.opengis.net/wps/1.0.0" service="WPS"
  statusLocation="http://vizo.cnes.fr:8081/wps/outputs/pywps-15.xml?a=1&amp;copy=2">
<wps:Status creationTime="2019-02-01T10:00:00Z">
<wps:ProcessAccepted>PyWPS Process FULL_MAJA accepted, déjà</wps:ProcessAccepted>
</wps:Status>
</wps:ExecuteResponse>
"""
PLACE = "http://vizo.cnes.fr:8081/wps/outputs/pywps-15.xml?a=1&copy=2"
OTHER = ACCEPTED.replace("s-15", "s-14").replace("Accepted", "Failed")
FORMS = {
    "a prefix without its namespace": ("wps:", "ns0:"),
    "no prefix": ("wps:", ""),
    "one line": ("\n", " "),
    "CRLF": ("\n", "\r\n"),
    "BOM": ("<?xml", "\ufeff<?xml"),
    "blank lines first": ("<?xml", "\n\n<?xml"),
    "words before": ("<?xml", "<b>Warning</b>: it is late\n<?xml"),
    "a comment": ("PyWPS", f"<!-- {OTHER} -->"),
    "CDATA": ("PyWPS", f"<![CDATA[{OTHER}]]>"),
    "a bare &": ("&amp;", "&"),
    "no end": ("</wps:Status>\n</wps:ExecuteResponse>\n", ""),
    "two answers": ("<?xml", f"{OTHER}<?xml"),
}


@pytest.mark.parametrize(("old", "new"), FORMS.values(), ids=FORMS)
def test_a_job_is_read_from_an_answer_of_any_form(old, new):
    found = parse_wps(ACCEPTED.replace(old, new).encode())
    assert (found.state, found.status_location) == ("ProcessAccepted", PLACE)
    assert (found.job_id, found.holds_job) == ("15", True)


@table("place, job_id", """
    https://a.org/wps/outputs/0a1b2c3d-1111-2222.xml    0a1b2c3d-1111-2222
    http://a.org:81/wps/0a1b.xml?x=1.5#2                0a1b
    http://a.org/outputs/pywps-15                       15
    pywps-15.xml                                        15
""")  # fmt: skip
def test_id_of_a_job(place, job_id):
    assert parse_wps(answer(place)).job_id == job_id


@table("references", """
    <Reference href="URL"/>
    <wps:Reference xlink:href = 'URL'></wps:Reference>
    <Reference href="b"/><Reference href="URL"/>
    <Reference mimeType="application/json" href="URL"/><Reference href="b"/>
    <Reference href="b" mimeType="text/Json"/><Reference mimeType="a/JSON" href="URL"/>
""")  # fmt: skip
def test_state_and_report_in_a_status_document(references):
    """The report is the one of JSON, else the last."""
    started = answer(PLACE, '<ProcessStarted percentCompleted="37"/>').decode()
    found = parse_wps((started + references.replace("URL", "r?a=1&amp;b")).encode())
    assert (found.state, found.progress) == ("ProcessStarted", "37")
    assert found.report_url == "r?a=1&b"


@table("document, code", """
    <ExecuteResponse statusLocation="x"><Status><ProcessFailed/><ExceptionText><a>  400
    <ns0:ExceptionReport><ns0:ExceptionText>&lt;a&gt;</ns0:ExceptionText>           400
    <ExceptionReport><e exceptionCode="ServerBusy"><ExceptionText><a>               503
    <ExceptionReport><ExceptionText><![CDATA[<a>]]></ExceptionText>                 400
    {"ErrorCode": 401, "ErrorMessage": "<a>"}                                       401
    {"ErrorCode": "429", "ErrorMessage": "<a>"}                                     429
    {"ErrorMessage": "<a>"}                                                         0
""")  # fmt: skip
def test_a_refusal_has_its_words_and_holds_no_job(document, code):
    found = parse_wps(document.encode())
    assert (found.failed, found.holds_job) == (True, False)
    assert (found.message, str(found.code)) == ("<a>", code)


parse_report = partial(download.parse_report, source=Path("31TCJ.json"))
PARSERS = (parse_wps, parse_report, common.parse_page)
NONE = [
    "", " \n", "PEPS is resting", "<!DOCTYPE html><html>", "<!--" + ACCEPTED, "[]",
    '"FINISHED"', '{"ErrorCode": 401, "ErrorMes', "[" * 200_000, "<a>" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("text", NONE, ids=lambda text: text[:20])
def test_what_is_no_document_may_be_one_next_time(parse, text):
    with pytest.raises(Unreadable) as refused:
        parse(text.encode())
    assert refused.value.status == Status.NOT_YET


@table("start", """
    <!DOCTYPE a [<!ENTITY b 'c'>]>
    <!doctype x>
""")  # fmt: skip
def test_a_document_with_a_dtd_is_refused_for_good(start):
    with pytest.raises(PepsError, match="DTD") as refused:
        parse_wps(start.encode() + answer(PLACE))
    assert refused.value.status == Status.FAILED


@table("document, state, words", """
    {"USER_INFO": {"job_status": "PENDING", "process": "0%"}}      waiting   -
    {"USER_INFO": {"job_status": "STALLED", "process": "37 %"}}    running   37%
    {"USER_INFO": {"job_status": "STALLED", "process": 37.5}}      running   37%
    {"USER_INFO": {"job_status": "STALLED", "process": ""}}        running   -
    {"USER_INFO": {"job_status": "FINISHED"}}                      finished  -
    {"USER_INFO": {"job_status": "ERROR", "message": "no disk"}}   failed    no disk
    {"USER_INFO": {"job_status": "CANCELED"}}   canceled   the service says no more
    {"USER_INFO": {"job_status": "DREAMING"}}   in an unknown state          DREAMING
    {"USER_INFO": {"job_status": 7}}            in an unknown state          7
    {"a": [{"b": "STALLED", "percentCompleted": 37}]}              running   37%
    {"USER_INFO": {"job_status": null}, "a": ["FINISHED"]}         finished  -
    {"FINISHED": "not FINISHED yet"}            in an unknown state   none is told
""")  # fmt: skip
def test_state_in_a_report(document, state, words):
    found = parse_report(document.encode())
    assert found.state == state
    if found.error:
        assert str(found.error) == f"{state}: {words} (see 31TCJ.json)"
    else:
        assert (found.words or "-").replace(" (see 31TCJ.json)", "") == words


REPORT = '{{"USER_INFO": {{"job_status": "FINISHED", {}}}}}'


@table("value, results", """
    ["http://a/x.zip", "http://a/x.zip"]      ["http://a/x.zip"]
    "http://a/x.zip"                          ["http://a/x.zip"]
    [null, "http://a/x.tgz"]                  ["http://a/x.tgz"]
    [], "loose": "http://a/x.zip"             []
    null, "loose": [["http://a/x.zip"]]       ["http://a/x.zip"]
    null, "loose": "see http://a/x.zip"       []
""")  # fmt: skip
def test_results_in_a_report(value, results):
    found = parse_report(REPORT.format(f'"results": {value}').encode())
    assert list(found.results) == json.loads(results)


@table("value, count, lost", """
    2                      2  []
    " 2 "                  2  []
    2.0                    2  []
    -1                     0  []
    null                   0  []
    "many"                 0  []
    ["a", "b"]             2  ["a", "b"]
""")  # fmt: skip
def test_dates_that_a_report_calls_unprocessed(value, count, lost):
    found = parse_report(REPORT.format(f'"unprocessed": {value}').encode())
    assert (str(found.unprocessed), list(found.lost)) == (count, json.loads(lost))


@table("count, properties, more", """
    1      {"links": [{"rel": "self"}, null, {"rel": "next"}]}    True
    500    {"links": null}                                        True
    499    7                                                      False
""")  # fmt: skip
def test_a_page_tells_whether_there_is_more(count, properties, more):
    whole = {"features": [{}] * int(count), "properties": json.loads(properties)}
    _, found = common.parse_page(json.dumps(whole).encode())
    assert str(found) == more


@given(
    st.binary(max_size=20),
    st.sampled_from([b"", ACCEPTED.encode(), b'{"USER_INFO": {}}']),
    st.integers(0, 600),
)
def test_any_bytes_are_a_value_or_an_expected_error(junk, document, at):
    for parse in (*PARSERS, common.parse_log):
        with contextlib.suppress(Unreadable):
            parse(document[:at] + junk + document[at + 1 :])


KEYS = "job_status process results unprocessed message percentCompleted mgrs storage"
VALUES = (
    '[null, true, 7, -1e99, "", "37%", "FINISHED", [[]], [null, 1], {"a": {"b": 2}}]'
)


@given(
    st.dictionaries(st.sampled_from(KEYS.split()), st.sampled_from(json.loads(VALUES)))
)
def test_values_of_any_type_are_read(values):
    found = parse_report(json.dumps({"USER_INFO": values}).encode())
    assert found.unprocessed >= len(found.lost)
    product = {"productIdentifier": "S2A_x", **values}
    read = common.L1C.from_feature({"properties": product})
    assert {type(text) for text in (found.words, *found.results, *read)} == {str}


@pytest.mark.parametrize("ending", ["", " \t\r\n", "\nme@example.org other\n"])
@pytest.mark.parametrize(
    "password", ["two  blanks", ":a:", "p\u2028ß€😀", "'\"\\`$()#"]
)
def test_a_password_is_what_stands_on_the_line(password, ending, tmp_path):
    account = tmp_path / "peps.txt"
    account.write_bytes(f"\ufeff\nme@example.org \t{password}{ending}".encode())
    token = b64decode(common.read_account(account))
    assert token == f"me@example.org:{password}".encode()


@table("url, name", """
    http://a.org/%C3%A9%20f.zip     é f.zip
    http://a.org/x.zip?t=1/2.zip#3  x.zip
    http://a.org/x.tgz              x.tgz
""")  # fmt: skip
def test_name_of_a_result(url, name):
    assert download.product_name(url) == name


HOSTILE = rf"""
    http://a.org ftp://a.org/x.zip file:///etc/x.zip x.zip http:///x.zip http://[::1/x
    http://a.org/.. http://a.org/.x.zip http://a.org/..%2Fx.zip http://a.org/..%5Cx.zip
    http://a.org/%2Fetc%2Fx.zip http://a.org/C%3Ax.zip http://a.org/x%00.zip
    http://a.org/x%0A.zip http://a.org/x%1b[1m.zip http://a.org/x%E2%80%AE.zip
    http://a.org/x.zip.part http://a.org/requests.py http://a.org/x.pth
    http://a.org/tqdm.cpython-311.SO http://a.org/x/ http://a.org/{"x" * 250}.zip
"""


@pytest.mark.parametrize("url", HOSTILE.split())
def test_a_name_that_may_do_harm_is_refused(url):
    with pytest.raises(PepsError) as refused:
        download.product_name(url)
    assert refused.value.status == Status.FAILED


@given(st.text("./\\%2eF\0\n:é") | st.text())
def test_a_name_that_is_not_refused_is_harmless(text):
    for ending in (text, quote(text, safe="")):
        with contextlib.suppress(PepsError):
            name = download.product_name(f"http://a.org/{ending}")
            assert Path("folder", name).parent == Path("folder")
            assert name.isprintable()
            assert not name.startswith(".")


L1C = "S2A_MSIL1C_20170704T105621_N0205_R051_T31TCJ_20170704T111010"
OLD = "S2A_OPER_PRD_MSIL1C_PDMC_20160712T121910_R051_V20160712T105032_20160712T105032"


@table("name, tile, expected", f"""
    {L1C}       -        S2A 31TCJ 2017-07-04 10:56:21
    {L1C}.SAFE  -        S2A 31TCJ 2017-07-04 10:56:21
    {OLD}       31TCJ    S2A 31TCJ 2016-07-12 10:50:32
    {OLD}       T31TCJ   S2A 31TCJ 2016-07-12 10:50:32
    {OLD}       -        None
    S1A_IW_GRDH_1SDV_20170704T105621    31TCJ  None
    S2A_MSIL1C_20171301T105621_T31TCJ   -      None
""")  # fmt: skip
def test_acquisition_of_an_l1c_product(name, tile, expected):
    found = download.acquisition(name, tile.strip("-"))
    assert (f"{found[0]} {found[1]} {found[2]}" if found else "None") == expected


@table("l1c, l2a, paired", """
    20170704T105621  2A_20170704-105605-456_L2A_T31TCJ_D_V1-4.zip         True
    20170704T105621  2A_20170704-095621-000_L2A_T31TCJ_C_V4-0.zip         True
    20170704T105621  2A_20170704-095620-999_L2A_T31TCJ_C_V4-0.zip         False
    20170705T000212  2A_20170704-235655-456_L2A_T31TCJ_D_V1-4_NOVALD.zip  True
    20170704T105621  2A_20170704-110121-456_L2A_T31TCJ_D_NOVALD_V1-0.zip  True
    20170704T105621  2B_20170704-105605-456_L2A_T31TCJ_D_V1-4.zip         False
    20170704T105621  2A_20170704-105605-456_L2A_T31TDH_D_V1-4.zip         False
    20170704T105621  2A_20170705-105605-456_L2A_T31TCJ_D_V1-4.zip         False
""")  # fmt: skip
def test_an_acquisition_and_its_result(l1c, l2a, paired):
    seen = download.acquisition(f"S2A_MSIL1C_{l1c}_N0205_R051_T31TCJ_20170705T111010")
    assert seen.is_near(download.acquisition(f"SENTINEL{l2a}")) == (paired == "True")


@table("server, url, may", """
    https://peps.cnes.fr    https://PEPS.CNES.FR:8443/x    True
    https://peps.cnes.fr    https://cnes.fr/x              True
    https://peps.cnes.fr    https://a.vizo.cnes.fr/x       True
    https://peps.cnes.fr    https://evilcnes.fr/x          False
    https://peps.cnes.fr    https://fr/x                   False
    https://peps.cnes.fr    ftp://peps.cnes.fr/x           False
    https://peps.cnes.fr    http://peps.cnes.fr/x          False
    https://peps.cnes.fr    http://localhost/x             False
    http://peps.cnes.fr     http://peps.cnes.fr/x          False
    https://cnes.fr         https://peps.cnes.fr/x         False
    https://localhost       https://evil.localhost/x       False
    http://localhost:8080   http://localhost:9090/x        True
    http://localhost        http://127.0.0.1/x             False
    http://127.0.0.1:8080   http://127.0.0.1:9090/x        True
    http://127.0.0.1        http://127.0.0.2/x             False
    http://[::1]:8080       http://[::1]/x                 True
    https://10.0.0.1        https://9.0.0.1/x              False
    http://10.0.0.1         http://10.0.0.1/x              False
    https://maja.co.uk      https://other.co.uk/x          False
    https://a.maja.co.uk    https://b.maja.co.uk/x         True
""")  # fmt: skip
def test_who_may_see_the_password(server, url, may):
    assert str(common.may_carry_password(url, server)) == may


def test_hosts_that_can_only_be_this_machine():
    hosts = "127.0.0.1 127.8.9.1 ::1 localhost 127.1 10.0.0.1 0.0.0.0 localhost.org ::2"
    assert [*filter(common.is_loopback, hosts.split())] == hosts.split()[:4]


@table("document, link, refused", """
    http://peps.cnes.fr/1.xml    http://127.0.0.1/r.json     True
    http://peps.cnes.fr/1.xml    https://LOCALHOST./r.json   True
    http://peps.cnes.fr/1.xml    http://other.org/r.json     False
    http://127.0.0.1/1.xml       http://localhost/r.json     False
""")  # fmt: skip
def test_a_document_of_a_service_elsewhere_may_not_name_this_machine(
    document, link, refused
):
    with contextlib.ExitStack() as stack:
        if refused == "True":
            stack.enter_context(pytest.raises(PepsError))
        download.require_not_here(link, document)


@table("server, url, asked", """
    https://peps.cnes.fr        http://PEPS.cnes.fr/x         https://PEPS.cnes.fr/x
    https://peps.cnes.fr:8443   http://peps.cnes.fr:8443/x    https://peps.cnes.fr:8443/x
    https://peps.cnes.fr        http://peps.cnes.fr:8081/x    http://peps.cnes.fr:8081/x
    https://peps.cnes.fr        http://vizo.cnes.fr/x         http://vizo.cnes.fr/x
    http://peps.cnes.fr         http://peps.cnes.fr/x         http://peps.cnes.fr/x
""")  # fmt: skip
def test_the_own_host_is_asked_over_https(server, url, asked):
    assert common.prefer_https(url, server) == asked


@table("log, expected", """
    a.log            a.stat
    a                a.stat
    a.txt            a.txt.stat
    a.log.log        a.log.stat
    logs.log/a.log   logs.log/a.stat
    a.log.1          a.log.1.stat
""")  # fmt: skip
def test_file_beside_a_log(log, expected):
    assert common.beside(Path(log), ".stat") == Path(expected)


@table("statuses, expected", """
    0 0      0
    0 75     75
    75 2 0   2
    2 1 75   1
""")  # fmt: skip
def test_the_worst_status_wins(statuses, expected):
    found = common.worst(Status(int(word)) for word in statuses.split())
    assert found == int(expected)


def test_a_url_in_the_words_of_others_stays_as_it_is():
    url = "http://peps.test/a?b=1&copy=2&lt=3"
    assert common.one_line(f"see {url}") == f"see {url}"


@given(st.text(), st.integers(1, 50))
def test_words_of_others_are_one_printable_line(text, limit):
    words = common.one_line(text, limit)
    assert words.isprintable()
    assert len(words) <= limit


@table("function, value, words", """
    human      0              0 B
    human      999            999 B
    human      1000           1.0 kB
    human      999_499        999 kB
    human      999_500        1.0 MB
    human      612_345_678    612 MB
    human      37_249e6       37.2 GB
    duration   0.42           0.4 s
    duration   41.3           41 s
    duration   2460           41 min
    duration   7500           125 min
""")  # fmt: skip
def test_sizes_and_durations_in_words(function, value, words):
    assert getattr(download, function)(float(value)) == words


@table("kind, text, value", """
    as_tile      t31tcj                    31TCJ
    as_tile      60XZV                     60XZV
    as_date      2016-02-29                2016-02-29
    as_orbit     143                       143
    server_url   https://[::1]:8443/a/     https://[::1]:8443/a
    server_url   http://127.0.0.1:80       http://127.0.0.1:80
""")  # fmt: skip
def test_values_of_options(kind, text, value):
    assert str(getattr(common, kind)(text)) == value


DATES = "2017-13-01|2017-02-29|2017-7-1|20170701|01-07-2017||2017-W26-6|2017-07-01\n"
SERVERS = r"""peps.cnes.fr/secret|ftp://a.fr/secret|file:///secret|https://|https://[::1
https://me:secret@a.fr|https://a.fr?secret|https://a.fr/#secret|https://a.fr:secret
https://a.fr:99999/secret|https://a .fr/secret|https://a.fr\@secret|https://secret\udcff"""


@pytest.mark.parametrize(("kind", "texts"), [
    (common.as_tile, "31TC|1TCJ|00TCJ|61TCJ|31BCJ|31ICJ|31TOJ|31TCW|31TCJ\n|"),
    (common.as_date, DATES),
    (as_moment, DATES + "|2017-11-01T24:00:00|2017-11-01T10:00|2017-11-01 10:00:00"),
    (common.server_url, SERVERS.replace("\n", "|")),
    (common.as_orbit, "0|-1|144|51.5|1e1|x|"),
    (latitude, "90.01|-90.01|nan|inf|43,5|N43|1°|"),
])  # fmt: skip
def test_values_that_are_refused(kind, texts):
    for text in texts.split("|"):
        with pytest.raises(ArgumentTypeError) as refused:
            kind(text)
        assert "secret" not in str(refused.value)


FORM = r"20\d\d-?[01]\d-?[0-3]\d\s?(T[0-2]\d:\d\d:\d\dZ?)?|T?[0-6]\d[C-X][A-Z][A-V]\s?"


@given(st.text() | st.from_regex(FORM, fullmatch=True))
def test_any_text_is_a_value_or_refused(text):
    with contextlib.suppress(ArgumentTypeError):
        assert str(common.as_date(text)) == text
    with contextlib.suppress(ArgumentTypeError):
        assert common.as_tile(text) == text.upper().removeprefix("T")
    with contextlib.suppress(ArgumentTypeError):
        datetime.fromisoformat(as_moment(text).rstrip("Z"))
