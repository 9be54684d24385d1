"""What can go wrong on the wire, and how each of it ends.

Each fault is put on real sockets. The first run meets it and ends as the table says,
with the job's other products on disk; then the service is well again, and a second run
brings every product, byte for byte, and leaves nothing else.
"""

from __future__ import annotations

import gzip
from typing import Callable, NamedTuple

import pytest
from faulty_http import (
    cut,
    for_gets,
    for_heads,
    head_and,
    no_range,
    raw,
    reset,
    stall,
    status,
    without_length,
)
from local_peps import make_product
from stories import flipped, json_error, only_line

import full_maja_download
import peps_common

HELD = 30_000  # bytes of a product that has come when something happens in its middle
VICTIM = "SENTINEL2A_20170701-105605-456_L2A_T31TCJ_D_V1-4.zip"
BODY = make_product(VICTIM, 100_000)
ALL = len(BODY)
PART = BODY[:HELD]
LACKING = PART + BODY[HELD + 10_000 :]  # its directory, at the end, can be read
PAGE = b"<!DOCTYPE html><html><body>Maintenance</body></html>"
REST = f"bytes {HELD}-{ALL - 1}"


class Row(NamedTuple):
    """A fault of one product, and how the first run ends.

    `faults` are what its GET requests meet in turn, the last one for ever unless the
    product comes; `before` is the .part that an earlier run left. `says` are words of
    the one line on stderr, `left` is the .part then, `sent` is how many bytes of the
    product the server sent, `asked` how often; None is for what is not promised.
    """

    faults: tuple[Callable, ...]
    ends: int = 0
    says: str = ""
    before: bytes = b""
    left: bytes | None = b""
    sent: int | None = None
    asked: int | None = None
    read_timeout_s: float = 20


def mended(*faults, **more) -> Row:
    """A row whose faults do not keep the product from coming."""
    return Row(faults, **more)


def later(*faults, says="{host}", **more) -> Row:
    """A row whose product can be had another time."""
    return Row(faults, 75, f"{says} later", **more)


def never(*faults, says="{host}", **more) -> Row:
    """A row whose product cannot be had."""
    return Row(faults, 1, says, **more)


def send(body: bytes, length: object = None):
    """Answer with this body, and a Content-Length that may be wrong."""
    return status(200, {"Content-Length": length} if length else {}, body)


def chunked(end: int | None = None):
    """The product in two chunks, up to some byte of that."""
    halves = PART, BODY[HELD:]
    coded = b"".join(b"%x\r\n%s\r\n" % (len(half), half) for half in halves)
    return head_and((coded + b"0\r\n\r\n")[:end], "Transfer-Encoding: chunked")


def rest(content_range: str, first: int = HELD, end: int | None = None):
    """A 206 of these bytes, whatever was asked for."""
    return status(206, {"Content-Range": content_range}, BODY[first:end])


def refuse_ranges(code: int):
    """Refuse any range; the whole is served."""
    return lambda handler: "range" in handler.record.headers and status(code)(handler)


def moved(place: str):
    """A redirect; `{path}` and `{port}` are those that were asked for."""

    def fault(handler):
        port = handler.server.server_address[1]
        location = place.format(path=handler.record.path, port=port)
        return status(302, {"Location": location} if place else {})(handler)

    return fault


def moved_to_localhost(handler):
    """A redirect to another name of this machine, which may not see the account."""
    to_localhost = moved("http://localhost:{port}{path}")
    return handler.record.host.startswith("127.") and to_localhost(handler)


def damaged_start(handler):
    """The damaged first piece of the product, whose rest is to be asked for."""
    if "range" not in handler.record.headers:
        return cut(HELD)(handler) or send(flipped(BODY, HELD // 2))(handler)


CONNECTIONS = {
    "cut before the head, three times": mended(*[cut(None)] * 3, sent=ALL),
    "cut before the head, for ever": later(cut(None)),
    "cut after the head, for ever": later(cut(0)),
    "cut after two bytes": mended(cut(2)),
    "cut in the middle": mended(cut(HELD), sent=ALL),
    "cut more often than is tried without progress": mended(
        *[cut(HELD // 10)] * 8, sent=ALL
    ),
    "cut in the middle, then before every head": later(
        cut(HELD), cut(None), left=PART, sent=HELD
    ),
    "cut in the middle, then after every head": later(
        cut(HELD), cut(0), left=PART, sent=HELD, asked=1 + 5
    ),
    "reset in the middle": mended(reset(HELD)),
    "reset before the head, for ever": later(reset(None)),
    "stalled before the head": mended(stall(None), read_timeout_s=0.3),
    "stalled in the middle": mended(stall(HELD), read_timeout_s=0.3),
    "stalled in the middle, then for ever": later(
        stall(HELD), stall(0), left=None, read_timeout_s=0.2
    ),
    "no HTTP": mended(raw(b"\0" * 500), sent=ALL),
    "no HTTP, for ever": later(raw(b"\0" * 500)),
}
LENGTHS = {
    "no length": mended(without_length, sent=ALL),
    "too large": mended(send(BODY, ALL + 100), sent=ALL),
    "too small": mended(send(BODY, ALL - 100)),
    "too small, for ever": never(send(BODY, ALL - 100)),
    "a word": mended(send(BODY, "many")),
    "chunked": mended(chunked()),
    "chunked, cut": mended(chunked(HELD + 100)),
}
RANGES = {
    "continued": mended(before=PART, sent=ALL - HELD),
    "ignored": mended(no_range, before=PART, sent=ALL),
    "from another byte": mended(
        rest(f"bytes 9-{ALL - 1}/{ALL}", 9), before=PART, sent=2 * ALL - 9
    ),
    **{
        f"refused with {code}": mended(refuse_ranges(code), before=PART, sent=ALL)
        for code in (400, 403, 412, 416)
    },
    "refused with 501": mended(*[refuse_ranges(501)] * 6, before=PART, sent=ALL),
    "out of order for ranges": later(refuse_ranges(503), before=PART, left=PART),
    "416, all is there": mended(before=BODY, sent=0),
    "416, another total": mended(
        status(416, {"Content-Range": f"bytes */{HELD // 2}"}), before=PART, sent=ALL
    ),
    "416, the part is longer": mended(before=BODY + b"x" * 100, sent=ALL),
    "unknown total": mended(rest(f"{REST}/*"), before=PART, sent=ALL - HELD),
    "less than asked for": mended(
        rest(f"{REST}/{ALL}", end=2 * HELD), before=PART, sent=ALL - HELD
    ),
    "less, of an unknown total": mended(rest(f"{REST}/*", end=2 * HELD), before=PART),
    "damaged part": mended(before=flipped(PART, HELD // 2), sent=2 * ALL - HELD),
}
STATUSES = {
    "202": later(status(202), says="{host} 202"),
    "403": never(status(403), says="{host} 403"),
    "404": never(status(404), says="{host} 404"),
    "404 after a part": never(status(404), before=PART, left=PART),
    "503 after a part": later(status(503), before=PART, left=PART),
}
for code in (408, 425, 429, 500, 501, 502, 503, 504, 520, 524):
    STATUSES[f"{code} once"] = mended(status(code), sent=ALL)
    STATUSES[f"{code} for ever"] = later(status(code), says=f"{{host}} {code}")

CONTENTS = {
    "a page once": mended(send(PAGE)),
    "a page for ever": never(send(PAGE), says="{host} page"),
    "a page that says it is a zip": never(
        status(200, body=PAGE, content_type="application/zip"), says="{host} page"
    ),
    "a page instead of the rest": never(send(PAGE), before=PART, left=PART),
    "an error": never(json_error(400, "tape is lost"), says="{host} tape is lost"),
    "not there": never(json_error(404)),
    "not now": later(json_error(503, "busy")),
    "an empty answer": never(send(b""), says="{host} empty"),
    "gzip that nobody asked for": never(send(gzip.compress(BODY)), says="compressed"),
    "half a zip once": mended(send(BODY[: ALL // 2])),
    "half a zip for ever": never(send(BODY[: ALL // 2])),
    "bytes missing in the middle": mended(send(LACKING)),
    "bytes missing in the middle for ever": never(send(LACKING)),
    "damaged in pieces": mended(damaged_start, sent=2 * ALL),
    "damaged in pieces for ever": never(damaged_start, says="{host} damaged"),
    "damaged in pieces, then in one": never(
        damaged_start, None, send(flipped(BODY, HELD // 2)), says="{host} damaged"
    ),
}
REDIRECTS = {
    "on the same host": mended(moved("{path}?again"), sent=ALL),
    "while it is continued": mended(moved("{path}?"), before=PART, sent=ALL - HELD),
    "in a circle": later(moved("{path}")),
    "to another host": never(moved_to_localhost, says="localhost: 401 {host}"),
    "nowhere": never(moved(""), says="{host} 302"),
    "to no address": never(moved("http://[::1/"), says="address"),
    "to a file": never(moved("file:///etc/hostname"), says="address"),
}
FAULTS = [
    pytest.param(row, id=f"{kind}: {name}")
    for kind, rows in (
        ("connection", CONNECTIONS),
        ("length", LENGTHS),
        ("range", RANGES),
        ("status", STATUSES),
        ("content", CONTENTS),
        ("moved", REDIRECTS),
    )
    for name, row in rows.items()
]


@pytest.mark.parametrize("row", FAULTS)
def test_a_fault_ends_in_a_whole_product_or_in_one_line(
    row, run, make_job, monkeypatch
):
    job = make_job()
    if row.before:
        job.part(VICTIM).write_bytes(row.before)
    job.hit(for_gets(*row.faults, for_ever=row.ends))
    monkeypatch.setattr(peps_common, "TIMEOUTS_S", (15, row.read_timeout_s))
    result = run("full_maja_download", *job.argv, status=row.ends)

    if row.ends:
        says = row.says.format(host=job.peps.url.rpartition("/")[2])
        only_line(result, VICTIM, *says.split())
    else:
        assert result.err == ""
    expected = {**job.bodies, f"{VICTIM}.part": row.left}
    del expected[VICTIM if row.ends else f"{VICTIM}.part"]
    found = job.on_disk()
    assert row.left is None or found == {
        name: body for name, body in expected.items() if body
    }
    assert row.sent in (None, job.sent(VICTIM))
    assert row.asked in (None, len(job.gets(VICTIM)))

    job.peps.products.update(job.bodies)
    job.mend()
    run("full_maja_download", *job.argv)
    job.require_whole()


@pytest.mark.parametrize("body", [PAGE, b"", b'{"ErrorCode": 400}'])
def test_what_is_no_zip_is_no_page_and_no_error(body, run, make_job):
    job = make_job()
    job.add("look.tgz", body)
    only_line(run("full_maja_download", *job.argv, status=1), "look.tgz")
    assert job.on_disk() == job.bodies


@pytest.mark.parametrize(
    ("wait_s", "ends", "expected"),
    [
        (7, 0, [7]),
        (120, 0, [120]),
        (121, 75, []),
        ("soon", 75, []),
        ("Fri, 31 Dec 99999999999 23:59:59 GMT", 75, []),
    ],
)
def test_a_retry_after_is_kept_within_two_minutes(
    wait_s, ends, expected, run, make_job, monkeypatch
):
    naps = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", naps.append)
    job = make_job()
    job.hit(for_gets(status(503, {"Retry-After": wait_s}), for_ever=ends))
    run("full_maja_download", *job.argv, status=ends)
    assert [nap for nap in naps if nap] == expected


@pytest.mark.parametrize(("fault", "ends", "word", "asked"), [
    (status(401), 1, "peps.txt", 1),
    (status(404), 1, "404", 12),
    (status(503), 75, "503", 12 * 5),
    (cut(None), 75, "no answer", 4 * 5),
], ids=["account", "not there", "out of order", "no answer"])  # fmt: skip
def test_one_reason_is_one_line_for_twelve_products(
    fault, ends, word, asked, run, make_job
):
    job = make_job(count=12, size=1000)
    job.hit(for_gets(fault, for_ever=True), "/maja/")
    result = run("full_maja_download", *job.argv, "-j", 1, status=ends)
    only_line(result, "12 products", word)
    assert len(job.peps.requests("/maja/", "GET")) == asked


HEADS = {
    "405": status(405), "501": status(501), "401": status(401), "cut": cut(None),
    "stalled": stall(None), "wrong length": head_and(b"", "Content-Length: 10"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HEADS.values(), ids=HEADS)
def test_sizes_are_a_wish(fault, run, make_job, monkeypatch):
    monkeypatch.setattr(full_maja_download, "SIZE_PATIENCE_S", 1)
    job = make_job()
    job.hit(for_heads(fault), "/maja/")
    assert run("full_maja_download", *job.argv).err == ""
    job.require_whole()
