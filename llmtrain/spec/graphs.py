"""Which graphs the blocks of a run are compiled into: runs that have one in common share it."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmtrain.spec.plan import RunPlan
from llmtrain.spec.settings import TrainConfig

EVAL_TOKENS = 8192
"""Tokens of one pass of an evaluation; it bounds the logits' memory, nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """All that the code of a compiled block depends on: no depth, seed, rate or optimizer."""

    d_model: int
    d_head: int
    d_ff: int
    activation: str
    norm: str
    position: str
    qk_norm: bool
    bias: bool
    dropout: float
    rows: int
    """Rows of one pass of one run."""
    row_len: int
    """Tokens of a row."""
    masked: bool
    """Whether attention is within a window."""
    replicas: int | None
    """Runs that are trained as one; None where the weights have no axis of replicas."""
    trains: bool
    """Forward and backward; else an evaluation."""
    dtype: str
    attention: str
    device: str
    n_threads: int


def graphs(config: TrainConfig, plan: RunPlan, *, n_runs: int = 1) -> frozenset[Graph]:
    """Return what a run, or `n_runs` trained as one, compiles from its first step to its end."""
    replicas = n_runs if n_runs > 1 else None
    found = {
        _graph(config, rows, stage.row_len, stage.window, replicas)
        for stage in plan.stages
        for rows in _pass_rows(config.runtime.micro_batch_tokens, stage.rows, stage.row_len)
    }
    seq_len = config.seq_len.seq_len
    rows = min(config.evaluation.n_tokens // seq_len, eval_rows(seq_len))
    return frozenset(found | {_graph(config, rows, seq_len, None, None, trains=False)})


def eval_rows(seq_len: int) -> int:
    """Return the rows of one pass of an evaluation, at most."""
    return max(1, EVAL_TOKENS // seq_len)


def _pass_rows(micro_batch_tokens: int | None, rows: int, row_len: int) -> Iterator[int]:
    """Yield the rows of a step's passes: of a full one, and of the last where it has fewer."""
    full = min(rows, max(1, (micro_batch_tokens or rows * row_len) // row_len))
    yield full
    if rows % full:
        yield rows % full


def _graph(
    config: TrainConfig,
    rows: int,
    row_len: int,
    window: int | None,
    replicas: int | None,
    *,
    trains: bool = True,
) -> Graph:
    model, runtime = config.model, config.runtime
    return Graph(
        d_model=model.d_model,
        d_head=model.d_head,
        d_ff=model.d_ff,
        activation=model.activation,
        norm=model.norm,
        position=model.position,
        qk_norm=model.qk_norm,
        bias=model.bias,
        dropout=model.dropout,
        rows=rows,
        row_len=row_len,
        masked=window is not None,
        replicas=replicas,
        trains=trains,
        dtype=runtime.dtype,
        attention=runtime.attention,
        device=runtime.device,
        n_threads=runtime.n_threads,
    )
