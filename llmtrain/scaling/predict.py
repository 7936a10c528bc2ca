"""From a law to a model: the optimum for a budget, a size, a token count, a loss or a demand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmtrain.scaling.bootstrap import Interval, LawDraws, PowerDraws, interval
from llmtrain.scaling.config import PredictConfig
from llmtrain.scaling.cost import SIX_N_D, CostModel
from llmtrain.scaling.demand import Optimum, best_for_flops, best_for_inference
from llmtrain.scaling.diagnose import REACH_LIMIT
from llmtrain.scaling.law import FLOPS_PER_PARAM_TOKEN, LossLaw, PowerLaw
from llmtrain.scaling.law_file import SavedLaw, read_law
from llmtrain.scaling.published import published_law
from llmtrain.spec.errors import ConfigError

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AnyLaw:
    """A published or a fitted law, ready to answer."""

    name: str
    source: str
    params: str
    """What N counts."""
    flops: str
    """What C counts."""
    loss_law: LossLaw | None
    params_law: PowerLaw | None
    tokens_law: PowerLaw | None
    cost: CostModel
    draws: LawDraws | PowerDraws | None
    largest_flops: float | None
    """Largest run behind a fitted law."""
    warning: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The answer to one question."""

    question: str
    flops: float
    params: float
    params_interval: Interval | None
    tokens: float
    tokens_interval: Interval | None
    loss: float | None
    """Null where the law has no loss."""
    loss_interval: Interval | None
    wasted: float | None
    """Share of 6ND that an optimal run of equal loss would have saved; null at an optimum."""
    notes: tuple[str, ...]


def find_law(config: PredictConfig) -> AnyLaw:
    """Return the published law or the fit that the configuration names."""
    if Path(config.law).suffix == ".json" or Path(config.law).is_file():
        path = Path(config.law)
        if not path.is_file():
            raise ConfigError(f"law={config.law} does not exist; name a law.json or a printed law")
        return _from_saved(read_law(path, fit=config.fit, group=config.group, surface=True))
    found = published_law(config.law)
    return AnyLaw(
        name=found.key,
        source=found.source,
        params=found.params,
        flops=found.flops,
        loss_law=found.loss_law,
        params_law=found.params_law,
        tokens_law=found.tokens_law,
        cost=SIX_N_D,
        draws=None,
        largest_flops=None,
        warning=found.warning,
    )


def _from_saved(saved: SavedLaw) -> AnyLaw:
    return AnyLaw(
        name=saved.name,
        source=saved.source,
        params=saved.params,
        flops=saved.flops,
        loss_law=saved.loss_law,
        params_law=saved.params_law,
        tokens_law=saved.tokens_law,
        cost=saved.cost,
        draws=saved.draws,
        largest_flops=saved.largest_flops,
        warning="",
    )


def predict(config: PredictConfig, law: AnyLaw) -> list[Prediction]:
    """Answer what the configuration asks, the plain optimum first.

    Raises ConfigError for a question this law cannot answer.
    """
    if config.params is not None and config.tokens is not None:
        found = [_measured(law, config.params, config.tokens)]
        found.append(_at(law, found[0].flops, "the optimum for the same FLOPs"))
    else:
        C, question = _budget(config, law)
        found = [_at(law, C, question)]
    return found + _demands(config, law, found[-1])


def _budget(config: PredictConfig, law: AnyLaw) -> tuple[float, str]:
    """Return the FLOPs in question."""
    if config.flops is not None:
        return config.flops, f"{config.flops:.4g} FLOPs"
    if config.gpu_hours is not None:
        peak = config.peak_tflops * 1e12
        C = config.gpu_hours * SECONDS_PER_HOUR * peak * config.mfu
        hours = f"{config.gpu_hours:g} GPU hours"
        return C, f"{hours} at MFU {config.mfu:g} of {config.peak_tflops:g} TFLOP/s"
    if config.loss is not None:
        surface = _surface(law, "a target loss")
        if config.loss <= surface.E:
            raise ConfigError(
                f"loss={config.loss:g} is not above the law's floor E={surface.E:.4g}: no budget "
                "reaches it"
            )
        return _solve(lambda C: -float(law.cost.loss_opt(surface, C)), -config.loss), (
            f"the least budget for loss {config.loss:g}"
        )
    if config.params is not None:
        question = f"the budget that makes {config.params:.4g} parameters optimal"
        return _solve(lambda C: _optimum(law, C)[0], config.params), question
    assert config.tokens is not None
    question = f"the budget that makes {config.tokens:.4g} tokens optimal"
    return _solve(lambda C: _optimum(law, C)[1], config.tokens), question


def _solve(rising: Callable[[float], float], value: float) -> float:
    """Return the C at which a rising function of C takes `value`."""
    low, high = np.log(1.0), np.log(1e60)
    for _ in range(200):
        middle = (low + high) / 2.0
        if rising(float(np.exp(middle))) < value:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2.0))


def _optimum(law: AnyLaw, C: float) -> tuple[float, float]:
    if law.loss_law is not None:
        n = float(law.cost.n_opt(law.loss_law, C))
        return n, float(law.cost.tokens(C, n))
    assert law.params_law is not None
    assert law.tokens_law is not None
    return float(law.params_law.at(C)), float(law.tokens_law.at(C))


def _at(law: AnyLaw, C: float, question: str) -> Prediction:
    n, d = _optimum(law, C)
    n_bounds = d_bounds = loss_bounds = None
    if isinstance(law.draws, LawDraws):
        n_draws = law.draws.n_opt(C, law.cost)
        d_draws = law.cost.tokens(C, n_draws)
        n_bounds, d_bounds = interval(n_draws), interval(d_draws)
        loss_bounds = interval(law.draws.loss(n_draws, d_draws))
    elif isinstance(law.draws, PowerDraws):
        n_bounds, d_bounds = interval(law.draws.n_opt(C)), interval(law.draws.d_opt(C))
    return Prediction(
        question=question,
        flops=C,
        params=n,
        params_interval=n_bounds,
        tokens=d,
        tokens_interval=d_bounds,
        loss=None if law.loss_law is None else float(law.loss_law.loss(n, d)),
        loss_interval=loss_bounds,
        wasted=None,
        notes=_notes(law, C),
    )


def _measured(law: AnyLaw, N: float, D: float) -> Prediction:
    """Return what a given model and token count cost, reach and waste."""
    surface = _surface(law, "the loss of a given model")
    C = FLOPS_PER_PARAM_TOKEN * law.cost.factor * N ** (1.0 + law.cost.slope) * D
    needed = _solve(
        lambda budget: -float(law.cost.loss_opt(surface, budget)), -float(surface.loss(N, D))
    )
    draws = law.draws
    return Prediction(
        question=f"{N:.4g} parameters on {D:.4g} tokens",
        flops=C,
        params=N,
        params_interval=None,
        tokens=D,
        tokens_interval=None,
        loss=float(surface.loss(N, D)),
        loss_interval=interval(draws.loss(N, D)) if isinstance(draws, LawDraws) else None,
        wasted=1.0 - needed / C,
        notes=_notes(law, C),
    )


def _demands(config: PredictConfig, law: AnyLaw, plain: Prediction) -> list[Prediction]:
    """Return the optimum under repetition, under inference demand, or both."""
    found: list[Prediction] = []
    served, unique = config.inference_tokens, config.unique_tokens
    if served is None and unique is None:
        return found
    surface = _surface(law, "inference_tokens and unique_tokens")
    note = "C = 6ND" if law.cost.is_exact else "C = 6ND here, not the recorded FLOPs"
    reached = surface.loss(plain.params, plain.tokens)
    if unique is not None:
        best = best_for_flops(surface, plain.flops, unique)
        epochs = f"{best.tokens / unique:.3g} epochs of {unique:.4g} unique tokens"
        fitted = "R* of Muennighoff et al. 2023, measured on C4"
        question = "the same FLOPs with repetition"
        found.append(_as_prediction(best, question, (note, epochs, fitted)))
        reached = best.loss
    if served is not None:
        best = best_for_inference(surface, reached, served, unique)
        base = best_for_inference(surface, reached, 0.0, unique)
        without = base.total_flops + 2.0 * base.params * served
        saved = 1.0 - best.total_flops / without
        spent = (
            f"{best.total_flops:.4g} FLOPs in all, {100 * saved:.1f} % less than the plain optimum"
        )
        question = f"loss {reached:.4f} with {served:.4g} tokens served"
        found.append(_as_prediction(best, question, (note, spent)))
    return found


def _as_prediction(best: Optimum, question: str, notes: tuple[str, ...]) -> Prediction:
    return Prediction(
        question=question,
        flops=best.training_flops,
        params=best.params,
        params_interval=None,
        tokens=best.tokens,
        tokens_interval=None,
        loss=best.loss,
        loss_interval=None,
        wasted=None,
        notes=notes,
    )


def _surface(law: AnyLaw, what: str) -> LossLaw:
    if law.loss_law is None:
        raise ConfigError(f"law={law.name} has no loss, which {what} needs; use besiroglu2024")
    return law.loss_law


def _notes(law: AnyLaw, C: float) -> tuple[str, ...]:
    notes = [law.warning] if law.warning else []
    if law.largest_flops is not None and REACH_LIMIT * law.largest_flops < C:
        notes.append(f"{C / law.largest_flops:.3g} times the largest run: extrapolation")
    if not law.cost.is_exact:
        form = f"6ND x {law.cost.factor:.4g} N^{law.cost.slope:+.4f}"
        notes.append(f"C counts {law.flops}: {form} in these runs")
    return tuple(notes)
