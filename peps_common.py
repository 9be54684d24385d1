"""What the four PEPS/MAJA scripts share.

From top to bottom: outcomes and messages, the command line, the account, documents (pure parsing), the network
(`Service`), files, downloads, and the follow-up of jobs. Importing this module has no effect and loads little:
requests comes in when a `Service` is made, and values are NamedTuples because dataclasses alone would make `-h` a
third slower, so that a typing error or `-h` answers at once.
"""

from __future__ import annotations

import argparse
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
from datetime import date
from enum import Enum, IntEnum
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

__version__ = "1.0.0"

CONNECT_TIMEOUT_S = 15
READ_TIMEOUT_S = 60
TRIES = 5
BACKOFF_S = 0.5  # urllib3 sleeps 0, 1, 2 and 4 s between five tries
RETRY_AFTER_MAX_S = 120
RETRIED = (429, 500, 502, 503, 504)
REDIRECTS_MAX = 10
ASK_AT_ONCE = 16
LENGTH_TIMEOUT_S = 10
CHUNK_BYTES = 256 * 1024
FLUSH_BYTES = 16 * 1024 * 1024
DOCUMENT_MAX_BYTES = 16 * 1024 * 1024
PAGE_RECORDS = 500
LOG_ROOM_BYTES = 64 * 1024
ZIP_START = b"PK\x03\x04"


# Outcomes and messages


class Status(IntEnum):
    """Exit statuses, the same for all four scripts."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_YET = 75
    INTERRUPTED = 130
    TERMINATED = 143


def worst(statuses: Iterable[Status]) -> Status:
    """The status of a whole from those of its parts: whatever needs a person first, then what needs time."""
    found = set(statuses)
    ranking = (Status.FAILED, Status.USAGE, Status.NOT_YET)
    return next((status for status in ranking if status in found), Status.OK)


class PepsError(Exception):
    """An expected failure: one line for the user, and the exit status it leads to."""

    def __init__(self, message: str, status: Status = Status.FAILED):
        super().__init__(message)
        self.status = status


class General(PepsError):
    """The account is refused, or the service is out of order: whatever is tried next will fail in the same way."""


class Held(PepsError):
    """The log holds a job already."""

    def __init__(self, log: Path, answer: WpsAnswer):
        super().__init__(f"{log} already holds job {answer.job_id}, so nothing was ordered", Status.USAGE)
        self.answer = answer


class Gone(PepsError):
    """The server answered 404 or 410."""


class Unreadable(PepsError):
    """A document that is not what it should be."""


class NotAProduct(PepsError):
    """A page, an error or nothing came where a zip was asked for."""


class Broken(Exception):
    """A body ended before its end; what came is kept, and the rest can be asked for."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which like Ctrl-C may come at any moment."""


def clean(text: object, limit: int = 300) -> str:
    """The service's words as one printable line of at most `limit` characters."""
    printable = "".join(char if char.isprintable() else " " for char in str(text))
    return " ".join(printable.split())[:limit]


def human(size: float) -> str:
    """A number of bytes for people, in decimal units: 512.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.95 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 product, 2 products."""
    return f"{count} {noun}{'s' * (count != 1)}"


class Console:
    """Where words go: news and results to stdout, errors and the progress bar to stderr."""

    def __init__(self, prog: str):
        self.prog = prog
        self.quiet = False
        self.secrets: tuple[str, ...] = ()
        self.bar = None

    def say(self, text: str, news: bool = False) -> None:
        """Print to stdout; with -q only if it is news."""
        if news or not self.quiet:
            self._print(text, sys.stdout)

    def error(self, text: str) -> None:
        """Print one line to stderr, -q or not, whatever the text quotes."""
        self._print(f"{self.prog}: {clean(text, 4000)}", sys.stderr)

    def _print(self, text: str, stream) -> None:
        for secret in self.secrets:  # a service may quote what it was sent
            text = text.replace(secret, "***")
        above = self.bar.external_write_mode(file=stream) if self.bar else contextlib.nullcontext()
        try:
            with above:
                print(text, file=stream, flush=True)
        except OSError as err:
            # The reader has left (`| head`) or the disk is full: no reason to leave a download half done.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout and not isinstance(err, BrokenPipeError):
                self.error(f"warning: standard output: {os_reason(err)}; the run goes on without it")

    @contextlib.contextmanager
    def progress(self, products: list[Product]) -> Iterator[None]:
        """Show a bar while the block runs, if stderr is a terminal and tqdm is installed."""
        tqdm = None
        if products and not self.quiet and sys.stderr and sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm
        if tqdm is None:
            yield
            return
        from threading import Lock

        self._lock = Lock()
        total, there = (sum(sizes) for sizes in zip(*((product.size or 0, product.partial) for product in products)))
        try:
            with tqdm(total=total or None, initial=there, unit="B", unit_scale=True) as self.bar:
                self.count(0, len(products))
                yield
        finally:
            self.bar = None

    def count(self, done: int, total: int) -> None:
        """Tell the bar how many products are done."""
        if self.bar is not None:
            self.bar.set_description(f"{done}/{plural(total, 'product')}")

    def advance(self, size: int) -> None:
        """Tell the bar that so many more bytes are on disk; called from the downloading threads."""
        if self.bar is not None:
            with self._lock:
                self.bar.update(size)


# The command line

EXIT_STATUSES = """exit status:
  0    everything asked for is done
  75   not yet: a job waits or runs, the service or the network is out of order,
       or another run is at work on the same job; run it again later
  1    failed for good: a person has to look
  2    the command line, the account file, the log file or the product list is wrong
  130  interrupted with Ctrl-C (143: by SIGTERM); run it again"""


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line, and it is raised so that `run_script` alone ends the script."""

    def error(self, message: str):
        raise PepsError(f"{message} (see {self.prog} -h)", Status.USAGE)


def make_parser(script: str, description: str, examples: str) -> Parser:
    """A parser with the options that all four scripts have.

    Parameters
    ----------
    script : str
        The script's `__file__`.
    examples : str
        Command lines, one a line, for the end of the help.
    """
    lines = "\n".join(f"  python {line.strip()}" for line in examples.strip().splitlines())
    parser = Parser(
        prog=Path(script).name,
        description=description,
        epilog=f"examples:\n{lines}\n\n{EXIT_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-a", "--auth", metavar="FILE", type=Path, default=Path("peps.txt"),
        help="account file: e-mail, blank, password on one line (default: peps.txt)",
    )  # fmt: skip
    parser.add_argument(
        "--server", metavar="URL", type=server_url, default=os.environ.get("PEPS_URL") or "https://peps.cnes.fr",
        help="the service (default: $PEPS_URL, else https://peps.cnes.fr)",
    )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="nothing on stdout but news")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def add_download_options(parser: Parser) -> None:
    """The options that the two download scripts share."""
    parser.add_argument(
        "-w", "--write_dir", metavar="DIR", type=Path, default=Path("."),
        help="folder for the products (default: the current one)",
    )  # fmt: skip
    parser.add_argument(
        "-j",
        "--jobs",
        metavar="N",
        type=number(int, 1, 1000, "a number from 1 on"),
        default=4,
        help="downloads at once (default: 4)",
    )
    parser.add_argument("--wait", action="store_true", help="stay until every job has ended")
    parser.add_argument(
        "--interval", metavar="MINUTES", type=number(float, 0.001, 10**6, "a number of minutes above 0"), default=10.0,
        help="with --wait: time between two looks (default: 10)",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="read products on disk through, and replace damaged ones")


def server_url(text: str) -> str:
    """argparse type: the base URL of a service, without a trailing slash."""
    try:
        parts = urlsplit(text.strip())
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        good = False
    if not good or "@" in parts.netloc or parts.query or parts.fragment or " " in clean(text):
        # The text is not echoed: it may hold a password.
        raise argparse.ArgumentTypeError(
            "the server (--server or $PEPS_URL) must look like https://peps.cnes.fr, without account or query"
        )
    return text.strip().rstrip("/")


def day(text: str) -> date:
    """argparse type: a date of the calendar as YYYY-MM-DD (UTC)."""
    try:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a date of the form YYYY-MM-DD") from None


def tile(text: str) -> str:
    """argparse type: an MGRS tile such as 31TCJ (or T31TCJ), returned as 31TCJ.

    Zone 01 to 60, band C to X, column A to Z, row A to V, none of them I or O.
    """
    pattern = r"T?((?:0[1-9]|[1-5][0-9]|60)[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])"
    found = re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not a Sentinel-2 tile such as 31TCJ")
    return found[1].upper()


def number(kind: type, low: float, high: float, what: str) -> Callable[[str], float]:
    """An argparse type: an int or a float from `low` to `high` inclusive."""

    def convert(text: str) -> float:
        try:
            value = kind(text if "_" not in text else "")  # Python reads 5_1 as 51
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not {what}")
        return value

    return convert


orbit = number(int, 1, 143, "a relative orbit, 1 to 143")


def run_script(
    build_parser: Callable[[], Parser], run: Callable[[argparse.Namespace, Console], Status], argv: list[str] | None
) -> int:
    """Parse, run, and turn whatever happens into one line and an exit status.

    A real bug keeps its traceback; nothing that the user, the service, the network or the disk does is one.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # an accent must not stop a run under LANG=C
    console = Console(Path(sys.argv[0]).name)
    try:
        parser = build_parser()
        console.prog = parser.prog
        return int(_parse_and_run(parser, run, sys.argv[1:] if argv is None else argv, console))
    except SystemExit as end:  # argparse's way out of -h and --version
        return int(end.code or 0)
    except PepsError as err:
        console.error(str(err))
        return int(err.status)
    except KeyboardInterrupt as stop:
        console.error(str(stop) or "interrupted; the same command goes on from here")
        return int(Status.TERMINATED if isinstance(stop, Terminated) else Status.INTERRUPTED)
    except OSError as err:
        console.error(f"{os_reason(err)}; put that right and run this again")
        return int(Status.FAILED)


def _parse_and_run(parser, run, argv, console) -> Status:
    if not argv:
        parser.print_help()
        return Status.USAGE
    args, surplus = parser.parse_known_args(argv)
    unknown = [word for word in surplus if word.startswith("-") and word != "--"]
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    if surplus:
        console.error(f"warning: ignored: {' '.join(surplus)}")
    console.quiet = args.quiet
    with interruptible():
        return run(args, console)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While the block runs, SIGTERM raises Terminated, and no interrupt is lost.

    Python swallows an exception that a signal raises while an object is being finalized. It tells of that, and
    so the signal can be sent again a moment later.
    """
    import signal
    import threading

    main = threading.main_thread()

    def terminate(number, frame):
        raise Terminated

    def again(number: int) -> None:
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main.ident, number)
        else:
            signal.raise_signal(number)

    def swallowed(unraisable) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            number = signal.SIGTERM if issubclass(unraisable.exc_type, Terminated) else signal.SIGINT
            threading.Timer(0.05, again, [number]).start()
        else:
            before(unraisable)

    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, terminate)
    before, sys.unraisablehook = sys.unraisablehook, swallowed
    try:
        yield
    finally:
        sys.unraisablehook = before


def os_reason(err: OSError, path: Path | None = None) -> str:
    """An OSError in words, with its file; `path` is for those that do not know it."""
    words = err.strerror or str(err) or type(err).__name__
    return f"{err.filename or path}: {words}" if err.filename or path else words


def os_error(err: OSError, path: Path, words: str) -> PepsError:
    """An OSError on a file that the user named: status 2, but 1 if the disk is full."""
    full = err.errno in (errno.ENOSPC, errno.EDQUOT)
    return PepsError(f"{os_reason(err, path)}; {words}", Status.FAILED if full else Status.USAGE)


# The account, and who may see it


class Account(NamedTuple):
    """E-mail and password, as they go on the wire."""

    email: str
    password: str

    def __repr__(self) -> str:
        return "Account(...)"

    @property
    def token(self) -> str:
        """What goes into the Authorization header (RFC 7617, in UTF-8)."""
        from base64 import b64encode

        return b64encode(f"{self.email}:{self.password}".encode()).decode("ascii")


def parse_account(text: str) -> Account:
    """The account in the text of an account file: e-mail, first blank, and all the rest of the line.

    Raises
    ------
    ValueError
        When there is no such line. Its message never quotes the text.
    """
    line = text.lstrip("\ufeff\r\n").split("\n")[0].rstrip("\r")
    found = re.fullmatch(r"([^ \t]+)[ \t](.+)", line, re.DOTALL)
    if not found:
        raise ValueError("must hold e-mail, blank and password on one line")
    return Account(found[1], found[2])


def read_account(path: Path, console: Console) -> Account:
    """The account in a file; warns if others can read it, raises PepsError (status 2) if it is no account file."""
    try:
        account = parse_account(path.read_bytes().decode("utf-8"))
        if os.name == "posix" and path.stat().st_mode & 0o077:
            console.error(f"warning: {path} can be read by others; 'chmod 600 {path}' keeps your password to you")
    except OSError as err:
        raise PepsError(f"account file {os_reason(err)}; name yours with -a", Status.USAGE) from err
    except UnicodeDecodeError as err:
        raise PepsError(f"account file {path} is not UTF-8 text; save it as UTF-8", Status.USAGE) from err
    except ValueError as err:
        raise PepsError(f"account file {path}: {err}", Status.USAGE) from err
    console.secrets = (account.token, account.password)[: 1 + (len(account.password) >= 4)]  # masks no "a" everywhere
    return account


def address(host: str):
    """The `ipaddress` value that a host is, None for a name."""
    import ipaddress

    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether a host can only mean this machine."""
    return host == "localhost" or bool(address(host) and address(host).is_loopback)


# Below these a two-letter top-level domain gives names to anybody: `maja.co.uk` does not trust `co.uk`.
OPEN_SECOND_LEVELS = {"ac", "co", "com", "edu", "go", "gob", "gouv", "gov", "ne", "net", "or", "org"}


def own_domain(host: str) -> str | None:
    """The parent domain whose hosts a server may share its account with, None if there is none."""
    parent = host.partition(".")[2]
    labels = parent.split(".")
    if len(labels) < 2 or address(host) or (len(labels) == 2 and labels[0] in OPEN_SECOND_LEVELS):
        return None
    return parent


def may_carry_password(url: str, server: str) -> bool:
    """Whether the account may go to this URL.

    Over https to the server's own host and hosts of its parent domain, over plain http to a loopback server alone.
    """
    parts, own = urlsplit(url), urlsplit(server).hostname.rstrip(".")
    host = (parts.hostname or "").rstrip(".")
    domain = own_domain(own)
    ours = host == own or (domain is not None and (host == domain or host.endswith("." + domain)))
    return ours and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))


def secure(url: str, server: str) -> str:
    """The URL to fetch for one that a document names: https for the server's own host where it has https."""
    parts, own = urlsplit(url), urlsplit(server)
    if (parts.scheme, parts.netloc.lower(), own.scheme) == ("http", own.hostname, "https"):
        return parts._replace(scheme="https").geturl()
    return url


# Documents: text in, values out


class State(Enum):
    """How a job stands, with the exit status that this means."""

    WAITING = ("waiting", Status.NOT_YET)
    RUNNING = ("running", Status.NOT_YET)
    UNKNOWN = ("in an unknown state", Status.NOT_YET)
    UNREACHED = ("without an answer", Status.NOT_YET)
    FINISHED = ("finished", Status.OK)
    FAILED = ("failed", Status.FAILED)
    CANCELED = ("canceled", Status.FAILED)
    GONE = ("gone", Status.FAILED)
    REFUSED = ("refused", Status.FAILED)
    WRONG_LOG = ("without a usable log", Status.USAGE)

    def __init__(self, word: str, status: Status):
        self.word = word
        self.status = status


class WpsAnswer(NamedTuple):
    """A WPS 1.0.0 answer: an ExecuteResponse (also kept as the log), a status document or a refusal.

    `state` is the name of the element in Status (`ProcessAccepted` ... `ProcessFailed`), or `Refused`.
    """

    state: str
    status_location: str | None = None
    report_url: str | None = None
    message: str = ""

    @property
    def failed(self) -> bool:
        return self.state in ("ProcessFailed", "Refused")

    @property
    def holds_job(self) -> bool:
        return bool(self.status_location) and not self.failed

    @property
    def job_id(self) -> str:
        """The status document's stem; PyWPS 3 puts `pywps-` before it."""
        stem = urlsplit(self.status_location or "").path.rpartition("/")[2].rpartition(".")
        name = stem[0] or stem[2]
        return name[len("pywps-") :] if name.startswith("pywps-") else name


def parse_wps(document: bytes) -> WpsAnswer:
    """Read a WPS 1.0.0 answer, whatever its namespace prefixes and line breaks, or the service's JSON error.

    Source of the rules: OGC 05-007r7 (WPS 1.0.0), section 10.3, and OGC 06-121r3, section 8, for ExceptionReport.

    Raises
    ------
    Unreadable
        When it is neither (status 75: an answer that may be in order next time), or is not to be trusted (status 1).
    """
    if document.lstrip()[:1] == b"{":
        error = parse_json_error(document)
        if error is None:
            raise Unreadable("a JSON document instead of a WPS answer", Status.NOT_YET)
        return WpsAnswer("Refused", message=f"{error.message} ({error.code})")
    root = parse_xml(document)
    name = local_name(root)
    texts = "; ".join(clean(found.text) for found in root.findall(".//{*}ExceptionText") if found.text)
    if name == "ExceptionReport":
        return WpsAnswer("Refused", message=texts or "no reason given")
    if name != "ExecuteResponse":
        raise Unreadable(f"a document <{clean(name, 40)}> instead of a WPS answer", Status.NOT_YET)
    states = root.findall("{*}Status/*")
    references = root.findall("{*}ProcessOutputs/{*}Output/{*}Reference")
    hrefs = [value for found in references for key, value in found.items() if key.rpartition("}")[2] == "href"]
    return WpsAnswer(
        state=local_name(states[0]) if states else "",
        status_location=(root.get("statusLocation") or "").strip() or None,
        report_url=hrefs[0] if hrefs else None,
        message=texts or clean(states[0].text or "" if states else ""),
    )


def http_url(text: str, base: str = "") -> str | None:
    """The http or https URL that a text is, beside `base` if it is a relative one; None if it is none."""
    try:
        url = urljoin(base, text.strip())
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.hostname else None


def local_name(element) -> str:
    return element.tag.rpartition("}")[2]


def parse_xml(document: bytes):
    """The root element of an XML document; refuses a DTD, with which a small document can eat all memory."""
    from xml.etree import ElementTree

    class Builder(ElementTree.TreeBuilder):
        def doctype(self, name, pubid, system):
            raise Unreadable("a document with a DTD, which is refused", Status.FAILED)

    parser = ElementTree.XMLParser(target=Builder())  # noqa: S314  (no DTD, no entities)
    try:
        parser.feed(document.lstrip())
        return parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as err:
        raise Unreadable("not an XML document, or half of one", Status.NOT_YET) from err


def parse_json(document: bytes):
    """The value of a JSON document; raises Unreadable."""
    import json

    try:
        return json.loads(document)
    except (ValueError, RecursionError) as err:
        raise Unreadable("not a JSON document, or half of one", Status.NOT_YET) from err


class JsonError(NamedTuple):
    """The service's error, `{"ErrorCode": 401, "ErrorMessage": "Unauthorized"}`, which may come with HTTP 200."""

    code: int
    message: str


def parse_json_error(document: bytes) -> JsonError | None:
    """The error in a document, None if it is none."""
    if b'"Error' not in document:
        return None
    try:
        error = parse_json(document)
    except Unreadable:
        return None
    if not isinstance(error, dict) or not {"ErrorCode", "ErrorMessage"} & set(error):
        return None
    code = str(error.get("ErrorCode"))
    return JsonError(int(code) if re.fullmatch("[0-9]{3}", code) else 400, clean(error.get("ErrorMessage") or ""))


class Report(NamedTuple):
    """A job's JSON report. `progress` is text for people; `results` are URLs, too cloudy ones among them."""

    state: State
    word: str
    progress: str = ""
    message: str = ""
    results: tuple[str, ...] = ()
    unprocessed: int = 0
    lost: tuple[str, ...] = ()


REPORT_WORDS = {
    "PENDING": State.WAITING,
    "STALLED": State.RUNNING,  # the service's word for it
    "FINISHED": State.FINISHED,
    "ERROR": State.FAILED,
    "CANCELED": State.CANCELED,
    "CANCELLED": State.CANCELED,
}


def parse_report(document: bytes) -> Report:
    """Read a job's report, of FULL_MAJA or of the single-product MAJA.

    The keys are those of USER_INFO; where one is missing, the state word, percentCompleted and the .zip URLs
    are taken from wherever they stand, as the single-product process writes them.

    Raises
    ------
    Unreadable
        When it is not a JSON object (status 75).
    """
    whole = parse_json(document)
    if not isinstance(whole, dict):
        raise Unreadable("a JSON document that is no report", Status.NOT_YET)
    everything = list(leaves(whole))
    info = whole.get("USER_INFO")
    info = info if isinstance(info, dict) else {}
    word = info.get("job_status")
    if not isinstance(word, str):
        word = next((value for _, value in everything if value in REPORT_WORDS), "")
    progress = info.get("process", next((value for key, value in everything if key == "percentCompleted"), None))
    unprocessed, lost = parse_unprocessed(info.get("unprocessed"))
    return Report(
        state=REPORT_WORDS.get(word.strip().upper(), State.UNKNOWN),
        word=clean(word, 40),
        progress="" if progress is None else clean(progress, 20).rstrip("% ") + "%",
        message=clean(info.get("message") or ""),
        results=parse_results(info.get("results"), everything),
        unprocessed=unprocessed,
        lost=lost,
    )


def leaves(root: object) -> Iterator[tuple[str, object]]:
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


def parse_results(listed: object, everything: list[tuple[str, object]]) -> tuple[str, ...]:
    """The result URLs: those listed, else every .zip URL of the report; each once."""
    if listed or isinstance(listed, (list, dict)):
        found = [clean(value, 4000) for _, value in leaves(listed) if value is not None]
    else:
        texts = [value for _, value in everything if isinstance(value, str)]
        found = [text for text in texts if re.fullmatch(r"https?://\S+\.zip", text)]
    return tuple(dict.fromkeys(found))


def parse_unprocessed(value: object) -> tuple[int, tuple[str, ...]]:
    """How many dates were lost, and the names of those that the report names."""
    if isinstance(value, (list, dict)):
        names = tuple(clean(name) for _, name in leaves(value) if name is not None)
        return len(names), names
    try:
        return max(0, int(float(str(value)))), ()
    except (ValueError, OverflowError):
        return (1, (clean(value),)) if isinstance(value, str) and value.strip() else (0, ())


def product_name(url: str) -> str:
    """The file name of a result: one path component that can harm nothing.

    Raises
    ------
    PepsError
        Status 1, when the URL is none or its name is refused.
    """
    try:
        name = unquote(urlsplit(url).path.rpartition("/")[2])
    except ValueError:
        name = ""
    if not http_url(url) or not is_file_name(name) or not name.endswith(".zip"):
        raise PepsError(f"the result '{clean(url)}' is refused: it is no http address of a plain .zip name")
    return name


def is_file_name(name: str) -> bool:
    """Whether a name from the service is one visible path component, on any system, with room for `.part`."""
    plain = bool(name) and name.isprintable() and name[0] != "." and not set(name) & set('/\\:*?"<>|')
    return plain and len(name.encode()) <= 250


class Acquisition(NamedTuple):
    """What ties an L1C product to its L2A product: their times differ by seconds."""

    platform: str
    day: str
    tile: str


def acquisition(name: str) -> Acquisition | None:
    """The acquisition of an L1C or L2A product, from its name."""
    found = re.match(r"S2([A-Z])_MSIL1C_([0-9]{8})T.*_T([0-9]{2}[A-Z]{3})(?:_|$)", name) or re.match(
        r"SENTINEL2([A-Z])_([0-9]{8})-.*_T([0-9]{2}[A-Z]{3})_", name
    )
    return Acquisition("S2" + found[1], found[2], found[3]) if found else None


class L1C(NamedTuple):
    """One product of the catalogue; `date` is YYYYMMDD, UTC."""

    name: str
    storage: str
    orbit: int | None
    acquisition: Acquisition | None

    @classmethod
    def from_feature(cls, feature: object) -> L1C | None:
        """Read a GeoJSON feature of the catalogue; None where the product has no usable name."""
        properties = as_dict(as_dict(feature).get("properties"))
        name = properties.get("productIdentifier")
        if not isinstance(name, str) or not is_file_name(name) or " " in name:
            return None
        storage = as_dict(properties.get("storage")).get("mode")
        found = re.search(r"_R([0-9]{3})_", name)
        stated = [properties.get(key) for key in ("platform", "startDate", "mgrs")]
        when = acquisition(name)
        if when is None and all(isinstance(value, str) for value in stated):
            when = Acquisition(stated[0], stated[1][:10].replace("-", ""), stated[2].lstrip("T"))
        return cls(name, clean(storage or "unknown", 20), int(found[1]) if found else None, when)


def as_dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


class Page(NamedTuple):
    """One page of a catalogue answer; `more` is None where the answer does not say."""

    document: dict
    features: list
    more: bool | None


def parse_page(document: bytes) -> Page:
    """Read a page of the catalogue (a GeoJSON FeatureCollection of resto 2).

    Raises
    ------
    Unreadable
        When it is no such answer (status 75).
    """
    whole = parse_json(document)
    features = as_dict(whole).get("features")
    if not isinstance(features, list):
        raise Unreadable("a JSON document that is no catalogue answer", Status.NOT_YET)
    links = as_dict(whole.get("properties")).get("links")
    more = any(as_dict(link).get("rel") == "next" for link in links) if isinstance(links, list) else None
    return Page(whole, features, more)


def missing_acquisitions(expected: Iterable[Acquisition], results: Iterable[str]) -> list[Acquisition]:
    """The expected acquisitions with neither a product nor a too cloudy one among the result URLs, in order."""
    there = {acquisition(unquote(url.rpartition("/")[2])) for url in results}
    return sorted(set(expected) - there)


# The network


class Service:
    """A PEPS, its account, and the only door to the network.

    Parameters
    ----------
    base : str
        The base URL, as `server_url` returns it.
    connections : int
        How many connections to one host are kept alive, at least.
    """

    def __init__(self, base: str, account: Account, connections: int = ASK_AT_ONCE):
        try:
            import requests
            from requests.adapters import HTTPAdapter
            from urllib3 import HTTPResponse
            from urllib3.exceptions import InvalidHeader
            from urllib3.util.retry import Retry
        except ImportError:
            HTTPResponse = None
        if not hasattr(HTTPResponse, "read1"):  # older ones take a cut body for a whole one
            what = "requests with urllib3 2.2 or later is needed: python -m pip install -U requests urllib3"
            raise PepsError(what, Status.USAGE)

        class Patience(Retry):
            def get_retry_after(self, response):
                try:
                    seconds = super().get_retry_after(response)
                except (InvalidHeader, ValueError, OverflowError):
                    return None
                return min(seconds, RETRY_AFTER_MAX_S) if seconds else seconds

        self.base = base
        self._account = account
        self._errors = requests.exceptions
        self._tells_lengths = True
        # HEAD is a wish, so it is tried once; GET asks for a document or a product and is worth the patience.
        reads = Patience(
            TRIES - 1, backoff_factor=BACKOFF_S, status_forcelist=RETRIED,
            allowed_methods=("GET",), raise_on_status=False,
        )  # fmt: skip
        # urllib3 would repeat an execute, which is a GET, and order twice.
        once = Retry(
            TRIES - 1, read=0, status=0, other=0, backoff_factor=BACKOFF_S,
            respect_retry_after_header=False, raise_on_status=False,
        )  # fmt: skip
        self._reading, self._ordering = requests.Session(), requests.Session()
        for session, retry in ((self._reading, reads), (self._ordering, once)):
            session.headers["User-Agent"] = f"peps_maja/{__version__} {session.headers['User-Agent']}"
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(pool_maxsize=max(connections, ASK_AT_ONCE), max_retries=retry))

    def __repr__(self) -> str:
        return f"Service({self.base!r})"

    def _sign(self, request):
        # Decided on the URL as requests has normalised it, so that no two parsers can disagree on the host.
        # Being there at all, this also keeps requests from ~/.netrc and from accounts written into a URL.
        if may_carry_password(request.url, self.base):
            request.headers["Authorization"] = f"Basic {self._account.token}"
        return request

    def _send(self, session, method: str, url: str, headers: dict[str, str]):
        """One request and its redirects, followed by hand so that each hop is signed, or not, by the same rule."""
        for _ in range(REDIRECTS_MAX):
            url = secure(url, self.base)
            host = urlsplit(url).hostname or ""
            response = session.request(
                method, url, auth=self._sign, headers=headers, stream=True, allow_redirects=False,
                timeout=(CONNECT_TIMEOUT_S, LENGTH_TIMEOUT_S if method == "HEAD" else READ_TIMEOUT_S),
                proxies={"no_proxy": host} if is_loopback(host) else None,
            )  # fmt: skip
            if not response.is_redirect:
                return response
            response.close()
            url = urljoin(url, response.headers["Location"])
        raise PepsError(f"{host} redirects without end; tell the service")

    def open(self, url: str, what: str, headers: dict[str, str] | None = None, accept=(200,), method="GET"):
        """Ask for a URL and return the response, its body unread.

        Raises
        ------
        PepsError
            With the host, the reason and the status that follows from the answer; Gone for 404 and 410.
        """
        try:
            response = self._send(self._reading, method, url, headers or {})
        except (self._errors.RequestException, ValueError) as err:
            raise self._network_error(url, what, err) from err
        if response.status_code in accept:
            return response
        with response:
            words = ""
            with contextlib.suppress(PepsError, self._errors.RequestException, OSError):
                words = error_words(self._body(response, "error"))
            raise self._refusal(response, what, response.status_code, words)

    def read(self, url: str, what: str, parse: Callable[[bytes], object]) -> tuple[bytes, object]:
        """A document of at most 16 MiB byte for byte, and its value; raises PepsError."""
        for attempt in range(TRIES):
            try:
                with self.open(url, what) as response:
                    document = self._body(response, what)
                break
            except (self._errors.RequestException, OSError) as err:
                if attempt == TRIES - 1:
                    raise self._network_error(url, what, err) from err
                time.sleep(BACKOFF_S * attempt)
        error = parse_json_error(document)
        if error:
            raise self._refusal(response, what, *error)
        try:
            return document, parse(document)
        except Unreadable as err:
            raise PepsError(f"{host_of(url)} sent {err}, for the {what}", err.status) from err

    def _body(self, response, what: str) -> bytes:
        body = bytearray()
        for chunk in response.iter_content(65536):
            body += chunk
            if len(body) > DOCUMENT_MAX_BYTES:
                raise PepsError(
                    f"the {what} from {host_of(response.url)} is larger than {human(DOCUMENT_MAX_BYTES)}; refused"
                )
        return bytes(body)

    def length(self, url: str) -> int | None:
        """The size in bytes of a product, None where the server does not tell or once did not answer."""
        if not self._tells_lengths:
            return None
        try:
            with self.open(url, "product", {"Accept-Encoding": "identity"}, method="HEAD") as response:
                text = response.headers.get("Content-Length", "")
                return int(text) if text.isdecimal() else None
        except PepsError as err:
            self._tells_lengths = err.status != Status.NOT_YET
            return None

    def chunks(self, response) -> Iterator[bytes]:
        """A body as it arrives; raises Broken where it breaks off."""
        from http.client import HTTPException

        from urllib3.exceptions import HTTPError

        raw, received = response.raw, 0
        while True:
            # read1 hands over what has arrived, so that a cut loses nothing. From TLS that is 16 KiB at a time, which
            # takes three times as long as read, which waits for a whole chunk, and loses it in a cut. So it comes in
            # when a chunk is little beside what this answer has brought, and every answer still makes progress.
            whole = received >= 4 * CHUNK_BYTES and response.url.startswith("https:")
            try:
                arrived = (raw.read if whole else raw.read1)(CHUNK_BYTES)
            except (HTTPError, HTTPException, OSError, ValueError) as err:
                raise Broken(reason(err)) from err
            if not arrived:
                return
            received += len(arrived)
            yield arrived

    def refresh(self, job_id: str) -> None:
        """Ask the service to bring a job's report up to date; a report that stays old is still a report."""
        with contextlib.suppress(PepsError):
            flags = "status=false&storeExecuteResponse=false"
            self.read(execute_url(self.base, "PROCESSING_STATUS", {"wps_id": job_id}, flags), "refresh", parse_wps)

    def submit(self, url: str) -> bytes:
        """Send an execute request, once, and return the answer byte for byte.

        Raises
        ------
        PepsError
            Status 75 when it certainly did not arrive, 1 when it was refused or may have been accepted.
        """
        host = host_of(url)
        doubt = (
            f"the job may have been accepted all the same: look at your jobs on {self.base} before ordering it again"
        )
        try:
            with self._send(self._ordering, "GET", url, {"Connection": "close"}) as response:
                document = self._body(response, "answer")
        except (self._errors.RequestException, ValueError) as err:
            if self._never_connected(err):
                raise self._network_error(url, "order", err, General) from err
            raise PepsError(f"{host} did not answer the order ({reason(err)}); {doubt}") from err
        except KeyboardInterrupt as stop:
            raise type(stop)(f"interrupted while {host} was asked; {doubt}") from stop
        error = parse_json_error(document)
        if 200 <= response.status_code < 300 and not error:
            return document
        code, words = error or (response.status_code, error_words(document))
        if code in (502, 504) or (code == 500 and (error or not words)):
            raise PepsError(f"{host} answered {code} to the order; {doubt}")
        raise self._refusal(response, "order", 400 if code == 500 else code, words)

    def _never_connected(self, err: Exception) -> bool:
        from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ProxyError

        cause = getattr(err.args[0], "reason", None) if err.args else None
        before = (ConnectTimeoutError, NewConnectionError, ProxyError, self._errors.ConnectTimeout)
        before += (self._errors.ProxyError,)
        return isinstance(err, before) or isinstance(cause, before) or is_untrusted(err) or self._is_address(err)

    def _is_address(self, err: Exception) -> bool:
        """Whether requests refused a URL: InvalidURL and its kin are ValueErrors, as is a self-contradicting header."""
        return isinstance(err, ValueError) and not isinstance(err, self._errors.InvalidHeader)

    def _network_error(self, url: str, what: str, err: Exception, kind: type = PepsError) -> PepsError:
        host = host_of(url)
        if is_untrusted(err):
            return kind(f"{host} cannot prove that it is {host} ({reason(err)}); nothing was sent to it")
        if self._is_address(err):
            return kind(f"the address of the {what}, '{clean(url)}', is refused: {clean(err)}")
        failed = f"the {what} did not get through to {host}" if what == "order" else f"no {what} from {host}"
        return kind(
            f"{failed}, tried {TRIES} times ({reason(err)}); "
            "the service or the network is out of order, run this again later",
            Status.NOT_YET,
        )

    def _refusal(self, response, what: str, code: int, words: str) -> PepsError:
        """The error that an HTTP status means, or the same code in a JSON error."""
        host, signed = host_of(response.url), "Authorization" in response.request.headers
        said = f": {words}" if words else ""
        if code in (401, 403) and not signed:
            own = host_of(self.base)
            return General(
                f"{host} wants an account ({code}) for the {what}, but yours goes only over https and only to hosts "
                f"of {own}'s own domain"
            )
        if code in (401, 403):
            kind = General if code == 401 else PepsError
            return kind(f"{host} refused the account ({code}) for the {what}{said}; check the account file")
        if code in (404, 410) and what in ("search", "order"):
            return General(f"{host} has nothing at that address ({code}) for the {what}; check --server")
        if code in (404, 410):
            return Gone(f"{host} no longer has the {what} ({code})")
        if code in RETRIED:
            tried = f", tried {TRIES} times" if code == response.status_code and what != "order" else ""
            words = f"{host} answered {code} for the {what}{tried}{said}"
            return PepsError(f"{words}; the service is out of order, run this again later", Status.NOT_YET)
        return PepsError(f"{host} refused the {what} ({code}){said or ': no reason given'}")

    def search(self, area: str, start: date, end: date | None, relative_orbit: int | None = None) -> dict:
        """Every L1C product of the catalogue, all pages merged in one FeatureCollection.

        Parameters
        ----------
        area : str
            The area's part of the query, such as `tileid=31TCJ`.
        start, end : date
            From `start` to the day before `end`, both at 00:00 UTC; None: no end.
        relative_orbit : int
            1 to 143; keeps the products of that orbit alone.
        """
        query = search_url(self.base, area, start, end)
        merged: dict = {}
        found: dict[object, object] = {}
        number = 1
        while True:
            url = query if number == 1 else f"{query}&page={number}"
            _, page = self.read(url, "search", parse_page)
            before = len(found)
            for feature in page.features:
                product = L1C.from_feature(feature)
                found.setdefault(product.name if product else repr(feature), feature)
            merged = merged or page.document
            more = len(page.features) >= PAGE_RECORDS if page.more is None else page.more
            # A server that does not know `page` sends the same one for ever.
            if not more or len(found) == before:
                break
            number += 1
        kept = [
            item for item in found.values() if relative_orbit in (None, getattr(L1C.from_feature(item), "orbit", None))
        ]
        properties = {**as_dict(merged.get("properties")), "totalResults": len(kept), "startIndex": 1}
        properties.update(itemsPerPage=len(kept), links=[])
        return {**merged, "properties": properties, "features": kept}


def host_of(url: str) -> str:
    """The host of a URL, for messages."""
    try:
        return clean(urlsplit(url).hostname or url, 100)
    except ValueError:
        return clean(url, 100)


def is_untrusted(err: BaseException) -> bool:
    """Whether a network error is a certificate that could not be verified."""
    return "certificate verify failed" in str(err)


def reason(err: BaseException) -> str:
    """The innermost cause of a network error, in words."""
    while err.__cause__ or err.__context__:
        err = err.__cause__ or err.__context__
    words = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
    return clean(words or type(err).__name__, 120)


def error_words(document: bytes) -> str:
    """What the body of an error says, if it is a WPS or JSON error."""
    try:
        answer = parse_wps(document)
    except Unreadable:
        return ""
    return answer.message if answer.failed else ""


def search_url(base: str, area: str, start: date, end: date | None) -> str:
    """A catalogue request (resto 2), for its first page."""
    return (
        f"{base}/resto/api/collections/S2ST/search.json?{area}&startDate={start}"
        f"&completionDate={end or '9999-01-01'}&maxRecords={PAGE_RECORDS}&productType=S2MSI1C"
    )


def execute_url(base: str, identifier: str, inputs: dict[str, object], flags: str) -> str:
    """A WPS 1.0.0 execute request as key-value pairs; `;` and `=` inside datainputs stay as they are."""
    pairs = ";".join(f"{key}={quote(str(value), safe='')}" for key, value in inputs.items())
    return (
        f"{base}/resto/wps?request=execute&service=WPS&version=1.0.0&identifier={identifier}&datainputs={pairs}&{flags}"
    )


# Files


def part_path(path: Path) -> Path:
    """Where a file grows."""
    return path.parent / f"{path.name}.part"


@contextlib.contextmanager
def part_file(path: Path, wait: bool = False):
    """Open `<path>.part`, which grows beside `path` until `commit` gives it its name, and lock it.

    The lock ends with this process, however it ends; what was written stays for the next run to continue. An
    empty one is removed.

    Raises
    ------
    PepsError
        Status 75 when another run holds it and `wait` is false.
    """
    part = part_path(path)
    while True:
        file = open(part, "ab", buffering=0)  # noqa: SIM115  (closed below, and by the end of the process)
        try:
            lock(file, wait)
            if is_same(file, part):  # else the last owner renamed or removed it while this one was opening it
                break
        except BlockingIOError:
            file.close()
            raise PepsError(f"another run is at work on {path}; this one leaves it alone", Status.NOT_YET) from None
        file.close()
    try:
        yield file
    finally:
        if not file.closed and is_same(file, part) and part.stat().st_size == 0:
            close_on_windows(file)
            part.unlink()
        file.close()


def lock(file, wait: bool) -> None:
    """Lock an open file for this process; raises BlockingIOError if another one has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(2**30)  # a byte that nobody reads: Windows locks forbid reading
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError as err:
            raise BlockingIOError from err
        return
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def is_same(file, path: Path) -> bool:
    """Whether an open file still stands under this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def close_on_windows(file) -> None:
    """Where an open file cannot be renamed or removed, close it; elsewhere it stays locked until that is done."""
    if os.name == "nt":
        file.close()


def write(file, chunk: bytes) -> None:
    """Write all of a chunk to an unbuffered file: a nearly full disk takes a part of it."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def start_flush(file) -> None:
    """Let the disk begin with what was written, where the system can be told, so that little is left for the end."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def commit(file, path: Path) -> None:
    """Give a part file its name, so that a machine that dies at any moment has the old file or the new one."""
    os.fsync(file.fileno())
    close_on_windows(file)
    os.replace(part_path(path), path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_whole(path: Path, document: bytes) -> None:
    """Write a small file whole or not at all."""
    with part_file(path, wait=True) as part:
        part.truncate(0)
        write(part, document)
        commit(part, path)


def make_folder(folder: Path) -> None:
    """Make the folder for the products, but not its parents: `/mnt/data` may only not be mounted yet."""
    try:
        if not folder.is_dir():
            folder.mkdir()
    except OSError as err:
        raise PepsError(f"folder {os_reason(err)}; make it, or choose another one with -w", Status.USAGE) from err


def sibling(log: Path, suffix: str) -> Path:
    """The file beside a log: `X.stat` or `X.json` for `X.log`; the suffix is added to any other name."""
    stem = log.name[: -len(".log")] if log.name.endswith(".log") else log.name
    return log.parent / (stem + suffix)


def read_log(log: Path) -> WpsAnswer:
    """The WPS answer in a log file; raises PepsError (status 2) if there is none that can be followed."""
    try:
        with open(log, "rb") as file:
            answer = parse_wps(file.read(DOCUMENT_MAX_BYTES))
    except OSError as err:
        raise PepsError(f"log file {os_reason(err)}; give one that was written when ordering", Status.USAGE) from err
    except Unreadable as err:
        raise PepsError(f"log file {log} is {err}; give one that was written when ordering", Status.USAGE) from err
    if answer.failed:
        raise PepsError(f"log file {log} holds a refused order: {answer.message}; order again", Status.USAGE)
    if not answer.status_location or not http_url(answer.status_location, "https://server/"):
        raise PepsError(f"log file {log} names no statusLocation that can be asked; order again", Status.USAGE)
    return answer


def held_job(log: Path) -> WpsAnswer | None:
    """The job that a log file holds, None if it is free to be written.

    Raises
    ------
    PepsError
        Status 2 for a file that is no WPS answer: it may be anything, and is not overwritten.
    """
    try:
        document = log.read_bytes()
        answer = parse_wps(document) if document.strip() else None
    except FileNotFoundError:
        return None
    except OSError as err:
        raise PepsError(f"log file {os_reason(err)}; choose another one", Status.USAGE) from err
    except Unreadable as err:
        what = f"{log} is there and is {err}, so it is not overwritten"
        raise PepsError(f"{what}; move it away, or choose another log file", Status.USAGE) from err
    return answer if answer and answer.holds_job else None


def refuse_held(log: Path) -> None:
    """Raise Held if a log holds a job."""
    held = held_job(log)
    if held:
        raise Held(log, held)


def order(service: Service, url: str, log: Path, force: bool = False) -> WpsAnswer:
    """Send an execute request and keep the answer as the log, byte for byte.

    Parameters
    ----------
    force : bool
        Replace a log that holds a job; it stays as `<log>.1`, `.2` ...

    Raises
    ------
    PepsError
        Held, status 2 when the log cannot be written, else as `Service.submit`, or when the answer is no accepted job.
    """
    if log.is_dir():
        raise PepsError(f"log file {log} is a folder; choose another log file", Status.USAGE)
    with contextlib.ExitStack() as stack:
        try:
            part = stack.enter_context(part_file(log))
            recover(part, log)
            prove_room(part)
        except OSError as err:
            raise os_error(err, log, "nothing was sent, choose another log file") from err
        if not force:
            refuse_held(log)
        document = service.submit(url)
        try:
            answer = parse_wps(document)
        except Unreadable as err:
            answer = WpsAnswer("", message=str(err))
        if answer.failed:
            raise PepsError(f"{host_of(url)} refused the order: {answer.message}")
        keep_answer(part, log, document, answer)
    if not answer.holds_job:
        why = answer.message or "no statusLocation"
        raise General(
            f"{host_of(url)} answered without a job that can be followed ({why}); the job may exist all the same: "
            f"look at your jobs on {service.base}. The answer is in {log}"
        )
    return answer


def recover(part, log: Path) -> None:
    """Give the log's name to an answer that a killed run had received and not yet named."""
    try:
        answer = parse_wps(part_path(log).read_bytes())
    except Unreadable:
        return
    if answer.holds_job:
        keep_copy(log)
        commit(part, log)
        raise Held(log, answer)


def prove_room(part) -> None:
    """Fail now if the disk has no room for an answer."""
    part.truncate(0)
    try:
        write(part, b"\n" * LOG_ROOM_BYTES)
        os.fsync(part.fileno())
    finally:
        part.truncate(0)


def keep_answer(part, log: Path, document: bytes, answer: WpsAnswer) -> None:
    """Make an answer the log. It is safe in the part file first: a run that is killed here is recovered by the next."""
    words = f"job {answer.job_id} is ordered, its statusLocation is {answer.status_location}"
    try:
        write(part, document)
        os.fsync(part.fileno())
        keep_copy(log)
        commit(part, log)
    except OSError as err:
        raise PepsError(f"{words}, but its log cannot be written ({os_reason(err, log)}); keep this line") from err
    except KeyboardInterrupt as stop:
        raise type(stop)(f"interrupted, but {words}; the same command names its log and orders nothing more") from stop


def keep_copy(log: Path) -> None:
    """Copy a log that holds a job to the first free name of `<log>.1`, `.2` ..."""
    try:
        document = log.read_bytes()
    except FileNotFoundError:
        return
    copies = (log.with_name(f"{log.name}.{number}") for number in itertools.count(1))
    write_whole(next(copy for copy in copies if not copy.exists()), document)


def refuse_same(**files: Path | None) -> None:
    """Raise PepsError (status 2) if two files of one command line are the same one, so that neither is overwritten."""
    seen: dict[str, str] = {}
    for option, path in files.items():
        other = seen.setdefault(os.path.realpath(path), option) if path else option
        if other != option:
            words = f"{path} cannot be the {other.replace('_', ' ')} and the {option.replace('_', ' ')}"
            raise PepsError(f"{words}; give one of them another name", Status.USAGE)


def require_writable(path: Path) -> None:
    """Raise PepsError (status 2) unless a file can be made or replaced."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with part_file(path):
            pass
    except OSError as err:
        raise PepsError(f"{path}: {err.strerror}; choose another file", Status.USAGE) from err


def write_json(path: Path, value: object) -> None:
    """Save a JSON value for people and for full_maja_download."""
    import json

    write_whole(path, json.dumps(value, indent=1).encode())


def zip_problem(path: Path, every_byte: bool = False) -> str | None:
    """What is wrong with a zip file, None if nothing.

    Parameters
    ----------
    every_byte : bool
        Read every member and compare its CRC; otherwise the directory at the file's end alone.
    """
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            if not archive.namelist():
                return "an empty archive"
            damaged = archive.testzip() if every_byte else None
            return f"{clean(damaged, 80)} in it is damaged" if damaged else None
    except Exception as err:  # each compression method has errors of its own; whichever it is, the file is not whole
        return clean(err) or type(err).__name__


# Downloads


class Product:
    """One product to be had: where from, where to, and what became of it."""

    def __init__(self, url: str, path: Path, job: str):
        self.url, self.path, self.job = url, path, job
        self.size: int | None = None
        self.words = ""
        self.downloaded = False
        self.status = Status.NOT_YET

    @property
    def partial(self) -> int:
        """Bytes that an earlier run left."""
        try:
            return part_path(self.path).stat().st_size
        except FileNotFoundError:
            return 0


def side_by_side(function: Callable, items: Iterable, at_once: int, in_order: bool = False) -> Iterator:
    """`function` of each item, in threads, results as they come or in the order of the items.

    The threads are daemons: Ctrl-C ends the script without waiting for the network.
    """
    from multiprocessing.pool import ThreadPool

    items = list(items)
    if not items:
        return
    with ThreadPool(min(at_once, len(items))) as pool:
        yield from (pool.imap if in_order else pool.imap_unordered)(function, items)


def download(service: Service, product: Product, check: bool, seen: Callable[[int], None]) -> bool:
    """Bring a product to its name, whole and checked, continuing what an earlier run left.

    Returns False if it is there already, because another run was quicker.

    Parameters
    ----------
    check : bool
        A product already there is whole only if all its CRCs are right.
    seen : callable
        Told how many bytes more are on disk, again and again.

    Raises
    ------
    PepsError
        Status 75 when it may be had later, 1 when it cannot.
    """
    with part_file(product.path) as part:
        if zip_problem(product.path, check) is None:
            return False
        for _ in ("as it comes", "afresh"):
            try:
                continued = receive_whole(service, product, part, seen)
            except NotAProduct as err:
                problem = str(err)
                continue
            problem = zip_problem(Path(part.name), every_byte=continued)
            if problem is None:
                commit(part, product.path)
                return True
            problem = f"a damaged product ({problem})"
            part.truncate(0)
    raise PepsError(f"{host_of(product.url)} sent {problem}, twice; if that stays so, tell the service")


def receive_whole(service: Service, product: Product, part, seen) -> bool:
    """Fill a part file to the product's end, over as many connections as it takes while each makes progress.

    Returns whether it was continued, so that its bytes come from more than one answer.
    """
    furthest, idle = os.fstat(part.fileno()).st_size, 0
    while True:
        try:
            return receive(service, product, part, seen) > 0
        except Broken as err:
            size = os.fstat(part.fileno()).st_size
            idle = 0 if size > furthest else idle + 1
            furthest = max(size, furthest)
            if idle == TRIES:
                raise PepsError(
                    f"{host_of(product.url)} breaks off at {human(size)}, tried {TRIES} times ({err}); "
                    "the same command continues from there later",
                    Status.NOT_YET,
                ) from err
            time.sleep(BACKOFF_S * idle)


def receive(service: Service, product: Product, part, seen, resume: bool = True) -> int:
    """Append one answer's body to a part file, and return the offset it began at.

    Raises
    ------
    Broken
        When the body ended too early; NotAProduct when it is no zip, with the part file untouched.
    """
    held = os.fstat(part.fileno()).st_size
    offset = held if resume else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={offset}-"} if offset else {})}
    with service.open(product.url, "product", headers, (200, 206, 416) if offset else (200, 206)) as response:
        span = body_span(response.status_code, response.headers, offset)
        if span == (offset, offset) != (0, 0):
            return offset
        if span is not None:
            start, total = span
            body = service.chunks(response)
            head = zip_head(response, body) if start == 0 else b""
            require_space(product.path, (total or 0) - held)
            if start == 0:
                part.truncate(0)
                seen(-held)
            size = flushed = start
            for chunk in itertools.chain([head], body):
                write(part, chunk)
                size += len(chunk)
                seen(len(chunk))
                if size - flushed >= FLUSH_BYTES:
                    flushed = size
                    start_flush(part)
            if total not in (None, size):
                raise Broken(f"{size} of {total} bytes")
            return start
    if not resume:
        raise PepsError(f"{host_of(product.url)} sends another part of the product than asked for; tell the service")
    return receive(service, product, part, seen, resume=False)


def body_span(code: int, headers, offset: int) -> tuple[int, int | None] | None:
    """Where the body of an answer begins and how long the product is, both in bytes.

    (offset, offset) means that nothing is left to come; None that the answer does not fit the bytes from `offset`
    on. RFC 9110, sections 14.4 and 15.5.17.
    """
    if code == 200:
        length = headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() and "Content-Encoding" not in headers else None
    found = re.fullmatch(r"bytes (?:([0-9]+)-[0-9]+|\*)/([0-9]+|\*)", headers.get("Content-Range", "").strip())
    if not found:
        return None
    total = None if found[2] == "*" else int(found[2])
    if code == 416:
        return (offset, offset) if total == offset else None
    return (offset, total) if found[1] and int(found[1]) == offset else None


def zip_head(response, body: Iterator[bytes]) -> bytes:
    """The first bytes of a product.

    Raises
    ------
    NotAProduct
        When they are not those of a zip: a page, an error or nothing.
    """
    head = b""
    while len(head) < len(ZIP_START) and (chunk := next(body, b"")):
        head += chunk
    if head.startswith(ZIP_START):
        return head
    error = parse_json_error(head)
    kind = clean(response.headers.get("Content-Type", "no type"), 60)
    words = (
        f"an error ({error.message})"
        if error
        else f"a page, or something else that is no zip ({kind})"
        if head
        else "nothing"
    )
    raise NotAProduct(f"{words} instead of the product")


def require_space(path: Path, need: int) -> None:
    """Raise PepsError if the disk has not `need` more bytes for the file at `path`."""
    free = shutil.disk_usage(path.parent).free
    if need > free:
        words = f"not enough disk space in {path.parent}: {human(need)} to come, {human(free)} free"
        raise PepsError(f"{words}; make room and run this again")


# The follow-up of jobs


class Job:
    """One job of a run: its files, and how it stands as far as this run knows."""

    def __init__(self, name: str, log: Path, status_file: Path, report_file: Path):
        self.name, self.log, self.status_file, self.report_file = name, log, status_file, report_file
        self.answer = WpsAnswer("")
        self.state, self.words, self.asked = State.UNREACHED, "", False
        self.report: Report | None = None
        self.products: list[Product] = []
        self.refused: list[str] = []
        self.cloudy: list[str] = []

    @property
    def status(self) -> Status:
        """The exit status that the job, its results and its products lead to."""
        refused = [Status.FAILED] if self.refused else []
        return worst([self.state.status, *refused, *(product.status for product in self.products)])

    @property
    def ended(self) -> bool:
        """Whether looking again would change nothing."""
        return Status.NOT_YET not in (self.state.status, *(product.status for product in self.products))


class FollowUp:
    """One run of a download script: its jobs, their products, and the account of both.

    Parameters
    ----------
    jobs : list of Job
    folder : Path
        Where the products go.
    connect : callable
        Makes the Service; called only if something must be asked.
    at_once : int
        Downloads at once.
    check : bool
        Read the products on disk through.
    hints : dict
        What people should know of a job in a state.
    """

    def __init__(self, jobs, folder, console, connect, at_once=4, check=False, hints=None):
        self.jobs: list[Job] = jobs
        self.folder: Path = folder
        self.console: Console = console
        self.products: dict[Path, Product] = {}
        self.at_once, self.check, self.hints = at_once, check, hints or {}
        self._connect, self._service, self._later = connect, None, ""

    def run(self, interval_s: float | None, sleep: Callable[[float], None] = time.sleep) -> None:
        """Look once, or every `interval_s` seconds until every job has ended, and download what is finished."""
        self._later = "run this again later" if interval_s is None else f"asked again in {interval_s / 60:g} min"
        self._settle()
        while True:
            self._ask([job for job in self.jobs if not job.ended])
            self._download([p for p in self._wanted() if p.status == Status.NOT_YET])
            if interval_s is None or all(job.ended for job in self.jobs):
                return
            sleep(interval_s)

    def _wanted(self) -> list[Product]:
        """The products of all jobs, each once."""
        return list({product.path: product for job in self.jobs for product in job.products}.values())

    def _settle(self) -> None:
        """Conclude from the files on disk what is finished and there, so that it costs no request."""
        for job in self.jobs:
            try:
                job.answer = read_log(job.log)
                self._take(job, self._report_on_disk(job))
            except PepsError as err:
                self._conclude(job, State.WRONG_LOG, str(err))
        self._look_on_disk(self._wanted())
        for job in self.jobs:
            if job.report and not job.refused and all(product.status == Status.OK for product in job.products):
                self._conclude(job, State.FINISHED)
            else:
                self._take(job, None)

    def _report_on_disk(self, job: Job) -> Report | None:
        """The finished report beside a log, if the status document beside it is this job's."""
        try:
            answer = parse_wps(job.status_file.read_bytes())
            report = parse_report(job.report_file.read_bytes())
        except (OSError, PepsError):
            return None
        ours = answer.status_location == job.answer.status_location
        return report if ours and report.state == State.FINISHED else None

    def _take(self, job: Job, report: Report | None) -> None:
        """Make a report the job's: which products it brings, how many were too cloudy, what is refused."""
        job.report, job.products, job.refused, job.cloudy = report, [], [], []
        for url in report.results if report else ():
            try:
                if "NOVALD" in url.rpartition("/")[2]:
                    job.cloudy.append(url.rpartition("/")[2])
                else:
                    path = self.folder / product_name(url)
                    product = self.products.setdefault(path, Product(url, path, job.name))
                    product.url = url
                    job.products.append(product)
            except PepsError as err:
                job.refused.append(str(err))

    def _look_on_disk(self, products: list[Product]) -> None:
        """Find out which products are there already, and whole."""

        there = [product for product in products if product.status == Status.NOT_YET and product.path.exists()]
        problems = side_by_side(lambda product: zip_problem(product.path, self.check), there, self.at_once, True)
        for product, problem in zip(there, problems):
            if problem is None:
                product.status = Status.OK

    def _ask(self, jobs: list[Job]) -> None:
        """Ask how jobs stand, side by side."""
        if jobs and self._service is None:
            self._service = self._connect()
        for job, state, report, words in side_by_side(self._ask_one, jobs, ASK_AT_ONCE, in_order=True):
            job.asked = True
            self._take(job, report)
            self._conclude(job, state, words)

    def _ask_one(self, job: Job) -> tuple[Job, State, Report | None, str]:
        try:
            return job, *self._state_of(job)
        except Gone as err:
            return job, State.GONE, None, f"{err}; the service does not keep jobs for ever, order again"
        except PepsError as err:
            return job, State.UNREACHED if err.status == Status.NOT_YET else State.REFUSED, None, str(err)
        except OSError as err:
            return job, State.REFUSED, None, f"{os_reason(err)}; put that right and run this again"

    def _state_of(self, job: Job) -> tuple[State, Report | None, str]:
        """Status document, refresh, report: the three requests of PROCESSING_STATUS, kept beside the log."""
        location = http_url(job.answer.status_location, f"{self._service.base}/")
        document, answer = self._service.read(location, "status document", parse_wps)
        if answer.failed:
            write_whole(job.status_file, document)
            return State.FAILED, None, answer.message
        if not answer.report_url:  # only just accepted
            return State.WAITING, None, ""
        self._service.refresh(job.answer.job_id)
        try:
            text, report = self._service.read(answer.report_url, "report", parse_report)
        except Gone as err:
            raise PepsError(f"{err} yet, or any more; run this again later", Status.NOT_YET) from err
        # In this order: a status document of this job must never stand beside the report of another.
        write_whole(job.report_file, text)
        write_whole(job.status_file, document)
        words = {State.RUNNING: report.progress, State.UNKNOWN: report.word}.get(report.state, report.message)
        return report.state, report if report.state == State.FINISHED else None, words

    def _conclude(self, job: Job, state: State, words: str = "") -> None:
        """Note how a job stands, and say it if that is new."""
        if (state, words) == (job.state, job.words):
            return
        job.state, job.words = state, words
        line = f"{job.name}: {self._describe(job)}"
        if state in (State.WAITING, State.RUNNING, State.UNKNOWN, State.FINISHED):
            self.console.say(line, news=job.asked and state == State.FINISHED)
        else:
            self.console.error(line)
        for name in job.cloudy if job.asked else ():
            self.console.say(f"{job.name}: {name}: too cloudy, so there is no product")
        for refusal in job.refused:
            self.console.error(f"{job.name}: {refusal}")
        if state == State.FINISHED and (job.asked or not self.console.quiet):
            self._warn_of_losses(job)

    def _describe(self, job: Job) -> str:
        hint = self.hints.get(job.state, "")
        if job.state == State.WAITING:
            return f"waiting: {hint}; {self._later}"
        if job.state == State.RUNNING:
            return f"running, {job.words or '?%'} done by the service's optimistic count; {hint}"
        if job.state == State.UNKNOWN:
            state = f"in the state '{job.words}'" if job.words else "without a state in its report"
            return f"{state}, taken for not finished; {self._later}"
        if job.state == State.FINISHED:
            there = ", all on disk" if job.products and not job.asked else ""
            return f"finished: {plural(len(job.products), 'product')}{there}, {len(job.cloudy)} too cloudy"
        if job.state in (State.FAILED, State.CANCELED):
            return f"{job.state.word}: {job.words or 'the service says no more'}; {hint or 'order again'}"
        return job.words

    def _warn_of_losses(self, job: Job) -> None:
        report = job.report
        if report.unprocessed:
            names = f" ({', '.join(report.lost)})" if report.lost else ""
            self.console.error(
                f"warning: {job.name}: {plural(report.unprocessed, 'date')} not processed{names}, most likely for an "
                f"overloaded tape robot; running this again will not bring more, see {job.report_file}"
            )
        if not report.results:
            self.console.error(f"warning: {job.name}: finished without any product; see {job.report_file}")

    def _download(self, products: list[Product]) -> None:
        """Download products, the largest first so that none is left to run alone at the end."""
        self._look_on_disk(products)
        products = [product for product in products if product.status != Status.OK]
        if products and not os.access(self.folder, os.W_OK):
            self._give_up(products, f"{self.folder} cannot be written to, so nothing is downloaded")
            return
        for product, size in side_by_side(lambda p: (p, self._service.length(p.url)), products, self.at_once):
            product.size = size
        products = self._that_fit(sorted(products, key=lambda p: p.size or 2**63, reverse=True))
        with self.console.progress(products):
            results = side_by_side(self._fetch, products, self.at_once)
            for done, (product, words) in enumerate(results, 1):
                self.console.count(done, len(products))
                if product.downloaded:
                    self.console.say(words, news=True)
                elif words not in ("", product.words):
                    self.console.error(words)
                product.words = words

    def _give_up(self, products: list[Product], words: str) -> None:
        for product in products:
            product.status = Status.FAILED
        self.console.error(words)

    def _that_fit(self, products: list[Product]) -> list[Product]:
        """The products for which the disk has room, as far as the server tells their sizes."""
        if not products:
            return []
        room = free = shutil.disk_usage(self.folder).free
        fitting, left = [], []
        for product in products:
            need = max(0, (product.size or 0) - product.partial)
            (fitting if need <= room else left).append(product)
            room -= need if need <= room else 0
        if left:
            need = human(sum(product.size - product.partial for product in left))
            words = f"not enough disk space in {self.folder}: {human(free)} free"
            self._give_up(left, f"{words}, {plural(len(left), 'product')} of {need} left out; make room and run again")
        return fitting

    def _fetch(self, product: Product) -> tuple[Product, str]:
        began, held = time.monotonic(), product.partial
        name = f"{product.job}: {product.path.name}"
        try:
            product.downloaded = download(self._service, product, self.check, self.console.advance)
            product.status = Status.OK
        except PepsError as err:
            product.status = err.status
            return product, f"{name}: {err}"
        except OSError as err:
            product.status = Status.FAILED
            return product, f"{name}: {os_reason(err)}; put that right and run this again"
        if not product.downloaded:  # another run was quicker
            return product, ""
        seconds = max(time.monotonic() - began, 0.001)
        size = product.path.stat().st_size
        return product, f"{name}: {human(size)} in {seconds:.1f} s, {human(max(0, size - held) / seconds)}/s"

    def finish(self, missing: int | None = None) -> Status:
        """Say the last line, which sums the run up, and return its exit status.

        Parameters
        ----------
        missing : int
            Acquisitions without a result, where they were compared with the catalogue.
        """
        states = Counter(job.state.word for job in self.jobs)
        products = self._wanted()
        if missing is None:
            missing = sum(job.report.unprocessed for job in self.jobs if job.report)
        downloaded = sum(product.downloaded for product in products)
        counts = Counter(product.status for product in products)
        failed = counts[Status.FAILED] + sum(len(job.refused) for job in self.jobs)
        self.console.say(
            f"Jobs: {', '.join(f'{count} {word}' for word, count in states.items())}. "
            f"Products: {downloaded} downloaded, {counts[Status.OK] - downloaded} on disk, "
            f"{sum(len(job.cloudy) for job in self.jobs)} too cloudy, {missing} missing, {failed} failed, "
            f"{counts[Status.NOT_YET]} left for the next run.",
            news=bool(downloaded) or any(job.asked and job.ended for job in self.jobs),
        )
        return worst(job.status for job in self.jobs)
