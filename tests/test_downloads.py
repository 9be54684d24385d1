"""What stands in the products' folder, what the disk makes of it, and runs at once."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import threading
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from faulty_http import cut, for_gets, for_heads, hold, status
from local_peps import make_product
from stories import flipped, last, names_in, only_line

SIZE = 100_000


@pytest.fixture
def job(make_job):
    return make_job()


@pytest.fixture
def victim(job) -> Path:
    """The first product's place."""
    return job.products / job.first


@pytest.fixture
def damaged(job) -> bytes:
    """The first product, with a bit that only its CRC tells to be wrong."""
    return flipped(job.bodies[job.first], SIZE // 9)


@pytest.fixture
def download(run, job):
    return partial(run, "full_maja_download", *job.argv)


def test_a_whole_product_is_left_alone(download, job, victim):
    victim.write_bytes(job.bodies[job.first])
    os.utime(victim, (1, 1))
    download()
    assert victim.stat().st_mtime == 1
    assert job.gets(job.first) == []


def test_an_unpacked_product_is_on_disk(download, job, victim):
    victim.with_suffix("").mkdir()
    assert "1 on disk before" in last(download())
    assert job.gets(job.first) == []


def test_the_largest_comes_first_and_every_request_says_who_asks(download, job, peps):
    *_, large = job.bodies
    peps.products[large] = make_product(large, SIZE * 2)
    download("-j", 1)
    assert peps.requests("/maja/", "GET")[:1] == job.gets(large)
    for request in peps.journal:
        assert request.headers["accept-encoding"] == "identity"
        assert request.headers["user-agent"].startswith("peps_maja/")


def test_j_products_come_at_once_over_connections_that_are_kept(run, make_job):
    job, ports, together = make_job(count=12), set(), threading.Barrier(3)

    def meet(handler):
        ports.add(handler.client_address)
        together.wait(20)

    job.hit(for_gets(meet, for_ever=True), "/maja/")
    run("full_maja_download", *job.argv, "-j", 3)
    assert len(ports) == 3


BODY = make_product("x", SIZE)
BROKEN = {
    "half": BODY[: SIZE // 2], "last byte missing": BODY[:-1],
    "bytes missing in the middle": BODY[:9000] + BODY[19_000:],
    "bytes before the first member": b"PK\3\4" + BODY,
    "no member": b"PK\5\6" + bytes(18), "empty": b"", "page": b"<html></html>",
}  # fmt: skip


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_product_on_disk_is_replaced(content, download, job, victim):
    victim.write_bytes(content)
    download()
    job.require_whole()


@pytest.mark.parametrize("read", [1, 3])
def test_check_finds_a_flipped_bit(read, download, job, victim, damaged):
    """In a fresh folder, and in one that is known to have all three."""
    if read == 3:
        download()
    victim.write_bytes(damaged)
    out = download("--check").out
    assert f"--check: {read} read, 1 damaged, fetched again\n" in out
    job.require_whole()


def test_check_refuses_what_is_damaged_at_the_server(
    download, job, peps, victim, damaged
):
    """No later run may take what is damaged for whole, whoever brought it."""
    peps.products[job.first] = damaged
    for _ in range(2):
        only_line(download("--check", status=1), job.first, "damaged")
        assert names_in(job.products) == {*job.bodies} - {job.first}
        victim.write_bytes(damaged)


def test_a_damaged_product_stays_until_its_successor_is_whole(
    download, job, victim, damaged
):
    victim.write_bytes(damaged)
    job.hit(for_gets(cut(SIZE // 2), cut(None), for_ever=True))
    result = download("--check", status=75)
    only_line(result, job.first)
    assert f"--check: 1 read, 1 damaged: {job.first}\n" in result.out
    assert victim.read_bytes() == damaged


def test_what_the_system_refuses_is_no_damage(download, job, victim, monkeypatch):
    really = open

    def refuse(path, *args, **options):
        if path == victim:
            raise PermissionError("not for you")
        return really(path, *args, **options)

    victim.write_bytes(b"precious")
    monkeypatch.setattr("builtins.open", refuse)
    only_line(download(status=1), job.first, "not for you")
    assert victim.read_bytes() == b"precious"
    assert names_in(job.products) == {*job.bodies}


def make_zip(head=b"", packing=0, zip64=False) -> bytes:
    """A zip as one makes it that writes to a pipe, with a comment."""
    whole = io.BytesIO()
    pipe = SimpleNamespace(write=whole.write, flush=whole.flush)
    with zipfile.ZipFile(pipe, "w", packing) as archive:
        archive.comment = b"made by MAJA"
        with archive.open("image.tif", "w", force_zip64=zip64) as image:
            image.write(bytes(1000))
    return head + whole.getvalue()


def test_whole_zips_of_any_kind_are_whole(download, job, peps):
    zips = [make_zip(head) for head in (b"", b"PK\7\x08", b"PK00")]
    zips += [make_zip(packing=packing) for packing in (8, 12, 14)]
    for body in (*zips, make_zip(zip64=True)):
        name = f"{len(job.bodies)}.zip"
        job.bodies[name] = body
        job.add(name, body)
    download()
    peps.journal.clear()
    assert "--check: 10 read, none damaged\n" in download("--check").out
    assert peps.journal == []
    job.require_whole()


def link(odd: Path):
    odd.symlink_to("nowhere")


@pytest.mark.parametrize(("make", "suffix"), [
    (Path.mkdir, ""), (os.mkfifo, ""), (link, ""),
    (Path.mkdir, ".part"), (os.mkfifo, ".part"), (link, ".part"),
])  # fmt: skip
def test_what_is_no_plain_file_is_left_alone(make, suffix, download, job):
    odd = job.products / f"{job.first}{suffix}"
    make(odd)
    only_line(download(status=1), job.first)
    assert not odd.is_file()
    assert names_in(job.products) == {*job.bodies} - {job.first} | {odd.name}


def test_results_that_are_no_zip_come_but_replace_nothing(download, job):
    extra = {"quality.json": b"{}", "look.tgz": b"\x1f\x8b" * 99, "a.html": b"<html>"}
    for name, body in {**extra, "mine.txt": b"theirs"}.items():
        job.add(name, body)
    (job.products / "mine.txt").write_bytes(b"mine")
    job.part("look.tgz").write_bytes(b"of another time")
    assert download().err == ""
    assert job.on_disk() == {**job.bodies, **extra, "mine.txt": b"mine"}
    assert job.gets("mine.txt") == []


def test_of_two_results_of_one_name_the_first_comes(download, job):
    other = job.results[0].replace("/31TCJ/", "/other/")
    job.results += [job.results[0], other]
    only_line(download(status=1), "refused", other)
    assert job.gets("other/") == []


def test_two_jobs_that_name_one_product_share_it(run, make_job, peps):
    make_job("a")
    make_job("b")
    result = run("full_maja_download", "-l", "a.log", "b.log", "-w", "products")
    assert last(result).startswith("2 jobs finished. 3 products downloaded (")
    assert len(peps.requests("/maja/", "GET")) == 3


@pytest.mark.parametrize("name", [
    "..%2fescaped.zip", "%2fetc%2fescaped.zip", "..", ".hidden.zip", "a%0ab.zip",
    "requests.py", "a.zip.part",
])  # fmt: skip
def test_a_hostile_name_is_refused_and_the_others_come(name, download, job):
    job.results.insert(0, f"{job.base}/{name}")
    only_line(download(status=1), "31TCJ.log", "refused")
    job.require_whole()


@pytest.mark.parametrize(
    ("place", "ends"), [("new", 0), ("no/parent", 2), ("peps.txt", 2)]
)
def test_of_the_folder_only_the_last_part_may_be_missing(place, ends, run, job, peps):
    result = run("full_maja_download", "-l", job.log, "-w", place, status=ends)
    assert not ends or only_line(result, place, "-w")
    assert Path(place).is_dir() == bool(peps.journal) == (not ends)


@pytest.mark.parametrize(
    ("total", "free", "ends"), [(1, 230_000, 0), (1, 210_000, 1), (0, 0, 0)]
)
def test_room_is_looked_for_first(total, free, ends, download, job, monkeypatch):
    """What is left to come of three products takes 216 kB; no disk has 0 bytes."""
    usage = SimpleNamespace(total=total, free=free)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    job.part(job.first).write_bytes(job.bodies[job.first][:90_000])
    err = download(status=ends).err
    assert ("not enough disk space in products" in err) == ends
    assert len(job.peps.requests("/maja/", "GET")) == 3 - ends


def test_a_full_disk_ends_what_needs_it(run, make_job, peps):
    job = make_job(count=12)
    job.hit(for_heads(status(501)), "/maja/")  # so that nobody knows that it is small
    mount = ["mount", "-t", "tmpfs", "-o", "size=248k", "tmpfs", job.products]
    if subprocess.run(mount).returncode:
        pytest.skip("mounts a small disk, which only root may")
    result = run("full_maja_download", *job.argv, "-j", 1, status=None)
    subprocess.run(["umount", "--lazy", job.products])
    only_line(result, "No space left")
    assert result.status == 1
    assert len(peps.requests("/maja/", "GET")) == 3


@pytest.mark.parametrize("missing", ["fcntl.flock", "os.fsync"])
def test_a_disk_without_locks_or_fsync_will_do(missing, download, job, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(missing, refuse)
    assert "warning" in download().err
    job.require_whole()


def test_two_runs_share_the_work(make_job, launch, run, peps):
    job, release = make_job(count=4), threading.Event()
    job.hit(for_gets(*[hold(release, 1000)] * 2), "/maja/")
    first = launch("full_maja_download", *job.argv, "-j", 2)
    peps.wait_for(lambda: len(peps.requests("/maja/", "GET")) == 2)
    second = run("full_maja_download", *job.argv, status=75)
    only_line(second, "2 products", "another run")
    release.set()
    assert first.wait() == 0
    job.require_whole()


def test_what_another_run_has_brought_by_the_end_is_on_disk(
    download, job, launch, peps
):
    release = threading.Event()

    def let_the_first_end(handler):
        release.set()
        first.wait()

    job.hit(for_gets(hold(release, 1000), let_the_first_end), "/maja/")
    first = launch("full_maja_download", *job.argv, "-j", 1)
    peps.wait_for(lambda: peps.requests("/maja/", "GET"))
    result = download("-j", 1)
    assert result.err == ""
    assert "2 on disk before" in last(result)
    job.require_whole()


def test_six_runs_at_once_send_no_byte_twice(make_job, launch, run, peps):
    job, all_there = make_job(count=12), threading.Event()
    job.hit(hold(all_there, None), "/r.json")
    runs = [launch("full_maja_download", *job.argv, "-j", 2) for _ in range(6)]
    peps.wait_for(lambda: len(peps.requests("/r.json")) == 6)
    all_there.set()
    assert {process.wait() for process in runs} <= {0, 75}
    run("full_maja_download", *job.argv)
    job.require_whole()
    assert all(job.sent(name) == len(body) for name, body in job.bodies.items())


def test_memory_does_not_grow_with_a_product(run, make_job, tmp_path, peps):
    job, big = make_job(count=4, size=1000), tmp_path / "big.zip"
    with zipfile.ZipFile(big, "w") as archive:
        archive.writestr("image.tif", bytes(105_000_000))
    peps.products = dict.fromkeys(job.bodies, big)
    tracemalloc.start()
    run("full_maja_download", *job.argv, "--check")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    shutil.rmtree(job.products)  # pytest keeps its folders for a while
    assert peak < 2**24
