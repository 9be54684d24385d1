"""A local PEPS: stands in for the PEPS/MAJA service, to play with and in the tests.

As a program it serves until Ctrl-C: `python tests/local_peps.py --speed 24` lets 24
hours pass in a minute. In Python the caller moves the clock, and causes faults:

    with LocalPeps() as peps:
        ...                             # order something at peps.url with peps.account
        peps.advance(hours=12)
        peps.faults.append(("/maja/", cut(1000)))

The WPS documents are made by the real PyWPS. Catalogue, status documents, reports and
products stand around it on the same port, on real sockets.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
import zipfile
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path

from faulty_http import Handler, Request, Server, error_document
from pywps import (
    FORMATS,
    ComplexOutput,
    LiteralInput,
    LiteralOutput,
    Process,
    Service,
    configuration,
)
from pywps.exceptions import InvalidParameterValue
from pywps.response import RelEnvironment, basic
from pywps.response.status import WPS_STATUS
from werkzeug.test import create_environ, run_wsgi_app

SEARCH = "/resto/api/collections/S2ST/search.json"
WPS = "/resto/wps"
OUTPUTS = "/wps/outputs/"
RESULTS = "/cgi-bin/mapcache_results/"
MAX_RECORDS = 500
PENDING_S = 10 * 60
FIRST_DATE_S = 60 * 60
FURTHER_DATE_S = 25 * 60
SINGLE_PRODUCT_S = 90 * 60
EMAIL, SECRET = "jean.dupont@example.org", "mot de passe: 100% sûr"
# PyWPS would compile its templates anew for each answer, which takes most of its time.
TEMPLATES: dict[str, RelEnvironment] = {}
basic.RelEnvironment = lambda **options: TEMPLATES.setdefault(
    "", RelEnvironment(**options)
)


def draw(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclasses.dataclass(frozen=True)
class Acquisition:
    """One tile seen by one satellite on one day; its L1C name settles all else."""

    l1c: str

    @property
    def day(self) -> str:
        return self.l1c[11:19]

    @property
    def tile(self) -> str:
        return self.l1c[39:44]

    @property
    def cloudy(self) -> bool:
        """Whether so much of it is cloud that no product is made."""
        return draw("cloud" + self.l1c) % 6 == 0

    @property
    def l2a(self) -> str:
        """The file name of the result; for a cloudy one there is no product of it."""
        seconds = timedelta(seconds=10 + draw("second" + self.l1c) % 10)
        sensed = datetime.strptime(self.l1c[11:26], "%Y%m%dT%H%M%S") - seconds
        ending = "_NOVALD.zip" if self.cloudy else ".zip"
        clock = f"{sensed:%H%M%S}-{draw(self.l1c) % 1000:03}"
        name = f"SENTINEL{self.l1c[1:3]}_{self.day}-{clock}_L2A_T{self.tile}_D_V1-4"
        return name + ending


def passes(satellite: str, orbit: int, day: date) -> bool:
    """Whether a satellite flies an orbit on a day: every tenth, S2B halfway between."""
    phase = round((orbit - 51) / 14.3) + (5 if satellite == "S2B" else 0)
    return ((day - date(2017, 7, 4)).days - phase) % 10 == 0


def l1c_name(satellite: str, orbit: int, tile: str, day: date) -> str:
    sensed = datetime(day.year, day.month, day.day, 10, 56, 21) - timedelta(
        seconds=(orbit - 51) % 143 * 3
    )
    made = sensed + timedelta(seconds=60 + draw(f"{tile}{day}") % 900)
    times = f"{sensed:%Y%m%dT%H%M%S}", f"{made:%Y%m%dT%H%M%S}"
    return f"{satellite}_MSIL1C_{times[0]}_N0205_R{orbit:03}_T{tile}_{times[1]}"


def acquisitions(
    tile: str, start: str, end: str, orbit: int | None = None
) -> list[Acquisition]:
    """The acquisitions of a tile, oldest first, from `start` to the day before `end`.

    Two orbits see it.

    The days are YYYY-MM-DD; a year of 9999 ends with 2018.
    """
    first, last = (date.fromisoformat(text[:10]) for text in (start, end))
    first, last = max(first, date(2015, 7, 4)), min(last, date(2019, 1, 1))
    return [
        Acquisition(l1c_name(satellite, flown, tile, day))
        for day in (first + timedelta(days=n) for n in range((last - first).days))
        for satellite in (("S2A", "S2B") if day >= date(2017, 7, 1) else ("S2A",))
        for flown in (51, 8)  # that of the swath beside
        if orbit in (None, flown) and passes(satellite, flown, day)
    ]


def feature(seen: Acquisition) -> dict:
    chance = draw("feature" + seen.l1c)
    sensed = datetime.strptime(seen.l1c[11:26], "%Y%m%dT%H%M%S")
    properties = {
        "productIdentifier": seen.l1c, "productType": "S2MSI1C",
        "platform": seen.l1c[:3], "mgrs": seen.tile,
        "cloudCover": 90 + chance % 10 if seen.cloudy else chance % 90,
        "startDate": f"{sensed:%Y-%m-%dT%H:%M:%S}.026Z",
        "storage": {"mode": ("disk", "tape", "staging", "unknown")[chance % 4]},
    }  # fmt: skip
    return {
        "type": "Feature",
        "id": f"{chance:x}",
        "geometry": None,
        "properties": properties,
    }


def page_of(features: list[dict], url: str, asked: dict[str, str]) -> dict:
    size, page = min(int(asked["maxRecords"]), MAX_RECORDS), int(asked.get("page", 1))
    shown = features[(page - 1) * size : page * size]
    numbers = {
        "self": page,
        **({"next": page + 1} if page * size < len(features) else {}),
    }
    links = [
        {
            "rel": rel,
            "href": f"{url}?{urllib.parse.urlencode({**asked, 'page': number})}",
        }
        for rel, number in numbers.items()
    ]
    properties = {
        "totalResults": len(features),
        "itemsPerPage": len(shown),
        "links": links,
    }
    return {"type": "FeatureCollection", "properties": properties, "features": shown}


@dataclasses.dataclass(frozen=True)
class Job:
    """One accepted order; `subject` is its tile (FULL_MAJA) or its L1C name (MAJA)."""

    id: str
    process: str
    subject: str
    submitted: float
    acquisitions: list[Acquisition]

    @property
    def seconds(self) -> float:
        """How long it runs."""
        single = self.process == "MAJA"
        return (
            SINGLE_PRODUCT_S
            if single
            else FIRST_DATE_S + FURTHER_DATE_S * max(0, len(self.acquisitions) - 1)
        )


class PepsProcess(Process):
    """A PyWPS process that looks at its inputs, and runs when it is told to."""

    # Of the class, because PyWPS deep-copies a process and all in it for each request.
    peps: LocalPeps

    def __init__(self, identifier, handler, output, *names):
        inputs = [
            LiteralInput(
                name,
                name,
                data_type="string",
                min_occurs=int(name != "relativeOrbitNumber"),
            )
            for name in names
        ]
        super().__init__(
            handler,
            identifier,
            identifier,
            version="1.0",
            inputs=inputs,
            outputs=[output],
        )
        self.store_supported = self.status_supported = "true"

    def execute(self, wps_request, uuid):
        """Refuse here what is to be refused; later PyWPS would make it a failed job."""
        inputs = {name: given[0].data for name, given in wps_request.inputs.items()}
        self.peps.accept(self.identifier, str(uuid), inputs)
        return super().execute(wps_request, uuid)

    def _run_async(self, wps_request, wps_response):
        # PyWPS would fork, which can hang on a lock that another thread held, and a
        # thread of its own would race with the answer. So this waits for the answer.
        self.peps.deferred.append(lambda: self._run_process(wps_request, wps_response))


def refresh(request, response):
    """Do what PROCESSING_STATUS is for."""
    response.outputs["state"].data = PepsProcess.peps.refresh(
        request.inputs["wps_id"][0].data
    )


def hand_over(request, response):
    """Write the first report of a job."""
    PepsProcess.peps.hand_over(response)


def make_service() -> Service:
    report = ComplexOutput(
        "report", "report", supported_formats=[FORMATS.JSON], as_reference=True
    )
    state = LiteralOutput("state", "state", data_type="string")
    period = ("startDate", "completionDate", "tileid", "relativeOrbitNumber")
    return Service([
        PepsProcess("FULL_MAJA", hand_over, report, *period),
        PepsProcess("MAJA", hand_over, report, "product"),
        PepsProcess("PROCESSING_STATUS", refresh, state, "wps_id"),
    ])  # fmt: skip


@functools.lru_cache(maxsize=24)
def make_product(name: str, size: int) -> bytes:
    """A zip with the look of a MAJA product, always the same for a name and a size."""
    stem = name[:-4] if name.endswith(".zip") else name
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for ending in (
            "FRE_B2.tif",
            "FRE_B3.tif",
            "FRE_B4.tif",
            "FRE_B8.tif",
            "CLM_R1.tif",
            "MTD_ALL.xml",
        ):
            content = b"<node/>" * 1000
            if not ending.endswith("xml"):
                content = hashlib.shake_128(f"{name} {ending}".encode()).digest(
                    size // 5
                )
            entry = zipfile.ZipInfo(f"{stem}/{stem}_{ending}", (2018, 1, 1, 0, 0, 0))
            entry.compress_type = (
                zipfile.ZIP_STORED if "FRE" in ending else zipfile.ZIP_DEFLATED
            )
            archive.writestr(entry, content)
    return packed.getvalue()


class LocalPeps:
    """A PEPS on a port of this machine, as long as the `with` block lasts.

    Have one at a time, for PyWPS's sake.

    Attributes
    ----------
    url, account : what PEPS_URL and the account file's line are to be.
    journal, sent : requests so far, body bytes sent by path.
    jobs : the Jobs taken on, by their id.
    ends : subject -> (state word, message) to come to instead of FINISHED;
        "ProcessFailed" fails the job in its status document.
    refuse : subject -> text of the ExceptionReport that an order of it gets.
    products : file name -> bytes or Path, served under that name below any job; the
        others have about `product_size` bytes.
    lost : L1C names that have no result; `unprocessed_as` ("number", "text" or "names")
        is how a report tells that.
    single_report : "same", or "loose" for MAJA reports without USER_INFO.
    catalogue : features that replace those of any search.
    faults, always : (text, fault) for the first request, or for every one, whose path
        and query hold the text. A fault is called with the Handler and returns whether
        it has answered the request itself.
    """

    def __init__(self, port: int = 0, email: str = EMAIL, password: str = SECRET):
        self.account = f"{email} {password}"
        self._server = Server(self, port=port)
        token = base64.b64encode(f"{email}:{password}".encode()).decode()
        self.authorization = f"Basic {token}"
        self._wps_lock, self._changed = threading.RLock(), threading.Condition()
        self._initialise()

    def _initialise(self):
        """Set everything that a test may change."""
        self._now, self._held, self._dropping, self.deferred = 0, set(), False, []
        self.journal, self.sent = [], Counter()
        self.jobs, self.ends, self.refuse, self.products, self.lost = (
            {},
            {},
            {},
            {},
            set(),
        )
        self.unprocessed_as, self.single_report, self.catalogue, self.product_size = (
            "number",
            "same",
            None,
            3000,
        )
        self.faults, self.always = [], []

    def __enter__(self) -> LocalPeps:
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._folder = tempfile.TemporaryDirectory(prefix="local_peps_")
        self._outputs = Path(self._folder.name, "outputs")
        self._outputs.mkdir()
        configuration.load_configuration()
        configuration.CONFIG.read_dict({
            "server": {
                "url": self.url + WPS, "outputurl": self.url + OUTPUTS,
                "outputpath": self._outputs, "workdir": self._folder.name,
                "parallelprocesses": -1, "maxprocesses": -1,
            },
            # At level DEBUG the database would print its statements.
            "logging": {"level": "ERROR", "file": "", "database": "sqlite:///:memory:"},
        })  # fmt: skip
        PepsProcess.peps = self
        self._service = make_service()
        logging.getLogger("PYWPS").setLevel(logging.CRITICAL + 1)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._server.shutdown()
        self._server.server_close()
        self._drop_connections()
        self._thread.join()
        self._folder.cleanup()

    def reset(self):
        """Go back to how it was at the start, at the same URL; end all connections."""
        self._drop_connections()
        with self._wps_lock, self._changed:
            self._initialise()
            shutil.rmtree(self._outputs)
            self._outputs.mkdir()

    def _drop_connections(self):
        with self._changed:
            self._dropping = True
            for event in self._held:
                event.set()
        self._server.drop_connections()

    def advance(self, hours=0, minutes=0):
        self._now += hours * 3600 + minutes * 60
        self.note()

    def note(self, request: Request | None = None):
        """Put a request, if it is one, into the journal, and wake up whoever waits."""
        with self._changed:
            if request:
                self.journal.append(request)
            self._changed.notify_all()

    def requests(self, substring="", method=None) -> list[Request]:
        """The requests so far whose path and query contain a text."""
        with self._changed:
            return [
                r
                for r in self.journal
                if substring in r.target and method in (None, r.method)
            ]

    def wait_for(self, predicate, timeout=20):
        """Wait until the predicate holds; AssertionError if it does not in time.

        It is looked at when a request has come, an answer has ended or is held.
        """
        with self._changed:
            if not self._changed.wait_for(predicate, timeout):
                heads = "\n".join(
                    f"  {request.method} {request.target}" for request in self.journal
                )
                raise AssertionError(f"not in {timeout} s; the requests were:\n{heads}")

    def wait_idle(self):
        """Wait until every connection that was made before is served."""
        with socket.create_connection(
            self._server.server_address
        ) as last:  # they are accepted in turn
            last.sendall(b"OPTIONS / HTTP/1.0\r\n\r\n")
            while last.recv(65536):
                pass
        for thread in list(self._server.open):
            if thread.ident:
                thread.join(10)

    def count_sent(self, path: str, size: int):
        with self._changed:
            self.sent[path] += size

    def faults_for(self, request: Request) -> list:
        """What is to hit a request; the one that hits only once is struck out."""
        with self._changed:
            once = [entry for entry in self.faults if entry[0] in request.target][:1]
            for entry in once:
                self.faults.remove(entry)
            return [
                fault for text, fault in [*once, *self.always] if text in request.target
            ]

    def note_held(self, event: threading.Event):
        """Set the event when the server ends its connections, or did before."""
        with self._changed:
            self._held.add(event)
            self._changed.notify_all()
            if self._dropping:
                event.set()

    def wait_held(self, event: threading.Event):
        """Hold a connection until the event is set, be it by the server's end."""
        self.note_held(event)
        event.wait()

    def route(self, handler: Handler):
        request = handler.record
        if request.path.startswith(OUTPUTS):
            found = self.output(request.path[len(OUTPUTS) :])
            kind = "text/xml" if request.path.endswith(".xml") else "application/json"
            handler.answer(
                *error_document(404, "Not Found")
                if found is None
                else (200, {"Content-Type": kind}, found)
            )
        elif request.headers.get("authorization") != self.authorization:
            handler.answer(*error_document(401, "Unauthorized"))
        elif request.path == WPS:
            handler.answer(*self.wps(request))
        elif request.path == SEARCH:
            found = self.search(dict(urllib.parse.parse_qsl(request.query)))
            handler.answer(
                200, {"Content-Type": "application/json"}, json.dumps(found).encode()
            )
        elif (found := self.result(urllib.parse.unquote(request.path))) is None:
            handler.answer(*error_document(404, "Not Found"))
        else:
            handler.answer_file(found)

    def wps(self, request: Request) -> tuple[int, dict, bytes]:
        """Let PyWPS answer a request; returns status, headers and body."""
        environ = create_environ(
            "/wps", f"{self.url}/resto", query_string=request.query
        )
        with self._wps_lock:
            chunks, code, headers = run_wsgi_app(self._service, environ, buffered=True)
            answer = (
                int(code.split()[0]),
                {"Content-Type": headers["Content-Type"]},
                b"".join(chunks),
            )
            while self.deferred:
                self.deferred.pop(0)()
        return answer

    def accept(self, process: str, job_id: str, inputs: dict):
        """Take on an order, or raise what PyWPS turns into an ExceptionReport."""
        if process == "PROCESSING_STATUS":
            if inputs["wps_id"] not in self.jobs:
                raise InvalidParameterValue(f"unknown job {inputs['wps_id']}", "wps_id")
            return
        subject = inputs["product"] if process == "MAJA" else inputs["tileid"]
        if subject in self.refuse:
            raise InvalidParameterValue(self.refuse[subject], "datainputs")
        covered = [Acquisition(subject)]
        if process == "FULL_MAJA":
            orbit = int(inputs.get("relativeOrbitNumber", 0)) or None
            covered = acquisitions(
                subject, inputs["startDate"], inputs["completionDate"], orbit
            )
        self.jobs[job_id] = Job(job_id, process, subject, self._now, covered)

    def hand_over(self, response):
        """Write the first report of a job, which says PENDING until it is refreshed."""
        job = self.jobs[str(response.uuid)]
        word, message = self.ends.get(job.subject, ("", ""))
        if word == "ProcessFailed":
            response._update_status(WPS_STATUS.FAILED, message, 100)
            return
        output = response.outputs["report"]
        first = Path(output.workdir, "report.json")
        first.write_bytes(self._report(job, "PENDING", 0))
        output.file = str(first)

    def refresh(self, job_id: str) -> str:
        """Bring a job's report up to date, as PROCESSING_STATUS does; its state."""
        word, percent = self.state(job_id)
        report = self._outputs / job_id / "report.json"
        if report.exists():
            report.write_bytes(self._report(self.jobs[job_id], word, percent))
        return word

    def output(self, name: str) -> bytes | None:
        """A status document or a report, None if there is no such file."""
        with self._wps_lock:
            file = self._outputs / name
            return (
                file.read_bytes()
                if re.fullmatch(r"[\w-]+(\.xml|/report\.json)", name) and file.exists()
                else None
            )

    def state(self, job_id: str) -> tuple[str, int]:
        """How a job stands: the service's word, and the percentage that it gives."""
        job = self.jobs[job_id]
        done = (self._now - job.submitted - PENDING_S) / job.seconds
        if done < 1:
            return (
                ("PENDING", 0)
                if done < 0
                else ("STALLED", int(99 * (1 - (1 - done) ** 2)))
            )
        return self.ends.get(job.subject, ("FINISHED", ""))[0], 100

    def _report(self, job: Job, word: str, percent: int) -> bytes:
        done = word == "FINISHED"
        lost = [seen.l1c for seen in job.acquisitions if done and seen.l1c in self.lost]
        base = f"{self.url}{RESULTS}maja/{job.id}/"
        info = {
            "job_status": word,
            "process": f"{percent}%",
            "results": [
                base + seen.l2a
                for seen in job.acquisitions
                if done and seen.l1c not in self.lost
            ],
            "unprocessed": {"number": len(lost), "text": str(len(lost)), "names": lost}[
                self.unprocessed_as
            ],
            "message": self.ends.get(job.subject, ("", ""))[1]
            if word not in ("PENDING", "STALLED")
            else "",
        }
        content = {"USER_INFO": info}
        if job.process == "MAJA" and self.single_report == "loose":
            content = {
                "job": {
                    "id": job.id,
                    "state": word,
                    "percentCompleted": percent,
                    "text": info["message"],
                },
                "files": [{"type": "product", "url": url} for url in info["results"]],
            }
        return json.dumps(content, indent=2).encode()

    def result(self, path: str) -> bytes | Path | None:
        """A product by its path, None if there is nothing of that name (yet)."""
        folder, _, name = path.removeprefix(f"{RESULTS}maja/").partition("/")
        if name in self.products:
            return self.products[name]
        there = folder in self.jobs and self.state(folder)[0] == "FINISHED"
        names = (
            [seen.l2a for seen in self.jobs[folder].acquisitions if not seen.cloudy]
            if there
            else []
        )
        return make_product(name, self.product_size) if name in names else None

    def search(self, asked: dict[str, str]) -> dict:
        """A page of the catalogue, newest first; every place lies on tile 31TCJ."""
        found = acquisitions(
            asked.get("tileid", "31TCJ"), asked["startDate"], asked["completionDate"]
        )
        found.sort(key=lambda seen: (seen.day, seen.l1c), reverse=True)
        features = (
            [feature(seen) for seen in found]
            if self.catalogue is None
            else self.catalogue
        )
        return page_of(features, self.url + SEARCH, asked)


def main() -> None:
    """Serve a PEPS to play with, until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description="A PEPS on this machine, to play with."
    )
    add = parser.add_argument
    add("--port", type=int, default=8765, help="default: 8765")
    speed = "hours that pass in a minute (default: 24, so that half a year takes 80 s)"
    add("--speed", type=float, default=24, metavar="N", help=speed)
    size = "size of a product (default: 1)"
    add("--products-mb", type=float, default=1, metavar="N", help=size)
    args = parser.parse_args()
    try:
        peps = LocalPeps(args.port, "your.email@address.fr", "top_secret")
    except OSError as err:
        parser.error(f"port {args.port}: {err.strerror}; choose another with --port")
    with peps:
        peps.product_size = int(args.products_mb * 1_000_000)
        print("In another terminal, in the folder of your data:\n")
        print(f"    export PEPS_URL={peps.url}")
        print(f"    export PATH={Path(sys.executable).parent}:$PATH")
        print(f"    [ -e peps.txt ] || (umask 077; echo '{peps.account}' > peps.txt)\n")
        print(
            f"Each minute {args.speed:g} hours pass here. Ctrl-C ends it.", flush=True
        )
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)
                peps.advance(hours=args.speed / 60)


if __name__ == "__main__":
    main()
