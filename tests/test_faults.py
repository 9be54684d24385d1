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
from collections.abc import Callable
from typing import NamedTuple

import pytest
from faulty_http import (
    cut,
    endless,
    for_gets,
    for_heads,
    head_and,
    hold,
    json_error,
    no_range,
    raw,
    reset,
    stall,
    status,
    without_length,
)  # fmt: skip
from local_peps import make_product
from stories import FinishedJob, answer, lines_of, only_line, report_of, wait_until

import full_maja_download
import peps_common

SIZE = 100_000
HELD = 30_000  # bytes of a product that has come when something happens in its middle
VICTIM = "SENTINEL2A_20170701-105605-456_L2A_T31TCJ_D_V1-4.zip"
PAGE = b"<!DOCTYPE html><html><body>Maintenance</body></html>"
BODY = make_product(VICTIM, SIZE)
ALL = len(BODY)
REST_OF_ALL = f"bytes {HELD}-{ALL - 1}/{ALL}"


# ---- faults of a product


def both(first, second):
    """Two faults of one answer: how it is sent, and how it breaks off."""
    return lambda handler: first(handler) or second(handler)


def chunked(body: bytes, piece: int = 7000) -> bytes:
    """A body in chunked transfer coding, whole."""
    pieces = [body[at : at + piece] for at in range(0, len(body), piece)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in pieces) + b"0\r\n\r\n"


def send_chunked(content: bytes):
    return head_and(content, "Transfer-Encoding: chunked")


def part_answer(content_range: str | None, body: bytes):
    """A 206 that is not what was asked for."""
    headers = {"Content-Range": content_range} if content_range else {}
    return status(206, headers, body, "application/zip")


def zip_answer(body: bytes, **headers):
    return status(200, {name.replace("_", "-"): value for name, value in headers.items()}, body, "application/zip")


def moved(location: str | None, code: int = 302):
    """A redirect; `{path}` stands for the path that was asked for, `{port}` for the server's port."""

    def fault(handler):
        port = handler.connection.getsockname()[1]
        place = {"Location": location.format(path=handler.record.path, port=port)} if location else {}
        return status(code, place)(handler)

    return fault


def without(body: bytes, count: int = 10_000) -> bytes:
    """A product that lacks bytes in its middle; its directory, at the end, can be read."""
    return body[:HELD] + body[HELD + count :]


def prefixed(body: bytes) -> bytes:
    """A product behind something that is none of it."""
    return b"PK\3\4" + bytes(100) + body


def moved_to_localhost(handler):
    """A redirect to another name of this machine, which is another host and may not see the account."""
    return handler.record.host.startswith("127.") and moved("http://localhost:{port}{path}")(handler)


def flipped(body: bytes, at: int = HELD // 2) -> bytes:
    """The product with one bit turned over in its first image: the directory is fine, a CRC is not."""
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def damaged_in_two_pieces(handler):
    """The damaged product, each answer from its start broken off so that the rest is a continuation."""
    body = flipped(BODY)
    if "range" in handler.record.headers:
        return part_answer(REST_OF_ALL, body[HELD:])(handler)
    return cut(HELD)(handler) or zip_answer(body)(handler)


# ---- the table


class Row(NamedTuple):
    """A fault of one product and its end.

    `faults` are what its GET requests meet in turn, the last one `for_ever` if that is set; `before` is the .part
    that an earlier run left; `ends` and `words` are the first run's exit status and what its one line on stderr
    says; `left` is what then stands on disk, "whole", "nothing" or the bytes of the .part (None: not promised);
    `sent` is how many bytes of the product the server had to send in the first run, where that is certain.
    """

    faults: tuple
    ends: int = 0
    words: tuple[str, ...] = ()
    left: object = "whole"
    for_ever: bool = False
    before: bytes | None = None
    sent: int | None = None
    read_timeout_s: float = 20


def mended(*faults, **more) -> Row:
    """A row whose faults do not keep the product from coming in the first run."""
    return Row(faults, **more)


def lasting(*faults, ends: int, words: tuple[str, ...], left: object = "nothing", **more) -> Row:
    """A row whose last fault is met for ever."""
    return Row(faults, ends, words, left, for_ever=True, **more)


LATER = ("127.0.0.1:", "later")
OF_HELD = {"before": BODY[:HELD]}

CONNECTIONS = {
    "cut before the head, once": mended(cut(None), sent=ALL),
    "cut before the head, three times": mended(cut(None), cut(None), cut(None), sent=ALL),
    "cut before the head, for ever": lasting(cut(None), ends=75, words=LATER),
    "cut after the head": mended(cut(0), sent=ALL),
    "cut after the head, for ever": lasting(cut(0), ends=75, words=LATER),
    "cut after two bytes": mended(cut(2), cut(2)),
    "cut after two bytes, for ever": lasting(cut(2), ends=75, words=LATER, left=None),
    "cut in the middle": mended(cut(HELD), sent=ALL),
    "cut in the middle of each answer": Row((cut(HELD),), for_ever=True, sent=ALL),
    "cut more often than is tried without progress": mended(*[cut(HELD // 10)] * 8, sent=ALL),
    "cut before the last byte": mended(cut(ALL - 1), sent=ALL),
    "cut in the middle, then before every head": lasting(
        cut(HELD), cut(None), ends=75, words=LATER, left=BODY[:HELD], sent=HELD
    ),
    "cut in the middle, then after every head": lasting(
        cut(HELD), cut(0), ends=75, words=LATER, left=BODY[:HELD], sent=HELD
    ),
    "reset in the middle": mended(reset(HELD), reset(HELD)),
    "reset before the head": mended(reset(None), reset(None), sent=ALL),
    "reset before the head, for ever": lasting(reset(None), ends=75, words=LATER),
    "stalled in the middle": mended(stall(HELD), read_timeout_s=0.3),
    "stalled before the head": mended(stall(None), read_timeout_s=0.3),
    "stalled in the middle, then for ever": lasting(
        stall(HELD), stall(0), ends=75, words=LATER, left=BODY[:HELD], read_timeout_s=0.2
    ),
    "stalled before the head, for ever": lasting(stall(None), ends=75, words=LATER, read_timeout_s=0.2),
    "no HTTP": mended(raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), sent=ALL),
    "no HTTP, for ever": lasting(raw(b"\0" * 500), ends=75, words=LATER),
    "a head without end": mended(raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000), sent=ALL),
    "a thousand header lines": mended(head_and(BODY, *["X: x"] * 1000), sent=ALL),
}

LENGTHS = {
    "no length": mended(without_length, sent=ALL),
    "no length, cut in the middle": mended(both(without_length, cut(HELD))),
    "no length, cut in the middle, for ever": lasting(
        both(without_length, cut(HELD)), ends=1, words=("127.0.0.1",), left=None
    ),
    "length too large": mended(zip_answer(BODY, Content_Length=ALL + 100)),
    "length too large, for ever": lasting(zip_answer(BODY, Content_Length=ALL + 100), ends=75, words=LATER, left=None),
    "length too small": mended(zip_answer(BODY, Content_Length=ALL - 100)),
    "length too small, for ever": lasting(
        zip_answer(BODY, Content_Length=ALL - 100), ends=1, words=("127.0.0.1",), left=None
    ),
    "length of zero": mended(zip_answer(BODY, Content_Length=0)),
    "length of five thousand digits": mended(zip_answer(BODY, Content_Length="9" * 5000)),
    "length is a word": mended(zip_answer(BODY, Content_Length="many")),
    "length below zero": mended(zip_answer(BODY, Content_Length="-5")),
    "chunked": mended(send_chunked(chunked(BODY))),
    "chunked, cut in the middle": mended(send_chunked(chunked(BODY)[:HELD])),
    "chunked, with a size that is none": mended(send_chunked(chunked(BODY)[:HELD] + b"zz\r\n")),
    "chunked, without its end": mended(send_chunked(chunked(BODY)[:-5])),
}

RANGES = {
    "range ignored": mended(no_range, **OF_HELD, sent=ALL),
    "range ignored after a cut": mended(cut(HELD), no_range, sent=HELD + ALL),
    "range from the start": mended(part_answer(f"bytes 0-{ALL - 1}/{ALL}", BODY), **OF_HELD),
    "range from another byte": mended(part_answer(f"bytes {HELD + 9}-{ALL - 1}/{ALL}", BODY[HELD + 9 :]), **OF_HELD),
    "range from another byte, for ever": lasting(
        part_answer(f"bytes 9-{ALL - 1}/{ALL}", BODY[9:]), ends=1, words=("127.0.0.1",), left=BODY[:HELD], **OF_HELD
    ),
    "part of a product without Content-Range": mended(part_answer(None, BODY[HELD:]), **OF_HELD),
    "Content-Range of an unknown total": mended(part_answer(f"bytes {HELD}-{ALL - 1}/*", BODY[HELD:]), **OF_HELD),
    "Content-Range in other units": mended(part_answer(f"items {HELD}-{ALL - 1}/{ALL}", BODY[HELD:]), **OF_HELD),
    "Content-Range that is garbage": mended(part_answer("bytes", BODY[HELD:]), **OF_HELD),
    "Content-Range of five thousand digits": mended(
        part_answer(f"bytes {HELD}-{'9' * 5000}/{'9' * 5000}", BODY[HELD:]), **OF_HELD
    ),
    "less than asked for": mended(
        part_answer(f"bytes {HELD}-{HELD + 999}/{ALL}", BODY[HELD : HELD + 1000]), **OF_HELD, sent=ALL - HELD
    ),
    "less than asked for, of an unknown total": mended(
        part_answer(f"bytes {HELD}-{HELD + 999}/*", BODY[HELD : HELD + 1000]), **OF_HELD
    ),
    "part not asked for": mended(part_answer(f"bytes 5-{ALL - 1}/{ALL}", BODY[5:])),
    "416, all is there": mended(before=BODY, sent=0),
    "416, all is there but damaged": mended(before=flipped(BODY), sent=ALL),
    "416, more is there than the product has": mended(before=BODY + b"x" * 100, sent=ALL),
    "416 without Content-Range": mended(status(416), **OF_HELD, sent=ALL),
    "416 with another total": mended(status(416, {"Content-Range": f"bytes */{HELD // 2}"}), **OF_HELD, sent=ALL),
    "416 with garbage": mended(status(416, {"Content-Range": "bytes */many"}), **OF_HELD, sent=ALL),
    "416, for ever": lasting(status(416), ends=1, words=("416",)),
    "a part that an earlier run left": mended(**OF_HELD, sent=ALL - HELD),
    "a damaged part that an earlier run left": mended(before=flipped(BODY)[:HELD], sent=ALL - HELD + ALL),
    "a part that is no zip": mended(before=PAGE),
    "an empty part": mended(before=b"", sent=ALL),
}

STATUSES = {
    "403": lasting(status(403), ends=1, words=("403", "peps.txt")),
    "404": lasting(status(404), ends=1, words=("404",)),
    "410": lasting(status(410), ends=1, words=("410",)),
    "404 after a part": lasting(status(404), ends=1, words=("404",), left=BODY[:HELD], **OF_HELD),
    "418": lasting(status(418), ends=1, words=("418",)),
    "429 once": mended(status(429), sent=ALL),
    "429 for ever": lasting(status(429), ends=75, words=("429", "later")),
    **{f"{code} once": mended(status(code), sent=ALL) for code in (500, 502, 503, 504)},
    **{
        f"{code} for ever": lasting(status(code, body=PAGE), ends=75, words=(str(code), "later"))
        for code in (500, 502, 503, 504)
    },
    "503 after a part, for ever": lasting(
        status(503), ends=75, words=("503", "later"), left=BODY[:HELD], sent=0, **OF_HELD
    ),
    "204": lasting(head_and(b"", code="204 No Content"), ends=1, words=("127.0.0.1",)),
    "a status that nobody knows": lasting(status(799), ends=1, words=("799",)),
}

CONTENTS = {
    "a page once": mended(status(200, body=PAGE)),
    "a page for ever": lasting(status(200, body=PAGE), ends=1, words=("page",)),
    "a page that says it is a zip": lasting(zip_answer(PAGE), ends=1, words=("page",)),
    "an error with 200": lasting(
        status(200, {}, json_error(400, "the tape is lost")[2], "application/json"), ends=1, words=("the tape is lost",)
    ),
    "an empty answer once": mended(status(200)),
    "an empty answer for ever": lasting(status(200), ends=1, words=("an empty answer",)),
    "a page instead of the rest": lasting(status(200, body=PAGE), ends=1, words=("page",), left=BODY[:HELD], **OF_HELD),
    "an empty answer instead of the rest": lasting(
        status(200), ends=1, words=("an empty answer",), left=BODY[:HELD], **OF_HELD
    ),
    "a page instead of the rest, once": mended(status(200, body=PAGE), **OF_HELD, sent=len(PAGE) + ALL - HELD),
    "packed once more": lasting(zip_answer(gzip.compress(BODY), Content_Encoding="gzip"), ends=1, words=("page",)),
    "said to be packed": mended(zip_answer(BODY, Content_Encoding="gzip"), sent=ALL),
    "half a zip once": mended(zip_answer(BODY[: ALL // 2])),
    "half a zip for ever": lasting(zip_answer(BODY[: ALL // 2]), ends=1, words=("127.0.0.1",), left=None),
    "the start of a zip for ever": lasting(zip_answer(b"PK\3\4"), ends=1, words=("127.0.0.1",), left=None),
    "two bytes of a zip for ever": lasting(zip_answer(b"PK"), ends=1, words=("127.0.0.1",)),
    "bytes missing in the middle": mended(zip_answer(without(BODY))),
    "bytes missing in the middle, for ever": lasting(zip_answer(without(BODY)), ends=1, words=("damaged",)),
    "bytes before the first member": mended(zip_answer(prefixed(BODY))),
    "a zip without anything in it": lasting(zip_answer(b"PK\5\6" + bytes(18)), ends=1, words=("127.0.0.1",), left=None),
    "a damaged zip in two pieces": mended(damaged_in_two_pieces, damaged_in_two_pieces, sent=2 * ALL),
    "a damaged zip in two pieces, for ever": lasting(damaged_in_two_pieces, ends=1, words=("damaged",), left=None),
}

REDIRECTS = {
    **{f"moved on the same host, {code}": mended(moved("{path}?again", code), sent=ALL) for code in (301, 302, 307)},
    "moved on the same host, with its name": mended(moved("http://127.0.0.1:{port}{path}", 308), sent=ALL),
    "moved while it is continued": mended(moved("{path}", 303), **OF_HELD, sent=ALL - HELD),
    "moved in a circle": lasting(moved("{path}"), ends=1, words=("redirect",)),
    "moved to another host": lasting(moved_to_localhost, ends=1, words=("localhost", "401", "your")),
    "moved nowhere": lasting(moved(None), ends=1, words=("302",)),
    "moved to no address": lasting(moved("http://[::1/"), ends=1, words=("address",)),
    "moved to a file": lasting(moved("file:///etc/hostname"), ends=1, words=("address",)),
    "moved to ftp": lasting(moved("ftp://127.0.0.1{path}"), ends=1, words=("address",)),
    "moved to where nobody listens": lasting(moved("http://127.0.0.1:9{path}"), ends=75, words=LATER),
}

FAULTS = {**CONNECTIONS, **LENGTHS, **RANGES, **STATUSES, **CONTENTS, **REDIRECTS}


# ---- a finished job with three products


def require_healthy(run, job: FinishedJob, *others: FinishedJob):
    """The second run: all there, byte for byte, and nothing else in any folder."""
    job.mend(*others)
    logs = [one.log for one in (job, *others)]
    run("full_maja_download", "-l", *logs, "-w", job.products)
    assert job.on_disk() == {name: body for one in (job, *others) for name, body in one.bodies.items()}


@pytest.mark.parametrize("row", FAULTS.values(), ids=FAULTS)
def test_a_fault_ends_in_a_whole_product_or_in_one_line(row, run, make_job, monkeypatch):
    monkeypatch.setattr(peps_common, "READ_TIMEOUT_S", row.read_timeout_s)
    job = make_job()
    if row.before is not None:
        job.part(VICTIM).write_bytes(row.before)
    job.hit(for_gets(*row.faults, for_ever=row.for_ever))

    result = run("full_maja_download", *job.argv, status=row.ends)

    found = job.on_disk()
    others = {name: body for name, body in job.bodies.items() if name != VICTIM}
    assert {name: found.pop(name, None) for name in others} == others
    if row.ends:
        only_line(result, VICTIM, "31TCJ.log", *row.words)
        assert VICTIM not in found
    else:
        assert result.err == ""
    expected = {"whole": {VICTIM: BODY}, "nothing": {}}.get(row.left, {f"{VICTIM}.part": row.left})
    assert row.left is None or found == expected
    assert row.sent is None or job.sent(VICTIM) == row.sent
    require_healthy(run, job)


def test_a_stalled_product_does_not_hold_up_the_others(run, make_job, launch):
    release, job = threading.Event(), make_job()
    job.hit(for_gets(hold(release, HELD)))
    process = launch("full_maja_download", *job.argv, "-j", 2)
    wait_until(lambda: all((job.products / name).exists() for name in job.bodies if name != VICTIM))
    assert process.poll() is None
    release.set()
    assert process.wait(20) == 0
    require_healthy(run, job)


def test_two_lengths_are_not_called_a_wrong_address(run, make_job):
    job = make_job()
    job.hit(for_gets(head_and(BODY, f"Content-Length: {ALL}", "Content-Length: 5"), for_ever=True))
    result = run("full_maja_download", *job.argv, status=None)
    assert result.status in (1, 75)
    assert "address" not in only_line(result, VICTIM, "127.0.0.1")
    require_healthy(run, job)


def test_products_that_fail_for_a_reason_of_their_own_are_named_each(run, make_job):
    job = make_job()
    job.hit(for_gets(status(404), for_ever=True), "/maja/")
    lines = run("full_maja_download", *job.argv, status=1).err.splitlines()
    assert sorted(name for line in lines for name in job.bodies if name in line) == sorted(job.bodies)
    assert len(lines) == 3
    require_healthy(run, job)


def test_a_failure_behind_a_redirect_bears_the_name_of_where_it_happened(run, make_job):
    job = make_job()
    job.hit(for_gets(moved("http://127.0.0.2:9{path}"), for_ever=True))
    assert "127.0.0.1" not in only_line(run("full_maja_download", *job.argv, status=75), VICTIM, "127.0.0.2:9")


def test_an_error_bears_its_own_code(run, make_job):
    """JSON without a code in a 500 is a 500."""
    job = make_job()
    job.hit(status(500, body=b'{"ErrorMessage": "database away"}'), "/31TCJ.xml")
    assert "400" not in only_line(run("full_maja_download", *job.argv, status=75), "500", "database away")


@pytest.mark.parametrize(
    ("fault", "ends", "words", "most"),
    [
        (status(401), 1, ("12 products", "refused the account (401)"), 4),
        (status(503), 75, ("12 products", "answers 503, tried 5 times", "later"), 5 * 8),
        (cut(None), 75, ("12 products", "gives no answer", "tried 5 times", "later"), 5 * 8),
        (cut(0), 75, ("12 products", "breaks off at 0 B"), 10**6),
    ],
    ids=["account", "503", "no answer", "breaks off"],
)
def test_one_reason_is_one_line_for_all_products(run, make_job, fault, ends, words, most):
    job = make_job(count=12)
    job.hit(for_gets(fault, for_ever=True), "/maja/")
    result = run("full_maja_download", *job.argv, status=ends)
    if most < 10**6:
        only_line(result, *words)
    assert len(job.peps.requests("/maja/", "GET")) <= most
    require_healthy(run, job)


# ---- Retry-After


def in_an_hour() -> str:
    return email.utils.formatdate(time.time() + 3600, usegmt=True)


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """How long the library's Retry would have slept; it does not sleep."""
    found = []
    clock = types.SimpleNamespace(sleep=found.append, time=time.time)
    monkeypatch.setattr("urllib3.util.retry.time", clock)
    return found


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("0", []), ("7", [7]), ("119", [119]), ("121", None), ("3600", None), ("9" * 30, None), (in_an_hour, None),
        ("9" * 5000, []), ("Thu, 01 Jan 1970 00:00:00 GMT", []), ("soon", []), ("-5", []), ("1.5", []), ("", []),
        ("Mon, 99 Foo 99999 99:99:99 GMT", []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", [VICTIM, "/r.json"], ids=["product", "report"])
def test_retry_after_is_kept_as_long_as_patience_lasts(code, header, expected, text, run, make_job, naps):
    """What is past the two minutes ends at once."""
    job = make_job()
    header = header() if callable(header) else header  # a date at collection would differ between two workers
    job.hit(for_gets(status(code, {"Retry-After": header})), text)
    result = run("full_maja_download", *job.argv, status=75 if expected is None else 0)
    assert [nap for nap in naps if nap > 0] == (expected or [])
    if expected is None:
        only_line(result, str(code), "later")
    require_healthy(run, job)


# ---- patience


HEAD = b"HTTP/1.1 200 OK\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TRAILERS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
ENDLESS = {
    "100 Continue": (b"", CONTINUE, 0),
    "100 Continue, slowly": (b"", CONTINUE, 0.02),
    "a header of one byte at a time": (HEAD + b"X: ", b"x", 0.02),
    "headers": (HEAD, b"X: x\r\n", 0.02),
    "trailers": (TRAILERS, b"X: x\r\n", 0),
    "trailers, slowly": (TRAILERS, b"X: x\r\n", 0.02),
    "a body of one byte at a time": (HEAD + b"Content-Length: 100000\r\n\r\nPK\3\4", b"x", 0.02),
    "an endless body": (HEAD + b"\r\nPK\3\4", bytes(65536), 0),
    "an endless size of a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 65536, 0),
    "tiny chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.02),
    "an error without end": (b"HTTP/1.1 503 No\r\n\r\n", bytes(65536), 0),
    "a redirect without end": (b"HTTP/1.1 302 No\r\nLocation: /x\r\n\r\n", bytes(65536), 0),
}


PLACES = {"status document": "/31TCJ.xml", "report": "/31TCJ/r.json", "refresh": "PROCESSING", "product": VICTIM}
# A product without end and without length ends where the disk does.
NEVER = [("product", name) for name in ENDLESS if name != "an endless body"]
NEVER += [("status document", name) for name in ENDLESS]
NEVER += [(place, name) for place in ("report", "refresh") for name in ("100 Continue", "trailers", "an endless body")]


@pytest.mark.parametrize(("place", "name"), NEVER)
def test_what_never_ends(place, name, run, make_job, monkeypatch):
    """Documents and products alike: the run goes on, and the other job's products are there."""
    for module, setting, value in (
        (peps_common, "PATIENCE_S", 0.3), (peps_common, "TRIES", 2), (full_maja_download, "SLOWEST_S", 0.15),
        (full_maja_download, "WISH_PATIENCE_S", 0.15),
    ):  # fmt: skip
        monkeypatch.setattr(module, setting, value)
    job, other = make_job(), make_job("other", size=5000)
    other.bodies.pop(VICTIM)
    other.results = other.results[1:]
    job.hit(for_gets(endless(*ENDLESS[name]), for_ever=True), PLACES[place])
    result = run("full_maja_download", "-l", job.log, other.log, "-w", job.products, status=None)
    assert result.status in ((0,) if place == "refresh" else (1, 75)), result
    assert len(result.err.splitlines()) == (place != "refresh"), result
    assert {name: job.on_disk()[name] for name in other.bodies} == other.bodies


def test_a_product_that_is_slow_but_comes_is_not_broken_off(run, make_job, monkeypatch):
    """What is no slower than it may be is left alone, however long it takes in all."""
    monkeypatch.setattr(full_maja_download, "SLOWEST_S", 0.5)
    monkeypatch.setattr(full_maja_download, "SLOWEST_RATE", 50_000)
    job = make_job(count=1)

    def slowly(handler):
        pump = handler.pump
        handler.pump = lambda body, start, end: [
            (pump(body, at, min(at + 10_000, end)), threading.Event().wait(0.1)) for at in range(start, end, 10_000)
        ]

    job.hit(for_gets(slowly, for_ever=True))
    monkeypatch.setattr("faulty_http.CHUNK_BYTES", 1000)  # so that no body goes out with the head
    run("full_maja_download", *job.argv)
    assert len(job.gets(VICTIM)) == 1


# ---- HEAD


@pytest.mark.parametrize(
    "fault",
    [
        status(501), status(405), status(404), status(503), cut(None), stall(None), without_length,
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"), raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
        status(200, {"Content-Length": "0"}), status(200, {"Content-Length": "9" * 5000}), moved("{path}"),
    ],
    ids=["501", "405", "404", "503", "closes", "stalls", "no length", "word", "small", "zero", "huge", "circle"],
)  # fmt: skip
def test_a_server_without_head(fault, run, make_job, monkeypatch):
    """Lengths are a wish; one that is not granted is not repeated for each product."""
    monkeypatch.setattr(full_maja_download, "LENGTH_PATIENCE_S", 0.2)
    job = make_job(count=8)
    job.hit(for_heads(fault), "/maja/")
    assert run("full_maja_download", *job.argv, "-j", 2).err == ""
    job.require_whole()


def test_lengths_are_asked_in_vain_once(run, make_job, monkeypatch):
    monkeypatch.setattr(full_maja_download, "LENGTH_PATIENCE_S", 0.2)
    job = make_job(count=8)
    job.hit(for_heads(stall(None)), "/maja/")
    run("full_maja_download", *job.argv, "-j", 2)
    assert len(job.peps.requests("/maja/", "HEAD")) <= 2


# ---- hostile documents


DTD = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>'
TOO_MUCH = b" " * (peps_common.DOCUMENT_MAX_BYTES + 1)
DEEP = 200_000


def send(document: str | bytes, **headers):
    body = document.encode() if isinstance(document, str) else document
    return status(200, {name.replace("_", "-"): value for name, value in headers.items()}, body)


# Small on the wire and large in the end.
PACKED = send(gzip.compress(TOO_MUCH), Content_Encoding="gzip")


class Document(NamedTuple):
    """A fault of a job's status document (`.xml`) or report (`report.json`), and how the job ends."""

    text: str
    fault: Callable
    ends: tuple[int, ...] = (1, 75)
    words: str = ""


DOCUMENTS = {
    "status document with a DTD": Document(".xml", send(DTD), (1,), "DTD"),
    "status document with an empty DTD": Document(".xml", send("<!DOCTYPE x><x/>"), (1,), "DTD"),
    "status document with an outer DTD": Document(
        ".xml", send('<!DOCTYPE x SYSTEM "file:///etc/hostname"><x/>'), (1,), "DTD"
    ),
    "status document with a DTD in UTF-16": Document(".xml", send(DTD.encode("utf-16")), (1,), "DTD"),
    "status document too large": Document(".xml", send(b"<x>" + TOO_MUCH), (1,), "larger"),
    "status document without length, too large": Document(".xml", head_and(b"<x>" + TOO_MUCH), (1,), "larger"),
    "status document too large when unpacked": Document(".xml", PACKED, (75,), "no "),
    "status document cut off": Document(".xml", send(answer("http://127.0.0.1/a.xml", "<ProcessSucceeded/>")[:-20])),
    "status document is a page": Document(".xml", send("<html><body>Maintenance</body></html>")),
    "status document is empty": Document(".xml", send("")),
    "status document is JSON": Document(".xml", send('{"a": 1}')),
    "status document is an error": Document(
        ".xml", send(json_error(400, "no such job at all")[2]), (1,), "no such job at all"
    ),
    "status document is no text": Document(".xml", send(bytes(range(256)))),
    "status document in no known encoding": Document(".xml", send('<?xml version="1.0" encoding="klingon"?><x/>')),
    "status document nested too deep": Document(".xml", send("<a>" * 20_000 + "</a>" * 20_000)),
    "status document names a file as its report": Document(
        ".xml", send(answer("x", "<ProcessSucceeded/>", "file:///etc/hostname")), (1,), "refused"
    ),
    "status document is gone": Document(".xml", status(404), (1,), "order it again"),
    "status document is out of order": Document(".xml", status(503), (75,), "503"),
    "status document is cut for ever": Document(".xml", cut(100), (75,), "127.0.0.1"),
    "status document is forbidden": Document(".xml", status(403), (1,), "403"),
    "report too large": Document("/r.json", send(b'{"a": 1}' + TOO_MUCH), (1,), "larger"),
    "report too large when unpacked": Document("/r.json", PACKED, (75,), "no "),
    "report nested too deep": Document("/r.json", send("[" * DEEP + "]" * DEEP)),
    "status document of a million elements": Document(".xml", send("<a>" + "<a/>" * 10**6 + "</a>")),
    "status document of a million attributes": Document(
        ".xml", send("<a " + " ".join(f'a{n}=""' for n in range(400_000)) + "/>")
    ),
    "report of a million lists": Document("/r.json", send("[" + "[]," * 10**6 + "[]]")),
    "report of five thousand digits": Document("/r.json", send('{"USER_INFO": {"unprocessed": ' + "9" * 5000 + "}}")),
    "report of endless results": Document(
        "/r.json",
        send(json.dumps(report_of([f"http://a.b/{number}.zip" for number in range(20_000)]))),
        (1,),
        "refused",
    ),
    "report nested deep": Document("/r.json", send('{"a":' * 900 + "1" + "}" * 900)),
    "report cut off": Document("/r.json", send('{"USER_INFO": {"job_status": "FIN')),
    "report is a list": Document("/r.json", send("[1, 2]")),
    "report is a number": Document("/r.json", send("1" * 5000)),
    "report is a page": Document("/r.json", send(PAGE)),
    "report is empty": Document("/r.json", send("")),
    "report is no text": Document("/r.json", send(b'{"a": "\xff\xfe\x80"}')),
    "report with a strange state": Document(
        "/r.json", send(r'{"USER_INFO": {"job_status": "\u001b[31mEATEN\n"}}'), (75,), "EATEN"
    ),
    "report is packed wrongly": Document("/r.json", send("{}", Content_Encoding="gzip")),
    "report is cut for ever": Document("/r.json", cut(10), (75,), "127.0.0.1"),
}


@pytest.mark.parametrize("row", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_hostile_document_ends_one_job_alone(row, run, make_job):
    job, other = make_job(), make_job("other")
    other.bodies = {VICTIM: BODY}
    other.results, job.results, shared = other.results[:1], job.results[1:], job.bodies.pop(VICTIM)
    assert shared == BODY
    job.hit(row.fault, f"/31TCJ{row.text}")
    result = run("full_maja_download", "-l", job.log, other.log, "-w", job.products, status=None)
    assert result.status in row.ends, result
    about = lines_of(result.out + result.err, "31TCJ.log: ")
    assert len(about) == 1, result
    assert row.words in about[0]
    assert about[0].isprintable()
    assert job.on_disk() == other.bodies
    require_healthy(run, job, other)


# ---- what a report may name


BASE = "{url}/cgi-bin/mapcache_results/maja/job/"


@pytest.mark.parametrize(
    "result",
    [
        BASE + "..%2fescaped.zip", BASE + "%2ftmp%2fescaped.zip", BASE + "escaped%0a.zip",
        BASE + "x" * 100_000 + ".zip", "file:///etc/escaped.zip", "/etc/escaped.zip",
        "http://127.0.0.1:99999/escaped.zip", "", 5, 1e400, True, {"url": 7},
    ],
    ids=lambda value: f"{str(value).replace(BASE, '')[:30]} of {len(str(value))}",
)  # fmt: skip
def test_a_hostile_result_is_refused_and_the_others_come(result, run, make_job, peps):
    """The table of names is that of the pure function; here are some of each kind."""
    job = make_job()
    job.results.insert(1, result.format(url=peps.url) if isinstance(result, str) else result)
    line = only_line(run("full_maja_download", *job.argv, status=1), "31TCJ.log")
    assert len(line) < 1000
    job.require_whole()
    job.results.pop(1)  # mended by the service
    require_healthy(run, job)


@pytest.mark.parametrize(
    ("results", "ends"),
    [(None, 0), ({}, 0), ([], 0), ([None, None], 0), ("none", 1), (7, 1), (True, 1)],
    ids=lambda value: repr(value),
)
def test_results_that_are_no_list_of_addresses(results, ends, run, make_job):
    job = make_job()
    job.results = results
    result = run("full_maja_download", *job.argv, status=ends)
    assert only_line(result, "31TCJ.log") if ends else "finished: no products" in result.out
    assert job.on_disk() == {}
