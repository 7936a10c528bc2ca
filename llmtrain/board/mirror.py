"""A wandb run fed from a thread, through a process of its own: it never blocks or fails a run."""

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from llmtrain.board import courier
from llmtrain.board.identity import Mode, redacted

TIMEOUT_S = 12  # wandb's own limit to start, and to finish
LOCAL_S = 10  # the same where there is no server to wait for
FINISH_S = 26  # the longest that the end of a run waits: a failed start, then an offline one
SERVICE = "WANDB_SERVICE"  # another client's process in this one, which must not be shared
KEPT = "the files of the run have everything"
Row = Mapping[str, float | int]
Warn = Callable[[str], None]


class Mirror(Protocol):
    """Where rows are copied to."""

    def log(self, row: Row) -> None:
        """Take a row."""

    def media(self, **content: Any) -> None:
        """Take tables, charts, images and files."""

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Take the last values and close."""


class NoMirror:
    """Copies nothing."""

    def log(self, row: Row) -> None:
        """Drop the row."""

    def media(self, **content: Any) -> None:
        """Drop it all."""

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Do nothing."""


class Process:
    """A running courier; one serves all runs of this process, one after the other."""

    current: "Process | None" = None
    lock = threading.Lock()

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self.owner = os.getpid()
        self.child = subprocess.Popen(
            [sys.executable, "-P", courier.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={k: v for k, v in os.environ.items() if k != SERVICE} | self.environment,
            start_new_session=True,  # Ctrl-C is the trainer's
        )

    @classmethod
    def take(cls, environment: Mapping[str, str]) -> "Process":
        """Return an idle courier for this environment, started if need be."""
        with cls.lock:
            found, cls.current = cls.current, None
        if found is not None and found.serves(environment):
            return found
        if found is not None:
            found.stop()
        return cls(environment)

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Return whether the courier lives, is ours, and has the same settings."""
        alive = self.owner == os.getpid() and self.child.poll() is None
        return alive and self.environment == environment

    def give_back(self) -> None:
        """Leave the courier to the next run."""
        with Process.lock:
            before, Process.current = Process.current, self
        if before is not None:
            before.stop()

    def send(self, message: Mapping[str, Any]) -> None:
        """Write a message; the secrets in it stay here."""
        assert self.child.stdin is not None
        self.child.stdin.write(redacted(message) + "\n")
        self.child.stdin.flush()

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Write a message and return its answer; raises OSError where the courier has gone."""
        self.send(message)
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise BrokenPipeError("its process went away")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise ConnectionError(answer["failed"])
        return answer

    def stop(self) -> None:
        """End the courier; wandb's own process ends with it."""
        self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            with contextlib.suppress(OSError):  # what stood in the buffer has no reader
                pipe.close()  # type: ignore[union-attr]

    @classmethod
    def stop_idle(cls) -> None:
        """End the courier that waits for a next run, if there is one."""
        with cls.lock:
            found, cls.current = cls.current, None
        if found is not None and found.owner == os.getpid():
            found.stop()


atexit.register(Process.stop_idle)


def environment_of(staging: Path | None) -> dict[str, str]:
    """Return wandb's variables: no reports of its own, artifacts staged in `staging`."""
    named = (name for name in os.environ if name.startswith("WANDB_") and name != SERVICE)
    own = {name: os.environ[name] for name in named}
    own |= {
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
        "WANDB_DISABLE_CODE": "true",
    }
    return own if staging is None else own | {"WANDB_DATA_DIR": str(staging)}


class WandbMirror:
    """A wandb run, copied to by a thread of its own."""

    def __init__(
        self,
        init: Mapping[str, Any],
        *,
        mode: Mode,
        metrics: Mapping[str, Mapping[str, str]],
        rows: Iterable[Row],
        warn: Warn,
        staging: Path | None = None,
    ) -> None:
        """Open the run that `init` names, with `rows` as its past."""
        self.warn = warn
        self.environment = environment_of(staging)
        self.process: Process | None = None
        self.warned = False
        self.where = ""
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue()
        opening = {"do": "open", "init": dict(init), "mode": mode, "timeout_s": TIMEOUT_S}
        self.messages.put(opening | {"metrics": dict(metrics)})
        for row in rows:
            self.log(row)
        self.thread = threading.Thread(target=self._serve, name="wandb", daemon=True)
        self.thread.start()

    def log(self, row: Row) -> None:
        """Queue a row."""
        self.messages.put({"do": "row", "step": int(row["step"]), "values": dict(row)})

    def media(self, **content: Any) -> None:
        """Queue tables, charts, images and files; see `courier.Courier.media`."""
        self.messages.put({"do": "media"} | content)

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Queue the summary and wait for the end, FINISH_S seconds at most."""
        self.messages.put({"do": "finish", "summary": dict(summary), "exit_code": exit_code})
        self.thread.join(timeout=FINISH_S)
        if self.thread.is_alive():
            self._warn_once(f"wandb did not finish within {FINISH_S} s; {KEPT}")
            if self.process is not None:
                self.process.stop()

    def _warn_once(self, message: str) -> None:
        if not self.warned:
            self.warned = True
            self.warn(message)

    def _serve(self) -> None:
        try:
            self._open(self.messages.get())
            self._carry()
        except Exception as error:
            self._warn_once(f"wandb stopped: {_first_line(error)}; {KEPT}")
            if self.process is not None:
                self.process.stop()

    def _open(self, opening: dict[str, Any]) -> None:
        """Open the run; where the server cannot be reached, open it offline and say so."""
        self.process = Process.take(self.environment)
        try:
            answer = self.process.ask(opening)
        except OSError as error:
            self.process.stop()  # it may still hold the run's id
            if opening["mode"] == "offline":
                raise
            self.process = Process(self.environment)
            local = {"mode": "offline", "timeout_s": LOCAL_S}
            answer = self.process.ask(opening | local)
            self._warn_once(f"wandb: {_first_line(error)}; logging offline, `wandb sync` sends it")
        self.where = answer["url"] or answer["folder"]

    def _carry(self) -> None:
        assert self.process is not None
        while (message := self.messages.get())["do"] != "finish":
            self.process.send(message)
        if note := self.process.ask(message)["note"]:
            self._warn_once(f"wandb: {note}")
        self.process.give_back()


def _first_line(error: Exception) -> str:
    kind, first = type(error).__name__, (str(error).splitlines() or [""])[0]
    return first if first and isinstance(error, OSError) else f"{kind}: {first}"
