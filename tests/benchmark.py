"""What full_maja_download.py costs beside the tools that a user would otherwise take, on this machine alone.

All of them fetch the same products from the same local server, which runs as a process of its own and sends
with sendfile, so that it is not the limit. The downloader's time has everything in it: its start, the status
document, the refresh, the report and the check of each product. Nothing here passes or fails by its time.
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
JOBS = 4
OURS = "full_maja_download"
RATE_MB = 25
SEND_BYTES = 4 * 1024 * 1024
PACED_BYTES = 128 * 1024
START_ROUNDS = 20
FINISHED_JOBS = 300
# In hundredths of --mb. The uneven ones fill four lanes to the same height if the largest go first; taken as they
# are listed, they leave the largest to run alone at the end.
SETS = {"equal": [100] * 8, "half": [50] * 8, "uneven": [20, 30, 40, 50, 50, 60, 70, 80]}

WPS = '<wps:ExecuteResponse xmlns:wps="http://www.opengis.net/wps/1.0.0" statusLocation="{base}/{name}.xml">'
ACCEPTED = WPS + "<wps:Status><wps:ProcessAccepted>accepted</wps:ProcessAccepted></wps:Status></wps:ExecuteResponse>"
SUCCEEDED = (
    WPS + "<wps:Status><wps:ProcessSucceeded>done</wps:ProcessSucceeded></wps:Status><wps:ProcessOutputs><wps:Output>"
    '<wps:Reference href="{base}/{name}.json"/></wps:Output></wps:ProcessOutputs></wps:ExecuteResponse>'
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
WITH_CHUNK = """
import sys
sys.path.insert(0, {checkout!r})
import peps_common
assert peps_common.CHUNK_BYTES
peps_common.CHUNK_BYTES = {size}
import full_maja_download
raise SystemExit(full_maja_download.main())
"""
BARE = "import argparse; argparse.ArgumentParser().parse_args(['-h'])"


# The server


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends files: /25/even/name.zip is even/name.zip, at 25 MB/s; /0/... is sent as fast as it goes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        """Be quiet."""

    def do_GET(self):
        """Send a file, or the part of it from the first byte asked for."""
        rate, _, name = self.path.partition("?")[0].lstrip("/").partition("/")
        try:
            file = open(self.server.folder / name, "rb")  # noqa: SIM115  (closed below)
        except OSError:
            self.send_error(404)
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            asked = self.headers.get("Range", "")
            first = int(asked[len("bytes=") :].partition("-")[0]) if asked else 0
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
            self.send_header("Content-Length", str(size - first))
            self.send_header("Content-Type", "application/zip")
            self.end_headers()
            if self.command == "GET":
                self.send_all(file, first, size, int(rate) * 1_000_000)

    do_HEAD = do_GET

    def send_all(self, file, first: int, size: int, rate: int) -> None:
        """Send the bytes from `first` on, never ahead of `rate` bytes a second (0: no limit)."""
        began, at, piece = time.monotonic(), first, PACED_BYTES if rate else SEND_BYTES
        while at < size:
            count = min(piece, size - at)
            if rate:
                time.sleep(max(0, began + (at + count - first) / rate - time.monotonic()))
            at += self.send_piece(file, at, count)

    def send_piece(self, file, at: int, count: int) -> int:
        """Send up to `count` bytes and return how many; without a copy where TLS does not ask for one."""
        if isinstance(self.connection, ssl.SSLSocket):
            piece = os.pread(file.fileno(), min(count, 1024 * 1024), at)
            self.connection.sendall(piece)
            return len(piece)
        return os.sendfile(self.connection.fileno(), file.fileno(), at, count)


class Server(http.server.ThreadingHTTPServer):
    """Listens on a free port, with TLS if there is a context."""

    request_queue_size = 128

    def __init__(self, folder: Path, context: ssl.SSLContext | None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        if context:
            # The handshake belongs to each connection's thread, so that none holds up the others.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def server_bind(self):
        """Bind without the look-up of a host name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request, client_address):
        """Clients come and go."""


def serve(folder: Path) -> None:
    """Serve a folder until standard input ends; tell the base URLs by one line of JSON."""
    bases = {"plain": f"http://127.0.0.1:{Server(folder, None).server_port}"}
    with contextlib.suppress(ImportError):
        import trustme

        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        bases["TLS"] = f"https://127.0.0.1:{Server(folder, context).server_port}"
    print(json.dumps(bases), flush=True)
    sys.stdin.read()


@contextlib.contextmanager
def running_server(folder: Path):
    """Start the server as a process of its own; yields its base URLs."""
    command = [sys.executable, __file__, "--serve", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()


# What is fetched


def make_zip(path: Path, size: int) -> None:
    """Write a zip of about `size` bytes that nothing can pack any further."""
    block = os.urandom(min(size, 1024 * 1024))
    with zipfile.ZipFile(path, "w") as archive, archive.open(f"{path.stem}/FRE.tif", "w", force_zip64=True) as member:
        for left in range(size, 0, -len(block)):
            member.write(block[:left])


class Transfer(NamedTuple):
    """One set of products on the server, asked for in one way; `rate` in MB/s a connection, 0 without limit."""

    kind: str
    rate: int
    folder: Path

    @property
    def paths(self) -> list[Path]:
        """The originals."""
        return sorted(self.folder.iterdir())

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(path.stat().st_size for path in self.paths)

    @property
    def name(self) -> str:
        """What the table calls it."""
        limit = f", {self.rate} MB/s a connection" if self.rate else ""
        return f"{self.kind}, {self.folder.name}, {self.size / 1e6:.0f} MB{limit}"


def make_transfers(folder: Path, megabytes: float, kinds: Iterable[str]) -> list[Transfer]:
    """Write the products, and return what is to be fetched of them."""
    for name, hundredths in SETS.items():
        (folder / name).mkdir()
        for number, share in enumerate(hundredths, 1):
            path = folder / name / f"SENTINEL2A_201707{number:02}-105605-456_L2A_T31TCJ_D_V1-4.zip"
            make_zip(path, int(megabytes * share * 10_000))
    return [
        Transfer(kind, 0 if name == "equal" else RATE_MB, folder / name)
        for name in SETS
        for kind in kinds
        if kind == "plain" or name != "uneven"
    ]


# Measuring


class Measure(NamedTuple):
    """What a command took: seconds, CPU seconds, peak memory in MiB."""

    seconds: float
    cpu: float
    memory: float


class Bench:
    """The folder, the server's base URLs and the environment of all measurements."""

    def __init__(self, folder: Path, bases: dict[str, str]):
        self.folder, self.bases, self.authority = folder, bases, str(folder / "ca.pem")
        self.run_folder = folder / "run"
        unwanted = ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and k not in unwanted}
        self.environment = {**kept, "REQUESTS_CA_BUNDLE": self.authority} if "TLS" in bases else kept
        self.account = folder / "peps.txt"
        self.account.touch(0o600)
        self.account.write_text("jean.dupont@example.org secret\n")

    def downloader(self, kind: str, jobs: int = JOBS, chunk: int = 0) -> list[str]:
        """The command line of full_maja_download, for the job that `prepare` writes."""
        script = ["-c", WITH_CHUNK.format(checkout=str(CHECKOUT), size=chunk)] if chunk else [DOWNLOADER]
        options = f"--server {self.bases[kind]}/0 -l job.log -w out -j {jobs} -a"
        return [sys.executable, *script, *options.split(), str(self.account)]

    def tools(self, transfer: Transfer) -> dict[str, list[str]]:
        """The command lines to compare, of the tools that are installed."""
        secure = transfer.kind == "TLS"
        curl = f"curl -q -sS -f -Z --parallel-max {JOBS} --output-dir out --remote-name-all"
        aria2c = f"aria2c --no-conf -q -j {JOBS} --file-allocation=none -d out -i -"
        wget = "wget --no-config -nv -P out"
        option = [f"--ca-certificate={self.authority}"] if secure else []
        rows = {
            "curl -Z": [*curl.split(), *(["--cacert", self.authority] if secure else []), *self.urls(transfer)],
            "aria2c": [*aria2c.split(), *option],
            "wget": [*wget.split(), *option, "-i", "-"],
            "xargs -P wget": ["xargs", "-P", str(JOBS), "-n", "1", *wget.split(), *option],
        }
        there = {
            name: row
            for name, row in rows.items()
            if shutil.which(row[0]) and (name != "xargs -P wget" or shutil.which("wget"))
        }
        return {OURS: self.downloader(transfer.kind), **there}

    def urls(self, transfer: Transfer) -> list[str]:
        """The products' URLs, in the order in which the report lists them."""
        base = f"{self.bases[transfer.kind]}/{transfer.rate}/{transfer.folder.name}"
        return [f"{base}/{path.name}" for path in transfer.paths]

    def prepare(self, transfer: Transfer) -> None:
        """Write a finished job of these products: its documents for the server, its log for the run."""
        urls, place = self.urls(transfer), {"base": f"{self.bases[transfer.kind]}/0", "name": "job"}
        write_job(self.folder / "job.xml", self.folder / "job.json", urls, place)
        (self.run_folder / "job.log").write_text(ACCEPTED.format(**place))
        (self.run_folder / "urls.txt").write_text("".join(f"{url}\n" for url in urls))

    def start(self, command: list[str]) -> Measure:
        """Run a command in the run's folder, its input the list of URLs; raises SystemExit if it fails."""
        streams = [str(self.run_folder / name) for name in ("urls.txt", "output.txt")]
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", STARTER, *streams, *command], env=self.environment,
            cwd=self.run_folder, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        seconds, cpu, memory, status = json.loads(done.stdout)
        if status:
            raise SystemExit(f"{shlex.join(command)}\nended with {status}:\n{Path(streams[1]).read_text()}")
        return Measure(seconds, cpu, memory / (1024 * 1024 if sys.platform == "darwin" else 1024))

    def fetch(self, transfer: Transfer, command: list[str], every_byte: bool) -> Measure:
        """Run one download into a new folder, compare what it brought with the originals, and clear it away."""
        (self.run_folder / "out").mkdir(parents=True)
        self.prepare(transfer)
        os.sync()  # what the last run left to be written is not this one's burden
        measure = self.start(command)
        for path in transfer.paths:
            got = self.run_folder / "out" / path.name
            whole = got.is_file() and got.stat().st_size == path.stat().st_size
            if not whole or (every_byte and not filecmp.cmp(got, path, shallow=False)):
                raise SystemExit(f"{shlex.join(command)}\nbrought {got.name} incomplete or changed")
        shutil.rmtree(self.run_folder)
        return measure

    def compare(self, transfer: Transfer, commands: dict[str, list[str]], rounds: int) -> dict[str, Measure]:
        """The medians of each command, measured once a round, in turn."""
        measures = [
            {name: self.fetch(transfer, command, every_byte=number == 0) for name, command in commands.items()}
            for number in range(rounds)
        ]
        return {name: median(each[name] for each in measures) for name in commands}


def median(measures: Iterable[Measure]) -> Measure:
    """The median of each value."""
    return Measure(*map(statistics.median, zip(*measures)))


def write_job(status: Path, report: Path, urls: list[str], place: dict[str, str]) -> None:
    """Write status document and report of a finished job."""
    status.write_text(SUCCEEDED.format(**place))
    report.write_text(json.dumps({"USER_INFO": {"job_status": "FINISHED", "results": urls}}))


# The parts of the benchmark


def show(transfer: Transfer, measures: dict[str, Measure], jobs: dict[str, int], reference: str = OURS) -> None:
    """Print a transfer's rows of the table; `jobs` says how many connections an ideal would keep busy."""
    for name, measure in measures.items():
        lanes = transfer.rate * 1e6 * jobs.get(name, JOBS)
        ideal = f"{measure.seconds * lanes / transfer.size:.3f}" if lanes else ""
        ratio = measure.seconds / measures[reference].seconds
        print(
            f"| {transfer.name} | {name} | {measure.seconds:.2f} | {ratio:.2f} | {ideal} "
            f"| {measure.cpu:.2f} | {measure.memory:.0f} |",
            flush=True,
        )


def show_head(title: str) -> None:
    """Print a title and the head of the table."""
    print(f"\n{title}\n\n| transfer | tool | seconds | ratio | to ideal | CPU s | peak MiB |")
    print("|---|---|--:|--:|--:|--:|--:|")


def show_downloads(bench: Bench, transfers: list[Transfer], rounds: int) -> None:
    """Compare the downloader with the other tools."""
    show_head(f"Downloads, {JOBS} at once but for wget alone, medians of {rounds} rounds; ratio: to {OURS}")
    for transfer in transfers:
        show(transfer, bench.compare(transfer, bench.tools(transfer), rounds), {"wget": 1})


def show_sweep(bench: Bench, transfers: list[Transfer], rounds: int) -> None:
    """Show what other sizes of a read and other numbers of downloads at once would give."""
    show_head(f"Choices, medians of {rounds} rounds; ratio: to the first line of each")
    for transfer in transfers:
        if not transfer.rate:
            sizes = {f"reads of {size} kiB": size * 1024 for size in (256, 64, 1024, 4096)}
            commands = {name: bench.downloader(transfer.kind, chunk=size) for name, size in sizes.items()}
            show(transfer, bench.compare(transfer, commands, rounds), {}, "reads of 256 kiB")
        jobs = {f"-j {number}": number for number in (4, 1, 2, 8)}
        commands = {name: bench.downloader(transfer.kind, number) for name, number in jobs.items()}
        show(transfer, bench.compare(transfer, commands, rounds), jobs, "-j 4")


def show_start(bench: Bench) -> None:
    """Compare the start-up of -h with that of a bare argparse."""
    bench.run_folder.mkdir()
    (bench.run_folder / "urls.txt").touch()
    commands = {"bare": [sys.executable, "-c", BARE], "ours": [sys.executable, DOWNLOADER, "-h"]}
    measures = [{name: bench.start(row) for name, row in commands.items()} for _ in range(START_ROUNDS)]
    bare, ours = (median(each[name] for each in measures) for name in commands)
    shutil.rmtree(bench.run_folder)
    print(
        f"\nStart-up: full_maja_download.py -h {ours.seconds * 1000:.0f} ms, a bare argparse's -h "
        f"{bare.seconds * 1000:.0f} ms, ratio {ours.seconds / bare.seconds:.2f} (medians of {START_ROUNDS})"
    )


def show_finished(bench: Bench, products: int) -> None:
    """Time a pass over finished jobs whose products are all on disk; raises SystemExit if it asks for anything."""
    bench.run_folder.mkdir()
    (bench.run_folder / "urls.txt").touch()
    make_zip(bench.folder / "small.zip", 1000)
    with socket.create_server(("127.0.0.1", 0)) as door:
        base = f"http://127.0.0.1:{door.getsockname()[1]}"
        for number in range(FINISHED_JOBS):
            names = [f"SENTINEL2A_20170704-{number:06}-{n:03}_L2A_T31TCJ_D_V1-4.zip" for n in range(products)]
            place, job = {"base": base, "name": f"job{number}"}, bench.run_folder / f"{number:03}"
            write_job(job.with_suffix(".stat"), job.with_suffix(".json"), [f"{base}/{name}" for name in names], place)
            job.with_suffix(".log").write_text(ACCEPTED.format(**place))
            for name in names:
                shutil.copy(bench.folder / "small.zip", bench.run_folder / name)
        logs = [f"{number:03}.log" for number in range(FINISHED_JOBS)]
        command = [sys.executable, DOWNLOADER, "--server", base, "-a", str(bench.account), "-l", *logs]
        measure = median(bench.start(command) for _ in range(3))
        door.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            door.accept()
            raise SystemExit("the pass over finished jobs asked the service")
    shutil.rmtree(bench.run_folder)
    print(
        f"{FINISHED_JOBS} finished jobs of {products} products each, all on disk: {measure.seconds:.2f} s, "
        f"{measure.memory:.0f} MiB, no request"
    )


def show_machine() -> None:
    """Print what the numbers depend on."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("requests", "urllib3")]
    for tool in filter(shutil.which, ("curl", "aria2c", "wget")):
        words = subprocess.run([tool, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        versions.append(f"{tool} {next(word for word in words if word[0].isdigit())}")
    print(f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}, {', '.join(versions)}")


def main(argv=None) -> int:
    """Run what was asked for; returns 0, whatever the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=200, help="MB of each of the eight products (default: 200)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    parser.add_argument(
        "--dir", help="where to make a temporary folder of 24 times --mb: 4.8 GB (default: the system's)"
    )
    parser.add_argument("--quick", action="store_true", help="small and once, only to see that it works")
    parser.add_argument("--sweep", action="store_true", help="instead: other sizes of a read, other numbers of jobs")
    parser.add_argument("--serve", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(args.serve)
        return 0
    megabytes, rounds = (10, 1) if args.quick else (args.mb, args.rounds)
    show_machine()
    with tempfile.TemporaryDirectory(prefix="peps_benchmark_", dir=args.dir) as name:
        folder = Path(name).resolve()
        with running_server(folder) as bases:
            bench, transfers = Bench(folder, bases), make_transfers(folder, megabytes, bases)
            (show_sweep if args.sweep else show_downloads)(bench, transfers, rounds)
            if not args.sweep:
                show_start(bench)
                show_finished(bench, 1)
                show_finished(bench, 10)
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
