"""Documents, names and addresses of every shape: text in, values out."""

from __future__ import annotations

import contextlib
import json
import string
from argparse import ArgumentTypeError
from datetime import date
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from peps_common import (
    L1C,
    Acquisition,
    PepsError,
    State,
    Status,
    Unreadable,
    acquisition,
    body_span,
    clean,
    day,
    execute_url,
    human,
    may_carry_password,
    missing_acquisitions,
    number,
    orbit,
    parse_account,
    parse_page,
    parse_report,
    parse_wps,
    product_name,
    secure,
    server_url,
    sibling,
    tile,
    worst,
)

# The same examples in every run, however slow the machine: a failure is a failure, and not chance.
settings.register_profile(
    "steady", deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

NUMBERED = "http://peps-vizo.cnes.fr:8081/wps/outputs/pywps-154901234567.xml"
UUID = "0a1b2c3d-1111-2222-3333-444455556666"
UUID_URL = f"https://peps.cnes.fr/wps/outputs/{UUID}.xml"
REPORT_URL = "https://peps.cnes.fr/wps/outputs/report.json?a=1&b=2"
WPS = "http://www.opengis.net/wps/1.0.0"
OWS = "http://www.opengis.net/ows/1.1"
XLINK = "http://www.w3.org/1999/xlink"
ACCEPTED = (
    '<?xml version="1.0" encoding="{encoding}"?>\n<!-- PyWPS -->\n<wps:ExecuteResponse xmlns:wps="'
    + WPS
    + '" service="WPS" version="1.0.0" statusLocation="'
    + NUMBERED
    + '">\n  <wps:Status creationTime="2019-02-01T10:00:00Z">\n    <wps:ProcessAccepted>PyWPS Process FULL_MAJA '
    "accepted, déjà</wps:ProcessAccepted>\n  </wps:Status>\n</wps:ExecuteResponse>\n"
)


def response(status="", outputs="", location=UUID_URL):
    """An ExecuteResponse on one line, in the default namespace."""
    return (
        f'<ExecuteResponse xmlns="{WPS}" xmlns:ows="{OWS}" xmlns:xlink="{XLINK}" statusLocation="{location}">'
        f"<Status>{status}</Status>{outputs}</ExecuteResponse>"
    ).encode()


def outputs(reference):
    """The outputs of a job that was handed over, with this Reference element."""
    return f"<ProcessOutputs><Output><Reference {reference}/></Output></ProcessOutputs>"


def refusal(text):
    """What holds the service's reason, as it stands in a failed status and in an ExceptionReport."""
    return f"<ows:Exception><ows:ExceptionText>{text}</ows:ExceptionText></ows:Exception>"


# ---- WPS answers: state, job id, statusLocation, report URL


ESCAPED = REPORT_URL.replace("&", "&amp;")
ANSWERS = [
    pytest.param(ACCEPTED.format(encoding="utf-8").encode(),
                 ("ProcessAccepted", "154901234567", NUMBERED, None), id="PyWPS 3, many lines"),
    pytest.param(b"\xef\xbb\xbf" + ACCEPTED.format(encoding="utf-8").encode(),
                 ("ProcessAccepted", "154901234567", NUMBERED, None), id="BOM"),
    pytest.param(ACCEPTED.format(encoding="iso-8859-1").encode("iso-8859-1"),
                 ("ProcessAccepted", "154901234567", NUMBERED, None), id="Latin-1"),
    pytest.param(ACCEPTED.format(encoding="utf-16").encode("utf-16"),
                 ("ProcessAccepted", "154901234567", NUMBERED, None), id="UTF-16"),
    pytest.param(ACCEPTED.format(encoding="utf-8").replace("\n", "\r\n").encode() + b"\r\n\r\n",
                 ("ProcessAccepted", "154901234567", NUMBERED, None), id="CRLF"),
    pytest.param(b"\n\n" + ACCEPTED.format(encoding="utf-8").encode(),
                 ("ProcessAccepted", "154901234567", NUMBERED, None), id="blank lines first"),
    pytest.param(ACCEPTED.format(encoding="utf-8").replace("\n", "").replace("wps:", "ns0:")
                 .replace("xmlns:wps", "xmlns:ns0").encode(),
                 ("ProcessAccepted", "154901234567", NUMBERED, None), id="other prefix, one line"),
    pytest.param(response("<ProcessAccepted/>"),
                 ("ProcessAccepted", UUID, UUID_URL, None), id="PyWPS 4, default namespace"),
    pytest.param(response('<ProcessStarted percentCompleted="3"/>'),
                 ("ProcessStarted", UUID, UUID_URL, None), id="started"),
    pytest.param(response("<ProcessPaused/>"), ("ProcessPaused", UUID, UUID_URL, None), id="paused"),
    pytest.param(response("<ProcessSucceeded/>", outputs(f'href="{ESCAPED}"')),
                 ("ProcessSucceeded", UUID, UUID_URL, REPORT_URL), id="href"),
    pytest.param(response("<ProcessSucceeded/>", outputs(f'xlink:href="{ESCAPED}" mimeType="application/json"')),
                 ("ProcessSucceeded", UUID, UUID_URL, REPORT_URL), id="xlink:href"),
    pytest.param(response("<ProcessSucceeded/>"), ("ProcessSucceeded", UUID, UUID_URL, None), id="no Reference yet"),
    pytest.param(response("<ProcessSucceeded/>", location="").replace(b' statusLocation=""', b""),
                 ("ProcessSucceeded", "", None, None), id="no statusLocation"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "expected"), ANSWERS)
def test_wps_answer(document, expected):
    """An answer means the same in whatever form it comes."""
    answer = parse_wps(document)
    assert (answer.state, answer.job_id, answer.status_location, answer.report_url) == expected
    assert answer.failed is False
    assert answer.holds_job == (answer.status_location is not None)


REFUSALS = [
    pytest.param(response(f"<ProcessFailed><ows:ExceptionReport>{refusal('no  such&#10; tile')}</ows:ExceptionReport>"
                          "</ProcessFailed>"), "no such tile", id="ProcessFailed"),
    pytest.param(f'<ows:ExceptionReport xmlns:ows="{OWS}">{refusal("no such tile")}</ows:ExceptionReport>'.encode(),
                 "no such tile", id="ExceptionReport"),
    pytest.param(f'<ExceptionReport xmlns="{OWS}"><Exception><ExceptionText>no such tile</ExceptionText></Exception>'
                 "</ExceptionReport>".encode(), "no such tile", id="default namespace"),
    pytest.param(b"<ExceptionReport/>", "", id="no reason"),
    pytest.param(b'{"ErrorCode": 401, "ErrorMessage": "no such tile"}', "no such tile", id="JSON"),
    pytest.param(b'\n {"ErrorMessage": "no such tile"}', "no such tile", id="JSON without a code"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "words"), REFUSALS)
def test_wps_refusal(document, words):
    """A refusal holds no job, and keeps the service's reason on one line."""
    answer = parse_wps(document)
    assert answer.failed
    assert not answer.holds_job
    assert words in answer.message
    assert "\n" not in answer.message


LAUGHS = b'<!DOCTYPE lolz [<!ENTITY a "ha">' + b"".join(
    b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9)
)
UNREADABLE = [
    pytest.param(b"", Status.NOT_YET, id="empty"),
    pytest.param(b" \n", Status.NOT_YET, id="blank"),
    pytest.param(b"PEPS is resting", Status.NOT_YET, id="text"),
    pytest.param(b"<html><body>Maintenance</body></html>", Status.NOT_YET, id="page"),
    pytest.param(b"<!doctype html><html><body>Maintenance</body></html>", None, id="page with a doctype"),
    pytest.param(response()[:-20], Status.NOT_YET, id="truncated"),
    pytest.param(ACCEPTED.format(encoding="utf-16").encode("utf-16")[:101], Status.NOT_YET, id="half of UTF-16"),
    pytest.param(b'<?xml version="1.0" encoding="klingon"?><a/>', Status.NOT_YET, id="unknown encoding"),
    pytest.param(b"<a>\xff</a>", Status.NOT_YET, id="not UTF-8"),
    pytest.param(LAUGHS + b"]>" + response("<ProcessAccepted>&j;</ProcessAccepted>"), Status.FAILED, id="laughs"),
    pytest.param(b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', Status.FAILED, id="file entity"),
    pytest.param(b'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><a/>', Status.FAILED, id="outer DTD"),
    pytest.param("<!DOCTYPE a><a/>".encode("utf-16"), Status.FAILED, id="DTD in UTF-16"),
    pytest.param(b'{"USER_INFO": {}}', Status.NOT_YET, id="other JSON"),
    pytest.param(b'{"ErrorCode": 401, "ErrorMes', Status.NOT_YET, id="half of JSON"),
    pytest.param(b"<a>" * 100_000, Status.NOT_YET, id="deep"),
]


@pytest.mark.parametrize(("document", "expected"), UNREADABLE)
def test_what_is_no_wps_answer(document, expected):
    """It is refused: for good where it is not to be trusted, else it may be in order next time."""
    with pytest.raises(Unreadable) as refused:
        parse_wps(document)
    assert expected in (None, refused.value.status)


@pytest.mark.parametrize(
    ("location", "job_id"),
    [
        ("http://a.org/pywps-15.xml", "15"),
        ("http://a.org/15.xml", "15"),
        (f"https://a.org:81/wps/{UUID}.xml?x=1.5#2", UUID),
        ("http://a.org/outputs/pywps-15", "15"),
        ("http://a.org/a.b.xml", "a.b"),
    ],
)
def test_job_id_is_the_stem_of_the_status_document(location, job_id):
    """PyWPS 3 puts `pywps-` before it; neither query nor fragment belongs to it."""
    assert parse_wps(response(location=location)).job_id == job_id


# ---- reports


def report(**info):
    """A report with these keys in USER_INFO."""
    return json.dumps({"USER_INFO": info}).encode()


ZIP = "https://peps.cnes.fr/cgi-bin/mapcache_results/maja/1/SENTINEL2A_20170704-105605-456_L2A_T31TCJ_D_V1-4.zip"
STATES = [
    ("PENDING", State.WAITING),
    ("STALLED", State.RUNNING),
    ("FINISHED", State.FINISHED),
    ("ERROR", State.FAILED),
    ("CANCELED", State.CANCELED),
    ("SUSPENDED", State.UNKNOWN),
    ("", State.UNKNOWN),
]


@pytest.mark.parametrize(("word", "state"), STATES)
def test_state_of_a_report(word, state):
    """The service's words, `STALLED` for running among them, and any other one as it is."""
    found = parse_report(report(job_status=word))
    assert (found.state, found.word) == (state, word)


@pytest.mark.parametrize("value", [None, 7, True, [], ["FINISHED?"], {}, {"a": 1}])
def test_state_of_another_type_is_not_finished(value):
    """What is no word is not taken for an end."""
    assert parse_report(report(job_status=value)).state == State.UNKNOWN


@pytest.mark.parametrize("document", [b"{}", b'{"USER_INFO": null}', b'{"USER_INFO": [1]}', b'{"USER_INFO": "FINE"}'])
def test_report_without_user_info_says_nothing(document):
    """A report that says nothing is not finished, and has no results."""
    found = parse_report(document)
    assert (found.state, found.results, found.unprocessed) == (State.UNKNOWN, (), 0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("37%", "37%"), ("37", "37%"), (37, "37%"), (37.5, "37.5%"), ("37 %", "37%"), ("0%", "0%"), (0, "0%")],
)
def test_progress(value, expected):
    """The percentage is shown as such, whatever type it has."""
    assert parse_report(report(job_status="STALLED", process=value)).progress == expected


@pytest.mark.parametrize(
    ("value", "count", "lost"),
    [
        pytest.param(2, 2, (), id="number"),
        pytest.param(0, 0, (), id="none"),
        pytest.param("2", 2, (), id="text"),
        pytest.param(" 2 ", 2, (), id="text with blanks"),
        pytest.param("", 0, (), id="empty text"),
        pytest.param(2.0, 2, (), id="decimal"),
        pytest.param(-1, 0, (), id="negative"),
        pytest.param(None, 0, (), id="null"),
        pytest.param([], 0, (), id="empty list"),
        pytest.param(["a", "b"], 2, ("a", "b"), id="names"),
        pytest.param({"2017-07-04": "a"}, 1, ("a",), id="object"),
        pytest.param("1e999", None, None, id="infinite"),
        pytest.param("nan", None, None, id="no number"),
    ],
)
def test_unprocessed(value, count, lost):
    """Lost dates are counted, and listed where they are named."""
    found = parse_report(report(job_status="FINISHED", unprocessed=value))
    if count is None:
        assert found.unprocessed >= 0
    else:
        assert (found.unprocessed, found.lost) == (count, lost)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param([ZIP], (ZIP,), id="list"),
        pytest.param([ZIP, ZIP], (ZIP,), id="twice the same"),
        pytest.param(ZIP, (ZIP,), id="text"),
        pytest.param([], (), id="empty"),
        pytest.param([None, ZIP], (ZIP,), id="null among them"),
        pytest.param([{"url": ZIP}], (ZIP,), id="objects"),
    ],
)
def test_results(value, expected):
    """The results, each once, in whatever list they come."""
    assert parse_report(report(job_status="FINISHED", results=value)).results == expected


@pytest.mark.parametrize("value", [None, "", "two\nlines", 5, ["a"], {}])
def test_message_is_one_line(value):
    """The service's message goes into one line of ours."""
    assert "\n" not in parse_report(report(job_status="ERROR", message=value)).message


LOOSE = [
    pytest.param({"percentCompleted": 37, "state": "STALLED"}, (State.RUNNING, "37%", ()), id="flat"),
    pytest.param({"a": [{"b": {"percentCompleted": "37%"}}, ["STALLED"]]}, (State.RUNNING, "37%", ()), id="deep"),
    pytest.param({"x": "FINISHED", "y": {"z": [ZIP]}}, (State.FINISHED, "", (ZIP,)), id="finished"),
    pytest.param({"x": "CANCELED"}, (State.CANCELED, "", ()), id="canceled"),
    pytest.param({"x": "not FINISHED yet"}, (State.UNKNOWN, "", ()), id="word within a sentence"),
    pytest.param({"FINISHED": False}, (State.UNKNOWN, "", ()), id="word as a key"),
    pytest.param({"x": "FINISHED", "y": f"see {ZIP} there"}, (State.FINISHED, "", ()), id="URL within a sentence"),
    pytest.param({"USER_INFO": {"job_status": None}, "x": "FINISHED", "y": ZIP}, (State.FINISHED, "", (ZIP,)),
                 id="null in USER_INFO"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "expected"), LOOSE)
def test_loose_report_of_a_single_product(document, expected):
    """Without the keys, state word, percentage and .zip URLs count wherever they stand as values."""
    found = parse_report(json.dumps(document).encode())
    assert (found.state, found.progress, found.results) == expected


@pytest.mark.parametrize("document", [b"", b"<html/>", b'{"USER_INFO": {', b"[]", b"null", b'"FINISHED"', b"[" * 10**5])
def test_what_is_no_report(document):
    """Half a document, or another one, may be in order next time."""
    with pytest.raises(Unreadable) as refused:
        parse_report(document)
    assert refused.value.status == Status.NOT_YET


# ---- the catalogue


@pytest.mark.parametrize(
    ("properties", "more"),
    [
        pytest.param({"links": [{"rel": "self"}, {"rel": "next", "href": "x"}]}, True, id="next"),
        pytest.param({"links": [{"rel": "self"}]}, False, id="last"),
        pytest.param({"links": []}, False, id="no links"),
        pytest.param({"links": [None, "next", {"rel": None}]}, False, id="odd links"),
        pytest.param({"links": None}, None, id="null"),
        pytest.param({}, None, id="missing"),
        pytest.param(None, None, id="no properties"),
    ],
)
def test_page_tells_whether_there_is_more(properties, more):
    """A link `next` says so, and only a list of links without it says no."""
    page = parse_page(json.dumps({"properties": properties, "features": [{}]}).encode())
    assert (page.more, page.features) == (more, [{}])


@pytest.mark.parametrize("document", [b"", b"<html/>", b"[]", b"{}", b'{"features": null}', b'{"features": {}}'])
def test_what_is_no_page(document):
    """Something else than an answer must not pass for nothing found."""
    with pytest.raises(Unreadable):
        parse_page(document)


L1C_NAME = "S2A_MSIL1C_20170704T105621_N0205_R051_T31TCJ_20170704T111010"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (L1C_NAME, Acquisition("S2A", "20170704", "31TCJ")),
        (L1C_NAME + ".SAFE", Acquisition("S2A", "20170704", "31TCJ")),
        ("SENTINEL2B_20180101-235959-001_L2A_T60XZV_D_V1-4.zip", Acquisition("S2B", "20180101", "60XZV")),
        ("SENTINEL2A_20170704-105605-456_L2A_T31TCJ_D_V1-4_NOVALD.zip", Acquisition("S2A", "20170704", "31TCJ")),
        ("S1A_IW_GRDH_1SDV_20170704T105621", None),
        ("readme.zip", None),
        ("", None),
    ],
)
def test_acquisition_of_a_name(name, expected):
    """Platform, date and tile tie an L1C product to its L2A product."""
    assert acquisition(name) == expected


def test_old_long_names_take_their_acquisition_from_the_feature():
    """The names of 2016's first products say no tile; the catalogue's other keys do."""
    found = L1C.from_feature(
        {
            "properties": {
                "productIdentifier": "S2A_OPER_PRD_MSIL1C_PDMC_20160401T100000_R051_V20160401T105000",
                "platform": "S2A",
                "startDate": "2016-04-01T10:50:00Z",
                "mgrs": "31TCJ",
            }
        }
    )
    assert (found.acquisition, found.orbit) == (Acquisition("S2A", "20160401", "31TCJ"), 51)


def test_missing_acquisitions_have_neither_product_nor_cloudy_entry():
    """A cloudy acquisition is not missing; a product of another platform or tile does not stand for a lost one."""
    there, cloudy, lost = (Acquisition("S2A", f"2017070{n}", "31TCJ") for n in (1, 2, 3))
    results = [
        "https://a.org/SENTINEL2A_20170701-105605-456_L2A_T31TCJ_D_V1-4.zip",
        "https://a.org/SENTINEL2A_20170702-105605-456_L2A_T31TCJ_D_V1-4_NOVALD.zip",
        "https://a.org/SENTINEL2B_20170703-105605-456_L2A_T31TCJ_D_V1-4.zip",
        "https://a.org/SENTINEL2A_20170703-105605-456_L2A_T31TDH_D_V1-4.zip",
    ]
    assert missing_acquisitions([lost, there, cloudy, lost], results) == [lost]


# ---- names of results


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (ZIP, ZIP.rpartition("/")[2]),
        ("http://a.org/x%20y.zip", "x y.zip"),
        ("http://a.org/x.zip?token=1/2.zip#3", "x.zip"),
        ("http://a.org/a/b/%C3%A9.zip", "é.zip"),
    ],
)
def test_name_of_a_result(url, name):
    """The last component of the path, decoded."""
    assert product_name(url) == name


@pytest.mark.parametrize(
    "url",
    [
        "http://a.org/",
        "http://a.org",
        "http://a.org/..",
        "http://a.org/.zip",
        "http://a.org/.hidden.zip",
        "http://a.org/..%2Fetc%2Fx.zip",
        "http://a.org/%2Fetc%2Fx.zip",
        "http://a.org/..%5Cx.zip",
        "http://a.org/C%3Ax.zip",
        "http://a.org/x%00.zip",
        "http://a.org/x%0A.zip",
        "http://a.org/x%1b[31m.zip",
        "http://a.org/x%E2%80%AE.zip",
        "http://a.org/x.zip/",
        "http://a.org/x.exe",
        "http://a.org/x.zip.part",
        "ftp://a.org/x.zip",
        "file:///etc/x.zip",
        "x.zip",
        "//a.org/x.zip",
        "http:///x.zip",
        "http://[::1/x.zip",
        "",
    ],
)
def test_name_that_is_refused(url):
    """No separators, no `..`, no empty or hidden name, no control character, nothing but a zip of the web."""
    with pytest.raises(PepsError) as refused:
        product_name(url)
    assert refused.value.status == Status.FAILED
    assert "\n" not in str(refused.value)


@given(st.text())
@example("../../etc/passwd.zip")
@example("..%2f..%2fetc%2fpasswd.zip")
@example("a%ff.zip")
def test_name_of_any_url_is_harmless(text):
    """Whatever the service names, it is refused or one visible component of a path."""
    for url in (f"http://a.org/{text}", f"http://a.org/{text}.zip", f"http://a.org/{quote(text)}.zip", text):
        with contextlib.suppress(PepsError):
            name = product_name(url)
            assert name not in ("", ".", "..")
            assert name.isprintable()
            assert not set(name) & set("/\\\0")
            assert not name.startswith(".")
            assert Path("folder", name).parent == Path("folder")


# ---- any bytes at all


JUNK = st.one_of(
    st.binary(max_size=300),
    st.text(alphabet="<>/&;{}[]\":,'= aExcutRspon1\n\0é", max_size=80).map(str.encode),
    st.tuples(st.sampled_from([param.values[0] for param in [*ANSWERS, *REFUSALS]]), st.integers(0, 700), st.binary())
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
    """No document ends in anything but a value or a PepsError."""
    for parse in (parse_wps, parse_report, parse_page):
        with contextlib.suppress(PepsError):
            parse(document)


@given(st.dictionaries(
    st.sampled_from(["job_status", "process", "results", "unprocessed", "message", "logs", "percentCompleted"]), VALUES
))  # fmt: skip
def test_report_of_any_types_is_a_value(info):
    """Missing keys, nulls and other types are no error, and what comes out has the types that it promises."""
    for document in ({"USER_INFO": info}, info, {"USER_INFO": None, **info}):
        found = parse_report(json.dumps(document).encode())
        assert isinstance(found.state, State)
        assert all(isinstance(text, str) for text in (found.word, found.progress, found.message, *found.results))
        assert isinstance(found.unprocessed, int)
        assert found.unprocessed >= len(found.lost)


@given(VALUES)
@example({"properties": {"productIdentifier": "a/b"}})
def test_feature_of_any_types_is_a_product_or_none(feature):
    """A feature has a usable name or is left out."""
    for value in (
        feature,
        {"properties": feature},
        {"properties": {"productIdentifier": L1C_NAME, "storage": feature}},
    ):
        product = L1C.from_feature(value)
        assert product is None or ("/" not in product.name and product.name)


# ---- the account


WORD = st.text(st.characters(exclude_characters=" \t\r\n\ufeff", exclude_categories=["Cs"]), min_size=1)
REST = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)


@given(WORD, REST, st.sampled_from(" \t"), st.sampled_from(["", "\n", "\r\n", "\nand more\n"]))
def test_password_of_any_characters_survives(email, password, blank, ending):
    """The password is everything after the first blank of the line."""
    account = parse_account(f"{email}{blank}{password}{ending}")
    assert (account.email, account.password) == (email, password)


@given(WORD, st.text(string.ascii_letters, min_size=8))
def test_account_shows_no_password(email, password):
    """Neither an account's repr nor a refusal quotes what a file holds."""
    assert password not in repr(parse_account(f"x{email[0]} {password}"))
    with pytest.raises(ValueError, match="e-mail") as refused:
        parse_account(password)
    assert password not in str(refused.value)


@given(st.text())
def test_any_account_text_is_an_account_or_a_value_error(text):
    """What is no account is a ValueError, and an account has both parts."""
    with contextlib.suppress(ValueError):
        account = parse_account(text)
        assert account.email
        assert account.password


# ---- who may see the password


@pytest.mark.parametrize(
    ("server", "url", "may"),
    [
        ("https://peps.cnes.fr", "https://peps.cnes.fr/x", True),
        ("https://peps.cnes.fr", "https://PEPS.CNES.FR:8443/x", True),
        ("https://peps.cnes.fr", "https://peps-vizo.cnes.fr/x", True),
        ("https://peps.cnes.fr", "https://cnes.fr/x", True),
        ("https://peps.cnes.fr", "https://a.b.cnes.fr/x", True),
        ("https://peps.cnes.fr", "http://peps.cnes.fr/x", False),
        ("https://peps.cnes.fr", "https://evilcnes.fr/x", False),
        ("https://peps.cnes.fr", "https://cnes.fr.evil.org/x", False),
        ("https://peps.cnes.fr", "https://peps.cnes.fr@evil.org/x", False),
        ("https://peps.cnes.fr", "https://fr/x", False),
        ("https://peps.cnes.fr", "ftp://peps.cnes.fr/x", False),
        ("https://peps.cnes.fr", "https:///x", False),
        ("https://cnes.fr", "https://peps.cnes.fr/x", False),
        ("https://cnes.fr", "https://evil.fr/x", False),
        ("https://localhost", "https://evil.localhost/x", False),
        ("http://localhost:8080", "http://localhost:9090/x", True),
        ("http://127.0.0.1:8080", "http://127.0.0.1:9090/x", True),
        ("http://127.0.0.1:8080", "http://127.0.0.2/x", False),
        ("http://[::1]:8080", "http://[::1]/x", True),
        ("https://10.0.0.1", "https://10.0.0.2/x", False),
        ("https://10.0.0.1", "http://10.0.0.1/x", False),
        ("http://10.0.0.1", "http://10.0.0.1/x", False),
        ("http://peps.cnes.fr", "http://peps.cnes.fr/x", False),
        ("https://peps.cnes.fr", "http://localhost/x", False),
        ("https://peps.cnes.fr", "http://localhost.cnes.fr/x", False),
    ],
)
def test_who_may_see_the_password(server, url, may):
    """Over https the server's host and its parent domain, over plain http a loopback server alone."""
    assert may_carry_password(url, server) is may


@pytest.mark.parametrize(
    ("server", "url", "expected"),
    [
        ("https://peps.cnes.fr", "http://peps.cnes.fr/a?b=c", "https://peps.cnes.fr/a?b=c"),
        ("https://peps.cnes.fr", "http://PEPS.cnes.fr/a", "https://PEPS.cnes.fr/a"),
        ("https://peps.cnes.fr", "http://peps.cnes.fr:8081/a", "http://peps.cnes.fr:8081/a"),
        ("https://peps.cnes.fr", "http://peps-vizo.cnes.fr/a", "http://peps-vizo.cnes.fr/a"),
        ("http://peps.cnes.fr", "http://peps.cnes.fr/a", "http://peps.cnes.fr/a"),
    ],
)
def test_plain_addresses_of_the_own_host_become_https(server, url, expected):
    """Without a port and where the server has https; any other address stays as it is."""
    assert secure(url, server) == expected


# ---- small things


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("a.log", "a.stat"),
        ("a", "a.stat"),
        ("a.txt", "a.txt.stat"),
        ("a.log.log", "a.log.stat"),
        ("logs.log/a.log", "logs.log/a.stat"),
        ("catalog", "catalog.stat"),
        ("31TCJ.log.1", "31TCJ.log.1.stat"),
    ],
)
def test_sibling_of_a_log(log, expected):
    """Only the suffix is changed, never a `log` elsewhere in the path."""
    assert sibling(Path(log), ".stat") == Path(expected)


@pytest.mark.parametrize(
    ("code", "headers", "offset", "expected"),
    [
        pytest.param(200, {"Content-Length": "9"}, 0, (0, 9), id="all"),
        pytest.param(200, {"Content-Length": "9"}, 4, (0, 9), id="range ignored"),
        pytest.param(200, {}, 0, (0, None), id="no length"),
        pytest.param(200, {"Content-Length": "x"}, 0, (0, None), id="odd length"),
        pytest.param(200, {"Content-Length": "9", "Content-Encoding": "gzip"}, 0, (0, None), id="packed"),
        pytest.param(206, {"Content-Range": "bytes 4-8/9"}, 4, (4, 9), id="the rest"),
        pytest.param(206, {"Content-Range": "bytes 4-8/*"}, 4, (4, None), id="rest of unknown length"),
        pytest.param(206, {"Content-Range": "bytes 3-8/9"}, 4, None, id="another part"),
        pytest.param(206, {"Content-Range": "items 4-8/9"}, 4, None, id="another unit"),
        pytest.param(206, {}, 4, None, id="no Content-Range"),
        pytest.param(416, {"Content-Range": "bytes */4"}, 4, (4, 4), id="nothing left"),
        pytest.param(416, {"Content-Range": "bytes */9"}, 4, None, id="refused within"),
        pytest.param(416, {}, 4, None, id="refused without a length"),
    ],
)
def test_body_span(code, headers, offset, expected):
    """Where a body begins and how long the product is; None where it does not fit what is held."""
    assert body_span(code, headers, offset) == expected


@given(st.sampled_from([200, 206, 416]), st.text("bytes 0123456789-/*", max_size=30), st.integers(0, 10**6))
def test_body_begins_where_it_can_be_written(code, text, offset):
    """Whatever the headers say, a body is written from the start or from where the file ends."""
    span = body_span(code, {"Content-Range": text, "Content-Length": text}, offset)
    assert span is None or span[0] in (0, offset)


@given(st.dictionaries(st.sampled_from(["product", "tileid", "startDate"]), st.text(st.characters(codec="utf-8"))))
def test_inputs_arrive_as_they_were(inputs):
    """`;`, `=` and `&` within a value are the value's, those between the inputs go unencoded."""
    url = execute_url("https://peps.cnes.fr", "MAJA", inputs, "status=true")
    query = urlsplit(url).query
    assert [key for key, _ in parse_qsl(query, keep_blank_values=True)] == [
        "request", "service", "version", "identifier", "datainputs", "status",
    ]  # fmt: skip
    sent = query.partition("datainputs=")[2].rpartition("&")[0]
    pairs = [pair.split("=") for pair in sent.split(";") if pair]
    assert [(key, parse_qsl(f"v={value}", keep_blank_values=True)[0][1]) for key, value in pairs] == list(
        inputs.items()
    )


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [((), 0), ((0, 0), 0), ((0, 75), 75), ((75, 1, 0), 1), ((0, 2), 2), ((75, 2), 2), ((2, 1), 1)],
)
def test_worst_status(statuses, expected):
    """What needs a person comes before what needs time."""
    assert worst(map(Status, statuses)) == expected


@given(st.text(), st.integers(1, 50))
def test_clean_text_is_one_printable_line(text, limit):
    """Nothing of the service's text can move the cursor or fill the screen."""
    cleaned = clean(text, limit)
    assert cleaned.isprintable()
    assert len(cleaned) <= limit


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"),
     (512_300_000, "512.3 MB"), (1.6e9, "1.6 GB"), (5e12, "5000.0 GB")],
)  # fmt: skip
def test_human_sizes(size, expected):
    """Decimal units, with one digit after the point."""
    assert human(size) == expected


# ---- values of the command line


@given(st.dates())
def test_every_day_of_the_calendar_is_a_date(value):
    """A date is read as it is written."""
    assert day(value.isoformat()) == value


@given(st.text(max_size=12))
@example("2017-02-30")
@example("2017-07-01\n")
def test_any_text_is_a_value_or_refused(text):
    """An argparse type gives a value in its range or an error of its own, never another exception."""
    with contextlib.suppress(ArgumentTypeError):
        assert day(text).isoformat() == text
    with contextlib.suppress(ArgumentTypeError):
        found = tile(text)
        assert text.upper() in (found, f"T{found}")
    with contextlib.suppress(ArgumentTypeError):
        assert 1 <= orbit(text) <= 143
    with contextlib.suppress(ArgumentTypeError):
        assert -90 <= number(float, -90, 90, "a latitude")(text) <= 90
    with contextlib.suppress(ArgumentTypeError):
        assert server_url(text).startswith(("http://", "https://"))


@given(
    st.integers(1, 60), st.sampled_from("CDEFGHJKLMNPQRSTUVWX"), st.sampled_from("ABCDEFGHJKLMNPQRSTUVWXYZ"),
    st.sampled_from("ABCDEFGHJKLMNPQRSTUV"), st.sampled_from(["", "T", "t"]),
)  # fmt: skip
def test_every_tile_of_the_grid_is_a_tile(zone, band, column, row, prefix):
    """Zone, band, column and row, with or without a leading T."""
    name = f"{zone:02}{band}{column}{row}"
    assert tile(prefix + name) == tile(prefix + name.lower()) == name


@pytest.mark.parametrize("url", ["https://peps.cnes.fr", "http://127.0.0.1:80/a/b", "https://[::1]:8443"])
def test_server_is_kept_without_its_last_slash(url):
    """A base URL is joined with paths that begin with a slash."""
    assert server_url(url) == server_url(f"{url}/") == server_url(f" {url} ") == url


def test_dates_are_compared_as_dates():
    """What the command line gives is a date, so that periods are counted in days."""
    assert (day("2018-01-01") - day("2017-07-01")).days == 184
    assert day("2016-02-29") == date(2016, 2, 29)
