"""One analysis: every estimator on one group of runs, its intervals, guards and back-tests."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from llmtrain.scaling.binning import assign_budgets, drop_duplicates
from llmtrain.scaling.bootstrap import (
    Interval,
    LawDraws,
    PowerDraws,
    bootstrap_envelope,
    bootstrap_isoflop,
    bootstrap_parametric,
    draw_weights,
    interval,
)
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.cost import CostModel, fit_cost
from llmtrain.scaling.diagnose import (
    Finding,
    check_agreement,
    check_curves,
    check_data,
    check_reach,
    check_trends,
    refuse_exponents,
    refuse_parametric,
)
from llmtrain.scaling.envelope import EnvelopeFit, fit_envelope
from llmtrain.scaling.forecast import (
    HeldOut,
    SeedNoise,
    Step,
    hold_out_largest,
    leave_small_budgets_out,
    parabola_residuals,
    seed_noise,
)
from llmtrain.scaling.isoflop import Curve, IsoflopFit, fit_isoflop, read_curves
from llmtrain.scaling.law import Array
from llmtrain.scaling.parametric import FitOptions, ParametricFit, fit_parametric
from llmtrain.scaling.runs import Runs
from llmtrain.spec.errors import ConfigError, FitRefusedError

Fit = EnvelopeFit | IsoflopFit | ParametricFit
METHODS = {
    "approach1_hull": "Approach 1, convex hull",
    "approach2": "Approach 2, parabolas",
    "approach3": "Approach 3, Huber on ln L",
    "projection": "projection, squares of L",
    "log_squares": "surface, squares of ln L",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Estimate:
    """One method's answer, or why it has none."""

    name: str
    status: Literal["accepted", "refused"]
    reason: str
    """Why it is refused; empty for an accepted one."""
    fit: Fit | None
    draws: LawDraws | PowerDraws | None
    a: float | None
    """Exponent of N_opt in the recorded FLOPs."""
    b: float | None
    a_interval: Interval | None
    b_interval: Interval | None
    n_runs: int

    @property
    def title(self) -> str:
        """Name for readers."""
        return METHODS[self.name]

    @property
    def width(self) -> float:
        """Width of the interval of a; infinite where there is none."""
        return np.inf if self.a_interval is None else self.a_interval.high - self.a_interval.low


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherCount:
    """The exponents of the same runs under another parameter count."""

    params: str
    a_isoflop: float | None
    a_surface: float | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroupAnalysis:
    """Everything about one group."""

    group: str
    runs: Runs
    budgets_from: str
    """How rows came to their IsoFLOP curves."""
    cost: CostModel
    curves: tuple[Curve, ...]
    estimates: tuple[Estimate, ...]
    findings: tuple[Finding, ...]
    held_out: HeldOut | None
    steps: tuple[Step, ...]
    noise: SeedNoise | None
    counts: tuple[OtherCount, ...]
    target_flops: float

    def estimate(self, name: str) -> Estimate:
        """Return the estimate of a method."""
        return next(e for e in self.estimates if e.name == name)

    def accepted(self, name: str) -> Fit | None:
        """Return a method's fit where it was accepted."""
        found = self.estimate(name)
        return found.fit if found.status == "accepted" else None

    def shape_residuals(self) -> Array:
        """Return what shape may explain: percent of loss over the surface, or over the parabolas.

        The parabolas stand in where every surface is refused; NaN off the used curves.
        """
        runs, surface = self.runs, self.surface
        if surface is not None and isinstance(surface.fit, ParametricFit):
            return 100.0 * surface.fit.residuals(runs.params, runs.tokens, runs.loss)
        return 100.0 * parabola_residuals(runs, self.curves) / runs.loss

    @property
    def surface(self) -> Estimate | None:
        """The recommended loss surface: Approach 3, else the projection, where accepted."""
        names = ("approach3", "projection", "log_squares")
        return next((e for e in map(self.estimate, names) if e.status == "accepted"), None)

    @property
    def main(self) -> Estimate | None:
        """The estimate the verdict is about.

        Approach 2, which assumes least, where every curve has its minimum; where curves had to be
        dropped, whichever of Approach 2 and the recommended surface knows a better.
        """
        isoflop, surface = self.estimate("approach2"), self.surface
        if isoflop.status == "refused" or surface is None:
            return surface if isoflop.status == "refused" else isoflop
        if all(curve.used for curve in self.curves):
            return isoflop
        return min((isoflop, surface), key=lambda e: e.width)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Analysis:
    """The analyses of all groups of one source."""

    config: AnalyzeConfig
    runs: Runs
    """All rows as loaded, with what loading left out."""
    groups: tuple[GroupAnalysis, ...]


def analyze(config: AnalyzeConfig, runs: Runs) -> Analysis:
    """Fit every group of `runs`.

    Raises FitRefusedError where no group has enough runs for any method, ConfigError for an unknown
    group or parameter count.
    """
    names = list(dict.fromkeys(str(name) for name in runs.group))
    if config.group is not None:
        if config.group not in names:
            raise ConfigError(f"group={config.group!r} is not among {', '.join(names)}")
        names = [config.group]
    if config.params != "auto":
        if config.params not in runs.counts:
            known = ", ".join(runs.counts) or "none declared: the table has one count"
            raise ConfigError(f"params={config.params} is not among the runs' counts ({known})")
        runs = runs.counted_as(config.params)
    groups = [analyze_group(config, name, runs.take(runs.group == name)) for name in names]
    if all(e.fit is None for group in groups for e in group.estimates):
        reasons = "; ".join(dict.fromkeys(e.reason for e in groups[0].estimates))
        raise FitRefusedError(f"no method fits {len(runs)} runs: {reasons}")
    return Analysis(config=config, runs=runs, groups=tuple(groups))


def analyze_group(config: AnalyzeConfig, group: str, rows: Runs) -> GroupAnalysis:
    """Fit one group with every method; a method that refuses is listed with its reason."""
    finals = drop_duplicates(rows.finals())
    finals, budgets_from = assign_budgets(finals, config.budgets, config.budget_tolerance)
    cost = fit_cost(finals.params, finals.tokens, finals.flops)
    estimates = _estimates(config, rows, finals, cost)
    curves = read_curves(finals.params, finals.tokens, finals.loss, finals.budget)
    largest = float(finals.flops.max())
    target = config.target_flops or 10.0 * largest
    options = surface_options(config)["approach3"]
    partial = GroupAnalysis(
        group=group,
        runs=finals,
        budgets_from=budgets_from,
        cost=cost,
        curves=curves,
        estimates=estimates,
        findings=(),
        held_out=hold_out_largest(finals, options, config.bootstrap, config.seed),
        steps=leave_small_budgets_out(finals, options),
        noise=seed_noise(finals),
        counts=_other_counts(config, finals),
        target_flops=target,
    )
    return replace(partial, findings=tuple(_findings(partial, largest)))


def surface_options(config: AnalyzeConfig) -> dict[str, FitOptions]:
    """Return the loss of each surface fit."""
    return {
        "approach3": FitOptions(delta=config.delta, starts=config.starts),
        "projection": FitOptions(link="linear", delta=np.inf, starts=config.starts),
        "log_squares": FitOptions(link="log", delta=np.inf, starts=config.starts),
    }


def _estimates(
    config: AnalyzeConfig, rows: Runs, finals: Runs, cost: CostModel
) -> tuple[Estimate, ...]:
    units = _units(config, finals)
    weights = draw_weights(units, config.bootstrap, config.seed)

    def hull() -> tuple[Fit, PowerDraws, str]:
        columns = (rows.params, rows.tokens, _flops_of_curve(rows), rows.loss)
        fit = fit_envelope(*columns)
        own = draw_weights(_units(config, rows), min(config.bootstrap, 1000), config.seed)
        draws = bootstrap_envelope(*columns, own)
        return fit, draws, refuse_exponents(fit.a, fit.b)

    def isoflop() -> tuple[Fit, PowerDraws, str]:
        columns = (finals.params, finals.tokens, finals.loss, finals.budget)
        fit = fit_isoflop(*columns)
        draws = bootstrap_isoflop(
            fit, *columns, unit=config.unit, n_draws=config.bootstrap, seed=config.seed
        )
        return fit, draws, ""

    def surface(name: str, options: FitOptions) -> tuple[Fit, LawDraws, str]:
        columns = (finals.params, finals.tokens, finals.loss)
        fit = fit_parametric(*columns, options, name=name)
        draws = bootstrap_parametric(fit, *columns, weights)
        return fit, draws, refuse_parametric(fit, interval(draws.a, 0.8))

    found = [
        _attempt("approach1_hull", hull, cost, len(rows)),
        _attempt("approach2", isoflop, cost, int(np.isfinite(finals.budget).sum())),
    ]
    for name, options in surface_options(config).items():
        attempt = _bound(surface, name, options)
        found.append(_attempt(name, attempt, cost, len(finals)))
    return tuple(found)


def _flops_of_curve(runs: Runs) -> Array:
    """Return FLOPs, with runs that meet their budget to 0.5 % at the budget itself.

    Else the envelope would begin at whichever run of the first budget is short by a few tokens.
    """
    close = np.abs(runs.flops / runs.budget - 1.0) < 0.005
    return np.where(close, runs.budget, runs.flops)


def _bound(
    surface: Callable[[str, FitOptions], tuple[Fit, LawDraws, str]],
    name: str,
    options: FitOptions,
) -> Callable[[], tuple[Fit, LawDraws, str]]:
    return lambda: surface(name, options)


def _units(config: AnalyzeConfig, runs: Runs) -> Array:
    """Return a label per row: what a draw keeps together."""
    columns = {"run": runs.run_id, "model": runs.params, "budget": runs.budget}
    _, labels = np.unique(columns[config.unit], return_inverse=True)
    return np.asarray(labels, dtype=np.float64)


def _attempt(
    name: str,
    method: Callable[[], tuple[Fit, LawDraws | PowerDraws, str]],
    cost: CostModel,
    n_runs: int,
) -> Estimate:
    """Run a method; a refusal becomes an estimate with the reason."""
    try:
        fit, draws, reason = method()
    except FitRefusedError as error:
        return Estimate(
            name=name,
            status="refused",
            reason=str(error),
            fit=None,
            draws=None,
            a=None,
            b=None,
            a_interval=None,
            b_interval=None,
            n_runs=n_runs,
        )
    if isinstance(draws, LawDraws) and isinstance(fit, ParametricFit):
        a_draws = cost.exponent(draws.alpha, draws.beta)
        a = float(cost.exponent(fit.law.alpha, fit.law.beta))
        stretch = 1.0 + cost.slope
        b, b_draws = 1.0 - stretch * a, 1.0 - stretch * a_draws
    else:
        assert isinstance(draws, PowerDraws)
        assert not isinstance(fit, ParametricFit)
        a, b, a_draws, b_draws = fit.a, fit.b, draws.a, draws.b
    return Estimate(
        name=name,
        status="refused" if reason else "accepted",
        reason=reason,
        fit=fit,
        draws=draws,
        a=a,
        b=b,
        a_interval=interval(a_draws),
        b_interval=interval(b_draws),
        n_runs=n_runs,
    )


def _other_counts(config: AnalyzeConfig, runs: Runs) -> tuple[OtherCount, ...]:
    found = []
    for name in runs.counts:
        other = runs.counted_as(name)
        columns = (other.params, other.tokens, other.loss)
        try:
            a_isoflop = fit_isoflop(*columns, other.budget).a
        except FitRefusedError:
            a_isoflop = None
        try:
            law = fit_parametric(*columns, surface_options(config)["approach3"]).law
            cost = fit_cost(other.params, other.tokens, other.flops)
            a_surface = float(cost.exponent(law.alpha, law.beta))
        except FitRefusedError:
            a_surface = None
        found.append(OtherCount(params=name, a_isoflop=a_isoflop, a_surface=a_surface))
    return tuple(found)


def _findings(group: GroupAnalysis, largest: float) -> list[Finding]:
    found = check_data(group.runs)
    found += check_curves(group.runs, group.curves)
    for estimate in group.estimates:
        if estimate.status == "refused":
            message = f"{estimate.title}: {estimate.reason}"
            found.append(Finding(level="refusal", code=estimate.name, message=message))
    compared = []
    for estimate in group.estimates:
        if estimate.status == "accepted" and estimate.a is not None:
            if estimate.name == "log_squares":
                continue  # a variant of Approach 3, for the table
            fit = estimate.fit
            floor = fit.law.E if isinstance(fit, ParametricFit) else None
            compared.append((estimate.title, estimate.a, estimate.a_interval, floor))
    found += check_agreement(compared)
    surface = group.surface
    if surface is not None and isinstance(surface.fit, ParametricFit):
        runs = group.runs
        found += check_trends(surface.fit.residuals(runs.params, runs.tokens, runs.loss), runs)
    return found + check_reach(group.target_flops, largest)
