"""Back-test across sizes: the largest model's losses, forecast from the smaller models."""

from dataclasses import dataclass, replace

import numpy as np

from llmtrain.scaling.parametric import FitOptions, fit_parametric
from llmtrain.scaling.runs import Runs
from llmtrain.spec.errors import FitRefusedError

SAME_SIZE = 0.01
"""Sizes this close (relative) to the largest are the largest model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelForecast:
    """One surface's forecast; errors are relative, forecast over truth - 1."""

    method: str
    mean: float | None
    """Null where the smaller models are refused; `note` says why."""
    mean_absolute: float | None
    largest: float | None
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldModel:
    """The largest model, forecast at its own token counts and measured."""

    params: float
    n_runs: int
    n_models: int
    """Smaller sizes the forecast was made from."""
    forecasts: tuple[ModelForecast, ...]

    @property
    def best(self) -> ModelForecast | None:
        """The first forecast that is at no limit, else the first one."""
        usable = [own for own in self.forecasts if own.mean_absolute is not None]
        return next(iter([*(own for own in usable if not own.note), *usable]), None)


def hold_out_model(runs: Runs, options: FitOptions) -> HeldModel | None:
    """Forecast the largest model's runs from the others; None for fewer than four sizes."""
    if len(np.unique(runs.params)) < 4:
        return None
    largest = float(runs.params.max())
    is_held = runs.params > (1.0 - SAME_SIZE) * largest
    held, rest = runs.take(is_held), runs.take(~is_held)
    squares = replace(options, link="linear", delta=np.inf)
    return HeldModel(
        params=largest,
        n_runs=len(held),
        n_models=len(np.unique(rest.params)),
        forecasts=(
            _forecast("Approach 3", options, rest, held),
            _forecast("projection", squares, rest, held),
        ),
    )


def _forecast(method: str, options: FitOptions, rest: Runs, held: Runs) -> ModelForecast:
    try:
        fit = fit_parametric(rest.params, rest.tokens, rest.loss, options)
    except FitRefusedError as error:
        return ModelForecast(
            method=method, mean=None, mean_absolute=None, largest=None, note=str(error)
        )
    errors = fit.law.loss(held.params, held.tokens) / held.loss - 1.0
    bounds = fit.certificate.at_bounds
    return ModelForecast(
        method=method,
        mean=float(errors.mean()),
        mean_absolute=float(np.abs(errors).mean()),
        largest=float(np.abs(errors).max()),
        note=f"{', '.join(bounds)} at a limit" if bounds else "",
    )
