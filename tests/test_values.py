"""Documents, names, addresses and words of every shape: text in, values out."""

from __future__ import annotations

import contextlib
import json
from argparse import ArgumentTypeError
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stories import answer, failed, refusal

import full_maja_download as download
import peps_common as common
from full_maja_download import State, acquisition, parse_report, product_name
from peps_common import L1C, PepsError, Status, Unreadable, parse_wps
from peps_maja_process import as_moment

# The same examples in every run, however slow the machine: a failure is a failure, and not chance.
settings.register_profile(
    "steady",
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")

UUID = "0a1b2c3d-1111-2222-3333-444455556666"
UUID_URL = f"https://peps.cnes.fr/wps/outputs/{UUID}.xml"
NUMBERED = "http://peps-vizo.cnes.fr:8081/wps/outputs/pywps-154901234567.xml"
JOBS = {  # by statusLocation, of PyWPS (its third version puts `pywps-` before the id), 52°North, GeoServer and deegree
    UUID_URL: UUID, f"https://a.org:81/wps/{UUID}.xml?x=1.5&id=3#2": UUID, "http://a.org/pywps-15.xml": "15",
    "http://a.org/15.xml": "15", "http://a.org/a.b.xml": "a.b", "http://a.org/outputs/pywps-15": "15",
    "http://[x/15.xml": "15",
    "http://geo.example.org:8080/wps/RetrieveResultServlet?id=7c1e-42": "7c1e-42",
    "http://geo.example.org/ows?service=WPS&version=1.0.0&request=GetExecutionStatus&executionId=9-8-7": "9-8-7",
    "http://geo.example.org/wps?service=WPS&request=GetResponseDocument&identifier=RESPONSE_5": "RESPONSE_5",
}  # fmt: skip


def rooted(
    location: str,
    status: str,
    *references: str,
    prefix: str = "wps:",
    heading: str = "",
) -> bytes:
    """An ExecuteResponse with this element in its status, and these attributes of Reference elements."""
    name, place = (
        f"{prefix}ExecuteResponse",
        f'statusLocation="{location.replace("&", "&amp;")}"' if location else "",
    )
    namespace = f'xmlns{":" * bool(prefix)}{prefix.rstrip(":")}="http://www.opengis.net/wps/1.0.0"'
    others = 'xmlns:ows="http://www.opengis.net/ows/1.1" xmlns:xlink="http://www.w3.org/1999/xlink"'
    found = "".join(
        f"<{prefix}Output><{prefix}Reference {reference}/></{prefix}Output>"
        for reference in references
    )
    outputs = f"<{prefix}ProcessOutputs>{found}</{prefix}ProcessOutputs>"
    body = f'<{prefix}Status creationTime="2019-02-01T10:00:00Z">{status}</{prefix}Status>{outputs}'
    return f'{heading}<{name} {namespace} {others} service="WPS" version="1.0.0" {place}>{body}</{name}>'.encode()


ACCEPTED = (
    "<wps:ProcessAccepted>PyWPS Process FULL_MAJA accepted, déjà</wps:ProcessAccepted>"
)
STARTED = (
    '<wps:ProcessStarted percentCompleted="37">Process running</wps:ProcessStarted>'
)
HEADING = '<?xml version="1.0" encoding="{}"?>\n<!-- PyWPS -->\n'
PYWPS3 = rooted(NUMBERED, ACCEPTED, heading=HEADING).decode().replace("><", ">\n<")
OTHER_PREFIX = (
    PYWPS3.replace("\n", "").replace("wps:", "ns0:").replace("xmlns:wps", "xmlns:ns0")
)
FORMS = {
    "UTF-8": PYWPS3.format("utf-8").encode(), "BOM": b"\xef\xbb\xbf" + PYWPS3.format("utf-8").encode(),
    "Latin-1": PYWPS3.format("iso-8859-1").encode("iso-8859-1"), "UTF-16": PYWPS3.format("utf-16").encode("utf-16"),
    "CRLF": PYWPS3.format("utf-8").replace("\n", "\r\n").encode() + b"\r\n\r\n",
    "blank lines first": b"\n\n" + PYWPS3.format("utf-8").encode(),
    "other prefix, one line": OTHER_PREFIX.format("utf-8").encode(),
}  # fmt: skip


@pytest.mark.parametrize("document", FORMS.values(), ids=FORMS)
def test_wps_answer_of_any_form(document):
    found = parse_wps(document)
    assert (found.state, found.job_id, found.status_location) == (
        "ProcessAccepted",
        "154901234567",
        NUMBERED,
    )
    assert (found.holds_job, found.failed, found.report_url, found.progress) == (
        True,
        False,
        "",
        "",
    )


REPORT_URL = "https://peps.cnes.fr/wps/outputs/report.json?a=1&b=2"
HREF = 'href="{}"'.format(REPORT_URL.replace("&", "&amp;"))
REFERENCES = {
    "none": [], "one": [HREF], "xlink": [f"xlink:{HREF}"], "the last": ['href="http://a/b"', HREF],
    "the one of JSON": [f'mimeType="application/json" xlink:{HREF}', 'mimeType="text/xml" xlink:href="http://a/b"'],
    "the last of JSON": ['href="b" mimeType="text/json"', f'{HREF} mimeType="Application/JSON"', 'href="http://c"'],
}  # fmt: skip


@pytest.mark.parametrize("references", REFERENCES.values(), ids=REFERENCES)
@pytest.mark.parametrize("prefix", ["wps:", ""])
@pytest.mark.parametrize("location", [*JOBS, ""])
def test_wps_answer_of_any_server(location, prefix, references):
    found = parse_wps(
        rooted(location, f"<{prefix}ProcessSucceeded/>", *references, prefix=prefix)
    )
    assert (found.state, found.status_location) == ("ProcessSucceeded", location)
    assert (found.job_id, found.holds_job) == (JOBS.get(location, ""), bool(location))
    assert found.report_url == (REPORT_URL if references else "")


@pytest.mark.parametrize("length", [0, 260, 300])
def test_an_answer_that_was_cut_off_is_a_job(length):
    """The root's start tag has all that a job needs; elsewhere half a document is none."""
    whole = rooted(UUID_URL, STARTED)
    document = whole[: max(length, whole.index(b"<wps:Status"))]
    assert parse_wps(document, cut=True).job_id == UUID
    for half, cut in ((document, False), (document[:100], True)):
        with pytest.raises(Unreadable):
            parse_wps(half, cut)


REFUSALS = {
    "ProcessFailed": (answer(UUID_URL, failed("no  such&#10; tile")), "no such tile"),
    "ExceptionReport": (refusal("no such tile"), "no such tile"),
    "no reason": (b"<ExceptionReport/>", ""),
    "JSON": (b'{"ErrorCode": 401, "ErrorMessage": "no such tile"}', "no such tile"),
    "JSON without a code": (b'\n {"ErrorMessage": "no such tile"}', "no such tile"),
}


@pytest.mark.parametrize(("document", "words"), REFUSALS.values(), ids=REFUSALS)
def test_wps_refusal(document, words):
    """A refusal holds no job, and keeps the service's reason on one line."""
    found = parse_wps(document)
    assert (found.failed, found.holds_job) == (True, False)
    assert words in found.message
    assert "\n" not in found.message


LAUGHS = b'<!DOCTYPE lolz [<!ENTITY a "ha">' + b"".join(
    b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9)
)
UNREADABLE = {
    "empty": b"", "blank": b" \n", "text": b"PEPS is resting", "page": b"<html><body>Maintenance</body></html>",
    "WPS 2.0": b'<wps:StatusInfo xmlns:wps="http://www.opengis.net/wps/2.0"/>', "truncated": answer(UUID_URL)[:-20],
    "half of UTF-16": FORMS["UTF-16"][:101], "unknown encoding": b'<?xml version="1.0" encoding="klingon"?><a/>',
    "not UTF-8": b"<a>\xff</a>", "other JSON": b'{"USER_INFO": {}}', "half of JSON": b'{"ErrorCode": 401, "ErrorMes',
    "page with a doctype": b"<!DOCTYPE html><html><body>Maintenance</body></html>",
    "deep": b"<a>" * 100_000, "deep and whole": b"<a>" * 20_000 + b"</a>" * 20_000, "no text": bytes(range(256)),
}  # fmt: skip
DISTRUSTED = {
    "laughs": LAUGHS + b"]>" + answer(state="<ProcessAccepted>&j;</ProcessAccepted>"),
    "file entity": b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "outer DTD": b'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><a/>',
    "DTD in UTF-16": "<!DOCTYPE a><a/>".encode("utf-16"),
    "empty DTD": b"<!DOCTYPE x><x/>",
    "too many values": b"<a>" + b"<b/>" * 2_000_000 + b"</a>",
    "too many attributes": b"<a "
    + b" ".join(b'a%d=""' % number for number in range(500_000))
    + b"/>",
}


@pytest.mark.parametrize("name", [*UNREADABLE, *DISTRUSTED])
def test_what_is_no_wps_answer(name):
    """It is refused: for good where it is not to be trusted, else it may be in order next time."""
    with pytest.raises(Unreadable) as refused:
        parse_wps({**UNREADABLE, **DISTRUSTED}[name])
    assert refused.value.status == (
        Status.NOT_YET if name in UNREADABLE else Status.FAILED
    )


def report(**info):
    return json.dumps({"USER_INFO": info}).encode()


ZIP = "https://peps.cnes.fr/cgi-bin/mapcache_results/maja/1/SENTINEL2A_20170704-105605-456_L2A_T31TCJ_D_V1-4.zip"
STATES = {
    "PENDING": State.WAITING, "STALLED": State.RUNNING, "FINISHED": State.FINISHED, "ERROR": State.FAILED,
    "CANCELED": State.CANCELED, "SUSPENDED": State.UNKNOWN, "": State.UNKNOWN,
}  # fmt: skip


@pytest.mark.parametrize(("word", "state"), STATES.items())
def test_state_of_a_report(word, state):
    found = parse_report(report(job_status=word))
    assert (found.state, found.words) == (state, word if state == State.UNKNOWN else "")


@pytest.mark.parametrize(("value", "expected"), [
    ("37%", "37%"), ("37", "37%"), (37, "37%"), (37.5, "37.5%"), ("37 %", "37%"), ("0%", "0%"), (0, "0%"),
    ("", ""), ([], ""), (True, ""), ("9" * 400, "9" * 9 + "%"),
])  # fmt: skip
def test_progress(value, expected):
    assert parse_report(report(job_status="STALLED", process=value)).words == expected


@pytest.mark.parametrize(("value", "count", "lost"), [
    (2, 2, ()), (0, 0, ()), ("2", 2, ()), (" 2 ", 2, ()), ("", 0, ()), (2.0, 2, ()), (-1, 0, ()), (None, 0, ()),
    ([], 0, ()), (["a", "b"], 2, ("a", "b")), ({"2017-07-04": "a"}, 1, ("a",)), ("1e999", 10**6, ()),
    ("9" * 5000, 10**6, ()), ("-1e999", 0, ()), (float("-inf"), 0, ()),
], ids=lambda value: repr(value)[:20])  # fmt: skip
def test_unprocessed(value, count, lost):
    found = parse_report(report(job_status="FINISHED", unprocessed=value))
    assert (found.unprocessed, found.lost) == (count, lost)


@pytest.mark.parametrize(
    "value", [[ZIP], [ZIP, ZIP], ZIP, [], [None, ZIP], [{"url": ZIP}]], ids=repr
)
def test_results(value):
    assert parse_report(report(job_status="FINISHED", results=value)).results == (
        (ZIP,) if value else ()
    )


LOOSE = {
    "flat": ({"percentCompleted": 37, "state": "STALLED"}, (State.RUNNING, "37%", ())),
    "deep": ({"a": [{"b": {"percentCompleted": "37%"}}, ["STALLED"]]}, (State.RUNNING, "37%", ())),
    "finished": ({"x": "FINISHED", "y": {"z": [ZIP]}}, (State.FINISHED, "", (ZIP,))),
    "canceled": ({"x": "CANCELED"}, (State.CANCELED, "", ())),
    "word within a sentence": ({"x": "not FINISHED yet"}, (State.UNKNOWN, "", ())),
    "word as a key": ({"FINISHED": False}, (State.UNKNOWN, "", ())),
    "URL within a sentence": ({"x": "FINISHED", "y": f"see {ZIP} there"}, (State.FINISHED, "", ())),
    "null in USER_INFO": (
        {"USER_INFO": {"job_status": None}, "x": "FINISHED", "y": ZIP}, (State.FINISHED, "", (ZIP,))
    ),
    **{f"{value!r} as USER_INFO": ({"USER_INFO": value}, (State.UNKNOWN, "", ())) for value in (None, [1], "FINE", 7)},
    **{f"{value!r} as a state": (json.loads(report(job_status=value)), (State.UNKNOWN, "", ()))
       for value in (None, 7, True, [], ["FINISHED?"], {}, {"a": 1})},
    "nothing": ({}, (State.UNKNOWN, "", ())),
    "nothing, deep down": (json.loads('{"a":' * 900 + "1" + "}" * 900), (State.UNKNOWN, "", ())),
}  # fmt: skip


@pytest.mark.parametrize(("document", "expected"), LOOSE.values(), ids=LOOSE)
def test_loose_report_of_a_single_product(document, expected):
    """Without the keys, state word, percentage and .zip URLs count wherever they stand as values."""
    found = parse_report(json.dumps(document).encode())
    assert (found.state, found.words, found.results, found.unprocessed) == (
        *expected,
        0,
    )


NO_JSON = [
    b"",
    b"<html/>",
    b"[]",
    b'{"USER_INFO": {',
    b'{"a": "\xff\xfe\x80"}',
    b"[" * 200_000 + b"]" * 200_000,
]
NO_REPORTS = [
    b"null",
    b'"FINISHED"',
    b"[1, 2]",
    b"1" * 5000,
    b'{"USER_INFO": {"unprocessed": %b}}' % (b"9" * 5000),
]
NO_PAGES = [b"{}", b'{"features": null}', b'{"features": {}}']


@pytest.mark.parametrize(("parse", "document"), [
    *((parse_report, document) for document in [*NO_JSON, *NO_REPORTS]),
    *((common.parse_page, document) for document in [*NO_JSON, *NO_PAGES]),
], ids=lambda value: repr(value)[:30] if isinstance(value, bytes) else None)  # fmt: skip
def test_what_is_no_report_and_no_page(parse, document):
    with pytest.raises(Unreadable) as refused:
        parse(document)
    assert refused.value.status == Status.NOT_YET


ENDLESS = [f"http://a.org/{number}.zip" for number in range(download.RESULTS_MAX + 1)]


@pytest.mark.parametrize(
    "document",
    [report(job_status="FINISHED", results=ENDLESS), b"[" + b"[]," * 10**6 + b"[]]"],
)
def test_an_endless_report_is_refused(document):
    with pytest.raises(Unreadable) as refused:
        parse_report(document)
    assert refused.value.status == Status.FAILED


@pytest.mark.parametrize(("properties", "more"), [
    ({"links": [{"rel": "self"}, {"rel": "next", "href": "x"}]}, True), ({"links": [{"rel": "self"}]}, False),
    ({"links": []}, False), ({"links": [None, "next", {"rel": None}]}, False), ({"links": None}, False),
    ({}, False), (None, False),
], ids=repr)  # fmt: skip
def test_page_tells_whether_there_is_more(properties, more):
    document = {"properties": properties, "features": [{}]}
    assert common.parse_page(json.dumps(document).encode()) == (document, more)


def test_a_full_page_that_does_not_tell_has_a_next_one():
    assert common.parse_page(
        json.dumps({"features": [{}] * common.PAGE_RECORDS}).encode()
    )[1]


L1C_NAME = "S2A_MSIL1C_20170704T105621_N0205_R051_T31TCJ_20170704T111010"
OLD_NAME = (
    "S2A_OPER_PRD_MSIL1C_PDMC_20160712T121910_R051_V20160712T105032_20160712T105032"
)
NAMES = [  # name, mgrs and startDate of the catalogue, the acquisition
    (L1C_NAME, "", "", ("S2A", "31TCJ", "20170704T105621")),
    (f"{L1C_NAME}.SAFE", "", "", ("S2A", "31TCJ", "20170704T105621")),
    ("S2B_MSIL1C_20190816T235251_N0208_R130_T56HKH_20190817T010500", "", "", ("S2B", "56HKH", "20190816T235251")),
    ("S2C_MSIL1C_20250301T105021_N0511_R051_T31TCJ_20250301T124500", "", "", ("S2C", "31TCJ", "20250301T105021")),
    ("S2D_MSIL1C_20260901T105021_N0600_R051_T31TCJ_20260901T124500", "", "", ("S2D", "31TCJ", "20260901T105021")),
    (OLD_NAME, "31TCJ", "", ("S2A", "31TCJ", "20160712T105032")),
    (OLD_NAME, "T31TCJ", "", ("S2A", "31TCJ", "20160712T105032")),
    (OLD_NAME, "", "2016-07-12T10:50:32Z", None),
    ("S2A_OPER_PRD_MSIL1C_PDMC_20151207T121910_R051_V20151204T105032_20151204T105959", "31TCJ", "",
     ("S2A", "31TCJ", "20151204T105032")),
    ("S2A_OPER_MSI_L1C_TL_SGS__20160401T104524_A004046_T31TCJ_N02.01", "", "2016-04-01T10:50:00.026Z",
     ("S2A", "31TCJ", "20160401T105000")),
    *((f"SENTINEL2{platform}_20170704-105605-456_L2A_T31TCJ_{form}", "", "",
       (f"S2{platform}", "31TCJ", "20170704T105605"))
      for platform in "ABCD"
      for form in ("D_V1-4.zip", "D_V1-0.zip", "C_V2-2.zip", "C_V4-0.zip", "D_V1-4_NOVALD.zip", "D_NOVALD_V1-4.zip")),
    ("S1A_IW_GRDH_1SDV_20170704T105621", "31TCJ", "2017-07-04T10:56:21Z", None),
    ("SENTINEL2A_20171301-105605-456_L2A_T31TCJ_D_V1-4.zip", "", "", None),
    ("readme.zip", "", "", None),
    ("", "", "", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tile", "start", "expected"), NAMES)
def test_acquisition_of_a_name(name, tile, start, expected):
    """Platform, tile and time tie an L1C product to its L2A product, in names of all eras."""
    found = acquisition(name, tile, start)
    assert found == (
        expected
        and download.Acquisition(
            *expected[:2], datetime.strptime(expected[2], "%Y%m%dT%H%M%S")
        )
    )


@pytest.mark.parametrize(("l1c", "l2a", "paired"), [
    (L1C_NAME, "2A_20170704-105605-456", True), (L1C_NAME, "2A_20170704-110121-456", True),
    ("S2A_MSIL1C_20190816T235251_N0208_R130_T31TCJ_20190817T010500", "2A_20190817-000012-000", True),
    (L1C_NAME, "2A_20170704-115622-000", False), (L1C_NAME, "2B_20170704-105605-456", False),
    (L1C_NAME.replace("T31TCJ", "T31TDH"), "2A_20170704-105605-456", False),
    (L1C_NAME.replace("20170704", "20170705"), "2A_20170704-105605-456", False),
], ids=["seconds", "minutes", "over midnight", "more than an hour", "platform", "tile", "day"])  # fmt: skip
@pytest.mark.parametrize(
    "form", ["D_V1-4.zip", "C_V1-0_NOVALD.zip", "D_NOVALD_V4-0.zip"]
)
def test_pairs_of_an_acquisition(l1c, l2a, paired, form):
    listed = acquisition(l1c)
    url = f"https://a.org/SENTINEL{l2a}_L2A_T31TCJ_{form}?key=a/b"
    found = download.missing_acquisitions([listed, listed], [url])
    assert found == ([] if paired else [listed])


@pytest.mark.parametrize(("url", "name"), [
    (ZIP, ZIP.rpartition("/")[2]), ("http://a.org/x%20y.zip", "x y.zip"),
    ("http://a.org/x.zip?token=1/2.zip#3", "x.zip"), ("http://a.org/a/b/%C3%A9.zip", "é.zip"),
    ("http://a.org/report.json", "report.json"), ("http://a.org/x.tgz", "x.tgz"), ("http://a.org/x.exe", "x.exe"),
])  # fmt: skip
def test_name_of_a_result(url, name):
    assert product_name(url) == name


HOSTILE = [
    "", "..", ".zip", ".hidden.zip", "..%2Fetc%2Fx.zip", "%2Fetc%2Fx.zip", "..%5Cx.zip", "C%3Ax.zip", "x%00.zip",
    "x%0A.zip", "x%1b[31m.zip", "x%E2%80%AE.zip", "x.zip/", "x.zip.part", "requests.py", "x.pth",
    "tqdm.cpython-311.SO", f"{'x' * 247}.zip",
]  # fmt: skip
NO_ADDRESSES = [
    "http://a.org", "ftp://a.org/x.zip", "file:///etc/x.zip", "x.zip", "//a.org/x.zip", "http:///x.zip",
    "http://[::1/x.zip", "",
]  # fmt: skip


@pytest.mark.parametrize(
    "url", [*(f"http://a.org/{name}" for name in HOSTILE), *NO_ADDRESSES]
)
def test_name_that_is_refused(url):
    """No separators, no `..`, no hidden name, no control character, nothing that Python would load as a module."""
    with pytest.raises(PepsError) as refused:
        product_name(url)
    assert refused.value.status == Status.FAILED
    assert "\n" not in str(refused.value)


@given(st.text())
@example("../../etc/passwd.zip")
@example("..%2f..%2fetc%2fpasswd.zip")
@example("a%ff.zip")
def test_name_of_any_url_is_harmless(text):
    for url in (
        f"http://a.org/{text}",
        f"http://a.org/{text}.zip",
        f"http://a.org/{quote(text)}.zip",
        text,
    ):
        with contextlib.suppress(PepsError):
            name = product_name(url)
            assert name not in ("", ".", "..")
            assert name.isprintable()
            assert not set(name) & set("/\\\0")
            assert not name.startswith(".")
            assert Path("folder", name).parent == Path("folder")


JUNK = st.one_of(
    st.binary(max_size=300),
    st.text(alphabet="<>/&;{}[]\":,'= aExcutRspon1\n\0é", max_size=80).map(str.encode),
    st.tuples(
        st.sampled_from([*FORMS.values(), *(row[0] for row in REFUSALS.values())]), st.integers(0, 700), st.binary()
    )
    .map(lambda spoilt: spoilt[0][: spoilt[1]] + spoilt[2] + spoilt[0][spoilt[1] + 1 :]),
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["FINISHED", "STALLED", ZIP, "NOVALD", "37%"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(JUNK)
def test_any_bytes_are_a_value_or_an_expected_error(document):
    for parse in (
        parse_wps,
        lambda document: parse_wps(document, cut=True),
        parse_report,
        common.parse_page,
    ):
        with contextlib.suppress(PepsError):
            parse(document)


@given(st.dictionaries(
    st.sampled_from(["job_status", "process", "results", "unprocessed", "message", "logs", "percentCompleted"]), VALUES
))  # fmt: skip
@example({"job_status": "ERROR", "message": "two\nlines"})
def test_report_of_any_types_is_a_value(info):
    """Missing keys, nulls and other types are no error, and what comes out has the types that it promises."""
    for document in ({"USER_INFO": info}, info, {"USER_INFO": None, **info}):
        found = parse_report(json.dumps(document).encode())
        assert isinstance(found.state, State)
        assert all(
            isinstance(text, str) and "\n" not in text
            for text in (found.words, *found.results)
        )
        assert isinstance(found.unprocessed, int)
        assert found.unprocessed >= len(found.lost)


@given(VALUES)
@example({"properties": {"productIdentifier": "a/b"}})
def test_feature_of_any_types_is_a_product_or_none(feature):
    usable = {"productIdentifier": L1C_NAME, "storage": feature}
    for value in (feature, {"properties": feature}, {"properties": usable}):
        product = L1C.from_feature(value)
        assert product is None or ("/" not in product.name and product.name)


WORD = st.text(
    st.characters(exclude_characters=" \t\r\n\ufeff", exclude_categories=["Cs"]),
    min_size=1,
)


@given(
    WORD,
    WORD,
    WORD,
    st.sampled_from([" ", "\t", "  ", " \t"]),
    st.sampled_from(["", "\n", " \r\n", "\t\nmore\n"]),
)
def test_password_of_any_characters_survives(email, first, last, blanks, ending):
    """Blanks stand between e-mail and password and at the line's end; those within the password belong to it."""
    for password in (first, f"{first}{blanks}{last}"):
        assert common.parse_account(f"{email}{blanks}{password}{ending}") == (
            email,
            password,
        )


@given(st.text())
def test_any_account_text_is_an_account_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert all(common.parse_account(text))
        return
    with pytest.raises(
        ValueError, match=r"^must hold e-mail, blank and password on one line$"
    ):
        common.parse_account(text)


# By server: the URLs that may see its account, and those that may not.
MAY_SEE = {
    "https://peps.cnes.fr": (
        ["https://PEPS.CNES.FR:8443/x", "https://cnes.fr/x"],
        ["https://fr/x", "https:///x", "ftp://peps.cnes.fr/x", "http://localhost/x", "http://localhost.cnes.fr/x"],
    ),
    "https://cnes.fr": ([], ["https://peps.cnes.fr/x", "https://evil.fr/x"]),
    "https://localhost": ([], ["https://evil.localhost/x"]),
    "http://localhost:8080": (["http://localhost:9090/x", "http://localhost./x"], []),
    "http://127.0.0.1:8080": (["http://127.0.0.1:9090/x"], ["http://127.0.0.2/x", "http://127.0.0.1.evil.org/x"]),
    "http://[::1]:8080": (["http://[::1]/x"], []),
    "https://10.0.0.1": ([], ["https://10.0.0.2/x", "http://10.0.0.1/x"]),
    "http://10.0.0.1": ([], ["http://10.0.0.1/x"]),
    "http://peps.cnes.fr": ([], ["http://peps.cnes.fr/x"]),
    "http://127.1": ([], ["http://127.1/x"]),
    "https://maja.co.uk": ([], ["https://other.co.uk/x"]),
    "https://maja.gouv.fr": ([], ["https://other.gouv.fr/x"]),
    "https://a.maja.co.uk": (["https://b.maja.co.uk/x"], []),
}  # fmt: skip


@pytest.mark.parametrize("server", MAY_SEE)
def test_who_may_see_the_password(server):
    """Over https the server's host and its parent domain, over plain http a loopback server alone."""
    ours, others = MAY_SEE[server]
    assert [
        url for url in [*ours, *others] if common.may_carry_password(url, server)
    ] == ours


@pytest.mark.parametrize(("log", "expected"), [
    ("a.log", "a.stat"), ("a", "a.stat"), ("a.txt", "a.txt.stat"), ("a.log.log", "a.log.stat"),
    ("logs.log/a.log", "logs.log/a.stat"), ("catalog", "catalog.stat"), ("31TCJ.log.1", "31TCJ.log.1.stat"),
])  # fmt: skip
def test_sibling_of_a_log(log, expected):
    assert common.beside(Path(log), ".stat") == Path(expected)


LONG = "9" * 5000
SPANS = {  # status, Content-Length or Content-Range, bytes that are held
    (200, "9", 0): (0, 9), (200, "9", 4): (0, 9), (200, None, 0): (0, None), (200, "x", 0): (0, None),
    (200, LONG, 0): (0, None), (206, f"bytes 4-8/{LONG}", 4): (4, None), (206, f"bytes {LONG}-8/9", 4): None,
    (206, "bytes 4-8/9", 4): (4, 9), (206, "bytes 4-8/*", 4): (4, None), (206, "bytes 3-8/9", 4): None,
    (206, "items 4-8/9", 4): None, (206, None, 4): None, (416, "bytes */4", 4): (4, 4), (416, "bytes */9", 4): None,
    (416, None, 4): None, (416, "bytes */many", 4): None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "header", "offset"), SPANS, ids=lambda value: str(value)[:20]
)
def test_body_span(code, header, offset):
    """Where a body begins and how long the product is; None where it does not fit what is held."""
    headers = (
        {"Content-Length" if code == 200 else "Content-Range": header} if header else {}
    )
    assert download.body_span(code, headers, offset) == SPANS[code, header, offset]


@given(
    st.sampled_from([200, 206, 416]),
    st.text("bytes 0123456789-/*", max_size=30),
    st.integers(0, 10**6),
)
def test_body_begins_where_it_can_be_written(code, text, offset):
    span = download.body_span(
        code, {"Content-Range": text, "Content-Length": text}, offset
    )
    assert span is None or span[0] in (0, offset)


@given(
    st.dictionaries(
        st.sampled_from(["product", "tileid", "startDate"]),
        st.text(st.characters(codec="utf-8")),
    )
)
def test_inputs_arrive_as_they_were(inputs):
    """`;`, `=` and `&` within a value are the value's, those between the inputs go unencoded."""
    url = common.execute_url("https://peps.cnes.fr", "MAJA", inputs, "status=true")
    query = urlsplit(url).query
    assert [key for key, _ in parse_qsl(query, keep_blank_values=True)] == [
        "request", "service", "version", "identifier", "datainputs", "status",
    ]  # fmt: skip
    sent = query.partition("datainputs=")[2].rpartition("&")[0]
    pairs = [pair.split("=") for pair in sent.split(";") if pair]
    assert {
        key: parse_qsl(f"v={value}", keep_blank_values=True)[0][1]
        for key, value in pairs
    } == inputs


@pytest.mark.parametrize(("statuses", "expected"), [
    ((), 0), ((0, 0), 0), ((0, 75), 75), ((75, 1, 0), 1), ((0, 2), 2), ((75, 2), 2), ((2, 1), 1),
])  # fmt: skip
def test_worst_status(statuses, expected):
    assert common.worst(map(Status, statuses)) == expected


@given(st.text(), st.integers(1, 50))
def test_clean_text_is_one_printable_line(text, limit):
    cleaned = common.one_line(text, limit)
    assert cleaned.isprintable()
    assert len(cleaned) <= limit


@pytest.mark.parametrize(("words", "value", "expected"), [
    *((download.human, size, expected) for size, expected in (
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"),
        (512_300_000, "512.3 MB"), (1.6e9, "1.6 GB"), (5e12, "5000.0 GB"))),
    *((download.duration, seconds, expected) for seconds, expected in (
        (0, "0.0 s"), (9.94, "9.9 s"), (41.3, "41 s"), (2460, "41 min"), (7500, "2 h 5 min"))),
])  # fmt: skip
def test_sizes_and_durations_in_words(words, value, expected):
    assert words(value) == expected


TILES = ["31TC", "31TCJX", "1TCJ", "00TCJ", "61TCJ", "31BCJ", "31YCJ", "31ICJ", "31OCJ", "31TIJ", "31TOJ", "31TCI",
         "31TCO", "31TCW", "TT31TCJ", "31TCJ\n", "31 TCJ", "", "\u0663\u0661TCJ", "31Tß", "31TCJ;tileid=1"]  # fmt: skip
DATES = ["2017-13-01", "2017-02-29", "2017-7-1", "20170701", "01-07-2017", "tomorrow", "", "2017-07-01T00:00",
         "\u0662\u0660\u0661\u0667-07-01", "2017-W26-6", "0000-01-01", " 2017-07-01"]  # fmt: skip
ORBITS = ["0", "-1", "x", "", "nan", "5_1", "144", "51.5", "1e1"]
SERVERS = [
    "peps.cnes.fr/secret", "ftp://peps.cnes.fr/secret", "file:///secret", "https://", "https://me:secret@peps.cnes.fr",
    "https://secret@peps.cnes.fr", "https://peps.cnes.fr?key=secret", "https://peps.cnes.fr/#secret",
    "https://peps.cnes.fr:secret", "https://peps.cnes.fr:99999/secret", "https://[::1/secret",
    "https://peps cnes.fr/secret", "https://peps.cnes.fr\\@secret.org", "https://peps.cnes.fr/secret\udcff",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [
    *((common.as_tile, text) for text in TILES), *((common.as_date, text) for text in DATES),
    *((common.server_url, text) for text in SERVERS), *((common.as_orbit, text) for text in ORBITS),
    *((as_moment, text) for text in [*DATES, "2017-11-01T24:00:00", "2017-11-01T10:00", "2017-11-01 10:00:00"]),
])  # fmt: skip
def test_values_that_are_refused(kind, text):
    """What is no tile, date or server is refused; a server's text is not repeated, as it may hold a password."""
    with pytest.raises(ArgumentTypeError) as refused:
        kind(text)
    assert "secret" not in str(refused.value)


@given(st.datetimes(min_value=datetime(1000, 1, 1)))
def test_every_day_of_the_calendar_is_a_date(value):
    assert common.as_date(f"{value:%Y-%m-%d}") == value.date()
    assert as_moment(f"{value:%Y-%m-%dT%H:%M:%S}") == f"{value:%Y-%m-%dT%H:%M:%S}"


@given(st.text(max_size=12))
@example("2017-02-30")
@example("2017-07-01\n")
def test_any_text_is_a_value_or_refused(text):
    with contextlib.suppress(ArgumentTypeError):
        assert common.as_date(text).isoformat() == text
    with contextlib.suppress(ArgumentTypeError):
        assert text.upper() in (common.as_tile(text), f"T{common.as_tile(text)}")
    with contextlib.suppress(ArgumentTypeError):
        assert 1 <= common.as_orbit(text) <= 143
    with contextlib.suppress(ArgumentTypeError):
        assert -90 <= common.number_between(float, -90, 90, "a latitude")(text) <= 90
    with contextlib.suppress(ArgumentTypeError):
        assert common.server_url(text).startswith(("http://", "https://"))


@given(
    st.integers(1, 60), st.sampled_from("CDEFGHJKLMNPQRSTUVWX"), st.sampled_from("ABCDEFGHJKLMNPQRSTUVWXYZ"),
    st.sampled_from("ABCDEFGHJKLMNPQRSTUV"), st.sampled_from(["", "T", "t"]),
)  # fmt: skip
def test_every_tile_of_the_grid_is_a_tile(zone, band, column, row, prefix):
    name = f"{zone:02}{band}{column}{row}"
    assert (
        common.as_tile(prefix + name) == common.as_tile(prefix + name.lower()) == name
    )


@pytest.mark.parametrize(
    "url", ["https://peps.cnes.fr", "http://127.0.0.1:80/a/b", "https://[::1]:8443"]
)
def test_server_is_kept_without_its_last_slash(url):
    assert (
        common.server_url(url)
        == common.server_url(f"{url}/")
        == common.server_url(f" {url} ")
        == url
    )
