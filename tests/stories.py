"""What the stories share: WPS answers, a finished job, and what may be asked of a run that has ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from faulty_http import status
from local_peps import RESULTS, make_product

NOBODY = "http://127.0.0.1:9"
CHECKOUT = Path(__file__).resolve().parent.parent
PERIOD = ("-d", "2017-07-01", "-e", "2018-01-01")
SHORT = ("-d", "2017-07-01", "-e", "2017-09-01")
NOVEMBER = ("-d", "2017-11-01", "-f", "2017-12-01", "-p", "list.txt")
WPS_NS = "http://www.opengis.net/wps/1.0.0"
OWS_NS = "http://www.opengis.net/ows/1.1"


class Result(NamedTuple):
    status: int
    out: str
    err: str


def answer(location: str = "", state: str = "<ProcessAccepted/>", report: str = "") -> bytes:
    """A WPS answer as short as it can be: an accepted order, or with `report` a status document that names one."""
    outputs = f"<ProcessOutputs><Output><Reference href={quoted(report)}/></Output></ProcessOutputs>" if report else ""
    place = f" statusLocation={quoted(location)}" if location else ""
    body = f"<Status>{state}</Status>{outputs}"
    return f'<ExecuteResponse xmlns="{WPS_NS}" xmlns:ows="{OWS_NS}"{place}>{body}</ExecuteResponse>'.encode()


def quoted(text: str) -> str:
    """A text as the value of an XML attribute."""
    return '"{}"'.format(text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;"))


def failed(words: str) -> str:
    report = f"<ows:Exception><ows:ExceptionText>{words}</ows:ExceptionText></ows:Exception>"
    return f"<ProcessFailed><ows:ExceptionReport>{report}</ows:ExceptionReport></ProcessFailed>"


def refusal(words: str) -> bytes:
    text = f"<Exception><ExceptionText>{words}</ExceptionText></Exception>"
    return f'<ExceptionReport xmlns="{OWS_NS}">{text}</ExceptionReport>'.encode()


def xml(document: bytes):
    return status(200, body=document, content_type="text/xml")


def json_document(value: object):
    return status(200, body=json.dumps(value).encode(), content_type="application/json")


def report_of(results: object, **info: object) -> dict:
    return {"USER_INFO": {"job_status": "FINISHED", "results": results, "unprocessed": 0, **info}}


def limited(size: int):
    """For preexec_fn: files may grow to so many bytes, which stands for a full disk."""
    resource = pytest.importorskip("resource")
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def only_line(ended: Result | str, *words: str) -> str:
    """The one line that a run had to say on stderr, which holds all these words and can be printed."""
    lines = (ended if isinstance(ended, str) else ended.err).splitlines()
    assert len(lines) == 1, ended
    assert all(word in lines[0] for word in (".py: ", *words)), (words, lines[0])
    assert lines[0].isprintable(), lines
    return lines[0]


def lines_of(text: str, name: str) -> list[str]:
    """The lines that speak of something."""
    return [line for line in text.splitlines() if name in line]


def wait_until(predicate: Callable[[], object]):
    """Wait for what another process does to files, of which there is no event."""
    end = time.monotonic() + 30
    while not predicate():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.003)


def names_in(folder: Path | str = ".") -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def flipped(body: bytes, at: int) -> bytes:
    """A product with one bit turned over, in its first image: the directory is fine, a CRC is not."""
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


class FinishedJob:
    """A job whose documents are plain files at the service; `results` is what its report lists, as it is now."""

    def __init__(self, peps, identity: str = "31TCJ", count: int = 3, size: int = 100_000):
        self.peps, self.identity, self.base = peps, identity, f"{peps.url}/wps/outputs/{identity}"
        names = [f"SENTINEL2A_201707{day + 1:02}-105605-456_L2A_T31TCJ_D_V1-4.zip" for day in range(count)]
        self.bodies, self.results = {name: make_product(name, size) for name in names}, []
        for name, body in self.bodies.items():
            self.add(name, body)
        self.log, self.products = Path(f"{identity}.log"), Path("products")
        self.log.write_bytes(answer(f"{self.base}.xml"))
        self.products.mkdir(exist_ok=True)
        self.serve()

    def add(self, name: str, body: bytes):
        """Another result."""
        self.peps.products[name] = body
        self.results.append(f"{self.peps.url}{RESULTS}maja/{self.identity}/{name}")

    @property
    def argv(self) -> list[object]:
        return ["-l", self.log, "-w", self.products]

    def serve(self):
        succeeded = answer(f"{self.base}.xml", "<ProcessSucceeded/>", f"{self.base}/r.json")
        report = lambda handler: json_document(report_of(self.results))(handler)  # noqa: E731  (as they are then)
        self.peps.always += [
            (f"/{self.identity}.xml", xml(succeeded)), (f"/{self.identity}/r.json", report),
            ("PROCESSING_STATUS", xml(answer())),
        ]  # fmt: skip

    def mend(self, *others: FinishedJob):
        """Make the service well again: it does nothing but have the documents."""
        self.peps.always.clear()
        for job in (self, *others):
            job.serve()

    def hit(self, fault, text: str = ""):
        """Put a fault on whatever holds the text; else on the first product."""
        self.peps.always.insert(0, (text or next(iter(self.bodies)), fault))

    def part(self, name: str) -> Path:
        return self.products / f"{name}.part"

    def sent(self, name: str) -> int:
        """The bytes of a product that the server has sent."""
        return sum(size for path, size in self.peps.sent.items() if path.endswith(name))

    def gets(self, name: str) -> list:
        return self.peps.requests(f"/{name}", "GET")

    def size_on_disk(self, name: str) -> int:
        """How much of a product is on disk, under either name."""
        for path in (self.products / name, self.part(name), self.products / name):
            if path.exists():
                return path.stat().st_size
        return 0

    def on_disk(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.products.iterdir()}

    def require_whole(self):
        """Every product byte for byte, and no other file in any folder."""
        assert self.on_disk() == self.bodies
        left = {self.log.with_suffix(suffix).name for suffix in (".log", ".stat", ".json")}
        assert names_in() == left | {"peps.txt", self.products.name}
