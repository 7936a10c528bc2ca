"""The process that talks to wandb, so that nothing wandb does can reach a run.

It reads one JSON message a line from stdin and answers `open` and `finish` with one line each.
Started by file name (see `mirror.py`): it imports nothing of llmtrain.
"""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

Message = Mapping[str, Any]
KILLED = 137  # exit code of a run whose process went away without a word


def quiet_settings(wandb: Any, timeout_s: int) -> Any:
    """Return settings that send numbers and nothing about the machine, the code or the shell."""
    return wandb.Settings(
        init_timeout=timeout_s,
        finish_timeout=timeout_s,
        login_timeout=timeout_s,
        silent=True,
        show_errors=False,
        show_warnings=False,
        host="llmtrain",
        program="llmtrain",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        console="off",
        x_disable_meta=True,  # argv may hold a secret
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )


class Courier:
    """Carries messages to the one run that is open."""

    def __init__(self) -> None:
        self.run: Any = None
        self.note = ""
        self.timeout_s, self.folder, self.offline = 0, Path(), False
        self.first_step = 0

    def open(self, message: Message) -> dict[str, Any]:
        """Open the run and say where it is."""
        import wandb  # noqa: PLC0415 - a machine may have none

        self.run = wandb.init(
            **message["init"],
            mode=message["mode"],
            settings=quiet_settings(wandb, message["timeout_s"]),
            reinit="finish_previous",
        )
        self.first_step = (
            self.run.starting_step
        )  # what the server has of an earlier attempt lies before
        for name, options in message["metrics"].items():
            self.run.define_metric(name, **options)
        self.timeout_s, self.folder = message["timeout_s"], Path(self.run.dir).parent
        self.offline = message["mode"] == "offline"
        self._drop_older(self.folder, message["init"]["id"])
        return {"url": self.run.url or "", "folder": str(self.folder)}

    def _drop_older(self, folder: Path, run_id: str) -> None:
        """Remove local copies of earlier attempts: this one gets all their rows again."""
        name = re.compile(rf"(offline-)?run-[0-9_]+-{re.escape(run_id)}(-\d+)?")
        for other in folder.parent.iterdir():
            if other != folder and name.fullmatch(other.name) and not other.is_symlink():
                shutil.rmtree(other, ignore_errors=True)

    def row(self, message: Message) -> None:
        """Log a row, unless the server has its step."""
        if message["step"] >= self.first_step:
            self.run.log(message["values"], step=message["step"])

    def media(self, message: Message) -> None:
        """Log tables, charts, figures and files of an analysis."""
        import wandb  # noqa: PLC0415

        logged: dict[str, Any] = {}
        for name, table in message["tables"].items():
            logged[name] = wandb.Table(columns=table["columns"], data=table["rows"])
        for name, chart in message["charts"].items():
            logged[name] = wandb.plot.line_series(**chart)
        for name, path in message["images"].items():
            logged[name] = wandb.Image(path)
        self.run.log(logged)
        for path in message["files"]:
            self.run.save(path, base_path=str(Path(path).parent), policy="now")
            artifact = wandb.Artifact(message["artifact"], type="law")
            artifact.add_file(path)
            try:
                self.run.log_artifact(artifact)
            except Exception as error:  # the run and its files are worth finishing
                self.note = f"no artifact: {one_line(error)}"

    def finish(self, message: Message) -> dict[str, Any]:
        """Write the summary and close the run."""
        self.run.summary.update(message["summary"])
        begin = time.monotonic()
        self.close(message["exit_code"])
        if time.monotonic() - begin > self.timeout_s - 1 and not self.offline:
            self.note = f"not all was sent in {self.timeout_s} s; `wandb sync {self.folder}` does"
        note, self.note = self.note, ""
        return {"note": note}

    def close(self, exit_code: int) -> None:
        """Wait until wandb has everything: its server or, offline, the file."""
        import wandb  # noqa: PLC0415

        run, self.run = self.run, None
        run.finish(exit_code=exit_code)
        if self.offline:  # finish() does not wait for the process that writes the file
            wandb.teardown()


def one_line(error: BaseException) -> str:
    """Return an error's kind and first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]


def serve(messages: TextIO, answers: TextIO) -> None:
    """Do what the messages say until they end; an error is an answer, and the run is given up."""
    courier = Courier()
    for line in messages:
        message = json.loads(line)
        try:
            found = getattr(courier, message["do"])(message)
        except BaseException as error:
            found = {"failed": one_line(error)}
        if found is not None:
            answers.write(json.dumps(found) + "\n")
            answers.flush()
            if "failed" in found:
                return
    if courier.run is not None:  # the trainer was killed: keep what it had logged
        with contextlib.suppress(Exception):
            courier.close(exit_code=KILLED)


if __name__ == "__main__":
    pipes = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)  # wandb's own process inherits these
    os.dup2(2, 1)  # and whatever wandb prints is no answer
    serve(*pipes)
    os._exit(0)  # wandb's exit hooks may wait for ever
