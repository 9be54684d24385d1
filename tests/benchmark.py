"""What full_maja_download.py costs beside the tools that a user would otherwise take.

All fetch the same products, in turn, from one local server, which is a process of its own and sends with sendfile, so
that it is not the limit. The downloader's time has everything in it: its start, the status document, the refresh, the
report, the lengths and the check of each product. Ends with 1 if a tool fails or brings wrong files, never for a time.
Needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import http.server
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import socket
import socketserver
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
DOWNLOADER = str(CHECKOUT / "full_maja_download.py")
OURS = "full_maja_download"
JOBS = 4
RATE_MB = 25
TOOLS = ("curl -Z", "aria2c", "xargs -P wget")
SEND_BYTES = 1024 * 1024
PACED_BYTES = 128 * 1024
START_ROUNDS = 20
FINISHED_JOBS = 300
# In hundredths of --mb. The uneven ones fill four lanes to the same height if the largest go first.
SETS = {
    "equal": [100] * 8,
    "half": [50] * 8,
    "uneven": [20, 30, 40, 50, 50, 60, 70, 80],
}

ANSWER = '<w:ExecuteResponse xmlns:w="http://www.opengis.net/wps/1.0.0" statusLocation="{base}/{job}.xml"><w:Status>'
ACCEPTED = (
    ANSWER
    + "<w:ProcessAccepted>accepted</w:ProcessAccepted></w:Status></w:ExecuteResponse>"
)
SUCCEEDED = (
    ANSWER
    + "<w:ProcessSucceeded>done</w:ProcessSucceeded></w:Status><w:ProcessOutputs><w:Output>"
    '<w:Reference href="{base}/{job}.json"/></w:Output></w:ProcessOutputs></w:ExecuteResponse>'
)
# A process inherits the peak memory of the one that started it, so a small one starts each tool.
STARTER = """
import json, os, sys, time
words, log, *command = sys.argv[1:]
streams = [
    (os.POSIX_SPAWN_OPEN, 0, words, os.O_RDONLY, 0),
    (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    (os.POSIX_SPAWN_DUP2, 1, 2),
]
began = time.monotonic()
pid = os.posix_spawnp(command[0], command, os.environ, file_actions=streams)
_, status, usage = os.wait4(pid, 0)
seconds = time.monotonic() - began
print(json.dumps([seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]))
"""
BARE = "import argparse; argparse.ArgumentParser().parse_args(['-h'])"


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends files whole: /25/half/name.zip is half/name.zip, at 25 MB/s; /0/... is sent as fast as it goes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        """Be quiet."""

    def do_GET(self):
        rate, _, name = self.path.partition("?")[0].lstrip("/").partition("/")
        with open(self.server.folder / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            if self.command == "GET":
                self.send(file, size, int(rate) * 1_000_000)

    do_HEAD = do_GET

    def send(self, file, size: int, rate: int) -> None:
        """Send a file, never ahead of `rate` bytes a second (0: no limit)."""
        began, at = time.monotonic(), 0
        while at < size:
            count = min(PACED_BYTES if rate else SEND_BYTES, size - at)
            if rate:
                time.sleep(max(0, began + (at + count) / rate - time.monotonic()))
            if isinstance(self.connection, ssl.SSLSocket):
                self.connection.sendall(os.pread(file.fileno(), count, at))
                at += count
            else:
                at += os.sendfile(self.connection.fileno(), file.fileno(), at, count)


class Server(socketserver.ThreadingTCPServer):
    """Serves a folder on a free port, with TLS if there is a context."""

    request_queue_size, daemon_threads = 128, True

    def __init__(self, folder: Path, context: ssl.SSLContext | None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        if context:
            # The handshake belongs to each connection's thread, so that none holds up the others.
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """Clients come and go."""


def serve(folder: Path) -> None:
    """Serve a folder until standard input ends; tell the base URLs by one line of JSON."""
    bases = {"plain": f"http://127.0.0.1:{Server(folder, None).server_address[1]}"}
    with contextlib.suppress(ImportError):
        import trustme

        authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.cert_pem.write_to_path(folder / "ca.pem")
        authority.issue_cert("127.0.0.1").configure_cert(context)
        bases["TLS"] = f"https://127.0.0.1:{Server(folder, context).server_address[1]}"
    print(json.dumps(bases), flush=True)
    sys.stdin.read()


@contextlib.contextmanager
def running_server(folder: Path):
    """The server as a process of its own; yields its base URLs."""
    command = [sys.executable, __file__, "--serve", str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()


def make_zip(path: Path, size: int) -> None:
    """Write a zip of about `size` bytes that nothing can pack any further."""
    block = os.urandom(min(size, 1024 * 1024))
    with (
        zipfile.ZipFile(path, "w") as archive,
        archive.open(f"{path.stem}/FRE.tif", "w", force_zip64=True) as member,
    ):
        for left in range(size, 0, -len(block)):
            member.write(block[:left])


class Transfer:
    """One set of products on the server, fetched in one way; `rate` in MB/s a connection, 0 without limit."""

    def __init__(self, kind: str, base: str, folder: Path):
        self.base, self.rate, self.paths = (
            base,
            0 if folder.name == "equal" else RATE_MB,
            sorted(folder.iterdir()),
        )
        self.size = sum(path.stat().st_size for path in self.paths)
        self.urls = [
            f"{base}/{self.rate}/{folder.name}/{path.name}" for path in self.paths
        ]
        limit = f", {self.rate} MB/s a connection" if self.rate else ""
        self.name = f"{kind}, 8 {folder.name}, {self.size / 1e6:.0f} MB{limit}"


def make_transfers(
    folder: Path, megabytes: float, bases: dict[str, str]
) -> Iterable[Transfer]:
    """Write the products, and yield what is to be fetched of them."""
    for name, hundredths in SETS.items():
        (folder / name).mkdir()
        for number, share in enumerate(hundredths, 1):
            path = (
                folder
                / name
                / f"SENTINEL2A_201707{number:02}-105605-456_L2A_T31TCJ_D_V1-4.zip"
            )
            make_zip(path, int(megabytes * share * 10_000))
        for kind, base in bases.items():
            if (name, kind) != (
                "uneven",
                "TLS",
            ):  # TLS changes nothing in the order, for which the uneven ones are
                yield Transfer(kind, base, folder / name)


def write_job(
    status: Path, report: Path, log: Path, urls: list[str], base: str
) -> None:
    place = {"base": base, "job": log.stem}
    status.write_text(SUCCEEDED.format(**place))
    report.write_text(
        json.dumps({"USER_INFO": {"job_status": "FINISHED", "results": urls}})
    )
    log.write_text(ACCEPTED.format(**place))


class Measure(NamedTuple):
    """What a command took: seconds, CPU seconds, peak memory in MiB."""

    seconds: float
    cpu: float
    memory: float


def median(measures: Iterable[Measure]) -> Measure:
    return Measure(*map(statistics.median, zip(*measures)))


class Bench:
    """Runs commands in a folder of their own, in an environment without proxies."""

    def __init__(self, folder: Path):
        self.folder, self.run_folder, self.authority = (
            folder,
            folder / "run",
            str(folder / "ca.pem"),
        )
        unwanted = (
            "CURL_CA_BUNDLE",
            "SSL_CERT_FILE",
            "PEPS_URL",
            "PYTHONDONTWRITEBYTECODE",
        )
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.lower().endswith("_proxy") and k not in unwanted
        }
        self.environment = {**kept, "REQUESTS_CA_BUNDLE": self.authority}
        self.account, refresh = folder / "account.txt", folder / "resto" / "wps"
        self.account.touch(0o600)
        self.account.write_text("jean.dupont@example.org secret\n")
        refresh.parent.mkdir()
        refresh.write_text(ACCEPTED)

    def commands(self, transfer: Transfer) -> dict[str, list[str]]:
        """The command lines to compare, each at its best, of the tools that are installed."""
        options = f"--server {transfer.base}/0 -l job.log -w out -j {JOBS} -a"
        curl = f"curl -q -sS -f -Z --parallel-immediate --parallel-max {JOBS} --output-dir out --cacert"
        aria2c = f"aria2c --no-conf -q -j {JOBS} --file-allocation=none -d out -i - --ca-certificate={self.authority}"
        wget = f"xargs -P {JOBS} -n 1 wget --no-config -nv -P out --ca-certificate={self.authority}"
        curl = [*curl.split(), self.authority, "--remote-name-all", *transfer.urls]
        rows = {
            "curl -Z": curl,
            "aria2c": aria2c.split(),
            "xargs -P wget": wget.split(),
        }
        there = {
            name: row
            for name, row in rows.items()
            if shutil.which(name.split()[-1].replace("-Z", "curl"))
        }
        return {
            OURS: [sys.executable, DOWNLOADER, *options.split(), str(self.account)],
            **there,
        }

    def start(self, command: list[str]) -> Measure:
        """Run a command in the run's folder, the URLs on its standard input; raises SystemExit if it fails."""
        urls, log = self.run_folder / "urls.txt", self.run_folder / "output.txt"
        urls.touch()
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", STARTER, str(urls), str(log), *command], env=self.environment,
            cwd=self.run_folder, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        seconds, cpu, memory, status = json.loads(done.stdout)
        if status:
            raise SystemExit(
                f"{shlex.join(command)}\nended with {status}:\n{log.read_text(errors='replace')}"
            )
        return Measure(
            seconds, cpu, memory / (1024 * 1024 if sys.platform == "darwin" else 1024)
        )

    @contextlib.contextmanager
    def new_run(self):
        """An empty folder for a run, removed at its end."""
        (self.run_folder / "out").mkdir(parents=True)
        try:
            yield self.run_folder
        finally:
            shutil.rmtree(self.run_folder)

    def fetch(
        self, transfer: Transfer, command: list[str], every_byte: bool
    ) -> Measure:
        """Run one download into a new folder, and compare what it brought with the originals."""
        with self.new_run() as run:
            status, report = self.folder / "job.xml", self.folder / "job.json"
            write_job(
                status, report, run / "job.log", transfer.urls, f"{transfer.base}/0"
            )
            (run / "urls.txt").write_text("".join(f"{url}\n" for url in transfer.urls))
            os.sync()  # what the last run left to be written is not this one's burden
            measure = self.start(command)
            for path in transfer.paths:
                got = run / "out" / path.name
                whole = got.is_file() and got.stat().st_size == path.stat().st_size
                if not whole or (
                    every_byte and not filecmp.cmp(got, path, shallow=False)
                ):
                    raise SystemExit(
                        f"{shlex.join(command)}\nbrought {got.name} incomplete or changed"
                    )
        return measure

    def show(self, transfer: Transfer, rounds: int, details: list[str]) -> None:
        """Print one row: our seconds, and what each other tool took as a multiple of them, round by round."""
        commands = self.commands(transfer)
        measures: dict[str, list[Measure]] = {name: [] for name in commands}
        for number in range(rounds):
            for name, command in commands.items():
                measures[name].append(
                    self.fetch(transfer, command, every_byte=number == 0)
                )
        ours = [one.seconds for one in measures[OURS]]
        row = [transfer.name, f"{statistics.median(ours):.2f} s"]
        for name in TOOLS:
            ratios = sorted(
                theirs.seconds / mine
                for theirs, mine in zip(measures.get(name, []), ours)
            )
            middle = statistics.median(ratios) if ratios else 0
            row.append(
                f"{middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                if ratios
                else "not there"
            )
        print(f"| {' | '.join(row)} |", flush=True)
        ideal = transfer.size / (transfer.rate * 1e6 * JOBS) if transfer.rate else 0
        for name, found in measures.items():
            seconds, cpu, memory = median(found)
            to_ideal = (
                f", {seconds / ideal:.3f} of bytes / (rate x {JOBS})" if ideal else ""
            )
            details.append(
                f"{transfer.name}: {name}: {seconds:.2f} s{to_ideal}, CPU {cpu:.2f} s, {memory:.0f} MiB"
            )


def show_start(bench: Bench) -> None:
    commands = [sys.executable, "-c", BARE], [sys.executable, DOWNLOADER, "-h"]
    with bench.new_run():
        rounds = [
            [bench.start(command) for command in commands] for _ in range(START_ROUNDS)
        ]
    bare, ours = (1000 * median(found).seconds for found in zip(*rounds))
    print(
        f"\n{OURS} -h: {ours:.0f} ms; a bare argparse's -h: {bare:.0f} ms; ratio {ours / bare:.2f}"
    )


def show_finished(bench: Bench, products: int) -> None:
    """Time a pass over finished jobs whose products are all on disk; raises SystemExit if it asks for anything."""
    with bench.new_run() as run, socket.create_server(("127.0.0.1", 0)) as door:
        base = f"http://127.0.0.1:{door.getsockname()[1]}"
        make_zip(run / "small.zip", 1000)
        logs = [run / f"{number:03}.log" for number in range(FINISHED_JOBS)]
        for log in logs:
            names = [
                f"SENTINEL2A_20170704-{n:06}-{log.stem}_L2A_T31TCJ_D_V1-4.zip"
                for n in range(products)
            ]
            urls = [f"{base}/{name}" for name in names]
            write_job(
                log.with_suffix(".stat"), log.with_suffix(".json"), log, urls, base
            )
            for name in names:
                shutil.copy(run / "small.zip", run / name)
        command = [
            sys.executable,
            DOWNLOADER,
            "--server",
            base,
            "-a",
            str(bench.account),
            "-l",
            *map(str, logs),
        ]
        seconds, _, memory = median(bench.start(command) for _ in range(3))
        door.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            door.accept()
            raise SystemExit("the pass over finished jobs asked the service")
    words = f"{len(logs)} finished jobs, {products} products each, on disk"
    print(f"{words}: {seconds:.2f} s, {memory:.0f} MiB, no request")


def show_machine() -> None:
    versions = [
        f"{name} {importlib.metadata.version(name)}" for name in ("requests", "urllib3")
    ]
    for tool in filter(shutil.which, ("curl", "aria2c", "wget")):
        words = subprocess.run(
            [tool, "--version"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.split()
        versions.append(f"{tool} {next(word for word in words if word[0].isdigit())}")
    print(
        f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}, {', '.join(versions)}"
    )


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--mb",
        type=float,
        default=200,
        help="MB of each of eight products (default: 200)",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often each is measured (default: 3)"
    )
    parser.add_argument(
        "--dir",
        help="disk to use, 24 x MB of it: 4.8 GB (default: that of the temporary files)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small and once, only to see that it works"
    )
    parser.add_argument("--serve", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(args.serve)
        return 0
    megabytes, rounds = (10, 1) if args.quick else (args.mb, args.rounds)
    show_machine()
    details: list[str] = []
    with tempfile.TemporaryDirectory(prefix="peps_benchmark_", dir=args.dir) as name:
        folder = Path(name).resolve()
        with running_server(folder) as bases:
            bench, transfers = (
                Bench(folder),
                list(make_transfers(folder, megabytes, bases)),
            )
            print(
                f"\nMedians of {rounds} rounds, in brackets the least and the most; {JOBS} downloads at once.\n"
            )
            print(
                f"| products | {OURS} | curl -Z takes | aria2c takes | xargs -P wget takes |\n|---|--:|--:|--:|--:|"
            )
            for transfer in transfers:
                bench.show(transfer, rounds, details)
            print("", *details, sep="\n")
            show_start(bench)
            show_finished(bench, 1)
            show_finished(bench, 10)
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
