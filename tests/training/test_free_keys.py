"""The settings that run_identity leaves out do not move the loss of a real run."""

import pytest

from llmtrain.corpus.shards import open_corpus
from llmtrain.training.loop import train


def test_keys_outside_the_id_leave_the_loss_as_it_is(make, tiny_corpus_dir, tmp_path):
    corpus = open_corpus(tiny_corpus_dir)
    plain = train(make({"runs_root": str(tmp_path / "a")}), corpus)
    others = {"checkpoint.every_steps": 7, "tracking.points": 5, "evaluation.points": 4}
    others |= {"guard.on_nonfinite": "rollback", "guard.max_skips": 0, "guard.on_spike": "stop"}
    others |= {"evaluation.sample_tokens": 16, "name": "other", "checkpoint.keep": 3}
    other = train(make({"runs_root": str(tmp_path / "b")} | others), corpus)
    assert (other.run_id, other.val_loss) == (plain.run_id, plain.val_loss)  # bitwise
    split = {"runtime.micro_batch_tokens": 64, "runtime.activation_checkpointing": True}
    split |= {"runtime.cuda_graph": "auto", "runtime.stack": 4}
    parts = train(make({"runs_root": str(tmp_path / "c")} | split), corpus)
    assert parts.run_id == plain.run_id
    assert parts.val_loss == pytest.approx(plain.val_loss, rel=1e-5)
