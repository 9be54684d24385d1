"""What the four scripts make of their command line, and of where they are called."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from stories import CHECKOUT, NOBODY, Result, last, only_line

import peps_common

GOOD = {
    "full_maja_process": "-t 31TCJ -d 2017-07-01 -e 2017-09-01",
    "full_maja_download": "-l job.log",
    "peps_maja_process": "-d 2017-11-01 -p list.txt",  # and an area
    "peps_maja_download": "-p list.txt",
}
COMMON = """-a --auth --server -q --quiet -h --help --version
    -n --no_download --dry-run """
DOWNLOAD = COMMON + "-w --write_dir -j --jobs --wait --interval --check "
OPTIONS = {
    "full_maja_process": COMMON + """-t --tile -d --start_date -e --end_date -o --orbit
        -l --log --force --json""",
    "full_maja_download": DOWNLOAD + "-l --log --json",
    "peps_maja_process": COMMON + """-t --tile -l --location --lat --lon --latmin
        --latmax --lonmin --lonmax -d --start_date -f --end_date -o --orbit
        -p --prod_list -w --write_dir -y --yes --force --json""",
    "peps_maja_download": DOWNLOAD + "-p --prod_list",
}  # fmt: skip
every_script = pytest.mark.parametrize("script", GOOD)


def lines(text: str):
    """A test's parameters: command lines, each with what it brings behind a `#`."""
    found = [line.strip() for line in text.strip().splitlines()]
    return pytest.mark.parametrize("line", found)


def split(line: str) -> tuple[list[str], str]:
    """A command's words, and what it brings; `...` stands for words that are good."""
    command, _, brings = line.partition("  #")
    good = GOOD[command.split()[0]]
    return shlex.split(command.replace("...", good)), brings.strip()


def shell(*command: object, **environment: str) -> Result:
    """Run a command to its end."""
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return Result(done.returncode, done.stdout, done.stderr)


def python(code: str) -> Result:
    return shell(sys.executable, "-c", code, PYTHONPATH=str(CHECKOUT))


@every_script
def test_no_argument_shows_the_help(script, run):
    result = run(script, status=2)
    assert (result.out, result.err) == (run(script, "-h").out, "")


@every_script
def test_the_help_names_every_option(script, run):
    """Behind them stand examples and the exit statuses."""
    options, _, rest = run(script, "--help").out.partition("\nexamples:\n")
    named = re.findall(r"(?<![\w-])--?[a-z][\w-]*", options)
    assert set(named) == set(OPTIONS[script].split())
    examples, _, statuses = rest.partition("\nexit status:\n")
    assert examples.count(f"  {script}.py -") in (2, 3)
    assert " ".join(re.findall(r"\d+(?=  |:)", statuses)) == "0 75 1 2 130 143"


def test_the_help_fits_a_terminal(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = [line for script in GOOD for line in run(script, "-h").out.splitlines()]
    assert [line for line in shown if len(line) > 80] == []


@every_script
def test_the_network_library_is_not_loaded_in_vain(script, account):
    slips = [], ["--no"], ["--server", "x"], [*GOOD[script].split(), "-a", "none.txt"]
    result = python(f"""import sys, {script} as script
print(*map(int, map(script.main, {[["-h"], *slips]})), 'requests' in sys.modules)""")
    assert last(result) == "0 2 2 2 2 False"


@every_script
def test_old_python_is_refused_in_one_line(script):
    result = python(f"""import sys
sys.version_info, sys.argv = (3, 8, 18), ["{script}.py", "-h"]
from {script} import main
sys.exit(main())""")
    only_line(result.err, "3.9")
    assert (result.status, result.out) == (2, "")


@lines("""
    sys.modules['requests'] = None
    del urllib3.BaseHTTPResponse
    import requests.adapters as a; del a.HTTPAdapter.get_connection_with_tls_context
""")
def test_without_a_good_requests_it_says_what_to_install(line, account, peps):
    result = python(f"""import sys, urllib3, full_maja_process; {line}
sys.argv = ["full_maja_process.py"]
sys.exit(full_maja_process.main({GOOD["full_maja_process"].split()}))""")
    only_line(result.err, "pip install")
    assert (result.status, peps.journal) == (2, [])


@lines("""
    full_maja_process ... 31TDJ                                   # 31TDJ
    full_maja_process ... --no_such                               # --no_such
    full_maja_process 2 ...                                       # 2
    peps_maja_process ... -t 31TCJ 2                              # 2
    peps_maja_process ... --location=Toulouse -5                  # -5
    peps_maja_download ... other.txt                              # other.txt
    full_maja_download a.log                                      # -l a.log
    full_maja_download -p a.log                                   # -l a.log
    full_maja_process ... -p a.log                                # -l a.log
    full_maja_process -t 31TCJ -d 2017-07-01 -f 2018-01-01        # -e 2018-01-01
    peps_maja_process ... -t 31TCJ -e 2018-01-01                  # -f 2018-01-01
    peps_maja_download -l list.txt                                # -p list.txt
    full_maja_process -d 2017-07-01 -e 2018-01-01                 # -t
    full_maja_process -t 31TCJ -e 2018-01-01                      # -d
    full_maja_process -t 31TCJ -d 2017-07-01                      # -e
    peps_maja_process -t 31TCJ -p list.txt                        # -d
    peps_maja_process -t 31TCJ -d 2017-07-01                      # -p
    peps_maja_download -w .                                       # -p
    full_maja_process ... -t 31TC                                 # 31TC
    full_maja_process ... -o 144                                  # 144
    full_maja_process ... -d 2017-7-1                             # YYYY-MM-DD
    full_maja_process ... -d 2017-06-31                           # 2017-06-31
    full_maja_process ... -d 2017-07-01T00:00:00                  # YYYY-MM-DD
    full_maja_process ... -d 2999-07-01 -e 2999-10-01             # 2999-07-01
    full_maja_process ... -d 2016-03-31 -e 2016-07-01             # 2016-04-01
    full_maja_process ... -d 2017-09-01                           # 2017-09-01
    full_maja_process ... -e 2017-08-24                           # 54 55
    full_maja_process ... -d 2016-08-30                           # 366
    peps_maja_process ... -t 31TCJ -d 2017-11-01T24:00:00         # 24:00:00
    peps_maja_process ... -t 31TCJ -f 2017-11-01                  # 2017-11-01
    peps_maja_process ... -t 31TCJ -d 2999-11-01                  # 2999-11-01
    peps_maja_process ... -t 31TCJ -o 0                           # 0
    peps_maja_process ...                                         # -t -l --lat --latmin
    peps_maja_process ... -t 31TCJ -l Toulouse                    # -t -l --lat --latmin
    peps_maja_process ... -l Toulouse --lat 43 --lon 1            # -t -l --lat --latmin
    peps_maja_process ... -t 31TCJ --lon 0                        # -t -l --lat --latmin
    peps_maja_process ... --lat 43                                # -t -l --lat --latmin
    peps_maja_process ... --latmin 43 --latmax 44 --lonmin 1      # -t -l --lat --latmin
    peps_maja_process ... --latmin 43 --latmax 43 --lonmin 1 --lonmax 2  # --latmin
    peps_maja_process ... --latmin 43 --latmax 44 --lonmin 2 --lonmax 1  # --lonmin
    peps_maja_process ... --lat -90.01 --lon 1                    # -90.01
    peps_maja_process ... --lat 43 --lon nan                      # nan
    peps_maja_process ... -l ' '                                  # -l
    peps_maja_process ... -t 31TCJ -w no/such                     # no/such
    full_maja_download ... -j 0                                   # 0
    full_maja_download ... --interval 0                           # 0
    full_maja_download ... --interval inf                         # inf
    full_maja_download ... -w no/such                             # no/such
    full_maja_download ... -w peps.txt                            # peps.txt -w
    full_maja_process ... --server peps.cnes.fr                   # http://
    full_maja_process ... --server https://me:geheim@a.fr         # server
    full_maja_process ... -a none.txt                             # none.txt -a
    full_maja_process ... --force -l pipe                         # pipe
    full_maja_process ... --force -l peps.txt                     # peps.txt
    full_maja_process ... --json no/such.json                     # no such.json
    peps_maja_process ... -t 31TCJ -p no/such.txt                 # no such.txt
    full_maja_process ... --force -l a.log --json a.json          # a.json
    full_maja_download -l pipe                                    # pipe
    full_maja_download -l none.log                                # none.log
    full_maja_download -l a.log,b.log                             # a.log,b.log -l
    peps_maja_process ... -t 31TCJ -p pipe                        # pipe
    peps_maja_process ... -t 31TCJ -p peps.txt                    # peps.txt
    peps_maja_download -p .                                       # . folder
    peps_maja_download -p none.txt                                # none.txt
    peps_maja_download -p peps.txt                                # peps.txt jean.dupont
    full_maja_download -l peps.txt                                # peps.txt --force
""")
def test_a_slip_is_seen_before_anything_is_sent(line, run, peps, account):
    os.mkfifo("pipe")
    (script, *argv), words = split(line)
    error = only_line(run(script, *argv, status=2), *words.split())
    assert error.startswith(f"{script}.py: ")
    assert "geheim" not in error
    assert peps.journal == []
    assert account.read_text("utf-8") == f"{peps.account}\n"


@lines("""
    full_maja_process ... --force -l .
    full_maja_download -l .
    full_maja_download -l /
""")
def test_a_folder_without_a_name_is_no_log(line, run):
    (script, *argv), _ = split(line)
    only_line(run(script, *argv, status=2), "folder")


@lines("""
    full_maja_process ... -d 2016-04-01 -e 2016-05-26     # startDate=2016-04-01;
    full_maja_process ... -d 2016-04-01 -e 2017-04-02     # completionDate=2017-04-02;
    full_maja_process ... -t t31tcj -o 143        # tileid=31TCJ;relativeOrbitNumber=143
    peps_maja_process ... -t T31TCJ                       # ?tileid=31TCJ&
    peps_maja_process ... --lat -1e-3 --lon=-.5          # ?lat=-0.001000&lon=-0.500000&
    peps_maja_process ... --latmin -9 --latmax 1 --lonmin -1 --lonmax 2  # -1.000000,-9.
    peps_maja_process ... -l 'Le Mans'                    # ?q=Le%20Mans&
    peps_maja_process ... -l Le+Mans                      # ?q=Le+Mans&
    peps_maja_process ... -t 31TCJ -d 2017-11-01T10:00:00.5Z    # 2017-11-01T10:00:00.5Z
    peps_maja_process ... -t 31TCJ --windows              # completionDate=9999-01-01
""")
def test_a_good_line_becomes_a_request(line, run):
    (script, *argv), words = split(line)
    assert words in run(script, *argv, "-n").out.splitlines()[0]


def test_a_lone_number_before_the_options_is_ignored(run):
    argv = *GOOD["peps_maja_process"].split(), "-t", "31TCJ", "-n"
    result = run("peps_maja_process", "2", *argv)
    only_line(result, "warning", " 2")
    assert result.out == run("peps_maja_process", *argv).out


@pytest.mark.parametrize(("variable", "option", "base"), [
    (None, [], "https://peps.cnes.fr"), ("", [], "https://peps.cnes.fr"),
    (f"{NOBODY}/", [], NOBODY), (NOBODY, ["--server", "http://a/b/"], "http://a/b"),
])  # fmt: skip
def test_the_server_is_an_option_or_of_the_environment(
    variable, option, base, run, monkeypatch
):
    monkeypatch.delenv("PEPS_URL")
    if variable is not None:
        monkeypatch.setenv("PEPS_URL", variable)
    argv = GOOD["full_maja_process"].split()
    assert run("full_maja_process", *argv, *option, "-n").out.startswith(
        f"{base}/resto"
    )


@pytest.fixture
def commands(folder, monkeypatch):
    """A folder with the scripts, and the commands that pip makes of them."""
    place = folder / ".venv" / "bin"
    place.mkdir(parents=True)
    (place / "python").symlink_to(sys.executable)
    for script in GOOD:
        (folder / f"{script}.py").symlink_to(CHECKOUT / f"{script}.py")
        (place / script).write_text(
            f"#!{sys.executable}\nimport sys\nfrom {script} import main\n"
            "if __name__ == '__main__':\n    sys.exit(main())\n"
        )
        (place / script).chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return place


@every_script
def test_scripts_and_commands_are_executable_and_know_their_names(script, commands):
    path = f"{commands}:{os.environ['PATH']}"
    for command in (CHECKOUT / f"{script}.py", commands / script):
        shown = shell(command, "--version", PATH=path).out
        assert shown == f"{command.name} {peps_common.__version__}\n"


def test_the_next_command_is_called_as_this_one_was(commands, account, peps):
    argv = *GOOD["full_maja_process"].split(), "--server", peps.url, "-l"
    script = shell(commands / "python", "full_maja_process.py", *argv, "a b.log")
    command = shell(commands / "full_maja_process", *argv, "b.log")
    words = f": {commands / 'full_maja_download'} -a peps.txt --server {peps.url} -l "
    assert words in last(command)
    for result in (script, command):
        words = shlex.split(last(result).partition(": ")[2])
        assert "waiting" in shell(*words, PEPS_URL=NOBODY).out


@pytest.mark.parametrize(
    ("variable", "value"), [("LC_ALL", "C"), ("PYTHONIOENCODING", "ascii")]
)
def test_accents_on_a_plain_terminal(variable, value, finish):
    argv, plain = GOOD["full_maja_process"].split(), {**os.environ, variable: value}
    only_line(finish("full_maja_process", *argv, "-t", "31TÉÉ", env=plain, status=2))
    out = finish("full_maja_process", *argv, "-l", "été.log", env=plain).out
    assert "ordered as job" in out


def test_every_command_of_the_manual_works_as_it_stands(commands, account, peps):
    """In the order of the page, days apart; without what a clock or systemd wants."""
    page = (CHECKOUT / "README.md").read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"(?ms)^```.*?^```|^    [^\n]+", page)
    shown = "\n".join(blocks).splitlines()
    found = [line.strip() for line in shown if re.search(r"_maja_\w+(\.py)? .*-", line)]
    path = f"{commands}:{os.environ['PATH']}"
    for line in found:
        bare = re.sub(r"^(0 \*|systemd-run).*?(?=full_maja)", "", line)
        result = shell("bash", "-c", bare, PATH=path)
        assert result.status in (0, 75), (line, result)
        peps.advance(hours=100)
    assert len(found) > 8
