"""The README's line for a cluster, on a real SLURM of one node that is started here: make test-slurm (python -m pytest -m slurm tests/test_slurm.py)."""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest

from conftest import COMMAND, ROOT, make_project

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun", "scancel")
MISSING = [p for p in PROGRAMS if not shutil.which(p)]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: on Debian apt-get install slurmctld slurmd slurm-client munge"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd starts jobs as their owners, so only root can run it"),
    pytest.mark.skipif(not importlib.util.find_spec("snakemake_executor_plugin_slurm"), reason="pip install -c constraints.txt -e '.[cluster]' brings the plugin"),
]
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={at}/munge.socket
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool
SlurmctldPidFile={at}/slurmctld.pid
SlurmdPidFile={at}/slurmd.pid
SlurmctldLogFile={at}/slurmctld.log
SlurmdLogFile={at}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets: s.close()
    return ports


CLIENTS = Path("/run/slurm/conf")  # where a node without /etc/slurm/slurm.conf keeps what it was told; srun inside a job looks nowhere else


@pytest.fixture(scope="module")
def cluster():
    "A SLURM of one node, which ends with the tests."
    if subprocess.run(["sinfo", "-h"], capture_output=True, timeout=60).returncode == 0: pytest.skip("this machine belongs to a cluster already")
    if CLIENTS.exists() or Path("/etc/slurm/slurm.conf").exists(): pytest.skip("SLURM is configured here and does not answer: start it, or take its configuration away")
    at = Path(tempfile.mkdtemp(prefix="slurm-"))
    at.chmod(0o755)  # munge wants a path that everybody may enter
    for name in ("state", "spool"): (at / name).mkdir()
    (at / "munge.key").write_bytes(os.urandom(1024)); (at / "munge.key").chmod(0o400)
    host, conf = socket.gethostname().split(".")[0], str(at / "slurm.conf")
    (at / "slurm.conf").write_text(CONF.format(at=at, host=host, ports=free_ports(2), cpus=os.cpu_count()))
    CLIENTS.parent.mkdir(exist_ok=True); CLIENTS.symlink_to(at)
    munge = [f"--{k}={at / v}" for k, v in {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}.items()]
    started = []
    def start(*command):
        with open(at / f"{command[0]}.out", "w") as out: started.append(subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True))
    def said(): return "\n".join(f"{f.name}: {f.read_text(errors='replace')[-1500:]}" for f in [*at.glob("*.out"), *at.glob("*.log")])
    try:
        start("munged", "--foreground", "--force", *munge)
        start("slurmctld", "-D", "-f", conf); start("slurmd", "-D", "-f", conf, "-N", host)
        for _ in range(60):
            state = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, timeout=60).stdout.strip()
            if state in ("idle", "mixed"): break
            assert all(p.poll() is None for p in started), said()
            time.sleep(1)
        else: pytest.fail(f"the node is {state or 'not there'}: {said()}")
        yield
    finally:
        for p in reversed(started): p.terminate()
        for p in started:
            try: p.wait(20)
            except subprocess.TimeoutExpired: p.kill()
        CLIENTS.unlink(); shutil.rmtree(at, ignore_errors=True)


def printed() -> list[str]:
    "The README's line for a cluster, at smoke scale."
    line = re.search(r"^\.venv/bin/(mixrepro reproduce --profile paper -- --executor slurm.*)$", (ROOT / "README.md").read_text(), re.M)[1]
    return line.replace("paper", "smoke").split()[2:]


def reproduce(ids: list[str], project: Path, *more) -> subprocess.CompletedProcess:
    "The command as it is printed, for a few artefacts; what this node needs otherwise stands in a profile, as a site's own settings do."
    command = [COMMAND, "reproduce", *ids, *printed(), *more]
    site = project.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "config.yaml").write_text("slurm-status-command: squeue\nslurm-init-seconds-before-status-checks: 5\n")  # no accounting here; no wait of 40 s
    env = {k: v for k, v in os.environ.items() if k != "MIXREPRO_HOME"} | dict(SNAKEMAKE_PROFILE=str(site))
    process = subprocess.Popen(list(map(str, command)), cwd=project, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    try: out, err = process.communicate(timeout=900)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # Snakemake too
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture(scope="module")
def reproduced(cluster, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    project = make_project(tmp_path_factory.mktemp("cluster") / "project")
    return project, reproduce(["vm-fig2", "mm-theorem1"], project)


def test_two_artefacts_by_the_command_as_it_is_printed(reproduced):
    project, done = reproduced
    log = (project / "runs/.workflow/snakemake.log").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-6000:]
    for id in ("varmixup/vm-fig2", "manifold_mixup/mm-theorem1"):
        for end in ("svg", "png", "csv", "md"): assert (project / f"figures/smoke/{id}.{end}").stat().st_size > 0
    assert (project / "figures/smoke/report.html").stat().st_size > 100_000
    submitted = re.findall(r"Job \d+ has been submitted with SLURM jobid \d+", log)
    trained = list((project / "runs/.workflow/stamps").iterdir())
    assert len(submitted) == len(trained) + 2, log[-6000:]  # every group and every notebook was a job of the cluster
    assert "Provided remote nodes: 100" in log
    assert "draw vm-fig2" in done.stderr and "[1/" in done.stderr
    assert not re.findall(r"=Resource", log)  # nothing but the nodes limits the cluster


def test_nothing_is_left_to_do_on_the_cluster_or_here(reproduced, cluster):
    project, _ = reproduced
    again = reproduce(["vm-fig2", "mm-theorem1"], project)
    assert again.returncode == 0 and "nothing to do" in again.stderr, again.stderr


def test_a_notebook_that_fails_on_the_cluster(cluster, tmp_path):
    project = make_project(tmp_path / "project")
    path = project / "nbs/manifold_mixup/mm-theorem1.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.cells.insert(3, nbformat.v4.new_code_cell("import os, sys\nraise ValueError(f\"{os.environ['MIXREPRO_HOME']} {sys.prefix} {'SLURM_JOB_ID' in os.environ}\")"))
    nbformat.write(nb, path)
    done = reproduce(["mm-theorem1"], project, "--verbose")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert last.startswith(f"mixrepro: mm-theorem1 failed (ValueError: {project} {sys.prefix} True)") and last.endswith("smoke-mm-theorem1.log"), last
    assert not (project / "figures").exists()
    (call,) = re.findall(r"sbatch call: (.+)", (project / "runs/.workflow/snakemake.log").read_text())
    named = {p for p in re.findall(r"(?<![\w/.])/[^\s'\",:)]+", call)}
    shared = (str(project), str(ROOT), sys.prefix, str(Path.home()))  # all that a job is told of: another node need not have this one's /tmp
    assert len(named) > 3 and all(p.startswith(shared) for p in named), named


def test_a_folder_that_a_clusters_shell_would_run(cluster, tmp_path):
    "The executors write paths into a shell's line as they are: such a folder is refused before anything is submitted."
    project = make_project(tmp_path / "$(touch X) b" / "project")
    done = reproduce(["mm-theorem1"], project)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "a cluster's jobs cannot name" in last and "move the project to a path of letters" in last, done.stderr
    assert not list(tmp_path.rglob("X")) and "submitted" not in (project / "runs/.workflow/snakemake.log").read_text()
