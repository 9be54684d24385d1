"""What can go wrong on the wire and in the service's words, and how each of it ends.

Each fault is put on real sockets. The first run meets it and ends as the table says, with the job's other products on
disk; then the service is well again, and a second run brings every product, byte for byte, and leaves nothing else.
"""

from __future__ import annotations

import email.utils
import gzip
import json
import threading
import time
import types
from typing import NamedTuple

import pytest
from faulty_http import (
    cut,
    endless,
    for_gets,
    head_and,
    no_range,
    raw,
    reset,
    stall,
    status,
    without_length,
)
from local_peps import make_product
from stories import FinishedJob, answer, failed, flipped, lines_of, only_line, report_of

import full_maja_download
import peps_common

SIZE = 100_000
HELD = 30_000  # bytes of a product that has come when something happens in its middle
VICTIM = "SENTINEL2A_20170701-105605-456_L2A_T31TCJ_D_V1-4.zip"
PAGE = b"<!DOCTYPE html><html><body>Maintenance</body></html>"
BODY = make_product(VICTIM, SIZE)
ALL = len(BODY)
REST_OF_ALL = f"bytes {HELD}-{ALL - 1}/{ALL}"
FEW = f"bytes {HELD}-{HELD + 999}"


def both(first, second):
    """Two faults of one answer: how it is sent, and how it breaks off."""
    return lambda handler: first(handler) or second(handler)


def send(document: bytes | str, **headers):
    """Answer with a document as it is, its headers right or wrong."""
    body = document.encode() if isinstance(document, str) else document
    return status(
        200, {name.replace("_", "-"): value for name, value in headers.items()}, body
    )


def send_chunked(end: int | None = None, more: bytes = b""):
    """The product in chunked transfer coding, up to some byte of that, and something more."""
    pieces = [BODY[at : at + 7000] for at in range(0, ALL, 7000)]
    whole = (
        b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        + b"0\r\n\r\n"
    )
    return head_and(whole[:end] + more, "Transfer-Encoding: chunked")


def rest(
    content_range: str | None,
    first: int = HELD,
    end: int | None = None,
    body: bytes = BODY,
):
    """A 206 of these bytes, whatever was asked for."""
    headers = {"Content-Range": content_range} if content_range else {}
    return status(206, headers, body[first:end], "application/zip")


def moved(location: str | None, code: int = 302):
    """A redirect; `{path}` stands for the path that was asked for, `{port}` for the server's port."""

    def fault(handler):
        port = handler.connection.getsockname()[1]
        place = (
            {"Location": location.format(path=handler.record.path, port=port)}
            if location
            else {}
        )
        return status(code, place)(handler)

    return fault


def moved_to_localhost(handler):
    """A redirect to another name of this machine, which is another host and may not see the account."""
    return handler.record.host.startswith("127.") and moved(
        "http://localhost:{port}{path}"
    )(handler)


def damaged_in_two_pieces(handler):
    """The damaged product, each answer from its start broken off so that the rest is a continuation."""
    body = flipped(BODY, HELD // 2)
    if "range" in handler.record.headers:
        return rest(REST_OF_ALL, body=body)(handler)
    return cut(HELD)(handler) or send(body)(handler)


class Row(NamedTuple):
    """A fault of one product and its end.

    `faults` are what its GET requests meet in turn, the last one `for_ever` if that is set; `before` is the .part that
    an earlier run left; `ends`, `words` and `unsaid` are the first run's exit status and what its one line on stderr
    says and does not; `left` is what then stands on disk, "whole", "nothing" or the bytes of the .part (None: not
    promised); `sent` is how many bytes of the product the server had to send in the first run, where that is certain.
    """

    faults: tuple
    ends: int = 0
    words: tuple[str, ...] = ()
    left: object = "whole"
    for_ever: bool = False
    before: bytes | None = None
    sent: int | None = None
    unsaid: str = "\0"
    read_timeout_s: float = 20


def mended(*faults, **more) -> Row:
    """A row whose faults do not keep the product from coming in the first run."""
    return Row(faults, **more)


def later(
    *faults, words: tuple[str, ...] = ("127.0.0.1:",), left: object = "nothing", **more
) -> Row:
    """A row whose last fault is met for ever, so that the product can be had another time."""
    return Row(faults, 75, (*words, "later"), left, for_ever=True, **more)


def never(
    *faults, words: tuple[str, ...] = ("127.0.0.1",), left: object = "nothing", **more
) -> Row:
    """A row whose last fault is met for ever, so that the product cannot be had."""
    return Row(faults, 1, words, left, for_ever=True, **more)


PART = BODY[:HELD]
OF_PART = {"before": PART}

CONNECTIONS = {
    "cut before the head, three times": mended(
        cut(None), cut(None), cut(None), sent=ALL
    ),
    "cut before the head, for ever": later(cut(None)),
    "cut after the head, for ever": later(cut(0)),
    "cut after two bytes, for ever": later(cut(2), left=None),
    "cut in the middle": mended(cut(HELD), sent=ALL),
    "cut in the middle of each answer": Row((cut(HELD),), for_ever=True, sent=ALL),
    "cut more often than is tried without progress": mended(
        *[cut(HELD // 10)] * 8, sent=ALL
    ),
    "cut before the last byte": mended(cut(ALL - 1), sent=ALL),
    "cut in the middle, then before every head": later(
        cut(HELD), cut(None), left=PART, sent=HELD
    ),
    "cut in the middle, then after every head": later(
        cut(HELD), cut(0), left=PART, sent=HELD
    ),
    "reset in the middle": mended(reset(HELD), reset(HELD)),
    "stalled in the middle": mended(stall(HELD), read_timeout_s=0.3),
    "stalled before the head": mended(stall(None), read_timeout_s=0.3),
    "stalled in the middle, then for ever": later(
        stall(HELD), stall(0), left=PART, read_timeout_s=0.2
    ),
    "stalled before the head, for ever": later(stall(None), read_timeout_s=0.2),
    "no HTTP, for ever": later(raw(b"\0" * 500)),
    "a head without end": mended(
        raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000), sent=ALL
    ),
    "a thousand header lines": mended(head_and(BODY, *["X: x"] * 1000), sent=ALL),
}

LENGTHS = {
    "no length": mended(without_length, sent=ALL),
    "no length, cut in the middle": mended(both(without_length, cut(HELD))),
    "no length, cut in the middle, for ever": never(
        both(without_length, cut(HELD)), left=None
    ),
    "length too large": mended(send(BODY, Content_Length=ALL + 100)),
    "length too large, for ever": later(
        send(BODY, Content_Length=ALL + 100), left=None
    ),
    "length too small": mended(send(BODY, Content_Length=ALL - 100)),
    "length too small, for ever": never(
        send(BODY, Content_Length=ALL - 100), left=None
    ),
    "length of zero": mended(send(BODY, Content_Length=0)),
    "length of five thousand digits": mended(send(BODY, Content_Length="9" * 5000)),
    "a cookie of many digits": mended(
        send(BODY, Set_Cookie=f"a=b; Max-Age={'9' * 400}"), sent=ALL
    ),
    "length is a word": mended(send(BODY, Content_Length="many")),
    "length below zero": mended(send(BODY, Content_Length="-5")),
    "two lengths": later(
        head_and(BODY, f"Content-Length: {ALL}", "Content-Length: 5"),
        words=("127.0.0.1",),
        unsaid="address",
    ),
    "chunked": mended(send_chunked()),
    "chunked, cut in the middle": mended(send_chunked(HELD)),
    "chunked, with a size that is none": mended(send_chunked(HELD, b"zz\r\n")),
    "chunked, without its end": mended(send_chunked(-5)),
}

RANGES = {
    "range ignored": mended(no_range, **OF_PART, sent=ALL),
    "range ignored after a cut": mended(cut(HELD), no_range, sent=HELD + ALL),
    "range from the start": mended(rest(f"bytes 0-{ALL - 1}/{ALL}", 0), **OF_PART),
    "range from another byte": mended(
        rest(f"bytes {HELD + 9}-{ALL - 1}/{ALL}", HELD + 9), **OF_PART
    ),
    "range from another byte, for ever": never(
        rest(f"bytes 9-{ALL - 1}/{ALL}", 9), left=PART, **OF_PART
    ),
    "part of a product without Content-Range": mended(rest(None), **OF_PART),
    "Content-Range of an unknown total": mended(
        rest(f"bytes {HELD}-{ALL - 1}/*"), **OF_PART
    ),
    "Content-Range that is garbage": mended(rest("bytes"), **OF_PART),
    "less than asked for": mended(
        rest(f"{FEW}/{ALL}", end=HELD + 1000), **OF_PART, sent=ALL - HELD
    ),
    "less than asked for, of an unknown total": mended(
        rest(f"{FEW}/*", end=HELD + 1000), **OF_PART
    ),
    "part not asked for": mended(rest(f"bytes 5-{ALL - 1}/{ALL}", 5)),
    "416, all is there": mended(before=BODY, sent=0),
    "416, all is there but damaged": mended(before=flipped(BODY, HELD // 2), sent=ALL),
    "416, more is there than the product has": mended(
        before=BODY + b"x" * 100, sent=ALL
    ),
    "416 with another total": mended(
        status(416, {"Content-Range": f"bytes */{HELD // 2}"}), **OF_PART, sent=ALL
    ),
    "416, for ever": never(status(416), words=("416",)),
    "a part that an earlier run left": mended(**OF_PART, sent=ALL - HELD),
    "a damaged part that an earlier run left": mended(
        before=flipped(BODY, HELD // 2)[:HELD], sent=ALL - HELD + ALL
    ),
    "a part that is no zip": mended(before=PAGE),
    "an empty part": mended(before=b"", sent=ALL),
}

STATUSES = {
    "403": never(status(403), words=("403", "peps.txt")),
    "404 after a part": never(status(404), words=("404",), left=PART, **OF_PART),
    "429 once": mended(status(429), sent=ALL),
    "429 for ever": later(status(429), words=("429",)),
    **{f"{code} once": mended(status(code), sent=ALL) for code in (500, 502, 503, 504)},
    **{
        f"{code} for ever": later(status(code, body=PAGE), words=(str(code),))
        for code in (500, 502, 503, 504)
    },
    "503 after a part, for ever": later(
        status(503), words=("503",), left=PART, sent=0, **OF_PART
    ),
    "204": never(head_and(b"", code="204 No Content")),
    "a status that nobody knows": never(status(799), words=("799",)),
}

LACKING = BODY[:HELD] + BODY[HELD + 10_000 :]  # its directory, at the end, can be read
CONTENTS = {
    "a page once": mended(status(200, body=PAGE)),
    "a page, then cut before every head": later(
        status(200, body=PAGE), cut(None), unsaid="page"
    ),
    "a page for ever": never(status(200, body=PAGE), words=("page",)),
    "a page that says it is a zip": never(
        status(200, body=PAGE, content_type="application/zip"), words=("page",)
    ),
    "an error with 200": never(
        send('{"ErrorCode": 400, "ErrorMessage": "the tape is lost"}'),
        words=("the tape is lost",),
    ),
    "not there with 200, once": mended(
        send('{"ErrorCode": 404, "ErrorMessage": "Not Found"}')
    ),
    "not now with 200": later(
        send('{"ErrorCode": 503, "ErrorMessage": "busy"}'), words=("503", "busy")
    ),
    "an empty answer for ever": never(status(200), words=("an empty answer",)),
    "a page instead of the rest": never(
        status(200, body=PAGE), words=("page",), left=PART, **OF_PART
    ),
    "an empty answer instead of the rest": never(
        status(200), words=("an empty answer",), left=PART, **OF_PART
    ),
    "a page instead of the rest, once": mended(
        status(200, body=PAGE), **OF_PART, sent=len(PAGE) + ALL - HELD
    ),
    "packed once more": never(
        send(gzip.compress(BODY), Content_Encoding="gzip"), words=("page",)
    ),
    "said to be packed": mended(send(BODY, Content_Encoding="gzip"), sent=ALL),
    "half a zip once": mended(send(BODY[: ALL // 2])),
    "half a zip for ever": never(send(BODY[: ALL // 2]), left=None),
    "the start of a zip for ever": never(send(b"PK\3\4"), left=None),
    "two bytes of a zip for ever": never(send(b"PK")),
    "bytes missing in the middle": mended(send(LACKING)),
    "bytes missing in the middle, for ever": never(send(LACKING), words=("damaged",)),
    "bytes before the first member": mended(send(b"PK\3\4" + bytes(100) + BODY)),
    "a zip without anything in it": never(send(b"PK\5\6" + bytes(18)), left=None),
    "a damaged zip in two pieces": mended(
        damaged_in_two_pieces, damaged_in_two_pieces, sent=2 * ALL
    ),
    "a damaged zip in two pieces, for ever": never(
        damaged_in_two_pieces, words=("damaged",), left=None
    ),
}

REDIRECTS = {
    "moved on the same host": mended(moved("{path}?again", 301), sent=ALL),
    "moved on the same host, with its name": mended(
        moved("http://127.0.0.1:{port}{path}", 308), sent=ALL
    ),
    "moved while it is continued": mended(
        moved("{path}", 303), **OF_PART, sent=ALL - HELD
    ),
    "moved in a circle": never(moved("{path}"), words=("redirect",)),
    "moved to another host": never(
        moved_to_localhost, words=("localhost", "401", "your")
    ),
    "moved nowhere": never(moved(None), words=("302",)),
    "moved to no address": never(moved("http://[::1/"), words=("address",)),
    "moved to a file": never(moved("file:///etc/hostname"), words=("address",)),
    "moved to ftp": never(moved("ftp://127.0.0.1{path}"), words=("address",)),
    "moved to nobody": later(
        moved("http://127.0.0.2:9{path}"), words=("127.0.0.2:9",), unsaid="127.0.0.1"
    ),
}

FAULTS = {**CONNECTIONS, **LENGTHS, **RANGES, **STATUSES, **CONTENTS, **REDIRECTS}


def require_healthy(run, job: FinishedJob, *others: FinishedJob):
    """The second run: all there, byte for byte, and nothing else in any folder."""
    job.mend(*others)
    logs = [one.log for one in (job, *others)]
    run("full_maja_download", "-l", *logs, "-w", job.products)
    assert job.on_disk() == {
        name: body for one in (job, *others) for name, body in one.bodies.items()
    }


@pytest.mark.parametrize("row", FAULTS.values(), ids=FAULTS)
def test_a_fault_ends_in_a_whole_product_or_in_one_line(
    row, run, make_job, monkeypatch
):
    monkeypatch.setattr(peps_common, "TIMEOUTS_S", (15, row.read_timeout_s))
    job = make_job()
    if row.before is not None:
        job.part(VICTIM).write_bytes(row.before)
    job.hit(for_gets(*row.faults, for_ever=row.for_ever))

    result = run("full_maja_download", *job.argv, status=row.ends)

    found = job.on_disk()
    others = {name: body for name, body in job.bodies.items() if name != VICTIM}
    assert {name: found.pop(name, None) for name in others} == others
    if row.ends:
        assert row.unsaid not in only_line(result, VICTIM, "31TCJ.log", *row.words)
        assert VICTIM not in found
    else:
        assert result.err == ""
    expected = {"whole": {VICTIM: BODY}, "nothing": {}}.get(
        row.left, {f"{VICTIM}.part": row.left}
    )
    assert row.left is None or found == expected
    assert row.sent is None or job.sent(VICTIM) == row.sent
    require_healthy(run, job)


def test_an_account_refused_in_the_place_of_products_is_one_line(run, make_job):
    job = make_job(count=6)
    job.hit(
        for_gets(
            send('{"ErrorCode": 401, "ErrorMessage": "Unauthorized"}'), for_ever=True
        ),
        "/maja/",
    )
    result = run("full_maja_download", *job.argv, "-j", 2, status=1)
    only_line(result, "6 products", "refused the account (401)", "peps.txt")
    assert sum(len(job.gets(name)) for name in job.bodies) <= 2


def test_the_length_of_what_is_no_zip_may_come_from_its_head_alone(run, make_job):
    job = make_job()
    job.add("quality.json", b"[" * 1000)
    job.hit(for_gets(both(without_length, cut(500))), "quality.json")
    run("full_maja_download", *job.argv)
    assert job.on_disk() == {**job.bodies, "quality.json": b"[" * 1000}


def test_products_that_fail_for_a_reason_of_their_own_are_named_each(run, make_job):
    job = make_job()
    job.hit(for_gets(status(404), for_ever=True), "/maja/")
    lines = run("full_maja_download", *job.argv, status=1).err.splitlines()
    assert sorted(
        name for line in lines for name in job.bodies if name in line
    ) == sorted(job.bodies)
    assert len(lines) == 3
    require_healthy(run, job)


@pytest.mark.parametrize(("fault", "ends", "words", "most"), [
    (status(401), 1, ("12 products", "refused the account (401)"), 4),
    (status(503), 75, ("12 products", "answers 503, tried 5 times", "later"), 5 * 8),
    (cut(None), 75, ("12 products", "gives no answer", "tried 5 times", "later"), 5 * 8),
    (cut(0), 75, ("12 products", "breaks off at 0 B, tried 5 times", "later"), 5 * 12),
], ids=["account", "503", "no answer", "breaks off"])  # fmt: skip
def test_one_reason_is_one_line_for_all_products(
    run, make_job, fault, ends, words, most
):
    job = make_job(count=12)
    job.hit(for_gets(fault, for_ever=True), "/maja/")
    only_line(run("full_maja_download", *job.argv, status=ends), *words)
    assert len(job.peps.requests("/maja/", "GET")) <= most
    require_healthy(run, job)


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """How long the library's Retry would have slept; it does not sleep."""
    found = []
    monkeypatch.setattr(
        "urllib3.util.retry.time",
        types.SimpleNamespace(sleep=found.append, time=time.time),
    )
    return found


RETRY_AFTER = {
    "0": [], "7": [7], "119": [119], "121": None, "9" * 30: None, "in an hour": None, "9" * 5000: [],
    "Thu, 01 Jan 1970 00:00:00 GMT": [], "soon": [], "-5": [], "1.5": [], "": [], "Mon, 99 Foo 99999 99:99:99 GMT": [],
}  # fmt: skip


@pytest.mark.parametrize(("code", "text", "header", "expected"), [
    *((429, VICTIM, header, expected) for header, expected in RETRY_AFTER.items()),
    *((code, text, header, RETRY_AFTER[header])
      for code, text in ((503, VICTIM), (429, "/r.json"), (503, "/r.json")) for header in ("7", "121")),
], ids=lambda value: str(value)[-30:])  # fmt: skip
def test_retry_after_is_kept_as_long_as_patience_lasts(
    code, header, expected, text, run, make_job, naps
):
    job = make_job()
    if header == "in an hour":
        header = email.utils.formatdate(time.time() + 3600, usegmt=True)
    job.hit(for_gets(status(code, {"Retry-After": header})), text)
    result = run("full_maja_download", *job.argv, status=75 if expected is None else 0)
    assert [nap for nap in naps if nap > 0] == (expected or [])
    if expected is None:
        only_line(result, str(code), "later")
    require_healthy(run, job)


HEAD = b"HTTP/1.1 200 OK\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TRAILERS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
ENDLESS = {
    "100 Continue": (b"", CONTINUE, 0), "100 Continue, slowly": (b"", CONTINUE, 0.02),
    "a header of one byte at a time": (HEAD + b"X: ", b"x", 0.02), "headers": (HEAD, b"X: x\r\n", 0.02),
    "trailers": (TRAILERS, b"X: x\r\n", 0), "trailers, slowly": (TRAILERS, b"X: x\r\n", 0.02),
    "silence": (HEAD + b"Content-Length: 100\r\n\r\nPK", b"", 0.02),
    "a body of one byte at a time": (HEAD + b"Content-Length: 100000\r\n\r\nPK\3\4", b"x", 0.02),
    "an endless body": (HEAD + b"\r\nPK\3\4", bytes(65536), 0),
    "an endless size of a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 65536, 0),
    "tiny chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.02),
    "an error without end": (b"HTTP/1.1 503 No\r\n\r\n", bytes(65536), 0),
    "a redirect without end": (b"HTTP/1.1 302 No\r\nLocation: /x\r\n\r\n", bytes(65536), 0),
}  # fmt: skip
PLACES = {
    "status document": "/31TCJ.xml",
    "report": "/31TCJ/r.json",
    "refresh": "PROCESSING",
    "product": VICTIM,
}
# A product without end and without length ends where the disk does.
NEVER = [("product", name) for name in ENDLESS if name != "an endless body"]
NEVER += [("status document", name) for name in ENDLESS]
NEVER += [
    (place, name)
    for place in ("report", "refresh")
    for name in ("100 Continue", "trailers", "an endless body")
]


@pytest.mark.parametrize(("place", "name"), NEVER)
def test_what_never_ends(place, name, run, make_job, monkeypatch):
    for module, setting, value in (
        (peps_common, "PATIENCE_S", 0.3), (peps_common, "TRIES", 2), (full_maja_download, "SLOWEST_S", 0.15),
        (full_maja_download, "WISH_PATIENCE_S", 0.15),
    ):  # fmt: skip
        monkeypatch.setattr(module, setting, value)
    job, other = make_job(), make_job("other", size=5000)
    other.bodies.pop(VICTIM)
    other.results = other.results[1:]
    job.hit(for_gets(endless(*ENDLESS[name]), for_ever=True), PLACES[place])
    result = run(
        "full_maja_download", "-l", job.log, other.log, "-w", job.products, status=None
    )
    assert result.status in ((0,) if place == "refresh" else (1, 75)), result
    assert len(result.err.splitlines()) == (place != "refresh"), result
    assert {name: job.on_disk()[name] for name in other.bodies} == other.bodies


def test_a_product_that_is_slow_but_comes_is_not_broken_off(run, make_job, monkeypatch):
    monkeypatch.setattr(full_maja_download, "SLOWEST_S", 0.5)
    monkeypatch.setattr(full_maja_download, "SLOWEST_RATE", 50_000)
    job = make_job(count=1)

    def slowly(handler):
        pump = handler.pump
        handler.pump = lambda body, start, end: [
            (pump(body, at, min(at + 10_000, end)), threading.Event().wait(0.1))
            for at in range(start, end, 10_000)
        ]

    job.hit(for_gets(slowly, for_ever=True))
    monkeypatch.setattr(
        "faulty_http.CHUNK_BYTES", 1000
    )  # so that no body goes out with the head
    run("full_maja_download", *job.argv)
    assert len(job.gets(VICTIM)) == 1


HEADS = {
    "501": status(501), "405": status(405), "404": status(404), "503": status(503), "closes": cut(None),
    "stalls": stall(None), "no length": without_length, "circle": moved("{path}"),
    "word": raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"),
    "small": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
    "zero": status(200, {"Content-Length": "0"}), "huge": status(200, {"Content-Length": "9" * 5000}),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_a_server_without_head(name, run, make_job, monkeypatch):
    """Lengths are a wish; one that is asked in vain is not asked for each product."""
    monkeypatch.setattr(full_maja_download, "LENGTH_PATIENCE_S", 0.2)
    job = make_job(count=8)
    job.hit(
        lambda handler: handler.command == "HEAD" and HEADS[name](handler), "/maja/"
    )
    assert run("full_maja_download", *job.argv, "-j", 2).err == ""
    assert name != "stalls" or len(job.peps.requests("/maja/", "HEAD")) <= 2
    job.require_whole()


TOO_MUCH = b" " * (peps_common.DOCUMENT_MAX_BYTES + 1)
# Small on the wire and large in the end.
PACKED = send(gzip.compress(TOO_MUCH), Content_Encoding="gzip")
# By what a path ends with: a fault of a job's status document or report, how the job ends, and what is said of it.
# Of the documents that cannot be read there are a few of a kind, as their table is that of the pure functions.
FAILED, LATER = 1, 75
DOCUMENTS: dict[str, dict[str, tuple]] = {
    ".xml": {
        "with a DTD": (send("<!DOCTYPE x><x/>"), FAILED, "DTD"),
        "too large": (send(b"<x>" + TOO_MUCH), FAILED, "larger"),
        "without length, too large": (head_and(b"<x>" + TOO_MUCH), FAILED, "larger"),
        "too large when unpacked": (PACKED, LATER, "no "),
        "cut off": (send(answer("http://127.0.0.1/a.xml", "<ProcessSucceeded/>")[:-20]), LATER),
        "a page": (send("<html><body>Maintenance</body></html>"), LATER),
        "an error": (send('{"ErrorCode": 400, "ErrorMessage": "no such job"}'), FAILED, "no such job"),
        "a file as its report": (send(answer("x", "<ProcessSucceeded/>", "file:///etc/hostname")), FAILED, "refused"),
        "out of order": (status(503), LATER, "503"),
        "an error without a code": (status(500, body=b'{"ErrorMessage": "database away"}'), LATER, "500", "base away"),
        "cut for ever": (cut(100), LATER, "127.0.0.1"),
        "forbidden": (status(403), FAILED, "403"),
    },
    "/r.json": {
        "too large": (send(b'{"a": 1}' + TOO_MUCH), FAILED, "larger"),
        "too large when unpacked": (PACKED, LATER, "no "),
        "of endless results": (
            send(json.dumps(report_of([f"http://a.b/{n}.zip" for n in range(20_000)]))), FAILED, "refused",
        ),
        "cut off": (send('{"USER_INFO": {"job_status": "FIN'), LATER),
        "a WPS answer": (send(answer("x", failed("no"))), LATER),
        "a strange state": (send(r'{"USER_INFO": {"job_status": "\u001b[31mEATEN\n"}}'), LATER, "EATEN"),
        "packed wrongly": (send("{}", Content_Encoding="gzip"), LATER),
        "cut for ever": (cut(10), LATER, "127.0.0.1"),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "name"),
    [(place, name) for place, rows in DOCUMENTS.items() for name in rows],
)
def test_a_hostile_document_ends_one_job_alone(place, name, run, make_job):
    fault, ends, *words = DOCUMENTS[place][name]
    job, other = make_job(), make_job("other")
    other.bodies = {VICTIM: BODY}
    other.results, job.results, shared = (
        other.results[:1],
        job.results[1:],
        job.bodies.pop(VICTIM),
    )
    assert shared == BODY
    job.hit(fault, f"/31TCJ{place}")
    result = run(
        "full_maja_download", "-l", job.log, other.log, "-w", job.products, status=ends
    )
    about = lines_of(result.out + result.err, "31TCJ.log: ")
    assert len(about) == 1, result
    assert all(word in about[0] for word in words)
    assert about[0].isprintable()
    assert job.on_disk() == other.bodies
    require_healthy(run, job, other)


BASE = "{url}/cgi-bin/mapcache_results/maja/job/"


@pytest.mark.parametrize("result", [
    BASE + "..%2fescaped.zip", BASE + "%2ftmp%2fescaped.zip", BASE + "escaped%0a.zip",
    BASE + "x" * 100_000 + ".zip", "file:///etc/escaped.zip", "/etc/escaped.zip",
    "http://127.0.0.1:99999/escaped.zip", "", 5, 1e400, True, {"url": 7},
], ids=lambda value: f"{str(value).replace(BASE, '')[:30]} of {len(str(value))}")  # fmt: skip
def test_a_hostile_result_is_refused_and_the_others_come(result, run, make_job, peps):
    """The table of names is that of the pure function; here are some of each kind."""
    job = make_job()
    job.results.insert(
        1, result.format(url=peps.url) if isinstance(result, str) else result
    )
    line = only_line(run("full_maja_download", *job.argv, status=1), "31TCJ.log")
    assert len(line) < 1000
    job.require_whole()
    job.results.pop(1)  # mended by the service
    require_healthy(run, job)


@pytest.mark.parametrize(("results", "ends"), [
    (None, 0), ({}, 0), ([], 0), ([None, None], 0), ("none", 1), (7, 1), (True, 1),
], ids=repr)  # fmt: skip
def test_results_that_are_no_list_of_addresses(results, ends, run, make_job):
    job = make_job()
    job.results = results
    result = run("full_maja_download", *job.argv, status=ends)
    assert (
        only_line(result, "31TCJ.log")
        if ends
        else "finished: no products" in result.out
    )
    assert job.on_disk() == {}
