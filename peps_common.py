"""What the four PEPS/MAJA scripts share.

From top to bottom: outcomes and words, the frame of a command line, the account, URLs,
documents (pure parsing), threads, the network, files, and the log with the order in it.
Importing it has no effect; requests is loaded when a `Service` is made, so that `-h`
and a typing error answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import html
import json
import os
import re
import shlex
import signal
import stat
import sys
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, timezone
from enum import IntEnum
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, TypeVar
from urllib.parse import quote, quote_plus, urljoin, urlsplit

if TYPE_CHECKING:
    from requests import Response, Session
    from requests.adapters import HTTPAdapter

__version__ = "2.0.0"

DEFAULT_SERVER = "https://peps.cnes.fr"
TIMEOUTS_S = (15, 60)  # to connect, and for the next byte
PATIENCE_S = 120  # without anything ending, after which what is asked for is given up
TRIES = 5
BACKOFF_S = 0.5  # urllib3 sleeps 0, 1, 2 and 4 s between five tries
SILENT_MAX = 4  # things in a row without an answer, after which a host is given up
RETRIED = {408, 425, 429, *range(500, 600)}
DOCUMENT_MAX_BYTES = 2**21  # 2 MiB
PAGE_MAX_BYTES = 2**24  # 16 MiB, of the catalogue
PAGE_RECORDS = 500
PAGES_MAX = 100
POOL_SIZE = 1000  # connections that are kept: those of the largest -j
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")
R = TypeVar("R")


class Status(IntEnum):
    """Exit statuses, the same for all four scripts; the worst comes first."""

    TERMINATED = 143
    INTERRUPTED = 130
    FAILED = 1
    USAGE = 2
    NOT_YET = 75
    OK = 0


def worst(statuses: Iterable[Status]) -> Status:
    """The status of a whole from those of its parts; that of nothing is OK."""
    return min(statuses, key=list(Status).index, default=Status.OK)


class PepsError(Exception):
    """An expected failure: one line for the user. Its class says what to do next."""

    status = Status.FAILED  # a person looks


class UsageError(PepsError):
    """The command line or a file that it names is wrong."""

    status = Status.USAGE


class NotYet(PepsError):
    """What may be otherwise later."""

    status = Status.NOT_YET


class Interrupted(PepsError):
    """A signal stopped the run."""

    def __init__(self, stopped: KeyboardInterrupt):
        super().__init__("interrupted; run it again to go on")
        self.status = stopped.args[0] if stopped.args else Status.INTERRUPTED


class NoAnswer(NotYet):
    """A host gave no connection or no answer."""


class GivenUp(NotYet):
    """Nothing has ended for too long; the work goes on where nobody waits for it."""


class CutOff(NotYet):
    """A body broke off before its end."""


class Unreadable(NotYet):
    """A document is not what it should be; the next time it may be."""


class Refused(PepsError):
    """The service said no to this one thing; the next one may be another matter."""


class Gone(Refused):
    """The server has nothing (any more) at an address."""


class OrderInDoubt(PepsError):
    """An order was sent, and nobody knows whether it was accepted."""


class Console:
    """Where words go: results to stdout; warnings, errors and the bar to stderr."""

    def begin(self) -> None:
        """Start a run: nothing is known of an earlier one."""
        self.prog = Path(sys.argv[0]).name
        self.quiet = False
        self.server = DEFAULT_SERVER
        self.account = Path("peps.txt")
        self.secrets: list[str] = []
        self.due = 0.0  # with --wait, when the next look is (time.time)
        self.bar: Any = None
        self._warned: set[str] = set()

    def say(self, text: str, news: bool = False) -> None:
        """Print a result; with -q only if it is news."""
        if news or not self.quiet:
            self._print(text, sys.stdout)

    def warn(self, text: str, also_quiet: bool = False) -> None:
        """Print a warning, once a run; with -q only where that is asked for."""
        if text not in self._warned and (also_quiet or not self.quiet):
            self._warned.add(text)
            self._print(f"{self.prog}: warning: {text}", sys.stderr)

    def error(self, error: PepsError, name: str = "") -> Status:
        """Print an error, with what it is about if it does not say so; its status."""
        words = str(error)
        if not words.startswith(name):
            words = f"{name}: {words}"
        if error.status == Status.NOT_YET:
            words = f"{words}; {self.later()}"
        self._print(f"{self.prog}: {words}", sys.stderr)
        return error.status

    def later(self) -> str:
        """When what is not yet is looked at again."""
        if self.due:
            when = max(self.due, time.time())
            return time.strftime("next look at %H:%M", time.localtime(when))
        return "run this again later"

    def _print(self, text: str, stream: Any) -> None:
        if stream is None:  # closed before the script began
            return
        if self.due:
            text = f"{time.strftime('%Y-%m-%d %H:%M')} {text}"
        if self.bar is not None:
            self.bar.clear()  # it is drawn again below the line
        try:
            print(printable(text), file=stream, flush=True)
        except OSError:
            # The reader has left (`| head`) or the disk is full: neither is a reason to
            # leave a download half done.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


console = Console()
console.begin()


def printable(text: str) -> str:
    """A text without what could forge a line or steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def one_line(text: object, limit: int = 300) -> str:
    """Somebody else's words as one line of at most `limit` characters.

    The password is masked in them, and never in our own words.
    """
    return " ".join(printable(masked(str(text))).split())[:limit]


def masked(text: str) -> str:
    """Somebody else's words, their HTML entities resolved, without the password."""
    words = unescaped(text)
    for secret in console.secrets:
        words = words.replace(secret, "***")
    return words


def by_reason(noun: str, things: list[tuple[str, R]]) -> Iterator[tuple[str, R]]:
    """Things by name, each with its reason; those of one reason are one: 2 jobs."""
    counts = Counter(str(reason) for _, reason in things)
    for name, reason in things:
        count = counts.pop(str(reason), 0)
        if count:  # else that reason was yielded before
            yield name if count == 1 else plural(count, noun), reason


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 product, 2 products."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def in_words(err: OSError) -> str:
    """An error of the system in words, with the file in the way, if there is one."""
    words = err.strerror or str(err) or type(err).__name__
    return f"{err.filename}: {words}" if err.filename else words


def disk_error(err: OSError) -> PepsError:
    """The error that a failure of the disk is; a full one is the same for all files."""
    words = err.strerror if err.errno in FULL_DISK else in_words(err)
    return PepsError(f"{words}; put that right, then run this again")


@contextlib.contextmanager
def named_file(path: Path, advice: str) -> Iterator[None]:
    """Turn an OSError on a file that the user named into a line: 2, or 1 if full."""
    try:
        yield
    except OSError as err:
        kind = PepsError if err.errno in FULL_DISK else UsageError
        raise kind(f"{path}: {err.strerror}; {advice}") from err


EXIT_STATUSES = """exit status:
  0    everything that can be had is there
  75   not yet: a job waits or runs, the service or the network is out of order,
       another run is at work, or -n left products to fetch; run it again later
  1    failed for good, or an order in doubt: a person has to look
  2    the command line, account file, log file or product list is wrong
  130  interrupted with Ctrl-C (143: by SIGTERM); run it again"""


class Parser(argparse.ArgumentParser):
    """A command line with the options that all four scripts have.

    `examples` are lines in which `%(prog)s` stands for the script's name. An error is
    one line, raised.
    """

    def __init__(self, description: str, examples: str):
        super().__init__(
            description=description,
            epilog=f"examples:\n{examples}\n{EXIT_STATUSES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = self.add_argument
        add(
            "-a",
            "--auth",
            metavar="FILE",
            type=Path,
            default="peps.txt",
            help="account: e-mail, space, password on one line (default: peps.txt)",
        )
        add(
            "--server",
            metavar="URL",
            type=server_url,
            default=os.environ.get("PEPS_URL") or DEFAULT_SERVER,
            help=f"the service (default: $PEPS_URL, else {DEFAULT_SERVER})",
        )
        add("-q", "--quiet", action="store_true", help="say only what is new")
        add("--version", action="version", version=f"%(prog)s {__version__}")

    def add_folder(self, help: str) -> None:
        """Add -w, a folder."""
        folder = partial(self.add_argument, metavar="DIR", type=Path, default=Path())
        folder("-w", "--write_dir", help=help)

    def add_orbit(self) -> None:
        """Add -o, a relative orbit."""
        orbit = partial(self.add_argument, metavar="N", type=as_orbit)
        orbit("-o", "--orbit", help="this relative orbit alone (default: all)")

    def add_dry_run(self, help: str) -> None:
        """Add -n by its three names."""
        dry_run = partial(self.add_argument, dest="dry_run", action="store_true")
        dry_run("-n", "--no_download", "--dry-run", help=help)

    def other_letter(self, letter: str, right: str, **options: Any) -> None:
        """Answer a letter that belongs to the other pair with the right one."""

        def refuse(text: str) -> NoReturn:
            raise argparse.ArgumentTypeError(f"here it is {right} {text}")

        self.add_argument(letter, type=refuse, help=argparse.SUPPRESS, **options)

    def print_help(self, file: Any = None) -> None:
        for line in self.format_help().splitlines():
            console.say(line, news=True)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} -h)")


def called(script: str, *words: object) -> str:
    """A command for a script, called as this one was, with its account and server."""
    own = Path(sys.argv[0])
    command: list[object] = [own.with_name(f"{script}{own.suffix}")]
    if own.suffix:
        command.insert(0, sys.executable)
    if console.account.is_file():  # a pipe is gone by then
        command += ["-a", console.account]
    if console.server != DEFAULT_SERVER:
        command += ["--server", console.server]
    command += words
    return shlex.join(map(str, command))


def server_url(text: str) -> str:
    """argparse type: the base URL of a service, without a trailing slash.

    The text is not echoed, for it may hold a password.
    """
    base = text.strip().rstrip("/")
    if not http_url(base) or not re.fullmatch(r"[A-Za-z0-9_.:/~%\[\]-]+", base):
        raise argparse.ArgumentTypeError(
            f"the server must look like {DEFAULT_SERVER}: https:// (or http://) first, "
            "no account, no query"
        )
    return base


def as_date(text: str) -> date:
    """argparse type: a date of the calendar as YYYY-MM-DD (UTC)."""
    with contextlib.suppress(ValueError):
        day = date.fromisoformat(text)
        if str(day) == text:  # Python reads other forms, too
            return day
    raise argparse.ArgumentTypeError(
        f"there is no such day as '{text}'; write it as YYYY-MM-DD"
    )


def check_dates(start: str, end: str) -> None:
    """Refuse (status 2) a start in the future or not before the end; ISO 8601, UTC."""
    if start[:10] > f"{datetime.now(timezone.utc):%Y-%m-%d}":
        raise UsageError(f"the start date {start} lies in the future: no images yet")
    if start >= end:
        raise UsageError(f"the start date {start} is not before the end date {end}")


def as_tile(text: str) -> str:
    """argparse type: an MGRS tile such as 31TCJ, or T31TCJ.

    Zone 01-60, band C-X, column A-Z, row A-V; the letters I and O are left out.
    """
    pattern = "T?((?:0[1-9]|[1-5][0-9]|60)[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])"
    found = re.fullmatch(pattern, text.upper())
    if not found:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a Sentinel-2 tile such as 31TCJ"
        )
    return found[1]


def number_between(
    kind: type, low: float, high: float, what: str
) -> Callable[[str], float]:
    """An argparse type: an int or a float from `low` to `high` inclusive."""

    def convert(text: str) -> float:
        with contextlib.suppress(ValueError):
            value: float = kind(text)
            if low <= value <= high:
                return value
        raise argparse.ArgumentTypeError(f"'{text}' is not {what}")

    return convert


as_orbit = number_between(int, 1, 143, "a relative orbit, 1 to 143")


def check_files(*files: Path | None) -> None:
    """Raise UsageError if a file is named twice, or its folder is missing."""
    seen = set()
    for path in filter(None, files):
        real = os.path.realpath(path)
        if real in seen:
            raise UsageError(f"{path} is named for two things; choose another name")
        if not path.parent.is_dir():
            raise UsageError(f"there is no folder {path.parent} for {path.name}")
        seen.add(real)


def stop(number: int, frame: object) -> NoReturn:
    """The handler of SIGINT and SIGTERM: end the run; what comes then is not heard."""
    handle_signals(lambda *signal: None)
    raise KeyboardInterrupt(Status(128 + number))


def handle_signals(handler: Any) -> None:
    """Set what SIGINT and SIGTERM do; a shell's background job ignores SIGINT."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def run_script(
    make_parser: Callable[[], Parser],
    run: Callable[[Any], Status],
    argv: list[str] | None,
) -> int:
    """Parse, run, return the exit status.

    With `argv` None it is the whole process, and its signals are heard.
    """
    words = sys.argv[1:] if argv is None else argv
    console.begin()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # an accent is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    if argv is None:
        handle_signals(stop)
    try:
        if sys.version_info < (3, 9):  # noqa: UP036
            raise UsageError("Python 3.9 or later is needed")
        args = make_parser().parse_args(words or ["-h"])
        console.quiet, console.server = args.quiet, args.server
        return run(args)
    except SystemExit:  # argparse's way out of -h and --version
        return Status.OK if words else Status.USAGE
    except KeyboardInterrupt as stopped:
        return console.error(Interrupted(stopped))
    except OSError as err:
        return console.error(disk_error(err))
    except PepsError as err:
        return console.error(err)
    finally:
        if argv is None:  # an interrupt of the interpreter's very end says nothing
            with contextlib.suppress(KeyboardInterrupt):
                handle_signals(signal.SIG_IGN)


def read_account(path: Path) -> str:
    """The token of the account in a file (RFC 7617, in UTF-8).

    Its password is masked in all later words of others. Raises UsageError.
    """
    with named_file(path, "name your account file with -a"):
        content, mode = path.read_bytes(), path.stat().st_mode
    found = re.match(r"\s*([^ \t\r\n]+)[ \t]+(.*[^ \t\r\n])", as_text(content))
    if not found or "\ufffd" in found[0]:  # what stands for bytes that are no UTF-8
        raise UsageError(
            f"account file {path} must hold e-mail, space and password on one line, "
            "as UTF-8 text"
        )
    email, password = found.groups()
    token = b64encode(f"{email}:{password}".encode()).decode()
    console.secrets = quoted_forms(password, token)
    console.account = path
    if os.name == "posix" and mode & 0o077:
        console.warn(
            "others can read your password; keep it to you with: "
            f"chmod 600 {shlex.quote(str(path))}"
        )
    return token


def quoted_forms(password: str, token: str) -> list[str]:
    """The forms in which a service may quote an account, the longest first."""
    forms = [password, unescaped(password), token.rstrip("=")]
    forms.append(json.dumps(password)[1:-1])
    for safe in ("", "/"):
        forms += [quote(password, safe), quote_plus(password, safe)]
    return sorted(forms, key=len, reverse=True)


def host_in(url: str) -> str:
    """The host of a URL in small letters."""
    return urlsplit(url).hostname or ""


def host_of(url: str) -> str:
    """The host of a URL for messages, with the port that the URL names."""
    return printable(urlsplit(url).netloc.rpartition("@")[2].lower())


def http_url(text: str, base: str = "") -> str:
    """The http or https URL that a text is, beside `base` if relative, else nothing."""
    with contextlib.suppress(ValueError):
        url = urljoin(base, text.strip())
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    return ""


def is_loopback(host: str) -> bool:
    """Whether a host can only be this machine."""
    return bool(re.fullmatch(r"localhost\.?|127(\.[0-9]+){3}|[0:]+:1", host))


# The parent domain of a host, if it is no address; below `co.uk` anybody has a name.
PARENT = re.compile(
    r"[^.:]+\."
    r"((?!(?:ac|co|com|edu|go|gob|gouv|gov|ne|net|or|org)\.[^.]+$).+\.[a-z][^.]*)"
)


def is_of_domain(url: str, server: str) -> bool:
    """Whether a URL's host is the server's, or one of its parent domain."""
    host, own = host_in(url), host_in(server)
    parent = PARENT.fullmatch(own)
    return host == own or bool(parent and f".{host}".endswith(f".{parent[1]}"))


def may_carry_password(url: str, server: str) -> bool:
    """Whether the account may go to an http or https URL.

    By https to the server's domain, by http to a loopback server alone.
    """
    if urlsplit(url).scheme == "https":
        return is_of_domain(url, server)
    return host_in(url) == host_in(server) and is_loopback(host_in(url))


def prefer_https(url: str, server: str) -> str:
    """The URL to ask for one that a document names.

    That is https for the own host, on its port or with none, where the server is https.
    """
    parts, own = urlsplit(url), urlsplit(server)
    ours = host_in(url) == host_in(server) and parts.port in (None, own.port or 443)
    if ours and own.scheme == "https":
        return parts._replace(scheme="https").geturl()
    return url


class WpsAnswer(NamedTuple):
    """A WPS 1.0.0 answer: to an order (kept as its log), a status document, or a no."""

    state: str = ""  # the element in Status, such as ProcessAccepted
    status_location: str = ""
    report_url: str = ""
    message: str = ""
    progress: str = ""  # percentCompleted
    code: int = 0  # as an HTTP status; like `message`, it counts where it has failed

    @property
    def failed(self) -> bool:
        return self.state in ("ProcessFailed", "ExceptionReport")

    @property
    def holds_job(self) -> bool:
        return bool(self.status_location) and not self.failed

    @property
    def place(self) -> str:
        """The statusLocation in one printable line."""
        return one_line(self.status_location, 2000)

    @property
    def job_id(self) -> str:
        """The job's id: the status document's stem without PyWPS 3's `pywps-`."""
        place = re.split("[?#]", self.status_location)[0]
        return Path(place).stem.removeprefix("pywps-")


TAG = r"<(?:[\w.-]+:)?"  # whatever prefix stands for the namespace
# What is no markup, up to its end or that of a document that was cut.
HIDDEN = re.compile(r"<!--.*?(?:-->|\Z)|<!\[CDATA\[(.*?)(?:\]\]>|\Z)", re.DOTALL)
ROOT = re.compile(rf"{TAG}ExecuteResponse\b([^<>]*)")
REFERENCE = re.compile(rf"{TAG}Reference\b([^<>]*)")
# The element in Status, or an ExceptionReport, which stands for a failure, too.
STATE = re.compile(
    rf"{TAG}(?:Status\b[^<>]*>\s*{TAG}|(?=ExceptionReport\b))(\w+)([^<>]*)"
)
REASON = re.compile(
    rf"{TAG}ExceptionText\b[^<>]*>(.*?)(?:</(?:[\w.-]+:)?ExceptionText|\Z)", re.DOTALL
)


def parse_wps(document: bytes) -> WpsAnswer:
    """Read a WPS 1.0.0 answer (OGC 05-007r7, 10.3; OGC 06-121r3, 8), or a JSON error.

    It is read tag by tag, not as XML: what a service, a proxy or a shell has damaged
    still tells its statusLocation and its state, of several the last. Raises
    Unreadable, and PepsError for a DTD.
    """
    error = parse_json_error(document)
    if error:
        return error
    text = HIDDEN.sub(lambda found: html.escape(found[1] or ""), as_text(document))
    if re.search(r"<!DOCTYPE\s+(?!html)\S", text, re.IGNORECASE):
        raise PepsError("a document with a DTD is refused")
    roots = ROOT.findall(text)
    state, attributes = [("", ""), *STATE.findall(text)][-1]
    if not roots and not state:
        raise Unreadable("a page" if "<html" in text.lower() else "no WPS answer")
    references = REFERENCE.findall(text)
    of_json = [one for one in references if "json" in attribute("mimeType", one)]
    exception = attribute("exceptionCode", text)
    reasons = unescaped(" ".join(REASON.findall(text)))
    return WpsAnswer(
        state,
        attribute("statusLocation", *roots),
        attribute("href", *of_json or references),
        reasons or exception or "no reason given",
        attribute("percentCompleted", attributes),
        503 if exception == "ServerBusy" else 400,
    )


def as_text(document: bytes) -> str:
    return document.decode("utf-8-sig", "replace")


def attribute(name: str, *tags: str) -> str:
    """An attribute's last value in the text of tags; nothing where it has none."""
    found = re.findall(rf"""\b{name}\s*=\s*("[^"]+"|'[^']+')""", " ".join(tags))
    return unescaped(found[-1][1:-1]).strip() if found else ""


def unescaped(text: str) -> str:
    """A text with its entities resolved; a bare `&`, as in a URL, stays."""
    return re.sub(r"&#?\w{1,32};", lambda found: html.unescape(found[0]), text)


def parse_json(document: bytes) -> Any:
    """The value of a JSON document; raises Unreadable (status 75)."""
    try:
        return json.loads(document)
    except (ValueError, RecursionError) as err:
        raise Unreadable("no JSON document, or half of one") from err


def parse_json_error(document: bytes) -> WpsAnswer | None:
    """The service's `{"ErrorCode": 401, "ErrorMessage": "Unauthorized"}`, else None."""
    with contextlib.suppress(Unreadable):
        value = as_dict(parse_json(document))
        if "ErrorCode" in value or "ErrorMessage" in value:
            words, code = str(value.get("ErrorMessage")), str(value.get("ErrorCode"))
            number = max(400, int(code)) if re.fullmatch("[0-9]{1,3}", code) else 0
            return WpsAnswer("ProcessFailed", message=words, code=number)
    return None


def as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def is_file_name(name: str) -> bool:
    """Whether a foreign name is one visible path component, with room for `.part`."""
    plain = re.fullmatch(r'[^./\\:*?"<>|][^/\\:*?"<>|]*', name)
    return plain is not None and name.isprintable() and len(name.encode()) <= 250


PRODUCT = re.compile(r"S2[A-Z]_[A-Za-z0-9_]{1,230}(\.SAFE)?")  # an L1C product's name


class L1C(NamedTuple):
    """One product of the catalogue, as far as its entry tells; `start` is ISO 8601."""

    name: str
    storage: str
    tile: str
    start: str

    @classmethod
    def from_feature(cls, feature: object) -> L1C | None:
        """Read a GeoJSON feature; None where the product has no usable name."""
        properties = as_dict(as_dict(feature).get("properties"))
        name = str(properties.get("productIdentifier"))
        if not PRODUCT.fullmatch(name):
            return None
        storage = as_dict(properties.get("storage")).get("mode")
        return cls(
            name,
            one_line(storage or "unknown", 20),
            str(properties.get("mgrs") or ""),
            str(properties.get("startDate") or ""),
        )


def parse_page(document: bytes) -> tuple[list[Any], bool]:
    """The GeoJSON features of a page of the catalogue, and whether there are more.

    The page is resto 2's FeatureCollection. Raises Unreadable.
    """
    whole = as_dict(parse_json(document))
    features = whole.get("features")
    if not isinstance(features, list):
        raise Unreadable("a JSON document that is no catalogue answer")
    more = '"rel": "next"' in json.dumps(whole.get("properties"))
    return features, more or len(features) >= PAGE_RECORDS


def search_url(base: str, area: str, start: str, end: str) -> str:
    """A catalogue request (resto 2), for its first page."""
    return (
        f"{base}/resto/api/collections/S2ST/search.json?{area}&startDate={start}"
        f"&completionDate={end}&maxRecords={PAGE_RECORDS}&productType=S2MSI1C"
    )


def wps_url(base: str, identifier: str, inputs: str, flags: str) -> str:
    """A WPS 1.0.0 execute request (OGC 05-007r7, 10.2.2) as key-value pairs.

    `inputs` is `key=value;key=value`, in which the values are encoded for a URL.
    """
    return (
        f"{base}/resto/wps?request=execute&service=WPS&version=1.0.0"
        f"&identifier={identifier}&datainputs={inputs}&{flags}"
    )


def in_threads(
    work: Callable[[T], R],
    items: Iterable[T],
    at_once: int,
    patience_s: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[tuple[T, R | PepsError]]:
    """Do work on items side by side; yield each item with its outcome when it is done.

    Where nothing has ended for `patience_s` seconds (0: however long), the rest is
    given up: its threads go on, and nobody waits for them. `tick` is called each second
    in between.
    """
    left, silence_s = dict.fromkeys(items), 0
    todo, done = iter(list(left)), SimpleQueue[Any]()
    try:
        for _ in range(min(at_once, len(left))):
            start_thread(partial(work_through, work, todo, done))
        while left and (silence_s < patience_s or not patience_s):
            try:
                item, outcome = done.get(timeout=1)
            except Empty:
                silence_s += 1
                tick()
                continue
            silence_s = 0
            del left[item]
            if isinstance(outcome, Exception) and not isinstance(outcome, PepsError):
                raise outcome  # a fault of these scripts
            yield item, outcome
    finally:
        list(todo)  # empty what the threads share: none of them begins another
    yield from ((item, GivenUp(f"no answer for {patience_s} s")) for item in left)


def start_thread(work: Callable[[], None]) -> None:
    """Start a thread that does not keep the process alive; raises PepsError."""
    try:
        threading.Thread(target=work, daemon=True).start()
    except RuntimeError as err:
        raise PepsError(f"{err}; free some memory or processes") from err


def work_through(
    work: Callable[[T], R],
    todo: Iterator[T],
    done: SimpleQueue[tuple[T, R | Exception]],
) -> None:
    """Work on what is left to do, which several threads share; tell each outcome."""
    outcome: R | Exception
    for item in todo:
        try:
            outcome = work(item)
        except OSError as err:
            outcome = disk_error(err)
        except Exception as err:
            outcome = err
        done.put((item, outcome))


def patiently(work: Callable[[], R], host: str, patience_s: int) -> R:
    """Ask a host for one thing in a thread; raises what that raises, or GivenUp."""
    [(_, outcome)] = in_threads(lambda _: work(), [None], 1, patience_s)
    if isinstance(outcome, GivenUp):
        raise GivenUp(f"{host}: {outcome}")
    if isinstance(outcome, PepsError):
        raise outcome
    return outcome


def reason(err: BaseException) -> str:
    """The innermost cause of an error of the network, in words."""
    if err.__context__:
        return reason(err.__context__)
    return one_line(in_words(err) if isinstance(err, OSError) else err, 120)


def network_error(err: Exception, url: str) -> PepsError:
    """The error that a failure of the network is, with the host or proxy to blame."""
    from requests.exceptions import InvalidHeader, ProxyError, RequestException

    request = getattr(err, "request", None)
    if request:  # of the last redirect
        url = request.url
    host, words = host_of(url), reason(err)
    if "certificate verify failed" in words:
        return PepsError(
            f"{host} does not prove that it is {host}: {words}; behind a proxy of your "
            "own name its CA in REQUESTS_CA_BUNDLE"
        )
    tunnel = re.search("Tunnel connection failed|SOCKS", str(err))
    if tunnel or isinstance(err, ProxyError):
        return proxy_error(words, url)
    # An address that is none is a ValueError or TypeError, whose words may hold a
    # proxy's password; a file of CAs that is missing is no error of requests' own.
    odd_header = isinstance(err, InvalidHeader)
    if isinstance(err, (ValueError, TypeError)) and not odd_header:
        return PepsError(
            f"{host} cannot be asked: its address, one that it redirects to, or the "
            "proxy's in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY is no address"
        )
    if not isinstance(err, RequestException):
        return PepsError(f"{words}; put REQUESTS_CA_BUNDLE right")
    if "getaddrinfo" in words or "Name or service" in words:
        words = f"{words}; check --server"
    return NoAnswer(f"{host} gives no answer ({words})")


def proxy_error(words: str, url: str) -> PepsError:
    """The error that a proxy on the way to a URL means."""
    proxy = f"the proxy {proxy_of(url)}"
    if "dependencies" in words:
        return PepsError(
            f"{proxy} speaks SOCKS, which needs a package: "
            "python -m pip install 'requests[socks]'"
        )
    if " 407 " in words:
        return PepsError(f"{proxy} wants an account (407); name it in HTTPS_PROXY")
    return NoAnswer(f"{proxy} gives no way to {host_of(url)} ({words})")


def proxy_of(url: str) -> str:
    """The host of the proxy on the way to a URL, by the environment."""
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(url, get_environ_proxies(url)) or ""
    return host_of(proxy if "://" in proxy else f"http://{proxy}")


def retrying(statuses: set[int]) -> HTTPAdapter:
    """A transport that repeats what gets no answer, or one of these HTTP statuses."""
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry
    from urllib3.exceptions import InvalidHeader

    class Tries(Retry):
        def parse_retry_after(self, retry_after: str) -> float:
            """No Retry-After beyond the patience is waited for, nor one of no sense."""
            with contextlib.suppress(InvalidHeader, ValueError, OverflowError):
                wait_s = super().parse_retry_after(retry_after)
                if wait_s <= PATIENCE_S:
                    return wait_s
            return 0

    retry = Tries(
        TRIES - 1,
        status_forcelist=statuses,
        backoff_factor=BACKOFF_S,
        raise_on_status=False,
    )
    return HTTPAdapter(pool_maxsize=POOL_SIZE, max_retries=retry)


def watching(made: threading.Event) -> HTTPAdapter:
    """A transport that sets `made` once it has a connection.

    The connection is made when proxy, tunnel and TLS have let it through.
    """
    from requests.adapters import HTTPAdapter

    class Watching(HTTPAdapter):
        def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
            pool: Any = super().get_connection_with_tls_context(*args, **options)

            class Watched(pool.ConnectionCls):  # type: ignore[misc]
                def connect(self) -> None:
                    super().connect()
                    made.set()

            pool.ConnectionCls = Watched
            return pool

    return Watching()


def chunks(response: Response, read: Callable[[], bytes]) -> Iterator[bytes]:
    """A body as it arrives; raises CutOff where it breaks off.

    `read` gives the next bytes. Of urllib3's two `read` waits for all that it is to
    give, `read1` does not.
    """
    from urllib3.exceptions import HTTPError

    try:
        yield from iter(read, b"")
    except (HTTPError, OSError) as err:
        raise CutOff(f"{host_of(response.url)} breaks off before the end") from err


def read_body(
    response: Response, body: bytearray, most: int = DOCUMENT_MAX_BYTES
) -> bytes:
    """Read a document, which `body` holds as it arrives.

    A gzip that nobody asked for is undone. Raises CutOff, PepsError for more than
    `most` bytes.
    """
    # A little at a time, for packed it may be a thousand times as much.
    read = partial(response.raw.read1, 2**14, decode_content=True)
    for chunk in chunks(response, read):
        body += chunk
        if len(body) > most:
            raise PepsError(
                f"{host_of(response.url)} sends a document of more than "
                f"{most / 1e6:.1f} MB, which is refused"
            )
    return bytes(body)


def meaning(status: int, document: bytes) -> tuple[int, str]:
    """What an answer says, as an HTTP status, and its words behind a colon, if any.

    What a WPS refusal or a JSON error says wins over the real HTTP status.
    """
    with contextlib.suppress(PepsError):
        answer = parse_wps(document)
        if answer.failed:
            return answer.code or status, f": {one_line(answer.message)}"
    return status, ""


def close_redirect(response: Response, **options: Any) -> None:
    """Close a redirect, whose body requests would read to its end."""
    if response.is_redirect:
        response.close()


class Service:
    """A PEPS by its base URL, with an account's token, and the door to the network."""

    def __init__(self, base: str, token: str):
        try:
            import requests
            from urllib3 import BaseHTTPResponse

            # Older ones lack what an order relies on.
            _ = requests.adapters.HTTPAdapter.get_connection_with_tls_context
            _ = BaseHTTPResponse.read1
        except (ImportError, AttributeError) as err:
            raise UsageError(
                "requests 2.32.2 and urllib3 2.2 or later are needed: "
                "python -m pip install -U requests urllib3"
            ) from err
        self.base, self.token = base, token
        # A document may not be there yet; a wish is asked for once.
        self.documents = self._session(retrying(RETRIED | {404}))
        self.products = self._session(retrying(RETRIED))
        self.wishes = self._session(requests.adapters.HTTPAdapter())
        self._silent: dict[str, list[PepsError]] = {}
        self._account_refused: PepsError | None = None

    def _session(self, adapter: HTTPAdapter) -> Session:
        """A session in which every request goes through `_sign`."""
        import requests

        session = requests.Session()
        session.auth = self._sign  # in the place of ~/.netrc
        session.rebuild_auth = self._sign  # type: ignore[method-assign]
        session.headers["User-Agent"] = f"peps_maja/{__version__}"
        session.headers["Accept-Encoding"] = "identity"
        session.hooks["response"] = close_redirect
        session.max_redirects = 5
        if is_loopback(host_in(self.base)):
            session.proxies = {f"http://{host_in(self.base)}": ""}  # past any proxy
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        return session

    def _sign(self, request: Any, *hop: Any) -> Any:
        """Let the account go along with a request or not, on each hop of a redirect."""
        request.url = prefer_https(request.url, self.base)
        request.headers.pop("Authorization", None)
        if may_carry_password(request.url, self.base):
            request.headers["Authorization"] = f"Basic {self.token}"
        return request

    def begin_look(self) -> None:
        """Ask those again who were given up."""
        self._silent.clear()
        self._account_refused = None

    def send(
        self, session: Session, url: str, method: str = "GET", **headers: str
    ) -> Response:
        """Send a request and follow its redirects; raises PepsError, NoAnswer.

        The response may have any status; its body is unread.
        """
        # A TypeError is what requests answers to a proxy without a host.
        try:
            return session.request(
                method, url, headers=headers, stream=True, timeout=TIMEOUTS_S
            )
        except (OSError, ValueError, TypeError) as err:
            raise network_error(err, url) from err

    def open(self, session: Session, url: str, **headers: str) -> Response:
        """Ask for a document or a product, unless that is known to be in vain.

        Raises PepsError, NoAnswer.
        """
        url = prefer_https(url, self.base)
        silent = self._silent.setdefault(host_of(url), [])
        for err in silent[SILENT_MAX - 1 :]:  # the host is given up
            raise err
        if self._account_refused and may_carry_password(url, self.base):
            raise self._account_refused
        try:
            response = self.send(session, url, **headers)
        except NoAnswer as err:
            silent.append(err)
            raise
        silent.clear()
        return response

    def read(
        self,
        url: str,
        what: str,
        parse: Callable[[bytes], R],
        most: int = DOCUMENT_MAX_BYTES,
    ) -> tuple[bytes, R]:
        """A document byte for byte, and its value; raises PepsError, Gone, NoAnswer."""
        for number in range(TRIES):
            try:
                with self.open(self.documents, url) as response:
                    document = read_body(response, bytearray(), most)
                break
            except CutOff:
                if number == TRIES - 1:
                    raise
                time.sleep(BACKOFF_S * number)
        if response.status_code != 200 or parse_json_error(document):
            raise self.refusal(response, what, document)
        try:
            return document, parse(document)
        except Unreadable as err:
            raise Unreadable(f"{host_of(response.url)}: the {what} is {err}") from err

    def refusal(self, response: Response, what: str, document: bytes) -> PepsError:
        """The error that an answer means; a refused account is remembered."""
        host = host_of(response.url)
        code, words = meaning(response.status_code, document)
        if code == 401 and "Authorization" not in response.request.headers:
            return PepsError(
                f"{host} wants an account for the {what} ({code}){words}; yours goes "
                f"only over https, to hosts of {host_of(self.base)}'s domain"
            )
        if code == 401:
            self._account_refused = PepsError(
                f"{host} refused the account ({code}){words}; check {console.account}"
            )
            return self._account_refused
        if code == 407:
            return PepsError(
                f"the proxy {proxy_of(response.url)} wants an account ({code}){words}; "
                "name it in HTTP_PROXY"
            )
        if code in (404, 410) and what in ("search", "order") and not words:
            return PepsError(f"{host} knows no {what} ({code}); check --server")
        if code in (404, 410):
            return Gone(f"{host} has no such {what} ({code}){words}")
        if code == 202:
            return NotYet(f"{host}: the {what} is not ready ({code}){words}")
        if code in RETRIED:
            return NotYet(f"{host} is out of order ({code}){words}")
        return Refused(f"{host} refused the {what} ({code}){words}")

    def search(self, area: str, start: str, end: str, orbit: int | None) -> list[Any]:
        """The catalogue's L1C features of an area, of one relative orbit or of all.

        `area` is its part of the query, such as `tileid=31TCJ`; `start` to before `end`
        are ISO 8601, UTC. Raises PepsError.
        """
        query = search_url(self.base, area, start, end)
        mark = f"_R{orbit:03}_" if orbit else ""
        found: dict[str, Any] = {}
        for number in range(1, PAGES_MAX + 1):
            url = query if number == 1 else f"{query}&page={number}"
            ask = partial(self.read, url, "search", parse_page, PAGE_MAX_BYTES)
            _, (features, more) = patiently(ask, host_of(url), PATIENCE_S)
            before = len(found)
            found.update((json.dumps(feature), feature) for feature in features)
            # A server that does not know `page` sends the same one for ever.
            if not more or len(found) == before:
                return [one for text, one in found.items() if mark in text]
        raise PepsError(
            f"the catalogue's answer does not end after {PAGES_MAX} pages; "
            "narrow the search"
        )

    def send_order(self, url: str, body: bytearray) -> tuple[PepsError, bool]:
        """Send an order once; the answer comes in `body`, as far as it arrives.

        What is returned holds if that names no job: the error that it is, and whether
        certainly nothing was ordered. Ctrl-C ends the waiting.
        """
        made = threading.Event()

        def send() -> Response:
            with self.send(self._session(watching(made)), url) as response:
                read_body(response, body)
                return response

        try:
            response = patiently(send, host_of(url), PATIENCE_S)
        except KeyboardInterrupt as stopped:
            return Interrupted(stopped), False
        except GivenUp as err:  # it may still connect
            return err, False
        except PepsError as err:
            return err, not made.is_set()
        document = bytes(body)
        code, _ = meaning(response.status_code, document)
        refused = code == 503 or (400 <= code < 500 and code != 408)
        if refused and not response.history:  # behind a redirect nothing is refused
            return self.refusal(response, "order", document), True
        return PepsError(f"{host_of(response.url)} answered {code}, and no job"), False


def require_plain(path: Path) -> None:
    """Raise OSError if there is something that is no plain file, such as a folder."""
    # It is looked at once: another run may make or move it between two looks.
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:  # there is nothing, or a link to nothing
        mode = stat.S_IFLNK if path.is_symlink() else stat.S_IFREG
    if not stat.S_ISREG(mode):
        words = "is a folder" if stat.S_ISDIR(mode) else "is no plain file"
        raise OSError(errno.EINVAL, words, str(path))


def read_plain(path: Path) -> bytes | None:
    """The content of a plain file, None if there is none; raises OSError."""
    require_plain(path)
    return path.read_bytes() if path.exists() else None


def make_durable(file: BinaryIO) -> None:
    """Bring a file's content to the disk; a warning where the disk knows no fsync."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
        folder = Path(file.name).parent
        console.warn(f"{folder} is on a disk without fsync; a power cut may cost files")


def write_whole(path: Path, document: bytes) -> None:
    """Write a small file whole or not at all; raises OSError."""
    require_plain(path)
    part = Path(f"{path}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(document)
            make_durable(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_features(path: Path, features: list[Any]) -> None:
    """Save a catalogue answer as one FeatureCollection."""
    whole = json.dumps({"type": "FeatureCollection", "features": features})
    with named_file(path, "choose another file with --json"):
        write_whole(path, whole.encode())


def make_folder(folder: Path) -> None:
    """Make a folder, but not its parents: `/mnt/data` may only not be mounted yet."""
    if folder.is_file():
        raise UsageError(f"{folder} is a file; choose a folder with -w")
    with named_file(folder, "choose another folder with -w"):
        folder.mkdir(exist_ok=True)


def read_list(path: Path) -> list[str]:
    """The products of a product list, each once, in order; none if there is no list.

    Raises UsageError for a file that is none.
    """
    with named_file(path, "give a product list"):
        content = read_plain(path) or b""
    names = list(dict.fromkeys(as_text(content).split()))
    for name in names:
        if not PRODUCT.fullmatch(name):
            raise UsageError(
                f"{path} is no product list, for it has '{one_line(name, 80)}'; give "
                "the list of peps_maja_process with -p"
            )
    return names


def beside(log: Path, suffix: str) -> Path:
    """The file beside a log: `X.stat` for `X.log`; to any other name it is appended."""
    return Path(re.sub("[.]log$", "", str(log)) + suffix)


def find_log(name: str, folder: Path, prod_list: Path) -> Path:
    """A product's log in a folder, beside the list or here.

    It is one with a job or a note, else any, else where it would be in the folder.
    """
    places = (folder, prod_list.parent, Path())
    logs = [place / f"{name}.log" for place in places]
    there = [log for log in logs if os.path.isfile(log)]
    old_doubts = [log for log in logs if os.path.lexists(f"{log}.part")]
    for log in there:
        with contextlib.suppress(OSError, PepsError):
            answer = parse_log(log.read_bytes())
            if answer is None or answer.holds_job:
                return log
    return [*there, *old_doubts, *logs][0]


NOTE = "PEPS order"


def parse_log(content: bytes) -> WpsAnswer | None:
    """Read a log: an answer, or a status URL alone; None for the note of an order.

    Raises Unreadable.
    """
    text = as_text(content).strip()
    if text.startswith(NOTE):
        return None
    if re.fullmatch(r"https?://\S+", text):
        return WpsAnswer(status_location=text)
    return parse_wps(content)


def read_log(log: Path, again: str) -> WpsAnswer | None:
    """The answer in a log; None if there is no log. `again` says how to order again.

    Raises OrderInDoubt for a note, UsageError for what is no log.
    """
    with named_file(log, "put that right, or choose another log"):
        content = read_plain(log)
    if content is None:
        if os.path.lexists(f"{log}.part"):
            raise OrderInDoubt(
                f"{log}.part may hold an order of version 1.1 that is in doubt: look "
                "into it, and at your jobs, then move it away"
            )
        return None
    if not content.strip():
        raise UsageError(f"{log} is empty; {again}")
    try:
        answer = parse_log(content)
    except Unreadable as err:
        raise UsageError(f"{log} is {err}; {again}") from err
    if answer is None:
        note, _, answered = as_text(content).strip().partition("\n\n")
        why = answered.partition("\n")[0] or "no answer"
        raise in_doubt(log, note, why, again)
    return answer


def in_doubt(log: Path, note: str, why: str, again: str) -> OrderInDoubt:
    """The error that a note means: what was sent when, where to look, both ways out."""
    sent = printable(note).partition("?")[0]
    return OrderInDoubt(
        f"{log} is in doubt: {sent} ({one_line(why)}); it may have been accepted, so "
        "it is not sent again. Look at your jobs on that service: if it is there, "
        f"write its status URL alone into {log}; if not, {again}"
    )


def order_once(
    service: Service, url: str, log: Path, force: bool, again: str
) -> WpsAnswer:
    """Place an order, unless the log holds a job already, and return the log's job.

    The log is the answer, byte for byte. `force` orders whatever the log holds; that is
    kept as `<log>.1`, `.2` … Raises OrderInDoubt; Refused where this order alone is
    refused; PepsError.
    """
    held = None if force else read_log(log, again)
    if held and held.holds_job:
        return held
    with named_file(log, "nothing was sent; choose another place for the log"):
        require_plain(log)
        aside = set_aside(log) if held or force else None
        note = write_note(log, url, aside)  # fails where another run has made a log
    body = bytearray()
    error, not_ordered = service.send_order(url, body)
    document, job = bytes(body), WpsAnswer()
    with contextlib.suppress(PepsError):
        job = parse_wps(document)
    if job.holds_job:
        note.give_way(job, document)
        if isinstance(error, Interrupted):
            raise error
        return job
    if not_ordered:
        note.remove()
        raise error
    why, _, _ = str(error).partition(";")  # without a remedy, which is another here
    note.keep_doubt(why, document)
    doubt = in_doubt(log, note.text, why, again)
    doubt.status = worst([doubt.status, error.status])
    raise doubt


class Note(NamedTuple):
    """What stands in a log while an order is under way, and if its run dies.

    It is the lock between two orders, unless one is forced. What the log held before is
    in `aside`.
    """

    log: Path
    text: str
    aside: Path | None

    def stands(self) -> bool:
        """Whether the log still holds this note, and not another run's."""
        with contextlib.suppress(OSError):
            return self.log.read_bytes().startswith(self.text.encode())
        return False

    def restore(self) -> None:
        """Let the log be what it was before the order."""
        if self.aside:
            os.replace(self.aside, self.log)
        else:
            self.log.unlink(missing_ok=True)

    def remove(self) -> None:
        """Take the note away: nothing was ordered."""
        if self.stands():
            self.restore()

    def keep_doubt(self, why: str, document: bytes) -> None:
        """Add what became of the order, as far as anybody knows."""
        words = f"{why}\n{masked(as_text(document))}"
        with contextlib.suppress(OSError):
            if self.stands():
                with open(self.log, "ab") as file:
                    file.write(words.encode())

    def give_way(self, job: WpsAnswer, document: bytes) -> None:
        """Let the answer replace the note; raises PepsError with the job's place."""
        try:
            if not self.stands():
                raise FileExistsError("another order stands there")
            write_whole(self.log, document)
        except OSError as err:
            raise PepsError(
                f"job {one_line(job.job_id)} is ordered, but {self.log} cannot be "
                f"written ({in_words(err)}); write its status URL "
                f"{job.place} alone into a file: that is a log, too"
            ) from err


def set_aside(log: Path) -> Path | None:
    """Move what a log holds to the first free name of `<log>.1`, `.2` …"""
    number = 1
    while log.exists():
        copy = Path(f"{log}.{number}")
        try:
            copy.touch(exist_ok=False)  # so that no other run takes the same name
        except FileExistsError:
            number += 1
            continue
        try:
            return log.replace(copy)
        except FileNotFoundError:  # another run has moved it
            copy.unlink()
    return None


def write_note(log: Path, url: str, aside: Path | None) -> Note:
    """Make a log that was not there, durably, with a note in it.

    Raises NotYet if another run was first, OSError.
    """
    now = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
    note = Note(log, f"{NOTE} of {now}, by process {os.getpid()}: {url}", aside)
    try:
        with open(log, "xb") as file:
            file.write(f"{note.text}\n\n".encode())
            file.flush()
            os.fsync(file.fileno())  # a disk that does not know it takes no order
    except FileExistsError as err:
        raise NotYet(f"another run is at work on {log}") from err
    except OSError:
        note.restore()
        raise
    with contextlib.suppress(OSError):  # not every system can make a name durable
        folder = os.open(log.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return note
