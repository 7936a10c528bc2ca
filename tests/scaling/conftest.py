"""A sweep with a planted law, and the public tables where they are at hand."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.config import AnalyzeConfig, PredictConfig
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.spec.bill import BillChanges
from llmtrain.spec.record import ORIGIN, SCHEMA, RunRecord, write_record

PUBLIC = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
DEMO_LAW = LossLaw(E=0.9, A=60.0, B=90.0, alpha=0.38, beta=0.33)
SHAPES = ((16, 1), (24, 1), (32, 1), (32, 2), (48, 2), (64, 2), (64, 4), (96, 3), (128, 4))
VOCAB, SEQ_LEN = 256, 128


def planted_record(
    d_model: int, n_layers: int, budget: float, *, law: LossLaw, noise: float, seed: int
) -> RunRecord:
    """A finished run whose loss lies on the law, times exp(noise)."""
    blocks, head = 12 * n_layers * d_model**2, VOCAB * d_model
    per_token = 6 * (blocks + head) + 12 * n_layers * d_model * SEQ_LEN
    n_tokens = round(budget / per_token)
    loss = float(law.loss(float(blocks + head), float(n_tokens)) * np.exp(noise))
    return RunRecord(
        schema=SCHEMA,
        run_id=f"w{d_model}d{n_layers}-{budget:.3g}-s{seed}",
        config_id="c" * 64,
        code_id="unknown",
        family="planted",
        data_name="pysource",
        data_id="d" * 64,
        tokenizer_id="t" * 64,
        vocab_size=VOCAB,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=max(1, d_model // 16),
        d_ff=4 * d_model,
        seq_len=SEQ_LEN,
        parametrization="standard",
        params={
            "non_embedding": blocks,
            "no_input_embedding": blocks + head,
            "total": blocks + 2 * head,
        },
        n_tokens=n_tokens,
        n_steps=100,
        batch_tokens=1024,
        unique_tokens=10**8,
        epochs=n_tokens / 1e8,
        flops_convention="full_attention",
        flops_budget=budget,
        flops={"full_attention": float(n_tokens * per_token)},
        flops_spent=float(n_tokens * per_token),
        trunk=None,
        seed=seed,
        recipe="demo",
        peak_lr=1e-2,
        optimizer="adamw",
        schedule="cosine",
        annealed=True,
        seq_len_warmup="none",
        dtype="float32",
        val_loss=loss,
        val_bpb=loss / np.log(2),
        val_tokens=65536,
        val_loss_se=0.01,
        train_loss=loss,
        seconds={"setup": 1.0, "train": 2.0},
        tokens_per_second=1e5,
        mfu=None,
        memory_bytes=10**8,
        energy_j=None,
        energy_source="none",
        hardware=dict.fromkeys(ORIGIN["hardware"], "1") | {"device": "cpu"},
        versions=dict.fromkeys(ORIGIN["versions"], "1"),
        metrics_sha256=hashlib.sha256(b"").hexdigest(),
    )


@pytest.fixture(scope="session")
def isoflop_grid() -> Callable[..., tuple[Array, Array]]:
    """N and D of IsoFLOP curves centred on the law's own optimum, seeds as repeated rows."""

    def grid(
        law: LossLaw, budgets: Array, reach: float, points: int, seeds: int = 1
    ) -> tuple[Array, Array]:
        C = np.repeat(budgets, points * seeds)
        shifts = np.repeat(np.geomspace(1 / reach, reach, points), seeds)
        D = np.asarray(law.d_opt(C)) * np.tile(shifts, len(budgets))
        return C / 6 / D, D

    return grid


@pytest.fixture(scope="session")
def planted_sweep(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a planted sweep and return its folder; keyword `change` edits each record."""

    def write(
        budgets: tuple[float, ...] = (1e11, 2.2e11, 4.6e11, 1e12),
        *,
        law: LossLaw = DEMO_LAW,
        sd: float = 0.002,
        seeds: tuple[int, ...] = (0,),
        change: Callable[[RunRecord], RunRecord] = lambda record: record,
    ) -> Path:
        rng = np.random.default_rng(1)
        root = tmp_path_factory.mktemp("sweep") / "planted"
        for seed in seeds:
            for budget in budgets:
                for d_model, n_layers in SHAPES:
                    record = planted_record(
                        d_model,
                        n_layers,
                        budget,
                        law=law,
                        noise=sd * rng.standard_normal(),
                        seed=seed,
                    )
                    folder = root / record.run_id
                    folder.mkdir(parents=True)
                    (folder / "metrics.jsonl").write_text("", encoding="utf-8")
                    write_record(folder, change(record))
        return root

    return write


@pytest.fixture(scope="session")
def analyze_config() -> Callable[..., AnalyzeConfig]:
    """The defaults of configs/analyze.yaml with few draws, and changes by keyword."""
    defaults = AnalyzeConfig(
        runs="planted",
        out=None,
        columns=None,
        params_convention=None,
        flops_convention=None,
        group=None,
        budgets=(),
        budget_tolerance=0.1,
        params="auto",
        bootstrap=200,
        unit="auto",
        noise=None,
        seed=0,
        delta=1e-3,
        tie=False,
        floor=None,
        interaction=False,
        starts="centred",
        target_flops=None,
        against=None,
        publish="disabled",
        project="llmtrain",
        entity=None,
        bill=BillChanges(),
    )
    return lambda **changes: dataclasses.replace(defaults, **changes)


@pytest.fixture(scope="session")
def ask() -> Callable[..., PredictConfig]:
    """A question to besiroglu2024 that asks for the table of models, and changes by keyword."""
    table = PredictConfig(
        law="besiroglu2024",
        fit=None,
        group=None,
        flops=None,
        params=None,
        tokens=None,
        gpu_hours=None,
        mfu=0.4,
        peak_tflops=989.0,
        loss=None,
        inference_tokens=None,
        unique_tokens=None,
        table="models",
    )
    return lambda **changes: dataclasses.replace(table, **changes)


@pytest.fixture(scope="session")
def public_table() -> Callable[[str], Path]:
    """The path of a public table; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        path = PUBLIC / name
        if not path.is_file():
            pytest.skip(f"{name} is not at hand")
        return path

    return find


@pytest.fixture(scope="session")
def plant() -> Callable[..., RunRecord]:
    """The function that makes one finished run on a law."""
    return planted_record
