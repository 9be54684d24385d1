#!/usr/bin/env python
"""Ask how FULL_MAJA jobs stand and download the products of those that are finished.

From top to bottom: words, reports (pure parsing), acquisitions, how a product is
fetched, a job and what is asked of it, one look at all jobs, and the command line.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

import peps_common as common
from peps_common import (
    L1C,
    CutOff,
    Gone,
    NotYet,
    OrderInDoubt,
    PepsError,
    Service,
    Status,
    Unreadable,
    UsageError,
    WpsAnswer,
    as_dict,
    beside,
    console,
    host_in,
    host_of,
    http_url,
    in_threads,
    in_words,
    is_loopback,
    named_file,
    one_line,
    parse_json_error,
    parse_wps,
    plural,
    read_body,
    require_plain,
    say_failures,
    write_whole,
)

if TYPE_CHECKING:
    from requests import Response

ASK_AT_ONCE = 8
SIZE_PATIENCE_S = 10
YOUNG_S = 3600  # the age of a log until which a missing status document is "not yet"
FLUSH_BYTES = 16 * 1024 * 1024
ZIP_HEAD = b"PK\3\4"
MARKED_HEADS = (b"PK\7\x08PK\3\4", b"PK00PK\3\4")  # behind a spanning marker


def human(size: float) -> str:
    """A number of bytes in three digits at most: 612 MB, 1.2 GB."""
    units = iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while size >= 999.5 and unit != "GB":
        size, unit = size / 1000, next(units)
    return (
        f"{size:.1f} {unit}" if size < 99.95 and unit != "B" else f"{size:.0f} {unit}"
    )


def duration(seconds: float) -> str:
    """A time for people: 0.4 s, 41 s, 41 min, 2 h 5 min."""
    if seconds < 9.95:
        return f"{max(seconds, 0.1):.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours > 1 else f"{hours * 60 + minutes} min"


def sums(noun: str, counts: list[tuple[int, str]], dates: int = 0) -> str:
    """Counts and lost dates in words, without the zeros: 2 jobs finished, 1 waiting."""
    there = [(count, words) for count, words in counts if count]
    parts = [f"{count} {words}" for count, words in there]
    if there:
        parts[0] = f"{plural(there[0][0], noun)} {there[0][1]}"
    if dates:
        parts.append(f"{plural(dates, 'date')} lost")
    return ", ".join(parts)


# How a job stands, with the exit status that this means.
STATES = {
    "waiting": Status.NOT_YET,
    "running": Status.NOT_YET,
    "in an unknown state": Status.NOT_YET,
    "without a report": Status.NOT_YET,
    "without an answer": Status.NOT_YET,
    "finished": Status.OK,
    "failed": Status.FAILED,
    "canceled": Status.FAILED,
    "gone": Status.FAILED,
    "refused": Status.FAILED,
    "in doubt": Status.FAILED,
    "without a usable log": Status.USAGE,
}
FINISHED = "finished"


class Standing(NamedTuple):
    """How a job stands, by its report or status document, or why nobody knows.

    `state` is one of STATES; `words` are its progress, its message or a state that
    nobody knows; `results` are URLs; `lost` are the names of `unprocessed` dates, as
    far as they are told.
    """

    state: str
    words: str = ""
    results: tuple[str, ...] = ()
    unprocessed: int = 0
    lost: tuple[str, ...] = ()
    error: PepsError | None = None


REPORT_STATES = {
    "PENDING": "waiting",
    "STALLED": "running",  # the service's word for it
    "FINISHED": FINISHED,
    "ERROR": "failed",
    "CANCELED": "canceled",
}


def parse_report(document: bytes) -> Standing:
    """Read a job's JSON report: of a time series, or of a single product.

    The latter's state, percentage and .zip URLs may stand anywhere. Raises Unreadable.
    """
    whole = common.parse_json(document)
    if not isinstance(whole, dict):
        raise Unreadable("a JSON document that is no report")
    info, values = as_dict(whole.get("USER_INFO")), list(scalars(whole))
    word = info.get("job_status")
    if not isinstance(word, str):
        word = next((value for _, value in values if value in REPORT_STATES), "")
    state = REPORT_STATES.get(word.strip().upper(), "in an unknown state")
    words = str(info.get("message") or "")
    if state == "in an unknown state":
        words = word
    if state == "running":
        loose = [value for key, value in values if key == "percentCompleted"]
        percent = re.search("[0-9]{1,3}", str([info.get("process"), *loose]))
        words = f"{percent[0]}%" if percent else ""
    results = parse_results(info.get("results"), values)
    return Standing(state, words, results, *parse_unprocessed(info.get("unprocessed")))


def scalars(value: object, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a JSON document that is no object, list or null, with its key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from scalars(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from scalars(inner, key)
    elif value is not None:
        yield key, value


def parse_results(listed: object, values: list[tuple[str, Any]]) -> tuple[str, ...]:
    """The result URLs: those listed, else every .zip URL of the report; each once."""
    found = [str(value) for _, value in scalars(listed)]
    if listed is None:
        texts = [str(value) for _, value in values]
        found = [text for text in texts if re.fullmatch(r"https?://\S+\.zip", text)]
    return tuple(dict.fromkeys(found))


def parse_unprocessed(value: object) -> tuple[int, tuple[str, ...]]:
    """How many dates were lost, and the names of those that the report names."""
    if isinstance(value, (list, dict)):
        names = tuple(str(name) for _, name in scalars(value))
        return len(names), names
    number = re.fullmatch(r"([0-9]{1,6})(\.0*)?", str(value).strip())
    return int(number[1]) if number else 0, ()


def standing_of(answer: WpsAnswer) -> Standing:
    """What a status document says that names no report."""
    if answer.failed:
        return Standing("failed", answer.message)
    if answer.state == "ProcessSucceeded":
        return Standing("without a report")
    if answer.state == "ProcessStarted":
        percent = answer.progress.rstrip("% ")
        return Standing("running", f"{percent}%" if percent else "")
    if answer.state in ("ProcessAccepted", "ProcessPaused", ""):
        return Standing("waiting")
    return Standing("in an unknown state", answer.state)


def standing_of_error(err: PepsError, known: Standing) -> Standing:
    """What is known of a job that cannot be read or asked: what the disk knew of it."""
    kinds = {
        NotYet: "without an answer",
        UsageError: "without a usable log",
        Gone: "gone",
        OrderInDoubt: "in doubt",
    }
    states = [kinds[kind] for kind in kinds if isinstance(err, kind)]
    return known._replace(state=[*states, "refused"][0], words=str(err), error=err)


class Acquisition(NamedTuple):
    """What ties an L1C product to its L2A product.

    `time` is UTC, of the data take or of the tile, which is minutes later.
    """

    platform: str
    tile: str
    time: datetime


def acquisition(name: str, tile: str = "", start: str = "") -> Acquisition | None:
    """The acquisition of an L1C or L2A product.

    `tile` and `start` (ISO 8601) are for names that say neither. Forms of names:
    `S2A_MSIL1C_20170704T105621_N0205_R051_T31TCJ_...`; until 2016
    `S2A_OPER_PRD_MSIL1C_PDMC_..._V20160712T105032_...`, without a tile;
    `SENTINEL2A_20170704-105605-456_L2A_T31TCJ_D_V1-4`.
    """
    platform = re.match(r"(?:SENTINEL|S)(2[A-Z])_", name)
    marks = r"(?:MSIL1C_|_V|SENTINEL2[A-Z]_)([0-9]{8})[T-]([0-9]{6})"
    digits = re.search(marks, name)
    taken = "".join(digits.groups()) if digits else re.sub("[^0-9]", "", start[:19])
    square = re.search(r"_T([0-9]{2}[A-Z]{3})(?=[_.]|$)", name)
    square = square or re.fullmatch(r"T?([0-9]{2}[A-Z]{3})", tile)
    with contextlib.suppress(ValueError):
        moment = datetime.strptime(taken, "%Y%m%d%H%M%S")
        if platform and square:
            return Acquisition(f"S{platform[1]}", square[1], moment)
    return None


def read_expected(path: Path) -> list[Acquisition | None]:
    """The acquisitions of a saved catalogue answer, None for what does not tell it.

    Raises UsageError.
    """
    advice = "give the list of full_maja_process --json"
    try:
        with named_file(path, advice):
            features, _ = common.parse_page(path.read_bytes())
    except Unreadable as err:
        raise UsageError(f"{path} is {err}; {advice}") from err
    found = [one for one in map(L1C.from_feature, features) if one]
    return [acquisition(one.name, one.tile, one.start) for one in found]


def missing_acquisitions(
    expected: Iterable[Acquisition], results: Iterable[str]
) -> list[Acquisition]:
    """The expected acquisitions with neither a product nor a too cloudy one.

    `results` are names. They are of one acquisition if platform and tile are the same
    and their times at most an hour apart.
    """
    there = [one for one in map(acquisition, results) if one]

    def is_missing(one: Acquisition) -> bool:
        near = [seen.time for seen in there if seen[:2] == one[:2]]
        return all(abs((one.time - time).total_seconds()) > 3600 for time in near)

    return sorted(filter(is_missing, set(expected)), key=lambda one: one.time)


class NotAProduct(PepsError):
    """A page, nothing or a damaged zip came in a product's place."""


class Product:
    """A result to be fetched, and what one look knows of it."""

    def __init__(self, url: str, path: Path):
        self.url, self.path = url, path
        self.is_zip = path.suffix == ".zip"
        self.size = 0  # in bytes; 0 where the server does not tell
        self.there = False
        self.error: PepsError | None = None

    @property
    def too_cloudy(self) -> bool:
        """Whether it is a single product that the service has not, as it is cloudy."""
        return "NOVALD" in self.path.name and isinstance(self.error, Gone)

    @property
    def status(self) -> Status:
        if self.there or self.too_cloudy:
            return Status.OK
        return self.error.status if self.error else Status.NOT_YET

    @property
    def held(self) -> int:
        """The bytes that are on disk, under either name."""
        for file in (part_path(self.path), self.path):
            with contextlib.suppress(OSError):
                return file.stat().st_size
        return 0

    @property
    def rest(self) -> int:
        """The bytes that are still to come, as far as the server tells."""
        return max(0, self.size - self.held)


def product_name(url: str) -> str:
    """The file name of a result, which can harm nothing; raises PepsError.

    It is one visible path component, and nothing that Python would import.
    """
    name = unquote(urlsplit(http_url(url)).path.rpartition("/")[2])
    loaded = re.search(r"\.(part|py[cdow]?|pth|so|dll)$", name, re.IGNORECASE)
    if loaded or not common.is_file_name(name):
        raise PepsError(
            f"the result '{one_line(url)}' is refused: no address of a plain file name"
        )
    return name


def require_not_here(url: str, document_url: str) -> None:
    """Raise PepsError if a document of a service elsewhere names this machine."""
    if is_loopback(host_in(url)) and not is_loopback(host_in(document_url)):
        raise PepsError(
            f"{host_of(document_url)} names {host_of(url)}, which is your machine: its "
            "operator must mend its set-up"
        )


def part_path(path: Path) -> Path:
    """Where a product grows."""
    return path.with_name(f"{path.name}.part")


@contextlib.contextmanager
def part_file(path: Path) -> Iterator[BinaryIO]:
    """Open `<path>.part` to append to it, locked for this process however it ends.

    An empty one is removed. Raises NotYet if another run has it, OSError.
    """
    part = part_path(path)
    require_plain(part)
    if part.is_symlink():
        raise OSError(errno.ELOOP, "is a link, which is not followed", str(part))
    with open(part, "ab", buffering=0) as file:
        # The other run may have renamed it while this one was opening it.
        if not lock(file) or not is_same(file, part):
            raise NotYet(f"another run is at work in {path.parent}")
        try:
            yield file
        finally:
            with contextlib.suppress(OSError, ValueError):
                if size_of(file) == 0:
                    part.unlink()


def lock(file: BinaryIO) -> bool:
    """Lock an open file for this process; False if another one has it."""
    try:
        if sys.platform == "win32":
            raise OSError("there are no such locks")
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        folder = Path(file.name).parent
        console.warn(f"{folder} is on a disk without locks; let no two runs work there")
    return True


def is_same(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still stands under this name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def size_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def free_space(folder: Path) -> float:
    """The free bytes of a folder's disk; without end where it does not tell."""
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(folder)
        if usage.total:
            return usage.free
    return float("inf")


def is_there(product: Product, every_byte: bool) -> bool:
    """Whether a product is on disk: whole, or unpacked and its zip removed.

    What is no zip need only be there. Raises OSError, also for what is no plain file.
    """
    require_plain(product.path)
    if not product.path.exists():
        return product.is_zip and product.path.with_suffix("").is_dir()
    return not product.is_zip or zip_problem(product.path, every_byte) is None


def zip_problem(path: Path, every_byte: bool) -> str | None:
    """What is wrong with a zip, None if nothing; `every_byte` compares the CRCs, too.

    Raises OSError: what the system does not let us read is no damage.
    """
    import zipfile

    with open(path, "rb") as file:
        begins = 4 if file.read(8).startswith(MARKED_HEADS) else 0
        try:
            with zipfile.ZipFile(file) as archive:
                # Python looks for the members from the end, so that bytes that are
                # missing between move the first one.
                offsets = [member.header_offset for member in archive.infolist()]
                if min(offsets, default=-1) != begins:
                    return "its directory does not fit it"
                damaged = archive.testzip() if every_byte else None
                return f"{one_line(damaged)} is damaged" if damaged else None
        except OSError as err:
            if err.errno not in (None, errno.EINVAL):  # a seek to nowhere is damage
                raise
            return one_line(err)
        except Exception as err:  # each compression has errors of its own
            return one_line(err) or type(err).__name__


def body_span(code: int, headers: Any, offset: int) -> tuple[int, int | None] | None:
    """Where an answer's body begins and how long the product is, in bytes.

    None where it is not what was asked for: the product from `offset` on.
    """
    if code == 200:
        length = re.fullmatch("[0-9]{1,18}", headers.get("Content-Length", ""))
        return 0, int(length[0]) if length else None
    pattern = r"bytes (?:([0-9]{1,18})-[0-9]+|\*)/([0-9]{1,18}|\*)"
    found = re.fullmatch(pattern, headers.get("Content-Range", ""))
    if not found or code not in (206, 416):
        return None
    total = None if found[2] == "*" else int(found[2])
    first = total if code == 416 else int(found[1] or -1)
    # 416 with this total: nothing is left to come (RFC 9110, 15.5.17).
    return (offset, total) if first == offset else None


def append(service: Service, product: Product, part: BinaryIO, offset: int) -> None:
    """Ask for a product from a byte on, and write what comes to its place in the part.

    A server that does not give that is asked for all of it. Raises CutOff if it is not
    whole then, NotAProduct, PepsError.
    """
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    with service.open(service.products, product.url, **headers) as response:
        span = body_span(response.status_code, response.headers, offset)
        if span:
            start, total = span
            if response.status_code != 416:
                take(service, response, product, part, start)
            if total not in (None, size_of(part)):
                raise CutOff(f"{host_of(response.url)} breaks off")
            return
        if not offset:
            document = read_body(response, common.DOCUMENT_MAX_BYTES, bytearray())
            raise service.refusal(response, "product", document)
    append(service, product, part, 0)


def take(
    service: Service, response: Response, product: Product, part: BinaryIO, start: int
) -> None:
    """Write a body to its place in the part; raises CutOff, NotAProduct, PepsError."""
    body = common.chunks(response, response.raw.read)
    head = next(body, b"")
    if start == 0:
        if parse_json_error(head):
            raise service.refusal(response, "product", head)
        require_product(response, product, head)
        part.truncate(0)
    flushed = size_of(part)
    for chunk in itertools.chain([head], body):
        write(part, chunk)
        if size_of(part) - flushed >= FLUSH_BYTES:
            flushed = size_of(part)
            start_flush(part)


def require_product(response: Response, product: Product, head: bytes) -> None:
    """Raise NotAProduct if the first bytes of an answer are not those of a product."""
    page = head.lstrip()[:5].lower() in (b"<!doc", b"<html")
    right = bool(head) and (not page or product.path.suffix in (".html", ".htm"))
    if product.is_zip:
        right = head.startswith((ZIP_HEAD, *MARKED_HEADS))
    if right:
        return
    kind = one_line(response.headers.get("Content-Type", "no type"), 60)
    what = f"a page, or something else that is no product ({kind})"
    if head.startswith(b"\x1f\x8b"):
        what = "the product compressed (gzip), which nobody asked for"
    if not head:
        what = "an empty answer"
    raise NotAProduct(f"{host_of(response.url)} sent {what}; tell the service")


def write(file: BinaryIO, chunk: bytes) -> None:
    """Write all of a chunk to an unbuffered file: a nearly full disk takes a part."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def start_flush(file: BinaryIO) -> None:
    """Let the disk begin with what was written, so that little is left for the end."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def receive(
    service: Service, product: Product, part: BinaryIO, every_byte: bool
) -> None:
    """Fill a part file, over as many connections as it takes, and check it.

    What comes in pieces is read through. Raises CutOff after five tries without
    progress, NotAProduct, PepsError.
    """
    furthest, tries, pieces = size_of(part), 0, size_of(part) > 0
    while True:
        try:
            append(service, product, part, size_of(part) if product.is_zip else 0)
            break
        except CutOff:
            tries = 0 if size_of(part) > furthest else tries + 1
            if tries == common.TRIES:
                raise
            furthest, pieces = max(furthest, size_of(part)), True
            time.sleep(common.BACKOFF_S * tries)
    if product.is_zip:
        problem = zip_problem(Path(part.name), every_byte or pieces)
        if problem:
            part.truncate(0)
            host = host_of(product.url)
            raise NotAProduct(
                f"{host} sent a damaged zip ({problem}); tell the service"
            )


def fetch(service: Service, product: Product, every_byte: bool) -> float:
    """Bring a product to its name, whole and checked; returns the seconds it took.

    That is 0 if another run brought it. Raises NotAProduct if it failed twice,
    PepsError, OSError.
    """
    began = time.monotonic()
    with part_file(product.path) as part:
        if is_there(product, every_byte):
            return 0
        try:
            receive(service, product, part, every_byte)
        except NotAProduct:
            receive(service, product, part, every_byte)
        if not product.is_zip and product.path.exists():  # somebody else's by now
            part.truncate(0)
            return 0
        common.make_durable(part)
        if os.name == "nt":  # where an open file cannot be renamed
            part.close()
        os.replace(part.name, product.path)
    return time.monotonic() - began


class Job:
    """A job in one look: its files, and how it stands as far as the look knows.

    `name` is for people, `again` says how to order it again.
    """

    def __init__(
        self, name: str, log: Path, status_file: Path, report_file: Path, again: str
    ):
        self.name, self.log, self.again = name, log, again
        self.status_file, self.report_file = status_file, report_file
        self.answer = WpsAnswer()
        self.known = self.standing = Standing("without an answer")
        self.source = report_file  # of how it stands
        self.products: list[Product] = []
        self.cloudy: list[str] = []  # names
        self.refused: list[PepsError] = []

    @property
    def is_open(self) -> bool:
        """Whether there is something to ask: not if all of a finished job is here."""
        done = bool(self.products) and all(one.there for one in self.products)
        return self.answer.holds_job and not done

    @property
    def has_ended_now(self) -> bool:
        """Whether it has come to an end that the disk did not know."""
        waits = STATES[self.standing.state] == Status.NOT_YET
        return not waits and self.known.state != FINISHED

    @property
    def statuses(self) -> list[Status]:
        """The exit statuses that the job, its results and its products mean."""
        refused = [err.status for err in self.refused]
        products = [product.status for product in self.products]
        return [STATES[self.standing.state], *refused, *products]

    def read(self) -> None:
        """Learn what the disk knows of the job."""
        try:
            self.answer = read_answer(self)
            self.known = read_report(self)
        except PepsError as err:
            self.known = standing_of_error(err, self.known)
        self.standing = self.known


def read_answer(job: Job) -> WpsAnswer:
    """The answer to the order in a job's log; raises UsageError, OrderInDoubt."""
    answer = common.read_log(job.log, job.again)
    if answer is None:
        raise UsageError(
            f"{job.log}: no such file; order first, or name the log with -l (several "
            "with spaces between them)"
        )
    if answer.failed:
        words = f"a refused order ({one_line(answer.message)})"
        raise UsageError(f"{job.log} is {words}; {job.again}")
    if not http_url(answer.status_location, "http://server/") or not answer.holds_job:
        raise UsageError(f"{job.log} names no statusLocation to ask; {job.again}")
    return answer


def read_report(job: Job) -> Standing:
    """A finished report on disk, if it is this job's; else that nothing is known."""
    with contextlib.suppress(OSError, PepsError):
        require_plain(job.report_file)
        report = parse_report(job.report_file.read_bytes())
        if report.state == FINISHED and not has_others_status(job):
            return report
    return Standing("without an answer")


def has_others_status(job: Job) -> bool:
    """Whether the status document beside a log is that of another job."""
    with contextlib.suppress(OSError, PepsError):
        require_plain(job.status_file)
        found = parse_wps(job.status_file.read_bytes()).status_location
        return found not in ("", job.answer.status_location)
    return False


class Asked(NamedTuple):
    """What asking for a job brought: its documents, to be kept, and how it stands.

    `stale` says why the service did not refresh the report, if it did not.
    """

    status_document: bytes
    report: bytes
    standing: Standing
    stale: str = ""


def ask(service: Service, job: Job) -> Asked:
    """Ask the service how a job stands; raises PepsError."""
    location = http_url(job.answer.status_location, f"{service.base}/")
    try:
        document, found = service.read(location, "status document", parse_wps)
    except Gone as err:
        if time.time() - job.log.stat().st_mtime < YOUNG_S:
            raise NotYet(f"{err}, yet") from err
        raise Gone(f"{err}: it keeps no job for ever; {job.again}") from err
    if found.failed and found.code == 503:
        raise NotYet(f"{host_of(location)} is busy: {one_line(found.message)}")
    if found.failed:
        return Asked(document, b"", standing_of(found))
    stale = refresh(service, location, job.answer.job_id)
    if not found.report_url:  # the service may name it only now
        document, found = service.read(location, "status document", parse_wps)
    if not found.report_url:
        return Asked(document, b"", standing_of(found), stale)
    try:
        report, standing = read_linked(service, found.report_url, location)
    except PepsError as err:
        return Asked(document, b"", standing_of_error(err, job.known), stale)
    return Asked(document, report, standing, stale)


def read_linked(service: Service, link: str, location: str) -> tuple[bytes, Standing]:
    """The report that a status document names; raises PepsError."""
    url = http_url(link, location)
    if not url:
        raise PepsError(f"its report's address '{one_line(link)}' is refused")
    require_not_here(url, location)
    try:
        return service.read(url, "report", parse_report)
    except Gone as err:
        raise NotYet(f"{err}, yet") from err


def refresh(service: Service, location: str, job_id: str) -> str:
    """Ask the service to bring a job's report up to date, a wish; why it did not.

    A server of another domain than the job's does not know it, and is not asked.
    """
    if not common.is_of_domain(location, service.base):
        return ""
    flags = "status=false&storeExecuteResponse=false"
    inputs: dict[str, object] = {"wps_id": job_id}
    url = common.execute_url(service.base, "PROCESSING_STATUS", inputs, flags)
    try:
        with service.ask(service.wishes, url) as response:
            read_body(response, common.DOCUMENT_MAX_BYTES, bytearray())
    except PepsError as err:
        return str(err)
    code = response.status_code
    return "" if code == 200 else f"{host_of(url)} answers {code}"


def keep(job: Job, asked: Asked) -> None:
    """Write a job's documents beside its log; a warning where that cannot be done."""
    try:
        if has_others_status(job):
            job.report_file.unlink(missing_ok=True)
        write_whole(job.status_file, asked.status_document)
        if asked.report:
            write_whole(job.report_file, asked.report)
    except OSError as err:
        console.warn(f"{job.name}: its state cannot be kept: {in_words(err)}")


class Tally:
    """What a run remembers from look to look: what was brought, and what was said."""

    def __init__(self) -> None:
        self.brought: dict[Path, int] = {}  # bytes of each product downloaded
        self.seconds = 0.0
        self.read_through: set[Path] = set()
        self.damaged: set[Path] = set()
        self.told: dict[str, str] = {}

    def is_new(self, name: str, words: str) -> bool:
        """Whether something else was told last of this; from now on it was told."""
        before = self.told.get(name)
        self.told[name] = words
        return before != words


class Look:
    """One look at all jobs: at the disk, at the service, and the downloads.

    `args` are the options of a download script; `single` is whether the jobs are of
    single products, whose NOVALD zips are fetched where the service has them.
    """

    def __init__(self, jobs: list[Job], args: Any, tally: Tally, single: bool):
        self.jobs, self.args, self.tally, self.single = jobs, args, tally, single
        self.products: dict[Path, Product] = {}  # of all jobs, each once

    def run(self, token: str) -> None:
        for job in self.jobs:
            job.read()
        self.take_results()
        jobs = [job for job in self.jobs if job.is_open]
        if not jobs:
            self.tell()
            return
        service = Service(self.args.server, token)
        self.ask(service, jobs)
        self.take_results()
        products = self.missing()
        self.measure(service, products)
        self.tell()
        if self.args.dry_run:
            for product in products:
                console.say(f"to fetch: {product.path.name}")
        else:
            self.fetch(service, products)

    def take_results(self) -> None:
        """Sort what the jobs brought, and find out what is on disk."""
        # Of two jobs that name one product the first one's address counts.
        for job in reversed(self.jobs):
            job.products, job.cloudy, job.refused = [], [], []
            for url in job.standing.results:
                try:
                    self.take_result(job, url)
                except PepsError as err:
                    job.refused.append(err)
        self.look_on_disk()

    def take_result(self, job: Job, url: str) -> None:
        """Sort one result of a job; raises PepsError for one that is refused."""
        name = product_name(url)
        require_not_here(url, job.answer.status_location)
        if "NOVALD" in name and not self.single:
            job.cloudy.append(name)
            return
        path = self.args.write_dir / name
        product = self.products.setdefault(path, Product(url, path))
        if product in job.products:
            raise PepsError(
                f"the result '{one_line(url)}' is refused: another one has that name"
            )
        product.url = url
        job.products.append(product)

    def missing(self) -> list[Product]:
        """What is to be fetched of the jobs that have finished, each once."""
        finished = [job for job in self.jobs if job.standing.state == FINISHED]
        found = dict.fromkeys(one for job in finished for one in job.products)
        return [one for one in found if one.status == Status.NOT_YET]

    def look_on_disk(self) -> None:
        """Find out which products are there, also those that another run was at."""
        read_through, check = self.tally.read_through, self.args.check

        def work(product: Product) -> bool:
            return is_there(product, check and product.path not in read_through)

        todo = [one for one in self.products.values() if one.status == Status.NOT_YET]
        for product, there in in_threads(work, todo, self.args.jobs):
            if isinstance(there, PepsError):
                product.error = there
                continue
            product.there = there
            if check and product.is_zip and product.path.is_file():
                read_through.add(product.path)
                if not there:
                    self.tally.damaged.add(product.path)

    def ask(self, service: Service, jobs: list[Job]) -> None:
        """Ask how jobs stand, and keep what the service says."""
        work = partial(ask, service)
        for job in jobs:
            place = http_url(job.answer.status_location, f"{service.base}/")
            if not common.is_of_domain(place, service.base):
                words = (
                    f"its job is at {host_of(place)}, not at {host_of(service.base)}"
                )
                remedy = "name its own server with --server"
                console.warn(f"{job.name}: {words}; {remedy}", also_quiet=True)
        for job, asked in in_threads(work, jobs, ASK_AT_ONCE, common.PATIENCE_S):
            if isinstance(asked, PepsError):
                job.standing = standing_of_error(asked, job.known)
                continue
            keep(job, asked)
            job.standing = asked.standing
            job.source = job.report_file if asked.report else job.status_file
            if asked.stale and job.standing.state != FINISHED:
                words = f"its report was not refreshed, and may be old: {asked.stale}"
                console.warn(f"{job.name}: {words}", also_quiet=True)

    def measure(self, service: Service, products: list[Product]) -> None:
        """Ask for the sizes of products, a wish; the first in vain is the last."""

        def work(product: Product) -> int | None:
            with service.ask(service.wishes, product.url, "HEAD") as response:
                span = body_span(response.status_code, response.headers, 0)
            return span[1] if span else None

        jobs = self.args.jobs
        for product, size in in_threads(work, products, jobs, SIZE_PATIENCE_S):
            if not isinstance(size, int):
                break
            product.size = size

    def tell(self) -> None:
        """Say how jobs stand, as far as that is new."""
        failures = []
        for job in self.jobs:
            state, error, line = job.standing.state, job.standing.error, describe(job)
            if not self.tally.is_new(job.name, line):
                continue
            if state == FINISHED:
                tell_finished(job, line)
            elif error or STATES[state] == Status.FAILED:
                failures.append((job.name, error or PepsError(line)))
            elif state == "in an unknown state":
                console.warn(f"{job.name}: {line}", also_quiet=True)
            else:
                if job.standing.words and self.tally.is_new("", "optimistic"):
                    line = f"{line} (the service's count, which is optimistic)"
                later = f"; {console.later()}" if console.due else ""
                console.say(f"{job.name}: {line}{later}")
        say_failures("job", failures)

    def tell_failures(self) -> None:
        """Say which products cannot be had, as far as that is new."""
        failed = [one for one in self.products.values() if one.status != Status.OK]
        errors = [(one.path.name, one.error) for one in failed if one.error]
        new = [one for one in errors if self.tally.is_new(one[0], str(one[1]))]
        say_failures("product", new)

    def with_room(self, products: list[Product]) -> list[Product]:
        """The products that the disk has room for, the largest first."""
        folder, fitting = self.args.write_dir, []
        free = free_space(folder)
        for product in sorted(products, key=lambda one: one.size or sys.maxsize)[::-1]:
            if product.rest > free:
                product.error = PepsError(
                    f"not enough disk space in {folder}; make room, then run this again"
                )
                continue
            free -= product.rest
            fitting.append(product)
        return fitting

    def fetch(self, service: Service, products: list[Product]) -> None:
        """Download products side by side, and say what becomes of them."""
        products = self.with_room(products)
        self.tell_failures()
        work = partial(fetch, service, every_byte=self.args.check)
        show = partial(show_progress, products)
        began, before, number = time.monotonic(), self.tally.seconds, 0
        with progress_bar(products):
            for product, took in in_threads(work, products, self.args.jobs, tick=show):
                self.tally.seconds = before + time.monotonic() - began
                if isinstance(took, PepsError):
                    product.error = took
                    continue
                number += 1
                product.there = True
                if took:
                    self.tally.brought[product.path] = product.held
                    say_product(product, took, f"[{number}/{len(products)}]")
                show()
        self.look_on_disk()
        self.tell_failures()


def say_product(product: Product, seconds: float, number: str) -> None:
    """Say that a product has come; the line fits a terminal of 80 columns."""
    words = f"{human(product.held)}, {human(product.held / seconds)}/s"
    line = f"{number} {product.path.name}  {words}"
    console.say(line if len(line) <= 80 else line.replace("  ", " "), news=True)


@contextlib.contextmanager
def progress_bar(products: list[Product]) -> Iterator[None]:
    """Show a bar during the block, if stderr is a terminal and tqdm is installed."""
    with contextlib.ExitStack() as stack:
        if products and not console.quiet and sys.stderr and sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                tqdm.monitor_interval = 0
                sizes = [one.size for one in products]
                total = sum(sizes) if all(sizes) else None
                bar = tqdm(total=total, unit="B", unit_scale=True, smoothing=0)
                console.bar = stack.enter_context(bar)
                stack.callback(setattr, console, "bar", None)
        yield


def show_progress(products: list[Product]) -> None:
    """Bring the bar up to date, if there is one."""
    if console.bar is not None:
        done = sum(one.there for one in products)
        console.bar.set_description_str(f"{done}/{len(products)} products", False)
        console.bar.update(sum(one.held for one in products) - console.bar.n)


def describe(job: Job) -> str:
    """How a job stands, in words."""
    state, words = job.standing.state, one_line(job.standing.words)
    if state == FINISHED:
        return f"finished: {count(job)}"
    if state == "without a report":
        return "a success, as the service says, but it names no report"
    if state == "in an unknown state":
        return f"in the state '{words}', which nobody knows; not finished, it seems"
    if state == "running" and words:
        return f"running, {words}"
    if STATES[state] == Status.FAILED and not job.standing.error:
        return f"{state}: {words or 'the service says no more'} (see {job.source})"
    return f"{state}: {words}" if words else state


def count(job: Job) -> str:
    """What a finished job brings, no zero among the numbers."""
    there = sum(one.there for one in job.products)
    fetch = [one for one in job.products if one.status == Status.NOT_YET]
    failed = len(job.products) - there - len(fetch)
    rest = f", {human(sum(one.rest for one in fetch))}"
    to_fetch = f"to fetch{rest if all(one.size for one in fetch) else ''}"
    parts = [(there, "on disk"), (len(fetch), to_fetch), (failed, "not to be had")]
    where = ", ".join(f"{number} {words}" for number, words in parts if number)
    if there == len(job.products):
        where = "all on disk"
    counts = [(len(job.products), f"({where})"), (len(job.cloudy), "too cloudy")]
    return sums("product", counts, job.standing.unprocessed) or "no products"


def tell_finished(job: Job, line: str) -> None:
    """Say what a finished job brings; the details in the run that learns of them."""
    news = job.known.state != FINISHED
    console.say(f"{job.name}: {line}", news=news)
    for err in job.refused:
        console.error(err, job.name)
    cloudy = [one.time for one in map(acquisition, job.cloudy) if one]
    if news and cloudy:
        days = ", ".join(f"{time:%Y-%m-%d}" for time in sorted(cloudy))
        console.say(f"{job.name}: too cloudy: {days}")
    if news and job.standing.unprocessed:
        lost = plural(job.standing.unprocessed, "date")
        names = ", ".join(map(one_line, job.standing.lost))
        find = (
            "to find out which, save the list with full_maja_process -n --json LIST "
            "and compare it here with --json LIST"
        )
        console.warn(f"{job.name}: {lost} lost by the service: {names or find}")


def lost_dates(look: Look, listed: list[Acquisition | None]) -> int:
    """How many dates brought nothing; those that a list shows are named."""
    lost = sum(job.standing.unprocessed for job in look.jobs)
    if not listed or any(job.standing.state != FINISHED for job in look.jobs):
        return lost
    results = [url for job in look.jobs for url in job.standing.results]
    names = [unquote(re.split("[?#]", url)[0].rpartition("/")[2]) for url in results]
    missing = missing_acquisitions(filter(None, listed), names)
    for platform, tile, moment in missing:
        console.warn(f"no result for {platform} of {moment:%Y-%m-%d}, tile {tile}")
    if None in listed:
        entries = plural(listed.count(None), "product")
        console.warn(f"{entries} of the list cannot be compared: no tile is told")
    return max(lost, len(missing))


def last_line(look: Look, dates: int) -> str:
    """What a run comes to, in one line: jobs, and what became of the products."""
    brought, products = look.tally.brought, list(look.products.values())
    jobs = Counter(job.standing.state for job in look.jobs)
    ends = Counter(one.status for one in products)
    cloudy = [one for job in look.jobs for one in job.cloudy]
    cloudy += [one.path.name for one in products if one.too_cloudy]
    refused = sum(len(job.refused) for job in look.jobs)
    there = sum(one.there for one in products)
    size, took = human(sum(brought.values())), duration(look.tally.seconds)
    left = "to fetch" if look.args.dry_run else "left for the next run"
    open_ = [(ends[Status.NOT_YET], left)]
    open_.append((ends[Status.FAILED] + refused, "not fetched"))
    done = [
        (len(brought), f"downloaded ({size} in {took})"),
        (there - len(brought), "on disk before"),
        (len(cloudy), "too cloudy"),
    ]
    first = [sums("job", [(jobs[state], state) for state in jobs])]
    first.append(sums("product", open_))
    second = sums("product", done, dates)
    where = f" {second}, in {look.args.write_dir.resolve()}" if second else ""
    return f"{', '.join(filter(None, first))}.{where}"


def say_end(look: Look, listed: list[Acquisition | None]) -> None:
    """Say what --check did, and the last line, which sums the run up."""
    tally = look.tally
    if tally.read_through:
        damaged = f"{len(tally.damaged)} damaged" if tally.damaged else "none damaged"
        if tally.damaged and tally.damaged <= set(tally.brought):
            damaged += ", fetched again"
        words = f"--check: {len(tally.read_through)} read, {damaged}"
        console.say(words, news=bool(tally.brought))
    ended = any(job.has_ended_now for job in look.jobs)
    console.say(last_line(look, lost_dates(look, listed)), bool(tally.brought) or ended)


def follow_up(
    find_jobs: Callable[[], list[Job]],
    args: Any,
    single: bool = False,
    listed: list[Acquisition | None] | None = None,
) -> Status:
    """Look at jobs once, or until all have ended; the last line comes in any case."""
    token = common.read_account(args.auth)
    if not args.dry_run:
        common.make_folder(args.write_dir)
    wait_s = args.interval * 60 if args.wait and not args.dry_run else 0
    tally, stopped = Tally(), Status.OK
    look = Look(find_jobs(), args, tally, single)
    try:
        while True:
            began = time.monotonic()
            console.due = time.time() + wait_s if wait_s else None
            look.run(token)
            statuses = [status for job in look.jobs for status in job.statuses]
            if not wait_s or Status.NOT_YET not in statuses:
                break
            time.sleep(max(0, began + wait_s - time.monotonic()))
            look = Look(find_jobs(), args, tally, single)
    except KeyboardInterrupt as err:
        stopped = console.error(common.Interrupted(err))
    say_end(look, listed or [])
    statuses = [status for job in look.jobs for status in job.statuses]
    return common.worst([stopped, *statuses])


def add_download_options(parser: common.Parser) -> None:
    """The options that the two download scripts share."""
    add = parser.add_argument
    folder = "folder for the products (default: .)"
    add("-w", "--write_dir", metavar="DIR", type=Path, default=Path(), help=folder)
    number = common.number_between(int, 1, 1000, "a number from 1 to 1000")
    jobs = "downloads at once (default: 4)"
    add("-j", "--jobs", metavar="N", type=number, default=4, help=jobs)
    add("--wait", action="store_true", help="stay until every job has ended")
    minutes = common.number_between(float, 0.001, 10**6, "a number of minutes above 0")
    wait = "with --wait: between two looks (default: 10)"
    add("--interval", metavar="MINUTES", type=minutes, default=10.0, help=wait)
    check = "read products on disk through, and replace damaged ones"
    add("--check", action="store_true", help=check)
    only = "ask how the jobs stand, and only say what would be downloaded"
    names = ("-n", "--no_download", "--dry-run")
    add(*names, dest="dry_run", action="store_true", help=only)


def build_parser() -> common.Parser:
    parser = common.Parser(
        "full_maja_download",
        "Ask how FULL_MAJA jobs stand, and download the products of those that are\n"
        "finished. What is on disk is not fetched again.",
        "-a peps.txt -l 31TCJ.log -w 31TCJ",
        "-a peps.txt -l logs/*.log -w products --wait",
        "-q -a peps.txt -l 31TCJ.log -w 31TCJ",
    )
    logs = "logs of full_maja_process (default: Full_Maja.log)"
    add = partial(parser.add_argument, metavar="FILE", type=Path)
    add("-l", "--log", nargs="+", action="extend", help=logs)
    add_download_options(parser)
    listed = "list of full_maja_process --json: name the acquisitions without a result"
    add("--json", help=listed)
    parser.other_letter("-p", "-l")
    parser.other_letter("word", "-l", nargs="*")
    return parser


def make_job(log: Path) -> Job:
    again = f"order again: full_maja_process ... -l {log} --force"
    return Job(str(log), log, beside(log, ".stat"), beside(log, ".json"), again)


def run(args: Any) -> Status:
    named = args.log or [Path("Full_Maja.log")]
    logs = list({os.path.abspath(log): log for log in named}.values())
    common.check_files(args.json, *(beside(log, ".json") for log in logs))
    listed = read_expected(args.json) if args.json else []
    return follow_up(lambda: [make_job(log) for log in logs], args, listed=listed)


def main(argv: list[str] | None = None) -> int:
    return common.run_script(build_parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
