"""Out of memory: a real allocator under a real limit, and the same loss in smaller passes."""

import dataclasses
import json
import pickle
import subprocess
import sys

import pytest
import torch

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.errors import OutOfMemoryError
from llmtrain.spec.plan import run_id
from llmtrain.spec.record import read_record
from llmtrain.spec.rundir import run_directory
from llmtrain.training.loop import train
from llmtrain.training.memory import smaller_passes
from llmtrain.training.runtime import is_out_of_memory

BIG = {
    "recipe.batch_tokens": 16_384,
    "budget.n_tokens": 2 * 16_384,
    "data.max_epochs": 1e6,
    "recipe.warmup_tokens": 1000,
}
LIMITED = """
import dataclasses, pickle, resource, sys
from pathlib import Path
import torch
from llmtrain.corpus.shards import open_corpus
from llmtrain.training.memory import train_in_memory

small, big, corpus = pickle.loads(bytes.fromhex(sys.argv[1]))
train_in_memory(small, open_corpus(corpus))  # every library is loaded before the limit is set
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**20 * int(sys.argv[2]),) * 2)
train_in_memory(big, open_corpus(corpus))
train_in_memory(dataclasses.replace(big, seed=1), open_corpus(corpus))
"""


def train_under_limit(small, big, corpus, mebibytes):
    payload = pickle.dumps((small, big, corpus)).hex()
    return subprocess.run(
        [sys.executable, "-c", LIMITED, payload, str(mebibytes)],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux only")
def test_out_of_memory_halves_the_passes_and_keeps_batch_identity_and_loss(
    make, tiny_corpus_dir, tmp_path
):
    small = make({"runs_root": str(tmp_path / "small")})
    for mebibytes in (96, 64, 40, 24):  # what a process has mapped beforehand differs by machine
        big = make(BIG | {"runs_root": str(tmp_path / f"limited{mebibytes}")})
        done = train_under_limit(small, big, tiny_corpus_dir, mebibytes)
        assert done.returncode == 0, done.stderr
        if "out of memory" in done.stderr:
            break
    assert done.stderr.count("out of memory; again with 8192 tokens a pass") == 1
    record = read_record(run_directory(big))
    passes = int(record.hardware["micro_batch_tokens"])
    assert passes < record.batch_tokens == 16_384
    assert f"at most {passes} tokens a pass" in done.stderr  # the next seed asks for no more
    (other,) = (run for run in run_directory(big).parent.iterdir() if run != run_directory(big))
    assert int(read_record(other).hardware["micro_batch_tokens"]) == passes

    free = dataclasses.replace(big, runs_root=str(tmp_path / "free"))
    whole = train(free, open_corpus(tiny_corpus_dir))
    assert record.run_id == whole.run_id == run_id(big)
    assert record.config_id == whole.config_id
    assert record.n_steps == whole.n_steps
    assert record.val_loss == pytest.approx(whole.val_loss, rel=1e-6)
    passes, at_once = steps(big), steps(free)
    assert [row["step"] for row in passes] == [1, 2]  # no step is logged twice
    # Adam alone would forgive a scaled gradient.
    for name, rel in (("train/loss", 1e-6), ("train/grad_norm", 1e-5)):
        assert [row[name] for row in passes] == pytest.approx([r[name] for r in at_once], rel=rel)


def steps(config):
    lines = (run_directory(config) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "train/loss" in row]


def test_rows_are_halved_down_to_one_and_then_refused(make):
    config = make()
    for rows in (4, 2, 1):
        config = smaller_passes(config, vocab_size=256)
        assert config.runtime.micro_batch_tokens == rows * 32
    with pytest.raises(OutOfMemoryError, match="out of memory with one row of 32 tokens a pass"):
        smaller_passes(config, vocab_size=256)


def test_only_what_says_so_is_out_of_memory():
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60)
    assert is_out_of_memory(real.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(other.value)
