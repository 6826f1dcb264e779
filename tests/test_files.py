"Whole or not at all: full disks, kills, folders that cannot be written, many writers at once."
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from mixrepro.data.corrupted import read_made
from mixrepro.data.sources import _noted
from mixrepro.files import PART, check_nested, check_typed, sha256, write_atomic, write_together

SOURCE = Path(__file__).resolve().parents[1]


def child(code, *args, before=(), **kw):
    "A fresh interpreter that runs a few lines."
    env = os.environ | {"PYTHONPATH": str(SOURCE)}
    return subprocess.run([*before, sys.executable, "-c", code, *map(str, args)], env=env, capture_output=True, text=True, timeout=60, **kw)


@settings(deadline=None)
@given(data=st.one_of(st.binary(max_size=2000), st.text(st.characters(exclude_categories=["Cs"]), max_size=500)))
def test_reads_back_what_was_written(tmp_path_factory, data):
    path = write_atomic(tmp_path_factory.getbasetemp()/"any"/"file", data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert os.listdir(path.parent) == ["file"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path/"plain").write_bytes(b"")
    assert write_atomic(tmp_path/"ours", b"").stat().st_mode == (tmp_path/"plain").stat().st_mode


def test_longest_name_the_file_system_takes(tmp_path):
    write_atomic(tmp_path/("é" * 127), b"x")
    with pytest.raises(OSError, match="file name too long"): write_atomic(tmp_path/("é" * 128), b"x")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_any_failing_step_leaves_the_old_file(tmp_path, monkeypatch, call):
    old = write_atomic(tmp_path/"a.csv", b"old")
    def fail(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="could not write .*a.csv: no space left on device; free some space") as e: write_atomic(old, b"new")
    assert e.value.errno == errno.ENOSPC and str(e.value).count("\n") == 0
    assert old.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.csv"]


def test_an_interrupt_cleans_up_and_passes_on(tmp_path, monkeypatch):
    old = write_atomic(tmp_path/"a.csv", b"old")
    def interrupt(*_): raise KeyboardInterrupt
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt): write_atomic(old, b"new")
    assert old.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.csv"]


def test_a_folder_that_cannot_be_flushed_is_no_failure(tmp_path, monkeypatch):
    real = os.open
    def no_folders(path, *args, **kw):
        if os.path.isdir(path): raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, *args, **kw)
    monkeypatch.setattr(os, "open", no_folders)
    assert write_atomic(tmp_path/"a", b"1").read_bytes() == b"1"


def test_together_keeps_the_old_set_when_the_second_fails(tmp_path, monkeypatch):
    a, b = write_together({tmp_path/"a": b"1", tmp_path/"b": b"1"})
    real, calls = os.fsync, []
    def second_fails(fd):
        calls.append(fd)
        if len(calls) == 2: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd)
    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(OSError, match="no space left"): write_together({a: b"2", b: b"2"})
    assert (a.read_bytes(), b.read_bytes()) == (b"1", b"1") and sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_writer_killed_half_way_leaves_the_old_file(tmp_path):
    old = write_atomic(tmp_path/"weights", b"old")
    code = ("import os, signal, sys; from mixrepro.files import write_atomic\n"
            "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "write_atomic(sys.argv[1], b'new' * 1000)")
    assert child(code, old).returncode == -signal.SIGKILL
    assert old.read_bytes() == b"old"
    left = [p for p in os.listdir(tmp_path) if p != "weights"]
    assert len(left) == 1 and left[0].startswith(".weights.") and left[0].endswith(PART)


def test_a_write_the_system_stops_half_way(tmp_path):
    "A file size limit makes the kernel refuse in the middle of the content."
    old = write_atomic(tmp_path/"weights", b"old")
    code = ("import resource, sys; from mixrepro.files import write_atomic\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
            "try: write_atomic(sys.argv[1], b'x' * 100_000)\n"
            "except OSError as e: print(e)")
    out = child(code, old)
    assert "weights: file too large" in out.stdout, out.stderr
    assert old.read_bytes() == b"old" and os.listdir(tmp_path) == ["weights"]


def test_a_disk_that_is_really_full(tmp_path):
    "A 64 KiB file system, mounted in a mount namespace of the child alone."
    private = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k none "$0" && exec "$@"', str(tmp_path)]
    try: allowed = subprocess.run([*private, "true"], capture_output=True, timeout=20).returncode == 0
    except OSError: allowed = False
    if not allowed: pytest.skip("needs the right to mount a file system in a namespace of its own")
    code = ("import os, sys; from mixrepro.files import write_atomic\n"
            "a = sys.argv[1] + '/a'; write_atomic(a, b'old')\n"
            "try: write_atomic(a, bytes(200_000))\n"
            "except OSError as e: print(e)\n"
            "print(open(a).read(), os.listdir(sys.argv[1]))")
    out = child(code, tmp_path, before=private)
    assert "no space left on device; free some space" in out.stdout and out.stdout.endswith("old ['a']\n"), out.stderr
    assert os.listdir(tmp_path) == []


@pytest.fixture
def open_folder():
    "A folder that any user can reach; pytest's own belong to one user alone."
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_folder_without_the_right_to_write(open_folder):
    old, root = write_atomic(open_folder/"a", b"old"), os.geteuid() == 0
    open_folder.chmod(0o555)
    if root: os.seteuid(65534)  # permissions bind everyone but root
    try:
        assert old.read_bytes() == b"old"
        with pytest.raises(PermissionError, match="could not write .*permission denied; choose a folder that can be written"): write_atomic(old, b"new")
    finally:
        if root: os.seteuid(0)
        open_folder.chmod(0o755)
    assert old.read_bytes() == b"old" and os.listdir(open_folder) == ["a"]


def test_readers_and_writers_at_once_see_whole_files(tmp_path):
    path = write_atomic(tmp_path/"a", bytes(200_000))
    def write(i): write_atomic(path, bytes([i]) * 200_000)
    def read(_): return path.read_bytes()
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(f, i) for i in range(40) for f in (write, read)]
        seen = [job.result() for job in jobs]
    assert all(len(s) == 200_000 and len(set(s)) == 1 for s in seen if s is not None)
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_is_nested_too_deep_is_named(tmp_path):
    (path := tmp_path / "made.json").write_text("[" * 100_000)
    for read in (check_nested, lambda p: read_made(p.parent), _noted):
        with pytest.raises(ValueError, match=f"{path} is nested deeper than anything that is written here: remove it"): read(path)
    path.write_text("[")
    check_nested(path); check_nested(tmp_path / "none")


def test_sha256_of_a_file_and_of_its_bytes(tmp_path):
    data = os.urandom(300_000)
    out = subprocess.run(["sha256sum", write_atomic(tmp_path/"a", data)], capture_output=True, text=True)
    assert sha256(data) == sha256(tmp_path/"a") == sha256(str(tmp_path/"a")) == out.stdout.split()[0]


def test_old_bytecode_is_not_run_for_a_source_whose_size_and_date_are_as_before(tmp_path):
    "Python looks at nothing else; the fingerprint is that of the text."
    shutil.copytree(SOURCE / "mixrepro", tmp_path / "mixrepro", ignore=shutil.ignore_patterns("__pycache__"))
    path, env = tmp_path / "mixrepro/core.py", {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")} | dict(PYTHONPATH=str(tmp_path))
    def said(): return subprocess.run([sys.executable, "-c", "import mixrepro.core as c; print(c.SOURCES[0])"], env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    time.sleep(.05)
    assert said() == "paper\n" and list((path.parent / "__pycache__").glob("core.*.pyc"))
    was, text = path.stat(), path.read_text()
    path.write_text(text.replace('SOURCES = ("paper"', 'SOURCES = ("PAPER"')); os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert path.read_text() != text and path.stat().st_size == was.st_size and said() == "PAPER\n"
    kept, = (path.parent / "__pycache__").glob("core.*.pyc")
    time.sleep(.05); seen = kept.stat().st_mtime_ns; said()
    assert kept.stat().st_mtime_ns == seen, "what is good is kept"


@pytest.mark.parametrize("typed", ["~nosuchuser/x", "./~nosuchuser/x", Path("~nosuchuser/x")])
def test_nobodys_home_is_refused_however_it_is_typed(typed):
    with pytest.raises(ValueError, match="leads nowhere, nobody of that name has a home folder here"): check_typed(typed)
