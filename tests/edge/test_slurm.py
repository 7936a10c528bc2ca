"""hydra/launcher=slurm against a real SLURM: controller and node on loopback in a temp folder."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from llmtrain.sweep.ledger import read_sweep

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
LIMIT_S = 400.0  # of a machine ten times slower, and crowded
SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"
SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=5
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
CELLS = [
    "sweep=isoflop",
    "sweep.name=mini",
    "sweep.budgets=[1e10,4e10]",
    "sweep.widths=[8,16,24]",
    "sweep.depths=[1]",
    "sweep.aspect_min=4",
    "sweep.sizes_per_budget=3",
    "sweep.span=2",
    "sweep.optimum_flops=1e9",
    "sweep.optimum_params=6e3",
    "sweep.seeds=[0]",
]
ON_SLURM = [
    "hydra/launcher=slurm",
    "hydra.launcher.n_tasks=2",
    "hydra.launcher.gpus_per_task=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.timeout_min=10",
]


class Cluster:
    """The programs of a SLURM cluster of one node."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.host = folder, socket.gethostname().partition(".")[0]
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        ports = dict(zip(("ctld_port", "d_port"), free_ports(2), strict=True))
        conf = self.folder / "slurm.conf"
        conf.write_text(SLURM_CONF.format(host=self.host, folder=self.folder, **ports))
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        os.environ["SLURM_CONF"] = str(conf)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid"}
        files |= {"log-file": "munge.log", "seed-file": "munge.seed"}
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self._daemon("munged", "--foreground", "--force", *options)
        wait_for((self.folder / "munge.socket").exists, "munge")
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D")
        wait_for(lambda: "IDLE" in self.scontrol("show", "node", self.host), "the node")

    def _daemon(self, *command: str) -> None:
        program = shutil.which(command[0], path=SBIN)
        assert program is not None
        with (self.folder / f"{command[0]}.out").open("wb") as out:
            self.daemons.append(
                subprocess.Popen([program, *command[1:]], stdout=out, stderr=subprocess.STDOUT)
            )

    def scontrol(self, *arguments: str) -> str:
        done = subprocess.run(
            ["scontrol", *arguments], check=False, capture_output=True, text=True, timeout=60
        )
        return done.stdout + done.stderr

    def queue(self) -> str:
        return subprocess.run(
            ["squeue", "--array", "--noheader", "--format=%i %T %r"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def stop(self) -> None:
        subprocess.run(["scancel", "--user=root"], check=False, timeout=60)
        with_deadline = time.monotonic() + 40
        while self.queue() and time.monotonic() < with_deadline:
            time.sleep(0.5)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {LIMIT_S} s for {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    missing = [name for name in PROGRAMS if shutil.which(name, path=SBIN) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts tasks as their user, so it needs root")
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    before = os.environ.get("SLURM_CONF")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def losses(folder: Path) -> dict[str, float]:
    found = folder.glob("*/record.json")
    return {path.parent.name: json.loads(path.read_text())["val_loss"] for path in found}


def submit(cli, *arguments: str) -> str:
    done = cli("train.py", *arguments, *ON_SLURM)
    assert done.returncode == 0, done.stderr
    (job,) = re.findall(r"^job (\d+): ", done.stdout, re.MULTILINE)
    return job


def logs(folder: Path) -> str:
    files = [*sorted(folder.glob("slurm/*.out")), *sorted(folder.glob("slurm/*.err"))]
    return "\n".join(f"{path.name}\n{path.read_text()}" for path in files)


def in_training(folder: Path, count: int) -> bool:
    """Return whether so many cells are at work that have more than half of it before them."""
    found = read_sweep(folder) if folder.is_dir() else []
    running = [c for c in found if c.state == "running"]
    return sum(0 < c.flops_done < 0.5 * c.facts["flops"] for c in running) >= count


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_a_drained_and_requeued_array_ends_with_the_records_of_the_pool(
    cluster, cli, tiny_overrides, tmp_path
):
    arguments = [*tiny_overrides, *CELLS]
    pool = cli("train.py", *arguments, "runs_root=pool")
    assert pool.returncode == 0, pool.stderr
    expected = losses(tmp_path / "pool/mini")
    assert len(expected) == 6

    job, folder = submit(cli, *arguments), tmp_path / "runs/mini"
    try:
        wait_for(lambda: in_training(folder, 2), "the first cells")
        cluster.scontrol("update", f"nodename={cluster.host}", "state=drain", "reason=test")
        cluster.scontrol("requeue", f"{job}_0")  # as an administrator or a preemption does
        # As SLURM warns before the time limit: this task saves and puts itself back.
        subprocess.run(["scancel", "--signal=USR2", f"{job}_1"], check=True, timeout=60)
        wait_for(lambda: cluster.queue().count("PENDING") == 2, "both tasks to wait again")
        assert len(losses(folder)) < 6
        assert len(list(folder.glob("*/checkpoints/step-*"))) == 2
        cluster.scontrol("update", f"nodename={cluster.host}", "state=resume")
        wait_for(lambda: not cluster.queue(), "the array to end")
    finally:
        print(logs(folder))
    assert losses(folder) == expected
    trained = re.findall(r"^\[\d/\d\] (\S+) +N", logs(folder), re.MULTILINE)
    assert sorted(trained) == sorted(expected)  # each once
    assert "SLURM is asked to start this task again" in logs(folder)
    assert set(re.findall(r"on (\d+) workers?\b", logs(folder))) == {"1"}  # its share of the node


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_a_cancelled_task_saves_and_does_not_come_back(cluster, cli, tiny_overrides, tmp_path):
    job = submit(cli, "-m", *tiny_overrides, "budget.flops=4e10")
    folder = tmp_path / "runs/single"
    wait_for(lambda: in_training(folder, 1), "the cell")
    subprocess.run(["scancel", job], check=True, timeout=60)
    wait_for(lambda: not cluster.queue(), "the task to leave")
    assert "SLURM is asked to start this task again" not in logs(folder)
    assert list(folder.glob("*/checkpoints/step-*")), logs(folder)
    again = cli("train.py", "-m", *tiny_overrides, "budget.flops=4e10")
    assert again.returncode == 0, again.stderr
    assert len(losses(folder)) == 1
