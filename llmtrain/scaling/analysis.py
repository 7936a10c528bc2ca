"""One analysis: every estimator on one group of runs, its intervals, guards and back-tests."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.bias import GridBias
from llmtrain.scaling.binning import assign_budgets, drop_duplicates
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.cost import CostModel, fit_cost
from llmtrain.scaling.diagnose import (
    INFLUENCE_LIMIT,
    Finding,
    check_agreement,
    check_curves,
    check_data,
    check_reach,
    check_trends,
)
from llmtrain.scaling.estimators import Estimate, Fit, estimate_all, surface_options
from llmtrain.scaling.forecast import (
    HeldOut,
    SeedNoise,
    Step,
    hold_out_largest,
    leave_small_budgets_out,
    parabola_residuals,
    seed_noise,
)
from llmtrain.scaling.isoflop import Curve, fit_isoflop, read_curves
from llmtrain.scaling.law import Array
from llmtrain.scaling.parametric import ParametricFit, fit_parametric
from llmtrain.scaling.runs import Runs
from llmtrain.spec.errors import ConfigError, FitRefusedError

COMPARED = ("approach1_hull", "approach2", "approach3", "projection")
"""Methods that must agree; the others are variants of these."""


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
    outliers: NDArray[np.bool_]
    """Rows of `runs` that no smooth curve explains."""
    bias: GridBias | None
    """Expected error of Approach 2 on this grid."""
    findings: tuple[Finding, ...]
    held_out: HeldOut | None
    steps: tuple[Step, ...]
    noise: SeedNoise | None
    counts: tuple[OtherCount, ...]
    target_flops: float

    def estimate(self, name: str) -> Estimate:
        """Return the estimate of a method."""
        return next(e for e in self.estimates if e.name == name)

    def has(self, name: str) -> bool:
        """Return whether a method was tried."""
        return any(e.name == name for e in self.estimates)

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

        Approach 2 (without outliers, where there are any), which assumes least, where every curve
        has its minimum; where curves had to be dropped, whichever of Approach 2 and the recommended
        surface knows a better.
        """
        name = "approach2_robust" if self.has("approach2_robust") else "approach2"
        isoflop, surface = self.estimate(name), self.surface
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
    found = estimate_all(config, rows, finals, cost)
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
        estimates=found.methods,
        outliers=found.outliers,
        bias=found.bias,
        findings=(),
        held_out=hold_out_largest(finals, options, config.bootstrap, config.seed),
        steps=leave_small_budgets_out(finals, options),
        noise=seed_noise(finals),
        counts=_other_counts(config, finals),
        target_flops=target,
    )
    return replace(partial, findings=tuple(_findings(partial, largest)))


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
    if group.outliers.any():
        names = ", ".join(map(str, group.runs.run_id[group.outliers]))
        message = f"outliers, left out of the robust Approach 2 only: {names}"
        found.append(Finding(level="warning", code="diverged", message=message))
    if group.bias is not None and abs(group.bias.exponent_shift) > INFLUENCE_LIMIT:
        message = (
            f"the grid alone moves Approach 2's a by {group.bias.exponent_shift:+.3f}: its centre "
            "drifts from the optimum; see the corrected row"
        )
        found.append(Finding(level="warning", code="grid", message=message))
    for estimate in group.estimates:
        if estimate.status == "refused":
            message = f"{estimate.title}: {estimate.reason}"
            found.append(Finding(level="refusal", code=estimate.name, message=message))
    compared = []
    for estimate in group.estimates:
        if estimate.status == "accepted" and estimate.a is not None:
            if estimate.name not in COMPARED:
                continue
            fit = estimate.fit
            floor = fit.law.E if isinstance(fit, ParametricFit) else None
            compared.append((estimate.title, estimate.a, estimate.a_interval, floor))
    found += check_agreement(compared)
    surface = group.surface
    if surface is not None and isinstance(surface.fit, ParametricFit):
        runs = group.runs
        found += check_trends(surface.fit.residuals(runs.params, runs.tokens, runs.loss), runs)
    return found + check_reach(group.target_flops, largest)
