"""Who sees the account: over real TLS, in an internet of one machine.

Every host leads to one local server, by a proxy or not, which notes who sent what.
"""

from __future__ import annotations

import base64
import html
import importlib.util
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, quote_plus

import pytest
import requests
import trustme
from faulty_http import (
    Handler,
    Server,
    cut,
    for_gets,
    head_and,
    raw,
    reset,
    stall,
    status,
)
from local_peps import EMAIL, SECRET, make_product
from stories import (
    SHORT,
    answer,
    json_document,
    json_error,
    only_line,
    report_of,
    xml,
)

HOSTS = """127.0.0.1 example.test *.example.test *.b.example.test evil.test
    evilexample.test example.test.evil.test"""
OWN = "https://peps.example.test:8443"
EXECUTE = "/resto/wps"
ORDER = ("full_maja_process", "-t", "31TCJ", *SHORT, "-l", "job.log")


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


ACCOUNT = basic(EMAIL, SECRET)


class Call(NamedTuple):
    """A request as it came; of its URL without the query."""

    url: str
    authorization: str | None


class Connection(Handler):
    """A connection to a host; or to the proxy, and after CONNECT to the host behind."""

    origin, reset = "", False

    def handle(self):
        if self.connection.recv(1, socket.MSG_PEEK) == b"\x16":  # a TLS handshake
            self.begin_tls(self.peps.url.replace("http", "https"))
        super().handle()

    def do_CONNECT(self):
        self.peps.proxied.append(self.path)
        self.close_connection = True  # of HTTP/1.1, too
        if "CONNECT" in self.peps.pages:
            self.peps.pages["CONNECT"](self)
            return
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        self.begin_tls(f"https://{self.path.removesuffix(':443')}")
        self.close_connection = False

    def begin_tls(self, origin: str):
        if "TLS" in self.peps.pages:
            self.peps.pages["TLS"](self)
            raise ConnectionError
        self.request = self.peps.tls.wrap_socket(self.connection, server_side=True)
        self.setup()
        self.origin = origin

    def finish(self):
        super().finish()
        self.connection.close()


class Internet:
    """All hosts there are.

    `pages` are what stands at a path, whatever the host; `proxied` came by the proxy.
    """

    def __init__(self):
        self.server = Server(self, Connection)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.calls: list[Call] = []
        self.proxied: list[str] = []
        self.pages = {EXECUTE: xml(answer(f"{OWN}/job.xml"))}
        self.authority = trustme.CA()
        self.certify(self.authority)

    def certify(self, authority: trustme.CA):
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*HOSTS.split()).configure_cert(self.tls)

    def way(self, kind: str) -> str:
        """The server that is reached so."""
        ways = {"plain": self.url, "TLS": self.url.replace("http", "https")}
        ways |= {"forward": "http://peps.example.test", "tunnel": OWN}
        return ways.get(kind, kind)

    def note(self, *request):
        """What a Handler tells of each request; `route` sees them, too."""

    count_sent = note

    def faults_for(self, request):
        return []

    def route(self, handler: Connection):
        path, host = handler.record.path, handler.headers["Host"]
        if "://" in handler.path:
            self.proxied.append(handler.path)
        url = f"{handler.origin or f'http://{host}'}{path}"
        self.calls.append(Call(url, handler.headers["Authorization"]))
        self.pages.get(path, status(404))(handler)

    def show_job(self, name: str, document=OWN, report=OWN, product=OWN):
        """A finished job: its log here, and its documents at these origins."""
        path = f"/{name}/{name}"
        Path(f"{name}.log").write_bytes(answer(f"{document}{path}.xml"))
        succeeded = answer("", "<ProcessSucceeded/>", f"{report}{path}.json")
        self.pages[f"{path}.xml"] = xml(succeeded)
        self.pages[f"{path}.json"] = json_document(report_of([f"{product}{path}.zip"]))
        self.pages[f"{path}.zip"] = status(200, body=make_product("x.zip", 1000))

    def signed(self) -> dict[str, bool]:
        """By URL, whether the request for it carried the account; none has another."""
        assert {call.authorization for call in self.calls} <= {None, ACCOUNT}
        return {call.url: call.authorization == ACCOUNT for call in self.calls}


@pytest.fixture
def internet(account, tmp_path_factory, monkeypatch):
    """The internet, reached by a proxy; and a netrc with an account for every host."""
    internet, home = Internet(), tmp_path_factory.mktemp("home")
    internet.authority.cert_pem.write_to_path(home / "ca.pem")
    (home / "netrc").write_text("default login some password thing\n")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(home / "ca.pem"))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("http_proxy", internet.url)
    monkeypatch.setenv("https_proxy", internet.url)
    thread = threading.Thread(target=internet.server.serve_forever, args=(0.02,))
    thread.start()
    yield internet
    internet.server.shutdown()
    internet.server.server_close()
    thread.join()


@pytest.fixture
def download(run):
    return partial(run, "full_maja_download", "--server", OWN, "-l")


# Where a document says that something stands, and where it is fetched.
ROWS = """\
    own         https://peps.example.test:8443    https://peps.example.test:8443  signed
    own-443     https://peps.example.test         https://peps.example.test       signed
    capitals    HTTPS://PEPS.EXAMPLE.TEST         https://peps.example.test       signed
    account     https://me:pw@peps.example.test   https://peps.example.test       signed
    upgraded    http://peps.example.test          https://peps.example.test       signed
    own-port    http://PEPS.example.test:8443     https://peps.example.test:8443  signed
    sister      https://vizo.example.test         https://vizo.example.test       signed
    parent      https://example.test              https://example.test            signed
    deeper      https://a.b.example.test          https://a.b.example.test        signed
    port        http://peps.example.test:8081     http://peps.example.test:8081   no
    plain       http://vizo.example.test          http://vizo.example.test        no
    evil        https://evil.test                 https://evil.test               no
    evil-plain  http://evil.test                  http://evil.test                no
    evil-me     https://me:pw@evil.test           https://evil.test               no
    evil-own    https://peps.example.test:443@evil.test   https://evil.test       no
    similar     https://evilexample.test          https://evilexample.test        no
    similar-2   https://example.test.evil.test    https://example.test.evil.test  no
"""
PLACES = {name: place for name, *place in map(str.split, ROWS.splitlines())}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_host_gets_what_it_may_see(place, download, internet):
    named, fetched, signed = place
    internet.show_job("job", named, named, named)
    download("job.log")
    seen = internet.signed()
    seen.pop(f"{OWN}{EXECUTE}", None)
    asked = [f"{fetched}/job/job.{kind}" for kind in ("xml", "json", "zip")]
    assert seen == dict.fromkeys(asked, signed == "signed")


@pytest.mark.parametrize("chain", [
    "own", "sister", "evil", "evil-me", "similar", "upgraded", "port", "plain",
    "evil-plain", "evil own", "evil sister evil", "plain sister", "evil-plain upgraded",
])  # fmt: skip
def test_each_hop_of_a_redirect_gets_what_it_may_see(chain, run, download, internet):
    """Of a search, an order, a status document, a report and a product."""
    search = "/resto/api/collections/S2ST/search.json"
    internet.show_job("job")
    internet.pages[search] = json_document({"features": [{}]})
    expected = {}
    for path, page in list(internet.pages.items()):
        here = path
        expected[f"{OWN}{path}"] = True
        for number, name in enumerate(chain.split()):
            (named, fetched, signed), there = PLACES[name], f"{path}/{number}"
            internet.pages[here] = status(302, {"Location": named + there})
            expected[fetched + there] = signed == "signed"
            here = there
        internet.pages[here] = page
    run(*ORDER, "-l", "new.log", "--json", "list.json", "--server", OWN)
    download("job.log")
    assert internet.signed() == expected


TRICKS = r"""
    https://peps.example.test\@evil.test     https://evil.test\@peps.example.test
    https://evil.test#@peps.example.test     https://evil.test?@peps.example.test
    https://peps.example.test%2eevil.test    https://peps.example.test%00.evil.test
    https://evil.test%2f.example.test        https://evil.test%23.example.test
    https://[peps.example.test]@evil.test    https:\\evil.test     //evil.test
    https:evil.test    https:///evil.test    http://peps.example.test\@evil.test
"""


@pytest.mark.parametrize("what", ["document", "report", "product", "redirect"])
def test_no_trick_gets_the_account(what, download, internet):
    """Wherever such a URL leads to: only https to the own domain carries it."""
    tricks = dict(enumerate(TRICKS.split()))
    for number, trick in tricks.items():
        named = {} if what == "redirect" else {what: trick}
        internet.show_job(str(number), **named)
        if not named:
            moved = status(302, {"Location": f"{trick}/x.zip"})
            internet.pages[f"/{number}/{number}.zip"] = moved
    download(*(f"{number}.log" for number in tricks), status=None)
    seen = internet.signed()
    for url in filter(seen.get, seen):
        assert re.match(r"https://([a-z0-9.]+\.)?example\.test[:/]", url)
    assert any("//evil.test" in url for url in seen), "no trick led anywhere"


def test_netrc_is_never_consulted(download, internet):
    assert requests.utils.get_netrc_auth("https://evil.test")
    internet.show_job("job", OWN, "https://evil.test", "http://evil.test")
    download("job.log")
    assert {call.authorization for call in internet.calls} == {ACCOUNT, None}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_this_machine_is_reached_past_the_proxy(host, run, internet):
    server = internet.url.replace("127.0.0.1", host)
    internet.show_job("job", server, server, server)
    run("full_maja_download", "--server", server, "-l", "job.log")
    assert internet.proxied == []
    assert all(internet.signed().values())


@pytest.mark.parametrize("host", ["127.0.0.1.", "localhost.."])
def test_what_is_no_name_of_this_machine_gets_no_account(host, run, internet):
    server = internet.url.replace("127.0.0.1", host)
    internet.show_job("job", server, server, server)
    run("full_maja_download", "--server", server, "-l", "job.log", status=None)
    assert not any(internet.signed().values())


@pytest.fixture
def not_sent(run, internet):
    """See that an order was not sent, and leaves no doubt."""

    def not_sent(kind: str, ends: object, words: str):
        server = internet.way(kind)
        result = run(*ORDER, "--server", server, status=int(ends))
        only_line(result, *words.split())
        assert "geheim" not in result.out + result.err
        assert not Path("job.log").exists()

    return not_sent


@pytest.mark.parametrize("row", """
    no_proxy    *                                  http://127.0.0.1:9   75   127.0.0.1:9
    no_proxy    *                                  https://peps.invalid  75  --server
    https_proxy http://127.0.0.1:9                 tunnel  75  proxy 127.0.0.1:9
    http_proxy  http://127.0.0.1:9                 forward 75  proxy 127.0.0.1:9
    https_proxy http://me:geheim@127.0.0.1:9       tunnel  75  proxy 127.0.0.1:9
    https_proxy http://me:geheim@                  tunnel  1   HTTPS_PROXY
    https_proxy http://me:geheim@127.0.0.1:99999   tunnel  1   HTTPS_PROXY
    https_proxy socks5://me:geheim@127.0.0.1:9     tunnel  1   requests[socks]
    REQUESTS_CA_BUNDLE /none.pem                   tunnel  1   none REQUESTS_CA_BUNDLE
""".strip().splitlines())  # fmt: skip
def test_an_order_that_the_environment_stops_is_not_sent(row, not_sent, monkeypatch):
    variable, value, kind, ends, words = row.split(maxsplit=4)
    if value.startswith("socks") and importlib.util.find_spec("socks"):
        pytest.skip("PySocks is installed")
    monkeypatch.setenv(variable, value)
    not_sent(kind, ends, words)


@pytest.mark.parametrize(("kind", "where", "fault", "ends", "words"), [
    ("TLS", "TLS", raw(b""), 75, "127.0.0.1"),
    ("tunnel", "TLS", raw(b""), 75, "peps.example.test:8443"),
    ("tunnel", "TLS", raw(b"220 smtp ESMTP\r\n"), 75, "peps.example.test:8443"),
    ("tunnel", "CONNECT", raw(b""), 75, "peps.example.test:8443"),
    ("tunnel", "CONNECT", status(502), 75, "proxy 127.0.0.1"),
    ("tunnel", "CONNECT", status(407), 1, "proxy 127.0.0.1 407"),
    ("forward", EXECUTE, status(407), 1, "proxy 127.0.0.1 407"),
])  # fmt: skip
def test_an_order_whose_way_breaks_off_is_not_sent(
    kind, where, fault, ends, words, not_sent, internet
):
    internet.pages[where] = fault
    not_sent(kind, ends, words)


@pytest.mark.parametrize("kind", ["TLS", "tunnel"])
def test_an_order_to_an_untrusted_host_is_not_sent(kind, not_sent, internet):
    internet.certify(trustme.CA())
    not_sent(kind, 1, "prove REQUESTS_CA_BUNDLE")
    assert internet.calls == []


@pytest.mark.parametrize("kind", ["plain", "TLS", "forward", "tunnel"])
@pytest.mark.parametrize("fault", [
    cut(None), reset(None), head_and(b"<wps:ExecuteResp", "Content-Length: 999"),
], ids=["closed", "reset", "half"])  # fmt: skip
def test_an_order_that_was_sent_is_in_doubt(kind, fault, run, internet):
    server, internet.pages[EXECUTE] = internet.way(kind), fault
    only_line(run(*ORDER, "--server", server, status=1), "in doubt", server)
    assert Path("job.log").read_bytes().startswith(b"PEPS order")
    account = None if kind == "forward" else ACCOUNT
    assert internet.calls == [(f"{server}{EXECUTE}", account)]


ODD = "two  blanks", ":a:b:", "päß€😀", "\"'\\`$(id)", "%41+&=#"


@pytest.mark.parametrize("password", ODD, ids=ascii)
def test_any_password_arrives(password, run, internet, account):
    account.write_bytes(f"\ufeff{EMAIL} {password} \t\r\nmore".encode())
    run(*ORDER, "--server", OWN)
    assert internet.calls == [(f"{OWN}{EXECUTE}", basic(EMAIL, password))]


FORMS = (
    str, quote, partial(quote, safe=""), quote_plus, partial(quote_plus, safe="/"),
    html.escape, partial(html.escape, quote=False), partial(basic, EMAIL),
    lambda word: html.escape(word).replace("&#x27;", "&#39;"),
)  # fmt: skip


def test_a_service_that_quotes_the_password_is_masked(run, peps, account):
    word = "mot de/passe: <100%> & 'sûr'"
    account.write_text(f"{EMAIL} {word}", "utf-8")
    quoted = [form(word).removeprefix("Basic ").rstrip("=") for form in FORMS]
    peps.always.append((EXECUTE, json_error(400, f"no: {', '.join(quoted)}.")))
    masked = ", ".join(["***"] * len(FORMS))
    only_line(run(*ORDER, status=1), f"no: {masked}.")
    peps.always.insert(0, (EXECUTE, json_error(500, f"no: {word}.")))
    run(*ORDER, status=1)
    assert "no: ***." in Path("job.log").read_text()


def test_a_command_of_ours_is_not_masked(run, internet, account):
    account.write_text(f"{EMAIL} peps")
    assert "-a peps.txt" in run(*ORDER, "--server", OWN).out


def test_a_host_is_not_masked(run, internet, account):
    account.write_text(f"{EMAIL} peps")
    internet.pages[EXECUTE] = json_error(401, "no peps")
    result = run(*ORDER, "--server", OWN, status=1)
    only_line(result, "peps.example.test:8443", "no ***", "peps.txt")


def require_secret(text: str):
    assert SECRET[:12] not in text  # its beginning is plain ASCII
    for form in FORMS:
        assert form(SECRET).removeprefix("Basic ").rstrip("=") not in text


def test_the_password_is_in_no_output_and_no_file(run, peps, folder, account):
    told = [run(*ORDER, "--json", "list.json")]
    told.append(run("full_maja_download", "-l", "job.log", status=75))
    peps.advance(hours=100)
    peps.always.append(("/maja/", for_gets(status(401))))
    told.append(run("full_maja_download", "-l", "job.log", status=1))
    told.append(run("full_maja_download", "-l", "job.log", "--check"))
    server = f"https://{quote(EMAIL)}:{quote(SECRET)}@peps.cnes.fr"
    told.append(run(*ORDER, "--server", server, status=2))
    peps.faults.append((EXECUTE, cut(None)))
    told.append(run(*ORDER, "--force", status=1))
    for file in set(folder.iterdir()) - {account}:
        told.append(file.read_bytes().decode("utf-8", "replace"))
    require_secret("\n".join(map(str, told)))


@pytest.mark.skipif(not shutil.which("ps"), reason="there is no ps")
def test_the_process_list_does_not_have_it(launch, peps, make_job):
    job = make_job()
    peps.always.append(("/maja/", stall()))
    launch("full_maja_download", *job.argv)
    peps.wait_for(lambda: peps.requests("/maja/"))
    shown = subprocess.check_output(["ps", "axww"]).decode("utf-8", "replace")
    assert "full_maja_download.py" in shown
    require_secret(shown)


@pytest.mark.parametrize("content", [
    b"", b"\n\n", b"geheim\n", b"geheim@example.org \n", b"me@example.org\ngeheim\n",
    b"me@example.org geheim\xe9\n", "me@example.org geheim".encode("utf-16"),
])  # fmt: skip
def test_an_account_file_that_is_none_is_not_quoted(content, run, peps, account):
    account.write_bytes(content)
    assert "geheim" not in only_line(run(*ORDER, status=2), "peps.txt")
    assert peps.journal == []


def test_an_account_from_a_pipe(finish, peps):
    reader, writer = os.pipe()
    os.write(writer, peps.account.encode())
    os.close(writer)
    result = finish(*ORDER, "-a", f"/dev/fd/{reader}", pass_fds=[reader])
    os.close(reader)
    assert len(peps.jobs) == 1
    assert " -a " not in result.out  # it is gone by the time of the next command


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_an_account_file_that_others_can_read_gets_a_warning(run, account):
    account.chmod(0o640)
    only_line(run(*ORDER), "warning", "chmod 600 peps.txt")
    account.chmod(0o400)
    assert run(*ORDER, "--force").err == ""


@pytest.mark.parametrize("what", ["report", "product"])
def test_a_service_elsewhere_may_not_name_this_machine(what, run, internet):
    internet.show_job("job", **{what: internet.url})
    ended = run("full_maja_download", "--server", OWN, "-l", "job.log", status=1)
    only_line(ended, "your machine")
    assert not [call for call in internet.calls if "127.0.0.1" in call.url]
