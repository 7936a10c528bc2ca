"""Train one run in a process of its own: argv is its configuration as JSON and its corpus."""

import json
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import torch

from llmtrain.board import mirror
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.rundir import run_directory
from llmtrain.spec.settings import build_run
from llmtrain.training import tracking
from llmtrain.training.loop import train


class TimedMirror(mirror.WandbMirror):
    """The mirror, noting how long the run waits for it."""

    waited: ClassVar[dict[str, float]] = {}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        begin = time.monotonic()
        super().__init__(*arguments, **options)
        self.waited["start"] = time.monotonic() - begin

    def finish(self, *arguments: Any, **options: Any) -> None:
        begin = time.monotonic()
        super().finish(*arguments, **options)
        self.waited["finish"] = time.monotonic() - begin


torch.set_num_threads(1)
tracking.WandbMirror = TimedMirror  # type: ignore[misc]
config = build_run(json.loads(sys.argv[1]))[0]
train(config, open_corpus(Path(sys.argv[2])))
end = {"returned": time.monotonic(), "directory": str(run_directory(config))}
end["longest_finish"] = mirror.FINISH_S
print(json.dumps(TimedMirror.waited | end))
