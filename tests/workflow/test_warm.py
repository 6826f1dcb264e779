"""Kernels that are forks of a process that has imported already: they work as fresh ones do, end with whoever started them, and are refused where they would differ."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from mixrepro.workflow import warm

pytestmark = pytest.mark.skipif(not warm.able(), reason="this system does not fork as is needed")

SERVER = "import sys; from mixrepro.workflow.warm import serve; serve(*sys.argv[1:], modules=('ipykernel.kernelapp', 'wave'), called=())"
FORKED = "sys.orig_argv[1] == '-c' and 'wave' in sys.modules"  # a fresh kernel has another command line, and no reason to import that


def until(what, seconds: float = 15) -> bool:
    "Whether something becomes true in time."
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end: time.sleep(.02)
    return what()


def lives(pid: int) -> bool:
    "Whether a process is there and not only waits to be reaped."
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError: return False


class Served:
    "A server of a folder with one source file, and kernels that ask it."
    def __init__(self, folder: Path) -> None:
        self.folder, self.package, self.env = folder, folder / "package", dict(os.environ)  # pytest changes its own all the time
        self.package.mkdir()
        (self.package / "constants.py").write_text("alpha = 1\n")
        self.address = f"warm-test-{os.getpid()}-{os.urandom(4).hex()}"
        self.server = subprocess.Popen([sys.executable, "-c", SERVER, self.address, str(os.getpid()), str(self.package)], env=self.env)
        spec = dict(argv=warm.launched(self.address), display_name="python3", language="python", metadata=dict(debugger=False))
        (folder / "kernels" / "python3").mkdir(parents=True)
        (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
        assert until(self.listens)

    def listens(self) -> bool: return f"@{self.address}" in Path("/proc/net/unix").read_text()

    @contextlib.contextmanager
    def kernel(self, **env: str):
        "A kernel, and what it answers."
        manager = KernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(self.folder / "kernels")]))
        manager.start_kernel(env=self.env | env)
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            yield Kernel(manager, client)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)

    def end(self) -> None:
        self.server.terminate()
        self.server.wait()


class Kernel:
    def __init__(self, manager: KernelManager, client) -> None: self.manager, self.client = manager, client

    @property
    def launcher(self) -> int: return self.manager.provisioner.pid

    def __call__(self, expression: str):
        "The value of an expression, as the kernel gives it."
        reply = self.client.execute(f"import os, sys, time", user_expressions=dict(it=f"__import__('json').dumps({expression})"), reply=True, timeout=30)
        it = reply["content"]["user_expressions"]["it"]
        return json.loads(eval(it["data"]["text/plain"])) if it["status"] == "ok" else it["ename"]


@pytest.fixture
def served(tmp_path):
    it = Served(tmp_path)
    yield it
    it.end()


def test_a_forked_kernel_works_as_a_fresh_one(served, capfd, tmp_path):
    with served.kernel() as kernel:
        pid, parent = kernel("[os.getpid(), os.getppid()]")
        assert kernel(FORKED) is True and parent == served.server.pid != kernel.launcher
        assert kernel("os.getcwd()") == os.getcwd() and kernel("sys.path[0]") == ""
        kernel.client.execute("print('said by a cell'); os.write(1, b'said by the process\\n')", reply=True, timeout=30)
        # An interrupt ends a cell, not the kernel.
        asked = kernel.client.execute(f"open({str(begun := tmp_path / 'begun')!r}, 'w').close(); time.sleep(60)", stop_on_error=False)
        assert until(begun.exists)
        kernel.manager.interrupt_kernel()
        reply = kernel.client.get_shell_msg(timeout=30)
        assert reply["parent_header"]["msg_id"] == asked and reply["content"]["ename"] == "KeyboardInterrupt"
        assert kernel("6 * 7") == 42
    assert not lives(pid) and not lives(kernel.launcher)
    assert "said by the process" in capfd.readouterr().out  # it writes where its launcher would
    assert served.server.poll() is None


def test_two_kernels_share_nothing_that_they_change(served):
    with served.kernel() as one, served.kernel() as two:
        one.client.execute("import os, sys; os.environ['MINE'] = '1'; sys.modules['wave'].MINE = 1; mine = 1", reply=True, timeout=30)
        assert one("[os.environ['MINE'], sys.modules['wave'].MINE, mine]") == ["1", 1, 1]
        assert two("[os.environ.get('MINE'), hasattr(sys.modules['wave'], 'MINE'), 'mine' in globals()]") == [None, False, False]
        assert one("__import__('random').random()") != two("__import__('random').random()")  # as two fresh ones


@pytest.mark.parametrize("how, status", [("os._exit(3)", 3), ("os.kill(os.getpid(), 11)", 139)])
def test_the_launcher_ends_as_the_kernel_does(served, how, status):
    with served.kernel() as kernel:
        kernel.client.execute(f"import os; {how}")
        assert kernel.manager.provisioner.process.wait(15) == status
    assert served.server.poll() is None


def test_a_kernel_goes_with_its_launcher(served):
    with served.kernel() as kernel, served.kernel() as other:
        pid = kernel("os.getpid()")
        os.kill(kernel.launcher, signal.SIGKILL)
        assert until(lambda: not lives(pid))
        assert other(FORKED) is True


def test_a_kernel_goes_with_the_server(served):
    with served.kernel() as kernel:
        pid = kernel("os.getpid()")
        served.server.kill()
        assert kernel.manager.provisioner.process.wait(15) != 0
        assert until(lambda: not lives(pid))
    with served.kernel() as kernel: assert kernel(FORKED) is False  # nobody forks any more, so it is a fresh one


@pytest.mark.parametrize("change", ["edited", "added"])
def test_code_that_was_changed_since_is_imported_anew(served, change):
    with served.kernel() as kernel: assert kernel(FORKED) is True
    (served.package / ("constants.py" if change == "edited" else "more.py")).write_text("alpha = 8\n")
    with served.kernel() as kernel: assert kernel(FORKED) is False


def test_a_change_of_a_file_is_seen_whatever_its_kind(tmp_path):
    file = tmp_path / "constants.py"
    file.write_text("alpha = 1\n")
    before, changes = warm.sources(tmp_path), (lambda: file.write_text("alpha = 2\n"), lambda: os.utime(file, ns=(1, 1)), file.unlink)
    assert warm.sources(tmp_path) == before
    for change in changes:
        change()
        assert warm.sources(tmp_path) != before


def test_another_environment_gets_a_fresh_kernel(served):
    with served.kernel(OMP_NUM_THREADS="3") as kernel: assert kernel(f"[{FORKED}, os.environ['OMP_NUM_THREADS']]") == [False, "3"]
    with served.kernel(SHLVL="9") as kernel: assert kernel(f"[{FORKED}, os.environ['SHLVL']]") == [True, "9"]


NONSENSE = (b"", b"\0\0\0\2[]", b"\0\0\0\2{}", b"\xff\xff\xff\xffxx", b"\0\0\0\5{", b"\0\0\0\3\xff\xff\xff", b"\0\0\0\x0b{\"env\": {}}",
            b"\0\0\0\x0a{\"env\": 1}")


def test_nonsense_gets_no_kernel_and_harms_nobody(served):
    for words in NONSENSE:
        with socket.socket(socket.AF_UNIX) as conn:
            conn.connect("\0" + served.address)
            conn.sendall(words)
            conn.shutdown(socket.SHUT_WR)
            assert warm.said(conn) in (0, None), words
    with served.kernel() as kernel: assert kernel(FORKED) is True


def test_another_user_gets_none(monkeypatch):
    one, two = socket.socketpair(socket.AF_UNIX)
    server = warm.Server(f"warm-test-{os.getpid()}-user", os.getppid(), Path(__file__).parent / "nothing")
    question = dict(argv=[], cwd="/", env=dict(os.environ))
    assert server.trusted(one, question)
    monkeypatch.setattr(warm.os, "getuid", lambda: 4711)
    assert not server.trusted(one, question)
    server.at.close()


def test_the_server_ends_with_what_it_serves(tmp_path):
    before = Path("/proc/net/unix").read_text().count("@mixrepro-")
    log = tmp_path / "work" / "warm.log"
    with pytest.raises(KeyError), warm.serving(dict(os.environ), tmp_path, warm.ENOUGH, log) as address:
        assert until(lambda: f"@{address}" in Path("/proc/net/unix").read_text())
        raise KeyError("a reproduction that fails")
    assert f"@{address}" not in Path("/proc/net/unix").read_text()
    with warm.serving({}, tmp_path, 0, log) as address: assert address == "" and warm.launched("")[1:4] == ["-P", warm.__file__, "alone"]


@pytest.fixture
def hidden(tmp_path) -> dict:
    "An environment in which Python finds another package of the name first, as in a clone that is not the installed one."
    (tmp_path / "mixrepro").mkdir()
    for name in ("__init__", "core"): (tmp_path / "mixrepro" / f"{name}.py").touch()
    return dict(os.environ) | dict(PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))


def test_a_fresh_kernel_has_the_package_that_has_planned(hidden, tmp_path):
    (at := tmp_path / "kernels" / "python3").mkdir(parents=True)
    (at / "kernel.json").write_text(json.dumps(dict(argv=warm.launched(""), display_name="python3", language="python")))
    manager = KernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(at.parent)]))
    manager.start_kernel(env=hidden, cwd=str(tmp_path))
    (client := manager.client()).start_channels()
    try:
        client.wait_for_ready(timeout=60)
        kernel = Kernel(manager, client)
        assert kernel("__import__('mixrepro.core').core.__file__") == str(Path(warm.__file__).parents[1] / "core.py")
        assert kernel("sys.path.count('')") == 1  # a person's own modules are found as ever
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_forks_have_the_package_that_has_planned(hidden, tmp_path):
    "The server, whose parent is gone already."
    code = f"import runpy, sys; runpy.run_path({warm.__file__!r})['serve']('warm-test-{os.getpid()}-own', '0', '.', ('mixrepro.core',), ()); print(sys.modules['mixrepro.core'].__file__)"
    done = subprocess.run([sys.executable, "-c", code], env=hidden, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(Path(warm.__file__).parents[1] / "core.py"), done.stdout + done.stderr


def test_a_kernel_of_linux_without_numbers_for_processes_forks_nothing(tmp_path, monkeypatch):
    "The server ended at its first fork, and the notebook that had asked began anew."
    def lacking(pid): raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    monkeypatch.setattr(os, "pidfd_open", lacking)
    with warm.serving(dict(os.environ), tmp_path, warm.ENOUGH, tmp_path / "warm.log") as address: assert address == ""


def test_a_server_that_cannot_work_says_why(tmp_path, capfd):
    (tmp_path / "matplotlib.py").write_text("raise RuntimeError('no pictures here')\n")  # imported in place of the library
    env = dict(os.environ) | dict(PYTHONPATH=str(tmp_path))
    with warm.serving(env, tmp_path, warm.ENOUGH, log := tmp_path / "warm.log"):
        server, = [p for p in psutil.Process().children() if "serve" in p.cmdline()]
        assert until(lambda: server.status() == psutil.STATUS_ZOMBIE, 60) and "no pictures here" in log.read_text()
    assert capfd.readouterr().err == f"note: no kernels are forked any more, each starts alone: {log} says why\n"
