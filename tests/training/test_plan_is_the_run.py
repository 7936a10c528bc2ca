"""C2: what the plan says before anything is trained is what the run then does, counted by torch."""

import json
import random
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.plan import plan_run
from llmtrain.spec.rundir import run_directory
from llmtrain.training import run
from llmtrain.training.loop import train
from llmtrain.training.model import parameter_counts
from llmtrain.training.session import Session


def draw(rng: random.Random) -> dict[str, Any]:
    """Return a random tiny configuration; some of them are refused."""
    d_head = rng.choice([4, 8])
    in_tokens = rng.random() < 0.5
    seq_len = rng.choice([16, 32, 48])
    batch = seq_len * rng.randint(1, 6)
    return {
        "model.d_head": d_head,
        "model.d_model": d_head * rng.randint(1, 4),
        "model.n_layers": rng.randint(1, 2),
        "model.activation": rng.choice(["gelu", "swiglu", "relu2"]),
        "model.norm": rng.choice(["rmsnorm", "layernorm"]),
        "model.position": rng.choice(["rope", "learned"]),
        "model.qk_norm": rng.choice([True, False]),
        "model.tied_head": rng.choice([True, False]),
        "model.bias": rng.choice([True, False]),
        "model.dropout": rng.choice([0.0, 0.1]),
        "model.parametrization": rng.choice(["standard", "mup"]),
        "optimizer.name": rng.choice(["adamw", "adam", "nadam", "muon"]),
        "schedule.name": rng.choice(["cosine", "linear", "constant", "inverse_sqrt", "wsd"]),
        "seq_len.seq_len": seq_len,
        "seq_len.mode": rng.choice(["reshape", "truncate", "window"]),
        "seq_len.pacing": rng.choice(["none", "linear", "root", "discrete"]),
        "seq_len.warmup_fraction": rng.choice([0.25, 0.6]),
        "recipe.batch_tokens": batch,
        "recipe.warmup_tokens": rng.choice([0, 64]),
        "budget.n_tokens": batch * rng.randint(2, 8) if in_tokens else None,
        "budget.flops": None if in_tokens else 10 ** rng.uniform(6.3, 8.0),
        "budget.convention": rng.choice(["with_head", "full_attention", "chinchilla", "total"]),
        "budget.tolerance": 0.1,
        "evaluation.n_tokens": 96,
        "runtime.micro_batch_tokens": rng.choice([None, 64]),
        "seed": rng.randrange(1000),
    }


class Counted(Session):
    """A session that writes down the shape of every pass and torch's count of its FLOPs."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.shapes: list[tuple[int, int, int | None]] = []
        self.flops: dict[Any, int] = {}  # of a step, by stage
        self.model.register_forward_pre_hook(self._note, with_kwargs=True)
        LAST.append(self)

    def _note(self, _model: object, arguments: Any, options: Any) -> None:
        if self.model.training:
            rows, length = arguments[0].shape
            self.shapes.append((rows, length, options["window"]))

    def _backward(self, stage: Any, *batch: Any) -> torch.Tensor:
        if stage in self.flops:
            return super()._backward(stage, *batch)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            loss = super()._backward(stage, *batch)
        self.flops[stage] = counter.get_total_flops()
        return loss


LAST: list[Counted] = []


FULL = [pytest.param(50, seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4)]


@pytest.mark.parametrize(("count", "seed"), [*FULL, (6, 0)])
def test_the_dry_run_is_the_real_run(
    make: Any,
    tiny_corpus_dir: Any,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    seed: int,
) -> None:
    monkeypatch.setattr(run, "Session", Counted)
    corpus = open_corpus(tiny_corpus_dir)
    rng = random.Random(seed)
    done = refused = 0
    while done < count:
        try:
            config = make(draw(rng) | {"runs_root": str(tmp_path)})
            plan = plan_run(config, vocab_size=config.data.vocab_size, unique_tokens=None)
        except ConfigError:
            refused += 1
            continue
        if plan.n_steps > 12:
            continue
        record = train(config, corpus)
        session = LAST.pop()
        by_step = [
            (stage.rows, stage.row_len, stage.window)
            for stage in plan.stages
            for _ in range(stage.n_steps)
        ]
        tokens = sum(rows * length for rows, length, _ in session.shapes)
        assert tokens == plan.n_tokens == record.n_tokens
        assert record.n_steps == plan.n_steps == len(by_step)
        if config.runtime.micro_batch_tokens is None:
            assert session.shapes == by_step
        else:  # passes of a step, added up
            lengths = {(length, window) for _, length, window in by_step}
            assert {(length, window) for _, length, window in session.shapes} == lengths
        assert parameter_counts(session.model) == plan.params == record.params
        assert record.flops == plan.flops
        if all(stage.window is None for stage in plan.stages):  # torch counts a window as whole
            counted = sum(stage.n_steps * session.flops[stage] for stage in plan.stages)
            assert counted == pytest.approx(plan.flops["full_attention"], rel=1e-6)
        last = (run_directory(config) / "metrics.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["tokens"] == plan.n_tokens
        spent = record.flops[config.budget.convention]
        assert json.loads(last)["flops"] == pytest.approx(spent, rel=1e-12)
        done += 1
    assert refused > 0
