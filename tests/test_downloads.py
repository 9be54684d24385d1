"""What stands in the products' folder, and what the disk makes of it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from faulty_http import cut, for_gets, for_heads, hold, status, without_length
from local_peps import make_product
from stories import flipped, lines_of, names_in, only_line, wait_until

import peps_common
from full_maja_download import zip_problem

SIZE = 100_000
HELD = 30_000


@pytest.fixture
def job(make_job):
    return make_job()


@pytest.fixture
def victim(job) -> Path:
    return job.products / next(iter(job.bodies))


def download(run, job, *options: object, status: int | None = 0):
    return run("full_maja_download", *job.argv, *options, status=status)


def test_one_connection_serves_for_all(run, job):
    ports = set()
    job.hit(lambda handler: ports.add(handler.client_address), "/")
    download(run, job, "-j", 1)
    assert len(ports) == 1


def test_a_whole_product_on_disk_is_left_alone(run, job, victim):
    victim.write_bytes(job.bodies[victim.name])
    before = victim.stat()
    download(run, job)
    after = victim.stat()
    assert (job.sent(victim.name), after.st_ino, after.st_mtime_ns) == (
        0,
        before.st_ino,
        before.st_mtime_ns,
    )
    job.require_whole()


def test_the_largest_comes_first_and_nothing_compressed_is_asked_for(run, job, peps):
    for name, size in zip(job.bodies, (SIZE, 3 * SIZE, 2 * SIZE)):
        job.bodies[name] = peps.products[name] = make_product(name, size)
    download(run, job, "-j", 1)
    asked = [
        request.path.rpartition("/")[2] for request in peps.requests("/maja/", "GET")
    ]
    assert asked == sorted(
        job.bodies, key=lambda name: len(job.bodies[name]), reverse=True
    )
    assert {request.headers["accept-encoding"] for request in peps.journal} == {
        "identity"
    }
    assert all(
        request.headers["user-agent"].startswith("peps_maja/")
        for request in peps.journal
    )


BODY = make_product("x", SIZE)
BROKEN = {
    "half": BODY[: SIZE // 2], "last byte missing": BODY[:-1],
    "bytes missing in the middle": BODY[:HELD] + BODY[HELD + 10_000 :],
    "bytes before the first member": b"PK\3\4" + BODY, "no member": b"PK\5\6" + bytes(18), "empty": b"",
    "page": b"<!DOCTYPE html><html></html>",
}  # fmt: skip


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_product_on_disk_is_replaced(content, run, job, victim):
    """The directory must fit the file, with the first member at its beginning and nothing missing between."""
    victim.write_bytes(content)
    assert zip_problem(victim)
    download(run, job)
    job.require_whole()


def test_a_whole_zip_of_any_kind_is_whole(tmp_path):
    """Comments, 64-bit fields, streamed members and any method of packing."""
    for number, packing in enumerate(
        (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    ):
        path = tmp_path / f"{number}.zip"
        with open(path, "wb") as file, zipfile.ZipFile(file, "w", packing) as archive:
            archive.comment = b"made by MAJA"
            with archive.open("image.tif", "w", force_zip64=True) as member:
                member.write(bytes(10_000))
            archive.writestr("b", b"")
        assert zip_problem(path) is None
        assert zip_problem(path, every_byte=True) is None


@pytest.mark.parametrize(
    "finished_before", [False, True], ids=["in the first run", "when all was there"]
)
def test_check_finds_a_flipped_bit(finished_before, run, job, victim):
    if finished_before:
        download(run, job)
    victim.write_bytes(flipped(job.bodies[victim.name], HELD // 2))
    download(run, job)
    assert victim.read_bytes() == flipped(job.bodies[victim.name], HELD // 2)
    assert (
        "--check: 3 read, 1 damaged, fetched again" in download(run, job, "--check").out
    )
    job.require_whole()


def test_a_broken_product_stays_until_its_successor_is_whole(run, job, victim):
    broken = flipped(job.bodies[victim.name], HELD // 2)
    victim.write_bytes(broken)
    job.hit(for_gets(cut(HELD), cut(None), for_ever=True))
    result = download(run, job, "--check", status=75)
    only_line(result, victim.name)
    assert "1 read, 1 damaged\n" in result.out
    assert victim.read_bytes() == broken
    job.mend()
    download(run, job, "--check")
    job.require_whole()


@pytest.mark.parametrize("options", [(), ("--check",)], ids=["", "check"])
def test_what_the_system_refuses_is_no_damage(options, run, job, victim, monkeypatch):
    """It stays as it is, and the line names what stands in the way, not the service."""
    victim.write_bytes(job.bodies[victim.name])
    refuse = lambda path, *args, **more: (_ for _ in ()).throw(
        PermissionError(13, "Permission denied", str(path))
    )  # noqa: E731
    monkeypatch.setitem(zip_problem.__globals__, "open", refuse)
    lines = download(run, job, *options, status=1).err.splitlines()
    assert all("Permission denied" in line and "service" not in line for line in lines)
    assert victim.read_bytes() == job.bodies[victim.name]
    assert len(job.on_disk()) == 3


def test_a_part_that_vanishes_is_no_damage(run, job, victim):
    release = threading.Event()

    def vanish(handler):
        wait_until(lambda: job.size_on_disk(victim.name) == HELD)
        job.part(victim.name).unlink()
        release.set()

    job.hit(for_gets(hold(release, HELD)), victim.name)
    job.hit(for_gets(vanish), list(job.bodies)[1])
    assert "damaged" not in only_line(
        download(run, job, "-j", 2, status=1), f"{victim.name}.part", "No such file"
    )
    download(run, job)
    job.require_whole()


@pytest.mark.parametrize(("make", "suffix"), [
    *((make, suffix) for make in (Path.mkdir, os.mkfifo, lambda odd: odd.symlink_to(odd.name))
      for suffix in ("", ".part")),
    (lambda odd: odd.symlink_to("../precious"), ".part"),
], ids=["folder", "folder.part", "pipe", "pipe.part", "loop", "loop.part", "link.part"])  # fmt: skip
def test_what_is_no_plain_file_fails_that_product_alone(make, suffix, run, job, victim):
    Path("precious").write_bytes(b"precious")
    odd = victim.with_name(victim.name + suffix)
    make(odd)
    only_line(download(run, job, status=1), victim.name)
    assert {name for name in job.bodies if (job.products / name).is_file()} == set(
        job.bodies
    ) - {victim.name}
    assert not odd.is_file() or odd.is_symlink()
    assert Path("precious").read_bytes() == b"precious"
    Path("precious").unlink()
    odd.rmdir() if odd.is_dir() else odd.unlink()
    download(run, job)
    job.require_whole()


def test_a_finished_product_may_be_taken_away_at_once(run, job, monkeypatch):
    taken, finish = Path("taken"), peps_common.finish
    taken.mkdir()

    def finish_and_lose(file, path):
        finish(file, path)
        if path.parent == job.products:
            os.replace(path, taken / path.name)

    monkeypatch.setattr(peps_common, "finish", finish_and_lose)
    result = download(run, job)
    assert (result.err, "3 products downloaded (" in result.out) == ("", True)
    assert names_in(taken) == set(job.bodies)


def test_results_that_are_no_zip_are_fetched_too(run, job):
    """Checked by their length; what has such a name already is never replaced."""
    extra = {
        "quicklook.tgz": b"\x1f\x8b" + bytes(500), "quality.json": b"{}", "peps.txt": b"evil", "page.html": b"<html>",
    }  # fmt: skip
    for name, body in extra.items():
        job.add(name, body)
    (job.products / "peps.txt").write_bytes(b"mine")
    for _ in range(2):
        assert download(run, job).err == ""
        assert job.on_disk() == {**job.bodies, **extra, "peps.txt": b"mine"}
    assert job.sent("quality.json") == len(extra["quality.json"])


@pytest.mark.parametrize(("fault", "ends"), [
    (cut(5), 0), *((status(200, body=body), 1) for body in (b"<!DOCTYPE html>", b"", b'{"ErrorCode": 400}'))
], ids=["cut", "page", "empty", "error"])  # fmt: skip
def test_results_that_are_no_zip_and_do_not_come(fault, ends, run, job):
    job.add("quality.tgz", bytes(1000))
    job.hit(for_gets(fault, for_ever=bool(ends)), "quality.tgz")
    result = download(run, job, status=ends)
    assert (job.products / "quality.tgz").exists() == (not ends)
    assert not ends or only_line(result, "quality.tgz")


def test_a_file_that_comes_from_elsewhere_meanwhile_stays(run, job):
    """An error in two packets is one, too."""
    job.add("quality.tgz", bytes(1000))
    ready = threading.Event()
    ready.set()
    error = status(200, body=b'{"ErrorCode": 400, "ErrorMessage": "the tape is lost"}')
    job.hit(
        for_gets(
            lambda handler: hold(ready, 9)(handler) or error(handler), for_ever=True
        ),
        "quality.tgz",
    )
    only_line(download(run, job, status=1), "quality.tgz", "the tape is lost")
    job.mend()
    ours = job.products / "quality.tgz"
    job.hit(
        for_gets(lambda handler: bool(ours.write_bytes(b"mine")) and False),
        "quality.tgz",
    )
    download(run, job)
    assert job.on_disk() == {**job.bodies, "quality.tgz": b"mine"}


def test_a_part_that_is_longer_than_its_product(run, job, victim):
    job.part(victim.name).write_bytes(bytes(10**6))
    assert (
        "-"
        not in download(run, job, "-n", status=75)
        .out.splitlines()[0]
        .partition("to fetch")[2]
    )
    download(run, job)
    job.require_whole()


def test_a_pipe_beside_the_log_is_not_waited_for(run, job):
    for name in ("31TCJ.json", "31TCJ.stat"):
        Path(name).unlink(missing_ok=True)
        os.mkfifo(name)
        download(run, job)
    job.require_whole()


def test_two_results_of_one_name(run, job):
    first = job.results[0]
    job.results += [first, first.replace("/31TCJ/", "/elsewhere/")]
    result = download(run, job, status=1)
    only_line(result, "refused", "/elsewhere/", "another result has that name")
    assert job.on_disk() == job.bodies
    assert "3 products downloaded" in result.out.splitlines()[-1]


@pytest.mark.parametrize(
    "dead", [0, 1], ids=["the first's address is dead", "the second's is"]
)
def test_two_jobs_that_name_one_product(run, make_job, peps, dead):
    jobs = [make_job("a"), make_job("b")]
    jobs[dead].hit(for_gets(status(404), for_ever=True), f"/maja/{'ab'[dead]}/")
    result = run(
        "full_maja_download",
        "-l",
        "a.log",
        "b.log",
        "-w",
        "products",
        status=1 if dead == 0 else 0,
    )
    assert len(lines_of(result.err, "a.log: ")) == (3 if dead == 0 else 0)
    assert "b.log" not in result.err
    assert peps.requests("/maja/b/", "GET") == []
    assert jobs[0].on_disk() == ({} if dead == 0 else jobs[0].bodies)
    peps.journal.clear()
    again = run(
        "full_maja_download",
        "-l",
        "a.log",
        "b.log",
        "-w",
        "products",
        status=1 if dead == 0 else 0,
    )
    assert dead == 0 or (
        peps.journal,
        again.out.count("3 products on disk before"),
    ) == ([], 1)


@pytest.fixture
def mount(job):
    """Mount a small file system of its own as the products' folder; only root can."""
    if not sys.platform.startswith("linux"):
        pytest.skip("mounts Linux's tmpfs")
    mounted = []

    def mount(options: str):
        again = (
            ["-o", f"remount,{options}"] if mounted else ["-t", "tmpfs", "-o", options]
        )
        tried = subprocess.run(
            ["mount", *again, "tmpfs", job.products], stderr=subprocess.PIPE
        )
        if tried.returncode:
            pytest.skip(f"cannot mount a file system: {tried.stderr.decode()}")
        mounted.append(options)

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", job.products], check=True)


def test_a_full_disk_is_said_before_the_download(run, job, mount):
    mount(f"size={2 * SIZE // 4096 * 4096}")
    (job.products / "ballast").write_bytes(bytes(SIZE // 2))
    only_line(
        download(run, job, status=1),
        "2 products",
        "not enough disk space in products",
        "to come;",
    )
    assert sum(map(job.sent, job.bodies)) == len(
        next(iter(job.bodies.values()))
    )  # one fits, and is there
    (job.products / "ballast").unlink()
    mount("size=10m")
    download(run, job)
    job.require_whole()


def test_one_product_that_is_too_large_stops_no_other(run, job, victim, peps, mount):
    peps.products[victim.name] = make_product(victim.name, 20 * SIZE)
    mount(f"size={5 * SIZE // 4096 * 4096}")
    only_line(download(run, job, status=1), victim.name, "not enough disk space")
    assert set(job.on_disk()) == set(job.bodies) - {victim.name}


def test_a_full_disk_is_said_when_the_download_itself_tells_the_length(run, job, mount):
    mount(f"size={SIZE // 2 // 4096 * 4096}")
    job.hit(for_heads(status(501)), "/maja/")
    only_line(download(run, job, status=1), "3 products", "not enough disk space")
    assert job.on_disk() == {}


def test_no_file_more_on_the_disk_is_one_line(run, job, mount):
    mount("size=10m,nr_inodes=1")
    only_line(download(run, job, status=1), "3 products", "No space left on device")


def test_the_disk_is_full_in_the_middle(run, job, mount):
    mount(f"size={5 * SIZE // 2 // 4096 * 4096}")
    job.hit(for_heads(status(501)), "/maja/")
    job.hit(for_gets(without_length, for_ever=True), "/maja/")
    only_line(download(run, job, "-j", 1, status=1), "No space left on device")
    assert len([name for name in job.bodies if (job.products / name).exists()]) == 2
    mount("size=10m")
    job.mend()
    download(run, job)
    job.require_whole()


def test_a_part_counts_for_the_room_that_is_needed(run, job, victim, mount):
    mount(f"size={(3 * len(job.bodies[victim.name]) // 4096 + 8) * 4096}")
    job.part(victim.name).write_bytes(job.bodies[victim.name][:-100])
    assert download(run, job).err == ""
    assert job.sent(victim.name) == 100


def test_a_read_only_folder(run, job, mount):
    mount("size=10m")
    log = job.products / "ours.log"
    shutil.copy(job.log, log)
    mount("ro")
    only_line(download(run, job, status=1), "3 products", str(job.products))
    assert sum(map(job.sent, job.bodies)) == 0
    only_line(run("full_maja_download", "-l", log, status=1), str(log), "ead-only")


@pytest.mark.parametrize("sizes", [(0, 0, 0), ()], ids=["0 of 0", "an error"])
def test_a_disk_that_tells_no_size(run, job, monkeypatch, sizes):
    """It is not a full one."""

    def disk_usage(path):
        if not sizes:
            raise OSError(errno.ENOSYS, "Function not implemented")
        return shutil._ntuple_diskusage(*sizes)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    download(run, job)
    job.require_whole()


@pytest.mark.parametrize("refused", ["posix_fadvise", "fsync", "open"])
def test_courtesies_to_the_disk_fail_nothing(run, make_job, monkeypatch, refused):
    """An early flush and a folder's fsync that the system refuses, and a folder that may be written but not read."""
    real = getattr(os, refused, None)

    def refuse(file, *args, **options):
        if refused == "posix_fadvise" or stat.S_ISDIR(
            os.stat(file).st_mode if os.path.exists(file) else 0
        ):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(file, *args, **options)

    monkeypatch.setattr("full_maja_download.FLUSH_BYTES", 10_000)
    with monkeypatch.context() as patched:
        patched.setattr(os, refused, refuse, raising=False)
        run(
            "full_maja_process",
            "-t",
            "31TCJ",
            "-d",
            "2017-07-01",
            "-e",
            "2017-09-01",
            "-l",
            "new.log",
        )
        os.unlink("new.log")
        job = make_job()
        download(run, job)
    job.require_whole()


@pytest.mark.parametrize("number", ["ENOSYS", "ENOLCK", "ENOTSUP", "EINVAL", "EIO"])
def test_a_file_system_without_locks(run, job, number, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    code = getattr(errno, number)
    monkeypatch.setattr(
        fcntl,
        "flock",
        lambda *args: (_ for _ in ()).throw(OSError(code, os.strerror(code))),
    )
    lines = download(run, job).err.splitlines()
    assert [("warning" in line, "without locks" in line) for line in lines] == [
        (True, True)
    ] * 2  # of log and products
    job.require_whole()
    run(
        "full_maja_process",
        "-t",
        "31TCJ",
        "-d",
        "2017-07-01",
        "-e",
        "2017-09-01",
        "-l",
        "new.log",
    )


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_without_write_permission(run, job):
    job.products.chmod(0o555)
    only_line(download(run, job, status=1), str(job.products))
    job.products.chmod(0o755)


def test_two_runs_share_the_work(make_job, launch):
    job, release = make_job(count=6), threading.Event()
    held = list(job.bodies)[:3]
    for name in held:
        job.hit(for_gets(hold(release, HELD)), name)
    first = launch("full_maja_download", *job.argv, "-j", 3)
    wait_until(lambda: all(job.size_on_disk(name) == HELD for name in held))
    second = launch("full_maja_download", *job.argv)
    out, err = second.communicate(timeout=30)
    assert second.returncode == 75
    only_line(err, "3 products", "another run")
    assert "3 left for the next run" in out.splitlines()[-1]
    release.set()
    assert first.wait(30) == 0
    job.require_whole()
    assert sum(map(job.sent, job.bodies)) == sum(map(len, job.bodies.values()))


def test_what_another_run_has_brought_by_the_end_is_on_disk(run, make_job, launch):
    job, release = make_job(), threading.Event()
    first_name, last_name, *_ = job.bodies
    job.hit(for_gets(hold(release, HELD)), first_name)
    first = launch("full_maja_download", *job.argv, "-j", 1)
    wait_until(lambda: job.size_on_disk(first_name) == HELD)

    def release_first(handler):
        release.set()
        return first.wait(30) and False

    job.hit(for_gets(release_first), last_name)
    result = run("full_maja_download", *job.argv, "-j", 2)
    assert result.err == ""
    assert "left" not in result.out
    job.require_whole()


def test_six_runs_at_once_send_no_byte_twice(make_job, launch, run):
    job, all_there = make_job(count=12), threading.Event()
    job.hit(for_gets(hold(all_there, 1000), *[lambda handler: False] * 500), "/maja/")
    processes = [launch("full_maja_download", *job.argv, "-j", 2) for _ in range(6)]
    job.peps.wait_for(lambda: len(job.peps.requests("/r.json")) >= 6, 60)
    all_there.set()
    ends = [process.communicate(timeout=60) for process in processes]
    assert {process.returncode for process in processes} <= {0, 75}, ends
    assert "Traceback" not in str(ends)
    run("full_maja_download", *job.argv)
    job.require_whole()
    assert {name: job.sent(name) for name in job.bodies} == {
        name: len(body) for name, body in job.bodies.items()
    }


@pytest.mark.parametrize(
    "held", [True, False], ids=["held by a stopped run", "no lasting file numbers"]
)
def test_documents_that_cannot_be_written_end_in_words(held, run, job, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    waits, clock = [], iter(range(10**6))
    monkeypatch.setattr(peps_common.time, "sleep", waits.append)
    monkeypatch.setattr(peps_common.time, "monotonic", lambda: next(clock) / 10)
    with open("31TCJ.json.part", "wb") as file:
        if held:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            monkeypatch.setattr(peps_common, "is_same", lambda *files: False)
        only_line(
            download(run, job, status=75),
            "31TCJ.json" if held else "31TCJ.stat",
            "another run",
            "later",
        )
    assert 10 < len(waits) < 200


def test_no_more_threads(finish, make_job):
    resource = pytest.importorskip("resource")
    job = make_job(count=120, size=2000)
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (400 * 2**20, 400 * 2**20))  # noqa: E731
    result = finish(
        "full_maja_download", *job.argv, "-j", 400, preexec_fn=limit, status=None
    )
    assert result.status in (0, 1)
    assert len(result.err.splitlines()) == (result.status == 1), result
    finish("full_maja_download", *job.argv)
    job.require_whole()


@pytest.mark.parametrize(("place", "name", "error", "words"), [
    (threading.Thread, "start", RuntimeError("can't start"), "no thread can be started"),
    (peps_common, "parse_wps", MemoryError(), "memory"), (zipfile, "ZipFile", MemoryError(), "memory"),
])  # fmt: skip
def test_no_thread_at_all_and_no_more_memory(
    run, job, monkeypatch, place, name, error, words
):
    monkeypatch.setattr(place, name, lambda *args, **more: (_ for _ in ()).throw(error))
    only_line(run("full_maja_download", *job.argv, status=1), words)
