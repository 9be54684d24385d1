"""A local PEPS: stands in for the PEPS/MAJA service in the tests, in the demo and for people.

The WPS documents are made by the real PyWPS. Catalogue, status documents, reports and products stand around
it on the same port, on real sockets, so that faults can be put on the wire. Jobs go by a clock that the
caller moves.

    with LocalPeps() as peps:
        ...                             # order something at peps.url with peps.account
        peps.advance(hours=12)
        peps.faults.append(("/maja/", cut(1000)))

`python tests/local_peps.py` serves a person until Ctrl-C.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import functools
import hashlib
import heapq
import io
import json
import logging
import math
import re
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid
import zipfile
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path

from faulty_http import Handler, Request, Server, json_error
from pywps import FORMATS, ComplexOutput, LiteralInput, LiteralOutput, Process, Service, configuration
from pywps.exceptions import InvalidParameterValue
from pywps.response.status import WPS_STATUS
from werkzeug.test import create_environ, run_wsgi_app

SEARCH = "/resto/api/collections/S2ST/search.json"
WPS = "/resto/wps"
OUTPUTS = "/wps/outputs/"
RESULTS = "/cgi-bin/mapcache_results/"
MAX_RECORDS = 500
TILES_AT_ONCE = 10
PENDING_S = 10 * 60
FIRST_DATE_S = 60 * 60
FURTHER_DATE_S = 25 * 60
SINGLE_PRODUCT_S = 90 * 60
NIGHT_IN_A_MINUTE = 12 * 60
EMAIL, SECRET = "jean.dupont@example.org", "mot de passe: 100% sûr"
L1C_NAME = re.compile(r"S2[AB]_MSIL1C_\d{8}T\d{6}_N\d{4}_R\d{3}_T\d\d[A-Z]{3}_\d{8}T\d{6}")


def draw(text: str) -> int:
    """Return a large number that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


# ---- acquisitions


@dataclasses.dataclass(frozen=True)
class Acquisition:
    """One tile seen by one satellite on one day; the L1C name settles everything else."""

    l1c: str

    @property
    def day(self) -> str:
        """The day as YYYYMMDD."""
        return self.l1c[11:19]

    @property
    def tile(self) -> str:
        """The MGRS tile without its leading T."""
        return self.l1c[39:44]

    @property
    def cloudy(self) -> bool:
        """Whether so much of it is cloud that no product is made."""
        return draw("cloud" + self.l1c) % 6 == 0

    @property
    def l2a(self) -> str:
        """The file name of the result, which for a cloudy one names a product that does not exist."""
        seconds = timedelta(seconds=10 + draw("second" + self.l1c) % 10)
        sensed = datetime.strptime(self.l1c[11:26], "%Y%m%dT%H%M%S") - seconds
        clock = f"{sensed:%H%M%S}-{draw(self.l1c) % 1000:03}"
        ending = "_NOVALD.zip" if self.cloudy else ".zip"
        return f"SENTINEL{self.l1c[1:3]}_{self.day}-{clock}_L2A_T{self.tile}_D_V1-4{ending}"


def orbits(tile: str) -> tuple[int, ...]:
    """Return the relative orbits that see a tile: one, or two where neighbouring swaths overlap."""
    first = 51 if tile == "31TCJ" else draw(tile) % 143 + 1
    if tile != "31TCJ" and draw("overlap" + tile) % 2:
        return (first,)
    # The swath beside is flown a hundred orbits, which is seven days, later.
    return first, (first + 99) % 143 + 1


def passes(satellite: str, orbit: int, day: date) -> bool:
    """Tell whether a satellite flies a relative orbit on a day: every ten days, S2B halfway between."""
    phase = round((orbit - 51) / 14.3) + (5 if satellite == "S2B" else 0)
    return ((day - date(2017, 7, 4)).days - phase) % 10 == 0


def l1c_name(satellite: str, orbit: int, tile: str, day: date) -> str:
    """Return the L1C name of an acquisition, made in the morning of the tile's zone."""
    # 24 minutes for each zone of six degrees; 10:56:21 is when orbit 51 passes over zone 31.
    second = (39381 - (int(tile[:2]) - 31) * 1440 - (orbit - 51) % 143 * 3) % 86400
    sensed = datetime(day.year, day.month, day.day) + timedelta(seconds=second)
    made = sensed + timedelta(seconds=60 + draw(f"{tile}{day}") % 900)
    baseline = "N0205" if day < date(2017, 10, 23) else "N0206"
    return f"{satellite}_MSIL1C_{sensed:%Y%m%dT%H%M%S}_{baseline}_R{orbit:03}_T{tile}_{made:%Y%m%dT%H%M%S}"


def acquisitions(tile: str, start: str, end: str, orbit: int | None = None) -> list[Acquisition]:
    """Return the acquisitions of a tile, oldest first.

    Parameters
    ----------
    tile : MGRS tile, with or without the leading T.
    start, end : YYYY-MM-DD; the first day is included, the last is not. A year of 9999 ends with 2018.
    orbit : only this relative orbit.
    """
    tile = tile.lstrip("T")
    first, last = (datetime.strptime(text, "%Y-%m-%d").date() for text in (start, end))
    first = max(first, date(2015, 7, 4))
    last = date(2019, 1, 1) if last.year == 9999 else last
    days = [first + timedelta(days=n) for n in range((last - first).days)]
    return [
        Acquisition(l1c_name(satellite, flown, tile, day))
        for day in days
        for satellite in (("S2A", "S2B") if day >= date(2017, 7, 1) else ("S2A",))
        for flown in orbits(tile)
        if orbit in (None, flown) and passes(satellite, flown, day)
    ]


def tile_at(lat: float, lon: float) -> str:
    """Return the MGRS tile of a point, by a plain approximation of the projection."""
    lat, lon = max(-80, min(83.9, lat)), (lon + 180) % 360 - 180
    zone = int((lon + 180) // 6) + 1
    band = "CDEFGHJKLMNPQRSTUVWXX"[int((lat + 80) // 8)]
    easting = 500_000 + (lon - (zone * 6 - 183)) * 111_320 * math.cos(math.radians(lat))
    northing = lat * 110_900 + (10_000_000 if lat < 0 else 0)
    column = ("ABCDEFGH", "JKLMNPQR", "STUVWXYZ")[(zone - 1) % 3][int(easting // 100_000) - 1]
    row = "ABCDEFGHJKLMNPQRSTUV"[(int(northing // 100_000) + (5 if zone % 2 == 0 else 0)) % 20]
    return f"{zone:02}{band}{column}{row}"


# ---- catalogue


def feature(seen: Acquisition) -> dict:
    """Return an acquisition as the catalogue shows it, some values null or missing as in the real one."""
    chance = draw("feature" + seen.l1c)
    orbit = int(seen.l1c[34:37])
    sensed = datetime.strptime(seen.l1c[11:26], "%Y%m%dT%H%M%S")
    properties = {
        "collection": "S2ST",
        "productIdentifier": seen.l1c,
        "productType": "S2MSI1C",
        "platform": seen.l1c[:3],
        "orbitNumber": 143 * ((sensed - datetime(2015, 6, 23)).days // 10) + orbit,
        "relativeOrbitNumber": orbit,
        "mgrs": seen.tile,
        "cloudCover": 90 + chance % 10 if seen.cloudy else chance % 90,
        "resourceSize": 400_000_000 + chance % 400_000_000,
        "resourceChecksum": hashlib.sha256(seen.l1c.encode()).hexdigest(),
        "startDate": f"{sensed:%Y-%m-%dT%H:%M:%S}.026Z",
        "storage": {"mode": ("disk", "tape", "staging", "unknown")[chance % 4]},
    }
    if chance % 7 == 0:
        properties[("cloudCover", "resourceSize", "storage")[chance % 3]] = None
    if chance % 11 == 0:
        del properties["resourceChecksum"]
    identifier = str(uuid.uuid5(uuid.NAMESPACE_URL, seen.l1c))
    return {"type": "Feature", "id": identifier, "geometry": None, "properties": properties}


def tiles_asked(asked: dict[str, str]) -> set[str]:
    """Return the tiles of a search's area; raise ValueError if it has none."""
    if "tileid" in asked:
        return {asked["tileid"]}
    if "q" in asked:
        return set() if asked["q"] == "Nowhere" else {"31TCJ"}
    if "box" in asked:
        west, south, east, north = map(float, asked["box"].split(","))
        corners = [(lat, lon) for lat in (south, north) for lon in (west, east)]
        return {tile_at(*point) for point in [*corners, ((south + north) / 2, (west + east) / 2)]}
    if "lat" in asked and "lon" in asked:
        return {tile_at(float(asked["lat"]), float(asked["lon"]))}
    raise ValueError("the search names no area")


def page_of(features: list[dict], url: str, asked: dict[str, str]) -> dict:
    """Return one page of the features as a FeatureCollection that links to the next one."""
    size, page = min(int(asked.get("maxRecords", 50)), MAX_RECORDS), int(asked.get("page", 1))
    if size < 1 or page < 1:
        raise ValueError("maxRecords and page count from 1")
    first = (page - 1) * size
    shown = features[first : first + size]
    numbers = {"self": page, "next": page + 1} if first + size < len(features) else {"self": page}
    links = [
        {"rel": rel, "href": f"{url}?{urllib.parse.urlencode({**asked, 'page': number})}"}
        for rel, number in numbers.items()
    ]
    properties = {
        "totalResults": len(features),
        "startIndex": first + 1,
        "itemsPerPage": len(shown),
        "links": links,
    }
    return {"type": "FeatureCollection", "properties": properties, "features": shown}


# ---- jobs


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
        if self.process == "MAJA":
            return SINGLE_PRODUCT_S
        return FIRST_DATE_S + FURTHER_DATE_S * max(0, len(self.acquisitions) - 1)


def schedule(jobs: list[Job]) -> dict[str, tuple[float, float]]:
    """Return when each job starts and ends, from nothing but the jobs in the order of their submission."""
    free_at = [-math.inf] * TILES_AT_ONCE
    times = {}
    for job in jobs:
        start = job.submitted + PENDING_S
        if job.process == "FULL_MAJA":
            start = max(start, free_at[0])
            heapq.heapreplace(free_at, start + job.seconds)
        times[job.id] = (start, start + job.seconds)
    return times


class PepsProcess(Process):
    """A PyWPS process that looks at its inputs first and does its asynchronous part when it is told to."""

    # Of the class, because PyWPS deep-copies a process for each request, with all that belongs to it.
    peps: LocalPeps

    def __init__(self, identifier, handler, output, *names):
        inputs = [
            LiteralInput(name, name, data_type="string", min_occurs=int(name != "relativeOrbitNumber"))
            for name in names
        ]
        super().__init__(handler, identifier, identifier, version="1.0", inputs=inputs, outputs=[output])
        self.store_supported = self.status_supported = "true"

    def execute(self, wps_request, uuid):
        """Refuse here what is to be refused: later on PyWPS would make it a failed job with a traceback."""
        inputs = {name: given[0].data for name, given in wps_request.inputs.items()}
        self.peps.accept(self.identifier, str(uuid), inputs)
        return super().execute(wps_request, uuid)

    def _run_async(self, wps_request, wps_response):
        # PyWPS would fork, which in a process with threads can hang on a lock that another thread held. In
        # a thread of its own this would race with the answer, as both share wps_response. So it waits for
        # the answer to be made; the documents are the same.
        self.peps.defer(lambda: self._run_process(wps_request, wps_response))


def hand_over(request, response):
    """Do the asynchronous part of an order, which is to hand it to the computing centre."""
    PepsProcess.peps.hand_over(response)


def refresh(request, response):
    """Do what PROCESSING_STATUS is for."""
    response.outputs["state"].data = PepsProcess.peps.refresh(request.inputs["wps_id"][0].data)


def make_service() -> Service:
    """Return the WPS with its three processes."""
    report = ComplexOutput("report", "report", supported_formats=[FORMATS.JSON], as_reference=True)
    state = LiteralOutput("state", "state", data_type="string")
    period = ("startDate", "completionDate", "tileid", "relativeOrbitNumber")
    processes = [
        PepsProcess("FULL_MAJA", hand_over, report, *period),
        PepsProcess("MAJA", hand_over, report, "product"),
        PepsProcess("PROCESSING_STATUS", refresh, state, "wps_id"),
    ]
    return Service(processes)


# ---- products


@functools.lru_cache(maxsize=24)
def make_product(name: str, size: int) -> bytes:
    """Return a zip with the look of a MAJA product, always the same for a name and an approximate size."""
    stem = name[:-4] if name.endswith(".zip") else name
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for ending in ("FRE_B2.tif", "FRE_B3.tif", "FRE_B4.tif", "FRE_B8.tif", "CLM_R1.tif", "MTD_ALL.xml"):
            content = b"<node/>" * 1000
            if not ending.endswith("xml"):
                content = hashlib.shake_128(f"{name} {ending}".encode()).digest(size // 5)
            entry = zipfile.ZipInfo(f"{stem}/{stem}_{ending}", (2018, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_STORED if "FRE" in ending else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return packed.getvalue()


# ---- the service


class LocalPeps:
    """A PEPS on a port of this machine; start it with `with`, or with start() and stop().

    PyWPS is configured for the whole process: have one at a time, and use reset() between tests.

    Parameters
    ----------
    port, host : where to listen; port 0 takes a free one.
    email, password : the one account.
    tls : an ssl.SSLContext with a certificate, to be served over https.
    product_size : bytes of a product, about.
    speed : seconds of service time that pass by themselves in a second.

    Attributes
    ----------
    url, account : what PEPS_URL and the account file's line are to be.
    journal, sent : requests so far, body bytes sent by path.
    jobs : the Jobs taken on, by their id. A job's `subject` is its tile or its L1C name.
    ends : subject -> (state word, message) to come to instead of FINISHED. "ProcessFailed" fails the job
        in its status document, before there is a report.
    refuse : subject -> text of the ExceptionReport that an order of it gets.
    results : job id or subject -> URLs to list instead of the job's own results.
    products : file name -> bytes or Path, served under that name below any job.
    lost : L1C names and days (YYYYMMDD) that have no result; `lose_some` adds one in forty.
    unprocessed_as : "number", "text" or "names", how a report tells what was lost.
    single_report : "same", or "loose" for MAJA reports without USER_INFO.
    catalogue : features that replace those of any search; `towns` has the towns searched for.
    faults, always : (text, fault) for the first request, or for every one, whose path and query hold the
        text. A fault is called with the Handler and returns whether it has answered the request itself.
    handover_s : seconds of service time for which an accepted job stays ProcessAccepted.
    outputs_base, results_base : scheme, host and port that the URLs of status documents and reports, and of
        results, are given with.
    """

    def __init__(
        self,
        port=0,
        host="127.0.0.1",
        email=EMAIL,
        password=SECRET,
        tls=None,
        product_size=200_000,
        speed=0,
    ):
        self.email, self.password = email, password
        self.account = f"{email} {password}"
        self.authorization = "Basic " + base64.b64encode(f"{email}:{password}".encode()).decode()
        self._product_size, self.speed = product_size, speed
        self._address, self._tls, self._server, self.url = (host, port), tls, None, None
        self._wps_lock = threading.RLock()
        self._changed = threading.Condition()
        self._initialise()

    def _initialise(self):
        """Set everything that a test may change."""
        self._advanced, self._started = 0.0, time.monotonic()
        self._held, self._dropping, self._deferred = set(), False, []
        self.journal, self.sent = [], Counter()
        self.jobs, self.ends, self.refuse, self.results, self.products = {}, {}, {}, {}, {}
        self.lost, self.lose_some, self.unprocessed_as = set(), False, "number"
        self.single_report, self.catalogue, self.towns = "same", None, []
        self.faults, self.always = [], []
        self.handover_s, self.product_size = 0, self._product_size
        self.outputs_base = self.results_base = self.url

    def __enter__(self) -> LocalPeps:
        return self.start()

    def __exit__(self, *exc):
        self.stop()

    # -- running

    def start(self) -> LocalPeps:
        """Listen, and serve from threads of its own."""
        self._server = Server(self._address, self)
        scheme = "http"
        if self._tls:
            scheme = "https"
            # The handshake is left to each connection's thread, so that none can hold up the others.
            self._server.socket = self._tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"{scheme}://{self._address[0]}:{self._server.server_address[1]}"
        self._initialise()
        self._configure_pywps()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def _configure_pywps(self):
        self._folder = tempfile.TemporaryDirectory(prefix="local_peps_")
        self._outputs = Path(self._folder.name, "outputs")
        self._outputs.mkdir()
        configuration.load_configuration()
        configuration.CONFIG.read_dict(
            {
                "server": {
                    "url": self.url + WPS,
                    "outputpath": self._outputs,
                    "workdir": self._folder.name,
                    "parallelprocesses": -1,
                    "maxprocesses": -1,
                },
                # At level DEBUG the database would print its statements.
                "logging": {"level": "ERROR", "file": "", "database": "sqlite:///:memory:"},
            }
        )
        PepsProcess.peps = self
        self._service = make_service()
        logging.getLogger("PYWPS").setLevel(logging.CRITICAL + 1)

    def stop(self):
        """End all connections, held ones too, and leave nothing behind."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._drop_connections()
            self._thread.join()
            self._folder.cleanup()
            self._server = None

    def reset(self):
        """Go back to how it was after start(), at the same URL; open connections are ended."""
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

    # -- clock

    @property
    def now(self) -> float:
        """Seconds of service time since the start."""
        return self._advanced + self.speed * (time.monotonic() - self._started)

    def advance(self, hours=0, minutes=0, seconds=0):
        """Move the clock."""
        self._advanced += hours * 3600 + minutes * 60 + seconds
        self.note()

    # -- what was asked for

    def note(self, request: Request | None = None):
        """Put a request into the journal, if there is one, and wake up whoever waits for something."""
        with self._changed:
            if request:
                self.journal.append(request)
            self._changed.notify_all()

    def requests(self, substring="", method=None) -> list[Request]:
        """Return the requests so far whose path and query contain a text."""
        with self._changed:
            return [r for r in self.journal if substring in r.target and method in (None, r.method)]

    def wait_for(self, predicate, timeout=20):
        """Wait until the predicate holds, and return its value; AssertionError if it does not in time.

        It is looked at whenever a request has come, an answer has ended or begins to be held.
        """
        with self._changed:
            value = self._changed.wait_for(predicate, timeout)
        if not value:
            heads = "\n".join(f"  {request.method} {request.target}" for request in self.journal)
            raise AssertionError(f"not in {timeout} s; the requests were:\n{heads}")
        return value

    def wait_idle(self):
        """Wait until every connection that was made before is served, the dead ones among them."""
        with socket.create_connection(self._server.server_address) as last:  # they are accepted in turn
            last.sendall(b"OPTIONS / HTTP/1.0\r\n\r\n")
            while last.recv(65536):
                pass
        for thread in list(self._server.open):
            thread.join(10)

    def count_sent(self, path: str, size: int):
        """Add to the body bytes sent for a path."""
        with self._changed:
            self.sent[path] += size

    def faults_for(self, request: Request) -> list:
        """Return what is to hit a request, and strike out the one that hits only once."""
        with self._changed:
            once = next((entry for entry in self.faults if entry[0] in request.target), None)
            if once:
                self.faults.remove(once)
            return [fault for text, fault in [*filter(None, [once]), *self.always] if text in request.target]

    def note_held(self, event: threading.Event):
        """Set the event when the server ends its connections, or did before."""
        with self._changed:
            self._held.add(event)
            self._changed.notify_all()
            if self._dropping:
                event.set()

    def wait_held(self, event: threading.Event):
        """Hold a connection until the event is set, by whoever it belongs to or by the server's end."""
        self.note_held(event)
        event.wait()

    # -- what is served

    def route(self, handler: Handler):
        """Hand a request to what serves its path."""
        request = handler.record
        if request.path.startswith(OUTPUTS):
            name = request.path[len(OUTPUTS) :]
            kind = "text/xml" if name.endswith(".xml") else "application/json"
            self._send(handler, self.output(name), kind)
        elif request.headers.get("authorization") != self.authorization:
            handler.answer(*json_error(401, "Unauthorized", **{"WWW-Authenticate": 'Basic realm="PEPS"'}))
        elif request.path == WPS:
            handler.answer(*self.wps(request))
        elif request.path == SEARCH:
            try:
                found = self.search(dict(urllib.parse.parse_qsl(request.query, keep_blank_values=True)))
            except ValueError as err:
                handler.answer(*json_error(400, f"Bad request: {err}"))
            else:
                self._send(handler, json.dumps(found).encode(), "application/json")
        elif request.path.startswith(RESULTS):
            content = self.result(urllib.parse.unquote(request.path[len(RESULTS) :]))
            self._send(handler, None) if content is None else handler.answer_file(content)
        else:
            self._send(handler, None)

    def _send(self, handler: Handler, content: bytes | None, kind: str = ""):
        if content is None:
            handler.answer(*json_error(404, "Not Found"))
        else:
            handler.answer(200, {"Content-Type": kind}, content)

    # -- WPS

    def wps(self, request: Request) -> tuple[int, dict, bytes]:
        """Let PyWPS answer a request; return status, headers and body."""
        environ = create_environ(
            "/wps",
            f"{self.url}/resto",
            query_string=request.query,
            headers={"Accept": request.headers.get("accept", "*/*")},
        )
        with self._wps_lock:
            configuration.CONFIG.set("server", "outputurl", self.outputs_base + OUTPUTS)
            chunks, code, headers = run_wsgi_app(self._service, environ, buffered=True)
            answer = int(code.split()[0]), {"Content-Type": headers["Content-Type"]}, b"".join(chunks)
            self._hand_over()
        return answer

    def defer(self, work):
        """Keep a job's asynchronous part until it is due."""
        self._deferred.append((self.now + self.handover_s, work))

    def _hand_over(self):
        while self._deferred and self._deferred[0][0] <= self.now:
            self._deferred.pop(0)[1]()

    def accept(self, process: str, job_id: str, inputs: dict):
        """Take on an order, or raise what PyWPS turns into an ExceptionReport."""
        if process == "PROCESSING_STATUS":
            if inputs["wps_id"] not in self.jobs:
                raise InvalidParameterValue(f"unknown job {inputs['wps_id']}", "wps_id")
            return
        subject = inputs["product"] if process == "MAJA" else inputs["tileid"].lstrip("T")
        if subject in self.refuse:
            raise InvalidParameterValue(self.refuse[subject], "datainputs")
        try:
            covered = self._covered(subject, inputs)
        except ValueError as err:
            raise InvalidParameterValue(str(err), "datainputs") from err
        self.jobs[job_id] = Job(job_id, process, subject, self.now, covered)

    def _covered(self, subject: str, inputs: dict) -> list[Acquisition]:
        if "product" not in inputs:
            orbit = int(inputs.get("relativeOrbitNumber", 0)) or None
            return acquisitions(subject, inputs["startDate"], inputs["completionDate"], orbit)
        if not L1C_NAME.fullmatch(subject):
            raise ValueError(f"unknown product {subject}")
        return [Acquisition(subject)]

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
        """Bring a job's report up to date and return its state, as PROCESSING_STATUS does."""
        word, percent = self.state(job_id)
        report = self._outputs / job_id / "report.json"
        if report.exists():
            report.write_bytes(self._report(self.jobs[job_id], word, percent))
        return word

    def output(self, name: str) -> bytes | None:
        """Return a status document or a report, None if there is no such file."""
        with self._wps_lock:
            self._hand_over()
            file = self._outputs / name
            if not re.fullmatch(r"[\w-]+(\.xml|/report\.json)", name) or not file.exists():
                return None
            return file.read_bytes()

    def forget(self, job_id: str):
        """Remove a job's status document, as the service does after a time."""
        with self._wps_lock:
            (self._outputs / f"{job_id}.xml").unlink()

    # -- jobs

    def state(self, job_id: str) -> tuple[str, int]:
        """Return how a job stands: the service's word, and the percentage that it would give."""
        start, end = schedule(list(self.jobs.values()))[job_id]
        now = self.now
        if now < start:
            return "PENDING", 0
        if now < end:
            left = (end - now) / (end - start)
            return "STALLED", int(99 * (1 - left * left))
        return self.ends.get(self.jobs[job_id].subject, ("FINISHED", ""))[0], 100

    def is_lost(self, seen: Acquisition) -> bool:
        """Tell whether an acquisition never came from the tapes."""
        if self.lose_some and draw("lost" + seen.l1c) % 40 == 0:
            return True
        return bool(self.lost & {seen.l1c, seen.day})

    def result_urls(self, job: Job) -> list[str]:
        """Return the results that a finished job's report lists."""
        given = self.results.get(job.id, self.results.get(job.subject))
        if given is not None:
            return list(given)
        base = f"{self.results_base}{RESULTS}maja/{job.id}/"
        return [base + seen.l2a for seen in job.acquisitions if not self.is_lost(seen)]

    def _report(self, job: Job, word: str, percent: int) -> bytes:
        done = word == "FINISHED"
        lost = [seen.l1c for seen in job.acquisitions if done and self.is_lost(seen)]
        info = {
            "job_status": word,
            "process": f"{percent}%",
            "results": self.result_urls(job) if done else [],
            "unprocessed": {"number": len(lost), "text": str(len(lost)), "names": lost}[self.unprocessed_as],
            "logs": [f"{self.results_base}{RESULTS}logs/joblog-{job.id}.log"],
            "message": self.ends.get(job.subject, ("", ""))[1] if word not in ("PENDING", "STALLED") else "",
        }
        content = {"USER_INFO": info}
        if job.process == "MAJA" and self.single_report == "loose":
            content = {
                "job": {"id": job.id, "state": word, "percentCompleted": percent, "text": info["message"]},
                "files": [{"type": "product", "url": url} for url in info["results"]],
            }
        return json.dumps(content, indent=2).encode()

    # -- products and catalogue

    def product_bytes(self, name: str) -> bytes:
        """Return the content of a product, by its file name."""
        content = self.products.get(name)
        if isinstance(content, Path):
            return content.read_bytes()
        return make_product(name, self.product_size) if content is None else content

    def result(self, path: str) -> bytes | Path | None:
        """Return what is below the results' folder, None if there is nothing of that name (yet)."""
        kind, _, rest = path.partition("/")
        folder, _, name = rest.partition("/")
        if kind == "logs" and folder[7:-4] in self.jobs:
            return f"log of job {folder[7:-4]}\n".encode()
        if name in self.products:
            return self.products[name]
        job = self.jobs.get(folder)
        if kind != "maja" or job is None or "NOVALD" in name or self.state(folder)[0] != "FINISHED":
            return None
        names = {urllib.parse.unquote(url.rpartition("/")[2]) for url in self.result_urls(job)}
        return self.product_bytes(name) if name in names else None

    def search(self, asked: dict[str, str]) -> dict:
        """Return a page of the catalogue, newest first; raise ValueError for what makes no sense."""
        if "q" in asked:
            self.towns.append(asked["q"])
        end = asked.get("completionDate", "9999-01-01")
        found = [
            seen
            for tile in tiles_asked(asked)
            for seen in acquisitions(tile, asked.get("startDate", "2015-07-04"), end)
        ]
        found.sort(key=lambda seen: (seen.day, seen.l1c), reverse=True)
        features = [feature(seen) for seen in found] if self.catalogue is None else self.catalogue
        return page_of(features, self.url + SEARCH, asked)


def main(argv=None) -> int:
    """Serve a person until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A local PEPS to try the scripts on.")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument(
        "--speed",
        type=float,
        default=NIGHT_IN_A_MINUTE,
        help="seconds of service time in a second (default: %(default)s, a night passes in a minute)",
    )
    args = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), LocalPeps(port=args.port, speed=args.speed) as peps:
        peps.lose_some = True
        print("A local PEPS is running; Ctrl-C ends it. In another terminal:\n")
        print(f"  export PEPS_URL={peps.url}")
        print(f"  printf '%s\\n' {shlex.quote(peps.account)} > peps.txt && chmod 600 peps.txt\n")
        print(f"That file is the account: {peps.account}")
        print(f"One minute here is {args.speed / 60:g} hours of the service.", flush=True)
        while True:
            time.sleep(3600)
    return 0


if __name__ == "__main__":
    sys.exit(main())
