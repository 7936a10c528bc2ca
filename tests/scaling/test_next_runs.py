"""What to run next: the choice, its price, and what the report says about it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.design import (
    after_run,
    branch_flops,
    law_jacobian,
    next_cells,
    next_runs,
    parameter_covariance,
    trunk_and_branches,
)
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.next_tables import demand_table, next_table, trunk_table
from llmtrain.scaling.parametric import FitOptions, fit_parametric
from llmtrain.scaling.results import GroupAnalysis
from llmtrain.scaling.trunks import branch_costs, can_branch, trunks
from llmtrain.spec.errors import FitRefusedError

CHIN = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
Sweep = Callable[..., Path]
Config = Callable[..., AnalyzeConfig]


def cells(budgets: Array, sizes: Array) -> tuple[Array, Array, Array]:
    n, cost = (grid.ravel() for grid in np.meshgrid(sizes, budgets))
    return n, cost / (6 * n), cost


def test_the_first_choice_is_the_one_whose_exact_update_pays_most_per_cost() -> None:
    noise, rng = 0.004, np.random.default_rng(0)
    n, d, _ = cells(np.array([1e17, 1e18]), np.geomspace(1e7, 1e9, 6))
    covariance = parameter_covariance(CHIN, n, d, noise)
    rows = law_jacobian(CHIN, *(10 ** rng.uniform(low, low + 3, 40) for low in (7, 9)))
    targets = law_jacobian(CHIN, np.array([1e10, 3e10]), np.array([2e11, 6e11]))
    costs = rng.uniform(1.0, 100.0, 40)
    drops = [
        np.trace(targets @ (covariance - after_run(covariance, row, noise)) @ targets.T)
        for row in rows
    ]
    (choice,) = next_cells(covariance, rows, costs, targets, noise=noise, n_cells=1)
    assert choice.index == int(np.argmax(np.array(drops) / costs**0.35))
    one_by_one = []
    for _ in range(4):
        (found,) = next_cells(covariance, rows, costs, targets, noise=noise, n_cells=1)
        covariance = after_run(covariance, rows[found.index], noise)
        one_by_one.append(found.index)
    covariance = parameter_covariance(CHIN, n, d, noise)
    together = next_cells(covariance, rows, costs, targets, noise=noise, n_cells=4)
    assert [found.index for found in together] == one_by_one


def forecast(N: Array, D: Array, loss: Array, target: tuple[float, float]) -> float:
    try:
        law = fit_parametric(N, D, loss, FitOptions(link="log", delta=np.inf)).law
    except FitRefusedError:
        return float("nan")
    return float(np.log(law.loss(*target)))


def advised(
    first: tuple[Array, Array, Array], target: tuple[float, float], budget: float, noise: float
) -> tuple[Array, Array]:
    """Spend `budget` FLOPs as next_runs advises, by the law that the first runs give."""
    N, D, loss = first
    law = fit_parametric(N, D, loss, FitOptions(link="log", delta=np.inf)).law
    n, d, cost = cells(np.geomspace(1e17, 1e19, 7), np.geomspace(1e7, 1e9, 9))
    picked: list[tuple[float, float]] = []
    while (cost <= budget).any():
        n, d, cost = (column[cost <= budget] for column in (n, d, cost))
        so_far = np.array([*zip(N, D, strict=True), *picked]).T
        (run,) = next_runs(law, (so_far[0], so_far[1]), target, (n, d, cost), noise=noise, n_runs=1)
        picked.append((run.params, run.tokens))
        budget -= run.cost
    return tuple(np.array(picked).T)  # type: ignore[return-value]


@pytest.mark.slow
def test_advice_beats_a_uniform_grid_of_the_same_flops_on_a_planted_surface() -> None:
    noise, target = 0.004, (1e10, 3e11)
    truth = float(np.log(CHIN.loss(*target)))
    n, d, _ = cells(np.array([1e17, 3e17, 1e18]), np.geomspace(1e7, 1e9, 5))
    grid = cells(np.geomspace(1e17, 1e19, 4), np.geomspace(1e7, 1e9, 4))
    budget = float(grid[2].sum())
    at_target = law_jacobian(CHIN, *(np.array([x]) for x in target))[0]
    errors, variances = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)

        def measure(N: Array, D: Array, rng: np.random.Generator = rng) -> Array:
            return CHIN.loss(N, D) * np.exp(noise * rng.standard_normal(len(N)))

        first = (n, d, measure(n, d))
        try:
            extra = advised(first, target, budget, noise)
        except FitRefusedError:
            continue
        row, spread = [], []
        for more in (extra, grid[:2]):
            assert (6 * more[0] * more[1]).sum() <= budget * (1 + 1e-9)
            columns = (np.append(first[0], more[0]), np.append(first[1], more[1]))
            loss = np.append(first[2], measure(*more))
            row.append(forecast(*columns, loss, target) - truth)
            covariance = parameter_covariance(CHIN, *columns, noise)
            spread.append(float(at_target @ covariance @ at_target))
        errors.append(row)
        variances.append(spread)
    found = np.array(errors)
    assert np.isfinite(found).all(axis=1).sum() >= 35
    # What the refits miss by, and what they should by the true surface's own covariance.
    by_advice, by_grid = np.sqrt(np.nanmean(found**2, axis=0))
    assert by_advice < 0.95 * by_grid
    sd_advice, sd_grid = np.sqrt(np.mean(variances, axis=0))
    assert sd_advice < 0.9 * sd_grid
    assert by_advice == pytest.approx(sd_advice, rel=0.35)


def test_a_branch_pays_the_trunk_only_where_it_goes_further() -> None:
    tokens = np.array([1e9, 2e9, 4e9])
    assert branch_flops(tokens, 2.0, 1e10, 0.2) == pytest.approx(2.0 * 0.2 * tokens)
    assert branch_flops(tokens, 2.0, 0.0, 0.2) == pytest.approx(2.0 * tokens)
    whole = trunk_and_branches(tokens, 2.0, 0.2)
    assert whole[0] == pytest.approx(2e9)
    assert whole.sum() == pytest.approx(2.0 * (3.2e9 + 0.2 * 7e9))


def test_a_familys_trunks_cost_what_the_arithmetic_says(planted_sweep: Sweep) -> None:
    runs = load_runs(planted_sweep((1e11, 2e11), seeds=(0, 1)))
    found = trunks(runs)
    assert len(found) == 9
    # D is in proportion to C at one size: a trunk of .8 * 2e11 and cooldowns of .2 * (1 + 2)e11.
    for trunk in found:
        assert trunk.lengths == 2
        assert trunk.separate == pytest.approx(2 * 3e11, rel=1e-3)
        assert trunk.branched == pytest.approx(2 * (1.6e11 + 0.6e11), rel=1e-3)


def test_a_repeated_cell_costs_a_run_of_its_own_and_a_new_one_its_branch(
    planted_sweep: Sweep,
) -> None:
    runs = load_runs(planted_sweep((1e11,)))
    n, d, C = (column[[0, 0, 0]] for column in (runs.params, runs.tokens, runs.flops))
    d, C = d * [1.0, 0.5, 2.0], C * [1.0, 0.5, 2.0]
    found = branch_costs(runs, n, d, C, in_turn=False)
    assert found == pytest.approx(runs.flops[0] * np.array([1.0, 0.5 * 0.2, 0.8 + 0.4]))
    twice = branch_costs(runs, n[[2, 2]], d[[2, 2]], C[[2, 2]], in_turn=True)
    assert twice == pytest.approx([found[2], C[2]])


@pytest.fixture(scope="module")
def branching(planted_sweep: Sweep, analyze_config: Config) -> GroupAnalysis:
    root = planted_sweep(change=lambda r: dataclasses.replace(r, schedule="wsd"))
    return analyze(analyze_config(), load_runs(root)).groups[0]


def with_schedule(group: GroupAnalysis, name: str) -> GroupAnalysis:
    records = tuple(dataclasses.replace(r, schedule=name) for r in group.runs.records)
    return dataclasses.replace(group, runs=dataclasses.replace(group.runs, records=records))


@pytest.mark.parametrize(("schedule", "words"), [("cosine", "would cost"), ("wsd", "allows it")])
def test_the_report_prices_runs_apart_and_as_branches(
    branching: GroupAnalysis, schedule: str, words: str
) -> None:
    group = with_schedule(branching, schedule)
    assert can_branch(group.runs) == (schedule == "wsd")
    table, whole = next_table(group), trunk_table(group)
    assert table is not None
    assert whole is not None
    assert words in whole.note
    assert len(whole.rows) == 10
    apart, branched = (float(whole.rows[-1][i]) for i in (2, 3))
    assert branched < 0.8 * apart
    assert "as a branch" in table.header[5]
    assert all(float(row[5]) <= float(row[4]) for row in table.rows)
    assert "Stopping rule" in table.note


def test_a_branching_sweep_is_advised_by_the_price_of_its_branches(
    branching: GroupAnalysis,
) -> None:
    first = branching.next_runs[0]
    cell = np.array([first.params]), np.array([first.tokens])
    apart = branching.cost.per_token(cell[0]) * cell[1]
    branch = branch_costs(branching.runs, *cell, apart, in_turn=False)[0]
    assert first.cost == pytest.approx(branch, rel=1e-6)
    assert first.cost < apart[0]


def test_the_report_says_what_to_train_for_a_demand(branching: GroupAnalysis) -> None:
    table = demand_table(branching)
    assert table is not None
    assert table.rows[0][-1] == "0.0 %"
    ratios = [float(row[3]) for row in table.rows]
    assert ratios == sorted(ratios)
    assert float(table.rows[-1][-1].split()[0]) > 10.0


@pytest.mark.parametrize(("sd", "rule"), [(1e-5, "stop, the forecast"), (0.02, "go on until")])
def test_the_report_says_stop_once_the_forecast_is_sharp(
    planted_sweep: Sweep, analyze_config: Config, sd: float, rule: str
) -> None:
    group = analyze(analyze_config(), load_runs(planted_sweep(sd=sd))).groups[0]
    table = next_table(group)
    assert table is not None
    assert f"Stopping rule: {rule}" in table.note
