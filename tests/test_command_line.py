"""What the four scripts make of their command line, their account file, their log and their list."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from local_peps import WPS
from stories import CHECKOUT, NOVEMBER, SHORT, answer, failed, only_line, refusal

import peps_common

GOOD = {
    "full_maja_process": ("-t", "31TCJ", *SHORT), "full_maja_download": ("-l", "job.log"),
    "peps_maja_process": ("-t", "31TCJ", *NOVEMBER), "peps_maja_download": ("-p", "list.txt"),
}  # fmt: skip
COMMON = "-a --auth --server -q --quiet -h --help --version -n --no_download --dry-run"
DOWNLOAD = "-w --write_dir -j --jobs --wait --interval --check"
OPTIONS = {
    "full_maja_process": "-t --tile -d --start_date -e --end_date -o --orbit -l --log --force --json",
    "full_maja_download": f"{DOWNLOAD} -l --log --json",
    "peps_maja_process": "-t --tile -l --location --lat --lon --latmin --latmax --lonmin --lonmax -d --start_date "
    "-f --end_date -o --orbit -p --prod_list -w --write_dir -y --yes --force --json",
    "peps_maja_download": f"{DOWNLOAD} -p --prod_list",
}
every_script = pytest.mark.parametrize("script", GOOD)
both_downloads = pytest.mark.parametrize(
    "script", ["full_maja_download", "peps_maja_download"]
)
both_processes = pytest.mark.parametrize(
    "script", ["full_maja_process", "peps_maja_process"]
)


@pytest.fixture
def refused(run, peps):
    """See that a command line ends with status 2, one line on stderr and no request; returns the line."""

    def refused(script: str, *argv: object, words: str = "") -> str:
        line = only_line(run(script, *argv, status=2), words)
        assert line.startswith(f"{script}.py: ")
        assert peps.journal == []
        return line

    return refused


def shell(command, **options):
    """Run a command to its end, a text by bash."""
    words = ["bash", "-c", command] if isinstance(command, str) else command
    return subprocess.run(
        words, **{"capture_output": True, "text": True, "timeout": 60, **options}
    )


@every_script
def test_no_argument_shows_the_help(run, peps, script):
    result = run(script, status=2)
    assert (result.out, result.err) == (run(script, "-h").out, "")
    assert peps.journal == []


@every_script
def test_help_names_every_option(run, script):
    """The options are those that users have in their scripts; after them stand examples and the exit statuses."""
    options, _, rest = run(script, "--help").out.partition("\nexamples:\n")
    shown = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", options))
    assert set(f"{COMMON} {OPTIONS[script]}".split()) <= shown
    assert "--windows" not in shown
    examples, _, statuses = rest.partition("\nexit status:\n")
    assert len(re.findall(rf"^  python {script}\.py -", examples, re.MULTILINE)) in (
        2,
        3,
    )
    assert re.findall(r"^ +(\d+) ", statuses, re.MULTILINE) == [
        "0",
        "75",
        "1",
        "2",
        "130",
    ]
    assert "143" in statuses


MANY_LINES = """
import sys
from {} import main
print(*map(main, {}))
print({{"requests", "urllib3", "tqdm"}} & set(sys.modules))
"""


@every_script
def test_network_library_is_not_loaded_in_vain(script):
    """The help and a slip answer at once: requests comes in when the command line is known to be good."""
    slips = (
        [],
        ["--no_such_option"],
        ["--server", "x"],
        [*GOOD[script], "-a", "no/file"],
    )
    code = MANY_LINES.format(script, [["-h"], ["--version"], *slips])
    ended = shell([sys.executable, "-c", code], cwd=CHECKOUT)
    assert ended.stdout.splitlines()[-2:] == ["0 0 2 2 2 2", "set()"], ended


@every_script
def test_scripts_are_executable(script):
    assert os.access(CHECKOUT / f"{script}.py", os.X_OK)
    shown = shell([f"./{script}.py", "--version"], cwd=CHECKOUT)
    assert shown.stdout == f"{script}.py {peps_common.__version__}\n"


# What pip writes into bin/.
INSTALLED = "import sys; sys.path.insert(0, {checkout!r}); from {script} import main; sys.exit(main())"


def test_an_installed_command_names_itself_and_its_siblings(account, folder, peps):
    """The command of the next line is called as this one was; --server goes along where it was given."""
    (folder / "bin").mkdir()
    for script in ("full_maja_download", "full_maja_process"):
        command = folder / "bin" / script
        command.write_text(
            f"#!{sys.executable}\n{INSTALLED.format(checkout=str(CHECKOUT), script=script)}\n"
        )
        command.chmod(0o755)
    for path, name in (
        (f"{command.parent}:{os.environ['PATH']}", "full_maja_download"),
        (os.environ["PATH"], None),
    ):
        environment = {**os.environ, "PATH": path, "PEPS_URL": "http://127.0.0.1:9"}
        argv = [command, "--server", peps.url, *GOOD["full_maja_process"], "--force"]
        shown = shell(argv, env=environment)
        expected = name or str(command.with_name("full_maja_download"))
        assert (
            f": {expected} -a peps.txt --server {peps.url} -l Full_Maja.log\n"
            in shown.stdout
        ), shown
    assert (
        shell([command, "--version"]).stdout
        == f"full_maja_process {peps_common.__version__}\n"
    )


def test_the_command_of_the_next_line_works_as_printed(finish, peps):
    out = finish("full_maja_process", *GOOD["full_maja_process"], "-l", "a b.log").out
    line = out.splitlines()[-1].partition(": ")[2]
    done = shell(line)
    assert done.returncode == 75, (line, done)
    assert done.stdout.startswith("a b.log: waiting")


@every_script
@pytest.mark.parametrize("surplus", ["31TDJ", "-z", "--no_such_option"])
def test_surplus_words_are_refused(refused, script, surplus):
    """`-t 31TCJ 31TDJ` is a slip, and not an order for one tile."""
    argv = GOOD[script]
    if script == "full_maja_download" and surplus == "31TDJ":  # -l takes several files
        argv = ("-w", ".")
    refused(script, *argv, surplus, words=surplus)


def test_words_that_are_accepted_and_do_nothing(run):
    """--windows, and the lone number of a documented line, which is ignored there and nowhere else."""
    plain = run("peps_maja_process", *GOOD["peps_maja_process"], "-n")
    assert plain == run(
        "peps_maja_process", "--windows", *GOOD["peps_maja_process"], "-n"
    )
    with_it = run("peps_maja_process", "2", *GOOD["peps_maja_process"], "-n")
    assert with_it.out == plain.out
    assert re.search(r"^peps_maja_process\.py: warning.*\b2$", only_line(with_it))
    run("full_maja_process", "2", *GOOD["full_maja_process"], status=2)
    run("peps_maja_process", *GOOD["peps_maja_process"], "2", status=2)


@pytest.mark.parametrize(("script", "option"), [
    *(("full_maja_process", option) for option in ("-t", "-d", "-e")), ("peps_maja_process", "-d"),
    ("peps_maja_process", "-p"),
])  # fmt: skip
def test_required_options(refused, script, option):
    argv = list(GOOD[script])
    at = argv.index(option)
    refused(script, *argv[:at], *argv[at + 2 :], words=option)


@both_processes
@pytest.mark.parametrize(("option", "text", "words"), [
    ("-t", "31TC", "tile"), ("-d", "2017-7-1", "YYYY-MM-DD"), ("-d", "2017-06-31", "no such day"),
    ("-d", "2999-01-01", "future"), ("-o", "144", "orbit"),
], ids=["tile", "form of a date", "day", "future", "orbit"])  # fmt: skip
def test_slips_are_seen_before_anything_is_sent(refused, script, option, text, words):
    refused(script, *GOOD[script], option, text, words=words)


PERIODS = {
    "before April 2016": ("2016-03-31", "2016-06-30", 2), "no day": ("2017-07-01", "2017-07-01", 2),
    "backwards": ("2017-09-01", "2017-07-01", 2), "54 days": ("2017-07-01", "2017-08-24", 2),
    "367 days": ("2017-01-01", "2018-01-03", 2), "first start": ("2016-04-01", "2016-06-01", 0),
    "55 days": ("2017-07-01", "2017-08-25", 0), "366 days": ("2016-04-01", "2017-04-02", 0),
}  # fmt: skip


@pytest.mark.parametrize(("start", "end", "status"), PERIODS.values(), ids=PERIODS)
@pytest.mark.parametrize("more", [(), ("-n",)], ids=["order", "dry run"])
def test_period(run, peps, start, end, status, more):
    result = run(
        "full_maja_process", "-t", "31TCJ", "-d", start, "-e", end, *more, status=status
    )
    assert status == 0 or (only_line(result) and peps.journal == [])


BOX = {"--latmin": "43", "--latmax": "44", "--lonmin": "1", "--lonmax": "2"}


def words(options):
    return [word for pair in options.items() for word in pair]


@pytest.mark.parametrize("area", [
    [], ["-t", "31TCJ", "-l", "Toulouse"], ["-l", "Toulouse", "--lat", "43", "--lon", "1"],
    ["--lat", "43", "--lon", "1", *words(BOX)], ["-t", "31TCJ", "--lon", "0"], ["--lat", "43"], ["--lon", "0"],
    *(words({**BOX, name: value})
      for name, value in (("--latmin", "44"), ("--latmin", "45"), ("--lonmin", "2"), ("--latmin", "-90.1"),
                          ("--latmax", "90.1"), ("--lonmin", "-180.1"), ("--lonmax", "180.1"))),
    *(words({key: value for key, value in BOX.items() if key != name}) for name in BOX),
    *(["--lat", value, "--lon", "1"] for value in ("90.01", "-90.01", "nan", "inf", "43,5", "", "N43", "4_3")),
    *(["--lat", "43", "--lon", value] for value in ("180.01", "-180.01", "nan", "-inf", "1°")),
    ["-l", ""], ["-l", " \t"], ["-l", "\udcff"],
], ids=" ".join)  # fmt: skip
def test_bad_area(refused, area):
    refused("peps_maja_process", *area, *NOVEMBER)


@both_downloads
@pytest.mark.parametrize(
    "argv",
    [*(["-j", text] for text in ("0", "x", "", "nan", "5_1", "1.5")),
     *(["--wait", "--interval", text] for text in ("0", "x", "", "nan", "inf")), ["-w", "no/such"], ["-w", "peps.txt"]],
    ids=" ".join,
)  # fmt: skip
def test_bad_download_option(refused, folder, script, argv):
    (folder / "list.txt").write_text("product\n")
    refused(script, *GOOD[script], *argv)


@pytest.mark.parametrize("value", [None, ""])
def test_server_has_a_default(run, monkeypatch, value):
    monkeypatch.delenv("PEPS_URL") if value is None else monkeypatch.setenv(
        "PEPS_URL", value
    )
    assert run("full_maja_process", *GOOD["full_maja_process"], "-n").out.startswith(
        "https://peps.cnes.fr/resto/wps?"
    )


@pytest.mark.parametrize(
    ("ending", "path"),
    [("", ""), ("/", ""), ("/mirror", "/mirror"), ("/mirror/", "/mirror")],
)
def test_server_option_wins_and_may_have_a_path(run, peps, monkeypatch, ending, path):
    monkeypatch.setenv("PEPS_URL", "http://127.0.0.1:9" if ending else "nonsense")
    run(
        "full_maja_process",
        *GOOD["full_maja_process"],
        "--server",
        peps.url + ending,
        status=None,
    )
    assert [request.path for request in peps.journal] == [path + WPS]


PLACE = "http://127.0.0.1:1/a.xml"
BAD_LOGS = {
    "empty": "", "blank lines": "\n" * 1000, "text": "PEPS is resting", "zip": "PK\x03\x04\x00\x00",
    "page": "<html><body>Maintenance</body></html>", "no statusLocation": answer(),
    "a file as statusLocation": answer("file:///etc/passwd"), "failed": answer(PLACE, failed("no")),
    "ExceptionReport": refusal("no"), "JSON error": '{"ErrorCode": 401, "ErrorMessage": "Unauthorized"}',
    "other JSON": '{"type": "FeatureCollection", "features": []}',
    "DTD": b'<!DOCTYPE a [<!ENTITY b "c">]>' + answer("http://127.0.0.1:1/&b;.xml"),
}  # fmt: skip


@pytest.mark.parametrize("text", BAD_LOGS.values(), ids=BAD_LOGS)
def test_bad_log(refused, folder, text):
    (folder / "job.log").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert (
        refused("full_maja_download", "-l", "job.log", words="job.log").count("job.log")
        == 1
    )


def test_two_logs_that_share_a_report_are_refused(refused, folder):
    for name in ("job.log", "job"):
        (folder / name).write_bytes(answer(PLACE))
    refused("full_maja_download", "-l", "job.log", "job", words="job.json")


def test_a_remedy_with_a_blank_in_a_path_is_quoted(run, account, folder):
    (folder / "my data").mkdir()
    account.rename(folder / "my data" / "peps.txt").chmod(0o644)
    result = run(
        "full_maja_process", *GOOD["full_maja_process"], "-a", "my data/peps.txt"
    )
    only_line(result, "chmod 600 'my data/peps.txt'")
    assert "-a 'my data/peps.txt'" in result.out


NO_FILES = {
    "full_maja_download": [
        ".",
        "..",
        "peps.txt/job.log",
        "pipe",
        "/dev/null",
        "no/such/job.log",
        "missing.log",
    ],
    "full_maja_process": [
        ".",
        "..",
        "peps.txt/job.log",
        "pipe",
        "/dev/null",
        "no/such/job.log",
        "x" * 300,
        "/proc/x",
    ],
    "peps_maja_download": [".", "pipe", "missing.txt"],
    "peps_maja_process": [".", "pipe"],
}


@pytest.mark.parametrize(
    ("script", "path"),
    [(script, path) for script in NO_FILES for path in NO_FILES[script]],
)
def test_log_or_list_that_is_no_plain_file(refused, script, path):
    """It is refused, neither waited for nor replaced; --force does not change that."""
    os.mkfifo("pipe")
    argv = {
        "full_maja_process": (*GOOD[script], "--force"),
        "full_maja_download": (),
    }.get(script, GOOD[script])
    words = "no/such: there is no such folder" if path.startswith("no/") else path
    refused(script, *argv, "-l" if "full" in script else "-p", path, words=words)
    assert os.path.exists("/dev/null")
    assert not os.path.isfile("/dev/null")


@pytest.mark.parametrize("content", [
    b"", b"\n \n", b"../../etc/passwd\n", b"/etc/passwd\n", b"good\n.hidden\n", b"\xff\xfe\x00",
    b"PK\x03\x04\x00\x1b",
], ids=["empty", "blank lines", "path up", "path", "hidden", "no text", "zip"])  # fmt: skip
def test_bad_product_list(refused, folder, content):
    (folder / "list.txt").write_bytes(content)
    line = refused("peps_maja_download", "-p", "list.txt", words="list.txt")
    assert (
        "hidden" not in content.decode("latin-1")
        or "'.hidden' is no product's name" in line
    )


ANOTHER, NO_FOLDER = "another name", "no: there is no such folder"


@pytest.mark.parametrize(("script", "files", "words"), [
    ("full_maja_process", "-l peps.txt --force", ANOTHER), ("full_maja_process", "--json ./Full_Maja.log", ANOTHER),
    ("full_maja_process", "-l x.log --json x.json --force", ANOTHER), ("peps_maja_process", "-p peps.txt", ANOTHER),
    ("peps_maja_process", "--json list.txt", ANOTHER), ("full_maja_process", "--json no/such.json", NO_FOLDER),
    ("peps_maja_process", "-p no/such.txt", NO_FOLDER), ("peps_maja_process", "--json no/such.json", NO_FOLDER),
])  # fmt: skip
def test_a_file_that_has_no_place_of_its_own(
    refused, account, script, files, words, peps
):
    refused(script, *GOOD[script], *files.split(), words=words)
    assert account.read_text("utf-8") == f"{peps.account}\n"


def test_message_with_accents_survives_a_plain_terminal(finish):
    plain = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii",
    }
    only_line(
        finish(
            "full_maja_process",
            *GOOD["full_maja_process"],
            "-t",
            "31TÉÉ",
            env=plain,
            status=2,
        )
    )


@pytest.mark.parametrize(
    "state",
    ["sys.modules['requests'] = None", "urllib3.HTTPResponse = object"],
    ids=["none", "old"],
)
def test_without_a_good_requests_one_line_says_what_to_install(state, account, peps):
    code = f"import sys, urllib3; sys.path.insert(0, {str(CHECKOUT)!r}); {state}; import full_maja_process as script; "
    ended = shell(
        [
            sys.executable,
            "-c",
            f"{code} sys.exit(script.main({list(GOOD['full_maja_process'])!r}))",
        ]
    )
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended
    assert "pip install" in ended.stderr
    assert peps.journal == []


def test_every_command_of_the_manual_works_as_it_stands(account, folder, peps):
    """In the order of the page, in a folder that has the scripts and an environment of their own."""
    text = (CHECKOUT / "README.md").read_text("utf-8")
    lines = [
        line
        for line in re.findall(
            r"^    (.*_maja_(?:process|download)\.py .*)$", text, re.MULTILINE
        )
    ]
    lines = [
        re.sub(r"^(0 \* .*? flock -n \S+|systemd-run.*?dir) ", "", line)
        for line in lines
        if ": " not in line
    ]
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    for script in [*GOOD, "peps_common"]:
        (folder / f"{script}.py").symlink_to(CHECKOUT / f"{script}.py")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    for line in lines:
        waits = "--wait" in line or " -n" in line
        done = shell(line, env=environment)
        assert done.returncode in ((0,) if "process" in line or waits else (0, 75)), (
            line,
            done,
        )
        assert "rror" not in done.stderr, (line, done)
        peps.advance(hours=100)
    assert len(lines) >= 11
    assert len(peps.jobs) == 3 + 6


def test_the_count_of_the_manual_is_found(folder):
    text = (CHECKOUT / "README.md").read_text("utf-8")
    (line,) = re.findall(r"^    (tail -n 1 run.txt .*)$", text, re.MULTILINE)
    for last, found in (
        (
            "1 job finished. 62 products downloaded (186.1 MB in 3.2 s), 9 too cloudy, in /data/31TCJ",
            "62\n",
        ),
        (
            "2 jobs finished, 1 waiting. 1 product downloaded (1 MB in 1 s), 3 on disk before, in /1 downloaded",
            "1\n",
        ),
        ("1 job finished. 62 products on disk before, 9 too cloudy, in /data", ""),
    ):
        (folder / "run.txt").write_text(f"x\n{last}\n")
        assert shell(line).stdout.splitlines()[:1] == found.splitlines()
