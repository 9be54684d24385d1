"""What the four PEPS/MAJA scripts share.

From top to bottom: outcomes and words, the frame of a command line, the account, documents (pure parsing), the network
(`Service`, the only door), part files, and the log with the order that goes into it. Importing it has no effect and
loads little: requests comes in when a `Service` is made, so that `-h` or a typing error answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import stat
import sys
import threading
import time
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, timezone
from enum import IntEnum
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, quote, urljoin, urlsplit

__version__ = "1.1.0"

DEFAULT_SERVER = "https://peps.cnes.fr"
CONNECT_TIMEOUT_S = 15
READ_TIMEOUT_S = 60
PATIENCE_S = 120  # for a document, an order or how one job stands: all tries, and every byte of it
MOMENT_S = 1  # between the two looks that make a 404
TRIES = 5
BACKOFF_S = 0.5  # urllib3 sleeps 0, 1, 2 and 4 s between five tries
SILENT_MAX = 4  # things in a row without an answer, after which a host is out of order
RETRIED = (429, 500, 502, 503, 504)
ASK_AT_ONCE = 16
CHUNK_BYTES = 256 * 1024
DOCUMENT_MAX_BYTES = 2 * 1024 * 1024
PAGE_MAX_BYTES = 16 * 1024 * 1024
MEMORY_MAX_BYTES = 32 * 1024 * 1024  # of the values of one document
CATALOGUE_MAX_BYTES = 160 * 1024 * 1024  # of all pages of a search
PAGE_RECORDS = 500
SCRIPTS = ("full_maja_process", "full_maja_download", "peps_maja_process", "peps_maja_download")
FULL = (errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")


class Status(IntEnum):
    """Exit statuses, the same for all four scripts: first what stops a run, then what a person or time must mend."""

    TERMINATED = 143
    INTERRUPTED = 130
    FAILED = 1
    USAGE = 2
    NOT_YET = 75
    OK = 0


def worst(statuses: Iterable[Status]) -> Status:
    """The status of a whole from those of its parts: the one that `Status` names first."""
    return min(statuses, key=list(Status).index, default=Status.OK)


class PepsError(Exception):
    """An expected failure: one line for the user, and the exit status it leads to."""

    def __init__(self, message: str, status: Status = Status.FAILED):
        super().__init__(message)
        self.status = status


class CommonCause(PepsError):
    """What stops many things for one reason, such as a refused account: it is said once, with their number."""


class AnotherRun(PepsError):
    """Another run holds the lock of a file."""


class OrderInDoubt(PepsError):
    """An order was sent, and nobody knows whether it was accepted; the log's part file keeps the note of it."""


class Gone(PepsError):
    """The server answered 404 or 410, twice."""


class Unreadable(PepsError):
    """A document that is not what it should be."""


class CutOff(Exception):
    """A body ended before its end; what came is kept, and the rest can be asked for."""


class Console:
    """Where words go: what a person wants to know to stdout, warnings, errors and the progress bar to stderr."""

    def __init__(self) -> None:
        self.prog, self.quiet = "peps_maja", False
        self.server: list[str] = []  # --server, if it was given
        self.account: Path | None = None
        self.due: float | None = None  # with --wait: when the next look is, in seconds of time.time
        self.secrets = re.compile("(?!)")  # nothing, until an account is read
        self.bar: Any = None
        self._said: set[str] = set()

    @property
    def later(self) -> str:
        """When what is not yet is looked at again."""
        next_look = time.localtime(max(self.due or 0, time.time()))
        return time.strftime("next look at %H:%M", next_look) if self.due else "run this again later"

    def once(self, text: str) -> str:
        """The text when it is asked for first in this run, then nothing."""
        new = text not in self._said
        self._said.add(text)
        return text if new else ""

    def say(self, text: str, news: bool = False) -> None:
        """Print to stdout; with -q only if it is news."""
        if news or not self.quiet:
            self._print(text, sys.stdout)

    def error(self, error: object) -> None:
        """Print one line to stderr, -q or not, whatever the text quotes; what is not yet says when to look again."""
        later = f"; {self.later}" if isinstance(error, PepsError) and error.status == Status.NOT_YET else ""
        self._print(f"{self.prog}: {error}{later}", sys.stderr)

    def clean(self, text: str) -> str:
        """A text without the password, however somebody quotes it, and without what could forge a line."""
        return "".join(char if char.isprintable() else " " for char in self.secrets.sub("***", text))

    def _print(self, text: str, stream: Any) -> None:
        if stream is None:  # closed before the script began
            return
        text = self.clean(f"{time.strftime('%Y-%m-%d %H:%M')} {text}" if self.due else text)
        try:
            # A bar without a total has no truth value.
            with contextlib.nullcontext() if self.bar is None else self.bar.external_write_mode(file=stream):
                print(text, file=stream, flush=True)
        except OSError as err:
            # The reader has left (`| head`) or the disk is full: no reason to leave a download half done.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout and not isinstance(err, BrokenPipeError):
                self.error(f"warning: standard output: {in_words(err)}; the run goes on without it")


console = Console()


def one_line(text: object, limit: int = 300) -> str:
    """The words of somebody else as one printable line of at most `limit` characters, without the password."""
    return " ".join(console.clean(str(text)).split())[:limit]


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 product, 2 products."""
    return f"{count} {noun}{'s' * (count != 1)}"


def in_words(err: BaseException, path: Path | None = None) -> str:
    """An error in words; an OSError with the file that is in the way, `path` where it names none."""
    if not isinstance(err, OSError):
        return str(err) or type(err).__name__
    words = "a link, which is not followed" if err.errno == errno.ELOOP else err.strerror or str(err)
    name = err.filename2 or err.filename
    file = Path(name) if isinstance(name, str) else path
    if file and err.errno == errno.ENOENT and not file.parent.is_dir():
        return f"{file.parent}: there is no such folder"
    return f"{file}: {words}" if file else words or type(err).__name__


@contextlib.contextmanager
def named_file(path: Path, advice: str) -> Iterator[None]:
    """Turn an OSError on a file that the user named into a line: status 2, but 1 if the disk is full."""
    try:
        yield
    except OSError as err:
        words = f"{in_words(err, path)}; {advice}"
        raise (CommonCause(words) if err.errno in FULL else PepsError(words, Status.USAGE)) from err


def expected(err: BaseException) -> PepsError:
    """What user, service, network, disk and the system's limits do, as an error with words; raises what is a bug."""
    if isinstance(err, PepsError):
        err.__cause__ = err.__context__ = None  # their frames would keep sixteen large documents
        return err.with_traceback(None)
    if isinstance(err, OSError):
        common = err.errno in (*FULL, errno.EFBIG, errno.EMFILE, errno.ENFILE)  # whichever the file
        kind, words = (CommonCause, err.strerror) if common else (PepsError, in_words(err))
        return kind(f"{words}; put that right and run this again")
    if isinstance(err, (MemoryError, RecursionError)):
        return CommonCause("the memory is not enough; free some, or use a smaller -j")
    raise err


EXIT_STATUSES = """exit status:
  0    everything asked for is done
  75   not yet: a job waits or runs, the service or the network is out of order,
       or another run is at work on the same job; run it again later
  1    failed for good: a person has to look
  2    the command line, the account file, the log file or the product list is wrong
  130  interrupted with Ctrl-C (143: by SIGTERM); run it again"""


class Parser(argparse.ArgumentParser):
    """A command line with the options that all four scripts have; `examples` are words behind the script's name.

    An error is one line, and it is raised so that `run_script` alone ends the script.
    """

    def __init__(self, script: str, description: str, *examples: str):
        own = Path(sys.argv[0])
        console.prog = own.name if own.stem == script else f"{script}.py"
        lines = [f"  {called(script)} {words}" for words in examples]
        epilog = "\n".join(["examples:", *lines, "", EXIT_STATUSES])
        as_it_is = argparse.RawDescriptionHelpFormatter
        super().__init__(console.prog, description=description, epilog=epilog, formatter_class=as_it_is)
        account = "account file: e-mail, blank, password on one line (default: peps.txt)"
        self.add_argument("-a", "--auth", metavar="FILE", type=Path, default=Path("peps.txt"), help=account)
        server = os.environ.get("PEPS_URL") or DEFAULT_SERVER
        service = f"the service (default: $PEPS_URL, else {DEFAULT_SERVER})"
        self.add_argument("--server", metavar="URL", type=server_url, default=server, help=service)
        self.add_argument("-q", "--quiet", action="store_true", help="nothing on stdout but news")
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def error(self, message: str) -> Any:
        raise PepsError(f"{message} (see {self.prog} -h)", Status.USAGE)

    def _print_message(self, message: str, file: Any = None) -> None:
        for line in message.splitlines():
            console.say(line, news=True)


def called(script: str, *words: object) -> str:
    """A command line for a script, called as this one was: by name or by Python, with its account and its server."""
    own = Path(sys.argv[0])
    start = ["python", f"{script}.py"]
    if own.stem in SCRIPTS and own.suffix == ".py":
        start = [getattr(sys, "orig_argv", [sys.executable])[0], str(own.with_name(f"{script}.py"))]  # new in 3.10
    elif own.stem in SCRIPTS:
        path = str(own.with_name(script))
        start = [script if shutil.which(script) == path else path]
    account = ["-a", console.account] if console.account and console.account.is_file() else []  # a pipe is gone by then
    return shlex.join(map(str, [*start, *account, *console.server, *words]))


def server_url(text: str) -> str:
    """argparse type: the base URL of a service, without a trailing slash."""
    host, path = r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", r"/[^?#@\0- \x7f-\U0010ffff]*"
    found = re.fullmatch(rf"https?://(?:{host})(?::([0-9]{{1,5}}))?(?:{path})?", text.strip(), re.ASCII | re.IGNORECASE)
    if not found or int(found[1] or 0) > 65535:  # the text is not echoed, for it may hold a password
        words = f"the server (--server or $PEPS_URL) must look like {DEFAULT_SERVER}, without account or query"
        raise argparse.ArgumentTypeError(words)
    return found[0].rstrip("/")


def as_date(text: str) -> date:
    """argparse type: a date of the calendar as YYYY-MM-DD (UTC)."""
    with contextlib.suppress(ValueError):
        day = date.fromisoformat(text)
        if str(day) == text:  # Python reads other forms, too
            return day
    raise argparse.ArgumentTypeError(f"there is no such day as '{text}'; write it as YYYY-MM-DD")


def check_dates(start: str, end: str) -> None:
    """Refuse (status 2) a period from a day to come, or one that ends before it starts; ISO 8601, UTC."""
    if start[:10] > f"{datetime.now(timezone.utc):%Y-%m-%d}":
        raise PepsError(f"the start date {start} lies in the future, where there are no images", Status.USAGE)
    if start >= end:
        raise PepsError(f"the start date {start} is not before the end date {end}", Status.USAGE)


def as_tile(text: str) -> str:
    """argparse type: an MGRS tile such as 31TCJ (or T31TCJ): zone, band C-X, column A-Z, row A-V, no I or O."""
    pattern = r"T?((?:0[1-9]|[1-5][0-9]|60)[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])"
    found = re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not a Sentinel-2 tile such as 31TCJ")
    return found[1].upper()


def number_between(kind: type, low: float, high: float, what: str) -> Callable[[str], float]:
    """An argparse type: an int or a float from `low` to `high` inclusive."""

    def convert(text: str) -> float:
        with contextlib.suppress(ValueError):
            value: float = kind(text)
            if low <= value <= high and "_" not in text:  # Python reads 5_1 as 51
                return value
        raise argparse.ArgumentTypeError(f"'{text}' is not {what}")

    return convert


as_orbit = number_between(int, 1, 143, "a relative orbit, 1 to 143")

STOPS = (signal.SIGINT, signal.SIGTERM)


def stop(number: int, frame: object) -> None:
    """The handler of SIGINT and SIGTERM: KeyboardInterrupt with the exit status, unless one is on its way already."""
    handled = sys.exc_info()[1]
    while handled and not isinstance(handled, KeyboardInterrupt):
        handled = handled.__context__
    if not handled:
        raise KeyboardInterrupt(Status(128 + number))


@contextlib.contextmanager
def stops(held: bool) -> Iterator[None]:
    """Hold SIGINT and SIGTERM back during the block, or let them through again (POSIX)."""
    if sys.platform == "win32":
        yield
    else:
        before = signal.pthread_sigmask(signal.SIG_BLOCK if held else signal.SIG_UNBLOCK, STOPS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_script(
    build_parser: Callable[[], Parser], run: Callable[..., Status], argv: list[str] | None, words_of: Any = list
) -> int:
    """Parse, run, and end with an exit status and at most one line of error; `argv` None: the process ends here."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an accent must not stop a run under LANG=C
    console.__init__()  # type: ignore[misc]
    before = {number: handler for number in STOPS if (handler := signal.getsignal(number)) != signal.SIG_IGN}

    def release(end: Any) -> None:
        for number, handler in before.items():  # an interrupt of the interpreter's very end says nothing
            signal.signal(number, end if argv is None else handler or signal.SIG_DFL)

    try:
        for number in before:
            signal.signal(number, stop)
        parser = build_parser()
        status = outcome(parser, run, words_of(sys.argv[1:] if argv is None else argv))
        release(signal.SIG_DFL)
    except KeyboardInterrupt as stopped:
        left = stopped.__context__  # a doubt, if it came with the last word of an order
        console.error(f"interrupted: {left}" if isinstance(left, PepsError) else "interrupted; run it again to go on")
        status = stopped.args[0]
        release(signal.SIG_IGN)
    return int(status)


def outcome(parser: Parser, run: Callable[..., Status], words: list[str]) -> Status:
    """Parse and run; what is expected to fail becomes a line and a status, a bug keeps its traceback."""
    try:
        args = parser.parse_args(words or ["-h"])
        console.quiet = args.quiet
        if args.server != parser.get_default("server").strip().rstrip("/"):
            console.server = ["--server", args.server]
        return run(args)
    except SystemExit:  # argparse's way out of -h and --version
        return Status.OK if words else Status.USAGE
    except (PepsError, OSError, MemoryError, RecursionError) as err:
        error = expected(err)
        console.error(error)
        return error.status


def parse_account(text: str) -> tuple[str, str]:
    """E-mail and password of an account file's text; raises ValueError, whose words never quote the text."""
    line = text.lstrip("\ufeff\r\n").split("\n")[0].rstrip("\r").strip(" \t")
    found = re.fullmatch(r"([^ \t]+)[ \t]+(.+)", line, re.DOTALL)
    if not found:
        raise ValueError("must hold e-mail, blank and password on one line")
    return found[1], found[2]


def read_account(path: Path) -> str:
    """The token of the account in a file (RFC 7617, in UTF-8), masked in all later output; raises PepsError (2)."""
    with named_file(path, "name your account file with -a"):
        content, mode = path.read_bytes(), path.stat().st_mode
    try:
        email, password = parse_account(content.decode("utf-8"))
    except ValueError as err:
        words = "is not UTF-8 text; save it as UTF-8" if isinstance(err, UnicodeError) else err
        raise PepsError(f"account file {path} {words}", Status.USAGE) from err
    token = b2a_base64(f"{email}:{password}".encode(), newline=False).decode()
    console.secrets, console.account = secret_forms(password, token), path
    if os.name == "posix" and mode & 0o077 and not console.quiet:
        remedy = f"chmod 600 {shlex.quote(str(path))}"
        console.error(f"warning: others can read your password; keep it to you with: {remedy}")
    return token


def secret_forms(password: str, token: str) -> re.Pattern[str]:
    """The forms in which a password may be quoted: each character as it is or escaped for URL, HTML, JSON or Python."""
    from html.entities import codepoint2name

    def forms(char: str) -> str:
        number, data = ord(char), char.encode()
        texts = [char, json.dumps(char)[1:-1].lstrip("\\"), f"&{codepoint2name.get(number, 'apos')};"]
        texts += [data.decode("latin-1"), *("".join(f"{mark}{byte:02x}" for byte in data) for mark in ("%", r"\x"))]
        plain = [re.escape(text) for text in dict.fromkeys(texts) if text.strip()]
        escaped = r"(?:(?<!\\)\\)?" if char != "\\" else ""
        return rf"{escaped}(?:{'|'.join(plain)}|&#0*{number};|&#x0*{number:x};)"

    # A service may have folded blanks and doubled backslashes. No text matches in two ways: that could take for ever.
    pattern = "".join(
        rf"(?:[\s+]|{'|'.join(map(forms, dict.fromkeys(piece)))})*"
        if piece.isspace()
        else forms(piece[0]) + "+" * (piece[0] == "\\")
        for piece in re.findall(r"\s+|\\+|\S", password)
    )
    # A short password counts as a whole word alone.
    edge = r"(?<!\w){}(?!\w)" if len(password) < 4 else "{}"
    return re.compile(f"{edge.format(pattern)}|{re.escape(token.rstrip('='))}", re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Whether a host can only mean this machine."""
    return bool(re.fullmatch(r"localhost\.?|127(\.[0-9]{1,3}){3}|::1", host))


# The parent domain of a host, if it is no address; below `co.uk` and its like anybody is given a name.
PARENT = re.compile(r"[^.:]+\.((?!(?:ac|co|com|edu|go|gob|gouv|gov|ne|net|or|org)\.[^.]+$).+\.[a-z][^.]*)")


def may_carry_password(url: str, server: str) -> bool:
    """Whether the account may go to a URL: by https to the server's domain, by http to a loopback server alone."""
    host, own = ((urlsplit(place).hostname or "").rstrip(".") for place in (url, server))
    parent, scheme = PARENT.fullmatch(own), urlsplit(url).scheme
    ours = host == own or (parent and f".{host}".endswith(f".{parent[1]}"))
    return bool(ours) and (scheme == "https" or (scheme == "http" and is_loopback(host)))


def prefer_https(url: str, server: str) -> str:
    """The URL to fetch for one that a document names: https for the server's own host where it has https."""
    parts, own = urlsplit(url), urlsplit(server)
    ours = (parts.scheme, parts.netloc.lower(), own.scheme) == ("http", own.hostname, "https")
    return parts._replace(scheme="https").geturl() if ours else url


class WpsAnswer(NamedTuple):
    """A WPS 1.0.0 answer: an ExecuteResponse (also kept as the log), a status document or a refusal."""

    state: str  # the name of the element in Status: `ProcessAccepted` ... `ProcessFailed`, as of a refusal
    status_location: str = ""
    report_url: str = ""
    message: str = ""
    progress: str = ""  # percentCompleted

    @property
    def failed(self) -> bool:
        return self.state == "ProcessFailed"

    @property
    def holds_job(self) -> bool:
        return bool(self.status_location) and not self.failed

    @property
    def job_id(self) -> str:
        """The status document's stem, without PyWPS 3's `pywps-`; of a servlet the parameter that ends in `id`."""
        place, _, query = self.status_location.partition("#")[0].partition("?")
        file, keys = PurePosixPath(place), parse_qsl(query)
        ids = [value for key, value in keys if re.search(r"(id|identifier)$", key, re.IGNORECASE)]
        return (ids[0] if ids and file.suffix.lower() != ".xml" else file.stem).removeprefix("pywps-")


def parse_wps(document: bytes, cut: bool = False) -> WpsAnswer:
    """Read a WPS 1.0.0 answer (OGC 05-007r7, 10.3; OGC 06-121r3, 8), or the service's JSON error.

    With `cut`, what broke off behind the root's start tag counts too: its statusLocation is all that a job needs.
    Raises Unreadable, status 75 where it may be in order next time, 1 where it is not to be trusted.
    """
    error = parse_json_error(document)
    if error:
        return WpsAnswer("ProcessFailed", message=f"{error[1]} ({error[0]})")
    root = parse_xml(document, cut)
    kind, state = root.tag.rpartition("}")[2], root.find("{*}Status/*")
    if kind not in ("ExecuteResponse", "ExceptionReport"):
        raise Unreadable(f"a document <{one_line(kind, 40)}> instead of a WPS answer", Status.NOT_YET)
    if state is None or kind == "ExceptionReport":
        state = root.makeelement("ProcessFailed" if kind == "ExceptionReport" else "", {})
    found = root.findall("{*}ProcessOutputs/{*}Output/{*}Reference")
    best = [reference for reference in found if "json" in reference.get("mimeType", "").lower()] or found
    hrefs = [value for reference in best for key, value in reference.items() if key.rpartition("}")[2] == "href"]
    reasons = " ".join(exception.text or "" for exception in root.findall(".//{*}ExceptionText"))
    return WpsAnswer(
        state.tag.rpartition("}")[2],
        root.get("statusLocation", "").strip(),
        hrefs[-1].strip() if hrefs else "",
        one_line(reasons) or one_line(state.text or "") or "no reason given",
        one_line(state.get("percentCompleted", ""), 20),
    )


def parse_xml(document: bytes, cut: bool) -> Any:
    """The root element of an XML document, with `cut` also of one that broke off; refuses a DTD, a bomb's place."""
    from xml.etree import ElementTree

    weigh(document)
    text, root = document.lstrip(), None
    try:
        refuse_dtd(text)
        for _, element in ElementTree.iterparse(io.BytesIO(text), ["start"]):  # noqa: S314
            root = element if root is None else root
    except (ElementTree.ParseError, ValueError, LookupError) as err:
        if root is None or not cut:
            raise Unreadable("no XML document, or half of one", Status.NOT_YET) from err
    return root


def refuse_dtd(document: bytes) -> None:
    """Raise Unreadable if an XML document declares a DTD, which may be that of a page; ElementTree cannot be told."""
    from xml.parsers import expat

    def refuse(name: str, *declared: object) -> None:
        page = name.lower() == "html"
        words = "a page" if page else "a document with a DTD, which is refused"
        raise Unreadable(words, Status.NOT_YET if page else Status.FAILED)

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    with contextlib.suppress(expat.ExpatError):
        parser.Parse(document, True)


def weigh(document: bytes) -> int:
    """How many bytes the values of a document may take, since a million `<a/>` take more than they are long.

    Raises Unreadable if they are too many.
    """
    bytes_taken = len(document) + 72 * sum(map(document.count, b"<=,[{"))
    if bytes_taken > MEMORY_MAX_BYTES:
        raise Unreadable("a document of too many values, which is refused", Status.FAILED)
    return bytes_taken


def parse_json(document: bytes) -> Any:
    """The value of a JSON document; raises Unreadable."""
    weigh(document)
    try:
        return json.loads(document)
    except (ValueError, RecursionError) as err:
        raise Unreadable("no JSON document, or half of one", Status.NOT_YET) from err


def parse_json_error(document: bytes, code: int = 400) -> tuple[int, str] | None:
    """Code (else `code`) and words of the service's `{"ErrorCode": 401, "ErrorMessage": "Unauthorized"}`, else None."""
    with contextlib.suppress(Unreadable):
        error = as_dict(parse_json(document)) if b'"Error' in document else {}
        if {"ErrorCode", "ErrorMessage"} & set(error):
            text = str(error.get("ErrorCode", code))
            return int(text) if re.fullmatch("[0-9]{3,9}", text) else 500, one_line(error.get("ErrorMessage") or "")
    return None


def is_file_name(name: str) -> bool:
    """Whether a name from the service is one visible path component, on any system, with room for `.part`."""
    plain = bool(name) and name.isprintable() and name[0] != "." and not set(name) & set('/\\:*?"<>|')
    return plain and len(name.encode()) <= 250


class L1C(NamedTuple):
    """One product of the catalogue, as far as its entry tells; `start` is ISO 8601, UTC."""

    name: str
    storage: str
    orbit: int | None
    tile: str
    start: str

    @classmethod
    def from_feature(cls, feature: object) -> L1C | None:
        """Read a GeoJSON feature of the catalogue; None where the product has no usable name."""
        properties = as_dict(as_dict(feature).get("properties"))
        name = properties.get("productIdentifier")
        if not isinstance(name, str) or not is_file_name(name) or " " in name:
            return None
        storage = as_dict(properties.get("storage")).get("mode")
        orbit = re.search(r"_R([0-9]{3})_", name)
        tile, start = (str(properties.get(key) or "") for key in ("mgrs", "startDate"))
        return cls(name, one_line(storage or "unknown", 20), int(orbit[1]) if orbit else None, tile, start)


def as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def parse_page(document: bytes) -> tuple[dict[str, Any], bool]:
    """A page of the catalogue (resto 2's FeatureCollection), and whether there is another one; raises Unreadable."""
    whole = as_dict(parse_json(document))
    if not isinstance(whole.get("features"), list):
        raise Unreadable("a JSON document that is no catalogue answer", Status.NOT_YET)
    links = as_dict(whole.get("properties")).get("links")
    if isinstance(links, list):
        return whole, any(as_dict(link).get("rel") == "next" for link in links)
    return whole, len(whole["features"]) >= PAGE_RECORDS


class Patience(threading.local):
    """How long this thread still waits for the network, what it wants, and what became of its last request."""

    until = float("inf")  # in seconds of time.monotonic
    tried = 0
    wish = ordering = handed_over = False

    def left(self) -> float:
        return self.until - time.monotonic()

    @contextlib.contextmanager
    def lasting(self, seconds: float) -> Iterator[None]:
        """End the block's waiting after so many seconds, or earlier where that was said before."""
        before = self.until
        self.until = min(before, time.monotonic() + seconds)
        try:
            yield
        finally:
            self.until = before

    def receive(self, sock: Any, buffer: Any) -> int:
        """Read from a socket while the patience lasts: a timeout alone begins anew with each byte that drips."""
        from select import select
        from ssl import SSLWantReadError

        while (left := min(self.left(), READ_TIMEOUT_S)) > 0:
            if not self.ordering:
                if not max(0, sock.gettimeout() - 1) < left <= sock.gettimeout():  # each record's would slow TLS down
                    sock.settimeout(left)
                return int(sock.recv_into(buffer))
            sock.settimeout(0)
            try:
                return int(sock.recv_into(buffer))
            except (BlockingIOError, SSLWantReadError):
                with stops(held=False):  # heard while nothing has come, and not with the answer's last byte in hand
                    select([sock], [], [], min(left, 1))
            finally:
                sock.settimeout(left)
        raise TimeoutError("timed out")


class Watched:
    """Mixed into urllib3's connections: they tell that a request may be handed over, and read with patience."""

    patience: Patience

    def connect(self) -> None:
        with stops(held=False):
            super().connect()  # type: ignore[misc]
        self.patience.handed_over = True

    def response_class(self, sock: Any, *args: Any, **options: Any) -> Any:
        response: Any = super().response_class(sock, *args, **options)  # type: ignore[misc]
        response.fp.raw.readinto = partial(self.patience.receive, sock)
        return response


def make_session(patience: Patience, connections: int) -> Any:
    """A requests session whose tries, urllib3's Retry, end with the patience."""
    import requests
    import urllib3

    class PatientRetry(urllib3.Retry):
        def get_retry_after(self, response: Any) -> float | None:
            with contextlib.suppress(urllib3.exceptions.InvalidHeader, ValueError, OverflowError, AttributeError):
                return super().get_retry_after(response)
            return None

        def increment(self, method: Any = None, url: Any = None, response: Any = None, *args: Any, **more: Any) -> Any:
            patience.tried += 1
            once = patience.wish or (patience.ordering and patience.handed_over)  # urllib3 would repeat a GET
            wait = float("inf") if once else self.get_retry_after(response) or self.get_backoff_time()
            tries = self if wait < patience.left() else self.new(total=0)
            following = urllib3.Retry.increment(tries, method, url, response, *args, **more)
            if response is not None:
                response.close()  # urllib3 would read it to its end
            return following

    class Adapter(requests.adapters.HTTPAdapter):
        def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
            pool = super().get_connection_with_tls_context(*args, **options)
            if not issubclass(pool.ConnectionCls, Watched):
                pool.ConnectionCls = type("Connection", (Watched, pool.ConnectionCls), {"patience": patience})
            return pool

    session: Any = requests.Session()
    session.resolve_redirects = lambda *_, **__: iter(())  # it would read a body whole, and look into ~/.netrc
    agent = f"peps_maja/{__version__} {session.headers['User-Agent']}"
    session.headers.update({"User-Agent": agent, "Accept-Encoding": "identity"})
    retry = PatientRetry(TRIES - 1, status_forcelist=RETRIED, backoff_factor=BACKOFF_S, raise_on_status=False)
    session.adapters.update(dict.fromkeys(session.adapters, Adapter(pool_maxsize=connections, max_retries=retry)))
    return session


class Service:
    """A PEPS by its base URL, its account by `read_account`'s token, and the only door to the network."""

    def __init__(self, base: str, token: str, connections: int = ASK_AT_ONCE):
        import warnings

        warnings.simplefilter("ignore")  # http.cookiejar shows a traceback of what a hostile cookie brings about
        try:
            import requests
            import urllib3

            urllib3.HTTPResponse.read1  # noqa: B018  (older ones have none, and take a cut body for a whole one)
        except (ImportError, AttributeError) as err:
            what = "requests with urllib3 2.2 or later is needed: python -m pip install -U requests urllib3"
            raise PepsError(what, Status.USAGE) from err
        self.base, self._token, self.patience = base, token, Patience()
        # TypeError is what requests makes of a proxy without a host.
        self._failures = (OSError, ValueError, TypeError, urllib3.exceptions.HTTPError)
        self._request = requests.Request
        self._refused: CommonCause | None = None  # the account
        self.silent: dict[str, list[CommonCause]] = {}  # by host, what has had no answer there since the last one
        self.session = make_session(self.patience, max(connections, ASK_AT_ONCE))

    def _sign(self, request: Any) -> Any:
        # Decided on the URL as requests has normalised it, so that no two parsers can disagree on the host.
        # Being there at all, this also keeps requests from ~/.netrc and from accounts written into a URL.
        if may_carry_password(request.url, self.base):
            request.headers["Authorization"] = f"Basic {self._token}"
        return request

    def send(self, method: str, url: str, what: str, headers: Any = None) -> Any:
        """One request and its redirects, followed by hand so that each hop is signed, or not, by the same rule."""
        for _ in range(10):
            self.patience.tried = 0
            try:
                url = prefer_https(url, self.base)
                request = self.session.prepare_request(self._request(method, url, headers, auth=self._sign))
                settings = self.session.merge_environment_settings(request.url, {}, True, None, None)
                if is_loopback(urlsplit(request.url).hostname or ""):
                    settings["proxies"] = {}
                timeout = (min(CONNECT_TIMEOUT_S, max(self.patience.left(), 0.001)), READ_TIMEOUT_S)
                response = self.session.send(request, timeout=timeout, allow_redirects=False, **settings)
                if not response.is_redirect:
                    return response
                response.close()
                url = urljoin(url, response.headers["Location"])
            except self._failures as err:
                raise self._no_answer(url, what, err) from err
        raise PepsError(f"{host_of(url)} redirects the {what} without end; tell the service")

    def open(
        self, url: str, what: str, *, method: str = "GET", headers: Any = None, accept: Any = (200,), wish: bool = False
    ) -> Any:
        """Ask for a URL, a `wish` once; returns the response, its body unread, raises PepsError, Gone if 404 twice."""
        silent = self.silent.get(host_of(url), [])
        cause = self._refused or (silent[-1] if len(silent) >= SILENT_MAX else None)
        if cause:
            raise CommonCause(str(cause), cause.status)
        self.patience.wish = wish
        response = self.send(method, url, what, headers)
        if response.status_code in (404, 410) and not wish:
            response.close()
            time.sleep(MOMENT_S)
            response = self.send(method, url, what, headers)
        if response.status_code not in RETRIED:
            self.silent.pop(host_of(response.url), None)
        if response.status_code in accept:
            return response
        document = b""
        with response, contextlib.suppress(CutOff, PepsError):
            document = b"".join(self.pieces(response, what, DOCUMENT_MAX_BYTES))
        raise self.refusal(response, what, *error_words(document, response.status_code))

    def pieces(self, response: Any, what: str, most: float) -> Iterator[bytes]:
        """A body as it arrives, undecoded; raises CutOff where it breaks off, PepsError beyond so many bytes."""
        raw, received, began = response.raw, 0, time.monotonic()
        while received <= most:
            # read1 hands over what has arrived, so that a cut loses nothing. From TLS that is 16 KiB at a time, which
            # takes three times as long as read, which waits for a whole chunk, and loses it in a cut. So it comes in
            # when a chunk is little beside what this answer has brought, and comes soon.
            fast = received >= 4 * CHUNK_BYTES and received > 100_000 * (time.monotonic() - began)
            read = raw.read if fast and response.url.startswith("https:") else raw.read1
            try:
                piece = read(CHUNK_BYTES, decode_content=False)
            except self._failures as err:
                raise CutOff(reason(err)) from err
            if not piece:
                return
            received += len(piece)
            yield piece
        raise PepsError(f"the {what} from {host_of(response.url)} is larger than {most / 1e6:.1f} MB; refused")

    def read(self, url: str, what: str, parse: Callable[[bytes], T]) -> tuple[bytes, T]:
        """A document byte for byte, and its value; raises PepsError."""
        most = PAGE_MAX_BYTES if what == "search" else DOCUMENT_MAX_BYTES
        with self.patience.lasting(PATIENCE_S):
            gone = False
            for attempt in itertools.count(1):
                try:
                    with self.open(url, what) as response:
                        document = b"".join(self.pieces(response, what, most))
                    with parsing:
                        error = parse_json_error(document)
                    if gone or not error or error[0] not in (404, 410):
                        break
                    gone = True
                    time.sleep(MOMENT_S)
                except CutOff as err:
                    if attempt == TRIES or self.patience.left() < BACKOFF_S * attempt:
                        self.patience.tried = attempt
                        raise self._no_answer(response.url, what, err) from err
                    time.sleep(BACKOFF_S * attempt)
        with parsing:
            try:
                if not error:
                    return document, parse(document)
                refused = self.refusal(response, what, *error)
            except Unreadable as err:  # which is not kept, for its frames hold all that was read
                refused = PepsError(f"{host_of(response.url)} sent, as the {what}, {err}", err.status)
        raise refused

    def _no_answer(self, url: str, what: str, err: BaseException) -> PepsError:
        """The error that a failure of the network is."""
        host = host_of(url)
        if type(innermost(err)).__name__ == "SSLCertVerificationError":
            words = f"{host} cannot prove that it is {host} ({reason(err)}), so nothing was sent to it"
            return CommonCause(f"{words}; behind a proxy of your own name its CA in REQUESTS_CA_BUNDLE")
        if type(err) is OSError:  # what requests says of a file of CAs that is not there
            return CommonCause(f"{one_line(err)}; put REQUESTS_CA_BUNDLE right")
        if isinstance(err, ValueError) and type(err).__name__ != "InvalidHeader":  # InvalidURL and its kin
            return PepsError(f"the address of the {what}, '{one_line(url)}', is refused: {one_line(err)}")
        return self._out_of_order(host, f"{host} gives no answer ({reason(err)})")

    def _out_of_order(self, host: str, words: str) -> CommonCause:
        tries = f", tried {self.patience.tried} times" if self.patience.tried > 1 else ""
        ended = "; PEPS announced the end of its service for 2026-03-25" if self.base == DEFAULT_SERVER else ""
        cause = CommonCause(f"{words}{tries}{ended}", Status.NOT_YET)
        if not self.patience.wish:
            self.silent.setdefault(host, []).append(cause)
        return cause

    def refusal(self, response: Any, what: str, code: int, words: str) -> PepsError:
        """The error that an HTTP status means, or the same code in a JSON error."""
        host, signed = host_of(response.url), "Authorization" in response.request.headers
        said = f": {words}" if words else ""
        if code in (401, 403) and not signed:
            ours = f"yours goes only over https and only to hosts of {host_of(self.base)}'s own domain"
            return PepsError(f"{host} wants an account ({code}) for the {what}, but {ours}")
        if code == 401:
            self._refused = CommonCause(f"{host} refused the account (401){said}; check {console.account}")
            return self._refused
        if code == 403:
            return CommonCause(f"{host} refused the {what} (403){said}; may the account in {console.account} have it?")
        if code in (404, 410) and what in ("search", "order"):
            return CommonCause(f"{host} has nothing at that address ({code}) for the {what}{said}; check --server")
        if code in (404, 410):
            return Gone(f"{host} no longer keeps the {what} ({code})")
        if code in RETRIED:
            return self._out_of_order(host, f"{host} answers {code}{said}")
        return PepsError(f"{host} refused the {what} ({code}){said or ': no reason given'}")

    def refused_order(self, response: Any, document: bytes) -> PepsError | None:
        """The refusal that an answer to an order is in so many words; None where it leaves a doubt."""
        status = response.status_code
        with contextlib.suppress(Unreadable), parsing:
            if parse_wps(document, cut=True).holds_job:  # a job is one, whatever stood before it
                return None
        code, words = error_words(document, status)
        code = status if status in (429, 503) else code
        if code == 503 or (400 <= code < 500 and code != 408):
            return self.refusal(response, "order", code, words)
        if words and not parse_json_error(document):
            return PepsError(f"{host_of(response.url)} refused the order: {words}")
        return None

    def search(self, area: str, start: str, end: str, relative_orbit: int | None) -> tuple[dict[str, Any], list[L1C]]:
        """The L1C products of the catalogue, of one relative orbit or of all, in one FeatureCollection and by name.

        `area` is its part of the query, such as `tileid=31TCJ`; `start` to before `end` are ISO 8601, UTC.
        """
        query = search_url(self.base, area, start, end)
        found: dict[object, tuple[object, L1C | None]] = {}
        heavy = 0
        for number in range(1, 101):
            document, (page, more) = self.read(f"{query}&page={number}" if number > 1 else query, "search", parse_page)
            before, heavy = len(found), heavy + weigh(document)
            for feature in page["features"]:
                product = L1C.from_feature(feature)
                found.setdefault(product.name if product else repr(feature), (feature, product))
            more = more and len(found) > before  # a server that does not know `page` sends the same one for ever
            if not more or heavy > CATALOGUE_MAX_BYTES:
                break
        if more:
            raise PepsError(f"the catalogue's answer does not end after {plural(number, 'page')}; narrow the search")
        kept = [one for one in found.values() if relative_orbit in (None, one[1] and one[1].orbit)]
        features = [feature for feature, _ in kept]
        answer = {"type": "FeatureCollection", "properties": {"totalResults": len(kept)}, "features": features}
        return answer, [product for _, product in kept if product]


parsing = threading.Lock()  # one document at a time, so that sixteen hostile ones take the memory of one


def host_of(url: str) -> str:
    """The host of a URL for messages, with its port where that is not the usual one."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        usual = {"http": ":80", "https": ":443"}.get(parts.scheme, "\0")
        url = parts.netloc.rpartition("@")[2].lower().removesuffix(usual) or url
    return one_line(url, 100)


def innermost(err: BaseException) -> BaseException:
    """What an error came from in the end; one of ours, in whose wake it came, is no cause of it."""
    before = err.__context__
    return err if before is None or isinstance(before, PepsError) else innermost(before)


def reason(err: BaseException) -> str:
    """The innermost cause of a network error, in words."""
    cause = innermost(err)
    return one_line(in_words(cause), 120) or type(cause).__name__


def error_words(document: bytes, code: int) -> tuple[int, str]:
    """The code and the words of an error, if its body is one of WPS or the service's JSON."""
    with contextlib.suppress(Unreadable), parsing:
        answer = parse_wps(document, cut=True)
        return parse_json_error(document, code) or (code, answer.message if answer.failed else "")
    return code, ""


def search_url(base: str, area: str, start: str, end: str) -> str:
    """A catalogue request (resto 2), for its first page."""
    more = f"startDate={start}&completionDate={end}&maxRecords={PAGE_RECORDS}&productType=S2MSI1C"
    return f"{base}/resto/api/collections/S2ST/search.json?{area}&{more}"


def execute_url(base: str, identifier: str, inputs: dict[str, object], flags: str) -> str:
    """A WPS 1.0.0 execute request as key-value pairs; `;` and `=` inside datainputs stay as they are."""
    pairs = ";".join(f"{key}={quote(str(value), safe='')}" for key, value in inputs.items())
    process = f"request=execute&service=WPS&version=1.0.0&identifier={identifier}"
    return f"{base}/resto/wps?{process}&datainputs={pairs}&{flags}"


def part_path(path: Path, suffix: str = ".part") -> Path:
    """Where a file grows."""
    return path.parent / (path.name + suffix)


def require_plain(path: Path) -> Path:
    """The path; raises OSError if there is something that is no plain file: a folder, a pipe, a device."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
    return path


@contextlib.contextmanager
def part_file(path: Path, wait_s: float = 0, suffix: str = ".part") -> Iterator[io.FileIO]:
    """Open `<path>.part`, which grows until `finish` gives it its name, and lock it for this process, however it ends.

    An empty one is removed. Raises AnotherRun (status 75) when another run still holds it after `wait_s` seconds.
    """
    part, end = part_path(path, suffix), time.monotonic() + wait_s
    make = os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        require_plain(part)
        opener = lambda name, flags: os.open(name, flags | make, 0o666)  # noqa: E731
        file: Any = open(part, "r+b", buffering=0, opener=opener)  # noqa: SIM115  (closed below)
        free = lock(file)
        if free and is_same(file, part):  # else the last owner renamed or removed it while this one was opening it
            break
        file.close()
        if time.monotonic() >= end + 10 * free:
            raise AnotherRun(f"another run is at work on {path}", Status.NOT_YET)
        time.sleep(0 if free else 0.1)
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            if not file.closed and is_same(file, part) and part.stat().st_size == 0:
                if os.name == "nt":
                    file.close()
                part.unlink()
            file.close()


def lock(file: io.FileIO) -> bool:
    """Lock an open file for this process; False if another one has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(2**30)  # a byte that nobody reads: Windows locks forbid reading
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        warning = f"warning: {Path(file.name).parent} is on a disk without locks; let no two runs work there at once"
        if console.once(warning):
            console.error(warning)
    return True


def is_same(file: io.FileIO, path: Path) -> bool:
    """Whether an open file still stands under this name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def write(file: io.FileIO, chunk: bytes) -> None:
    """Write all of a chunk to an unbuffered file: a nearly full disk takes a part of it."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def finish(file: io.FileIO, path: Path) -> None:
    """Give a part file its name, so that a machine that dies at any moment has the old file or the new one."""
    os.fsync(file.fileno())
    if os.name == "nt":  # where an open file can be neither renamed nor removed
        file.close()
    os.replace(file.name, path)
    sync_folder(path)


def sync_folder(path: Path) -> None:
    """Make the name of a file durable, where the system can: Windows, and a folder that may not be read, cannot."""
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_whole(path: Path, document: bytes, suffix: str = ".part") -> None:
    """Write a small file whole or not at all."""
    with part_file(path, 10, suffix) as part:
        part.truncate(0)
        write(part, document)
        finish(part, path)


def write_json(path: Path, value: object) -> None:
    """Save a JSON value for people and for full_maja_download."""
    with named_file(path, "choose another file with --json"):
        require_plain(path)
        write_whole(path, json.dumps(value, indent=1).encode())


def make_folder(folder: Path) -> None:
    """Make the folder for the products, but not its parents: `/mnt/data` may only not be mounted yet."""
    with named_file(folder, "make the folder, or choose another one with -w"):
        folder.mkdir(exist_ok=True)


def check_files(files: dict[str, Path | None]) -> None:
    """Raise PepsError (status 2) if two files of a command line are the same one, or one's folder is missing."""
    seen: dict[str, str] = {}
    for role, path in files.items():
        other = seen.setdefault(os.path.realpath(path), role) if path else role
        if path and not os.path.exists(path.parent):
            raise PepsError(f"{path.parent}: there is no such folder, for the {role}", Status.USAGE)
        if other != role:
            words = f"{path} cannot be both the {other} and the {role}; give one of them another name"
            raise PepsError(words, Status.USAGE)


NOTE = b"PEPS order, in doubt until its answer stands below and in the log\n"
TAKEN = "choose another log file, or let --force replace it (it is kept as a copy)"


def beside(log: Path, suffix: str) -> Path:
    """The file beside a log: `X.stat` or `X.json` for `X.log`; the suffix is added to any other name."""
    return log.with_suffix(suffix) if log.suffix == ".log" else part_path(log, suffix)


def look_at(log: Path, part: io.FileIO | None = None, advice: str = TAKEN) -> WpsAnswer:
    """The answer in a log file, refused or not, an empty one if there is none; what a killed order left is settled.

    Raises OrderInDoubt; PepsError (status 2) for a file that is no WPS answer.
    """
    document = b""
    with named_file(log, "put that right, or choose another log"):
        require_plain(log)
        if part is None and os.path.lexists(part_path(log)):
            with part_file(log) as left:
                settle(left, log)
        with contextlib.suppress(FileNotFoundError), open(log, "rb") as file:
            document = file.read(DOCUMENT_MAX_BYTES)
    try:
        return parse_wps(document, cut=True) if document.strip() else WpsAnswer("")
    except Unreadable as err:
        raise PepsError(f"{log}: {err}; {advice}", Status.USAGE) from err


def find_log(name: str, folders: Iterable[Path]) -> Path:
    """A product's log: where it holds a job or stands in doubt, else where there is one, else in the first folder."""

    def taken(log: Path) -> bool:
        try:
            return look_at(log).holds_job
        except PepsError as err:
            return isinstance(err, (OrderInDoubt, AnotherRun))

    logs = [folder / f"{name}.log" for folder in folders]
    return next(itertools.chain(filter(taken, logs), filter(Path.exists, logs), logs))


def order(service: Service, url: str, log: Path, force: bool = False) -> tuple[WpsAnswer, bool]:
    """Send an execute request and keep the answer as the log, byte for byte; what the log holds is not ordered again.

    `force` replaces what the log holds, and orders anew what is in doubt; the old stays as `<log>.1`, `.2` ...
    Returns the job, and whether it is a new one. Raises OrderInDoubt, and PepsError, whose words tell of a job that was
    ordered but whose log cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with named_file(log, "nothing was sent, choose another log file"):
            for path in (log, part_path(log, ".new")):
                require_plain(path)
            part = stack.enter_context(part_file(log))
            answer = settle(part, log, force)
        if not (answer.holds_job or force):
            answer = look_at(log, part)
        if answer.holds_job:
            return answer, False
        with stops(held=True):
            return place(service, url, part, log), True


def place(service: Service, url: str, part: io.FileIO, log: Path) -> WpsAnswer:
    """Note an order, send it once, and conclude: its answer becomes the log, the note goes, or the doubt stays."""
    answer, response, why, stopped, patience = bytearray(), None, "", None, service.patience
    patience.ordering, patience.handed_over = True, False
    note = NOTE + f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {url}\n\n".encode()
    try:
        with named_file(log, "nothing was sent, choose another log file"):
            part.seek(0)
            write(part, note + bytes(65536))  # with room for the answer
            os.fsync(part.fileno())
            sync_folder(log)
            part.seek(len(note))
        service.session.close()  # a connection kept from the catalogue may be dead, and the order in doubt
        with patience.lasting(PATIENCE_S), service.send("GET", url, "order", {"Connection": "close"}) as response:
            why = f"{host_of(response.url)} answered {response.status_code}" if response.status_code >= 300 else ""
            for piece in service.pieces(response, "answer", DOCUMENT_MAX_BYTES):
                answer += piece
                write(part, piece)
    except (CutOff, PepsError, OSError, MemoryError, KeyboardInterrupt) as err:
        if not patience.handed_over:
            forget(part)
            raise
        stopped = err if isinstance(err, KeyboardInterrupt) else None
        why = why or ("interrupted before its answer was there" if stopped else in_words(err))
    with contextlib.suppress(OSError):
        os.fsync(part.fileno())
    refused = service.refused_order(response, bytes(answer)) if response is not None else None
    try:
        if refused:
            forget(part)
            raise refused
        return settle(part, log, why=why, answer=bytes(answer))
    finally:
        if stopped:  # it names what it comes with, such as the doubt
            raise stopped


def settle(part: io.FileIO, log: Path, force: bool = False, why: str = "", answer: bytes = b"") -> WpsAnswer:
    """Deal with what an order left in a log's part file: a job becomes the log, and is returned, else an empty answer.

    `answer` is what has come, if that is known. Raises OrderInDoubt, with what is known of the reason, unless `force`
    moves the doubt to `<log>.1`.
    """
    part.seek(0)
    content = part.read(DOCUMENT_MAX_BYTES + CHUNK_BYTES).rstrip(b"\0")
    noted = re.match(re.escape(NOTE) + rb"(\S+) (\S+)/resto/\S+\n\n", content)
    if not noted and (content.startswith(NOTE) or NOTE.startswith(content)):
        part.truncate(0)  # the note itself was not yet written, so nothing was sent
        return WpsAnswer("")
    document = answer or content[noted.end() if noted else 0 :]
    rest = f"; what came as its answer is in {part.name}" if document.strip() else ""
    try:
        found = parse_wps(document, cut=True)
        if found.holds_job:
            name_log(part, log, document, found)
            return found
        why = why or (f"its answer: {found.message}" if found.failed else "its answer names no statusLocation")
    except Unreadable as err:
        why = why or (f"its answer is {err}" if rest else "its answer is empty, or was lost")
    if force:
        keep_copy(log, content)
        part.truncate(0)
        return WpsAnswer("")
    when, site = (word.decode(errors="replace") for word in noted.groups()) if noted else ("an older run", "PEPS")
    accepted = f"it may have been accepted, so it is not sent again; look at your jobs on {site}"
    raise OrderInDoubt(f"{log}: the order of {when} is in doubt ({why}{rest}): {accepted}")


def way_out(log: Path) -> str:
    """What to do about an order in doubt that is not among the jobs."""
    part = shlex.quote(str(part_path(log)))
    away = f"move {part} and {shlex.quote(str(log))} away" if log.exists() else f"remove {part}"
    return f"if it is not there, {away} and order again"


def forget(part: io.FileIO) -> None:
    """Take a note back: the order was not placed, or its answer is the log."""
    try:
        part.truncate(0)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(part.name)


def name_log(part: io.FileIO, log: Path, document: bytes, answer: WpsAnswer) -> None:
    """Write the log from the answer in its part file, keeping what it replaces; the note goes last."""
    try:
        old = log.read_bytes() if log.exists() else b""
        if old != document:
            keep_copy(log, old)
            write_whole(log, document, suffix=".new")
    except (OSError, PepsError) as err:
        job = f"job {one_line(answer.job_id)} is ordered, its statusLocation is {one_line(answer.status_location)}"
        why = f"its log cannot be written ({in_words(err)})"
        raise PepsError(f"{job}, but {why}; keep this line, and run the same command again") from err
    forget(part)


def keep_copy(log: Path, content: bytes) -> None:
    """Write what a log loses to the first free name of `<log>.1`, `.2` ..."""
    copies = (part_path(log, f".{number}") for number in itertools.count(1))
    if content:
        write_whole(next(copy for copy in copies if not os.path.lexists(copy)), content)
