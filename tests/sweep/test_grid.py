import dataclasses
import itertools
import json
import math

import pytest

from llmtrain.spec.build import build
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.settings import SweepConfig, build_run
from llmtrain.sweep.grid import choose_shapes, expected_optimum, plan_sweep
from llmtrain.sweep.ledger import write_sweep

SWEEP = {
    "name": "family",
    "budgets": [1e11, 4e11],
    "widths": [8, 16, 24, 32, 48, 64, 96, 128],
    "depths": [1, 2, 3, 4],
    "n_heads": None,
    "aspect_min": 4.0,
    "aspect_max": 64.0,
    "sizes_per_budget": 7,
    "span": 6.0,
    "optimum_flops": 1e11,
    "optimum_params": 2e4,
    "optimum_exponent": 0.5,
    "seeds": [0, 1],
    "branching": False,
}
RULE = {
    "recipe.name": "demo",
    "recipe.peak_lr": None,
    "recipe.batch_tokens": None,
    "recipe.warmup_tokens": None,
    "budget.min_steps": 100,
    "data.max_epochs": 1e6,
}


def sweep(**changes):
    return build(SweepConfig, SWEEP | changes)


def log_sizes(make, config, flops):
    shapes = choose_shapes(config, make().model, vocab_size=256, seq_len=32, flops=flops)
    counts = [12 * s.n_layers * s.d_model**2 + 256 * s.d_model for s in shapes]
    return shapes, [math.log(n) for n in counts]


def test_optimum_follows_its_power_law():
    assert expected_optimum(sweep(), 1e11) == 2e4
    assert expected_optimum(sweep(), 4e11) == pytest.approx(4e4)


@pytest.mark.parametrize("flops", [1e11, 4e11])
def test_sizes_are_even_in_log_n_and_cover_both_arms(make, flops):
    _, sizes = log_sizes(make, sweep(), flops)
    centre = math.log(expected_optimum(sweep(), flops))
    assert sizes == sorted(sizes)
    assert sum(n < centre - 0.5 for n in sizes) >= 2
    assert sum(n > centre + 0.5 for n in sizes) >= 2
    gaps = [b - a for a, b in itertools.pairwise(sizes)]
    even = 2 * math.log(6.0) / 6
    assert max(gaps) < 2.2 * even
    assert min(gaps) > 0.0


def test_width_and_depth_both_vary_at_comparable_size(make):
    shapes, _ = log_sizes(make, sweep(), 1e11)
    assert len({s.n_layers for s in shapes}) >= 2
    assert len({s.d_model for s in shapes}) >= 4
    near = [
        (a, b)
        for a in shapes
        for b in shapes
        if a.n_layers != b.n_layers and abs(math.log(a.d_model / b.d_model)) < 0.45
    ]
    assert near


def test_every_cell_meets_its_budget_and_every_refusal_has_a_reason(make):
    grid = plan_sweep(make(RULE), sweep(), unique_tokens=10**6)
    assert len(grid.cells) + len(grid.refused) == 2 * 7 * 2
    for cell in grid.cells:
        flops = cell.plan.flops["full_attention"]
        assert flops == pytest.approx(cell.config.budget.flops, rel=0.005)
        assert cell.config.name == "family"
    assert {cell.config.seed for cell in grid.cells} == {0, 1}
    assert len({cell.run_id for cell in grid.cells}) == len(grid.cells)


def test_a_cell_that_cannot_be_trained_is_refused_with_its_reason(make):
    config = make(RULE | {"budget.min_steps": 1000})
    grid = plan_sweep(config, sweep(budgets=[1e11]), unique_tokens=10**6)
    assert grid.refused
    assert grid.cells
    assert all("fewer than budget.min_steps=1000" in r.reason for r in grid.refused)


def test_a_ladder_too_short_is_refused(make):
    with pytest.raises(ConfigError, match="make 2 shapes within the aspect bounds"):
        log_sizes(make, sweep(widths=[16, 32], depths=[2]), 1e11)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": []}, "sweep.budgets is empty"),
        ({"budgets": [1e11, 1e11]}, "names a value twice"),
        ({"budgets": [-1.0]}, "finite number above 0"),
        ({"span": 1.0}, "must be above 1"),
        ({"name": "../x"}, "must match"),
        ({"seeds": []}, "sweep.seeds is empty"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        sweep(**changes)


TRUNKS = {
    "budgets": [4e10, 9e10, 2e11],
    "sizes_per_budget": 4,
    "span": 2.25,  # the sizes of two budgets next to each other are one step of the ladder apart
    "optimum_params": 1e4,
    "branching": True,
}


def test_cells_of_one_shape_and_seed_share_a_trunk_and_the_saving_is_stored(make, tmp_path):
    config = make(RULE | {"schedule.name": "wsd", "budget.tolerance": 0.01})
    plain = plan_sweep(config, sweep(**TRUNKS | {"branching": False}), unique_tokens=None)
    grid = plan_sweep(config, sweep(**TRUNKS), unique_tokens=None)
    assert not grid.refused

    def points(cells):
        return {(c.config.model, c.config.seed, c.config.budget.flops) for c in cells}

    assert points(grid.cells) == points(plain.cells)
    cells = {cell.run_id: cell for cell in grid.cells}
    assert len(cells) == len(grid.cells)
    shared: dict[tuple, list] = {}
    for cell in grid.cells:
        shared.setdefault((cell.config.model, cell.config.seed), []).append(cell)
    assert max(len(members) for members in shared.values()) == 3
    expected = 0.0
    for trunk, *branches in shared.values():
        largest = max(cell.config.budget.flops for cell in (trunk, *branches))
        assert trunk.config.budget.flops == largest
        assert trunk.config.checkpoint.branch_from is None
        assert all(b.config.checkpoint.branch_from == trunk.run_id for b in branches)
        assert len(trunk.config.checkpoint.branch_at) == len(branches)
        expected += largest + 0.2 * sum(b.config.budget.flops for b in branches)
    assert sum(cell.spent for cell in grid.cells) == pytest.approx(expected, rel=0.005)
    write_sweep(tmp_path, grid)
    stored = json.loads((tmp_path / "sweep.json").read_text())
    assert stored["flops_spent"] == pytest.approx(expected, rel=0.005)
    assert stored["flops"] == pytest.approx(8 * sum(TRUNKS["budgets"]), rel=0.005)
    assert {c["trunk"] for c in stored["cells"].values()} <= {*cells, None}


def test_the_overrides_of_a_branch_make_it_again(make):
    one = {"budget.n_tokens": None, "budget.flops": 1e11}
    config = make(RULE | one | {"schedule.name": "wsd", "budget.tolerance": 0.01})
    cells = plan_sweep(config, sweep(**TRUNKS), unique_tokens=None).cells
    branch = next(cell for cell in cells if cell.config.checkpoint.branch_from)
    given = dict(override.split("=", 1) for override in branch.overrides())
    base = dataclasses.asdict(config)
    for key, value in given.items():
        group, _, field = key.rpartition(".")
        target = base[group] if group else base
        numeric = value.replace("e", "").strip("-.0123456789") == ""
        target[field] = json.loads(value) if numeric or value in ("null", "[]") else value
    assert build_run(base)[0] == branch.config


def test_a_sweep_without_a_constant_rate_has_no_trunks(raw):
    with pytest.raises(ConfigError, match=r"sweep.branching: schedule.name=cosine .* use"):
        build_run(raw | {"sweep": SWEEP | TRUNKS})
