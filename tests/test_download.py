"Downloading and unpacking: every way in which a server, an archive or a disk goes wrong ends in the verified file or in one sentence."
import errno
import hashlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mixrepro import download as D
from mixrepro.download import Patience, download, unpack
from webserver import Web, without_proxy

without_proxy()
DATA = random.Random(0).randbytes(200_000)
MD5, SHA = hashlib.md5(DATA).hexdigest(), hashlib.sha256(DATA).hexdigest()
QUICK = Patience(timeout=10, tries=3, pause=.005, longest=5)  # a machine may stand still for a second: that is no silent server
SHORT = Patience(timeout=.3, tries=3, pause=.005, longest=5)


@pytest.fixture
def web():
    "A server of its own for each test: an answer that a test before has left unread is counted nowhere else."
    server = Web({"/set.bin": DATA})
    yield server
    server.close()


def left(folder): return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def get(web, folder, *paths, md5=MD5, **known):
    silent = any("stall" in str(moods) for moods in web.moods.values())
    return download([web.url + p for p in paths or ["/set.bin"]], folder / "set.bin", **{"md5": md5, "patience": SHORT if silent else QUICK, "say": lambda line: None} | known)


# ---- one mirror -----------------------------------------------------------------------------------------------------

def test_a_file_is_fetched_whole_and_only_once(web, tmp_path):
    assert get(web, tmp_path / "new" / "folder").read_bytes() == DATA and left(tmp_path / "new" / "folder") == ["set.bin"]
    get(web, tmp_path / "new" / "folder")
    assert len(web.asked) == 1


@pytest.mark.parametrize("known", [dict(md5=MD5), dict(md5="", sha256=SHA), dict(md5="", size=len(DATA)), dict(md5="")])
def test_a_cut_connection_goes_on_where_it_broke(web, tmp_path, known):
    web.moods["/set.bin"] = ["cut:50000", "cut:70000"]
    assert get(web, tmp_path, **known).read_bytes() == DATA
    assert [begin for _, begin, *_ in web.asked] == [0, 50_000, 120_000] and web.sent == len(DATA)
    assert {name for *_, name in web.asked[1:]} == {'"v1"'} and left(tmp_path) == ["set.bin"]


def test_a_server_without_ranges_starts_over(web, tmp_path):
    web.ranges, web.moods["/set.bin"] = False, ["cut:50000"]
    assert get(web, tmp_path).read_bytes() == DATA and web.sent == 50_000 + len(DATA)


def test_a_server_without_validators_is_continued_only_if_a_checksum_judges(web, tmp_path):
    web.etag, web.moods["/set.bin"] = "", ["cut:50000"]
    assert get(web, tmp_path / "a").read_bytes() == DATA and web.asked[1][1] == 50_000
    web.moods["/set.bin"] = ["cut:50000"]
    assert get(web, tmp_path / "b", md5="").read_bytes() == DATA and web.asked[-1][1] == 0


def test_a_file_that_changed_on_the_server_is_never_spliced(web, tmp_path):
    web.moods["/set.bin"] = ["cut:50000", 404]
    with pytest.raises(OSError, match="answered 404"): get(web, tmp_path, md5="")
    assert left(tmp_path) == [".set.bin.part", ".set.bin.part.json"]
    web.files["/set.bin"], web.etag = DATA[::-1], '"v2"'
    assert get(web, tmp_path, md5="").read_bytes() == DATA[::-1] and web.asked[-1][1:] == (50_000, "", '"v1"')


def test_bytes_of_another_version_are_thrown_away_once(web, tmp_path):
    "A server that renames nothing: the checksum finds the splice, and the same mirror is asked from the first byte."
    (tmp_path / ".set.bin.part").write_bytes(b"x" * 60_000)
    assert get(web, tmp_path).read_bytes() == DATA and [begin for _, begin, *_ in web.asked] == [60_000, 0]


def test_a_file_of_another_length_under_the_same_validator_is_not_spliced(web, tmp_path):
    web.files["/set.bin"] = DATA[:-1]
    (tmp_path / "b").mkdir(); (tmp_path / "b" / ".set.bin.part").write_bytes(b"x" * 100)
    (tmp_path / "b" / ".set.bin.part.json").write_text(f'{{"url": "{web.url}/set.bin", "validator": "\\"v1\\"", "size": 200000}}')
    assert get(web, tmp_path / "b", md5="").read_bytes() == DATA[:-1] and [begin for _, begin, *_ in web.asked][-2:] == [100, 0]


def test_a_part_that_is_complete_already_needs_no_bytes(web, tmp_path):
    "Killed between the last byte and the renaming."
    (tmp_path / ".set.bin.part").write_bytes(DATA)
    assert get(web, tmp_path, size=len(DATA)).read_bytes() == DATA and web.asked == []
    (tmp_path / "b").mkdir(); (tmp_path / "b" / ".set.bin.part").write_bytes(DATA)
    assert get(web, tmp_path / "b").read_bytes() == DATA and web.sent == 0  # the server says that nothing is missing
    (tmp_path / "c").mkdir(); (tmp_path / "c" / ".set.bin.part").write_bytes(DATA + b"more")
    assert get(web, tmp_path / "c").read_bytes() == DATA


def test_a_stalled_server_is_left_and_asked_again(web, tmp_path):
    web.moods["/set.bin"] = ["stall:50000"]
    assert get(web, tmp_path).read_bytes() == DATA and 50_000 - D.AT_ONCE <= web.asked[1][1] <= 50_000


@pytest.mark.parametrize("mood", [429, 503, 500, (503, "0"), (429, "Thu, 01 Jan 2015 00:00:00 GMT")])
def test_a_busy_server_is_waited_for(web, tmp_path, mood):
    web.moods["/set.bin"] = [mood, mood]
    assert get(web, tmp_path).read_bytes() == DATA and len(web.asked) == 3


def test_the_pause_is_what_the_server_asked_for_else_doubled(web, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(D.time, "sleep", waits.append)
    web.moods["/set.bin"] = [503, (503, "4"), 503]
    get(web, tmp_path, patience=Patience(10, 9, 1., 100.))
    assert waits == [2, 4, 8]


def test_a_server_that_asks_for_too_long_a_pause_is_left(web, tmp_path):
    web.moods["/set.bin"], web.files["/b"] = [(503, "3600")], DATA
    assert get(web, tmp_path, "/set.bin", "/b").read_bytes() == DATA
    web.moods["/set.bin"] = [(503, "3600")]
    with pytest.raises(OSError, match="answered 503 Service Unavailable and asks to wait 3600 s"): get(web, tmp_path / "x")


# ---- several mirrors, and none --------------------------------------------------------------------------------------

BAD = {"404": ([404] * 9, "answered 404 Not Found"), "403": ([403] * 9, "answered 403 Forbidden"), "503": ([503] * 9, "answered 503 Service Unavailable"),
       "429": ([429] * 9, "answered 429 Too Many Requests"), "page": (["page"] * 9, "sent a web page instead of the file"),
       "plain page": (["plain page"] * 9, "sent a web page instead of the file"), "notice": (["notice"] * 9, "sent a web page instead of the file"), "cut": (["cut:0"] * 9, "cut the connection"),
       "stall": (["stall:0"] * 9, "sent nothing for 0.3 s"), "other": (["other"] * 9, f"sent a file that has MD5 [0-9a-f]{{32}}, expected {MD5}")}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_mirror_is_passed_over_and_named_when_there_is_no_other(web, tmp_path, name):
    moods, why = BAD[name]
    web.files["/bad"], web.moods["/bad"] = DATA, list(moods)
    assert get(web, tmp_path / "a", "/bad", "/set.bin").read_bytes() == DATA
    web.moods["/bad"] = list(moods)
    with pytest.raises(OSError) as e: get(web, tmp_path / "b", "/bad")
    assert re.match(rf"could not fetch set.bin: 127.0.0.1 {why}.*; try again later, or put it at .*set.bin yourself \(MD5 {MD5}\)$", str(e.value)) and "\n" not in str(e.value)
    assert not (tmp_path / "b" / "set.bin").exists()


@pytest.mark.parametrize("proxy, why", [("::bad::", "is none: correct it or unset it"), ("   ", "is none: correct it or unset it"), ("http://me:secret@127.0.0.1:1", "could not be reached by way of the proxy")])
def test_a_proxy_that_is_none_is_not_the_mirrors_fault(web, tmp_path, monkeypatch, proxy, why):
    for name in ("NO_PROXY", "no_proxy"): monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy"): monkeypatch.setenv(name, proxy)
    with pytest.raises(OSError, match=why) as e: download("http://mirror.invalid/x.bin", tmp_path / "x.bin", patience=Patience(1., 1, 0., 0.), say=lambda line: None)
    assert "secret" not in str(e.value) and "not a web address" not in str(e.value)


def test_an_address_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"http://\[::1/x is no address .Invalid IPv6 URL.: correct it"): D.check_source("http://[::1/x")
    D.check_source("/a/[b"); D.check_source(""); D.check_source(None)


def test_a_mirror_that_nobody_serves(web, tmp_path):
    with pytest.raises(OSError, match="127.0.0.1 could not be reached; gone.invalid could not be reached; ftp://x/y is not a web address|"
                                      "127.0.0.1 could not be reached; gone.invalid could not be reached; x is not a web address"):
        download(["http://127.0.0.1:9/x", "http://gone.invalid/x", "ftp://x/y"], tmp_path / "x", patience=Patience(10, 1, .01), say=lambda line: None)
    with pytest.raises(OSError, match="could not fetch x: no address is known; try again later, or put it at .*x yourself"): download([], tmp_path / "x")


def test_an_address_where_nobody_answers_is_left_soon_and_a_broken_line_is_not(web, tmp_path, monkeypatch):
    waits, get_really, down = [], D.requests.get, []
    monkeypatch.setattr(D.time, "sleep", waits.append)
    with pytest.raises(OSError, match="could not be reached"): download("http://127.0.0.1:9/x", tmp_path / "x", patience=Patience(10, 6, 1.), say=lambda line: None)
    assert waits == [2]
    def get_or_not(*args, **kwargs):
        if len(web.asked) == 1 and len(down) < 4: down.append(1); raise D.requests.ConnectionError("no route")
        return get_really(*args, **kwargs)
    monkeypatch.setattr(D.requests, "get", get_or_not)
    web.moods["/set.bin"] = ["cut:50000"]
    assert get(web, tmp_path, patience=Patience(10, 6, 1.)).read_bytes() == DATA and web.sent == len(DATA) and waits[1:] == [1, 2, 4, 8, 16]


def test_another_mirror_goes_on_with_what_the_first_gave(web, tmp_path):
    web.files["/bad"], web.moods["/bad"] = DATA, ["cut:50000", 404]
    assert get(web, tmp_path, "/bad", "/set.bin").read_bytes() == DATA and web.sent == len(DATA)


def test_a_size_decides_only_where_no_checksum_does(web, tmp_path):
    assert get(web, tmp_path / "a", size=7).read_bytes() == DATA
    with pytest.raises(OSError, match="offers 200,000 bytes, expected 7"): get(web, tmp_path / "b", md5="", size=7)
    web.files["/set.bin"] = DATA[:-9]
    with pytest.raises(OSError, match="sent a file that has 199,991 bytes, expected 200,000"): get(web, tmp_path / "c", size=len(DATA))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.sampled_from([404, 429, 500, 503, (503, "0"), "page", "plain page", "other", "ignore"]),
                          st.integers(0, len(DATA)).map(lambda n: f"cut:{n}")), max_size=5), st.booleans(), st.booleans(), st.booleans())
def test_whatever_happens_the_file_is_whole_or_there_is_none(web, tmp_path_factory, moods, ranges, etag, checked):
    folder = tmp_path_factory.mktemp("any")
    web.moods, web.ranges, web.etag = {"/set.bin": list(moods)}, ranges, '"v1"' if etag else ""
    hopeless = not checked and "other" in moods  # without a checksum nobody can tell
    try: assert get(web, folder, md5=MD5 if checked else "").read_bytes() == DATA or hopeless
    except OSError as e: assert "could not fetch set.bin: 127.0.0.1" in str(e) and "\n" not in str(e) and not (folder / "set.bin").exists()
    else: assert left(folder) == ["set.bin"]
    if not hopeless: web.moods = {}; assert get(web, folder).read_bytes() == DATA


# ---- the disk -------------------------------------------------------------------------------------------------------

def test_a_wrong_file_stays_until_the_right_one_is_there(web, tmp_path):
    (tmp_path / "set.bin").write_bytes(b"mine")
    web.moods["/set.bin"] = [404]
    with pytest.raises(OSError, match="404"): get(web, tmp_path)
    assert (tmp_path / "set.bin").read_bytes() == b"mine"
    assert get(web, tmp_path).read_bytes() == DATA


def test_a_disk_that_is_too_small_is_said_before_the_first_byte(web, tmp_path, monkeypatch):
    monkeypatch.setattr(D.shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10, 9, 1000))
    with pytest.raises(OSError, match="set.bin needs 200 kB in .*, where 1.0 kB are free: free some space or choose another folder") as e: get(web, tmp_path)
    assert e.value.errno == errno.ENOSPC and left(tmp_path) == []


@pytest.mark.parametrize("code, advice", [(errno.ENOSPC, "free some space and run again"), (errno.EROFS, "choose a folder that can be written")])
def test_a_disk_that_fails_on_the_way(web, tmp_path, monkeypatch, code, advice):
    def fail(fd): raise OSError(code, os.strerror(code))
    with monkeypatch.context() as m:
        m.setattr(D.os, "fsync", fail)
        with pytest.raises(OSError, match=f"could not write .*: .*; {advice}"): get(web, tmp_path)
    assert not (tmp_path / "set.bin").exists()
    assert get(web, tmp_path).read_bytes() == DATA and left(tmp_path) == ["set.bin"]


def test_a_folder_that_cannot_be_written(web, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not write .*a file stands where a folder is needed: move it away"): get(web, tmp_path / "file")
    with pytest.raises(IsADirectoryError, match="is a folder: name the file to be written"): download([], tmp_path)
    if os.geteuid() == 0: return
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="could not write .*: permission denied; choose a folder that can be written"): get(web, tmp_path / "locked")


def test_progress_in_a_log_is_a_few_lines(web, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(D.sys.stderr, "isatty", lambda: False, raising=False)
    meter = D.Meter("big.tar", 1_000_000_000, 0, lines.append)
    for _ in range(1000): meter(1_000_000)
    meter.close()
    assert lines == [f"big.tar: {n}00 MB of 1.0 GB" for n in range(1, 10)] + ["big.tar: 1.0 GB of 1.0 GB"]


# ---- several processes, and kills -----------------------------------------------------------------------------------

CODE = """
import shutil, sys, time
from pathlib import Path
from mixrepro import download as D
url, folder, md5 = sys.argv[1:]
copy = shutil.copyfileobj
shutil.copyfileobj = lambda *a: (time.sleep(.004), copy(*a))  # so that a kill may fall into the unpacking
archive = D.download(url, Path(folder, "set.tar"), md5=md5, patience=D.Patience(5, 9, .01))
if not Path(folder, "set").is_dir(): D.unpack(archive, folder, {"set": "set"})
"""
FILES = {f"set/{i:02d}.bin": bytes([i]) * 3000 for i in range(60)}


def tar(members, gz=False, **extra):
    "A tar archive as bytes; `extra` are attributes of one more member."
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w:gz" if gz else "w") as t:
        for name, content in members.items():
            m = tarfile.TarInfo(name); m.size = len(content); t.addfile(m, io.BytesIO(content))
        if extra:
            m = tarfile.TarInfo(extra.pop("name", "set/extra"))
            for k, v in extra.items(): setattr(m, k, v)
            t.addfile(m)
    return out.getvalue()


def process(web, folder):
    archive = web.files["/set.tar"]
    return subprocess.Popen([sys.executable, "-c", CODE, web.url + "/set.tar", folder, hashlib.md5(archive).hexdigest()], stderr=subprocess.PIPE, text=True)


def whole(folder): return {f"set/{p.name}": p.read_bytes() for p in (folder / "set").iterdir()} == FILES


def test_the_engine_starts_without_torch():
    done = subprocess.run([sys.executable, "-c", "import sys, mixrepro.download; assert 'torch' not in sys.modules"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_killed_at_ten_random_moments_the_next_call_finishes(web, tmp_path):
    "Each process is killed a random time after its first request; what stands at the end of each is nothing or all of it, and each round ends with the whole."
    web.files["/set.tar"], web.pause, rng, early = tar(FILES), .004, random.Random(1), 0
    for k in range(10):
        folder = tmp_path / str(k)
        asked, p = len(web.asked), process(web, folder)
        while len(web.asked) == asked and p.poll() is None: time.sleep(.002)
        time.sleep(rng.uniform(0, .6))
        p.send_signal(signal.SIGKILL); p.wait(); p.stderr.close()
        early += not (folder / "set").exists()
        assert not (folder / "set").exists() or whole(folder)
        p = process(web, folder)
        assert p.wait(90) == 0, p.stderr.read()
        p.stderr.close()
        assert whole(folder) and left(folder) == ["set", "set.tar"]
    assert early >= 5, "too few kills fell into the work for this to be a test"

@pytest.mark.parametrize("take", [{"set": "set"}, {"a": "a", "b": "b", "c": "c"}], ids=["one", "three"])
def test_killed_as_an_entry_appears_nothing_is_left_over(tmp_path, take):
    "A kill right after each renaming: what is whole has nothing beside it, what is not is finished by the next call."
    (archive := tmp_path / "set.tar").write_bytes(tar({f"{k}/x.bin": b"x" for k in take} | {"more/y.bin": b"y"}))
    for n in range(1, 2 * len(take) + 1):
        folder = tmp_path / f"at-{n}"
        code = (f"import os, sys; from mixrepro.download import unpack; done = []\n"
                f"def hook(event, args):\n"
                f"    if len(done) == {n} and event.startswith(('open', 'os.', 'shutil.')): os._exit(9)\n"
                f"    if event == 'os.rename': done.append(args)\n"
                f"sys.addaudithook(hook); unpack({str(archive)!r}, {str(folder)!r}, {take!r}); os._exit(9)")
        assert subprocess.run([sys.executable, "-c", code]).returncode == 9
        if not all((folder / at).exists() for at in take.values()): D.unpack(archive, folder, take)
        assert [f for f in left(folder) if ".replaced-" not in f] == sorted(take.values())


def test_two_processes_fetch_once(web, tmp_path):
    web.files["/set.tar"], web.pause = tar(FILES), .002
    both = [process(web, tmp_path) for _ in range(2)]
    said = [p.communicate(timeout=90)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert whole(tmp_path) and [path for path, *_ in web.asked] == ["/set.tar"]
    assert left(tmp_path) in (["set", "set.tar"], ["set", "set.replaced-1", "set.tar"])  # the script looks for the folder before it takes the lock


# ---- archives -------------------------------------------------------------------------------------------------------

def zipped(members, link=""):
    with zipfile.ZipFile(out := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in members.items(): z.writestr(name, content)
        if link: m = zipfile.ZipInfo("set/link"); m.external_attr = 0o120777 << 16; z.writestr(m, link)
    return out.getvalue()


GOOD = {"set/a.bin": b"a" * 2_000_000, "set/below/b.bin": b"b" * 700, "other/c.bin": b"c"}


@pytest.mark.parametrize("name, data", [("s.tar", tar(GOOD)), ("s.tar.gz", tar(GOOD, gz=True)), ("s.zip", zipped(GOOD)), ("wrapped.tar", tar({f"w/x/{k}": v for k, v in GOOD.items()}))])
def test_an_archive_is_unpacked(tmp_path, name, data):
    (archive := tmp_path / name).write_bytes(data)
    assert unpack(archive, tmp_path / "out", {"set": "deep/set"}) == [tmp_path / "out" / "deep" / "set"]
    assert (tmp_path / "out/deep/set/a.bin").read_bytes() == GOOD["set/a.bin"] and (tmp_path / "out/deep/set/below/b.bin").read_bytes() == b"b" * 700
    assert left(tmp_path / "out") == ["deep"]
    if "wrapped" not in name: assert [p.name for p in unpack(archive, tmp_path / "all")] == ["other", "set"]


NOISE = random.Random(0).randbytes(20_000)


def tarred_by(how):
    with tarfile.open(fileobj=(out := io.BytesIO()), mode=f"w:{how}") as t:
        (m := tarfile.TarInfo("set/a.bin")).size = len(NOISE)
        t.addfile(m, io.BytesIO(NOISE))
    return out.getvalue()


def zipped_by(how):
    with zipfile.ZipFile(out := io.BytesIO(), "w", how) as z: z.writestr("set/a.bin", NOISE)
    return out.getvalue()


OUTSIDE, LINK, DEVICE, DAMAGED = "would be written outside the folder", "is a link", "is a device", "is damaged"
EVIL = {
    "tar ../": (tar(GOOD | {"../x": b"x"}), OUTSIDE), "tar in the middle": (tar(GOOD | {"set/../../x": b"x"}), OUTSIDE), "tar absolute": (tar(GOOD | {"/x": b"x"}), OUTSIDE),
    "tar.gz ../": (tar(GOOD | {"../x": b"x"}, gz=True), OUTSIDE),
    "zip ../": (zipped(GOOD | {"../x": b"x"}), OUTSIDE), "zip absolute": (zipped(GOOD | {"/x": b"x"}), OUTSIDE), "zip drive": (zipped(GOOD | {"C:\\x": b"x"}), OUTSIDE),
    "zip backslashes": (zipped(GOOD | {"..\\x": b"x"}), OUTSIDE), "zip link": (zipped(GOOD, link="/etc/passwd"), LINK),
    "symbolic link outside": (tar(GOOD, type=tarfile.SYMTYPE, linkname="../../../etc/passwd"), LINK), "symbolic link absolute": (tar(GOOD, type=tarfile.SYMTYPE, linkname="/etc"), LINK),
    "symbolic link inside": (tar(GOOD, type=tarfile.SYMTYPE, linkname="a.bin"), LINK), "hard link outside": (tar(GOOD, type=tarfile.LNKTYPE, linkname="/etc/passwd"), LINK),
    "device": (tar(GOOD, type=tarfile.CHRTYPE), DEVICE), "fifo": (tar(GOOD, type=tarfile.FIFOTYPE), DEVICE), "block device": (tar(GOOD, type=tarfile.BLKTYPE, name="dev"), DEVICE),
    "cut tar": (tar(GOOD)[:1_500_000], DAMAGED), "tar cut between members": (tar(GOOD)[:512 + 2_000_384], DAMAGED), "cut tar.gz": (tar(GOOD, gz=True)[:-300], DAMAGED),
    "cut zip": (zipped(GOOD)[:-60], DAMAGED), "page": (b"<!DOCTYPE html><html></html>", DAMAGED), "nothing": (b"", DAMAGED), "zeros": (bytes(4096), "holds no set|is damaged"),
    "a file where a folder was": (tar({"set": b"x", "set/a": b"y"}), DAMAGED + "|could not write"), "altered zip": (zipped(GOOD).replace(b"below/b.bin", b"below/b.bim", 1), DAMAGED),
    "another set": (tar({"another/a.bin": b""}), "holds no set: it is another data set"),
}
EVIL["altered tar.gz"] = (bytes(b ^ (255 if 900 < i < 905 else 0) for i, b in enumerate(tar(GOOD, gz=True))), DAMAGED)

for name, data in (("tar.xz", tarred_by("xz")), ("zip of LZMA", zipped_by(zipfile.ZIP_LZMA))):
    EVIL[f"altered {name}"] = (bytes(b ^ (255 if len(data) // 2 < i < len(data) // 2 + 5 else 0) for i, b in enumerate(data)), DAMAGED)


@pytest.mark.parametrize("what", EVIL)
def test_a_hostile_or_damaged_archive_leaves_nothing(tmp_path, what):
    data, why = EVIL[what]
    (archive := tmp_path / f"set.{'zip' if 'zip' in what else 'tar.gz' if 'gz' in what else 'tar'}").write_bytes(data)
    folder = tmp_path / "here" / "data"
    before = set(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError)) as e: unpack(archive, folder, {"set": "set"})
    assert re.search(why, str(e.value)) and str(archive) in str(e.value) or "could not write" in str(e.value)
    assert "\n" not in str(e.value) and left(folder) == []
    assert {p for p in set(tmp_path.rglob("*")) - before if p.suffix != ".lock"} == {folder.parent, folder}


def test_what_a_check_refuses_does_not_appear(tmp_path):
    (archive := tmp_path / "s.tar").write_bytes(tar(GOOD))
    with pytest.raises(ValueError, match="s.tar is not the data set: a.bin is too long"): unpack(archive, tmp_path / "o", {"set": "set"}, lambda path, name: "a.bin is too long")
    assert left(tmp_path / "o") == []
    seen = []
    unpack(archive, tmp_path / "o", {"set": "x/set"}, lambda path, name: seen.append((sorted(p.name for p in path.iterdir()), name)))
    assert seen == [(["a.bin", "below"], "x/set")]


def test_what_stood_there_is_kept_and_leftovers_are_swept(tmp_path):
    (archive := tmp_path / "s.tar").write_bytes(tar(GOOD))
    (tmp_path / "o" / "set").mkdir(parents=True); (tmp_path / "o" / "set" / "mine").write_text("mine")
    (tmp_path / "o" / ".s.tar.unpacking" / "set").mkdir(parents=True); (tmp_path / "o" / ".s.tar.unpacking" / "set" / "a.bin").write_text("half")
    lines = []
    for _ in range(2): unpack(archive, tmp_path / "o", {"set": "set"}, say=lines.append)
    assert left(tmp_path / "o") == ["set", "set.replaced-1", "set.replaced-2"] and (tmp_path / "o/set.replaced-1/mine").read_text() == "mine"
    assert sum("was not the whole data set: it is kept as" in line for line in lines) == 2


def test_an_archive_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no archive at .*: name a .zip or .tar file"): unpack(tmp_path / "s.tar", tmp_path)


def test_a_full_disk_while_unpacking(tmp_path, monkeypatch):
    (archive := tmp_path / "s.tar").write_bytes(tar(GOOD))
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(D.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="could not write .*o: no space left on device; free some space and run again"): unpack(archive, tmp_path / "o")
    assert left(tmp_path / "o") == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", "C:", "\\", "..\\b", "/"]), min_size=1, max_size=6).map("/".join))
def test_no_name_leads_out(name):
    "Whatever a member is called, it is refused or its path stays below the folder, also where backslashes separate."
    from pathlib import PureWindowsPath
    try: path = D.inside(Path("a.tar"), name)
    except ValueError as e: assert "would be written outside the folder" in str(e); return
    root = os.path.realpath("/somewhere/else")
    assert os.path.commonpath([root, os.path.normpath(os.path.join(root, path))]) == root
    windows = PureWindowsPath("D:/somewhere") / PureWindowsPath(str(path))
    assert windows.parts[:2] == ("D:\\", "somewhere") and ".." not in windows.parts
