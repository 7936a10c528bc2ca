"""What a run says of itself: rows while it trains, the record at its end, facts for wandb."""

import dataclasses
import math
from typing import Any

from llmtrain.board.identity import KEY_SIGN, tag_list
from llmtrain.corpus.shards import Corpus
from llmtrain.spec.bill import BillConfig, bill_of, estimated_joules, joules_per_token
from llmtrain.spec.branching import trunk_id
from llmtrain.spec.build import config_hash
from llmtrain.spec.code import code_id
from llmtrain.spec.nested import flatten
from llmtrain.spec.plan import RunPlan, run_id, run_identity
from llmtrain.spec.record import SCHEMA, RunRecord, Spent
from llmtrain.spec.schedule import is_annealed
from llmtrain.spec.settings import TrainConfig
from llmtrain.training import runtime
from llmtrain.training.energy import EnergyMeter
from llmtrain.training.evaluate import Evaluation
from llmtrain.training.session import Session


def metrics_row(session: Session, loss: float) -> dict[str, float | int]:
    """Return one row of training metrics; `loss` is the mean since the last row; collective.

    Loss and norm are left out where the guard held the steps back; counts are those of the run.
    """
    clock = session.clock()
    stage = session.plan.shape_at(session.step - 1)
    speed = tokens_per_second(session)
    row: dict[str, float | int] = clock | {
        "train/loss": loss,
        "train/lr": session.last_lr,
        "train/seq_len": stage.window or stage.row_len,
        "train/grad_norm": float(session.grad_norm),
        "train/tokens_per_second": speed,
        "train/memory_gb": _memory_bytes(session) / 1e9,
    }
    guard = session.guard
    counts = {"train/skipped_steps": guard.n_skipped, "train/spikes": guard.spikes.count}
    row |= {name: count for name, count in counts.items() if count > 0}
    mfu = model_flops_utilisation(session)
    row |= {} if mfu is None else {"train/mfu": mfu}
    return {name: value for name, value in row.items() if math.isfinite(value)}


def tokens_per_second(session: Session) -> float:
    """Return training tokens over the seconds spent in steps, compilation left out.

    All devices of a run count together, here as in the MFU, the memory and the joules.
    """
    tokens, _ = session.plan.done_at(session.step)
    tokens -= session.plan.done_at(session.first_step)[0]
    return tokens / session.seconds["train"] if session.seconds["train"] > 0 else 0.0


def model_flops_utilisation(session: Session) -> float | None:
    """Return MFU: FLOPs with full attention per second over the device's peak, or None.

    Source: Chowdhery et al. 2022 (arXiv 2204.02311), appendix B.
    """
    peak = runtime.peak_flops(session.device, session.config.runtime)
    if peak is None:
        return None
    per_token = session.plan.flops["full_attention"] / session.plan.n_tokens
    return per_token * tokens_per_second(session) / (peak * session.team.n_devices)


def _memory_bytes(session: Session) -> int:
    return int(session.team.total(runtime.peak_memory_bytes(session.device)))


def joules_so_far(session: Session, energy: EnergyMeter) -> float | None:
    """Return the joules of all devices, or None where one of them measures none; collective."""
    joules = energy.joules(session.stacked)
    total = session.team.total(float("nan") if joules is None else joules)
    return None if math.isnan(total) else total


def spent_so_far(
    session: Session, joules: float | None, source: str, hardware: dict[str, str]
) -> Spent:
    """Return what the run has used: joules of a counter, else an estimate, else nothing."""
    seconds = dict(session.seconds)
    if joules is None:
        joules = estimated_joules(sum(seconds.values()), session.config.bill, hardware)
        source = "none" if joules is None else "estimated"
    return Spent(seconds=seconds, energy_j=joules, energy_source=source, hardware=hardware)


def make_record(
    session: Session,
    corpus: Corpus,
    final: Evaluation,
    *,
    energy: EnergyMeter,
    metrics_sha256: str,
) -> RunRecord:
    """Return the record of a finished run; collective."""
    config, plan, manifest = session.config, session.plan, corpus.manifest
    seq, model = config.seq_len, config.model
    hardware = (
        runtime.hardware(session.device, config.runtime)
        | {"n_devices": str(session.team.n_devices), "parallel": config.runtime.parallel}
        | {"stacked": str(session.stacked)}
        | {"micro_batch_tokens": str(config.runtime.micro_batch_tokens or plan.batch_tokens)}
    )
    spent = spent_so_far(session, joules_so_far(session, energy), energy.source, hardware)
    return RunRecord(
        schema=SCHEMA,
        run_id=run_id(config),
        config_id=config_hash(run_identity(config)),
        code_id=code_id(),
        family=config.name,
        data_name=manifest.name,
        data_id=manifest.data_id,
        tokenizer_id=manifest.tokenizer_id,
        vocab_size=manifest.vocab_size,
        d_model=model.d_model,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        d_ff=model.d_ff,
        seq_len=seq.seq_len,
        parametrization=model.parametrization,
        params=plan.params,
        n_tokens=plan.n_tokens,
        n_steps=plan.n_steps,
        batch_tokens=plan.batch_tokens,
        unique_tokens=manifest.train.n_tokens,
        epochs=plan.consumed_tokens / manifest.train.n_tokens,
        flops_convention=config.budget.convention,
        flops_budget=config.budget.flops,
        flops={str(name): value for name, value in plan.flops.items()},
        flops_spent=plan.done_at(plan.n_steps)[1] - plan.done_at(session.first_step)[1],
        trunk=trunk_id(config),
        seed=config.seed,
        recipe=config.recipe.name,
        peak_lr=plan.hyper.peak_lr,
        optimizer=config.optimizer.name,
        schedule=config.schedule.name,
        annealed=is_annealed(config.schedule),
        seq_len_warmup="none" if len(plan.stages) == 1 else f"{seq.mode} {seq.pacing}",
        dtype=config.runtime.dtype,
        val_loss=final.loss,
        val_bpb=final.bpb,
        val_tokens=final.n_tokens,
        val_loss_se=final.se,
        train_loss=session.train_loss(),
        seconds=spent.seconds,
        tokens_per_second=tokens_per_second(session),
        mfu=model_flops_utilisation(session),
        memory_bytes=_memory_bytes(session),
        energy_j=spent.energy_j,
        energy_source=spent.energy_source,
        hardware=hardware,
        versions=runtime.versions(),
        metrics_sha256=metrics_sha256,
        lr_multiplier=config.recipe.lr_multiplier,
        n_skipped=session.guard.n_skipped,
        n_spikes=session.guard.spikes.count,
    )


def wandb_tags(config: TrainConfig) -> list[str]:
    """Return the tags that a run is found by."""
    budget, shape, seed = run_id(config).split("-")[:3]
    named = (config.recipe.name, config.schedule.name, config.optimizer.name, config.data.name)
    return tag_list(budget, shape, seed, *named)


def wandb_facts(config: TrainConfig, plan: RunPlan, corpus: Corpus) -> dict[str, Any]:
    """Return the configuration and the plan on one level, and what they belong to."""
    manifest = corpus.manifest
    nested = dataclasses.asdict(config) | {"plan": dataclasses.asdict(plan)}
    return flatten(nested, KEY_SIGN) | {
        "run_id": run_id(config),
        "config_id": config_hash(run_identity(config)),
        "code_id": code_id(),
        "data_id": manifest.data_id,
        "tokenizer_id": manifest.tokenizer_id,
        "vocab_size": manifest.vocab_size,
    }


def wandb_summary(record: RunRecord, config: BillConfig) -> dict[str, Any]:
    """Return the record with one level of keys, as in params/total; llmtrain.board reads it back.

    N, D and C stand there under every convention; energy, carbon and money beside their source.
    """
    per_token = {"bill/joules_per_token": joules_per_token(record)}
    return wandb_spent(record, config) | per_token


def wandb_spent(run: RunRecord | Spent, config: BillConfig) -> dict[str, Any]:
    """Return all fields with one level of keys, and what they cost."""
    bill = bill_of(run, config)
    return flatten(dataclasses.asdict(run), KEY_SIGN) | {
        "bill/kwh": bill.kwh,
        "bill/co2e_kg": bill.co2e_kg,
        "bill/money": bill.money,
        "bill/device_hours": bill.device_hours,
        "bill/source": ", ".join(bill.sources),
    }
