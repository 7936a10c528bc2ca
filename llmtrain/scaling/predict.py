"""From a law to a model: the optimum for a budget, a size, a token count, a loss or a demand."""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from llmtrain.scaling.any_law import AnyLaw
from llmtrain.scaling.bootstrap import Interval, LawDraws, interval
from llmtrain.scaling.config import PredictConfig
from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.demand import Optimum, best_for_flops, best_for_inference, lifetime_flops
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.optimal_path import OptimalPath
from llmtrain.spec.errors import ConfigError

SECONDS_PER_HOUR = 3600.0
DEMAND_DRAWS = 200
"""Draws behind the intervals of a demand: each is a search of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The answer to one question. Intervals are null where the law has no draws."""

    question: str
    flops: float
    """Training FLOPs."""
    params: float
    tokens: float
    loss: float | None
    """Null where the law has no loss."""
    wasted: float | None
    """Share of the FLOPs that an optimal run of equal loss would save; null at an optimum."""
    notes: tuple[str, ...]
    flops_interval: Interval | None = None
    """Null too where the question fixes the budget."""
    params_interval: Interval | None = None
    tokens_interval: Interval | None = None
    loss_interval: Interval | None = None
    wasted_interval: Interval | None = None


def predict(config: PredictConfig, law: AnyLaw) -> list[Prediction]:
    """Answer what the configuration asks, the plain optimum first.

    Raises ConfigError for a question this law cannot answer.
    """
    if config.params is not None and config.tokens is not None:
        own = _measured(law, config.params, config.tokens)
        found = [own, _optimum(law, "the optimum for the same FLOPs", _Ask(flops=own.flops))]
    else:
        found = [_optimum(law, *_asked(config, law))]
    return found + _demands(config, law, found[-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ask:
    """What fixes the budget: exactly one field."""

    flops: float | None = None
    params: float | None = None
    tokens: float | None = None
    loss: float | None = None

    def budgets(self, path: OptimalPath) -> Array:
        """Return the FLOPs in question on each of the path's laws."""
        if self.flops is not None:
            return np.full_like(path.floor, self.flops)
        if self.params is not None:
            return path.params.inverse(self.params)
        if self.tokens is not None:
            return path.tokens.inverse(self.tokens)
        assert self.loss is not None
        return path.flops_for_loss(self.loss)


def _asked(config: PredictConfig, law: AnyLaw) -> tuple[str, _Ask]:
    """Return the question in words, and what fixes the budget."""
    if config.flops is not None:
        return f"{config.flops:.4g} FLOPs", _Ask(flops=config.flops)
    if config.gpu_hours is not None:
        peak = config.peak_tflops * 1e12
        C = config.gpu_hours * SECONDS_PER_HOUR * peak * config.mfu
        hours = f"{config.gpu_hours:g} GPU hours"
        words = f"{hours} at MFU {config.mfu:g} of {config.peak_tflops:g} TFLOP/s"
        return words, _Ask(flops=C)
    if config.loss is not None:
        floor = law.surface("a target loss").E
        if config.loss <= floor:
            raise ConfigError(
                f"loss={config.loss:g} is not above the law's floor E={floor:.4g}: no budget "
                "reaches it"
            )
        return f"the least budget for loss {config.loss:g}", _Ask(loss=config.loss)
    if config.params is not None:
        words = f"the budget that makes {config.params:.4g} parameters optimal"
        return words, _Ask(params=config.params)
    words = f"the budget that makes {config.tokens:.4g} tokens optimal"
    return words, _Ask(tokens=config.tokens)


def _optimum(law: AnyLaw, question: str, ask: _Ask) -> Prediction:
    path = law.path
    C = ask.budgets(path)
    loss = path.loss_at(C)
    found = Prediction(
        question=question,
        flops=float(C[0]),
        params=float(path.params.at(C)[0]),
        tokens=float(path.tokens.at(C)[0]),
        loss=None if loss is None else float(loss[0]),
        wasted=None,
        notes=law.notes(float(C[0])),
    )
    drawn = law.drawn_path
    return found if drawn is None else _with_intervals(found, drawn, ask)


def _with_intervals(found: Prediction, drawn: OptimalPath, ask: _Ask) -> Prediction:
    """Return the answer with intervals: every draw answers the question by itself."""
    C = ask.budgets(drawn)
    reached = np.isfinite(C)
    notes = found.notes
    if not reached.all():
        notes += (f"in {100 * np.mean(~reached):.2g} % of the draws no budget does this",)
    loss = drawn.loss_at(C)
    return replace(
        found,
        notes=notes,
        flops_interval=None if ask.flops is not None else interval(C),
        params_interval=interval(drawn.params.at(C)[reached]),
        tokens_interval=interval(drawn.tokens.at(C)[reached]),
        loss_interval=None if loss is None or ask.loss is not None else interval(loss[reached]),
    )


def _measured(law: AnyLaw, N: float, D: float) -> Prediction:
    """Return what a given model and token count cost, reach and waste."""
    surface = law.surface("the loss of a given model")
    C = float(law.cost.per_token(N)) * D
    loss = float(surface.loss(N, D))
    path = law.path
    needed = float(path.flops_for_loss(loss)[0])
    best = path.loss_at(np.array([C]))
    assert best is not None
    price = (
        f"off the optimum: {needed:.4g} FLOPs would reach this loss, so {C - needed:.3g} are "
        f"wasted; the optimum of {C:.4g} reaches {best[0]:.4f}, lower by {loss - best[0]:.4f}"
    )
    found = Prediction(
        question=f"{N:.4g} parameters on {D:.4g} tokens",
        flops=C,
        params=N,
        tokens=D,
        loss=loss,
        wasted=1.0 - needed / C,
        notes=(price, *law.notes(C)),
    )
    drawn = law.drawn_path
    if drawn is None or not isinstance(law.draws, LawDraws):
        return found
    losses = law.draws.loss(N, D)
    wasted = 1.0 - drawn.flops_for_loss(losses) / C
    return replace(found, loss_interval=interval(losses), wasted_interval=interval(wasted))


def _demands(config: PredictConfig, law: AnyLaw, plain: Prediction) -> list[Prediction]:
    """Return the optimum under repetition, under inference demand, or both."""
    served, unique = config.inference_tokens, config.unique_tokens
    if served is None and unique is None:
        return []
    surface = law.surface("inference_tokens and unique_tokens")
    solve = partial(_meet, law.cost, plain.flops, unique, served)
    best, drawn = solve(surface), []
    if isinstance(law.draws, LawDraws):
        for other in law.draws.laws()[:DEMAND_DRAWS]:
            with suppress(ConfigError):  # no optimum where the draw puts the loss out of reach
                drawn.append(solve(other))
    found = []
    if unique is not None:
        repeated = _demanded(
            "the same FLOPs with repetition", [best.trained, *(d.trained for d in drawn)]
        )
        epochs = f"{repeated.tokens / unique:.3g} epochs of {unique:.4g} unique tokens"
        lost = f"loss {best.trained.loss - float(plain.loss or 0.0):+.4f} over fresh tokens"
        fitted = "R* of Muennighoff et al. 2023, measured on C4"
        found.append(replace(repeated, notes=(f"{epochs}, {lost}", fitted)))
    if served is not None:
        words = f"loss {best.trained.loss:.4f} with {served:.4g} tokens served"
        whole = best.trained.training_flops + lifetime_flops(best.trained.params, served, law.cost)
        spent = (
            f"{best.lifetime.total_flops:.4g} FLOPs with inference, "
            f"{100 * (1.0 - best.lifetime.total_flops / whole):.1f} % less than the plain optimum"
        )
        answer = _demanded(words, [best.lifetime, *(d.lifetime for d in drawn)])
        found.append(replace(answer, notes=(spent,)))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Met:
    """A budget's optimum, and the one that reaches its loss with the tokens served too."""

    trained: Optimum
    lifetime: Optimum


def _meet(
    cost: CostModel, C: float, unique: float | None, served: float | None, law: LossLaw
) -> _Met:
    trained = best_for_flops(law, C, unique, cost)
    if served is None:
        return _Met(trained=trained, lifetime=trained)
    lifetime = best_for_inference(law, trained.loss, served, unique, cost)
    return _Met(trained=trained, lifetime=lifetime)


def _demanded(question: str, optima: list[Optimum]) -> Prediction:
    """Return the first optimum as the answer, the others as its draws."""

    def bounds(name: str) -> Interval | None:
        return interval(np.array([getattr(item, name) for item in optima[1:]]))

    best = optima[0]
    flops = bounds("training_flops")
    return Prediction(
        question=question,
        flops=best.training_flops,
        params=best.params,
        tokens=best.tokens,
        loss=best.loss,
        wasted=None,
        notes=(),
        flops_interval=None if flops is None or flops.low == flops.high else flops,
        params_interval=bounds("params"),
        tokens_interval=bounds("tokens"),
        loss_interval=bounds("loss"),
    )
