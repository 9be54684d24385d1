#!/usr/bin/env python
"""Ask how FULL_MAJA jobs stand and download the products of those that are finished."""

from __future__ import annotations

if __name__ == "__main__":  # until `run_script` takes over, Ctrl-C ends the script without a word
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import errno
import itertools
import os
import re
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

import peps_common as common
from peps_common import L1C, CommonCause, PepsError, Service, Status, console, one_line, plural

FLUSH_BYTES = 16 * 1024 * 1024
WISH_PATIENCE_S = 30
LENGTH_PATIENCE_S = 10
SLOWEST_RATE, SLOWEST_S = 1000, 60  # bytes per second: a connection that falls a minute behind is broken off
RESULTS_MAX = 10_000
DIRECTORY_MAX_BYTES = 8 * 1024 * 1024
HEAD_BYTES = 512  # enough to tell a product from a page or an error


def human(size: float) -> str:
    """A number of bytes for people, in decimal units: 512.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.95 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def about(name: str, words: object) -> str:
    """The words with what they are about before them, unless they begin with a file of that name."""
    return str(words) if re.match(rf"([^:]*/)?{re.escape(name)}(\.\w+)*: ", str(words)) else f"{name}: {words}"


class State(Enum):
    """How a job stands, with the exit status that this means."""

    WAITING = ("waiting", Status.NOT_YET)
    RUNNING = ("running", Status.NOT_YET)
    UNKNOWN = ("in an unknown state", Status.NOT_YET)
    UNREPORTED = ("without a report", Status.NOT_YET)
    UNREACHED = ("without an answer", Status.NOT_YET)
    FINISHED = ("finished", Status.OK)
    FAILED = ("failed", Status.FAILED)
    CANCELED = ("canceled", Status.FAILED)
    GONE = ("gone", Status.FAILED)
    REFUSED = ("refused", Status.FAILED)
    IN_DOUBT = ("in doubt", Status.FAILED)
    WRONG_LOG = ("without a usable log", Status.USAGE)

    def __init__(self, word: str, status: Status):
        self.word, self.status = word, status


class Report(NamedTuple):
    """A job's JSON report; `words` are its progress, its message or a state that nobody knows, `results` are URLs."""

    state: State
    words: str
    results: tuple[str, ...] = ()
    unprocessed: int = 0
    lost: tuple[str, ...] = ()
    error: PepsError | None = None  # that stands in place of a report


REPORT_WORDS = {
    "PENDING": State.WAITING,
    "STALLED": State.RUNNING,  # the service's word for it
    "FINISHED": State.FINISHED,
    "ERROR": State.FAILED,
    "CANCELED": State.CANCELED,
}


def parse_report(document: bytes) -> Report:
    """Read a job's report, or a single product's, whose values stand anywhere; raises Unreadable if it is none."""
    whole = common.parse_json(document)
    if not isinstance(whole, dict):
        raise common.Unreadable("a JSON document that is no report", Status.NOT_YET)
    info, everything = common.as_dict(whole.get("USER_INFO")), list(scalars(whole))
    word = info.get("job_status")
    if not isinstance(word, str):
        word = next((value for _, value in everything if value in REPORT_WORDS), "")
    state = REPORT_WORDS.get(word.strip().upper(), State.UNKNOWN)
    progress = info.get("process", next((value for key, value in everything if key == "percentCompleted"), None))
    found = re.search(r"[0-9]{1,9}(\.[0-9])?", str(progress))
    percent = f"{found[0]}%" if found else ""
    words = {State.RUNNING: percent, State.UNKNOWN: one_line(word, 40)}.get(state, one_line(info.get("message") or ""))
    results = parse_results(info.get("results"), everything)
    if len(results) > RESULTS_MAX:
        raise common.Unreadable(f"one of more than {RESULTS_MAX} results, which is refused", Status.FAILED)
    return Report(state, words, results, *parse_unprocessed(info.get("unprocessed")))


def report_of_status(answer: common.WpsAnswer) -> Report:
    """What a status document says that names no report."""
    if answer.failed:
        return Report(State.FAILED, answer.message)
    if answer.state == "ProcessSucceeded":
        return Report(State.UNREPORTED, "a success, as the service says, but it names no report")
    if answer.state == "ProcessStarted":
        return Report(State.RUNNING, f"{answer.progress.rstrip('% ')}%" if answer.progress else "")
    return Report(State.WAITING, "")


def report_of_error(err: PepsError) -> Report:
    """What is known of a job that cannot be read or asked."""
    by_kind = {common.Gone: State.GONE, common.OrderInDoubt: State.IN_DOUBT}
    by_status = {Status.NOT_YET: State.UNREACHED, Status.USAGE: State.WRONG_LOG}
    return Report(by_kind.get(type(err)) or by_status.get(err.status, State.REFUSED), str(err), error=err)


def scalars(root: object) -> Iterator[tuple[str, Any]]:
    """Every value of a JSON document that is no object or list, with the key it stands under, in its order."""
    stack = [("", root)]
    while stack:
        key, node = stack.pop()
        if isinstance(node, dict):
            stack.extend(reversed(list(node.items())))
        elif isinstance(node, list):
            stack.extend((key, item) for item in reversed(node))
        else:
            yield key, node


def parse_results(listed: object, everything: list[tuple[str, Any]]) -> tuple[str, ...]:
    """The result URLs: those listed, else every .zip URL of the report; each once."""
    if listed or isinstance(listed, (list, dict)):
        found = [one_line(value, 4000) for _, value in scalars(listed) if value is not None]
    else:
        texts = [value for _, value in everything if isinstance(value, str)]
        found = [text for text in texts if re.fullmatch(r"https?://\S+\.zip", text)]
    return tuple(dict.fromkeys(found))


def parse_unprocessed(value: object) -> tuple[int, tuple[str, ...]]:
    """How many dates were lost, and the names of those that the report names."""
    if isinstance(value, (list, dict)):
        names = tuple(one_line(name) for _, name in scalars(value) if name is not None)
        return len(names), names[:RESULTS_MAX]
    try:
        return int(min(max(float(str(value)), 0), 1e6)), ()
    except ValueError:
        return (1, (one_line(value),)) if isinstance(value, str) and value.strip() else (0, ())


def http_url(text: str, base: str = "") -> str:
    """The http or https URL that a text is, beside `base` if it is a relative one; empty if it is none."""
    with contextlib.suppress(ValueError):
        url = urljoin(base, text.strip())
        if urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname:
            return url
    return ""


def product_name(url: str) -> str:
    """The file name of a result, which can harm nothing, not even as a module beside the scripts; raises PepsError."""
    name = unquote(urlsplit(url).path.rpartition("/")[2]) if http_url(url) else ""
    if not common.is_file_name(name) or re.search(r"\.(part|py[cdow]?|pth|so|dll)$", name, re.IGNORECASE):
        raise PepsError(f"the result '{one_line(url)}' is refused: it is no http address of a plain file name")
    return name


class Acquisition(NamedTuple):
    """What ties an L1C product to its L2A product; `time` is UTC, of the data take or of the tile, minutes later."""

    platform: str
    tile: str
    time: datetime


def acquisition(name: str, tile: str = "", start: str = "") -> Acquisition | None:
    """The acquisition of an L1C or L2A product; `tile` and `start` (ISO 8601) are for names that say neither.

    Forms of names: `S2A_MSIL1C_20170704T105621_N0205_R051_T31TCJ_...`; until 2016 `S2A_OPER_PRD_MSIL1C_PDMC_..._
    V20160712T105032_...`, without a tile; `SENTINEL2A_20170704-105605-456_L2A_T31TCJ_D_V1-4`.
    """
    platform = re.match(r"(?:SENTINEL|S)(2[A-Z])_", name)
    digits = re.search(r"(?:MSIL1C_|_V|SENTINEL2[A-Z]_)([0-9]{8})[T-]([0-9]{6})", name)
    taken = "".join(digits.groups()) if digits else re.sub("[^0-9]", "", start[:19])
    square = re.search(r"_T([0-9]{2}[A-Z]{3})(?=[_.]|$)", name) or re.fullmatch(r"T?([0-9]{2}[A-Z]{3})", tile)
    with contextlib.suppress(ValueError):
        if platform and square:
            return Acquisition(f"S{platform[1]}", square[1], datetime.strptime(taken, "%Y%m%d%H%M%S"))
    return None


def read_expected(path: Path) -> list[Acquisition | None]:
    """The acquisitions of a catalogue answer, None where one is not told; raises PepsError (2) if the file is none."""
    advice = "give the list of full_maja_process --json"
    try:
        with common.named_file(path, advice):
            page, _ = common.parse_page(path.read_bytes())
    except common.Unreadable as err:
        raise PepsError(f"{path} is {err}; {advice}", Status.USAGE) from err
    found = map(L1C.from_feature, page["features"])
    return [acquisition(product.name, product.tile, product.start) for product in found if product]


def acquisitions(results: Iterable[str]) -> list[Acquisition]:
    """The acquisitions that the names of results tell."""
    return [seen for url in results if (seen := acquisition(unquote(re.split("[?#]", url)[0].rpartition("/")[2])))]


def missing_acquisitions(expected: Iterable[Acquisition], results: Iterable[str]) -> list[Acquisition]:
    """The expected acquisitions with neither a product nor a too cloudy one, an hour from them, among the results."""
    there = acquisitions(results)
    return [
        one
        for one in sorted(set(expected), key=lambda one: one.time)
        if not any(one[:2] == seen[:2] and abs((one.time - seen.time).total_seconds()) <= 3600 for seen in there)
    ]


class NotAProduct(PepsError):
    """A page, an error, nothing or a damaged product came where a product was asked for; it is asked for once more."""

    def __init__(self, url: str, what: str):
        super().__init__(f"{common.host_of(url)} sent {what}, twice; if that stays so, tell the service")


class Product:
    """One product: where from, where to, for which job, how it comes, and what became of it."""

    def __init__(self, url: str, path: Path, job: str):
        self.url, self.path, self.job = url, path, job
        self.is_zip = path.suffix == ".zip"
        self.size: int | None = None  # in bytes, where the server tells
        self.status = Status.NOT_YET
        self.received, self.seconds = 0, 0.0
        self.downloaded = self.damaged = self.read_through = False

    @property
    def held(self) -> int:
        """Bytes that have come so far."""
        with contextlib.suppress(OSError):
            return common.part_path(self.path).lstat().st_size
        return 0

    @property
    def rest(self) -> int:
        """Bytes that are still to come, as far as the server tells the size."""
        return max(0, (self.size or 0) - self.held)

    def look(self, check: bool) -> None:
        """Find out whether the file that is there is the product, whole."""
        problem = self._problem(check)
        self.read_through, self.damaged = check and self.is_zip, bool(problem)
        self.status = Status.NOT_YET if problem else Status.OK

    def _problem(self, every_byte: bool) -> str | None:
        """What is wrong with the file of the product's name, None if nothing; what is no zip need only be there."""
        with contextlib.suppress(FileNotFoundError):
            common.require_plain(self.path).stat()
            return zip_problem(self.path, every_byte) if self.is_zip else None
        return "missing"

    def fetch(self, service: Service, check: bool) -> None:
        """Bring the product to its name, whole and checked (all CRCs with `check`); raises PepsError, OSError."""
        self.service, self.again, began = service, False, time.monotonic()
        with common.part_file(self.path) as self.part:
            if self._problem(check):
                try:
                    self._receive_whole()
                except NotAProduct:  # a damaged one is gone by now, so that this begins afresh
                    self.again = True
                    self._receive_whole()
                if self.is_zip or not self.path.exists():  # else somebody has put a file there meanwhile
                    common.finish(self.part, self.path)
                    self.downloaded, self.seconds = True, time.monotonic() - began
                else:
                    self.part.truncate(0)
        self.status = Status.OK

    def _receive_whole(self) -> None:
        """Fill the part file, over as many connections as it takes while each makes progress, and check it."""
        furthest, idle, first = self.held, 0, None
        while first is None:
            try:
                first = self._receive()
            except common.CutOff as err:
                idle = 0 if self.held > furthest else idle + 1
                furthest = max(self.held, furthest)
                if idle == common.TRIES:
                    host = common.host_of(self.url)
                    words = f"{host} breaks off at {human(self.held)}, tried {idle} times ({err})"
                    raise CommonCause(words, Status.NOT_YET) from err
                time.sleep(common.BACKOFF_S * idle)
        # A product in one piece was checked by TCP; what was put together is read through.
        problem = zip_problem(common.part_path(self.path), every_byte=first > 0) if self.is_zip else None
        if problem:
            self.part.truncate(0)
            raise NotAProduct(self.url, f"a damaged product ({problem})")

    def _receive(self) -> int:
        """Append one answer's body to the part file, and return the byte it began at; raises CutOff, NotAProduct."""
        for offset in (self.held, 0):
            headers, accept = ({"Range": f"bytes={offset}-"}, (200, 206, 416)) if offset else ({}, (200, 206))
            with (
                self.service.patience.lasting(common.PATIENCE_S),
                self.service.open(self.url, "product", headers=headers, accept=accept) as response,
            ):
                span = body_span(response.status_code, response.headers, offset)
                if span and response.status_code != 416:
                    self._take(response, *span)
                if span:
                    return span[0]
        raise PepsError(
            f"{common.host_of(self.url)} sends another part of the product than asked for; tell the service"
        )

    def _take(self, response: Any, start: int, total: int | None) -> None:
        """Write a body to its place in the part file; raises CutOff unless it has the product's length in the end."""
        patience, held = self.service.patience, self.held
        body = self.service.pieces(response, "product", float("inf"))
        head = self._head(response, body) if start == 0 else b""
        if total is None and not self.is_zip:  # nothing else tells whether it is whole
            total = self.size or None
        if self.size is None and total is not None:
            self.size = total
            if self.rest > free_space(self.path.parent):
                raise OSError(errno.ENOSPC, f"not enough disk space in {self.path.parent}")
        if start == 0:
            self.part.truncate(0)
            show(-held)
        size = flushed = self.part.seek(start)
        patience.until = time.monotonic() + SLOWEST_S
        for chunk in itertools.chain([head], body):
            common.write(self.part, chunk)
            size += len(chunk)
            self.received += len(chunk)
            show(len(chunk))
            patience.until = min(patience.until + len(chunk) / SLOWEST_RATE, time.monotonic() + SLOWEST_S)
            if size - flushed >= FLUSH_BYTES:
                flushed = size
                start_flush(self.part)
        if total not in (None, size):
            raise common.CutOff(f"{size} of {total} bytes")

    def _head(self, response: Any, body: Iterator[bytes]) -> bytes:
        """The first bytes of the product; raises NotAProduct when they are a page's or none, PepsError of an error."""
        head = b""
        while len(head) < HEAD_BYTES and (chunk := next(body, b"")):
            head += chunk
        page = head.lstrip()[:5].lower() in (b"<!doc", b"<html") and self.path.suffix not in (".html", ".htm")
        error = common.parse_json_error(head)
        if error and (self.again or error[0] in (401, 403)):
            raise self.service.refusal(response, "product", *error)
        if head and not error and (head.startswith(b"PK\x03\x04") if self.is_zip else not page):
            return head
        kind = one_line(response.headers.get("Content-Type", "no type"), 60)
        words = f"a page, or something else that is no product ({kind})" if head else "an empty answer"
        raise NotAProduct(self.url, words)


def free_space(folder: Path) -> float:
    """The free bytes of a folder's disk, without end where the file system does not tell."""
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(folder)
        if usage.total:
            return usage.free
    return float("inf")


def zip_problem(path: Path, every_byte: bool = False) -> str | None:
    """What is wrong with a zip file, None if nothing; with `every_byte` each member's CRC is compared, too."""
    import zipfile

    with open(path, "rb") as file:  # what the system does not let us read is no damage
        try:
            record = getattr(zipfile, "_EndRecData", lambda file: None)(file)  # as zipfile itself will find it
            if record and record[5] > DIRECTORY_MAX_BYTES:
                return "a directory that is too large"
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                # Python looks for the members from the end, so that bytes missing between move the first one.
                if min((member.header_offset for member in members), default=-1) != 0:
                    return "its directory does not fit it" if members else "an empty archive"
                for member in members if every_byte else ():
                    if member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others may swell
                        with archive.open(member) as content:
                            while content.read(common.CHUNK_BYTES):
                                pass
                return None
        except MemoryError:
            raise
        except Exception as err:  # each compression has errors of its own; whichever it is, the file is not whole
            return one_line(err) or type(err).__name__


def start_flush(file: Any) -> None:
    """Let the disk begin with what was written, where the system can be told, so that little is left for the end."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bounded(text: str | None) -> int | None:
    """A number of bytes as a header tells it, None if it is none or longer than any."""
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else None


def body_span(code: int, headers: Any, offset: int) -> tuple[int, int | None] | None:
    """Where an answer's body begins and how long the product is, in bytes; None where it does not fit `offset`."""
    if code == 200:
        return 0, bounded(headers.get("Content-Length"))
    found = re.fullmatch(r"bytes (?:([0-9]+)-[0-9]+|\*)/([0-9]+|\*)", headers.get("Content-Range", "").strip())
    first, total = (bounded(found[1]), bounded(found[2])) if found else (None, None)
    if code == 416:  # nothing is left to come (RFC 9110, 15.5.17)
        return (offset, offset) if total == offset else None
    return (offset, total) if found and first == offset else None


class Job:
    """One job of a run: its files, and how it stands as far as this run knows."""

    def __init__(self, name: str, log: Path, status_file: Path, report_file: Path):
        self.name, self.log, self.status_file, self.report_file = name, log, status_file, report_file
        self.answer, self.report = common.WpsAnswer(""), Report(State.UNREACHED, "")
        self.doubt: PepsError | None = None  # an order in the same log
        self.told: tuple[object, ...] = ()
        self.asked = self.known = False  # whether the service was asked, and whether its report is no news
        self.products, self.refused, self.cloudy = list[Product](), list[str](), list[str]()

    @property
    def statuses(self) -> list[Status]:
        """The exit statuses that the job, its results and its products mean."""
        known = self.report.error is None  # else its results are of an earlier report
        failed = [Status.FAILED] if self.doubt or (known and self.refused) else []
        return [self.report.state.status, *failed, *(product.status for product in self.products if known)]

    @property
    def ended(self) -> bool:
        """Whether looking again would change nothing."""
        # The service may have mended what is refused in a report on disk.
        return Status.NOT_YET not in self.statuses and (self.asked or not self.refused)

    def read(self) -> None:
        """Read the log, and a finished report if the status document beside it is this job's; raises PepsError."""
        advice = "order first, or say where its log is"
        try:
            answer = common.look_at(self.log, advice=advice)
        except common.OrderInDoubt as err:
            self.doubt, answer = common.OrderInDoubt(f"{err}; {common.way_out(self.log)}"), common.WpsAnswer("")
            with contextlib.suppress(OSError, PepsError):
                answer = common.parse_wps(self.log.read_bytes(), cut=True)
            if not answer.holds_job:
                raise self.doubt from err
            console.error(self.doubt)
        if not (answer.state or answer.status_location):
            with common.named_file(self.log, advice):
                raise FileNotFoundError(errno.ENOENT, "there is no job in it" if self.log.exists() else "no such file")
        if answer.failed:
            raise PepsError(f"{self.log}: a refused order ({answer.message}); order again", Status.USAGE)
        if not (answer.status_location and http_url(answer.status_location, "https://server/")):
            raise PepsError(f"{self.log}: no statusLocation that can be asked; {advice}", Status.USAGE)
        self.answer = answer
        with contextlib.suppress(OSError, PepsError):
            report = parse_report(common.require_plain(self.report_file).read_bytes())
            if report.state == State.FINISHED and self._owns_status_file():
                self.report, self.known = report, True

    def _owns_status_file(self) -> bool:
        """Whether the status document beside the log bears its statusLocation."""
        with contextlib.suppress(OSError, PepsError), common.parsing:
            document = common.require_plain(self.status_file).read_bytes()
            return common.parse_wps(document).status_location == self.answer.status_location
        return False

    def ask(self, service: Service) -> None:
        """Learn how the job stands, in two minutes at most; the documents are kept beside the log. Raises PepsError."""
        if not self.answer.holds_job:  # another run was at work on the log
            self.read()
        self.asked = True
        location = http_url(self.answer.status_location, f"{service.base}/")
        with service.patience.lasting(common.PATIENCE_S):
            document, answer = service.read(location, "status document", common.parse_wps)
            if not answer.failed:
                self._refresh(service)
                if not answer.report_url:  # the service may name it only now
                    document, answer = service.read(location, "status document", common.parse_wps)
            if not self._owns_status_file():  # it must never stand beside the report of another job
                self.report_file.unlink(missing_ok=True)
            common.write_whole(self.status_file, document)
            if answer.failed or not answer.report_url:
                self.report = report_of_status(answer)
                return
            url = http_url(answer.report_url, location) or answer.report_url
            try:
                text, report = service.read(url, "report", parse_report)
            except common.Gone as err:
                raise PepsError(f"{err}, or does not have it yet", Status.NOT_YET) from err
        common.write_whole(self.report_file, text)
        self.report = report

    def _refresh(self, service: Service) -> None:
        """Ask the service to bring the job's report up to date; a report that stays old is still a report."""
        flags = "status=false&storeExecuteResponse=false"
        url = common.execute_url(service.base, "PROCESSING_STATUS", {"wps_id": self.answer.job_id}, flags)
        with contextlib.suppress(PepsError, common.CutOff), service.patience.lasting(WISH_PATIENCE_S):
            response = service.open(url, "refresh", wish=True)
            with response:
                list(service.pieces(response, "refresh", common.DOCUMENT_MAX_BYTES))

    def take_results(self, folder: Path, known: dict[Path, Product]) -> None:
        """Sort the report's results: products, of which each file is `known` once, too cloudy ones, refused ones."""
        if self.report.error:  # what was known of it stays
            return
        self.products, self.refused, self.cloudy = [], [], []
        for url in self.report.results if self.report.state == State.FINISHED else ():
            try:
                name = product_name(url)
            except PepsError as err:
                self.refused.append(str(err))
                continue
            product = known.setdefault(folder / name, Product(url, folder / name, self.name))
            product.url = url if product.job == self.name else product.url
            if "NOVALD" in name:
                self.cloudy.append(name)
            elif product in self.products:
                self.refused.append(f"the result '{one_line(url)}' is refused: another result has that name")
            else:
                self.products.append(product)

    def describe(self, hints: dict[State, str]) -> str:
        """How the job stands, in words; a hint on a state comes once a run."""
        state, words = self.report[:2]
        if state == State.FINISHED:
            return f"finished: {self._counts()}"
        if state == State.UNKNOWN:
            return f"in the state '{words}', taken for not finished" if words else "its report tells no state"
        if state in (State.FAILED, State.CANCELED):
            words = f"{state.word}: {words or console.once(hints.get(state, '')) or 'the service says no more'}"
            state = State.GONE
        hint = console.once(hints.get(state, ""))
        if state in (State.WAITING, State.RUNNING):
            return f"{state.word}{words and f', {words}'}{hint and f' ({hint})'}"
        return f"{words}; {hint}" if hint else words

    def _counts(self) -> str:
        """What a finished job brings, no zero among the numbers."""
        fetch = [product for product in self.products if product.status == Status.NOT_YET]
        size = f", {human(sum(product.rest for product in fetch))}" if all(product.size for product in fetch) else ""
        there = sum(product.status == Status.OK for product in self.products)
        failed = len(self.products) - there - len(fetch)
        parts = [(there, "on disk"), (len(fetch), f"to fetch{size}"), (failed, "that cannot be had")]
        where = ", ".join(f"{count} {words}" for count, words in parts if count)
        where = "all on disk" if there == len(self.products) else where
        counts = [(len(self.products), f"({where})"), (len(self.cloudy), "too cloudy")]
        return sums("product", counts, self.report.unprocessed) or "no products"


def in_threads(function: Callable[[Any], None], items: list[Any], at_once: int) -> Iterator[tuple[Any, Any]]:
    """Call a function with each item in threads, as many as the system grants; yield each when done, with its error."""
    from queue import Empty, SimpleQueue

    todo, done = iter(items), SimpleQueue[Any]()

    def work() -> None:
        for item in todo:
            try:
                function(item)
                done.put((item, None))
            except BaseException as err:
                done.put((item, err))

    for number in range(min(at_once, len(items))):
        try:
            threading.Thread(target=work, daemon=True).start()  # Ctrl-C does not wait for it
        except RuntimeError as err:
            if number == 0:
                raise PepsError("no thread can be started; free some memory or processes, run again") from err
            break
    left = len(items)
    while left:
        try:
            item, error = done.get(timeout=1)
        except Empty:
            show()
            continue
        left -= 1
        yield item, error and common.expected(error)


class FollowUp:
    """One run of a download script; `hints` are said once for a state, FINISHED's of lost dates, GONE's as a remedy."""

    def __init__(
        self, jobs: list[Job], args: Any, token: str, hints: dict[State, str], listed: Sequence[Acquisition | None] = ()
    ):
        self.jobs, self.args, self.token, self.hints, self.listed = jobs, args, token, hints, listed
        self.known, self.wanted = dict[Path, Product](), list[Product]()
        self._lengths, self._spent = True, 0.0

    def run(self) -> Status:
        """Follow the jobs up as the options say; after Ctrl-C, too, a last line says what is done."""
        if not self.args.dry_run:
            common.make_folder(self.args.write_dir)
        try:
            self._follow(self.args.interval * 60 if self.args.wait and not self.args.dry_run else 0)
        finally:
            status = self.finish()
        return status

    def _follow(self, wait_s: float) -> None:
        """Look once, or every so many seconds until every job has ended, and download what is finished."""
        console.due = time.time() + wait_s if wait_s else None
        self._learn(Job.read, self.jobs, 1)  # one by one, for many documents at once take much memory
        self._tell([job for job in self.jobs if job.ended])
        if all(job.ended for job in self.jobs):
            return
        self.service = Service(self.args.server, self.token, self.args.jobs)
        self._look()
        while console.due and not all(job.ended for job in self.jobs):
            while (left := console.due - time.time()) > 0:
                time.sleep(min(left, 1))  # a signal that comes just before a sleep is heard after it
            console.due = time.time() + wait_s
            self._look()

    def _learn(self, how: Callable[[Job], None], jobs: list[Job], at_once: int) -> None:
        """Learn how jobs stand, and which of their products are there."""
        for job, err in in_threads(how, jobs, at_once):
            if err:
                job.report = report_of_error(err)
        for job in jobs:  # in their order: of two that name one product it is the first one's
            job.take_results(self.args.write_dir, self.known)
        self.wanted = list(dict.fromkeys(product for job in self.jobs for product in job.products))
        self._look_on_disk()

    def _look(self) -> None:
        """Ask how the jobs stand that have not ended, side by side, say it, and download."""
        jobs = [job for job in self.jobs if not job.ended]
        self.service.silent.clear()  # what was out of order is asked again
        self._learn(lambda job: job.ask(self.service), jobs, common.ASK_AT_ONCE)
        sure = {product for job in self.jobs if not job.report.error for product in job.products}
        left = [product for product in self.wanted if product in sure and product.status == Status.NOT_YET]
        list(in_threads(self._measure, left, self.args.jobs))
        self._tell(jobs)
        if self.args.dry_run:
            for product in left:
                console.say(f"to fetch: {product.path.name}{f'  {human(product.size)}' if product.size else ''}")
        else:
            self._download(sorted(left, key=lambda product: product.size or 2**63, reverse=True))

    def _look_on_disk(self) -> None:
        there = [one for one in self.wanted if one.status == Status.NOT_YET and os.path.lexists(one.path)]
        looks = in_threads(lambda product: product.look(self.args.check), there, self.args.jobs)
        self._give_up([(product, err) for product, err in looks if err])

    def _measure(self, product: Product) -> None:
        """Ask for the size of a product: a wish, and not repeated at a server that does not grant it."""
        if self._lengths:
            try:
                with self.service.patience.lasting(LENGTH_PATIENCE_S):
                    response = self.service.open(product.url, "product", method="HEAD", wish=True)
                product.size = bounded(response.headers.get("Content-Length"))
                response.raw.drain_conn()  # so that the connection is kept
            except PepsError as err:
                self._lengths = err.status != Status.NOT_YET

    def _tell(self, jobs: list[Job]) -> None:
        """Say how jobs stand, as far as that is new."""
        failures = []
        for job in jobs:
            told, job.told = job.told, job.report[:2]
            if told == job.told:
                continue
            line = about(job.name, job.describe(self.hints))
            if job.report.state == State.FINISHED:
                console.say(line, news=job.asked and not job.known)
                self._tell_results(job)
            elif job.report.error or job.report.state.status == Status.FAILED:
                failures.append((line, job.report.error or PepsError(line)))
            else:
                console.say(f"{line}; {console.later}" if console.due or console.once(console.later) else line)
        tell_failures("job", failures)

    def _tell_results(self, job: Job) -> None:
        news, job.known = job.asked and not job.known, True
        for name in job.cloudy if news else ():
            console.say(f"{job.name}: too cloudy: {name}")
        for refusal in job.refused:
            if line := console.once(f"{job.name}: {refusal}"):
                console.error(line)
        if job.report.unprocessed and news:
            how = "" if self.listed or job.report.lost else console.once(self.hints.get(State.FINISHED, ""))
            which = ", ".join(job.report.lost) or how
            words = f"{plural(job.report.unprocessed, 'date')} lost, most likely by a busy tape robot"
            more = f"running this again brings no more; see {job.report_file}{which and f' ({which})'}"
            console.error(f"warning: {job.name}: {words}; {more}")

    def _with_room(self, products: list[Product]) -> list[Product]:
        """The products that the disk has room for, in their order; the others are given up."""
        folder = self.args.write_dir
        free, fitting, lacking = free_space(folder), list[Product](), list[Product]()
        words = f"not enough disk space in {folder}: {human(free)} free, {human(sum(p.rest for p in products))} to come"
        if not os.access(folder, os.W_OK):
            free, words = -1, f"{folder} cannot be written to"
        for product in products:
            fits = product.rest <= free
            free -= product.rest * fits
            (fitting if fits else lacking).append(product)
        lack = CommonCause(f"{words}; put that right and run this again")
        self._give_up([(product, lack) for product in lacking])
        return fitting

    def _download(self, products: list[Product]) -> None:
        """Download products, the largest first so that none is left to run alone at the end."""
        products = self._with_room(products)
        stopped: list[tuple[Product, PepsError]] = []
        failed, total, began = 0, len(products), time.monotonic() - self._spent
        with progress_bar(products):
            fetch = lambda product: product.fetch(self.service, self.args.check)  # noqa: E731
            for number, (product, err) in enumerate(in_threads(fetch, products, self.args.jobs), 1):
                failed, self._spent = failed + bool(err), time.monotonic() - began
                show(0, f"{number - failed}/{plural(total, 'product')}{f', {failed} failed' if failed else ''}")
                if isinstance(err, common.AnotherRun):
                    err = CommonCause(f"another run is at work in {self.args.write_dir}", err.status)
                if product.downloaded:
                    rate = product.received / max(product.seconds, 0.001)
                    words = f"{human(product.received)} in {duration(product.seconds)}, {human(rate)}/s"
                    console.say(f"[{number}/{total}] {product.path.name}  {words}", news=True)
                elif isinstance(err, CommonCause):
                    stopped.append((product, err))
                elif err:
                    self._give_up([(product, err)])
        self._look_on_disk()  # what another run was at may be there by now
        self._give_up([(product, err) for product, err in stopped if product.status != Status.OK])

    def _give_up(self, failures: list[tuple[Product, PepsError]]) -> None:
        """Say why products are not downloaded, unless that was said before."""
        for product, err in failures:
            product.status = err.status
        lines = [(f"{product.job}: {about(product.path.name, err)}", err) for product, err in failures]
        tell_failures("product", [(line, err) for line, err in lines if console.once(line)])

    def _lost_dates(self) -> int:
        """How many dates brought nothing: of each tile what the reports count, or more where the list shows more."""
        seen = [one for one in self.listed if one]
        finished = all(job.report.state == State.FINISHED for job in self.jobs)
        results = [url for job in self.jobs for url in job.report.results]
        missing = missing_acquisitions(seen, results) if finished else []
        if finished and (not console.quiet or any(job.asked for job in self.jobs)):
            for one in missing:
                console.error(f"warning: no result for {one.platform} of {one.time:%Y-%m-%d}, tile {one.tile}")
            if len(seen) < len(self.listed):
                names = plural(len(self.listed) - len(seen), "product")
                console.error(f"warning: {names} of the list cannot be compared: neither name nor entry says the tile")
        lost: Counter[str] = Counter()
        for job in self.jobs:
            tiles = [one.tile for one in (*acquisitions(job.report.results), *seen)]
            lost[tiles[0] if tiles else ""] += job.report.unprocessed
        return sum((lost | Counter(one.tile for one in missing)).values())

    def finish(self) -> Status:
        """Say the last line, which sums the run up, and return its exit status."""
        dates = self._lost_dates()
        states = Counter(job.report.state.word for job in self.jobs)
        states["in doubt beside it"] = sum(bool(job.doubt) and job.doubt is not job.report.error for job in self.jobs)
        ends = Counter(product.status for product in self.wanted)
        brought = [product for product in self.wanted if product.downloaded]
        took = f"({human(sum(product.received for product in brought))} in {duration(self._spent)})"
        counts = [
            (len(brought), f"downloaded {took}"), (ends[Status.OK] - len(brought), "on disk before"),
            (ends[Status.FAILED] + sum(len(job.refused) for job in self.jobs), "not fetched"),
            (ends[Status.NOT_YET], "to fetch" if self.args.dry_run else "left for the next run"),
            (sum(len(job.cloudy) for job in self.jobs), "too cloudy"),
        ]  # fmt: skip
        read = [product for product in self.wanted if product.read_through]
        damaged = [product for product in read if product.damaged]
        mended = ", fetched again" if all(product.downloaded for product in damaged) else ""
        if read:
            words = f"{len(damaged)} damaged{mended}" if damaged else "none damaged"
            console.say(f"--check: {len(read)} read, {words}", news=bool(damaged))
        products = sums("product", counts, dates)
        where = f" {products}, in {self.args.write_dir.resolve()}" if products else ""
        news = bool(brought) or any(job.asked and job.ended for job in self.jobs)
        console.say(f"{sums('job', [(count, word) for word, count in states.items()])}.{where}", news=news)
        return common.worst(status for job in self.jobs for status in job.statuses)


@contextlib.contextmanager
def progress_bar(products: list[Product]) -> Iterator[None]:
    """Show a bar during the block, if stderr is a terminal and tqdm is installed."""
    with contextlib.ExitStack() as stack:
        if products and not console.quiet and sys.stderr and sys.stderr.isatty():
            total = sum(product.rest for product in products) if all(product.size for product in products) else None
            words = f"0/{plural(len(products), 'product')}"
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                tqdm.monitor_interval = 0
                # Without smoothing the rate is that of the whole time, so that it sinks when nothing comes any more.
                bar = tqdm(total=total, unit="B", unit_scale=True, smoothing=0, desc=words)
                console.bar = stack.enter_context(bar)
                stack.callback(setattr, console, "bar", None)
        yield


def show(size: int = 0, words: str = "") -> None:
    """Tell the bar of more bytes on disk, of how many products are done, or that time has passed; from any thread."""
    bar = console.bar
    if bar is not None:
        with bar.get_lock():
            bar.update(size)
            bar.set_description_str(words or bar.desc, refresh=not size)


def tell_failures(noun: str, failures: Iterable[tuple[str, PepsError]]) -> None:
    """Say a line for each failure, but one with their number for those that have one cause."""
    causes: dict[str, list[tuple[str, PepsError]]] = {}
    for line, err in failures:
        causes.setdefault(str(err) if isinstance(err, CommonCause) else line, []).append((line, err))
    for cause, same in causes.items():
        line, err = same[0]
        console.error(PepsError(line if len(same) == 1 else f"{plural(len(same), noun)}: {cause}", err.status))


def sums(noun: str, counts: Iterable[tuple[int, str]], lost: int = 0) -> str:
    """Counts and lost dates in words, without the zeros: 2 jobs finished, 1 waiting."""
    there = [(count, words) for count, words in counts if count]
    parts = [f"{plural(there[0][0], noun)} {there[0][1]}"] if there else []
    parts += [f"{count} {words}" for count, words in there[1:]] + [f"{plural(lost, 'date')} lost"] * (lost > 0)
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time for people: 0.4 s, 41 s, 41 min, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def add_download_options(parser: common.Parser) -> None:
    """The options that the two download scripts share."""
    add = parser.add_argument
    number = common.number_between(int, 1, 1000, "a number from 1 on")
    minutes = common.number_between(float, 0.001, 10**6, "a number of minutes above 0")
    add("-w", "--write_dir", metavar="DIR", type=Path, default=Path("."), help="folder for the products (default: .)")
    add("-j", "--jobs", metavar="N", type=number, default=4, help="downloads at once (default: 4)")
    add("--wait", action="store_true", help="stay until every job has ended")
    add("--interval", metavar="MINUTES", type=minutes, default=10.0, help="with --wait: between looks (default: 10)")
    add("--check", action="store_true", help="read products on disk through, and replace damaged ones")
    only_say = "ask how the jobs stand, and only say what would be downloaded"
    add("-n", "--no_download", "--dry-run", dest="dry_run", action="store_true", help=only_say)


def build_parser() -> common.Parser:
    parser = common.Parser(
        "full_maja_download",
        "Ask how FULL_MAJA jobs stand and download the products of those that are finished.",
        "-a peps.txt -l 31TCJ_20170101.log -w /path/to/31TCJ",
        "-a peps.txt -l logs/*.log -w products --wait",
        "-q -a peps.txt -l 31TCJ_20170101.log -w /path/to/31TCJ    (for cron)",
    )
    logs = "log files that full_maja_process wrote (default: Full_Maja.log)"
    parser.add_argument("-l", "--log", metavar="FILE", nargs="+", action="extend", type=Path, help=logs)
    add_download_options(parser)
    compare = "the list that full_maja_process --json wrote: name every acquisition without a result"
    parser.add_argument("--json", metavar="FILE", type=Path, help=compare)
    return parser


def run(args: Any) -> Status:
    token = common.read_account(args.auth)
    listed = read_expected(args.json) if args.json else []
    logs = {os.path.abspath(log): log for log in args.log or [Path("Full_Maja.log")]}.values()
    jobs = [Job(str(log), log, common.beside(log, ".stat"), common.beside(log, ".json")) for log in logs]
    reports = {f"report of {job.name}": job.report_file for job in jobs if os.path.exists(job.log.parent)}
    common.check_files({"list (--json)": args.json, **reports})
    process = common.called("full_maja_process")
    hints = {
        State.WAITING: "the computing centre is busy, or ten tiles, the limit for all users, are running already",
        State.RUNNING: "its count is optimistic; a job takes 1 h for its first date, 25 min for each further one",
        State.FINISHED: f"which, is told by --json with the list of: {process} -n --json LIST ...",
        State.GONE: f"order it again, with another -l or: {process} --force ...",
    }
    return FollowUp(jobs, args, token, hints, listed).run()


def main(argv: list[str] | None = None) -> int:
    return common.run_script(build_parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
