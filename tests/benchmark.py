"""What full_maja_download.py costs beside the tools that a user would otherwise take.

All fetch the same products, in turn, from one local server: a process of its own that
sends with sendfile, so that it is not the limit. The downloader's time has everything
in it: its start, the status document, the refresh, the report, sizes and checks. Ends
with 1 if a tool fails or brings wrong files, never for a time. Needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import filecmp
import http.server
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import socketserver
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
OURS = "full_maja_download"
JOBS = 4
RATE = 25_000_000  # bytes a second of a limited connection
START_ROUNDS = 20
FINISHED_JOBS = 300
# By name: kind of server, bytes a second a connection (0: no limit), and the sizes in
# hundredths of --mb. The uneven ones fill four lanes alike if the largest go first.
SETS = {
    "plain, 8 equal": ("http", 0, [100] * 8),
    "TLS, 8 equal": ("https", 0, [100] * 8),
    "plain, 8 equal, 25 MB/s a connection": ("http", RATE, [50] * 8),
    "plain, 8 uneven, 25 MB/s a connection": (
        "http",
        RATE,
        [20, 30, 40, 50, 50, 60, 70, 80],
    ),
}
ANSWER = (
    '<w:ExecuteResponse xmlns:w="http://www.opengis.net/wps/1.0.0"'
    ' statusLocation="{base}/{job}.xml"><w:Status><w:{state}/></w:Status>'
    '<w:ProcessOutputs><w:Output><w:Reference href="{base}/{job}.json"/></w:Output>'
    "</w:ProcessOutputs></w:ExecuteResponse>"
)
BARE = "import argparse; argparse.ArgumentParser().parse_args(['-h'])"


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends the files of a folder; /25000000/name is sent with that many bytes/s."""

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
                self.send(file, size, int(rate))

    do_HEAD = do_GET

    def send(self, file, size: int, rate: int) -> None:
        began, at = time.monotonic(), 0
        while at < size:
            count = min(128 * 1024 if rate else 1024 * 1024, size - at)
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
        if context:  # the handshake belongs to each connection's thread
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """Clients come and go."""


def serve(folder: Path) -> None:
    """Serve a folder until standard input ends; tell the base URLs as JSON."""
    import trustme

    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1").configure_cert(context)
    servers = {"http": Server(folder, None), "https": Server(folder, context)}
    ports = {scheme: server.server_address[1] for scheme, server in servers.items()}
    print(json.dumps({s: f"{s}://127.0.0.1:{ports[s]}" for s in ports}), flush=True)
    sys.stdin.read()


def make_zip(path: Path, size: int) -> None:
    """Write a zip of about `size` bytes that nothing can pack any further."""
    block = os.urandom(min(size, 1024 * 1024))
    archive = zipfile.ZipFile(path, "w")
    with archive, archive.open("FRE.tif", "w", force_zip64=True) as member:
        for left in range(size, 0, -len(block)):
            member.write(block[:left])


def write_job(log: Path, documents: Path, base: str, urls: list[str]) -> None:
    """Write a job's log, and its status document and report into a folder."""
    place = {"base": base, "job": log.stem}
    log.write_text(ANSWER.format(state="ProcessAccepted", **place))
    status = ANSWER.format(state="ProcessSucceeded", **place)
    report = {"USER_INFO": {"job_status": "FINISHED", "results": urls}}
    for suffix in (".xml", ".stat"):
        (documents / f"{log.stem}{suffix}").write_text(status)
    (documents / f"{log.stem}.json").write_text(json.dumps(report))


class Bench:
    """Runs commands, each in a new folder, in an environment without proxies."""

    def __init__(self, folder: Path, bases: dict[str, str], other: str | None):
        self.folder, self.bases, self.other = folder, bases, other
        self.authority = str(folder / "ca.pem")
        unwanted = {"CURL_CA_BUNDLE", "SSL_CERT_FILE", "PYTHONDONTWRITEBYTECODE"}
        names = {n for n in os.environ if not n.lower().endswith("_proxy")}
        self.environment = {n: os.environ[n] for n in names - unwanted}
        self.environment["REQUESTS_CA_BUNDLE"] = self.authority
        self.account = folder / "account.txt"
        self.account.touch(0o600)
        self.account.write_text("jean.dupont@example.org secret\n")
        (folder / "resto").mkdir()
        (folder / "resto" / "wps").write_text("<w:ExecuteResponse/>")

    def commands(self, base: str, urls: list[str]) -> dict[str, list[str]]:
        """The command lines to compare, of the tools that are here."""
        own = f"--server {base}/0 -l job.log -w out -j {JOBS} -a {self.account}"
        downloader = str(CHECKOUT / f"{OURS}.py")
        curl = f"curl -q -sS -f -Z --parallel-immediate --parallel-max {JOBS}"
        curl = f"{curl} --output-dir out --cacert {self.authority} --remote-name-all"
        aria2c = f"aria2c --no-conf -q -j {JOBS} --file-allocation=none -d out -i -"
        wget = f"xargs -P {JOBS} -n 1 wget --no-config -nv -P out"
        authority = f"--ca-certificate={self.authority}"
        found = {OURS: [sys.executable, downloader, *own.split()]}
        if self.other:
            found["the other one"] = [sys.executable, self.other, *own.split()]
        if shutil.which("curl"):
            found["curl -Z"] = [*curl.split(), *urls]
        if shutil.which("aria2c"):
            found["aria2c"] = [*aria2c.split(), authority]
        if shutil.which("wget"):
            found["xargs -P wget"] = [*wget.split(), authority]
        return found

    def seconds(self, command: list[str], folder: Path, urls: list[str]) -> float:
        """Time a command in a folder, the URLs on its standard input."""
        began = time.monotonic()
        done = subprocess.run(
            command, env=self.environment, cwd=folder, input="\n".join(urls),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        took = time.monotonic() - began
        if done.returncode:
            words = f"ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            raise SystemExit(f"{shlex.join(command)}\n{words}")
        return took

    def fetch(self, base: str, paths: list[Path], rate: int, name: str) -> float:
        """Time one tool's download, and compare what it brought with the originals."""
        urls = [f"{base}/{rate}/{path.parent.name}/{path.name}" for path in paths]
        with tempfile.TemporaryDirectory(dir=self.folder) as run:
            (Path(run) / "out").mkdir()
            write_job(Path(run) / "job.log", self.folder, f"{base}/0", urls)
            os.sync()  # what the last run left to be written is not this one's burden
            took = self.seconds(self.commands(base, urls)[name], Path(run), urls)
            for path in paths:
                got = Path(run) / "out" / path.name
                if not got.exists() or not filecmp.cmp(got, path, shallow=False):
                    raise SystemExit(f"{name} brought {got.name} incomplete or changed")
        return took

    def show(self, name: str, megabytes: float, rounds: int) -> None:
        """Print a row: our seconds, and what each tool took as a multiple of them."""
        scheme, rate, hundredths = SETS[name]
        folder = self.folder / str(list(SETS).index(name))
        folder.mkdir()
        paths = []
        for number, share in enumerate(hundredths, 1):
            paths.append(folder / f"SENTINEL2A_201707{number:02}_L2A_T31TCJ.zip")
            make_zip(paths[-1], int(megabytes * share * 10_000))
        tools = list(self.commands(self.bases[scheme], []))
        times = [
            {tool: self.fetch(self.bases[scheme], paths, rate, tool) for tool in tools}
            for _ in range(rounds)
        ]
        shutil.rmtree(folder)
        row = [f"{name}, {sum(hundredths) * megabytes / 100:.0f} MB"]
        row.append(f"{statistics.median(took[OURS] for took in times):.2f} s")
        for tool in tools[1:]:
            ratios = sorted(took[tool] / took[OURS] for took in times)
            middle = statistics.median(ratios)
            row.append(f"{middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        print(f"| {' | '.join(row)} |", flush=True)


def show_start(bench: Bench) -> None:
    commands = {"a bare argparse": [sys.executable, "-c", BARE]}
    commands[OURS] = [sys.executable, str(CHECKOUT / f"{OURS}.py"), "-h"]
    times = [
        {name: bench.seconds(commands[name], bench.folder, []) for name in commands}
        for _ in range(START_ROUNDS)
    ]
    ratio = statistics.median(took[OURS] / took["a bare argparse"] for took in times)
    print(f"\n{OURS} -h takes {ratio:.2f} times what a bare argparse's -h takes.")


def show_finished(bench: Bench) -> None:
    """Time a pass over finished jobs whose products are all on disk."""
    nowhere = "http://127.0.0.1:9"  # who asks there gets an error
    with tempfile.TemporaryDirectory(dir=bench.folder) as name:
        run = Path(name)
        logs = [run / f"{number:03}.log" for number in range(FINISHED_JOBS)]
        for log in logs:
            product = f"SENTINEL2A_20170704-105605-{log.stem}_L2A_T31TCJ_D_V1-4.zip"
            make_zip(run / product, 1000)
            write_job(log, run, nowhere, [f"{nowhere}/{product}"])
        words = ["--server", nowhere, "-a", bench.account, "-l", *logs]
        for script in filter(None, (CHECKOUT / f"{OURS}.py", bench.other)):
            command = [sys.executable, str(script), *map(str, words)]
            took = statistics.median(bench.seconds(command, run, []) for _ in range(3))
            print(f"{len(logs)} finished jobs, all on disk: {took:.2f} s ({script})")


def show_machine() -> None:
    names = ("requests", "urllib3")
    words = [f"{name} {importlib.metadata.version(name)}" for name in names]
    for tool in filter(shutil.which, ("curl", "aria2c", "wget")):
        said = subprocess.run([tool, "--version"], capture_output=True, text=True)
        words.append(" ".join(said.stdout.split()[:3]))
    machine = f"{os.cpu_count()} cores, {platform.system()}"
    python = f"Python {platform.python_version()}"
    print(f"\n{machine}, {python}, {', '.join(words)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--mb", type=float, default=200, help="size of the largest product (200)")
    add("--rounds", type=int, default=3, help="downloads by each tool (3)")
    add("--folder", help="a folder on the disk to use (that of temporary files)")
    add(
        "--other",
        metavar="FILE",
        type=os.path.abspath,
        help="another full_maja_download.py to compare",
    )
    add("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="peps_bench_") as folder:
        command = [sys.executable, __file__, "--serve", folder]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as server:
            bases = json.loads(server.stdout.readline())
            show_all(Bench(Path(folder), bases, args.other), args)
            server.stdin.close()
    show_machine()


def show_all(bench: Bench, args: argparse.Namespace) -> None:
    tools = list(bench.commands("", []))
    print(f"Medians of {args.rounds} rounds, {JOBS} downloads at once; what the other")
    print("tools take is a multiple of our time, with the least and the most.")
    print(f"\n| products | {' | '.join(tools)} |\n|---|{'--:|' * len(tools)}")
    for transfer in SETS:
        bench.show(transfer, args.mb, args.rounds)
    show_start(bench)
    show_finished(bench)


if __name__ == "__main__":
    main()
