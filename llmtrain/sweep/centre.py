"""Where the optimum of a budget is expected: by the sweep's own numbers, or by a law.

A law counts parameters and FLOPs in its own way; the sweep centres its sizes in the count
no_input_embedding, at budgets under budget.convention. Nothing is converted by a factor: every
shape of the family is counted the law's way with the tokens that the budget buys it, and the
expected optimum is where the family crosses the law.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmtrain.scaling.law import FLOPS_PER_PARAM_TOKEN, Array
from llmtrain.scaling.law_file import read_law
from llmtrain.scaling.published import published_law
from llmtrain.spec.config import ModelConfig
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.flops import CONVENTIONS, flops_per_token, param_groups
from llmtrain.spec.settings import TrainConfig
from llmtrain.spec.sweeps import SweepConfig

SIZE = "no_input_embedding"
"""The count in which a sweep spreads its sizes."""
BODY_FLOPS = "M, FLOPs per token"
COUNTS = ("non_embedding", SIZE, "total", BODY_FLOPS)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedLaw:
    """N_opt(C) of a printed law or of a law.json."""

    name: str
    params: str
    """What N counts."""
    flops: str
    """What C counts: a name of spec/flops.py, or that N times D (times six)."""
    n_opt: Callable[[Array], Array]

    @property
    def counts(self) -> str:
        """Say which count is meant."""
        return f"{self.name}: its N counts {self.params}, its C counts {self.flops}"


def expected_law(name: str) -> ExpectedLaw:
    """Return the law of a registry key or of a law.json.

    Raises ConfigError for an unknown name, and for a law that does not say what its N counts.
    """
    path = Path(name)
    if path.suffix != ".json" and not path.is_file():
        printed = published_law(name)
        return ExpectedLaw(
            name=printed.key,
            params=printed.params,
            flops=printed.flops,
            n_opt=printed.params_law.at,
        )
    if not path.is_file():
        raise ConfigError(f"sweep.law={name} does not exist; name a law.json or a printed law")
    saved = read_law(path, fit=None, group=None, surface=False)
    if saved.params not in COUNTS:
        raise ConfigError(
            f"sweep.law={name}: its parameter count is {saved.params}, so no shape can be compared "
            f"with it; add a column params_convention with one of {', '.join(COUNTS[:3])} and "
            "analyse again"
        )
    surface, power = saved.loss_law, saved.params_law
    if surface is not None:
        cost = saved.cost
        return ExpectedLaw(
            name=name,
            params=saved.params,
            flops=saved.flops,
            n_opt=lambda C: cost.n_opt(surface, C),
        )
    assert power is not None
    return ExpectedLaw(name=name, params=saved.params, flops=saved.flops, n_opt=power.at)


def law_optimum(
    law: ExpectedLaw,
    shapes: Sequence[ModelConfig],
    config: TrainConfig,
    flops: float,
) -> float:
    """Return the expected optimal N (no_input_embedding) of a family at a budget.

    Raises ConfigError where C is undeclared, or more than a factor of 10 outside the family.
    """
    size, gap = (
        np.array(column) for column in zip(*_gaps(law, shapes, config, flops), strict=True)
    )
    order = np.argsort(size)
    size, gap = size[order], np.maximum.accumulate(gap[order])
    if gap[0] <= 0.0 <= gap[-1]:
        return float(np.exp(np.interp(0.0, gap, size)))
    slope = max(float(np.polyfit(size, gap, 1)[0]), 0.1) if len(size) > 1 else 1.0
    end = 0 if gap[0] > 0 else -1
    away = abs(gap[end]) / slope
    if away > np.log(10.0):
        raise ConfigError(
            f"sweep.law={law.name} puts the optimum of C={flops:.3g} a factor {np.exp(away):.3g} "
            f"{'below' if end == 0 else 'above'} the shapes of the family; change sweep.widths and "
            "sweep.depths"
        )
    return float(np.exp(size[end] - gap[end] / slope))


def _gaps(
    law: ExpectedLaw, shapes: Sequence[ModelConfig], config: TrainConfig, flops: float
) -> list[tuple[float, float]]:
    """Return ln N (no_input_embedding) and ln of the law's N over its optimum, for each shape."""
    vocab, length = config.data.vocab_size, config.seq_len.seq_len
    found = []
    for shape in shapes:
        counts = param_groups(shape, vocab_size=vocab, seq_len=length).counts()
        rates = flops_per_token(shape, vocab_size=vocab, seq_len=length)
        tokens = flops / rates[config.budget.convention]
        if law.params == BODY_FLOPS:  # DeepSeek's M; it has no vocabulary in it
            n_law = 6.0 * counts["non_embedding"] + 12.0 * shape.n_layers * shape.d_model * length
            c_law = n_law * tokens
        else:
            n_law = float(counts[law.params])
            known = next((rates[name] for name in CONVENTIONS if name == law.flops), None)
            c_law = tokens * (known or FLOPS_PER_PARAM_TOKEN * n_law)
        optimum = float(law.n_opt(np.asarray(c_law)))
        found.append((float(np.log(counts[SIZE])), float(np.log(n_law / optimum))))
    return found


def expected_params(
    sweep: SweepConfig, shapes: Sequence[ModelConfig], config: TrainConfig, flops: float
) -> float:
    """Return the N (no_input_embedding) around which the sizes of a budget are centred."""
    if sweep.law is None:
        return float(sweep.optimum_params * (flops / sweep.optimum_flops) ** sweep.optimum_exponent)
    return law_optimum(expected_law(sweep.law), shapes, config, flops)


def describe(sweep: SweepConfig) -> str:
    """Say in one line where the expectation comes from, and in which counts."""
    if sweep.law is not None:
        return f"{expected_law(sweep.law).counts}; each shape is counted its way"
    return (
        f"{sweep.optimum_params:g} (C / {sweep.optimum_flops:g})^{sweep.optimum_exponent:g}, "
        f"N {SIZE}, C under budget.convention"
    )
