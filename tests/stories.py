"""What the stories share: WPS answers, a finished job, and questions to a run's end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from faulty_http import status
from local_peps import RESULTS, make_product

CHECKOUT = Path(__file__).resolve().parent.parent
NOBODY = "http://127.0.0.1:9"
SHORT = ("-d", "2017-07-01", "-e", "2017-09-01")
NOVEMBER = ("-d", "2017-11-01", "-f", "2017-12-01", "-p", "list.txt")
NAMESPACES = (
    'xmlns="http://www.opengis.net/wps/1.0.0" '
    'xmlns:ows="http://www.opengis.net/ows/1.1"'
)


class Result(NamedTuple):
    status: int
    out: str
    err: str


def answer(location="", state="<ProcessAccepted/>", report="") -> bytes:
    """A WPS answer as short as it can be; with `report` one that names a report."""
    place = f" statusLocation={quoted(location)}" if location else ""
    outputs = f"<ProcessOutputs><Output><Reference href={quoted(report)}/></Output>"
    outputs = f"{outputs}</ProcessOutputs>" if report else ""
    body = f"<Status>{state}</Status>{outputs}"
    return f"<ExecuteResponse {NAMESPACES}{place}>{body}</ExecuteResponse>".encode()


def quoted(text: str) -> str:
    """A text as the value of an XML attribute."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'"{escaped}"'


def failed(words: str) -> str:
    text = f"<ows:ExceptionText>{words}</ows:ExceptionText>"
    report = f"<ows:ExceptionReport><ows:Exception>{text}</ows:Exception>"
    return f"<ProcessFailed>{report}</ows:ExceptionReport></ProcessFailed>"


def refusal(words: str, code: str = "NoApplicableCode") -> bytes:
    text = f"<ExceptionText>{words}</ExceptionText>"
    exception = f'<Exception exceptionCode="{code}">{text}</Exception>'
    return f"<ExceptionReport {NAMESPACES}>{exception}</ExceptionReport>".encode()


def xml(document: bytes):
    return status(200, body=document, content_type="text/xml")


def json_document(value: object, code: int = 200):
    return status(
        code, body=json.dumps(value).encode(), content_type="application/json"
    )


def json_error(code: object, words: str = "Unauthorized", http: int = 200):
    """The service's JSON error, sent with an HTTP status."""
    return json_document({"ErrorCode": code, "ErrorMessage": words}, http)


def report_of(results: object, **info: object) -> dict:
    whole = {"job_status": "FINISHED", "results": results, "unprocessed": 0, **info}
    return {"USER_INFO": whole}


def limited(size: int):
    """For preexec_fn: files may grow to so many bytes, which stands for a full disk."""
    resource = pytest.importorskip("resource")

    def limit():
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # others would read half of it
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def only_line(ended: Result | str, *words: str) -> str:
    """The one line that a run said on stderr; it is printable and holds these words."""
    lines = (ended if isinstance(ended, str) else ended.err).splitlines()
    assert len(lines) == 1, ended
    assert all(word in lines[0] for word in (".py: ", *words)), (words, lines[0])
    assert lines[0].isprintable(), lines
    return lines[0]


def lines_of(text: str, name: str) -> list[str]:
    """The lines that speak of something."""
    return [line for line in text.splitlines() if name in line]


def last(result: Result) -> str:
    """The last line on stdout."""
    return result.out.splitlines()[-1]


def wait_until(predicate: Callable[[], object]):
    """Wait for what another process does to files, of which there is no event."""
    end = time.monotonic() + 30
    while not predicate():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.003)


def names_in(folder: Path | str = ".") -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def flipped(body: bytes, at: int) -> bytes:
    """A product with one bit turned over in its first image: a CRC is wrong."""
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


class FinishedJob:
    """A finished job at the local PEPS, whose documents are plain files there.

    `bodies` are its products by name, `results` the URLs that its report lists, as they
    are when it is asked for; `log` and `products` are the user's file and folder.
    """

    def __init__(self, peps, name: str = "31TCJ", count: int = 3, size: int = 100_000):
        self.peps, self.name, self.base = peps, name, f"{peps.url}/wps/outputs/{name}"
        self.bodies, self.results = {}, []
        self.log, self.products = Path(f"{name}.log"), Path("products")
        for day in range(1, count + 1):
            product = f"SENTINEL2A_201707{day:02}-105605-456_L2A_T31TCJ_D_V1-4.zip"
            self.bodies[product] = make_product(product, size)
            self.add(product, self.bodies[product])
        self.log.write_bytes(answer(f"{self.base}.xml"))
        self.products.mkdir(exist_ok=True)
        self.serve()

    def add(self, name: str, body: bytes):
        """Another result."""
        self.peps.products[name] = body
        self.results.append(f"{self.peps.url}{RESULTS}maja/{self.name}/{name}")

    @property
    def argv(self) -> list[object]:
        return ["-l", self.log, "-w", self.products]

    @property
    def first(self) -> str:
        """The name of the first product."""
        return next(iter(self.bodies))

    def serve(self):
        place = f"{self.base}.xml"
        succeeded = answer(place, "<ProcessSucceeded/>", f"{self.base}/r.json")
        self.peps.always += [
            (f"/{self.name}.xml", xml(succeeded)),
            (
                f"/{self.name}/r.json",
                lambda h: json_document(report_of(self.results))(h),
            ),
            ("PROCESSING_STATUS", xml(answer())),
        ]

    def mend(self):
        """Make the service well again: it does nothing but have the documents."""
        self.peps.always.clear()
        self.serve()

    def hit(self, fault, text: str = ""):
        """Put a fault on whatever holds the text; else on the first product."""
        self.peps.always.insert(0, (text or self.first, fault))

    def part(self, name: str) -> Path:
        return self.products / f"{name}.part"

    def sent(self, name: str) -> int:
        """The bytes of a product that the server has sent."""
        sent = self.peps.sent.items()
        return sum(size for path, size in sent if path.endswith(name))

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
        left = {
            self.log.with_suffix(suffix).name for suffix in (".log", ".stat", ".json")
        }
        assert names_in() == left | {"peps.txt", self.products.name}
