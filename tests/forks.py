"""The command line in forks of one process that has imported everything: a start of Python costs more than most answers."""

import contextlib
import gc
import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path


class Forks:
    "A process that waits for commands; each runs in a fork of it, in the folder and with the variables that it is given."

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def run(self, args, cwd, env, timeout) -> subprocess.CompletedProcess:
        with tempfile.TemporaryDirectory() as folder:
            out, err = (Path(folder) / name for name in ("out", "err"))
            print(json.dumps([args, str(cwd), env, str(out), str(err)]), file=self.process.stdin, flush=True)
            if not select.select([self.process.stdout], [], [], timeout)[0]:
                self.end()
                raise subprocess.TimeoutExpired(args, timeout, out.read_bytes(), err.read_bytes())
            return subprocess.CompletedProcess(args, int(self.process.stdout.readline()), out.read_text(), err.read_text())

    def end(self):
        "With everything that was started."
        with contextlib.suppress(ProcessLookupError): os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def child(args, cwd, env, out, err):
    "The command, as if it were started anew."
    from mixrepro import cli
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, file in enumerate((os.devnull, out, err)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, io.TextIOWrapper(os.fdopen(number, "wb", closefd=False), encoding="utf-8", line_buffering=True))
    sys.argv = ["mixrepro", *args]
    try: cli.main()
    except SystemExit as end: return end.code or 0


if __name__ == "__main__":
    from mixrepro import cli  # noqa: F401
    from mixrepro.data import fetch  # noqa: F401  with torchvision
    from mixrepro.workflow import drawn, jobs, study  # noqa: F401
    drawn.code_of_notebook(drawn.as_function(["from mixrepro.workflow.study import Study\nStudy"]))  # reads the package's code
    gc.freeze()  # what is loaded by now is not looked through by any fork
    for line in sys.stdin:
        if not (one := os.fork()):
            code = 1
            try: code = child(*json.loads(line))
            finally: os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]), flush=True)
