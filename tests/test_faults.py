"""What can go wrong on the wire, on the disk and in the service's words, and how each of it ends.

Each fault is put on real sockets. The first run meets it and ends as the table says, with the job's other
products on disk; then the service is well again, and a second run brings every product, byte for byte, and leaves
nothing else behind.
"""

from __future__ import annotations

import email.utils
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from local_peps import cut, hold, json_error, make_product, no_range, raw, reset, status, without_length

import peps_common

VICTIM = "SENTINEL2A_20170704-105605-456_L2A_T31TCJ_D_V1-4.zip"
OTHERS = (
    "SENTINEL2A_20170714-105612-025_L2A_T31TCJ_D_V1-4.zip",
    "SENTINEL2B_20170709-105619-012_L2A_T31TCJ_D_V1-4.zip",
)
SIZE = 100_000
HELD = 30_000  # bytes of a product that has come when something happens in its middle
PAGE = b"<!DOCTYPE html><html><body>Maintenance</body></html>"
BODY = make_product(VICTIM, SIZE)
ALL = len(BODY)
REST_OF_ALL = f"bytes {HELD}-{ALL - 1}/{ALL}"


# ---- faults that local_peps does not have


def for_gets(*faults, for_ever: bool = False):
    """What the GET requests meet, one after the other; then nothing, or the last one for ever. HEAD is spared."""
    turns = iter(faults)
    last = faults[-1] if for_ever else None

    def fault(handler):
        found = next(turns, last) if handler.command == "GET" else None
        return bool(found and found(handler))

    return fault


def for_heads(fault):
    """The fault for HEAD requests alone."""
    return lambda handler: handler.command == "HEAD" and fault(handler)


def both(first, second):
    """Two faults of one answer: how it is sent, and how it breaks off."""
    return lambda handler: first(handler) or second(handler)


def stall(after: int | None):
    """Send so many bytes, then nothing more, and keep the connection open."""
    return lambda handler: hold(threading.Event(), after)(handler)


def head_and(body: bytes, *lines: str, code: str = "200 OK"):
    """An answer as it is written here, then the end of the connection."""
    head = "\r\n".join((f"HTTP/1.1 {code}", "Content-Type: application/zip", *lines))
    return raw(head.encode() + b"\r\n\r\n" + body)


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


LATER = ("127.0.0.1", "later")
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
    "401": lasting(status(401), ends=1, words=("401", "account")),
    "403": lasting(status(403), ends=1, words=("403", "account")),
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
    "an empty answer for ever": lasting(status(200), ends=1, words=("nothing",)),
    "a page instead of the rest": lasting(status(200, body=PAGE), ends=1, words=("page",), left=BODY[:HELD], **OF_HELD),
    "an empty answer instead of the rest": lasting(
        status(200), ends=1, words=("nothing",), left=BODY[:HELD], **OF_HELD
    ),
    "a page instead of the rest, once": mended(status(200, body=PAGE), **OF_HELD, sent=len(PAGE) + ALL - HELD),
    "packed once more": lasting(zip_answer(gzip.compress(BODY), Content_Encoding="gzip"), ends=1, words=("127.0.0.1",)),
    "half a zip once": mended(zip_answer(BODY[: ALL // 2])),
    "half a zip for ever": lasting(zip_answer(BODY[: ALL // 2]), ends=1, words=("127.0.0.1",), left=None),
    "the start of a zip for ever": lasting(zip_answer(b"PK\3\4"), ends=1, words=("127.0.0.1",), left=None),
    "two bytes of a zip for ever": lasting(zip_answer(b"PK"), ends=1, words=("127.0.0.1",)),
    "a zip without anything in it": lasting(zip_answer(b"PK\5\6" + bytes(18)), ends=1, words=("127.0.0.1",), left=None),
    "a damaged zip in two pieces": mended(damaged_in_two_pieces, damaged_in_two_pieces, sent=2 * ALL),
    "a damaged zip in two pieces, for ever": lasting(damaged_in_two_pieces, ends=1, words=("damaged",), left=None),
}

REDIRECTS = {
    **{f"moved on the same host, {code}": mended(moved("{path}?again", code), sent=ALL) for code in (301, 302, 307)},
    "moved on the same host, with its name": mended(moved("http://127.0.0.1:{port}{path}", 308), sent=ALL),
    "moved while it is continued": mended(moved("{path}", 303), **OF_HELD, sent=ALL - HELD),
    "moved in a circle": lasting(moved("{path}"), ends=1, words=("redirect",)),
    "moved to another host": lasting(moved_to_localhost, ends=1, words=("localhost", "401", "account")),
    "moved nowhere": lasting(moved(None), ends=1, words=("302",)),
    "moved to no address": lasting(moved("http://[::1/"), ends=1, words=("address",)),
    "moved to a file": lasting(moved("file:///etc/hostname"), ends=1, words=("address",)),
    "moved to ftp": lasting(moved("ftp://127.0.0.1{path}"), ends=1, words=("address",)),
    "moved to where nobody listens": lasting(moved("http://127.0.0.1:9{path}"), ends=75, words=LATER),
}

FAULTS = {**CONNECTIONS, **LENGTHS, **RANGES, **STATUSES, **CONTENTS, **REDIRECTS}


# ---- a finished job with three products

WPS = '<ExecuteResponse xmlns="http://www.opengis.net/wps/1.0.0" {}><Status>{}</Status>{}</ExecuteResponse>'
REPORT_AT = "<ProcessOutputs><Output><Reference href={!r}/></Output></ProcessOutputs>"


class Job:
    """A finished job, whose documents are plain files at the service; what its report lists may be changed."""

    def __init__(self, url: str, identity: str, results: list):
        self.results = results
        base = f"{url}/wps/outputs/{identity}"
        location = f'statusLocation="{base}.xml"'
        succeeded = WPS.format(location, "<ProcessSucceeded/>", REPORT_AT.format(f"{base}/report.json"))
        self.log = Path(f"{identity}.log")
        self.log.write_text(WPS.format(location, "<ProcessAccepted/>", ""), "utf-8")
        self.documents = [
            (f"/{identity}.xml", status(200, body=succeeded.encode(), content_type="text/xml")),
            (f"/{identity}/report.json", self.send_report),
        ]

    def send_report(self, handler) -> bool:
        report = {"USER_INFO": {"job_status": "FINISHED", "results": self.results, "unprocessed": 0}}
        return status(200, body=json.dumps(report).encode(), content_type="application/json")(handler)


@dataclass
class Scene:
    """A finished job, the folder for its products, and the service that has them."""

    peps: object
    run: Callable
    products: Path
    bodies: dict[str, bytes]
    jobs: list[Job]

    def download(self, *options: object, ends: int = 0):
        logs = [job.log for job in self.jobs]
        return self.run("full_maja_download", "-l", *logs, "-w", self.products, *options, status=ends)

    def hit(self, fault, text: str = VICTIM):
        self.peps.always.insert(0, (text, fault))

    def sent(self, name: str = VICTIM) -> int:
        """The bytes of a product that the server has sent."""
        return sum(size for path, size in self.peps.sent.items() if path.endswith(name))

    def on_disk(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.products.iterdir()}

    def beside(self) -> set[str]:
        return {path.name for path in self.products.parent.iterdir()}

    def mend(self):
        """Make the service well again."""
        refreshed = status(200, body=WPS.format("", "<ProcessSucceeded/>", "").encode(), content_type="text/xml")
        self.peps.always = [("PROCESSING_STATUS", refreshed)]
        self.peps.always += [document for job in self.jobs for document in job.documents]

    def run_healthy(self):
        """The second run: all there, byte for byte, and nothing else in any folder."""
        self.mend()
        self.download()
        assert self.on_disk() == {name: self.peps.product_bytes(name) for name in self.bodies}
        logs = {job.log.with_suffix(suffix).name for job in self.jobs for suffix in (".log", ".json", ".stat")}
        assert self.beside() == logs | {"peps.txt", self.products.name}


@pytest.fixture
def scene(run, peps, folder) -> Scene:
    bodies = {name: make_product(name, SIZE) for name in (VICTIM, *OTHERS)}
    peps.products = dict(bodies)
    products = folder / "products"
    products.mkdir()
    job = Job(peps.url, "ours", [f"{peps.url}/cgi-bin/mapcache_results/maja/ours/{name}" for name in bodies])
    scene = Scene(peps, run, products, bodies, [job])
    scene.mend()
    return scene


def lines_of(result) -> list[str]:
    """The lines on stderr, each of which must name the script."""
    lines = result.err.splitlines()
    assert all(line.startswith("full_maja_download.py: ") for line in lines), lines
    return lines


def require_line(result, *words: str):
    """Exactly one line on stderr, with all these words in it."""
    lines = lines_of(result)
    assert len(lines) == 1, lines
    assert all(word in lines[0] for word in words), (words, lines[0])


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in FAULTS.items()])
def test_a_fault_ends_in_a_whole_product_or_in_one_line(row, scene, monkeypatch):
    monkeypatch.setattr(peps_common, "READ_TIMEOUT_S", row.read_timeout_s)
    if row.before is not None:
        (scene.products / f"{VICTIM}.part").write_bytes(row.before)
    scene.hit(for_gets(*row.faults, for_ever=row.for_ever))

    result = scene.download(ends=row.ends)

    found = scene.on_disk()
    assert {name: found.pop(name) for name in OTHERS} == {name: scene.bodies[name] for name in OTHERS}
    if row.ends:
        require_line(result, VICTIM, *row.words)
        assert VICTIM not in found
    else:
        assert lines_of(result) == []
    expected = {"whole": {VICTIM: BODY}, "nothing": {}}.get(row.left, {f"{VICTIM}.part": row.left})
    assert row.left is None or found == expected
    assert row.sent is None or scene.sent() == row.sent
    scene.run_healthy()


def test_there_are_enough_faults():
    assert len(FAULTS) >= 36


def test_a_stalled_product_does_not_hold_up_the_others(scene, launch):
    release = threading.Event()
    scene.hit(for_gets(hold(release, HELD)))
    process = launch("full_maja_download", "-l", "ours.log", "-w", scene.products, "-j", 2)
    wait_until(lambda: all((scene.products / name).exists() for name in OTHERS))
    assert process.poll() is None
    release.set()
    assert process.wait(20) == 0
    scene.run_healthy()


def wait_until(predicate: Callable[[], object], timeout_s: float = 20):
    """Wait for what another process does to files, of which there is no event."""
    end = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_a_network_that_breaks_wherever_it_can(scene):
    """Cuts and resets at random, often; each answer brings something, so the first run gets there."""
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311
    for name in scene.bodies:
        breaks = [chance.choice((cut, reset))(chance.randrange(1000, SIZE // 4)) for _ in range(6)]
        scene.hit(for_gets(*breaks), name)
    assert lines_of(scene.download()) == []
    scene.run_healthy()


def test_two_lengths_are_not_called_a_wrong_address(scene):
    scene.hit(for_gets(head_and(BODY, f"Content-Length: {ALL}", "Content-Length: 5"), for_ever=True))
    result = scene.download(ends=None)
    assert result.status in (1, 75)
    require_line(result, VICTIM, "127.0.0.1")
    assert "address" not in result.err
    scene.run_healthy()


def test_all_products_fail_and_each_says_so(scene):
    scene.hit(for_gets(status(404), for_ever=True), "/maja/")
    lines = lines_of(scene.download(ends=1))
    assert sorted(name for line in lines for name in scene.bodies if name in line) == sorted(scene.bodies)
    assert len(lines) == 3
    scene.run_healthy()


def test_the_worst_status_wins(scene):
    scene.hit(for_gets(status(503), for_ever=True))
    scene.hit(for_gets(status(404), for_ever=True), OTHERS[0])
    lines = lines_of(scene.download(ends=1))
    assert len(lines) == 2
    assert scene.on_disk() == {OTHERS[1]: scene.bodies[OTHERS[1]]}
    scene.run_healthy()


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
        ("0", []),
        ("7", [7]),
        ("3600", [120]),
        ("9" * 30, [120]),
        (in_an_hour(), [120]),
        ("Thu, 01 Jan 1970 00:00:00 GMT", []),
        ("soon", []),
        ("-5", []),
        ("1.5", []),
        ("", []),
        ("Mon, 99 Foo 99999 99:99:99 GMT", []),
    ],
)
def test_retry_after_is_kept_for_two_minutes_at_most(code, header, expected, scene, naps):
    scene.hit(for_gets(status(code, {"Retry-After": header})))
    assert lines_of(scene.download()) == []
    assert [nap for nap in naps if nap > 0] == expected
    scene.run_healthy()


def test_retry_after_for_ever_ends(scene, naps):
    scene.hit(for_gets(status(429, {"Retry-After": "86400"}), for_ever=True))
    require_line(scene.download(ends=75), VICTIM, "429")
    assert naps
    assert set(naps) == {120}
    scene.run_healthy()


def test_retry_after_counts_for_documents_too(scene, naps):
    scene.hit(for_gets(status(503, {"Retry-After": "200"})), "/wps/outputs/")
    assert lines_of(scene.download()) == []
    assert naps == [120]
    scene.run_healthy()


# ---- HEAD


@pytest.mark.parametrize(
    "fault",
    [
        status(501),
        status(405),
        status(404),
        status(503),
        cut(None),
        stall(None),
        without_length,
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
        status(200, {"Content-Length": "0"}),
        moved("{path}"),
    ],
    ids=["501", "405", "404", "503", "closes", "stalls", "no length", "length is a word", "small", "zero", "circle"],
)
def test_a_server_without_head(fault, scene, monkeypatch):
    monkeypatch.setattr(peps_common, "READ_TIMEOUT_S", 0.3)
    scene.hit(for_heads(fault), "/maja/")
    assert lines_of(scene.download()) == []
    scene.run_healthy()


# ---- products on disk


def test_a_whole_product_on_disk_is_left_alone(scene):
    (scene.products / VICTIM).write_bytes(BODY)
    before = (scene.products / VICTIM).stat()
    scene.download()
    assert scene.sent() == 0
    assert (scene.products / VICTIM).stat() == before
    scene.run_healthy()


def test_when_all_is_on_disk_nothing_is_asked(scene):
    scene.download()
    asked = len(scene.peps.requests())
    scene.download()
    assert len(scene.peps.requests()) == asked


@pytest.mark.parametrize(
    "content", [BODY[: ALL // 2], BODY[: ALL - 1], b"", PAGE], ids=["half", "last byte missing", "empty", "page"]
)
def test_a_broken_product_on_disk_is_replaced(content, scene):
    (scene.products / VICTIM).write_bytes(content)
    scene.download()
    assert scene.on_disk() == scene.bodies
    scene.run_healthy()


@pytest.mark.parametrize("finished_before", [False, True], ids=["in the first run", "when all was there"])
def test_check_finds_a_flipped_bit(finished_before, scene):
    if finished_before:
        scene.download()
    (scene.products / VICTIM).write_bytes(flipped(BODY))
    scene.download()
    assert scene.on_disk()[VICTIM] == flipped(BODY)
    scene.download("--check")
    assert scene.on_disk() == scene.bodies
    scene.run_healthy()


def test_check_leaves_what_is_whole_alone(scene):
    scene.download()
    asked = len(scene.peps.requests())
    scene.download("--check")
    assert len(scene.peps.requests()) == asked


def test_a_broken_product_stays_until_its_successor_is_whole(scene):
    """The old file may be all that there is: it goes when the new one has come."""
    (scene.products / VICTIM).write_bytes(flipped(BODY))
    scene.hit(for_gets(cut(HELD), cut(None), for_ever=True))
    require_line(scene.download("--check", ends=75), VICTIM)
    assert scene.on_disk()[VICTIM] == flipped(BODY)
    scene.mend()
    scene.download("--check")
    scene.run_healthy()


def test_a_folder_under_a_products_name(scene):
    (scene.products / VICTIM).mkdir()
    require_line(scene.download(ends=1), VICTIM)
    assert {name for name in OTHERS if (scene.products / name).is_file()} == set(OTHERS)
    (scene.products / VICTIM).rmdir()
    scene.run_healthy()


# ---- the disk


@pytest.fixture
def mount(scene):
    """Mount a small file system of its own as the products' folder; only root can."""
    if not sys.platform.startswith("linux"):
        pytest.skip("mounts Linux's tmpfs")
    mounted = []

    def mount(options: str):
        again = ["-o", f"remount,{options}"] if mounted else ["-t", "tmpfs", "-o", options]
        tried = subprocess.run(["mount", *again, "tmpfs", scene.products], stderr=subprocess.PIPE)
        if tried.returncode:
            pytest.skip(f"cannot mount a file system: {tried.stderr.decode()}")
        mounted.append(options)

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", scene.products], check=True)


def test_a_full_disk_is_said_before_the_download(scene, mount):
    mount(f"size={2 * ALL // 4096 * 4096}")
    (scene.products / "ballast").write_bytes(bytes(ALL // 2))
    require_line(scene.download(ends=1), "disk space", "products")
    assert sum(map(scene.sent, scene.bodies)) == ALL  # one fits, two do not, and for these nothing was sent
    (scene.products / "ballast").unlink()
    mount("size=10m")
    scene.run_healthy()


def test_a_full_disk_is_said_when_the_download_itself_tells_the_length(scene, mount):
    mount(f"size={ALL // 2 // 4096 * 4096}")
    scene.hit(for_heads(status(501)), "/maja/")
    lines = lines_of(scene.download(ends=1))
    assert len(lines) == 3
    assert all("disk space" in line for line in lines)
    assert scene.on_disk() == {}
    mount("size=10m")
    scene.run_healthy()


def test_no_room_at_all(scene, monkeypatch):
    usage = shutil.disk_usage(scene.products)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        require_line(scene.download(ends=1), "disk space")
    assert sum(map(scene.sent, scene.bodies)) == 0
    scene.run_healthy()


def test_a_part_counts_for_the_room_that_is_needed(scene, mount):
    """What is on disk already needs no room a second time."""
    mount(f"size={(3 * ALL // 4096 + 8) * 4096}")
    (scene.products / f"{VICTIM}.part").write_bytes(BODY[:-100])
    assert lines_of(scene.download()) == []
    assert scene.sent() == 100
    scene.run_healthy()


def test_the_disk_is_full_in_the_middle(scene, mount):
    """A server that tells no lengths: the disk itself has to say it."""
    mount(f"size={5 * ALL // 2 // 4096 * 4096}")
    scene.hit(for_heads(status(501)), "/maja/")
    scene.hit(for_gets(without_length, for_ever=True), "/maja/")
    require_line(scene.download("-j", 1, ends=1), "No space left on device")
    whole = {name for name in scene.bodies if (scene.products / name).exists()}
    assert len(whole) == 2
    assert all(scene.on_disk()[name] == scene.bodies[name] for name in whole)
    mount("size=10m")
    scene.run_healthy()


def test_a_read_only_folder(scene, mount):
    mount("size=10m")
    mount("ro")
    require_line(scene.download(ends=1), str(scene.products))
    assert sum(map(scene.sent, scene.bodies)) == 0
    mount("rw")
    scene.run_healthy()


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_without_write_permission(scene):
    scene.products.chmod(0o555)
    require_line(scene.download(ends=1), str(scene.products))
    scene.products.chmod(0o755)
    scene.run_healthy()


def test_a_log_in_a_read_only_folder(scene, mount):
    """Status document and report cannot be kept beside the log."""
    mount("size=10m")
    log = scene.products / "ours.log"
    shutil.copy("ours.log", log)
    mount("ro")
    result = scene.run("full_maja_download", "-l", log, "-w", scene.products.parent, status=1)
    require_line(result, str(log), "ead-only")


# ---- what a report may name


BASE = "{url}/cgi-bin/mapcache_results/maja/job/"


@pytest.mark.parametrize(
    "result",
    [
        BASE + "..%2fescaped.zip",
        BASE + "..%2F..%2Fescaped.zip",
        BASE + "%2e%2e%2fescaped.zip",
        BASE + "..%5cescaped.zip",
        BASE + "%2ftmp%2fescaped.zip",
        BASE + "a%2fb.zip",
        BASE + "a%5Cb.zip",
        BASE + "C:escaped.zip",
        BASE + ".escaped.zip",
        BASE + "%2eescaped.zip",
        BASE + "escaped%0a.zip",
        BASE + "escaped%00.zip",
        BASE + "escaped%1b[31m.zip",
        BASE + "escaped%e2%80%ae.zip",
        BASE + "escaped%7f.zip",
        BASE + "..",
        BASE + "%2e%2e",
        BASE + ".",
        BASE,
        BASE + "x" * 300 + ".zip",
        BASE + "x" * 249 + ".zip",
        BASE + "x" * 100_000 + ".zip",
        "file:///etc/escaped.zip",
        "ftp://127.0.0.1/escaped.zip",
        "/etc/escaped.zip",
        "escaped.zip",
        "//127.0.0.1/escaped.zip",
        "http:///escaped.zip",
        "http://[::1/escaped.zip",
        "http://127.0.0.1:99999/escaped.zip",
        "http://127.0.0.1:port/escaped.zip",
        "javascript:escaped.zip",
        "",
        " ",
        5,
        1e400,
        True,
        {"url": 7},
        [["escaped.zip"]],
    ],
    ids=lambda value: f"{str(value).replace(BASE, '')[:40]} of {len(str(value))}",
)
def test_a_hostile_result_is_refused_and_the_others_come(result, scene):
    hostile = result.format(url=scene.peps.url) if isinstance(result, str) else result
    scene.jobs[0].results.insert(1, hostile)
    scene.hit(lambda handler: "/ours/" not in handler.record.path and zip_answer(BODY)(handler), "zip")
    before = scene.beside()
    lines = lines_of(scene.download(ends=1))
    assert len(lines) == 1, lines
    assert len(lines[0]) < 1000
    assert lines[0].isprintable()
    assert scene.on_disk() == scene.bodies
    assert scene.beside() - before == {"ours.stat", "ours.json"}


def test_a_refused_result_is_looked_at_again_when_the_service_has_mended_it(scene):
    mended = list(scene.jobs[0].results)
    scene.jobs[0].results.append("file:///etc/escaped.zip")
    scene.download(ends=1)
    scene.jobs[0].results[:] = mended
    scene.run_healthy()


@pytest.mark.parametrize(
    ("results", "ends"),
    [(None, 0), ({}, 0), ([], 0), ([None, None], 0), ("none", 1), (7, 1), (True, 1)],
    ids=lambda value: repr(value),
)
def test_results_that_are_no_list_of_addresses(results, ends, scene):
    scene.jobs[0].results = results
    require_line(scene.download(ends=ends), "ours.log")
    assert scene.on_disk() == {}


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
    "status document too large when unpacked": Document(".xml", PACKED, (1,), "larger"),
    "status document cut off": Document(".xml", send(WPS.format("", "<ProcessSucceeded/>", "")[:-20])),
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
        ".xml", send(WPS.format("", "<ProcessSucceeded/>", REPORT_AT.format("file:///etc/hostname"))), (1,), "refused"
    ),
    "status document is gone": Document(".xml", status(404), (1,), "order again"),
    "status document is out of order": Document(".xml", status(503), (75,), "503"),
    "status document is cut for ever": Document(".xml", cut(100), (75,), "127.0.0.1"),
    "status document is forbidden": Document(".xml", status(403), (1,), "403"),
    "report too large": Document("/report.json", send(b'{"a": 1}' + TOO_MUCH), (1,), "larger"),
    "report too large when unpacked": Document("/report.json", PACKED, (1,), "larger"),
    "report nested too deep": Document("/report.json", send("[" * DEEP + "]" * DEEP)),
    "report nested deep": Document("/report.json", send('{"a":' * 900 + "1" + "}" * 900)),
    "report cut off": Document("/report.json", send('{"USER_INFO": {"job_status": "FIN')),
    "report is a list": Document("/report.json", send("[1, 2]")),
    "report is a number": Document("/report.json", send("1" * 5000)),
    "report is a page": Document("/report.json", send(PAGE)),
    "report is empty": Document("/report.json", send("")),
    "report is no text": Document("/report.json", send(b'{"a": "\xff\xfe\x80"}')),
    "report with a strange state": Document(
        "/report.json", send(r'{"USER_INFO": {"job_status": "\u001b[31mEATEN\n"}}'), (75,), "EATEN"
    ),
    "report is packed wrongly": Document("/report.json", send("{}", Content_Encoding="gzip")),
    "report is cut for ever": Document("/report.json", cut(10), (75,), "127.0.0.1"),
}


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in DOCUMENTS.items()])
def test_a_hostile_document_ends_one_job_alone(row, scene):
    scene.jobs.append(Job(scene.peps.url, "other", [scene.jobs[0].results.pop()]))
    scene.mend()
    scene.hit(row.fault, f"/ours{row.text}")
    result = scene.download(ends=None)
    assert result.status in row.ends, result
    about = [line for line in (result.out + result.err).splitlines() if "ours.log: " in line]
    assert len(about) == 1, result
    assert row.words in about[0]
    assert about[0].isprintable()
    assert scene.on_disk() == {OTHERS[1]: scene.bodies[OTHERS[1]]}
    scene.run_healthy()
