"""One analysis: every estimator on each group of runs, with guards and back-tests."""

from dataclasses import replace
from typing import Any

import numpy as np

from llmtrain.scaling.binning import assign_budgets, drop_duplicates
from llmtrain.scaling.bootstrap import LawDraws
from llmtrain.scaling.budget_column import check_budgets
from llmtrain.scaling.compare import Side, comparison_notes, compute_multiplier
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.cost import CostModel, fit_cost
from llmtrain.scaling.design import NextRun, next_runs
from llmtrain.scaling.diagnose import (
    INFLUENCE_LIMIT,
    Finding,
    check_agreement,
    check_curves,
    check_forms,
    check_reach,
    check_stability,
    check_starts,
    check_steps,
    check_trends,
)
from llmtrain.scaling.envelope import EnvelopeFit
from llmtrain.scaling.estimate import refuse_all
from llmtrain.scaling.estimators import estimate_all, flops_of_curve, surface_options
from llmtrain.scaling.farseer import check_farseer
from llmtrain.scaling.forecast import (
    hold_out_largest,
    leave_small_budgets_out,
    seed_noise,
)
from llmtrain.scaling.held_model import hold_out_model
from llmtrain.scaling.influence import LeftOut, leave_out, leave_out_hull, leave_out_isoflop
from llmtrain.scaling.intake import check_rates, check_runs
from llmtrain.scaling.isoflop import IsoflopFit, read_curves
from llmtrain.scaling.lr_bracket import fit_bracket, split_rates
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.profile import profile_exponent
from llmtrain.scaling.results import Analysis, GroupAnalysis
from llmtrain.scaling.runs import Runs
from llmtrain.scaling.sensitivity import check_sensitivity
from llmtrain.scaling.training_curves import TrainingCurves, curves_of
from llmtrain.scaling.trunks import branch_costs, can_branch
from llmtrain.scaling.variations import Variation, vary
from llmtrain.spec.errors import ConfigError, FitRefusedError
from llmtrain.spec.expense import Expense

COMPARED = ("approach1_hull", "approach2", "approach3", "projection")
"""Methods that must agree; the others are variants of these."""


def compare_with(analysis: Analysis, base: Side) -> Analysis:
    """Return the analysis with its compute multipliers over `base`, at its own budgets.

    Raises FitRefusedError where either sweep has no surface, or they count differently.
    """
    group = analysis.groups[0]
    surface = group.surface
    if surface is None or len(analysis.groups) > 1:
        raise FitRefusedError("against= needs one group with an accepted surface; set group=")
    assert isinstance(surface.fit, ParametricFit)
    assert isinstance(surface.draws, LawDraws)
    given = group.runs.conventions
    own = Side(
        name=analysis.runs.source,
        law=surface.fit.law,
        draws=surface.draws,
        cost=group.cost,
        params=given.params,
        flops=given.flops,
        texts=given.texts,
    )
    budgets = group.runs.budgets
    flops = (
        budgets if len(budgets) else np.geomspace(group.runs.flops.min(), group.runs.flops.max(), 4)
    )
    found = compute_multiplier(base, own, np.append(flops, group.target_flops))
    notes = comparison_notes(base, own)
    return replace(analysis, multipliers=tuple(found), multiplier_notes=notes)


def analyze(
    config: AnalyzeConfig,
    runs: Runs,
    training: TrainingCurves | None = None,
    expense: Expense | None = None,
) -> Analysis:
    """Fit every group of `runs`, Approach 1 on the `training` curves too; `expense` goes along.

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
    groups = [
        analyze_group(config, name, runs.take(runs.group == name), training) for name in names
    ]
    analysis = Analysis(config=config, runs=runs, groups=tuple(groups), expense=expense)
    if all(e.fit is None for group in groups for e in group.estimates):
        raise FitRefusedError(f"no method fits {len(runs)} runs: {analysis.refusals}")
    return analysis


def analyze_group(
    config: AnalyzeConfig, group: str, rows: Runs, training: TrainingCurves | None = None
) -> GroupAnalysis:
    """Fit one group with every method; a method that refuses is listed with its reason."""
    rows, other_rates = split_rates(rows)
    repeated = check_rates(rows)
    training = curves_of(rows) if training is None else training.of(rows)
    finals = drop_duplicates(rows.finals())
    cost = fit_cost(finals.params, finals.tokens, finals.flops)
    largest = float(finals.flops.max())
    target = config.target_flops or 10.0 * largest
    try:
        off_budget = [] if config.budgets else check_budgets(finals, config.budget_tolerance)
    except FitRefusedError as error:
        refused = _refused(group, finals, cost, target, reason=str(error))
        return replace(refused, findings=(*repeated, *refused.findings))
    finals, budgets_from = assign_budgets(finals, config.budgets, config.budget_tolerance)
    found = estimate_all(config, rows, finals, cost, training)
    curves = read_curves(finals.params, finals.tokens, finals.loss, finals.budget)
    options = surface_options(config)["approach3"]
    partial = GroupAnalysis(
        group=group,
        runs=finals,
        budgets_from=budgets_from,
        training=training,
        cost=cost,
        curves=curves,
        estimates=found.methods,
        outliers=found.outliers,
        bias=found.bias,
        held_out=hold_out_largest(finals, options, config.bootstrap, config.seed, config.unit),
        held_model=hold_out_model(finals, options),
        steps=leave_small_budgets_out(finals, options, target),
        noise=seed_noise(finals),
        farseer=check_farseer(finals) if config.interaction else None,
        rates=None
        if other_rates is None
        else fit_bracket(finals, other_rates, config.bootstrap, config.seed),
        target_flops=target,
    )
    partial = replace(partial, **_about_surface(config, partial))
    partial = replace(partial, left_out=(*partial.left_out, *_left_out_of_lines(partial, rows)))
    partial = replace(partial, variations=tuple(_variations(partial)))
    return replace(partial, findings=(*repeated, *off_budget, *_findings(partial, largest)))


def _refused(
    group: str, finals: Runs, cost: CostModel, target: float, *, reason: str
) -> GroupAnalysis:
    """Return a group whose FLOPs and budgets are not of one unit: no curve, and no method fits."""
    return GroupAnalysis(
        group=group,
        runs=replace(finals, budget=np.full(len(finals), np.nan)),
        budgets_from="none: the budget column is refused",
        cost=cost,
        estimates=refuse_all(reason, cost, len(finals)),
        outliers=np.zeros(len(finals), dtype=bool),
        findings=(Finding(level="refusal", code="budget", message=reason),),
        target_flops=target,
    )


def _about_surface(config: AnalyzeConfig, group: GroupAnalysis) -> dict[str, Any]:
    """Return what only an accepted surface can tell: influence, other starts, next runs."""
    surface, runs = group.surface, group.runs
    if surface is None or not isinstance(surface.fit, ParametricFit):
        return {}
    fit = surface.fit
    columns = (runs.params, runs.tokens, runs.loss)
    squares = group.accepted("log_squares")
    assert squares is None or isinstance(squares, ParametricFit)
    return {
        "left_out": leave_out(fit, runs, group.cost),
        "sensitivity": check_sensitivity(fit, runs, config.seed),
        # With alpha = beta there is nothing to profile, and a profile lets E move.
        "profile": None
        if squares is None or squares.options.constrained
        else profile_exponent(squares, *columns),
        "next_runs": _next_runs(group, fit),
    }


def _left_out_of_lines(group: GroupAnalysis, rows: Runs) -> list[LeftOut]:
    """Return how a moves in Approach 2 and on the hull when what they rest on leaves."""
    found: list[LeftOut] = []
    isoflop, hull = group.estimate("approach2"), group.estimate("approach1_hull")
    if isoflop.status == "accepted" and isinstance(isoflop.fit, IsoflopFit):
        found += leave_out_isoflop(isoflop.fit, group.runs)
    if hull.status == "accepted" and isinstance(hull.fit, EnvelopeFit):
        columns = (rows.params, rows.tokens, flops_of_curve(rows), rows.loss)
        point = leave_out_hull(hull.fit, rows.run_id, columns)
        found += [] if point is None else [point]
    return found


def _next_runs(group: GroupAnalysis, fit: ParametricFit) -> tuple[NextRun, ...]:
    """Rank cells of the sizes at hand, at their budgets and at 3 and 10 times the largest.

    Costs are FLOPs: of the branch, where the runs' schedule has a part that branches can leave.
    """
    runs, C = group.runs, group.target_flops
    sizes = np.unique(runs.params)
    budgets = runs.budgets if len(runs.budgets) else np.quantile(runs.flops, [0.1, 0.5, 1.0])
    budgets = np.append(budgets, [3.0 * budgets[-1], 10.0 * budgets[-1]])
    n, cost = (grid.ravel() for grid in np.meshgrid(sizes, budgets))
    d = group.cost.tokens(cost, n)
    inside = (d / n > 0.5 * (runs.tokens / runs.params).min()) & (
        d / n < 2.0 * (runs.tokens / runs.params).max()
    )
    if not inside.any():
        return ()
    n_target = float(group.cost.n_opt(fit.law, C))
    noise = float(np.std(fit.residuals(runs.params, runs.tokens, runs.loss)))
    n, d, cost = n[inside], d[inside], cost[inside]
    if can_branch(runs):
        cost = branch_costs(runs, n, d, cost, in_turn=False)
    try:
        chosen = next_runs(
            fit.law,
            (runs.params, runs.tokens),
            (n_target, float(group.cost.tokens(C, n_target))),
            (n, d, cost),
            noise=noise,
            n_runs=5,
        )
    except FitRefusedError:
        return ()
    return tuple(chosen)


def _variations(group: GroupAnalysis) -> list[Variation]:
    """Return the headline, Approach 2 and the recommended surface under other choices."""
    isoflop = group.estimate("approach2")
    plain = isoflop if isoflop.status == "accepted" else None
    stand = dict.fromkeys(e for e in (group.main, plain, group.surface) if e is not None)
    return vary(list(stand), group.runs, group.outliers, group.cost, group.target_flops)


def _findings(group: GroupAnalysis, largest: float) -> list[Finding]:
    found = check_runs(group.runs)
    found += check_curves(group.runs, group.curves)
    if group.training is not None and group.training.unannealed:
        message = (
            f"{group.training.unannealed} of {len(group.training.loss)} points of the training "
            "curves lie before the end of their schedule (or of a run whose schedule is unknown): "
            "their losses are pessimistic, and so is Approach 1 where it uses them: on curves, and "
            "on the hull of a table; no other method does"
        )
        found.append(Finding(level="warning", code="unannealed", message=message))
    if group.outliers.any():
        names = ", ".join(map(str, group.runs.run_id[group.outliers]))
        where = "the row without outliers leaves them out" if group.has("approach2_robust") else ""
        message = f"off every smooth curve: {names}; {where or 'every fit keeps them'}"
        found.append(Finding(level="warning", code="diverged", message=message))
    if group.bias is not None and abs(group.bias.exponent_shift) > INFLUENCE_LIMIT:
        heeded = "the verdict does without it" if group.grid_misleads else "see the corrected row"
        message = (
            f"the grid alone moves Approach 2's a by {group.bias.exponent_shift:+.3f}: its centre "
            f"drifts from the optimum; {heeded}"
        )
        found.append(Finding(level="warning", code="grid", message=message))
    found += check_forms(group.interaction, group.farseer)
    for estimate in group.estimates:
        if estimate.status == "refused":
            message = f"{estimate.title}: {estimate.reason}"
            found.append(Finding(level="refusal", code=estimate.name, message=message))
    found += check_stability(group.left_out, group.held_out, group.held_model)
    found += check_starts(group.sensitivity)
    found += check_steps(group.steps, group.estimate("approach3").a_interval)
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
