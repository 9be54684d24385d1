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
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import date, datetime, timezone
from enum import IntEnum
from functools import partial
from pathlib import Path, PurePosixPath
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, TypeVar
from urllib.parse import quote, quote_plus, urljoin, urlsplit

if TYPE_CHECKING:
    from requests import Response, Session

__version__ = "2.0.0"

DEFAULT_SERVER = "https://peps.cnes.fr"
TIMEOUTS_S = (15, 60)  # to connect, and for the next byte
PATIENCE_S = 120  # without anything ending, after which what is asked for is given up
TRIES = 5
BACKOFF_S = 0.5  # urllib3 sleeps 0, 1, 2 and 4 s between five tries
SILENT_MAX = 4  # things in a row without an answer, after which a host is given up
RETRIED = frozenset((408, 425, 429, *range(500, 600)))
CHUNK_BYTES = 256 * 1024
DOCUMENT_MAX_BYTES = 2 * 1024 * 1024
PAGE_MAX_BYTES = 16 * 1024 * 1024
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

    def __init__(
        self, stopped: KeyboardInterrupt, words: str = "run it again to go on"
    ):
        super().__init__(f"interrupted; {words}")
        self.status = Status.TERMINATED if stopped.args else Status.INTERRUPTED


class NoAnswer(NotYet):
    """A host gave no connection or no answer."""


class GivenUp(NotYet):
    """Nothing has ended for two minutes; the work goes on where nobody waits for it."""


class CutOff(NotYet):
    """A body broke off before its end; what has come is kept."""


class Unreadable(NotYet):
    """A document that is not what it should be, and may be so next time."""


class Distrusted(Unreadable):
    """A document that is never read."""

    status = Status.FAILED


class Gone(PepsError):
    """The server has nothing (any more) at an address."""


class Refused(PepsError):
    """The service said no to this one thing; the next one may be another matter."""


class OrderInDoubt(PepsError):
    """An order was sent, and nobody knows whether it was accepted."""


class Console:
    """Where words go: results to stdout; warnings, errors and the bar to stderr."""

    def __init__(self) -> None:
        self.begin("peps_maja")

    def begin(self, prog: str) -> None:
        """Start a run: nothing is known of an earlier one."""
        self.prog = prog
        self.quiet = False
        self.server = DEFAULT_SERVER
        self.account: Path | None = None
        self.secrets: list[str] = []
        self.due: float | None = None  # with --wait, when the next look is (time.time)
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
        if self.due is None:
            return "run this again later"
        return time.strftime("next look at %H:%M", time.localtime(self.due))

    def _print(self, text: str, stream: Any) -> None:
        if stream is None:  # closed before the script began
            return
        if self.due is not None:
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


def printable(text: str) -> str:
    """A text without what could forge a line or steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def one_line(text: object, limit: int = 300) -> str:
    """Somebody else's words as one line of at most `limit` characters.

    Here, and only here, the password is masked: in the words of others.
    """
    words = str(text)
    for secret in console.secrets:
        words = words.replace(secret, "***")
    return " ".join(printable(words).split())[:limit]


def say_failures(noun: str, failures: list[tuple[str, PepsError]]) -> None:
    """Say what failed and why; things that failed for one reason are one line."""
    counts = Counter(str(err) for _, err in failures)
    for name, err in failures:
        count = counts.pop(str(err), 0)  # 0: that reason has been said
        if count:
            console.error(err, name if count == 1 else plural(count, noun))


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 product, 2 products."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def in_words(err: OSError, path: Path | None = None) -> str:
    """An error of the system in words, with the file in the way (else `path`)."""
    file = err.filename or path
    words = err.strerror or str(err) or type(err).__name__
    return f"{file}: {words}" if file else words


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
        raise kind(f"{in_words(err, path)}; {advice}") from err


EXIT_STATUSES = """exit status:
  0    everything that can be had is there
  75   not yet: a job waits or runs, the service or the network is out of order,
       another run is at work, or -n left products to fetch; run it again later
  1    failed for good, or an order in doubt: a person has to look
  2    the command line, account file, log file or product list is wrong
  130  interrupted with Ctrl-C (143: by SIGTERM); run it again"""


class Parser(argparse.ArgumentParser):
    """A command line with the options that all four scripts have.

    An example is the words behind the script's name; an error is one line, raised.
    """

    def __init__(self, script: str, description: str, *examples: str):
        own = Path(sys.argv[0])
        prog = own.name if own.stem == script else f"{script}.py"
        lines = [f"  {prog} {words}" for words in examples]
        super().__init__(
            prog,
            description=description,
            epilog="\n".join(["examples:", *lines, "", EXIT_STATUSES]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = self.add_argument
        account = "account: e-mail, space, password on one line (default: peps.txt)"
        file = Path("peps.txt")
        add("-a", "--auth", metavar="FILE", type=Path, default=file, help=account)
        base = os.environ.get("PEPS_URL") or DEFAULT_SERVER
        service = f"the service (default: $PEPS_URL, else {DEFAULT_SERVER})"
        add("--server", metavar="URL", type=server_url, default=base, help=service)
        add("-q", "--quiet", action="store_true", help="say only what is new")
        add("--version", action="version", version=f"%(prog)s {__version__}")

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
        command.insert(0, getattr(sys, "orig_argv", [sys.executable])[0])  # as of 3.10
    if console.account and console.account.is_file():  # a pipe is gone by then
        command += ["-a", console.account]
    if console.server != DEFAULT_SERVER:
        command += ["--server", console.server]
    return shlex.join(map(str, [*command, *words]))


def server_url(text: str) -> str:
    """argparse type: the base URL of a service, without a trailing slash.

    The text is not echoed, for it may hold a password.
    """
    base = text.strip().rstrip("/")
    if "://" not in base:
        raise argparse.ArgumentTypeError("put https:// (or http://) before the server")
    if (
        not http_url(base)
        or not re.fullmatch(r"[!-~]+", base)
        or set(base) & set("@?#\\")
    ):
        words = f"the server must look like {DEFAULT_SERVER}, without account or query"
        raise argparse.ArgumentTypeError(words)
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
    zone = "0[1-9]|[1-5][0-9]|60"
    pattern = f"T?((?:{zone})[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])"
    found = re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE)
    if not found:
        words = f"'{text}' is not a Sentinel-2 tile such as 31TCJ"
        raise argparse.ArgumentTypeError(words)
    return found[1].upper()


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


def terminate(number: int, frame: object) -> NoReturn:
    """The handler of SIGTERM: raise what Ctrl-C raises, but with an argument."""
    raise KeyboardInterrupt(number)


def run_script(
    make_parser: Callable[[], Parser],
    run: Callable[[Any], Status],
    argv: list[str] | None,
) -> int:
    """Parse, run, return the exit status; with `argv` None the process ends here."""
    words = sys.argv[1:] if argv is None else argv
    console.begin(Path(sys.argv[0]).name)
    signal.signal(signal.SIGTERM, terminate)
    try:
        if sys.version_info < (3, 9):  # noqa: UP036
            raise UsageError("Python 3.9 or later is needed")
        parser = make_parser()
        console.prog = parser.prog
        args = parser.parse_args(words or ["-h"])
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
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def parse_account(content: bytes) -> tuple[str, str]:
    """E-mail and password of an account file's content.

    Raises ValueError, whose words never quote the content.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeError:
        raise ValueError("is not UTF-8 text; save it as UTF-8") from None
    line = text.lstrip("\r\n").split("\n")[0].strip(" \t\r")
    found = re.fullmatch(r"([^ \t]+)[ \t]+(.+)", line, re.DOTALL)
    if not found:
        raise ValueError("must hold e-mail, space and password on one line")
    return found[1], found[2]


def read_account(path: Path) -> str:
    """The token of the account in a file (RFC 7617, in UTF-8).

    Its password is masked in all later words of others. Raises UsageError.
    """
    from binascii import b2a_base64

    with named_file(path, "name your account file with -a"):
        content, mode = path.read_bytes(), path.stat().st_mode
    try:
        email, password = parse_account(content)
    except ValueError as err:
        raise UsageError(f"account file {path} {err}") from err
    token = b2a_base64(f"{email}:{password}".encode(), newline=False).decode()
    console.secrets = quoted_forms(password, token)
    console.account = path
    if os.name == "posix" and mode & 0o077:
        remedy = f"chmod 600 {shlex.quote(str(path))}"
        console.warn(f"others can read your password; keep it to you with: {remedy}")
    return token


def quoted_forms(password: str, token: str) -> list[str]:
    """The forms in which a service may quote an account, the longest first."""
    import html

    forms = {password, token.rstrip("="), html.escape(password)}
    forms.add(html.escape(password, quote=False))
    for safe in ("", "/"):
        forms |= {quote(password, safe), quote_plus(password, safe)}
    return sorted(forms, key=len, reverse=True)


def host_in(url: str) -> str:
    """The host of a URL in small letters, without the dots that may end a name."""
    return (urlsplit(url).hostname or "").rstrip(".")


def host_of(url: str) -> str:
    """The host of a URL for messages, with the port that the URL names."""
    return one_line(urlsplit(url).netloc.rpartition("@")[2].lower())


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
    from ipaddress import ip_address

    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


# The parent domain of a host, if it is no address; below `co.uk` anybody has a name.
PARENT = re.compile(
    r"[^.:]+\."
    r"((?!(?:ac|co|com|edu|go|gob|gouv|gov|ne|net|or|org)\.[^.]+$).+\.[a-z][^.]*)"
)


def is_of_domain(url: str, server: str) -> bool:
    """Whether a URL's host is the server's, or one of its parent domain."""
    host, own = host_in(url), host_in(server)
    parent = PARENT.fullmatch(own)
    return host == own or (parent is not None and f".{host}".endswith(f".{parent[1]}"))


def may_carry_password(url: str, server: str) -> bool:
    """Whether the account may go to a URL.

    By https to the server's domain, by http to a loopback server alone.
    """
    if urlsplit(url).scheme == "http":
        return host_in(url) == host_in(server) and is_loopback(host_in(url))
    return urlsplit(url).scheme == "https" and is_of_domain(url, server)


def prefer_https(url: str, server: str) -> str:
    """The URL to ask for one that a document names.

    That is https for the own host, on its port or with none, where the server is https.
    """
    parts, own = urlsplit(url), urlsplit(server)
    ours = host_in(url) == host_in(server) and parts.port in (None, own.port)
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
    code: int | None = None  # of a refusal, as an HTTP status, if it has one

    @property
    def failed(self) -> bool:
        return self.state == "ProcessFailed"

    @property
    def holds_job(self) -> bool:
        return bool(self.status_location) and not self.failed

    @property
    def job_id(self) -> str:
        """The job's id: the status document's stem without PyWPS 3's `pywps-`."""
        place = re.split("[?#]", self.status_location)[0]
        return re.sub("^pywps-", "", PurePosixPath(place).stem)


TAG = r"<(?:[\w.-]+:)?"  # whatever prefix stands for the namespace
# What is no markup, up to its end or that of a document that was cut.
HIDDEN = re.compile(r"<!--.*?(?:-->|\Z)|<!\[CDATA\[(.*?)(?:\]\]>|\Z)", re.DOTALL)
ROOT = re.compile(rf"{TAG}ExecuteResponse\b([^>]*)")
REFERENCE = re.compile(rf"{TAG}Reference\b([^>]*)")
STATE = re.compile(rf"{TAG}Status\b[^>]*>\s*{TAG}(\w+)([^>]*)|{TAG}(ExceptionReport)\b")
REASON = re.compile(
    rf"{TAG}ExceptionText\b[^>]*>(.*?)(?:</(?:[\w.-]+:)?ExceptionText|\Z)", re.DOTALL
)


def parse_wps(document: bytes) -> WpsAnswer:
    """Read a WPS 1.0.0 answer (OGC 05-007r7, 10.3; OGC 06-121r3, 8), or a JSON error.

    It is read tag by tag, not as XML: what a service, a proxy or a shell has damaged
    still tells its statusLocation and its state, of several the last. Raises
    Distrusted for a DTD, Unreadable for what may be in order next time.
    """
    error = parse_json_error(document)
    if error:
        return error
    text = HIDDEN.sub(lambda found: escaped(found[1] or ""), as_text(document))
    if re.search(r"<!DOCTYPE\s+(?!html)\S", text, re.IGNORECASE):
        raise Distrusted("a document with a DTD, which is refused")
    roots, states = ROOT.findall(text), STATE.findall(text)
    if not roots and not states:
        raise Unreadable("a page" if "<html" in text.lower() else "no WPS answer")
    state, attributes, refused = states[-1] if states else ("", "", "")
    references = REFERENCE.findall(text)
    of_json = [
        one for one in references if "json" in attribute(one, "mimeType").lower()
    ]
    exception = attribute(text, "exceptionCode")
    reasons = " ".join(map(unescaped, REASON.findall(text)))
    return WpsAnswer(
        "ProcessFailed" if refused else state,
        last(attribute(root, "statusLocation") for root in roots),
        last(attribute(one, "href") for one in of_json or references),
        reasons or exception or "no reason given",
        attribute(attributes, "percentCompleted"),
        503 if exception == "ServerBusy" else 400,
    )


def as_text(document: bytes) -> str:
    return document.decode("utf-8-sig", "replace")


def attribute(tag: str, name: str) -> str:
    """The value of an attribute in the text of a tag; nothing where it has none."""
    found = re.search(rf"""\b{name}\s*=\s*("[^"]*"|'[^']*')""", tag)
    return unescaped(found[1][1:-1]).strip() if found else ""


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def unescaped(text: str) -> str:
    """A text with its entities resolved; a bare `&`, as in a URL, stays."""
    import html

    return re.sub(r"&#?\w+;", lambda found: html.unescape(found[0]), text)


def last(texts: Iterable[str]) -> str:
    """The last text that is not empty; nothing if there is none."""
    *_, found = ["", *filter(None, texts)]
    return found


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
            number = max(400, int(code)) if re.fullmatch("[0-9]{1,3}", code) else None
            return WpsAnswer("ProcessFailed", message=words, code=number)
    return None


def as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def is_file_name(name: str) -> bool:
    """Whether a foreign name is one visible path component, with room for `.part`."""
    odd = set(name) & set('/\\:*?"<>|')
    visible = bool(name) and name.isprintable() and name[0] != "."
    return visible and not odd and len(name.encode()) <= 250


PRODUCT = re.compile(r"S2[A-Z]_\w{1,230}(\.SAFE)?", re.ASCII)  # an L1C product's name


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
        tile, start = (properties.get(key) or "" for key in ("mgrs", "startDate"))
        return cls(name, str(storage or "unknown"), str(tile), str(start))


def parse_page(document: bytes) -> tuple[list[Any], bool]:
    """The GeoJSON features of a page of the catalogue, and whether there are more.

    The page is resto 2's FeatureCollection. Raises Unreadable.
    """
    whole = as_dict(parse_json(document))
    features = whole.get("features")
    if not isinstance(features, list):
        raise Unreadable("a JSON document that is no catalogue answer")
    links = as_dict(whole.get("properties")).get("links")
    if not isinstance(links, list):
        return features, len(features) >= PAGE_RECORDS
    return features, any(as_dict(link).get("rel") == "next" for link in links)


def search_url(base: str, area: str, start: str, end: str) -> str:
    """A catalogue request (resto 2), for its first page."""
    more = f"maxRecords={PAGE_RECORDS}&productType=S2MSI1C"
    dates = f"startDate={start}&completionDate={end}"
    return f"{base}/resto/api/collections/S2ST/search.json?{area}&{dates}&{more}"


def execute_url(
    base: str, identifier: str, inputs: dict[str, object], flags: str
) -> str:
    """A WPS 1.0.0 execute request (OGC 05-007r7, 10.2.2) as key-value pairs.

    `;` and `=` between the inputs stay as they are, those in a value are encoded.
    """
    pairs = ";".join(f"{key}={quote(str(inputs[key]), safe='')}" for key in inputs)
    process = f"request=execute&service=WPS&version=1.0.0&identifier={identifier}"
    return f"{base}/resto/wps?{process}&datainputs={pairs}&{flags}"


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
    left = dict.fromkeys(items)
    todo, done = iter(list(left)), SimpleQueue[Any]()

    def keep_working() -> None:
        for item in todo:
            try:
                done.put((item, work(item)))
            except BaseException as err:
                done.put((item, err))

    silence_s = 0
    try:
        for _ in range(min(at_once, len(left))):
            threading.Thread(target=keep_working, daemon=True).start()
        while left and (silence_s < patience_s or not patience_s):
            try:
                item, outcome = done.get(timeout=1)
            except Empty:
                silence_s += 1
                tick()
                continue
            silence_s = 0
            del left[item]
            if isinstance(outcome, OSError):
                outcome = disk_error(outcome)
            if isinstance(outcome, BaseException) and not isinstance(
                outcome, PepsError
            ):
                raise outcome
            yield item, outcome
    except RuntimeError as err:
        raise PepsError(f"{err}; free some memory or processes") from err
    finally:
        list(todo)  # so that nobody begins with what is left
    yield from ((item, GivenUp(f"no answer for {patience_s} s")) for item in left)


def patiently(work: Callable[[], R]) -> R:
    """Do one thing in a thread; raises what it raises, GivenUp after two minutes."""
    ((_, outcome),) = in_threads(lambda _: work(), [None], 1, PATIENCE_S)
    if isinstance(outcome, PepsError):
        raise outcome
    return outcome


def innermost(err: BaseException) -> BaseException:
    """What an error came from in the end."""
    return err if err.__context__ is None else innermost(err.__context__)


def reason(err: BaseException) -> str:
    """The innermost cause of an error of the network, in words."""
    cause = innermost(err)
    words = in_words(cause) if isinstance(cause, OSError) else str(cause)
    return one_line(words, 120) or type(cause).__name__


def network_error(err: Exception, url: str, proxy: str = "") -> PepsError:
    """The error that a failure of the network is, with the host or proxy to blame."""
    host, words, cause = host_of(url), reason(err), type(innermost(err)).__name__
    if cause == "SSLCertVerificationError":
        return PepsError(
            f"{host} does not prove that it is {host}: {words}; behind a proxy of your "
            "own name its CA in REQUESTS_CA_BUNDLE"
        )
    if type(err) is OSError:  # what requests says of a file of CAs that is missing
        return PepsError(f"{one_line(err)}; put REQUESTS_CA_BUNDLE right")
    if "Tunnel connection failed: 407" in words:
        return proxy_refuses(proxy)
    if type(err).__name__ == "ProxyError" or "Tunnel connection failed" in words:
        return NoAnswer(f"the proxy {host_of(proxy)} gives no way to {host} ({words})")
    if isinstance(err, ValueError) and proxy.startswith("socks"):
        return PepsError(
            f"the proxy {host_of(proxy)} needs a package: "
            "python -m pip install 'requests[socks]'"
        )
    if isinstance(err, ValueError):
        return PepsError(f"the address '{one_line(url)}' is refused: {words}")
    if cause == "gaierror":
        words = f"{words}; check --server"
    return NoAnswer(f"{host} gives no answer ({words})")


def proxy_refuses(proxy: str) -> PepsError:
    remedy = "name it in HTTPS_PROXY or HTTP_PROXY"
    return PepsError(f"the proxy {host_of(proxy)} wants an account (407); {remedy}")


class Door(NamedTuple):
    """What every request passes, each hop of a redirect too: a transport adapter.

    The account goes along here, or does not, and failures become words. `made` is
    called when a connection is made, through proxy, tunnel and TLS.
    """

    base: str
    token: str
    adapter: Any
    made: Callable[[], None] | None

    def send(self, request: Any, **options: Any) -> Any:
        from requests.utils import select_proxy
        from urllib3.exceptions import HTTPError

        url = request.url = prefer_https(request.url, self.base)
        request.headers.pop("Authorization", None)
        if may_carry_password(url, self.base):
            request.headers["Authorization"] = f"Basic {self.token}"
        if is_loopback(host_in(url)):
            options["proxies"] = {}
        proxy = select_proxy(url, options["proxies"]) or ""
        if proxy and not http_url(re.sub("^([a-z0-9]+://)?", "http://", proxy)):
            raise PepsError("the proxy in the environment (HTTPS_PROXY …) is no URL")
        try:
            if self.made:
                self.watch(request, options, self.made)
            response = self.adapter.send(request, **options)
        except (OSError, ValueError, HTTPError) as err:
            raise network_error(err, url, proxy) from err
        if response.status_code == 407:
            raise proxy_refuses(proxy)
        if response.is_redirect:
            response.close()  # nobody reads its body
        return response

    def watch(self, request: Any, options: Any, made: Callable[[], None]) -> None:
        """Let the connections for a request tell when they are made."""
        pool = self.adapter.get_connection_with_tls_context(
            request, options["verify"], options["proxies"], options["cert"]
        )

        class Watched(pool.ConnectionCls):  # type: ignore[misc, name-defined]
            def connect(self) -> None:
                super().connect()
                made()

        pool.ConnectionCls = Watched

    def close(self) -> None:
        self.adapter.close()


def make_session(
    base: str,
    token: str,
    tries: int,
    statuses: Collection[int] = (),
    made: Callable[[], None] | None = None,
) -> Session:
    """A requests session whose every request passes a `Door`.

    It repeats what gets no answer, or one of these HTTP statuses.
    """
    import requests
    import urllib3

    class Tries(urllib3.Retry):
        def get_retry_after(self, response: Any) -> float | None:
            """No Retry-After beyond the patience is waited for."""
            wait = super().get_retry_after(response)
            return wait if wait and wait <= PATIENCE_S else None

    session = requests.Session()
    session.auth = lambda request: request  # so that ~/.netrc is not consulted
    session.rebuild_auth = lambda *hop: None  # type: ignore[method-assign]
    agent = f"peps_maja/{__version__} {requests.utils.default_user_agent()}"
    session.headers.update({"User-Agent": agent, "Accept-Encoding": "identity"})
    retry = Tries(
        tries - 1,
        status_forcelist=statuses,
        backoff_factor=BACKOFF_S,
        raise_on_status=False,
    )
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=POOL_SIZE, max_retries=retry)
    door: Any = Door(base, token, adapter, made)
    session.mount("http://", door)
    session.mount("https://", door)
    return session


def chunks(response: Response, read: Callable[..., bytes]) -> Iterator[bytes]:
    """A body as it arrives, undecoded; raises CutOff where it breaks off.

    `read` is urllib3's: its `read` waits for a whole chunk, its `read1` does not.
    """
    from urllib3.exceptions import HTTPError

    while True:
        try:
            chunk = read(CHUNK_BYTES, decode_content=False)
        except (HTTPError, OSError) as err:
            raise CutOff(f"{host_of(response.url)} breaks off ({reason(err)})") from err
        if not chunk:
            return
        yield chunk


def read_body(response: Response, most: int, body: bytearray) -> bytes:
    """Read a document's body, which `body` holds as it arrives, into memory.

    It is unpacked if it came as gzip, which nobody asked for. Raises CutOff, PepsError
    for more than `most` bytes.
    """
    import zlib

    for chunk in chunks(response, response.raw.read1):
        body += chunk
        if len(body) > most:
            size = f"more than {most / 1e6:.1f} MB, which is refused"
            raise PepsError(f"{host_of(response.url)} sends a document of {size}")
    with contextlib.suppress(zlib.error):
        if body.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(wbits=31).decompress(body, most)
    return bytes(body)


def meaning(status: int, document: bytes) -> tuple[int, str]:
    """What an answer says, as an HTTP status, and in which words.

    Those of a WPS refusal or a JSON error win over the real HTTP status.
    """
    with contextlib.suppress(Unreadable):
        answer = parse_wps(document)
        if answer.failed:
            return answer.code or status, one_line(answer.message)
    return status, ""


class Reply(NamedTuple):
    """What came of an order: its answer, and what that means if it names no job.

    `certain` is whether then nothing was ordered.
    """

    document: bytes
    error: PepsError
    certain: bool


class Service:
    """A PEPS by its base URL, with an account's token, and the door to the network."""

    def __init__(self, base: str, token: str):
        try:
            import requests  # noqa: F401
            from urllib3 import BaseHTTPResponse  # noqa: F401  (new in 2.0)
        except ImportError as err:
            raise UsageError(
                "requests 2.32.2 and urllib3 2.2 or later are needed: "
                "python -m pip install -U requests urllib3"
            ) from err
        self.base = base
        self._session = partial(make_session, base, token)
        self.documents = self._session(TRIES, RETRIED | {404})
        self.products = self._session(TRIES, RETRIED)
        self.wishes = self._session(1)
        self._silent: dict[str, list[PepsError]] = {}
        self._refused: PepsError | None = None  # the account

    def ask(
        self, session: Session, url: str, method: str = "GET", **headers: str
    ) -> Response:
        """Send a request and follow its redirects; raises PepsError, NoAnswer.

        The response may have any status; its body is unread.
        """
        try:
            return session.request(
                method, url, headers=headers, stream=True, timeout=TIMEOUTS_S
            )
        except (OSError, ValueError) as err:  # requests' own errors are OSErrors
            raise network_error(err, url) from err

    def open(self, session: Session, url: str, **headers: str) -> Response:
        """Ask for a document or a product, unless that is known to be in vain.

        Raises PepsError, NoAnswer.
        """
        silent = self._silent.setdefault(host_of(url), [])
        if len(silent) >= SILENT_MAX:
            raise silent[-1]
        if self._refused and may_carry_password(url, self.base):
            raise self._refused
        try:
            response = self.ask(session, url, **headers)
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
        session = self.products if what == "search" else self.documents
        for number in range(1, TRIES + 1):
            try:
                with self.open(session, url) as response:
                    document = read_body(response, most, bytearray())
                break
            except CutOff:
                if number == TRIES:
                    raise
                time.sleep(BACKOFF_S * number)
        if response.status_code != 200 or parse_json_error(document):
            raise self.refusal(response, what, document)
        try:
            return document, parse(document)
        except Unreadable as err:
            raise type(err)(f"{host_of(response.url)}: the {what} is {err}") from err

    def refusal(self, response: Response, what: str, document: bytes) -> PepsError:
        """The error that an answer means."""
        host = host_of(response.url)
        code, words = meaning(response.status_code, document)
        said = f"({code}): {words}" if words else f"({code})"
        if code in (401, 403) and "Authorization" not in response.request.headers:
            return PepsError(
                f"{host} wants an account for the {what} {said}; yours goes only over "
                f"https, to hosts of {host_of(self.base)}'s domain"
            )
        if code == 401:
            remedy = f"check {console.account}"
            self._refused = PepsError(f"{host} refused the account {said}; {remedy}")
            return self._refused
        if code in (404, 410) and what in ("search", "order"):
            return PepsError(f"{host} has no such {what} {said}; check --server")
        if code in (404, 410):
            return Gone(f"{host} has no such {what} {said}")
        if code == 202:
            return NotYet(f"{host}: the {what} is not ready {said}")
        if code in RETRIED:
            return NotYet(f"{host} is out of order {said}")
        return Refused(f"{host} refused the {what} {said}")

    def search(self, area: str, start: str, end: str, orbit: int | None) -> list[Any]:
        """The catalogue's L1C features of an area, of one relative orbit or of all.

        `area` is its part of the query, such as `tileid=31TCJ`; `start` to before `end`
        are ISO 8601, UTC. Raises PepsError.
        """
        query = search_url(self.base, area, start, end)
        mark = "" if orbit is None else f"_R{orbit:03}_"
        found: dict[str, Any] = {}
        for number in range(1, PAGES_MAX + 1):
            url = query if number == 1 else f"{query}&page={number}"
            read = partial(self.read, url, "search", parse_page, PAGE_MAX_BYTES)
            _, (features, more) = patiently(read)
            before = len(found)
            found.update((json.dumps(feature), feature) for feature in features)
            # A server that does not know `page` sends the same one for ever.
            if not more or len(found) == before:
                return [one for text, one in found.items() if mark in text]
        raise PepsError(
            f"the catalogue's answer does not end after {PAGES_MAX} pages; "
            "narrow the search"
        )

    def place(self, url: str) -> Reply:
        """Send an order once; Ctrl-C ends the waiting for its answer."""
        body, made = bytearray(), threading.Event()

        def send() -> tuple[Response, bytes]:
            session = self._session(1, made=made.set)
            with self.ask(session, url, Connection="close") as response:
                return response, read_body(response, DOCUMENT_MAX_BYTES, body)

        try:
            response, document = patiently(send)
        except KeyboardInterrupt as stopped:
            error = Interrupted(stopped, "its answer was not there")
            return Reply(bytes(body), error, False)
        except GivenUp as err:
            return Reply(bytes(body), err, False)
        except PepsError as err:
            return Reply(bytes(body), err, not made.is_set())
        code, _ = meaning(response.status_code, document)
        refused = code in (429, 503) or (400 <= code < 500 and code != 408)
        if refused and not response.history:  # behind a redirect nothing is refused
            return Reply(document, self.refusal(response, "order", document), True)
        words = f"{host_of(response.url)} answered {response.status_code}, and no job"
        return Reply(document, PepsError(words), False)


def require_plain(path: Path) -> None:
    """Raise OSError if there is something that is no plain file, such as a folder."""
    if path.exists() and not path.is_file():
        words = "is a folder" if path.is_dir() else "is no plain file"
        raise OSError(errno.EINVAL, words, str(path))


def make_durable(file: BinaryIO) -> None:
    """Bring a file's content to the disk; a warning where the disk knows no fsync."""
    try:
        os.fsync(file.fileno())
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
        console.warn(f"the disk does not promise to keep {file.name}")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_whole(path: Path, document: bytes) -> None:
    """Write a small file whole or not at all; raises OSError."""
    require_plain(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(document)
            file.flush()
            make_durable(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def save_features(path: Path, features: list[Any]) -> None:
    """Save a catalogue answer as one FeatureCollection."""
    value = {"type": "FeatureCollection", "features": features}
    with named_file(path, "choose another file with --json"):
        write_whole(path, json.dumps(value, indent=1).encode())


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
        require_plain(path)
        content = path.read_bytes() if path.exists() else b""
    lines = as_text(content).splitlines()
    names = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    for name in names:
        if not PRODUCT.fullmatch(name):
            raise UsageError(
                f"{path} is no product list: it has '{one_line(name, 80)}'"
            )
    return names


def beside(log: Path, suffix: str) -> Path:
    """The file beside a log: `X.stat` for `X.log`; to any other name it is appended."""
    return log.with_name(f"{re.sub('[.]log$', '', log.name)}{suffix}")


def find_log(name: str, folders: Iterable[Path]) -> Path:
    """A product's log: where it holds a job, else one that is there, else the first."""
    logs = [folder / f"{name}.log" for folder in folders]
    there = [log for log in logs if os.path.lexists(log)]
    for log in there:
        with contextlib.suppress(OSError, Unreadable):
            answer = parse_log(log.read_bytes())
            if answer is None or answer.holds_job:
                return log
    return [*there, *logs][0]


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
    with named_file(log, again):
        require_plain(log)
        content = log.read_bytes() if log.exists() else None
    if content is None:
        require_no_old_note(log.with_name(f"{log.name}.part"))
        return None
    if not content.strip():
        raise UsageError(f"{log} is empty; {again}")
    try:
        answer = parse_log(content)
    except Unreadable as err:
        raise UsageError(f"{log} is {err}; {again}") from err
    if answer is None:
        raise in_doubt(log, as_text(content).splitlines()[0], again)
    return answer


def require_no_old_note(part: Path) -> None:
    """Raise OrderInDoubt for the note that version 1.1 left beside a missing log."""
    if os.path.lexists(part):
        raise OrderInDoubt(
            f"{part} may hold an order of version 1.1 that is in doubt: look into it, "
            "and at your jobs, then move it away"
        )


def in_doubt(log: Path, note: str, again: str) -> OrderInDoubt:
    """The error that a note means: what was sent when, where to look, both ways out."""
    return OrderInDoubt(
        f"{log} is in doubt: {one_line(note, 600)}; it may have been accepted, so it "
        "is not sent again. Look at your jobs on that service: if it is there, write "
        f"its status URL alone into {log}; if not, {again}"
    )


def order(
    service: Service, url: str, log: Path, force: bool, again: str
) -> tuple[WpsAnswer, bool]:
    """Place an order once, and keep its answer as the log, byte for byte.

    Returns the job that the log holds, and whether it is a new one. `force` orders
    whatever the log holds; that is kept as `<log>.1`, `.2` … Raises OrderInDoubt;
    Refused where this order alone is refused; PepsError.
    """
    if not force:
        held = read_log(log, again)
        if held and held.holds_job:
            return held, False
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    note = f"{NOTE} of {when}, by process {os.getpid()}: {url}"
    with named_file(log, "nothing was sent; choose another log file"):
        require_plain(log)
        aside = set_aside(log)
        try:
            write_note(log, note)
        except OSError:
            put_back(log, aside)
            raise
    reply = service.place(url)
    with contextlib.suppress(Unreadable):
        answer = parse_wps(reply.document)
        if answer.holds_job:
            keep_answer(log, note, answer, reply.document)
            return answer, True
    if reply.certain:
        if is_ours(log, note):
            log.unlink()
            put_back(log, aside)
        raise reply.error
    with contextlib.suppress(OSError), open(log, "ab") as file:
        file.write(f"{reply.error}\n".encode() + reply.document)
    doubt = in_doubt(log, f"{note} ({reply.error})", again)
    if isinstance(reply.error, Interrupted):
        doubt.status = reply.error.status
    raise doubt


def set_aside(log: Path) -> Path | None:
    """Move what a log holds to the first free name of `<log>.1`, `.2` …"""
    number = 0
    while os.path.lexists(log):
        number += 1
        copy = log.with_name(f"{log.name}.{number}")
        with contextlib.suppress(FileExistsError):
            copy.touch(exist_ok=False)  # so that no other run takes the same name
            os.replace(log, copy)
            return copy
    return None


def put_back(log: Path, aside: Path | None) -> None:
    """Undo `set_aside`."""
    if aside:
        os.replace(aside, log)


def write_note(log: Path, note: str) -> None:
    """Make a log that was not there, durably, with a note in it.

    The note is the lock between two orders, and the memory of one that died. Raises
    NotYet if another run was first, OSError.
    """
    try:
        with open(log, "xb") as file:
            file.write(f"{note}\n\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as err:
        raise NotYet(f"another run is at work on {log}") from err
    except OSError:
        log.unlink(missing_ok=True)
        raise
    sync_folder(log.parent)


def is_ours(log: Path, note: str) -> bool:
    """Whether this run's note stands in a log, and not another's."""
    with contextlib.suppress(OSError):
        return log.read_bytes().startswith(note.encode())
    return False


def keep_answer(log: Path, note: str, job: WpsAnswer, document: bytes) -> None:
    """Let the answer replace this run's note; raises PepsError with the job's place."""
    try:
        if not is_ours(log, note):
            raise FileExistsError("another order stands there")
        write_whole(log, document)
    except OSError as err:
        raise PepsError(
            f"job {one_line(job.job_id)} is ordered, but {log} cannot be written "
            f"({in_words(err)}); write its status URL {one_line(job.status_location)} "
            "alone into a file: that is a log, too"
        ) from err
