"""Who gets to see the account, and what a broken way does to an order: over real TLS, in an internet of one machine.

Every host name leads to one local server, by proxy or not, which keeps each request and the head that it came with.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import html
import json
import os
import re
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, quote_plus, urlsplit

import pytest
import requests
import trustme
from faulty_http import Handler, Server, cut, hold, reset, stall, status
from local_peps import EMAIL, SECRET, make_product
from stories import NOBODY, PERIOD, answer, only_line, report_of, wait_until, xml

import peps_common

OWN = "https://peps.example.test"
HOSTS = (
    "example.test", "*.example.test", "*.b.example.test", "*.example.test.evil.test", "evil.test", "evilexample.test",
    "127.0.0.1",
)  # fmt: skip
PRODUCT = "SENTINEL2A_20170704-105605-456_L2A_T31TCJ_D_V1-4.zip"
BODY = make_product(PRODUCT, 1000)
NETRC = "netrc-user", "netrc-secret"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


ACCOUNT = basic(EMAIL, SECRET)


class Call(NamedTuple):
    """A request as it came: `url` without its query, `head` with all header lines; whether it came by the proxy."""

    url: str
    head: str
    authorization: str | None
    proxied: bool


# What is said instead of a tunnel, or of a TLS handshake.
NO_TUNNEL = {
    "tunnel refused": b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
    "tunnel closed": b"",
}
NO_HANDSHAKE = {
    "no handshake": b"",
    "another protocol": b"220 smtp.example.org ESMTP\r\n",
}


class Connection(Handler):
    """A connection to a host, or to the proxy, which after a CONNECT is one to the host that was asked for."""

    origin, tunnelled = None, False

    def handle(self):
        if self.connection.recv(1, socket.MSG_PEEK) == b"\x16":  # a handshake begins
            self.begin_tls("https://{}:{}".format(*self.server.server_address))
        super().handle()

    def do_CONNECT(self):
        host, _, port = self.path.lower().rpartition(":")
        self.server.internet.tunnels.append(host)
        self.close_connection = (
            True  # also after an HTTP/1.1 CONNECT, as Python 3.12 and later send it
        )
        self.wfile.write(
            NO_TUNNEL.get(
                self.server.internet.end, b"HTTP/1.1 200 Connection established\r\n\r\n"
            )
        )
        if self.server.internet.end not in NO_TUNNEL:
            self.begin_tls(f"https://{host}" + (f":{port}" if port != "443" else ""))
            self.tunnelled, self.close_connection = True, False

    def begin_tls(self, origin: str):
        """Go on as a connection over TLS to this origin."""
        if self.server.internet.end in NO_HANDSHAKE:
            self.wfile.write(NO_HANDSHAKE[self.server.internet.end])
            self.connection.recv(1000)
            raise ConnectionError("no TLS here")
        self.connection = self.server.internet.tls.wrap_socket(
            self.connection, server_side=True
        )
        self.rfile, self.wfile = (
            self.connection.makefile("rb"),
            self.connection.makefile("wb", buffering=0),
        )
        self.origin = origin

    def do_GET(self):
        proxied = self.tunnelled or not self.path.startswith("/")
        path = self.path.partition("?")[0]
        url = (
            path
            if "://" in path
            else f"{self.origin or 'http://' + self.headers['Host']}{path}"
        )
        head = f"{self.requestline}\n{self.headers}"
        self.server.internet.calls.append(
            Call(url, head, self.headers.get("Authorization"), proxied)
        )
        self.server.internet.pages.get(url, status(404))(self)

    do_HEAD = do_GET

    def finish(self):
        super().finish()
        self.connection.close()


class Internet:
    """All hosts there are; `pages` are faults by URL, `calls` and `tunnels` are what was asked for.

    `end` is how a connection ends that does not get as far.
    """

    def __init__(self, peps):
        self.authority = trustme.CA()
        self.server = Server(peps, Connection)
        self.server.internet = self
        self.port = self.server.server_address[1]
        self.reset()

    def reset(self):
        self.end, self.pages = "", {}
        self.calls: list[Call] = []
        self.tunnels: list[str] = []
        self.certify(self.authority)

    def certify(self, authority: trustme.CA, *names: str, **options):
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*(names or HOSTS), **options).configure_cert(self.tls)

    def show(self, url: str, body: bytes | str):
        self.pages[url.partition("?")[0]] = status(
            200, body=body.encode() if isinstance(body, str) else body
        )

    def show_all(self, places: dict[str, str], named: dict[str, str] | None = None):
        """Show a finished job's documents at these places; they name each other as `named` says."""
        for name, document in documents(named or places).items():
            self.show(places[name], document)

    def move(self, url: str, location: str, code: int = 302):
        self.pages[url.partition("?")[0]] = status(code, {"Location": location})

    def signed(self) -> dict[str, bool]:
        """For each URL that was asked for, in order, whether the requests for it carried the account."""
        carried: dict[str, set] = {}
        for call in self.calls:
            carried.setdefault(call.url, set()).add(call.authorization)
        assert all(found in ({ACCOUNT}, {None}) for found in carried.values()), carried
        return {url: found == {ACCOUNT} for url, found in carried.items()}

    def require_no_leak(self):
        """No request but those over https to hosts of the server's domain bears an account, in whatever place."""
        for call in self.calls:
            parts = urlsplit(call.url)
            ours = parts.scheme == "https" and re.fullmatch(
                r"([a-z0-9-]+\.)*example\.test\.?", parts.hostname
            )
            assert call.authorization in (None, ACCOUNT), call
            assert ours or not found_in(call.head), call
            assert ours or call.authorization is None, call


@pytest.fixture(scope="module")
def one_internet(one_peps) -> Iterator[Internet]:
    internet = Internet(one_peps)
    thread = threading.Thread(
        target=internet.server.serve_forever, args=(0.02,), daemon=True
    )
    thread.start()
    yield internet
    internet.server.shutdown()
    internet.server.server_close()
    thread.join()


@pytest.fixture
def internet(
    one_internet, account, tmp_path_factory, monkeypatch
) -> Iterator[Internet]:
    """The internet, reached through a proxy, and a home whose netrc has an account for every host."""
    one_internet.reset()
    home = tmp_path_factory.mktemp("home")
    one_internet.authority.cert_pem.write_to_path(str(home / "ca.pem"))
    (home / ".netrc").write_text("default login {} password {}\n".format(*NETRC))
    (home / ".netrc").chmod(0o600)
    for name in ("CURL_CA_BUNDLE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(home / "ca.pem"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{one_internet.port}")
    monkeypatch.setattr(peps_common, "TRIES", 2)
    monkeypatch.setattr(
        peps_common, "SILENT_MAX", 10**6
    )  # each trick is tried, whatever became of the last
    return one_internet


SEARCH = f"{OWN}/resto/api/collections/S2ST/search.json"
EXECUTE = f"{OWN}/resto/wps"
PLACES = {
    "status document": f"{OWN}/outputs/1.xml", "report": f"{OWN}/outputs/report.json",
    "product": f"{OWN}/results/{PRODUCT}",
}  # fmt: skip


def documents(places: dict[str, str]) -> dict[str, bytes]:
    """What stands at each place: the status document leads to the report, and that to the product."""
    report = json.dumps(report_of([places["product"]])).encode()
    succeeded = answer(state="<ProcessSucceeded/>", report=places["report"])
    return {"status document": succeeded, "report": report, "product": BODY}


def make_jobs(count: int) -> list[dict[str, str]]:
    """The places of so many jobs' documents, no two the same."""
    return [
        {name: f"{OWN}/{n}/{n}{PRODUCT}.{name[0]}.zip" for name in PLACES}
        for n in range(count)
    ]


def follow_up(run, internet: Internet, *jobs: dict[str, str], status: int | None = 0):
    """Download the finished jobs whose documents name these places."""
    internet.show(EXECUTE, answer())
    for number, places in enumerate(jobs):
        Path(f"job{number}.log").write_bytes(answer(places["status document"]))
    logs = [f"job{number}.log" for number in range(len(jobs))]
    return run("full_maja_download", "--server", OWN, "-l", *logs, status=status)


def require_followed(
    run, internet: Internet, jobs: list[dict[str, str]], signed: dict[str, bool]
):
    """Every product comes, and exactly these URLs are asked for, with the account or without it."""
    follow_up(run, internet, *jobs)
    assert all(
        Path(places["product"].rpartition("/")[2]).read_bytes() == BODY
        for places in jobs
    )
    assert internet.signed() == {EXECUTE: True, **signed}
    internet.require_no_leak()
    assert all(call.proxied for call in internet.calls)


class Place(NamedTuple):
    """Where a document says that something stands, where it is to be fetched from, and whether with the account."""

    named: str
    fetched: str
    signed: bool


def same(origin: str, signed: bool) -> Place:
    return Place(origin, origin, signed)


HOME = same(OWN, True)
SISTER = same("https://vizo.example.test", True)
EVIL = same("https://evil.test", False)
SIMILAR = same("https://peps.example.test.evil.test", False)
PLAIN = same("http://vizo.example.test", False)
PORT = same("http://peps.example.test:8081", False)
UPGRADED = Place("http://peps.example.test", OWN, True)
USER = Place("https://user:pw@evil.test", "https://evil.test", False)
ORIGINS = [
    HOME, SISTER, EVIL, PLAIN, PORT, SIMILAR, UPGRADED, USER, same("https://example.test", True),
    same("https://a.b.example.test", True), same(f"{OWN}:8443", True), same("https://vizo.example.test:8443", True),
    Place("HTTPS://PEPS.EXAMPLE.TEST", OWN, True), Place("http://PEPS.example.test", OWN, True),
    same("http://vizo.example.test:8081", False), same("http://peps.example.test:80", False),
    same("http://example.test", False), same("http://evil.test", False),
    same("https://evilexample.test", False), Place("https://peps.example.test@evil.test", "https://evil.test", False),
    Place("https://peps.example.test:443@evil.test", "https://evil.test", False),
    Place("https://user:pw@peps.example.test", OWN, True),
]  # fmt: skip


@pytest.mark.parametrize("what", PLACES)
def test_each_host_gets_what_it_may_see(what, run, internet):
    jobs, signed = make_jobs(len(ORIGINS)), {}
    for places, origin in zip(jobs, ORIGINS):
        path = urlsplit(places[what]).path
        fetched = {**places, what: origin.fetched + path}
        places[what] = origin.named + path
        internet.show_all(fetched, places)
        signed.update(
            {**dict.fromkeys(fetched.values(), True), fetched[what]: origin.signed}
        )
    require_followed(run, internet, jobs, signed)


TRICKS = [
    r"https://peps.example.test\@evil.test", r"https://evil.test\@peps.example.test",
    r"https://evil.test\.peps.example.test", "https://evil.test#@peps.example.test",
    "https://evil.test?@peps.example.test", "https://peps.example.test#@evil.test",
    "https://peps.example.test%2eevil.test", "https://peps.example.test%00.evil.test",
    "https://peps.example.test%23.evil.test", "https://evil.test%2f.example.test", "https://evil.test%23.example.test",
    "https://peps.example.test\t.evil.test", "https://peps.example.test\n.evil.test",
    "https://peps.example.test .evil.test", "https://evil.test\u3002example.test",
    "https://peps\u3002example\u3002test", "https://evil.test\uff0f.example.test",
    "https://evil.test\u2044.example.test", "https://evil.test;.example.test", "https://peps.example.test:@evil.test",
    "https://[peps.example.test]@evil.test", "https://a@b@evil.test", "https://peps.example.test.", "https:evil.test",
    "https:/evil.test", "https:///evil.test", "//evil.test", r"https:\\evil.test", "http://peps.example.test@evil.test",
    r"http://peps.example.test\@evil.test", "http://peps.example.test:80@evil.test", "http://peps.example.test:",
    "http://peps.example.test:00080",
]  # fmt: skip


@pytest.mark.parametrize("what", PLACES)
def test_no_trick_gets_the_account(what, run, internet):
    """Whichever host such a URL leads to, or none: the account goes to the server's domain over https alone."""
    jobs = make_jobs(len(TRICKS))
    for number, (places, trick) in enumerate(zip(jobs, TRICKS)):
        named = {**places, what: f"{trick}/{number}/{number}{PRODUCT}"}
        internet.show_all(places, named)
        places[what] = named[what]
    result = follow_up(run, internet, *jobs, status=None)
    assert result.status in (1, 2)
    internet.require_no_leak()
    reached = {urlsplit(call.url).hostname for call in internet.calls}
    assert "evil.test" in reached, "not one trick led anywhere, so nothing was tried"


CHAINS = {
    "on the same host": [HOME, HOME], "to a host of the same domain": [HOME, SISTER], "to another host": [HOME, EVIL],
    "to another host of a similar name": [HOME, SIMILAR], "to another host, with an account": [HOME, USER],
    "to another host, without a scheme": [HOME, Place("//evil.test", "https://evil.test", False)],
    "down to http of the own host": [HOME, UPGRADED], "down to http of the own host with a port": [HOME, PORT],
    "down to http of the same domain": [HOME, PLAIN],
    "down to http of another host": [HOME, same("http://evil.test", False)], "away and back": [HOME, EVIL, HOME],
    "away, back and away": [HOME, EVIL, HOME, EVIL], "down and up": [HOME, PLAIN, SISTER],
    "from another host to the own": [EVIL, HOME],
    "from another host to another": [EVIL, same("http://evil.test", False)],
    "from plain http to the own": [same("http://vizo.example.test:8081", False), UPGRADED],
}  # fmt: skip


def lay(
    internet: Internet, first: str, chain: list[Place], end: bytes, code: int = 302
) -> dict[str, bool]:
    """Lead from `first`, which is of the chain's first host, along its hosts to `end`; returns who may be signed."""
    path = urlsplit(first).path
    fetched = [
        first,
        *(
            f"{place.fetched}/{number}{path}"
            for number, place in enumerate(chain[1:], 1)
        ),
    ]
    named = [f"{place.named}/{number}{path}" for number, place in enumerate(chain)]
    for here, there in zip(fetched, named[1:]):
        internet.move(here, there, code)
    internet.show(fetched[-1], end)
    return {url: place.signed for url, place in zip(fetched, chain)}


@pytest.mark.parametrize("what", PLACES)
def test_a_redirect_gets_what_it_may_see(what, run, internet):
    """Along each chain, and with every kind of redirect to another host."""
    chains = [(302, chain) for chain in CHAINS.values()]
    chains += [(code, CHAINS["to another host"]) for code in (301, 303, 307, 308)]
    jobs, signed = make_jobs(len(chains)), {}
    for places, (code, chain) in zip(jobs, chains):
        places[what] = chain[0].fetched + urlsplit(places[what]).path
        internet.show_all(places)
        signed.update(dict.fromkeys(places.values(), True))
        signed.update(lay(internet, places[what], chain, documents(places)[what], code))
    require_followed(run, internet, jobs, signed)


def test_no_trick_in_a_redirect_gets_the_account(run, internet):
    names = [f"{number}{PRODUCT}" for number in range(len(TRICKS))]
    for name, trick in zip(names, TRICKS):
        location = (
            f"{trick}/{name}".encode().decode("latin-1").replace("\n", "")
        )  # as a header can hold it
        internet.move(f"{OWN}/results/{name}", location)
    report = report_of([f"{OWN}/results/{name}" for name in names])
    internet.show(PLACES["status document"], documents(PLACES)["status document"])
    internet.show(PLACES["report"], json.dumps(report))
    follow_up(run, internet, PLACES, status=1)
    internet.require_no_leak()
    assert "evil.test" in {urlsplit(call.url).hostname for call in internet.calls}


@pytest.mark.parametrize(
    "name", [name for name, chain in CHAINS.items() if chain[0] == HOME]
)
def test_a_redirected_order_or_search_gets_what_it_may_see(name, run, internet):
    expected = lay(internet, EXECUTE, CHAINS[name], answer(PLACES["status document"]))
    run(
        "full_maja_process",
        "--server",
        OWN,
        "-t",
        "31TCJ",
        *PERIOD,
        "-l",
        "job.log",
        status=None,
    )
    assert internet.signed()[EXECUTE]
    assert internet.signed().items() <= expected.items()
    internet.require_no_leak()
    internet.calls.clear()
    expected = lay(
        internet, SEARCH, CHAINS[name], b'{"type": "FeatureCollection", "features": []}'
    )
    argv = ("-t", "31TCJ", "-d", "2017-07-01", "-p", "list.txt", "-n")
    run("peps_maja_process", "--server", OWN, *argv, status=1)
    assert internet.signed() == expected
    internet.require_no_leak()


@pytest.mark.parametrize("variable", ["NETRC", None], ids=["NETRC", "HOME"])
def test_netrc_is_never_consulted(variable, run, internet, monkeypatch):
    if variable:
        monkeypatch.setenv(variable, str(Path(os.environ["HOME"]) / ".netrc"))
    assert requests.utils.get_netrc_auth("https://evil.test/") == NETRC, (
        "requests would not use it"
    )
    places = {
        **PLACES,
        "report": "https://evil.test/report.json",
        "product": f"http://evil.test/{PRODUCT}",
    }
    internet.show_all(places)
    internet.move(
        places["product"], f"https://elsewhere.example.test.evil.test/{PRODUCT}"
    )
    internet.show(f"https://elsewhere.example.test.evil.test/{PRODUCT}", BODY)
    follow_up(run, internet, places)
    assert {call.authorization for call in internet.calls} == {None, ACCOUNT}
    assert not any(
        basic(*NETRC) in call.head or NETRC[1] in call.head for call in internet.calls
    )


# Certificates that must not be believed.
WRONG = {
    "by an unknown authority": lambda internet: internet.certify(trustme.CA()),
    "of another host": lambda internet: internet.certify(
        internet.authority, "evil.test"
    ),
    "out of date": lambda internet: internet.certify(
        internet.authority, not_after=datetime.datetime(2020, 1, 1)
    ),
}
DISTRUSTED = pytest.mark.parametrize("distrust", WRONG.values(), ids=WRONG)


@DISTRUSTED
def test_nothing_is_sent_to_a_host_with_a_wrong_certificate(distrust, run, internet):
    distrust(internet)
    only_line(follow_up(run, internet, PLACES, status=1), "peps.example.test")
    assert set(internet.tunnels) == {"peps.example.test"}
    result = run(
        "full_maja_process",
        "--server",
        OWN,
        "-t",
        "31TCJ",
        *PERIOD,
        "-l",
        "new.log",
        status=1,
    )
    assert "accepted" not in only_line(
        result
    )  # it never arrived, so nobody has to look for it
    assert not Path("new.log").exists()
    assert internet.calls == []


@DISTRUSTED
def test_a_product_on_a_host_with_a_wrong_certificate(distrust, run, internet):
    """The documents come from this machine, so that the certificate is met at the product alone."""
    base = f"http://127.0.0.1:{internet.port}"
    places = {name: base + urlsplit(place).path for name, place in PLACES.items()}
    places["product"] = f"https://vizo.example.test/{PRODUCT}"
    internet.show_all(places)
    distrust(internet)
    result = follow_up(run, internet, places, status=1)
    assert "vizo.example.test" in result.err
    assert not any(
        call.url.startswith("https:") and PRODUCT in call.url for call in internet.calls
    )
    assert not Path(PRODUCT).exists()


LOST = {
    "closed": cut(None), "reset": reset(None), "silent": stall(None),
    "certificate words": status(200, body=b"<html>certificate verify failed</html>"),
}  # fmt: skip
KINDS = ("plain", "TLS", "forward", "tunnel")
TRANSPORTS = [
    *((kind, "answered", 0) for kind in KINDS),
    *((kind, end, "doubt") for kind in KINDS for end in ("closed", "reset", "certificate words")),
    *((kind, "no server", 75) for kind in KINDS), *(("tunnel", end, 75) for end in NO_TUNNEL),
    *((kind, end, 75) for kind in ("TLS", "tunnel") for end in NO_HANDSHAKE), ("TLS", "untrusted", 1),
]  # fmt: skip


def lead(internet: Internet, monkeypatch, kind: str, end: str) -> str:
    """Make the way to a server, which ends like this; returns the server's URL."""
    door = NOBODY if end == "no server" else f"http://127.0.0.1:{internet.port}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, door)
    servers = {
        "plain": door,
        "TLS": door.replace("http", "https"),
        "forward": OWN.replace("https", "http"),
    }
    server, internet.end = servers.get(kind, OWN), end
    internet.pages[f"{server}/resto/wps"] = LOST.get(
        end, xml(answer(PLACES["status document"]))
    )
    if end == "untrusted":
        internet.certify(trustme.CA())
    return server


@pytest.mark.parametrize(("kind", "end", "expected"), TRANSPORTS)
def test_transports_of_an_order(kind, end, expected, run, internet, monkeypatch):
    """An order is in doubt once its request was handed over, and only then."""
    server, doubt = lead(internet, monkeypatch, kind, end), expected == "doubt"
    result = run(
        "full_maja_process", *ORDER, "--server", server, status=1 if doubt else expected
    )
    assert len(internet.calls) == (expected in (0, "doubt"))
    assert Path("job.log.part").exists() == doubt
    assert Path("job.log").exists() == (expected == 0)
    if expected:
        line = only_line(
            result,
            *(
                ["127.0.0.1", "tried 2 times"]
                if end == "no server" and kind == "plain"
                else []
            ),
        )
        assert ("may have been accepted" in line) == doubt
        assert ("prove" in line) == (end == "untrusted")


@pytest.mark.parametrize(("variable", "value", "ends"), [
    ("HTTPS_PROXY", "http://me:pw@", 75), ("REQUESTS_CA_BUNDLE", "/nowhere.pem", 1),
])  # fmt: skip
def test_a_slip_in_the_environment_leaves_no_doubt(
    variable, value, ends, run, internet, monkeypatch
):
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv(variable.lower(), value)
    only_line(
        run("full_maja_process", *ORDER, "--server", OWN, status=ends),
        "nowhere.pem" if ends == 1 else "",
    )
    assert not Path("job.log.part").exists()


@pytest.mark.parametrize("kind", ["TLS", "tunnel"])
def test_stopped_while_the_answer_is_awaited_over_tls(
    kind, launch, internet, monkeypatch
):
    """TLS 1.3 sends its tickets before the answer; they are no answer that would have to be read to its end."""
    process = launch(
        "full_maja_process",
        *ORDER,
        "--server",
        lead(internet, monkeypatch, kind, "silent"),
    )
    wait_until(lambda: internet.calls)
    err = process.stop(signal.SIGINT)
    assert (process.returncode, "may have been accepted" in err) == (130, True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost.", "LOCALHOST"])
def test_loopback_is_reached_without_the_proxy(host, run, internet, make_job):
    job = make_job()
    job.results = [url.replace("127.0.0.1", host) for url in job.results]
    server = job.peps.url.replace(
        "127.0.0.1", "localhost" if host.lower().startswith("l") else host
    )
    result = run("full_maja_download", *job.argv, "--server", server, status=None)
    assert (
        job.on_disk() == job.bodies or "Name or service not known" in result.err
    )  # not all systems know `localhost.`
    assert internet.tunnels == []
    assert internet.calls == []


def test_loopback_is_another_host(run, internet):
    """`localhost` is not 127.0.0.1, whatever the two have in common; and an https server has nothing to do with it."""
    base = f"http://127.0.0.1:{internet.port}"
    places = {name: base + urlsplit(place).path for name, place in PLACES.items()}
    foreign = {**PLACES, "product": places["product"]}
    places["product"] = f"http://localhost:{internet.port}/{PRODUCT}"
    for server, named in ((base, places), (OWN, foreign)):
        internet.calls.clear()
        internet.show_all(named)
        internet.show(f"{server}/resto/wps", answer())
        Path("job.log").write_bytes(answer(named["status document"]))
        run("full_maja_download", "--server", server, "-l", "job.log")
        signed = dict.fromkeys([f"{server}/resto/wps", *named.values()], True)
        assert internet.signed() == {**signed, named["product"]: False}
        assert any(call.proxied for call in internet.calls) == (server == OWN)
        Path(PRODUCT).unlink()


@pytest.mark.parametrize(("password", "ending"), [
    ("blanks  within\tit", "  \n"), (":a:b:", "\n"), ("päß€😀", "\r\n"), ("\"'\\`$(id)", "\nnot this\n"),
    ("%41+&=#", ""),
], ids=ascii)  # fmt: skip
def test_any_password_arrives(password, ending, run, internet, account):
    account.write_bytes(f"{EMAIL} {password}{ending}".encode())
    internet.show(SEARCH, '{"type": "FeatureCollection", "features": []}')
    argv = ("-t", "31TCJ", "-d", "2017-07-01", "-p", "list.txt", "-n")
    run("peps_maja_process", "--server", OWN, *argv, status=1)
    assert [call.authorization for call in internet.calls] == [basic(EMAIL, password)]


# How the password may look when it slips out: as it is, encoded for a URL or a header, escaped.
FORMS = {
    SECRET, quote(SECRET), quote(SECRET, safe=""), quote_plus(SECRET), json.dumps(SECRET)[1:-1], ascii(SECRET)[1:-1],
    SECRET.encode("utf-8").decode("latin-1"), "100% s", "100%25%20s", "100%25+s",
    *(base64.b64encode(text.encode(encoding)).decode().rstrip("=")
      for text in (SECRET, f"{EMAIL}:{SECRET}", f"{EMAIL} {SECRET}") for encoding in ("utf-8", "latin-1")),
}  # fmt: skip


def found_in(text: str) -> set[str]:
    return {form for form in FORMS if form in text}


@pytest.fixture
def require_silence(run, folder):
    """Run a script that says `words`: the password stands in no stream and in no file but the account file."""

    def require_silence(words: str, script: str, *argv: object):
        result = run(script, *argv, status=None)
        assert not found_in(result.out + result.err), result
        assert words in result.out + result.err
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "peps.txt":
                assert not found_in(path.read_bytes().decode("utf-8", "replace")), path

    return require_silence


def test_the_check_of_these_tests_finds_a_password():
    assert all(
        map(found_in, (f"... {SECRET} ...", ACCOUNT, repr([EMAIL, SECRET]), USERINFO))
    )
    assert not found_in(EMAIL)


ORDER = ("-t", "31TCJ", *PERIOD, "-l", "job.log")
USERINFO = f"https://{quote(EMAIL)}:{quote(SECRET)}@peps.example.test"


def test_runs_that_go_well_are_silent(require_silence, peps):
    peps.product_size = 1000
    require_silence("ordered", "full_maja_process", *ORDER, "--json", "list.json")
    require_silence(
        "identifier=FULL_MAJA", "full_maja_process", *ORDER, "--force", "-n"
    )
    require_silence("waiting", "full_maja_download", "-l", "job.log")
    peps.advance(hours=100)
    require_silence("finished", "full_maja_download", "-l", "job.log", "--check")
    single = ("-t", "31TCJ", "-d", "2017-07-01", "-f", "2017-07-10", "-p", "list.txt")
    require_silence("ordered", "peps_maja_process", *single, "--json", "found.json")
    require_silence("waiting", "peps_maja_download", "-p", "list.txt")


@pytest.mark.parametrize(("fault", "words"), [
    (status(401), "401"), (status(403), "403"), (status(404), "404"), (status(503), "503"),
    (status(302, {"Location": "/resto/wps"}), "redirect"), (status(302, {"Location": "http://[::1"}), "127.0.0.1"),
    (status(200, body=b"<html></html>"), "html"), (status(200, body=b"<!DOCTYPE x><x/>"), "DTD"),
], ids=["401", "403", "404", "503", "circle", "bad redirect", "page", "DTD"])  # fmt: skip
def test_orders_that_fail_are_silent(fault, words, require_silence, peps):
    peps.always.append(("/resto/wps", fault))
    require_silence(words, "full_maja_process", *ORDER)


def test_downloads_that_fail_are_silent(require_silence, run, peps):
    run("full_maja_process", *ORDER)
    peps.advance(hours=100)
    for place, code in (("/maja/", 401), ("/wps/outputs/", 403)):
        peps.always.append((place, status(code)))
        require_silence(str(code), "full_maja_download", "-l", "job.log")


@pytest.mark.parametrize("script", ["full_maja_process", "peps_maja_process"])
def test_wrong_command_lines_are_silent(script, require_silence, monkeypatch, peps):
    monkeypatch.delenv("PEPS_URL")
    require_silence("server", script, "--server", USERINFO, "-t", "31TCJ")
    require_silence("server", script, "--server", USERINFO + ":x", *ORDER)
    require_silence("exit status", script, "-h")
    monkeypatch.setenv("PEPS_URL", USERINFO)
    require_silence("exit status", script, "-h")
    require_silence(script, script, "--version")
    require_silence("exit status", script)
    require_silence("PEPS_URL", script, *ORDER)
    assert peps.journal == []


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no /proc")
def test_the_process_list_does_not_have_it(launch, peps, make_job):
    job = make_job()
    peps.always.append(("/maja/", hold(threading.Event(), None)))
    process = launch("full_maja_download", *job.argv)
    peps.wait_for(lambda: peps.requests("/maja/"))
    lines = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # its process has just ended
            lines[path.parent.name] = (
                path.read_bytes().decode("utf-8", "replace").replace("\0", " ")
            )
    assert "full_maja_download" in lines[str(process.pid)]
    assert not any(map(found_in, lines.values()))


PASSWORDS = [
    "two  blanks", "a\ttab", "sûr & <fort>", "it's \"quoted\"", "100% +/=", "ab", "\u00a0x\u2028y", "mot de passe",
    "C:\\dir",
]  # fmt: skip
QUOTED = {
    "as it is": str,
    "folded": lambda text: " ".join(text.split()),
    "percent-encoded": lambda text: quote(text, safe=""),
    "percent-encoded in small letters": lambda text: (
        quote(text).lower() if text.islower() else quote(text)
    ),
    "of a form": quote_plus,
    "HTML": html.escape,
    "HTML by PHP": lambda text: html.escape(text).replace("&#x27;", "&#039;"),
    "each character by its number": lambda text: "".join(
        f"&#{ord(char)};" for char in text
    ),
    "each character by its number in hex": lambda text: "".join(
        f"&#x{ord(char):X};" for char in text
    ),
    "each character percent-encoded": lambda text: "".join(
        f"%{byte:02X}" for byte in text.encode()
    ),
    "HTML by numbers": lambda text: (
        html.escape(text).encode("ascii", "xmlcharrefreplace").decode()
    ),
    "JSON": lambda text: json.dumps(text)[1:-1],
    "Python's bytes": lambda text: repr(text.encode())[2:-1],
    "misread": lambda text: text.encode().decode("latin-1"),
}


@pytest.mark.parametrize(("password", "text"), [
    ("jean.dupont@example.org1", "jean.dupont@example.org"), ("mot de", f"mot{' ' * 4000}x"),
    ("\\" * 14 + "b", "\\" * 900),
    ('"' * 40 + "b", '\\"' * 40), ("a" * 200 + "b", "a" * 4000), ("a \\ b", "a" + " \\" * 1500),
])  # fmt: skip
def test_masking_comes_to_an_end(password, text):
    """What holds most of a password is not tried in ever so many ways."""
    assert "***" not in peps_common.secret_forms(password, "token").sub("***", text)


@pytest.mark.parametrize("password", PASSWORDS, ids=ascii)
def test_a_service_that_quotes_the_password_does_not_make_it_public(
    password, run, peps, account
):
    """In whatever form, and also where the line is cut off in its middle."""
    account.write_bytes(f"{EMAIL} {password}\n".encode())
    token = basic(EMAIL, password)[6:].rstrip("=")
    quoting = lambda text: (
        f"bad {quote(basic(EMAIL, password))}, bad <{text}> {'x' * 240} {text}"
    )  # noqa: E731
    error = json.dumps({"ErrorMessage": quoting(password)}).encode()
    peps.always.append(("identifier=FULL_MAJA", status(400, body=error)))
    shown = [(password, only_line(run("full_maja_process", *ORDER, status=1), "bad"))]
    shown += [
        (form(password), peps_common.one_line(quoting(form(password))))
        for form in QUOTED.values()
    ]
    for text, line in shown:
        for secret in (text, " ".join(text.split()), token):
            assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", line), line
        assert line.count("***") >= 2


@pytest.mark.parametrize(("content", "words"), [
    (b"", "must hold"), (b"\n\n", "must hold"), (b"very-secret@example.org\n", "must hold"),
    (b"very-secret@example.org \n", "must hold"), (b" very-secret\n", "must hold"),
    (b"me@example.org\nvery-secret\n", "must hold"), (b"me@example.org very-secr\xe9t\n", "UTF-8"),
    ("me@example.org very-secret\n".encode("utf-16"), "UTF-8"),
], ids=["empty", "blank lines", "one word", "no password", "no e-mail", "two lines", "Latin-1", "UTF-16"])  # fmt: skip
def test_an_account_file_that_is_none_is_not_quoted(content, words, run, peps, account):
    account.write_bytes(content)
    assert not re.search(
        "very|secr",
        only_line(run("full_maja_process", *ORDER, status=2), "peps.txt", words),
    )
    assert peps.journal == []


@pytest.mark.parametrize("path", ["missing.txt", "."])
def test_an_account_file_that_cannot_be_read(path, run):
    only_line(run("full_maja_process", *ORDER, "-a", path, status=2), path, "-a")


def test_the_account_may_come_from_a_pipe(finish, peps):
    """As in -a <(pass peps)."""
    reader, writer = os.pipe()
    os.write(writer, peps.account.encode())
    os.close(writer)
    result = finish(
        "full_maja_process", *ORDER, "-a", f"/dev/fd/{reader}", pass_fds=[reader]
    )
    os.close(reader)
    assert len(peps.jobs) == 1
    assert " -a " not in result.out  # it is gone by the time of the next command


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
@pytest.mark.parametrize(
    ("mode", "warned"), [(0o600, False), (0o400, False), (0o644, True), (0o640, True)]
)
def test_account_file_that_others_can_read(run, account, mode, warned):
    account.chmod(mode)
    result = run("full_maja_process", *ORDER)
    assert (result.err.count("warning"), len(result.err.splitlines())) == (
        int(warned),
        int(warned),
    )
    assert run("full_maja_download", "-q", "-l", "job.log", status=75).err == ""
