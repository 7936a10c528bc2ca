"""Back-tests: what would the smaller runs have said about the larger ones?"""

from dataclasses import dataclass, replace

import numpy as np

from llmtrain.scaling.bootstrap import (
    Interval,
    Unit,
    interval,
    redraw_surface,
)
from llmtrain.scaling.cost import fit_cost
from llmtrain.scaling.isoflop import Curve, fit_isoflop, read_curves
from llmtrain.scaling.law import Array, fit_power_law
from llmtrain.scaling.parametric import FitOptions, fit_parametric
from llmtrain.scaling.runs import Runs
from llmtrain.spec.errors import FitRefusedError
from llmtrain.spec.words import plural


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """One method's forecast of the held-out budget's least loss, from the smaller budgets alone."""

    method: str
    loss: float | None
    """Null where the method refuses the smaller budgets; `note` says why."""
    loss_interval: Interval | None
    error: float | None
    """Forecast over truth - 1."""
    run_errors: tuple[float, float, float] | None
    """Mean, mean absolute and largest absolute relative error over the held-out runs."""
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """The largest budget, forecast and measured."""

    budget: float
    n_budgets: int
    """Smaller budgets the forecast was made from."""
    loss: float
    """Truth: the minimum of the held-out budget's parabola (its lowest run, without a parabola)."""
    lowest_run: float
    params: float | None
    """Truth: N at the minimum."""
    params_forecast: float | None
    """N_opt from the power law through the smaller budgets."""
    forecasts: tuple[Forecast, ...]

    @property
    def best(self) -> Forecast | None:
        """The forecast that counts: the first surface that is at no limit, else the line."""
        usable = [f for f in self.forecasts if f.loss is not None]
        clean = [f for f in usable if f.loss_interval is not None and not f.note]
        return next(iter([*clean, *reversed(usable)]), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Exponents with the smallest budgets left out."""

    n_dropped: int
    n_runs: int
    """Rows that stayed."""
    smallest: float
    """Smallest budget kept."""
    a_isoflop: float | None
    a_surface: float | None
    E: float | None
    loss_at_target: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedNoise:
    """Scatter of the loss between runs that differ in the seed only."""

    sd: float
    """Pooled standard deviation in nats per token."""
    degrees: int
    cells: int


def hold_out_largest(
    runs: Runs, options: FitOptions, n_draws: int, seed: int, unit: Unit = "auto"
) -> HeldOut | None:
    """Forecast the largest budget's least loss from the others; None for fewer than three budgets.

    The surface forecasts minimise over N at the recorded cost of the family; the third method is a
    straight line of the smaller budgets' ln(minimum) in ln C, which knows no floor.
    """
    budgets = runs.budgets
    if len(budgets) < 3:
        return None
    target = float(budgets[-1])
    held, rest = runs.take(runs.budget == target), runs.take(runs.budget < target)
    truth = _minimum(held)
    minima = [c for c in _curves(rest) if c.used]
    squares = replace(options, link="linear", delta=np.inf)
    forecasts = [
        _surface_forecast("Approach 3", options, rest, held, truth, n_draws, seed, unit),
        _surface_forecast("projection", squares, rest, held, truth, n_draws, seed, unit),
        _line_forecast(minima, target, truth),
    ]
    curve = next(iter(_curves(held)))
    law = None
    if len(minima) >= 2:
        law = fit_power_law(
            np.array([c.budget for c in minima]), np.array([c.params.x for c in minima])
        )
    return HeldOut(
        budget=target,
        n_budgets=len(budgets) - 1,
        loss=truth,
        lowest_run=float(held.loss.min()),
        params=curve.params.x if curve.used else None,
        params_forecast=None if law is None else float(law.at(target)),
        forecasts=tuple(forecasts),
    )


def _curves(runs: Runs) -> tuple[Curve, ...]:
    return read_curves(runs.params, runs.tokens, runs.loss, runs.budget)


def _minimum(runs: Runs) -> float:
    curve = next(iter(_curves(runs)))
    return curve.params.loss if curve.used else float(runs.loss.min())


def _surface_forecast(
    method: str,
    options: FitOptions,
    rest: Runs,
    held: Runs,
    truth: float,
    n_draws: int,
    seed: int,
    unit: Unit,
) -> Forecast:
    target = float(held.budget[0])
    columns = (rest.params, rest.tokens, rest.loss)
    try:
        fit = fit_parametric(*columns, options)
    except FitRefusedError as error:
        return Forecast(
            method=method,
            loss=None,
            loss_interval=None,
            error=None,
            run_errors=None,
            note=str(error),
        )
    cost = fit_cost(rest.params, rest.tokens, rest.flops)
    draws = redraw_surface(fit, *columns, rest.lineage, unit=unit, n_draws=n_draws, seed=seed)
    redrawn = cost.loss_opt(draws, target)
    loss = float(cost.loss_opt(fit.law, target))
    errors = fit.law.loss(held.params, held.tokens) / held.loss - 1.0
    bounds = fit.certificate.at_bounds
    return Forecast(
        method=method,
        loss=loss,
        loss_interval=interval(redrawn),
        error=loss / truth - 1.0,
        run_errors=(
            float(errors.mean()),
            float(np.abs(errors).mean()),
            float(np.abs(errors).max()),
        ),
        note=f"{', '.join(bounds)} at a limit" if bounds else "",
    )


def _line_forecast(minima: list[Curve], target: float, truth: float) -> Forecast:
    method = "line through the minima"
    if len(minima) < 2:
        return Forecast(
            method=method,
            loss=None,
            loss_interval=None,
            error=None,
            run_errors=None,
            note=f"{plural(len(minima), 'smaller budget')} with a minimum inside the grid, needs 2",
        )
    law = fit_power_law(
        np.array([c.budget for c in minima]), np.array([c.params.loss for c in minima])
    )
    loss = float(law.at(target))
    return Forecast(
        method=method,
        loss=loss,
        loss_interval=None,
        error=loss / truth - 1.0,
        run_errors=None,
        note="ln L against ln C, no floor",
    )


def leave_small_budgets_out(runs: Runs, options: FitOptions, target: float) -> tuple[Step, ...]:
    """Return the exponents as the smallest budgets leave one by one, three remaining at least."""
    steps = []
    budgets = runs.budgets
    # Rows on no curve still inform the surface; they leave by their own FLOPs.
    level = np.where(np.isfinite(runs.budget), runs.budget, runs.flops)
    for n_dropped in range(max(0, len(budgets) - 2)):
        kept = runs.take(level >= budgets[n_dropped])
        columns = (kept.params, kept.tokens, kept.loss)
        try:
            isoflop = fit_isoflop(*columns, kept.budget).a
        except FitRefusedError:
            isoflop = None
        try:
            law = fit_parametric(*columns, options).law
        except FitRefusedError:
            law = None
        cost = fit_cost(kept.params, kept.tokens, kept.flops)
        steps.append(
            Step(
                n_dropped=n_dropped,
                n_runs=len(kept),
                smallest=float(budgets[n_dropped]),
                a_isoflop=isoflop,
                a_surface=None if law is None else float(cost.exponent(law.alpha, law.beta)),
                E=None if law is None else law.E,
                loss_at_target=None if law is None else float(cost.loss_opt(law, target)),
            )
        )
    return tuple(steps)


def seed_noise(runs: Runs) -> SeedNoise | None:
    """Pool the variance of the loss over cells that were run with more than one seed."""
    cells: dict[tuple[float, ...], list[float]] = {}
    shape = np.nan_to_num(np.stack([runs.d_model, runs.n_layers]), nan=-1.0)
    for i in range(len(runs)):
        if np.isfinite(runs.seed[i]):
            key = (runs.params[i], runs.tokens[i], runs.flops[i], *shape[:, i])
            cells.setdefault(key, []).append(float(runs.loss[i]))
    repeated = [np.array(losses) for losses in cells.values() if len(losses) > 1]
    if not repeated:
        return None
    degrees = sum(len(losses) - 1 for losses in repeated)
    squares = sum(float(((losses - losses.mean()) ** 2).sum()) for losses in repeated)
    return SeedNoise(sd=float(np.sqrt(squares / degrees)), degrees=degrees, cells=len(repeated))


def parabola_residuals(runs: Runs, curves: tuple[Curve, ...]) -> Array:
    """Return loss minus the parabola of its budget, per run; NaN off the used curves."""
    residual = np.full(len(runs), np.nan)
    for curve in curves:
        if curve.used:
            rows = runs.budget == curve.budget
            u = np.log(runs.params[rows]) - curve.params.centre
            residual[rows] = runs.loss[rows] - np.polyval(curve.params.coefficients, u)
    return residual
