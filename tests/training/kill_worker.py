"""Train runs in children of one warm process, end their lives early, and say what came of them.

Reads a JSON list of cases {"corpus", "configs", "runs", "changes", "off"} on stdin; argv: a folder.
The configurations of a case are trained one after the other, once left alone, then once for each of
its runs, which is a list of how its lives end before the last one:
  {"share": x}                   kill -9 after a share of an uninterrupted life
  {"step": n, "after": x}        kill -9 after x steps' time in the n-th step of the life
  {"state": name}                kill -9 after state.json says so
  {"signal": n}                  SIGTERM after the n-th sign of life, SIGINT twice in the save
  {"change": n, "by": thread, "power": bool}
                                 kill -9 or a power cut at a thread's n-th change on the disk
  {"cut_to": k}                  no life: what a kill after the save of step k leaves behind
`changes`: {"power", "every"} adds a run for every change on the disk, or for each so many of a
thread's. `off` is a guard of guards_off.py that the runs live without. Prints a JSON list of lists:
of each run, how it was killed, what differs from the one left alone, and its lives.
"""

import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from disk import Disk, cut_power
from guards_off import OFF

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec import rundir
from llmtrain.spec.build import build
from llmtrain.spec.errors import InterruptedRunError
from llmtrain.spec.plan import run_id
from llmtrain.spec.settings import TrainConfig
from llmtrain.training import checkpoint, run
from llmtrain.training.checkpoint import is_sound
from llmtrain.training.loop import train
from llmtrain.training.progress import Progress
from llmtrain.training.session import Session

Kill = dict[str, Any]
TIMED = ("train/tokens_per_second", "train/memory_gb", "train/mfu")
MACHINE = (
    "seconds", "tokens_per_second", "mfu", "memory_bytes", "energy_j", "metrics_sha256", "sha256",
)  # fmt: skip
make_record = run.make_record


def bits(value: Any) -> Iterator[bytes]:
    """Yield every bit of a nested state but the wall seconds."""
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.detach().contiguous().view(-1).numpy().tobytes()
    elif isinstance(value, dict):
        items = [item for item in value.items() if item[0] != "seconds"]
        yield from (part for pair in items for item in pair for part in bits(item))
    elif isinstance(value, list | tuple):
        yield from (part for item in value for part in bits(item))
    else:
        yield repr(value).encode()


def beside(config: TrainConfig, name: str) -> Path:
    """Return a file beside the runs, where no change is counted."""
    return Path(config.runs_root).parent / name


def make_record_with_hash(session: Session, *rest: Any, **named: Any) -> Any:
    """Leave a hash of the final state beside the runs."""
    digest = hashlib.sha256(b"\0".join(bits(session.state()))).hexdigest()
    beside(session.config, f"{run_id(session.config)}.sha256").write_text(digest)
    return make_record(session, *rest, **named)


def came_to(config: TrainConfig) -> dict[str, Any]:
    """Return everything a run left that no clock decides."""
    folder = rundir.run_directory(config)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    record = json.loads((folder / "record.json").read_text())
    kept = folder.glob("branches/step-*/tensors.safetensors")
    left = [path.name for name in (".*.tmp", ".tmp-*", ".old-*") for path in folder.rglob(name)]
    return {
        "metrics": [{k: v for k, v in row.items() if k not in TIMED} for row in rows],
        "final state": beside(config, f"{folder.name}.sha256").read_text(),
        "record": {k: v for k, v in record.items() if k not in MACHINE},
        "branches": {p.parts[-2]: hashlib.sha256(p.read_bytes()).hexdigest() for p in kept},
        "state.json": rundir.read_state(folder)[0],
        "leftovers": left,
    }


def checkpoints(config: TrainConfig) -> list[tuple[int, bool]]:
    """Return the step of every checkpoint that is there, and whether it is whole."""
    found = (rundir.run_directory(config) / "checkpoints").glob("step-*")
    return sorted((int(p.name[5:]), is_sound(p, run_id=run_id(config))) for p in found)


class Case:
    """Some configurations, and what became of them in folders of their own."""

    def __init__(self, root: Path, asked: dict[str, Any]) -> None:
        self.root, self.off = root, asked["off"]
        self.corpus = open_corpus(Path(asked["corpus"]))
        self.configs = [build(TrainConfig, raw) for raw in asked["configs"]]
        for config in self.placed("warm"):
            train(config, self.corpus)
        begin = time.monotonic()
        assert self.live(self.placed("whole"), {}) == 0
        self.whole_s = time.monotonic() - begin
        self.whole = [came_to(config) for config in self.placed("whole")]

    def placed(self, name: str) -> list[TrainConfig]:
        """Return the configurations with a folder of their own."""
        (self.root / name / "runs").mkdir(parents=True, exist_ok=True)
        return [replace(c, runs_root=str(self.root / name / "runs")) for c in self.configs]

    def run(self, name: str, kills: list[Kill]) -> dict[str, Any]:
        """Return what a run with these kills came to beside the one left alone."""
        configs, lives = self.placed(name), []
        log = self.root / name / "steps.log"
        for kill in [*kills, {}]:
            if "cut_to" in kill:
                self.cut_to(kill["cut_to"], name)
                continue
            there = checkpoints(configs[-1])
            log.write_text("")
            status = self.live(configs, kill, off=self.off)
            steps = [int(step) for step in log.read_text().split()]
            lives.append({"status": status, "checkpoints": there, "steps": steps})
        differs = ["it did not finish"]
        if status == 0:
            pairs = zip(map(came_to, configs), self.whole, strict=True)
            differs = sorted({k for ours, whole in pairs for k in ours if ours[k] != whole[k]})
        shutil.rmtree(self.root / name)
        return {"kills": kills, "differs": differs, "lives": lives}

    def changes(self, *, power: bool, every: int) -> list[list[Kill]]:
        """Return a run for each change that an uninterrupted one makes on the disk."""
        configs = self.placed("count")
        none = {"change": 0, "by": "", "power": power}
        assert self.live(configs, none, off=self.off) == 0
        counts = json.loads(beside(configs[0], "changes").read_text())
        return [
            [{"change": i, "by": by, "power": power}]
            for by, n_changes in counts.items()
            for i in range(1, n_changes + 1, every)
        ]

    def cut_to(self, step: int, name: str) -> None:
        """Leave what a kill after the save of a step leaves: its checkpoint, and later rows."""

        def other_steps(folder: str, names: list[str]) -> list[str]:
            there = Path(folder).name == "checkpoints"
            return [name for name in names if there and name != f"step-{step:09d}"]

        shutil.copytree(self.stored, self.root / name, dirs_exist_ok=True, ignore=other_steps)

    @cached_property
    def stored(self) -> Path:
        """Runs of which the last has a checkpoint of every step."""
        *before, last = self.placed("stored")
        for config in before:
            train(config, self.corpus)

        def stop(progress: Progress) -> None:
            if progress.step == progress.n_steps:  # the last step is saved for a signal alone
                os.kill(os.getpid(), signal.SIGTERM)

        every = replace(last.checkpoint, every_steps=1, keep=1000)
        try:
            train(replace(last, checkpoint=every), self.corpus, on_progress=stop)
        except InterruptedRunError:
            return self.root / "stored"
        raise AssertionError

    def live(self, configs: list[TrainConfig], kill: Kill, *, off: str | None = None) -> int:
        """Train in a child that dies as told; return its status."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                on_step = self.arm(configs[0], kill)
                OFF.get(off, lambda: None)()
                for config in configs:
                    train(config, self.corpus, on_step=on_step)
                code = 0
                beside(configs[0], "changes").write_text(json.dumps(Disk.counts))
            except InterruptedRunError as error:
                code = error.exit_code
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        if "share" in kill:
            time.sleep(kill["share"] * self.whole_s)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if kill.get("power") and status == signal.SIGKILL:
            cut_power(beside(configs[0], "cut"))
        return status

    def arm(self, config: TrainConfig, kill: Kill) -> Callable[[], None]:
        """Set up the end of this process and a log of its steps; return what each step calls."""
        log = beside(config, "steps.log").open("w")
        train_step, write_state = Session.train_step, rundir.write_state
        if "change" in kill:
            cut = beside(config, "cut") if kill["power"] else None
            Disk(Path(config.runs_root), last=kill["change"], by=kill["by"], cut=cut)
        elif not kill:
            os.fsync = lambda _descriptor: None  # nothing will happen to what it writes

        steps = itertools.count(1)

        def noted_step(session: Session) -> None:
            if next(steps) == kill.get("step"):  # at any instruction: no one handles this signal
                step_s = self.whole_s / (session.plan.n_steps + 18)  # a life is more than its steps
                signal.setitimer(signal.ITIMER_REAL, kill["after"] * step_s + 1e-6)
            print(session.step, file=log, flush=True)
            train_step(session)

        def noted_state(directory: Path, state: str, *rest: Any, **named: Any) -> None:
            write_state(directory, state, *rest, **named)
            if state == kill.get("state"):
                os.kill(os.getpid(), signal.SIGKILL)

        signs = itertools.count(1)

        def on_step() -> None:
            if next(signs) == kill.get("signal"):
                os.kill(os.getpid(), signal.SIGTERM)

        def interrupted_save(tensors: Any, path: Path) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            save_file(tensors, path)
            os.kill(os.getpid(), signal.SIGINT)

        Session.train_step = noted_step  # type: ignore[method-assign]
        rundir.write_state = noted_state
        save_file = checkpoint.save_file
        if "signal" in kill:
            checkpoint.save_file = interrupted_save
        return on_step


if __name__ == "__main__":
    torch.set_num_threads(1)
    run.make_record = make_record_with_hash
    answers = []
    for i, asked in enumerate(json.load(sys.stdin)):
        case = Case(Path(sys.argv[1]) / str(i), asked)
        runs = asked["runs"]
        if asked["changes"]:
            runs += case.changes(**asked["changes"])
        answers.append([case.run(str(j), kills) for j, kills in enumerate(runs)])
    print(json.dumps(answers))
