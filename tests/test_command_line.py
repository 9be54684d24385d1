"""What the four scripts make of their command line, their account file, their log and their list."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from local_peps import SEARCH, WPS

import peps_common

CHECKOUT = Path(peps_common.__file__).parent
TWO_MONTHS = ("-d", "2017-07-01", "-e", "2017-09-01")
NOVEMBER = ("-d", "2017-11-01", "-f", "2017-12-01", "-p", "list.txt")
GOOD = {
    "full_maja_process": ("-t", "31TCJ", *TWO_MONTHS),
    "full_maja_download": ("-l", "job.log"),
    "peps_maja_process": ("-t", "31TCJ", *NOVEMBER),
    "peps_maja_download": ("-p", "list.txt"),
}
COMMON = "-a --auth --server -q --quiet -h --help --version"
OPTIONS = {
    "full_maja_process": "-t --tile -d --start_date -e --end_date -o --orbit -l --log -n --no_download --dry-run "
    "--force --json",
    "full_maja_download": "-l --log -w --write_dir -j --jobs --wait --interval --check --json",
    "peps_maja_process": "-t --tile -l --location --lat --lon --latmin --latmax --lonmin --lonmax -d --start_date "
    "-f --end_date -o --orbit -p --prod_list -w --write_dir -n --no_download --dry-run -y --yes --json",
    "peps_maja_download": "-p --prod_list -w --write_dir -j --jobs --wait --interval --check",
}
every_script = pytest.mark.parametrize("script", GOOD)


@pytest.fixture
def refused(run, peps):
    """See that a command line ends with status 2, one line on stderr and no request; returns the line."""

    def refused(script: str, *argv: object) -> str:
        result = run(script, *argv, status=2)
        lines = result.err.splitlines()
        assert len(lines) == 1, result
        assert lines[0].startswith(f"{script}.py: ")
        assert peps.journal == []
        return lines[0]

    return refused


def alone(script, *argv, **environment):
    """Run a script as a process that lists its imports on stderr, without account or service."""
    command = [sys.executable, "-X", "importtime", str(CHECKOUT / f"{script}.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, **environment})


# ---- help and version


@every_script
def test_no_argument_shows_the_help(run, peps, script):
    """With no argument at all there is the help, and status 2."""
    result = run(script, status=2)
    assert result.out == run(script, "-h").out
    assert result.err == ""
    assert peps.journal == []


@every_script
def test_help_names_every_option(run, script):
    """The options are those that users have in their scripts."""
    shown = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", run(script, "--help").out.partition("examples")[0]))
    assert set(f"{COMMON} {OPTIONS[script]}".split()) <= shown
    assert "--windows" not in shown


@every_script
def test_help_ends_with_examples_and_exit_statuses(run, script):
    """After the options there are two or three command lines and what each exit status means."""
    _, _, rest = run(script, "-h").out.partition("\nexamples:\n")
    examples, _, statuses = rest.partition("\nexit status:\n")
    assert len(re.findall(rf"^  python {script}\.py -", examples, re.MULTILINE)) in (2, 3)
    assert re.findall(r"^ +(\d+) ", statuses, re.MULTILINE) == ["0", "75", "1", "2", "130"]
    assert "143" in statuses


@every_script
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        pytest.param(["-h"], 0, id="help"),
        pytest.param(["--version"], 0, id="version"),
        pytest.param([], 2, id="no argument"),
        pytest.param(["--no_such_option"], 2, id="unknown option"),
        pytest.param(["--server", "nowhere"], 2, id="bad value"),
        pytest.param(["-a", "no/such/file"], 2, id="bad account file"),
    ],
)
def test_network_library_is_not_loaded_in_vain(script, argv, expected):
    """The help and a slip answer at once: requests comes in when the command line is known to be good."""
    finished = alone(script, *(GOOD[script] if "-a" in argv else ()), *argv)
    assert finished.returncode == expected
    loaded = set(re.findall(r"\| +([\w.]+)$", finished.stderr, re.MULTILINE))
    assert "argparse" in loaded
    assert not {"requests", "urllib3", "tqdm"} & loaded


def test_slip_in_the_period_is_seen_before_the_network_library_is_loaded():
    """What only the combination of two options shows is no slower."""
    finished = alone("full_maja_process", "-t", "31TCJ", "-d", "2017-07-01", "-e", "2017-07-02")
    assert finished.returncode == 2
    assert not re.search(r"\| +requests$", finished.stderr, re.MULTILINE)


def test_version_is_the_same_everywhere(run):
    """--version has one source."""
    versions = {run(script, "--version").out.split()[-1] for script in GOOD}
    assert versions == {peps_common.__version__}


# ---- options


@every_script
def test_surplus_words_are_ignored_with_a_warning(run, script):
    """A stray word, which a documented line has, is named; the rest of the line does what it does."""
    harmless = () if script.endswith("download") else ("-n",)
    without = run(script, *GOOD[script], *harmless, status=None)
    with_it = run(script, "2", *GOOD[script], *harmless, status=without.status)
    warning, *rest = with_it.err.splitlines()
    assert warning.startswith(f"{script}.py: ")
    assert re.search(r"warning.*\b2\b", warning)
    assert (with_it.out, rest) == (without.out, without.err.splitlines())


@every_script
@pytest.mark.parametrize("option", ["--no_such_option", "-z"])
def test_unknown_option_is_refused(refused, script, option):
    """A misspelt option must not be passed over like a stray word."""
    assert option in refused(script, *GOOD[script], option)


def test_windows_is_accepted_and_does_nothing(run):
    """Old command lines have --windows."""
    plain = run("peps_maja_process", "-t", "31TCJ", *NOVEMBER, "-n")
    assert plain == run("peps_maja_process", "--windows", "-t", "31TCJ", *NOVEMBER, "-n")


def test_required_options(refused):
    """Each missing option is named."""
    for script, option in (
        ("full_maja_process", "-t"),
        ("full_maja_process", "-d"),
        ("full_maja_process", "-e"),
        ("peps_maja_process", "-d"),
        ("peps_maja_process", "-p"),
    ):
        argv = list(GOOD[script])
        at = argv.index(option)
        assert option in refused(script, *argv[:at], *argv[at + 2 :])
    assert "-p" in refused("peps_maja_download", "-q")


TILES = [
    pytest.param("31TC", id="short"),
    pytest.param("31TCJX", id="long"),
    pytest.param("1TCJ", id="zone of one digit"),
    pytest.param("00TCJ", id="zone 0"),
    pytest.param("61TCJ", id="zone 61"),
    pytest.param("31BCJ", id="band B"),
    pytest.param("31YCJ", id="band Y"),
    pytest.param("31ICJ", id="band I"),
    pytest.param("31OCJ", id="band O"),
    pytest.param("31TIJ", id="column I"),
    pytest.param("31TOJ", id="column O"),
    pytest.param("31TCI", id="row I"),
    pytest.param("31TCO", id="row O"),
    pytest.param("31TCW", id="row W"),
    pytest.param("TT31TCJ", id="two Ts"),
    pytest.param("31TCJ\n", id="newline"),
    pytest.param("31 TCJ", id="blank"),
    pytest.param("", id="empty"),
    pytest.param("\u0663\u0661TCJ", id="foreign digits"),
    pytest.param("31Tß", id="a letter that grows in upper case"),
    pytest.param("31TCJ;tileid=31TDH", id="a second input"),
]
DATES = ["2017-13-01", "2017-02-29", "2017-7-1", "20170701", "01-07-2017", "tomorrow", "", "2017-07-01T00:00",
         "\u0662\u0660\u0661\u0667-07-01", "2017-W26-6", "0000-01-01", " 2017-07-01"]  # fmt: skip
NUMBERS = [pytest.param(text, id=text or "empty") for text in ("0", "-1", "x", "", "nan", "5_1")]


@pytest.mark.parametrize("script", ["full_maja_process", "peps_maja_process"])
@pytest.mark.parametrize("tile", TILES)
def test_bad_tile(refused, script, tile):
    """What is no MGRS tile is refused."""
    argv = list(GOOD[script])
    argv[1] = tile
    refused(script, *argv)


@pytest.mark.parametrize("tile", ["01CAA", "60XZV", "t31tcj"])
def test_good_tile(run, peps, tile):
    """The corners of the grid, and small letters, are tiles."""
    assert f"tileid={tile.upper().lstrip('T')}&" in run("full_maja_process", "-t", tile, *TWO_MONTHS, "-n").out


@pytest.mark.parametrize("date", DATES)
@pytest.mark.parametrize(
    ("script", "option"),
    [
        ("full_maja_process", "-d"),
        ("full_maja_process", "-e"),
        ("peps_maja_process", "-d"),
        ("peps_maja_process", "-f"),
    ],
)
def test_bad_date(refused, script, option, date):
    """A date is a day of the calendar, as YYYY-MM-DD."""
    argv = list(GOOD[script])
    argv[argv.index(option) + 1] = date
    refused(script, *argv)


@pytest.mark.parametrize("script", ["full_maja_process", "peps_maja_process"])
@pytest.mark.parametrize("orbit", [*NUMBERS, "144", "51.5", "1e1"])
def test_bad_orbit(refused, script, orbit):
    """A relative orbit is a whole number, 1 to 143."""
    refused(script, *GOOD[script], "-o", orbit)


@pytest.mark.parametrize("orbit", [1, 143])
def test_good_orbit(run, orbit):
    """The first and the last relative orbit."""
    assert (
        f";relativeOrbitNumber={orbit}&" in run("full_maja_process", "-n", *GOOD["full_maja_process"], "-o", orbit).out
    )


@pytest.mark.parametrize(
    ("start", "end"),
    [
        pytest.param("2016-03-31", "2016-06-30", id="before April 2016"),
        pytest.param("2017-07-01", "2017-07-01", id="no day"),
        pytest.param("2017-09-01", "2017-07-01", id="backwards"),
        pytest.param("2017-07-01", "2017-08-24", id="54 days"),
        pytest.param("2017-01-01", "2018-01-03", id="367 days"),
    ],
)
@pytest.mark.parametrize("more", [(), ("-n",)])
def test_bad_period(refused, start, end, more):
    """FULL_MAJA's rules hold for dry runs too."""
    refused("full_maja_process", "-t", "31TCJ", "-d", start, "-e", end, *more)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        pytest.param("2016-04-01", "2016-06-01", id="first start"),
        pytest.param("2017-07-01", "2017-08-25", id="55 days"),
        pytest.param("2016-04-01", "2017-04-02", id="366 days"),
    ],
)
def test_good_period(run, start, end):
    """The bounds belong to what is allowed."""
    shown = run("full_maja_process", "-t", "31TCJ", "-d", start, "-e", end, "-n").out
    assert f"startDate={start};completionDate={end};" in shown


BOX = {"--latmin": "43", "--latmax": "44", "--lonmin": "1", "--lonmax": "2"}


def words(options):
    """Options as words of a command line."""
    return [word for pair in options.items() for word in pair]


@pytest.mark.parametrize(
    "area",
    [
        pytest.param([], id="none"),
        pytest.param(["-t", "31TCJ", "-l", "Toulouse"], id="tile and town"),
        pytest.param(["-l", "Toulouse", "--lat", "43", "--lon", "1"], id="town and point"),
        pytest.param(["--lat", "43", "--lon", "1", *words(BOX)], id="point and box"),
        pytest.param(["-t", "31TCJ", "--lon", "0"], id="tile and half a point"),
        pytest.param(["--lat", "43"], id="no longitude"),
        pytest.param(["--lon", "0"], id="no latitude"),
        *(pytest.param(words({**BOX, name: value}), id=f"{name} {value}")
          for name, value in (("--latmin", "44"), ("--latmin", "45"), ("--lonmin", "2"), ("--lonmin", "3"),
                              ("--latmin", "-90.1"), ("--latmax", "90.1"), ("--lonmin", "-180.1"),
                              ("--lonmax", "180.1"))),
        *(pytest.param(words({key: value for key, value in BOX.items() if key != name}), id=f"no {name}")
          for name in BOX),
        *(pytest.param(["--lat", value, "--lon", "1"], id=f"lat {value}")
          for value in ("90.01", "-90.01", "nan", "inf", "43,5", "", "N43", "4_3")),
        *(pytest.param(["--lat", "43", "--lon", value], id=f"lon {value}")
          for value in ("180.01", "-180.01", "nan", "-inf", "1°")),
        pytest.param(["-l", ""], id="empty town"),
        pytest.param(["-l", " \t"], id="blank town"),
    ],
)  # fmt: skip
def test_bad_area(refused, area):
    """An area is exactly one tile, town, point or box on the Earth."""
    refused("peps_maja_process", *area, *NOVEMBER)


@pytest.mark.parametrize("end", ["2017-11-01", "2017-10-31"])
def test_search_must_end_after_its_start(refused, end):
    """A search of no day would find nothing."""
    refused("peps_maja_process", "-t", "31TCJ", "-d", "2017-11-01", "-f", end, "-p", "list.txt")


@pytest.mark.parametrize("script", ["full_maja_download", "peps_maja_download"])
@pytest.mark.parametrize(
    "argv",
    [
        *(pytest.param(["-j", text.values[0]], id=f"-j {text.id}") for text in NUMBERS),
        pytest.param(["-j", "1.5"], id="-j 1.5"),
        *(pytest.param(["--wait", "--interval", text], id=f"--interval {text}")
          for text in ("0", "-1", "x", "", "nan", "inf")),
        pytest.param(["-w", "no/such/folder"], id="-w below nothing"),
        pytest.param(["-w", "peps.txt"], id="-w a file"),
    ],
)  # fmt: skip
def test_bad_download_option(refused, folder, script, argv):
    """Numbers count from 1, minutes are above 0, and the folder can be made."""
    (folder / "list.txt").write_text("product\n")
    refused(script, *GOOD[script], *argv)


# ---- the server


SERVERS = [
    pytest.param("peps.cnes.fr/secret", id="no scheme"),
    pytest.param("ftp://peps.cnes.fr/secret", id="ftp"),
    pytest.param("file:///secret", id="file"),
    pytest.param("https://", id="no host"),
    pytest.param("https://me:secret@peps.cnes.fr", id="account"),
    pytest.param("https://secret@peps.cnes.fr", id="user"),
    pytest.param("https://peps.cnes.fr?key=secret", id="query"),
    pytest.param("https://peps.cnes.fr/#secret", id="fragment"),
    pytest.param("https://peps.cnes.fr:secret", id="port a word"),
    pytest.param("https://peps.cnes.fr:99999/secret", id="port too high"),
    pytest.param("https://[::1/secret", id="half an address"),
    pytest.param("https://peps cnes.fr/secret", id="blank in the host"),
    pytest.param("https://peps.cnes.fr\\@secret.org", id="backslash"),
]


@every_script
@pytest.mark.parametrize("url", SERVERS)
def test_bad_server_is_refused_without_an_echo(refused, script, url):
    """The text of --server may hold a password, so it is not repeated."""
    line = refused(script, *GOOD[script], "--server", url)
    assert "secret" not in line
    assert "--server" in line


@every_script
@pytest.mark.parametrize("url", SERVERS)
def test_bad_server_of_the_environment_is_refused_too(refused, monkeypatch, script, url):
    """PEPS_URL is checked like --server."""
    monkeypatch.setenv("PEPS_URL", url)
    line = refused(script, *GOOD[script])
    assert "secret" not in line
    assert "PEPS_URL" in line


def test_server_option_wins_over_the_environment(run, peps, monkeypatch):
    """The nearer word counts."""
    monkeypatch.setenv("PEPS_URL", "http://127.0.0.1:9")
    run("full_maja_process", *GOOD["full_maja_process"], "--server", peps.url)
    assert len(peps.journal) == 1


@pytest.mark.parametrize("value", [None, ""])
def test_server_has_a_default(run, monkeypatch, value):
    """Without --server and PEPS_URL, or with an empty one, it is the one that users know."""
    if value is None:
        monkeypatch.delenv("PEPS_URL")
    else:
        monkeypatch.setenv("PEPS_URL", value)
    shown = run("full_maja_process", *GOOD["full_maja_process"], "-n").out
    assert shown.startswith("https://peps.cnes.fr/resto/wps?")


@pytest.mark.parametrize(("ending", "path"), [("/", WPS), ("/mirror", f"/mirror{WPS}"), ("/mirror/", f"/mirror{WPS}")])
def test_server_may_have_a_path(run, peps, ending, path):
    """A service may live below a path; a slash at the end is not doubled."""
    run("full_maja_process", *GOOD["full_maja_process"], "--server", peps.url + ending, status=None)
    assert [request.path for request in peps.journal] == [path]


# ---- the account file


BAD_ACCOUNTS = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\n\n", id="blank lines"),
    pytest.param(b"very-secret@example.org\n", id="one word"),
    pytest.param(b"very-secret@example.org \n", id="no password"),
    pytest.param(b" very-secret\n", id="no e-mail"),
    pytest.param(b"me@example.org\nvery-secret\n", id="two lines"),
    pytest.param(b"me@example.org very-secr\xe9t\n", id="Latin-1"),
    pytest.param("me@example.org very-secret\n".encode("utf-16"), id="UTF-16"),
]


@every_script
@pytest.mark.parametrize("content", BAD_ACCOUNTS)
def test_bad_account_file(refused, account, folder, script, content):
    """It is named, its form is told, and none of its words is repeated."""
    (folder / "list.txt").write_text("product\n")
    account.write_bytes(content)
    line = refused(script, *GOOD[script])
    assert "peps.txt" in line
    assert not re.search("very|secr", line)


@every_script
@pytest.mark.parametrize("path", ["missing.txt", "."])
def test_account_file_that_cannot_be_read(refused, folder, script, path):
    """A missing one and a folder are told alike: which, and that -a names another."""
    (folder / "list.txt").write_text("product\n")
    line = refused(script, *GOOD[script], "-a", path)
    assert path in line
    assert "-a" in line


PASSWORDS = [
    pytest.param("top_secret", id="plain"),
    pytest.param("two words  and blanks", id="blanks within"),
    pytest.param(" led by a blank", id="blank first"),
    pytest.param("ends in a blank ", id="blank last"),
    pytest.param("a:b@c/d%20;e=f&g#h\"'\\", id="signs"),
    pytest.param("mot de passe sûr €😀", id="beyond ASCII"),
    pytest.param("tab\tseparated", id="tab"),
]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(("before", "after"), [("", ""), ("", "\n"), ("", "\r\n"), ("\ufeff", "\n")])
def test_password_of_any_characters_is_sent_as_utf_8(run, peps, account, password, before, after):
    """The password is everything after the first blank of the line, whatever the editor put around it."""
    account.write_bytes(f"{before}jean@example.org {password}{after}".encode())
    result = run("full_maja_process", *GOOD["full_maja_process"], status=1)
    kind, _, token = peps.journal[0].headers["authorization"].partition(" ")
    assert (kind, base64.b64decode(token).decode()) == ("Basic", f"jean@example.org:{password}")
    assert password not in result.out + result.err


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o644, True), (0o640, True)])
def test_account_file_that_others_can_read(run, account, mode, warned):
    """It gets a warning, and works."""
    account.chmod(mode)
    result = run("full_maja_process", *GOOD["full_maja_process"])
    assert ("warning" in result.err) == warned
    assert len(result.err.splitlines()) == int(warned)


# ---- logs and lists


WPS_NS = 'xmlns="http://www.opengis.net/wps/1.0.0"'
BAD_LOGS = [
    pytest.param("", id="empty"),
    pytest.param("\n" * 1000, id="blank lines"),
    pytest.param("PEPS is resting", id="text"),
    pytest.param("PK\x03\x04\x00\x00", id="zip"),
    pytest.param("<html><body>Maintenance</body></html>", id="page"),
    pytest.param(f'<ExecuteResponse {WPS_NS} statusLocation="http://127.0.0.1:1/a.xml">', id="half"),
    pytest.param(f"<ExecuteResponse {WPS_NS}/>", id="no statusLocation"),
    pytest.param(f'<ExecuteResponse {WPS_NS} statusLocation=""/>', id="empty statusLocation"),
    pytest.param(f'<ExecuteResponse {WPS_NS} statusLocation="file:///etc/passwd"/>', id="a file as statusLocation"),
    pytest.param(f'<ExecuteResponse {WPS_NS} statusLocation="http://127.0.0.1:1/a.xml"><Status><ProcessFailed/>'
                 "</Status></ExecuteResponse>", id="failed"),
    pytest.param('<ExceptionReport xmlns="http://www.opengis.net/ows/1.1"><Exception><ExceptionText>no</ExceptionText>'
                 "</Exception></ExceptionReport>", id="ExceptionReport"),
    pytest.param('{"ErrorCode": 401, "ErrorMessage": "Unauthorized"}', id="JSON error"),
    pytest.param('{"type": "FeatureCollection", "features": []}', id="other JSON"),
    pytest.param('<!DOCTYPE a [<!ENTITY b "c">]>'
                 f'<ExecuteResponse {WPS_NS} statusLocation="http://127.0.0.1:1/&b;.xml"/>', id="DTD"),
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_LOGS)
def test_bad_log(refused, folder, text):
    """A log that leads to no job is named, and nothing is asked."""
    (folder / "job.log").write_text(text)
    assert "job.log" in refused("full_maja_download", "-l", "job.log")


@pytest.mark.parametrize("path", ["missing.log", ".", "..", "peps.txt/job.log"])
def test_log_that_cannot_be_read(refused, path):
    """The system's reason is told."""
    assert path in refused("full_maja_download", "-l", path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\n \n", id="blank lines"),
        pytest.param(b"../../etc/passwd\n", id="path up"),
        pytest.param(b"/etc/passwd\n", id="path"),
        pytest.param(b"good\n.hidden\n", id="hidden"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param(b"PK\x03\x04\x00\x1b", id="zip"),
    ],
)
def test_bad_product_list(refused, folder, content):
    """A list with a line that can be no product's name is refused as a whole."""
    (folder / "list.txt").write_bytes(content)
    assert "list.txt" in refused("peps_maja_download", "-p", "list.txt")


@pytest.mark.parametrize("path", ["missing.txt", "."])
def test_product_list_that_cannot_be_read(refused, path):
    """The system's reason is told."""
    assert path in refused("peps_maja_download", "-p", path)


# ---- odd surroundings


def test_message_with_accents_survives_a_plain_terminal(launch):
    """Under an ASCII locale an accent neither stops the script nor brings a traceback."""
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    process = launch("full_maja_process", "-t", "31TÉÉ", *TWO_MONTHS, env=plain)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert len(err.splitlines()) == 1


def test_dry_run_needs_no_list_and_leaves_none(run, peps, folder):
    """Showing what would be ordered writes nothing."""
    run("peps_maja_process", "-t", "31TCJ", *NOVEMBER, "-n", "-w", "logs")
    assert [path.name for path in folder.iterdir()] == ["peps.txt"]
    assert {request.path for request in peps.journal} == {SEARCH}


# ---- what must be installed


@pytest.mark.parametrize(
    "state", ["sys.modules['requests'] = None", "urllib3.HTTPResponse = object"], ids=["none", "old"]
)
def test_without_a_good_requests_one_line_says_what_to_install(state, account, peps):
    code = f"import sys, urllib3; sys.path.insert(0, {str(CHECKOUT)!r}); {state}; import full_maja_process as script; "
    argv = ["-t", "31TCJ", *TWO_MONTHS]
    command = [sys.executable, "-c", f"{code} sys.exit(script.main({argv!r}))"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended
    assert "pip install" in ended.stderr
    assert peps.journal == []
