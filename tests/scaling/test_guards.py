"""Every guard by name: planted data that trips it, and clean data that trips none."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.diagnose import check_steps
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.results import GroupAnalysis
from llmtrain.spec.errors import FitRefusedError

Config = Callable[..., AnalyzeConfig]
LAW = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
BUDGETS = np.geomspace(1e18, 1e20, 5)


@dataclasses.dataclass
class Rows:
    """A grid round the optimum: five budgets of nine sizes, noise of 0.1 %."""

    N: Array
    D: Array
    C: Array
    loss: Array
    more: dict[str, list[str]]

    def write(self, path: Path) -> Path:
        columns = {"params": self.N, "tokens": self.D, "flops": self.C, "loss": self.loss}
        cells = {**{k: [repr(float(v)) for v in own] for k, own in columns.items()}, **self.more}
        lines = [",".join(cells), *(",".join(row) for row in zip(*cells.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def grid(reach: float = 4.0, law: LossLaw = LAW, sd: float = 0.001) -> Rows:
    C = np.repeat(BUDGETS, 9)
    N = np.concatenate([float(LAW.n_opt(c)) * np.geomspace(1 / reach, reach, 9) for c in BUDGETS])
    D = C / 6 / N
    noise = np.exp(sd * np.random.default_rng(0).standard_normal(len(N)))
    return Rows(N=N, D=D, C=C, loss=law.loss(N, D) * noise, more={})


def study(rows: Rows, tmp_path: Path, config: AnalyzeConfig) -> GroupAnalysis:
    return analyze(config, load_runs(rows.write(tmp_path / "runs.csv"))).groups[0]


def off_centre(rows: Rows) -> None:
    """The first budget's sizes all lie above its optimum."""
    first = rows.C.min() == rows.C
    rows.N[first] *= 12.0
    rows.D[first] /= 12.0
    rows.loss[first] = LAW.loss(rows.N[first], rows.D[first])


def dome(rows: Rows) -> None:
    first = rows.C.min() == rows.C
    u = np.log(rows.N[first])
    rows.loss[first] = 3.4 - 0.02 * (u - u.mean()) ** 2


def thin(rows: Rows) -> None:
    keep = (rows.C.min() < rows.C) | (np.cumsum(rows.C.min() == rows.C) <= 3)
    rows.N, rows.D, rows.C, rows.loss = (
        column[keep] for column in (rows.N, rows.D, rows.C, rows.loss)
    )


def diverge(rows: Rows) -> None:
    rows.loss[-1] *= 1.2


def repeat(rows: Rows) -> None:
    """A learning-rate sweep at one cell: the same cell at a higher loss."""
    rows.N, rows.D, rows.C, rows.loss = (
        np.append(column, column[4]) for column in (rows.N, rows.D, rows.C, rows.loss)
    )
    rows.loss[-1] *= 1.01


def near_twin(rows: Rows) -> None:
    rows.N[5], rows.D[5] = rows.N[4] * 1.002, rows.D[4] / 1.002
    rows.loss[5] = rows.loss[4]


def unfinished(rows: Rows) -> None:
    rows.more["status"] = ["done"] * (len(rows.N) - 1) + ["failed"]


def unannealed(rows: Rows) -> None:
    rows.more["annealed"] = ["true"] * (len(rows.N) - 1) + ["false"]


def checkpoints(rows: Rows) -> None:
    """Each run has a point half way, before its schedule's end."""
    n = len(rows.N)
    rows.more["run_id"] = [f"r{i}" for i in range(n)] * 2
    rows.N = np.tile(rows.N, 2)
    rows.D = np.concatenate([rows.D, rows.D / 2])
    rows.C = np.concatenate([rows.C, rows.C / 2])
    rows.loss = np.concatenate([rows.loss, rows.loss * 1.1])


def two_states_of_code(rows: Rows) -> None:
    rows.more["code_id"] = ["aaaa"] * (len(rows.N) - 1) + ["aaaa+bbbb"]


def mixed_schedules(rows: Rows) -> None:
    rows.more["schedule"] = ["cosine"] * (len(rows.N) - 1) + ["wsd"]


def mixed_recipes(rows: Rows) -> None:
    rows.more["recipe"] = ["a"] * 40 + [""] * 3 + ["b"] * 2
    rows.more["optimizer"] = ["adamw"] * 44 + [""]


def billions(rows: Rows) -> None:
    rows.N, rows.D, rows.C = rows.N / 1e6, rows.D / 1e9, rows.C / 1e15


def petaflop_days(rows: Rows) -> None:
    rows.C = rows.C / 8.64e19


def perplexities(rows: Rows) -> None:
    rows.loss = np.exp(rows.loss)


def varying_cost(rows: Rows) -> None:
    rows.C = rows.C * (rows.N / rows.N.min()) ** -0.2


def wobble(rows: Rows) -> None:
    """A loss that the five constants cannot follow."""
    u = np.log(rows.C) - np.log(rows.C).mean()
    rows.loss = rows.loss * (1 - 0.003 * u**2)


def curved_in_size(rows: Rows) -> None:
    """Away from the middle sizes the loss rises by more than any law says."""
    rows.loss = rows.loss * (1 + 0.004 * (np.log(rows.N) - np.log(rows.N).mean()) ** 2)


def tilt(rows: Rows, slope: float) -> None:
    """The largest budget alone prefers smaller models."""
    last = rows.C.max() == rows.C
    u = np.log(rows.N[last])
    rows.loss[last] *= 1 + slope * (u - u.mean())


def heavy_budget(rows: Rows) -> None:
    tilt(rows, 0.008)


def one_budget_apart(rows: Rows) -> None:
    tilt(rows, 0.03)


def drift_of_centre(rows: Rows) -> None:
    """Wide curves whose centre runs away from the optimum."""
    wide = grid(30.0)
    rows.N = wide.N * np.repeat(np.geomspace(1.0, 1 / 20, 5), 9)
    rows.D = rows.C / 6 / rows.N
    rows.loss = LAW.loss(rows.N, rows.D)


WARNED: list[tuple[str, Callable[[Rows], None], str]] = [
    ("edge", off_centre, "is not inside the grid"),
    ("curvature", dome, "curvature"),
    ("thin", thin, "3 sizes, needs 4"),
    ("diverged", diverge, "row 46"),
    ("excluded", repeat, "1 x repeats another row's cell"),
    ("duplicates", near_twin, "1 pairs of sizes within 1 %"),
    ("excluded", unfinished, "1 x status failed"),
    ("excluded", unannealed, "1 x not annealed, among annealed runs"),
    ("unannealed", checkpoints, "45 of 90 points"),
    ("code", two_states_of_code, "aaaa (44 runs), aaaa+bbbb (1 run)"),
    ("mixed", mixed_schedules, "runs of 2 schedules are fitted together: cosine, wsd"),
    ("mixed", mixed_recipes, "runs of 2 recipes are fitted together: a, b"),
    ("units", billions, "not millions or billions"),
    ("units", petaflop_days, "not PF-days"),
    ("loss", perplexities, "take the logarithm of perplexities"),
    ("conventions", varying_cost, "vary with the size"),
    ("trend", wobble, "standard errors"),
    ("methods", one_budget_apart, "the methods differ"),
    ("backtest", one_budget_apart, "misses"),
    ("drift", curved_in_size, "it drifts with scale"),
    ("influence", heavy_budget, "moves a by"),
    ("grid", drift_of_centre, "its centre drifts"),
]


@pytest.mark.parametrize(
    ("code", "fault", "words"),
    WARNED,
    ids=[f"{code}-{fault.__name__}" for code, fault, _ in WARNED],
)
def test_a_fault_trips_its_guard_by_name(
    code: str, fault: Callable[[Rows], None], words: str, tmp_path: Path, analyze_config: Config
) -> None:
    rows = grid()
    fault(rows)
    found = study(rows, tmp_path, analyze_config(bootstrap=50)).findings
    messages = [f.message for f in found if f.level == "warning" and f.code == code]
    assert any(words in message for message in messages), [(f.code, f.message) for f in found]


def test_clean_runs_trip_no_guard(tmp_path: Path, analyze_config: Config) -> None:
    group = study(grid(), tmp_path, analyze_config(bootstrap=50))
    assert [f for f in group.findings if f.level != "note"] == []
    assert all(e.status == "accepted" for e in group.estimates)


def test_few_rows_left_after_small_budgets_say_nothing_of_drift(
    tmp_path: Path, analyze_config: Config
) -> None:
    rows = grid()
    curved_in_size(rows)
    group = study(rows, tmp_path, analyze_config(bootstrap=50))
    steps, bounds = group.steps, group.estimate("approach3").a_interval
    assert [step.n_runs for step in steps] == [45, 36, 27]
    assert [f.code for f in check_steps(steps, bounds)] == ["drift"]
    # The same exponents from 19 rows, or from fewer than half of all rows.
    few = [dataclasses.replace(step, n_runs=n) for step, n in zip(steps, (24, 19, 14), strict=True)]
    assert check_steps(few, bounds) == []
    small = dataclasses.replace(steps[0], n_runs=73)
    assert check_steps([small, *steps[1:]], bounds) == []


def test_a_ladder_of_one_ratio_is_refused_by_every_method(
    tmp_path: Path, analyze_config: Config
) -> None:
    rows = grid()
    rows.D = 20 * rows.N
    rows.C, rows.loss = 6 * rows.N * rows.D, LAW.loss(rows.N, rows.D)
    group = study(rows, tmp_path, analyze_config(bootstrap=50))
    reasons = {e.name: e.reason for e in group.estimates}
    assert group.main is None
    assert "the hull follows the grid" in reasons["approach1_hull"]
    assert "needs 3 budgets" in reasons["approach2"]
    assert "not identified" in reasons["approach3"]


def test_two_usable_budgets_refuse_approach_2(tmp_path: Path, analyze_config: Config) -> None:
    rows = grid()
    keep = rows.C > 2e19
    rows.N, rows.D, rows.C, rows.loss = (c[keep] for c in (rows.N, rows.D, rows.C, rows.loss))
    group = study(rows, tmp_path, analyze_config(bootstrap=50))
    assert "needs 3 budgets" in group.estimate("approach2").reason
    assert any(f.level == "refusal" and f.code == "approach2" for f in group.findings)


def test_an_impossible_exponent_is_refused(tmp_path: Path, analyze_config: Config) -> None:
    rows = grid()
    centre = np.log(1e8) + 1.2 * np.log(rows.C / 1e18)
    u = np.tile(np.linspace(-1, 1, 9), 5)
    rows.N = np.exp(centre + u)
    rows.D = rows.C / 6 / rows.N
    rows.loss = 4.0 - 0.1 * np.log10(rows.C / 1e18) + 0.05 * u**2
    group = study(rows, tmp_path, analyze_config(bootstrap=50))
    assert "outside (0, 1)" in group.estimate("approach2").reason


@pytest.mark.parametrize(
    "column", ["data", "dataset", "tokenizer", "eval_data", "params_convention", "flops_convention"]
)
def test_a_group_that_declares_two_is_not_pooled(column: str, tmp_path: Path) -> None:
    rows = grid()
    rows.more[column] = ["a"] * 40 + ["b"] * 5
    with pytest.raises(FitRefusedError, match=f"mixes {column} 'a' and 'b'; give each its own"):
        load_runs(rows.write(tmp_path / "runs.csv"))


def test_approach_1_alone_carries_the_verdict_and_says_so(
    tmp_path: Path, analyze_config: Config
) -> None:
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1e7, 3e8, 12)
    ends = np.full(12, 6e9)
    lines = ["params,tokens,loss,run_id"]
    for n, end in zip(sizes, ends, strict=True):
        for d in np.linspace(end / 30, end, 30):
            loss = LAW.loss(float(n), float(d)) * np.exp(1e-4 * rng.standard_normal())
            lines.append(f"{n},{d},{loss},m{n:.3g}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    (group,) = analyze(analyze_config(bootstrap=50), load_runs(path)).groups
    assert group.main is group.estimate("approach1_hull")
    assert group.main.a == pytest.approx(LAW.a, abs=0.05)
    assert group.surface is None
