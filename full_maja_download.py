#!/usr/bin/env python
"""Ask how FULL_MAJA jobs stand and download the products of those that are finished.

From top to bottom: words, reports (pure parsing), acquisitions, how a product is
fetched, a job and what is asked of it, the follow-up of all jobs, the command line.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import peps_common as common
from peps_common import (
    L1C,
    CutOff,
    GivenUp,
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
    by_reason,
    console,
    host_in,
    host_of,
    http_url,
    in_threads,
    is_loopback,
    is_of_domain,
    named_file,
    one_line,
    parse_wps,
    plural,
    read_body,
    read_plain,
    require_plain,
    write_whole,
)

if TYPE_CHECKING:
    from requests import Response

ASK_AT_ONCE = 8
SIZE_PATIENCE_S = 10
REFRESH_PATIENCE_S = 60
YOUNG_S = 3600  # the age of a log until which a missing status document is "not yet"
CHUNK_BYTES = 2**18
FLUSH_BYTES = 2**24
BLOCK_BYTES = 4096  # less free space than that is a full disk
REFUSES_RANGE = (206, 400, 403, 412, 416, 501)  # 206: of another range
ZIP_HEAD = b"PK\3\4"
MARKED_HEADS = (b"PK\7\x08PK\3\4", b"PK00PK\3\4")  # behind a spanning marker
FINISHED = "finished"
UNKNOWN = "in an unknown state"
GONE = "gone"
NO_ANSWER = "without news"


def human(size: float) -> str:
    """A number of bytes in three digits at most: 612 MB, 1.2 GB."""
    units = ["GB", "MB", "kB", "B"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop()
    digits = 1 if size < 99.95 and units[-1] != "B" else 0
    return f"{size:.{digits}f} {units[-1]}"


def duration(seconds: float) -> str:
    """A time for people: 0.4 s, 41 s, 41 min."""
    if seconds < 9.95:
        return f"{max(seconds, 0.1):.1f} s"
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{seconds / 60:.0f} min"


def sums(noun: str, counts: Iterable[tuple[int, str]], dates: int = 0) -> str:
    """Counts with the words behind them, no zeros: 2 jobs finished, 1 waiting.

    The first has the noun, if there is one; `dates` are those that were lost.
    """
    parts: list[str] = []
    for count, words in counts:
        things = plural(count, noun) if noun and not parts else str(count)
        if count:
            parts.append(f"{things} {words}")
    if dates:
        parts.append(f"{plural(dates, 'date')} lost")
    return ", ".join(parts)


class Standing(NamedTuple):
    """How a job stands, by its report or status document, or why nobody knows.

    `words` are its progress, or a state that nobody knows; `results` are URLs; `lost`
    are the names of `unprocessed` dates, as far as they are told; `error` is what it
    failed of, or why it cannot be asked.
    """

    state: str
    words: str = ""
    results: tuple[str, ...] = ()
    unprocessed: int = 0
    lost: tuple[str, ...] = ()
    error: PepsError | None = None

    @property
    def status(self) -> Status:
        if self.error:
            return self.error.status
        return Status.OK if self.state == FINISHED else Status.NOT_YET


# What the service calls the states, in a report and in a status document.
SERVICE_WORDS = {
    "PENDING": "waiting",
    "STALLED": "running",
    "FINISHED": FINISHED,
    "ERROR": "failed",
    "CANCELED": "canceled",
    "": "waiting",  # a status document without a Status
    "ProcessAccepted": "waiting",
    "ProcessPaused": "waiting",
    "ProcessStarted": "running",
    "ProcessSucceeded": "done without a report",
    "ProcessFailed": "failed",
    "ExceptionReport": "failed",
}


def standing_by(word: str, percent: str, message: object, source: Path) -> Standing:
    """How a job stands by the service's word for it, its progress and its message.

    `source` is the file that has all of the service's words.
    """
    state = SERVICE_WORDS.get(word, UNKNOWN)
    if state in ("failed", "canceled"):
        said = one_line(message or "the service says no more")
        return Standing(state, error=PepsError(f"{state}: {said} (see {source})"))
    if state == UNKNOWN:
        return Standing(state, f"{word} (see {source})")
    return Standing(state, f"{percent}%" if percent and state == "running" else "")


def parse_report(document: bytes, source: Path) -> Standing:
    """Read a job's JSON report, kept in a file: of a time series or a single product.

    The latter's state, percentage and .zip URLs may stand anywhere, so they are looked
    for in the text. Raises Unreadable.
    """
    whole = common.parse_json(document)
    if not isinstance(whole, dict):
        raise Unreadable("a JSON document that is no report")
    info = as_dict(whole.get("USER_INFO"))
    text = common.as_text(document).replace(r"\/", "/")
    loose = re.search('"(PENDING|STALLED|FINISHED|ERROR|CANCELED)"(?!\\s*:)', text)
    word = info.get("job_status") or (loose[1] if loose else "none is told")
    percent = re.search(r'"(?:process|percentCompleted)"\s*:\s*"?([0-9]{1,3})', text)
    done = percent[1] if percent else ""
    standing = standing_by(str(word), done, info.get("message"), source)
    if standing.state != FINISHED:  # what it names by then is no result
        return standing
    urls = info.get("results")
    if urls is None:
        urls = re.findall(r'"(https?://[^"\s]+\.zip)"', text)
    elif not isinstance(urls, list):
        urls = [urls]
    results = tuple(dict.fromkeys(str(url).strip() for url in urls if url))
    unprocessed, lost = parse_unprocessed(info.get("unprocessed"))
    return standing._replace(results=results, unprocessed=unprocessed, lost=lost)


def parse_unprocessed(value: object) -> tuple[int, tuple[str, ...]]:
    """How many dates were lost, and the names of those that the report names."""
    if isinstance(value, list):
        return len(value), tuple(map(str, value))
    number = re.match("[0-9]{1,6}", str(value).strip())
    return int(number[0]) if number else 0, ()


def standing_of_error(err: PepsError, on_disk: Standing) -> Standing:
    """How a job stands that cannot be read or asked; its results are the disk's."""
    states = {
        Status.NOT_YET: NO_ANSWER,
        Status.USAGE: "without a usable log",
        Status.FAILED: "refused",
    }
    state = states[err.status]
    if isinstance(err, Gone):
        state = GONE
    if isinstance(err, OrderInDoubt):
        state = "in doubt"
    return on_disk._replace(state=state, error=err)


class Acquisition(NamedTuple):
    """What ties an L1C product to its L2A product.

    `time` is UTC, of the data take or of the tile, which is minutes later.
    """

    platform: str
    tile: str
    time: datetime

    def is_near(self, other: Acquisition) -> bool:
        """Whether both are one: by one platform, of one tile, within an hour."""
        near = abs(self.time - other.time) <= timedelta(hours=1)
        return near and self[:2] == other[:2]


# The names' forms: `S2A_MSIL1C_20170704T105621_N0205_R051_T31TCJ_...`; until 2016
# `S2A_OPER_PRD_MSIL1C_PDMC_..._V20160712T105032_...`, without a tile;
# `SENTINEL2A_20170704-105605-456_L2A_T31TCJ_D_V1-4`.
NAME = re.compile(
    r"S(?:ENTINEL)?(2[A-Z])_(?:MSIL1C_|OPER_\w+_V)?([0-9]{8})[T-]([0-9]{6})"
    r"(?:\S*_T([0-9]{2}[A-Z]{3})(?![A-Z0-9]))?"
)


def acquisition(text: str, tile: str = "") -> Acquisition | None:
    """The acquisition of the L1C or L2A product that a name or a URL names.

    `tile` is for names that say none.
    """
    found = NAME.search(text)
    with contextlib.suppress(ValueError):
        if found and (found[4] or tile):
            time_taken = datetime.strptime(found[2] + found[3], "%Y%m%d%H%M%S")
            return Acquisition(f"S{found[1]}", found[4] or tile[-5:], time_taken)
    return None


def read_expected(path: Path) -> list[Acquisition]:
    """The acquisitions of a saved catalogue answer; raises UsageError."""
    advice = "give the list of full_maja_process --json"
    try:
        with named_file(path, advice):
            require_plain(path)
            features, _ = common.parse_page(path.read_bytes())
    except Unreadable as err:
        raise UsageError(f"{path} is {err}; {advice}") from err
    products = [one for one in map(L1C.from_feature, features) if one]
    listed = [acquisition(one.name, one.tile) for one in products]
    if None in listed:
        entries = plural(listed.count(None), "product")
        console.warn(f"{entries} of the list cannot be compared: no tile is told")
    return sorted({one for one in listed if one})


class NotAProduct(PepsError):
    """A page, nothing or a damaged zip came in a product's place."""


class Damaged(NotAProduct):
    """The zip that came is not whole."""


class Product:
    """A result to be fetched, and what the run knows of it."""

    def __init__(self, url: str, path: Path):
        self.url, self.path = url, path
        self.part = path.with_name(f"{path.name}.part")  # where it grows
        self.is_zip = path.suffix == ".zip"
        self.size = 0  # in bytes; 0 where the server does not tell
        self.there = False
        self.took = 0.0  # seconds to fetch it, 0 if this run did not
        self.damaged: bool | None = None  # None where --check did not read it
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
        """The bytes that are on disk of it, or of its part."""
        with contextlib.suppress(OSError):
            return (self.path if self.there else self.part).stat().st_size
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
    loaded = re.search(r"(?i)\.(part|py[cdow]?|pth|so|dll)$", name)
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


@contextlib.contextmanager
def part_file(part: Path) -> Iterator[BinaryIO]:
    """Open a part to append to it, locked for this process however it ends.

    An empty one is removed. Raises NotYet if another run has it, OSError.
    """
    require_plain(part)
    if part.is_symlink():
        raise OSError(errno.ELOOP, "is a link, which is not followed", str(part))
    with open(part, "ab") as file:
        # The other run may have renamed it while this one was opening it.
        if not lock(file) or not is_same(file, part):
            raise NotYet(f"another run is at work in {part.parent}")
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
            raise OSError
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
    """The bytes of a file; all that was written is handed to the system."""
    return file.seek(0, os.SEEK_END)


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
    return not product.is_zip or not zip_problem(product.path, every_byte)


def zip_problem(path: Path, every_byte: bool) -> str:
    """What is wrong with a zip, nothing if it is whole.

    `every_byte` compares the CRCs, too. Raises OSError: what the system does not let us
    read is no damage.
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
                return f"{one_line(damaged)} is damaged" if damaged else ""
        except Exception as err:  # each compression has errors of its own
            cause = err.__context__ or err  # zipfile has its own words for both
            if isinstance(cause, OSError) and cause.errno not in (None, errno.EINVAL):
                raise cause from err  # EINVAL is a seek to nowhere
            return one_line(err) or type(err).__name__


def download_from(
    service: Service, product: Product, part: BinaryIO, offset: int
) -> None:
    """Ask for a product from a byte on, and write what comes to its place in the part.

    A server that gives no such rest is asked for the whole. Raises CutOff, NotAProduct,
    PepsError.
    """
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    with service.open(service.products, product.url, **headers) as response:
        code, span = response.status_code, response.headers.get("Content-Range", "")
        body = common.chunks(response, partial(response.raw.read, CHUNK_BYTES))
        if code == 200:
            head = next(body, b"")
            require_product(service, response, product, head)
            part.truncate(0)
            part.write(head)
            append_body(part, body)
            return
        if code == 206 and span.startswith(f"bytes {offset}-"):
            append_body(part, body)
            if not span.endswith((f"/{size_of(part)}", "/*")):
                raise CutOff(f"{host_of(response.url)} breaks off before the end")
            return
        if code == 416 and span == f"bytes */{offset}":
            return  # nothing is left to come (RFC 9110, 15.5.17)
        if not offset or code not in REFUSES_RANGE:
            raise service.refusal(response, "product", read_body(response, bytearray()))
    # It gives no rest: once more, for the whole.
    download_from(service, product, part, 0)


def append_body(file: BinaryIO, body: Iterator[bytes]) -> None:
    """Append a body to a file, and let the disk begin with it on the way.

    So little is left for the end. Raises CutOff, OSError.
    """
    flushed = size_of(file)
    for chunk in body:
        file.write(chunk)
        if sys.platform == "linux" and file.tell() - flushed >= FLUSH_BYTES:
            flushed = file.tell()
            with contextlib.suppress(OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def require_product(
    service: Service, response: Response, product: Product, head: bytes
) -> None:
    """Raise PepsError if the first bytes of an answer are not those of a product."""
    if common.parse_json_error(head):
        raise service.refusal(response, "product", head)
    page = head.lstrip()[:5].lower() in (b"<!doc", b"<html")
    right = not page or product.path.suffix in (".html", ".htm")
    if product.is_zip:
        right = head.startswith((ZIP_HEAD, *MARKED_HEADS)) or ZIP_HEAD.startswith(head)
    if head and right:
        return
    kind = one_line(response.headers.get("Content-Type", "no type"), 60)
    what = f"a page, an error or an empty answer ({kind}) instead of a product"
    if head.startswith(b"\x1f\x8b"):
        what = "the product compressed (gzip), which nobody asked for"
    raise NotAProduct(f"{host_of(response.url)} sent {what}; tell the service")


def receive(
    service: Service, product: Product, part: BinaryIO, every_byte: bool
) -> None:
    """Fill a part file, over as many connections as it takes, and check it.

    What comes in pieces is read through. Raises CutOff after five tries without
    progress, NotAProduct, PepsError.
    """
    furthest, tries = size_of(part), 0
    pieces = furthest > 0
    while True:
        try:
            download_from(
                service, product, part, size_of(part) if product.is_zip else 0
            )
            break
        except CutOff:
            tries = 0 if size_of(part) > furthest else tries + 1
            if tries == common.TRIES:
                raise
            furthest, pieces = max(furthest, size_of(part)), True
            time.sleep(common.BACKOFF_S * tries)
    part.flush()
    problem = product.is_zip and zip_problem(product.part, every_byte or pieces)
    if problem:
        part.truncate(0)
        host = host_of(product.url)
        raise Damaged(f"{host} sent a damaged zip ({problem}); tell the service")


def receive_twice(
    service: Service, product: Product, part: BinaryIO, every_byte: bool
) -> None:
    """Receive a product, once more where it is none, and then read it through."""
    try:
        receive(service, product, part, every_byte)
    except NotAProduct:
        receive(service, product, part, True)


def fetch(service: Service, product: Product, every_byte: bool) -> float:
    """Bring a product to its name, whole and checked; returns the seconds it took.

    That is 0 if another run brought it. Raises NotAProduct if it failed twice,
    PepsError, OSError.
    """
    began = time.monotonic()
    if free_space(product.path.parent) < BLOCK_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with part_file(product.part) as part:
        if is_there(product, every_byte):
            return 0
        try:
            receive_twice(service, product, part, every_byte)
        except Damaged:
            # So is what stands under the name, and no later run should believe it.
            product.path.unlink(missing_ok=True)
            raise
        if not product.is_zip and product.path.exists():  # somebody else's by now
            part.truncate(0)
            return 0
        common.make_durable(part)
        if os.name == "nt":  # where an open file cannot be renamed
            part.close()
        os.replace(product.part, product.path)
    return time.monotonic() - began


class Job:
    """A job, its files, and how it stands: on disk, and after it was asked.

    `name` is for people, `again` says how to order it again, `if_missing` what to do
    where there is no log; `products`, `cloudy` and `bad_results` are what became of its
    results.
    """

    def __init__(
        self,
        name: str,
        log: Path,
        status_file: Path,
        report_file: Path,
        again: str,
        if_missing: str,
    ):
        self.name, self.log, self.again = name, log, again
        self.if_missing = if_missing
        self.status_file, self.report_file = status_file, report_file
        self.answer = WpsAnswer()
        self.on_disk = self.standing = Standing(NO_ANSWER)
        self.products: list[Product] = []
        self.cloudy: list[str] = []  # names
        self.bad_results: list[PepsError] = []

    @property
    def needs_asking(self) -> bool:
        """Whether there is something to ask: not if all is here, or the log is none."""
        done = bool(self.products) and all(one.there for one in self.products)
        return not done and not self.standing.error

    @property
    def has_ended_now(self) -> bool:
        """Whether it has come to a good end that the disk did not know."""
        return self.standing.state == FINISHED and self.on_disk.state != FINISHED

    @property
    def to_fetch(self) -> list[Product]:
        """The products that are still to be fetched."""
        return [one for one in self.products if one.status == Status.NOT_YET]

    def read(self, server: str) -> None:
        """Learn what the disk knows of the job; `server` is for a place without one."""
        try:
            self.answer = read_answer(self, server)
            self.on_disk = report_on_disk(self)
        except PepsError as err:
            self.on_disk = standing_of_error(err, self.on_disk)
        self.standing = self.on_disk


def read_answer(job: Job, server: str) -> WpsAnswer:
    """The answer to the order in a job's log; raises UsageError, OrderInDoubt.

    Its statusLocation is a whole URL.
    """
    answer = common.read_log(job.log, job.again)
    if answer is None:
        raise UsageError(job.if_missing)
    if answer.failed:
        reason = one_line(answer.message)
        raise UsageError(f"{job.log} is a refused order ({reason}); {job.again}")
    place = answer.status_location and http_url(answer.status_location, f"{server}/")
    if not place:
        raise UsageError(f"{job.log} names no statusLocation to ask; {job.again}")
    return answer._replace(status_location=place)


def report_on_disk(job: Job) -> Standing:
    """A finished report on disk, if it is this job's; else that nothing is known."""
    with contextlib.suppress(OSError, PepsError):
        document = read_plain(job.report_file) or b""
        report = parse_report(document, job.report_file)
        if report.state == FINISHED and not has_others_status(job):
            return report
    return Standing(NO_ANSWER)


def has_others_status(job: Job) -> bool:
    """Whether the status document beside a log is that of another job."""
    with contextlib.suppress(OSError, PepsError):
        ours = job.answer.status_location
        found = parse_wps(read_plain(job.status_file) or b"").status_location
        # Host and scheme may be spelled in another way than in the log.
        return urlsplit(http_url(found, ours))[2:4] != urlsplit(ours)[2:4]
    return False


class Asked(NamedTuple):
    """How a job stands, and the documents that tell it, by the files to keep them in.

    `stale` says why the service did not refresh the report, if it did not.
    """

    standing: Standing
    documents: dict[Path, bytes]
    stale: str = ""


def ask(service: Service, job: Job) -> Asked:
    """Ask the service how a job stands; raises PepsError."""
    document, answer = ask_status(service, job)
    documents = {job.status_file: document}
    stale = "" if answer.failed else refresh(service, job)
    if not answer.failed and not answer.report_url:  # it may name one only now
        document, answer = ask_status(service, job)
        documents = {job.status_file: document}
    if answer.failed or not answer.report_url:
        percent, source = answer.progress.rstrip("% "), job.status_file
        standing = standing_by(answer.state, percent, answer.message, source)
        return Asked(standing, documents, stale)
    try:
        report, standing = ask_report(service, job, answer.report_url)
        documents[job.report_file] = report
    except PepsError as err:
        standing = standing_of_error(err, job.on_disk)
    return Asked(standing, documents, stale)


def ask_status(service: Service, job: Job) -> tuple[bytes, WpsAnswer]:
    """A job's status document, and what it says; raises PepsError."""
    location = job.answer.status_location
    try:
        document, answer = service.read(location, "status document", parse_wps)
    except Gone as err:
        if time.time() - job.log.stat().st_mtime < YOUNG_S:
            raise NotYet(f"{err}; it may not be there yet") from err
        raise Gone(f"{err}: it keeps no job for ever; {job.again}") from err
    if answer.failed and answer.code == 503:
        raise NotYet(f"{host_of(location)} is busy: {one_line(answer.message)}")
    return document, answer


def ask_report(service: Service, job: Job, link: str) -> tuple[bytes, Standing]:
    """The report that a status document names, and what it says; raises PepsError."""
    url = http_url(link, job.answer.status_location)
    if not url:
        raise PepsError(f"its report's address '{one_line(link)}' is refused")
    require_not_here(url, job.answer.status_location)
    parse = partial(parse_report, source=job.report_file)
    try:
        return service.read(url, "report", parse)
    except Gone as err:
        raise NotYet(f"{err}; it may not be there yet") from err


def refresh(service: Service, job: Job) -> str:
    """Ask the service to bring a job's report up to date, a wish; why it did not.

    A server of another domain than the job's does not know it, and is not asked.
    """
    if not is_of_domain(job.answer.status_location, service.base):
        return ""
    inputs = f"wps_id={quote(job.answer.job_id, safe='')}"
    flags = "status=false&storeExecuteResponse=false"
    url = common.wps_url(service.base, "PROCESSING_STATUS", inputs, flags)

    def ask_once() -> str:
        with service.send(service.wishes, url) as response:
            document = read_body(response, bytearray())
        code, words = common.meaning(response.status_code, document)
        return "" if code == 200 else f"{host_of(url)} answers {code}{words}"

    try:
        return common.patiently(ask_once, host_of(url), REFRESH_PATIENCE_S)
    except PepsError as err:
        return str(err)


def keep(job: Job, documents: dict[Path, bytes]) -> None:
    """Write a job's documents beside its log; a warning where that cannot be done."""
    try:
        if has_others_status(job):
            job.report_file.unlink(missing_ok=True)
        for file, document in documents.items():
            write_whole(file, document)
    except OSError as err:
        place = job.log.parent.resolve()
        console.warn(f"how jobs stand cannot be kept in {place}: {err.strerror}")


def size_at(service: Service, product: Product) -> int:
    """A product's bytes as a HEAD request tells them, else 0; raises PepsError."""
    with service.send(service.wishes, product.url, "HEAD") as response:
        length = response.headers.get("Content-Length", "")
    known = response.status_code == 200 and re.fullmatch("[0-9]{1,15}", length)
    return int(length) if known else 0


class FollowUp:
    """The jobs of a run, and what it remembers of them from look to look.

    `args` are the options of a download script; `single` is whether the jobs are of
    single products, whose NOVALD zips are fetched where the service has them.
    """

    def __init__(self, args: Any, single: bool):
        self.args, self.single = args, single
        self.token = common.read_account(args.auth)
        self.jobs: list[Job] = []
        self.products: dict[Path, Product] = {}  # of all jobs, each once
        self.seconds = 0.0  # of downloading
        self.told: dict[str, str] = {}  # what was said last, by what it was about

    @property
    def statuses(self) -> list[Status]:
        """The exit statuses that the jobs, their results and products mean."""
        refused = [err.status for job in self.jobs for err in job.bad_results]
        products = [one.status for job in self.jobs for one in job.products]
        return [job.standing.status for job in self.jobs] + refused + products

    @cached_property
    def service(self) -> Service:
        """The service, from the first question on."""
        return Service(self.args.server, self.token)

    def look(self, jobs: list[Job]) -> None:
        """Look at the disk and the service once, and fetch what has finished."""
        self.jobs = jobs
        for job in jobs:
            job.read(self.args.server)
        self.sort_results()
        todo = [job for job in jobs if job.needs_asking]
        if not todo:
            self.tell()
            return
        self.service.begin_look()
        self.ask_all(todo)
        self.sort_results()  # once more, of what the service has said
        # What a vanished job has brought may still be there.
        finished = [job for job in jobs if job.standing.state in (FINISHED, GONE)]
        products = list(dict.fromkeys(one for job in finished for one in job.to_fetch))
        self.measure(products)
        self.tell()
        if self.args.dry_run:
            for product in products:
                console.say(f"to fetch: {product.path.name}")
        else:
            self.fetch_all(products)

    def sort_results(self) -> None:
        """Sort what the jobs brought, and find out what is on disk."""
        # Of two jobs that name one product the first one's address counts.
        for job in reversed(self.jobs):
            job.products, job.cloudy, job.bad_results = [], [], []
            for url in job.standing.results:
                try:
                    self.sort_result(job, url)
                except PepsError as err:
                    job.bad_results.append(err)
        self.look_on_disk()

    def sort_result(self, job: Job, url: str) -> None:
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
        if not isinstance(product.error, NotAProduct):  # it would come so again
            product.error = None
        job.products.append(product)

    def look_on_disk(self) -> None:
        """Find out which products are there, also those that another run was at."""
        check = self.args.check
        work = partial(is_there, every_byte=check)
        todo = [one for one in self.products.values() if one.status == Status.NOT_YET]
        for product, there in in_threads(work, todo, self.args.jobs):
            if isinstance(there, PepsError):
                product.error = there
                continue
            product.there = there
            if check and product.is_zip and product.path.is_file():
                product.damaged = not there

    def ask_all(self, jobs: list[Job]) -> None:
        """Ask how jobs stand, and keep what the service says."""
        stale = []
        for job, asked in in_threads(
            partial(ask, self.service), jobs, ASK_AT_ONCE, common.PATIENCE_S
        ):
            place, server = job.answer.status_location, self.args.server
            if not is_of_domain(place, server):
                words = f"the job is at {host_of(place)}, not at {host_of(server)}"
                stale.append((job.name, f"{words}; name its own server with --server"))
            if isinstance(asked, GivenUp):
                asked = GivenUp(f"{host_of(place)}: {asked}")
            if isinstance(asked, PepsError):
                job.standing = standing_of_error(asked, job.on_disk)
                continue
            job.standing = asked.standing
            keep(job, asked.documents)
            if asked.stale and job.standing.state != FINISHED:
                stale.append((job.name, f"the report was not refreshed: {asked.stale}"))
        for who, words in by_reason("job", stale):
            console.warn(f"{who}: {words}", also_quiet=True)

    def measure(self, products: list[Product]) -> None:
        """Ask for the sizes of products, a wish; the first in vain is the last."""
        work, jobs = partial(size_at, self.service), self.args.jobs
        for product, size in in_threads(work, products, jobs, SIZE_PATIENCE_S):
            if isinstance(size, PepsError) or not size:
                break
            product.size = size

    def is_new(self, name: str, words: str) -> bool:
        """Whether something else was told last of this; from now on it was told."""
        before = self.told.get(name)
        self.told[name] = words
        return before != words

    def tell(self) -> None:
        """Say how jobs stand, as far as that is new."""
        failures = []
        for job in self.jobs:
            standing, line = job.standing, describe(job)
            now = f"{standing.state} {standing.words} {standing.error}"
            if not self.is_new(job.name, f"{now} {len(standing.results)}"):
                continue
            if standing.error:
                failures.append((job.name, standing.error))
            elif standing.state == FINISHED:
                tell_finished(job, line)
            elif standing.state == UNKNOWN:
                console.warn(f"{job.name}: {line}", also_quiet=True)
            else:
                if standing.words and self.is_new("percentages", "optimistic"):
                    line += " (the service's count, which is optimistic)"
                later = f"; {console.later()}" if console.due else ""
                console.say(f"{job.name}: {line}{later}")
        for who, err in by_reason("job", failures):
            console.error(err, who)

    def tell_failures(self) -> None:
        """Say which products cannot be had, as far as that is new."""
        failed = [one for one in self.products.values() if one.status != Status.OK]
        errors = [(one.path.name, one.error) for one in failed if one.error]
        new = [one for one in errors if self.is_new(one[0], str(one[1]))]
        for who, err in by_reason("product", new):
            console.error(err, who)

    def fetch_all(self, products: list[Product]) -> None:
        """Download products side by side, and say what becomes of them."""
        products = with_room(products, self.args.write_dir)
        self.tell_failures()
        work = partial(fetch, self.service, every_byte=self.args.check)
        show = partial(show_progress, products)
        began, before = time.monotonic(), self.seconds
        with progress_bar(products) as console.bar:
            for product, took in in_threads(work, products, self.args.jobs, tick=show):
                self.seconds = before + time.monotonic() - began
                if isinstance(took, PepsError):
                    product.error = took
                    continue
                product.there = True
                product.took = took
                if took:
                    number = sum(bool(one.took) for one in products)
                    say_product(product, f"[{number}/{len(products)}]")
                show()
        console.bar = None
        self.look_on_disk()
        self.tell_failures()


def with_room(products: list[Product], folder: Path) -> list[Product]:
    """The products that the disk has room for, the largest first."""
    free, fitting = free_space(folder), []
    words = f"not enough disk space in {folder}; make room, then run this again"
    if not os.access(folder, os.W_OK):
        free, words = -1, f"{folder} cannot be written to; choose another -w"
    for product in sorted(products, key=lambda one: one.size, reverse=True):
        if product.rest > free:
            product.error = PepsError(words)
            continue
        free -= product.rest
        fitting.append(product)
    return fitting


def say_product(product: Product, number: str) -> None:
    """Say that a product has come; the line fits a terminal of 80 columns."""
    line = f"{number} {product.path.name}  {human(product.held)}"
    speed = f", {human(product.held / product.took)}/s"
    if len(line) + len(speed) <= 80:
        line += speed
    console.say(line, news=True)


def progress_bar(products: list[Product]) -> Any:
    """A bar, if stderr is a terminal and tqdm is installed; else a context without."""
    with contextlib.suppress(ImportError):
        if products and not console.quiet and sys.stderr and sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.monitor_interval = 0
            total = sum(one.size for one in products)
            return tqdm(total=total or None, unit="B", unit_scale=True, smoothing=0)
    return contextlib.nullcontext()


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
        return f"{state}: {count(job)}"
    return f"{state}, {words}" if words else state


def count(job: Job) -> str:
    """What a finished job brings, no zero among the numbers."""
    there = sum(one.there for one in job.products)
    to_fetch = "to fetch"
    if all(one.size for one in job.to_fetch):
        to_fetch += f", {human(sum(one.rest for one in job.to_fetch))}"
    where = [
        (there, "on disk"),
        (len(job.to_fetch), to_fetch),
        (len(job.products) - there - len(job.to_fetch), "not to be had"),
    ]
    parts = "all on disk" if there == len(job.products) else sums("", where)
    counts = [(len(job.products), f"({parts})"), (len(job.cloudy), "too cloudy")]
    return sums("product", counts, job.standing.unprocessed) or "no products"


def tell_finished(job: Job, line: str) -> None:
    """Say what a finished job brings; the details in the run that learns of them."""
    news = job.has_ended_now
    console.say(f"{job.name}: {line}", news=news)
    for err in {str(err): err for err in job.bad_results}.values():
        console.error(err, job.name)
    cloudy = [one.time for one in map(acquisition, job.cloudy) if one]
    if news and cloudy:
        days = ", ".join(f"{time:%Y-%m-%d}" for time in sorted(cloudy))
        console.say(f"{job.name}: too cloudy: {days}")
    if news and job.standing.unprocessed:
        lost = plural(job.standing.unprocessed, "date")
        names = ", ".join(map(one_line, job.standing.lost))
        find = (
            "save the list with full_maja_process -n --json, name it here with --json"
        )
        console.warn(f"{job.name}: {lost} lost by the service: {names or find}")


def count_lost_dates(jobs: list[Job], listed: list[Acquisition]) -> int:
    """How many dates brought nothing; those that a list shows are named."""
    lost = sum(job.standing.unprocessed for job in jobs)
    if any(job.standing.state != FINISHED for job in jobs):
        return lost
    results = [acquisition(url) for job in jobs for url in job.standing.results]
    there = [one for one in results if one]
    missing = [one for one in listed if not any(map(one.is_near, there))]
    for platform, tile, moment in missing:
        console.warn(f"no result for {platform} of {moment:%Y-%m-%d}, tile {tile}")
    return max(lost, len(missing))


def say_end(seen: FollowUp, listed: list[Acquisition]) -> None:
    """Say what --check did, and the last line, which sums the run up."""
    products = list(seen.products.values())
    brought = [one for one in products if one.took]
    news = bool(brought) or any(job.has_ended_now for job in seen.jobs)
    read = [one for one in products if one.damaged is not None]
    damaged = [one for one in read if one.damaged]
    left = ", ".join(one.path.name for one in damaged if not one.took)
    again = f": {left}" if left else ", fetched again"
    words = f"{len(damaged)} damaged{again}" if damaged else "none damaged"
    if read:
        console.say(f"--check: {len(read)} read, {words}", news)
    dates = count_lost_dates(seen.jobs, listed)
    console.say(last_line(seen, brought, dates), news)


def last_line(seen: FollowUp, brought: list[Product], dates: int) -> str:
    """What a run comes to, in one line: jobs, and what became of the products."""
    products = list(seen.products.values())
    ends = Counter(one.status for one in products)
    cloudy = sum(one.too_cloudy for one in products)
    bad_results = sum(len(job.bad_results) for job in seen.jobs)
    size, took = human(sum(one.held for one in brought)), duration(seen.seconds)
    states = Counter(job.standing.state for job in seen.jobs)
    jobs = sums("job", [(number, state) for state, number in states.items()])
    to_come = "to fetch" if seen.args.dry_run else "left for the next run"
    left = [
        (ends[Status.NOT_YET], to_come),
        (ends[Status.FAILED] + bad_results, "not fetched"),
    ]
    done = [
        (len(brought), f"downloaded ({size} in {took})"),
        (ends[Status.OK] - cloudy - len(brought), "on disk before"),
        (cloudy + sum(len(job.cloudy) for job in seen.jobs), "too cloudy"),
    ]
    open_ends = ", ".join(filter(None, [jobs, sums("product", left)]))
    ended = sums("product", done, dates)
    where = f" {ended}, in {seen.args.write_dir.resolve()}" if ended else ""
    return f"{open_ends}.{where}"


def follow_up(
    find_jobs: Callable[[], list[Job]],
    args: Any,
    listed: list[Acquisition],
    single: bool,
) -> Status:
    """Look at jobs once, or until all have ended, and sum up, also when interrupted."""
    seen, stopped = FollowUp(args, single), Status.OK
    if not args.dry_run:
        common.make_folder(args.write_dir)
    wait_s = args.interval * 60 if args.wait and not args.dry_run else 0
    try:
        while True:
            began = time.monotonic()
            console.due = wait_s and time.time() + wait_s
            seen.look(find_jobs())
            if not wait_s or Status.NOT_YET not in seen.statuses:
                break
            time.sleep(max(0, began + wait_s - time.monotonic()))
    except KeyboardInterrupt as err:
        stopped = console.error(common.Interrupted(err))
    say_end(seen, listed)
    return common.worst([stopped, *seen.statuses])


def add_download_options(parser: common.Parser) -> None:
    """The options that the two download scripts share."""
    add = parser.add_argument
    parser.add_folder("folder for the products (default: .)")
    add(
        "-j",
        "--jobs",
        metavar="N",
        type=common.number_between(int, 1, 1000, "a number from 1 to 1000"),
        default=4,
        help="downloads at once (default: 4)",
    )
    add("--wait", action="store_true", help="stay until every job has ended")
    add(
        "--interval",
        metavar="MINUTES",
        type=common.number_between(float, 0.001, 10**6, "a number of minutes above 0"),
        default=10.0,
        help="with --wait: between two looks (default: 10)",
    )
    add(
        "--check",
        action="store_true",
        help="read products on disk through, and replace damaged ones",
    )
    parser.add_dry_run("ask how the jobs stand, and only say what would be downloaded")


def build_parser() -> common.Parser:
    parser = common.Parser(
        "Ask how FULL_MAJA jobs stand, and download the products of those that are\n"
        "finished. What is on disk is not fetched again.",
        "  %(prog)s -a peps.txt -l 31TCJ.log -w 31TCJ\n"
        "  %(prog)s -a peps.txt -l logs/*.log -w products --wait\n"
        "  %(prog)s -q -a peps.txt -l 31TCJ.log -w 31TCJ\n",
    )
    add = partial(parser.add_argument, metavar="FILE", type=Path)
    add(
        "-l",
        "--log",
        nargs="+",
        action="extend",
        help="logs of full_maja_process (default: Full_Maja.log)",
    )
    add_download_options(parser)
    add(
        "--json",
        help="list of full_maja_process --json: name the dates without a result",
    )
    parser.other_letter("-p", "-l")
    parser.other_letter("word", "-l", nargs="*", metavar="LOG")
    return parser


def make_job(log: Path) -> Job:
    if_missing = "no such file; order first, or name the log with -l (several with "
    if_missing += "spaces between them)"
    again = f"order again as before, with -l {shlex.quote(str(log))} --force"
    files = log, beside(log, ".stat"), beside(log, ".json")
    return Job(str(log), *files, again, if_missing)


def run(args: Any) -> Status:
    named = args.log or [Path("Full_Maja.log")]
    logs = list({os.path.abspath(log): log for log in named}.values())
    common.check_files(args.json, *(beside(log, ".json") for log in logs))
    listed = read_expected(args.json) if args.json else []
    return follow_up(lambda: [make_job(log) for log in logs], args, listed, False)


def main(argv: list[str] | None = None) -> int:
    return common.run_script(build_parser, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
