import dataclasses
import itertools
import json
import math

import pytest

from llmtrain.scaling.published import published_law
from llmtrain.spec.build import build
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.settings import build_run
from llmtrain.spec.sweeps import SweepConfig
from llmtrain.sweep.centre import expected_params
from llmtrain.sweep.grid import choose_shapes, family, plan_sweep
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
    "mode": "fixed",
    "law": None,
    "lr_min": None,
    "lr_max": None,
    "adaptive": {
        "method": "approach2",
        "first_sizes": 4,
        "cells_per_round": 2,
        "width": 0.1,
        "forecast_sd": None,
        "forecast_flops": None,
        "max_flops": None,
        "max_rounds": 20,
    },
    "bracket": {"budgets": [], "factors": [0.5, 1.0, 2.0], "arm": 2.0},
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
    centre = expected_params(config, [], make(), flops)
    shapes = choose_shapes(config, make().model, vocab_size=256, seq_len=32, centre=centre)
    counts = [12 * s.n_layers * s.d_model**2 + 256 * s.d_model for s in shapes]
    return shapes, [math.log(n) for n in counts]


def test_optimum_follows_its_power_law(make):
    assert expected_params(sweep(), [], make(), 1e11) == 2e4
    assert expected_params(sweep(), [], make(), 4e11) == pytest.approx(4e4)


@pytest.mark.parametrize("flops", [1e11, 4e11])
def test_sizes_are_even_in_log_n_and_cover_both_arms(make, flops):
    _, sizes = log_sizes(make, sweep(), flops)
    centre = math.log(expected_params(sweep(), [], make(), flops))
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


def test_one_depth_per_width_and_a_plane_can_both_be_asked_for(make):
    ladder = family(
        sweep(widths=[32, 64, 128], depths=[1, 2, 4], aspect_min=31, aspect_max=33), make().model
    )
    assert [(s.d_model, s.n_layers) for s in ladder] == [(32, 1), (64, 2), (128, 4)]
    plane = family(sweep(aspect_min=1, aspect_max=999), make().model)
    assert len(plane) == len(SWEEP["widths"]) * len(SWEEP["depths"])


def test_a_bracket_adds_rates_at_the_optimum_and_on_both_arms(make):
    base = make(RULE | {"recipe.lr_multiplier": 0.8})
    modes = {
        "mode": "lr_bracket",
        "seeds": [0],
        "bracket": {"budgets": [4e11], "factors": [2.0, 0.5, 1.0], "arm": 3.0},
    }
    grid = plan_sweep(base, sweep(**modes), unique_tokens=10**6)
    plain = plan_sweep(base, sweep(seeds=[0]), unique_tokens=10**6)
    extra = [c for c in grid.cells if c.run_id not in {p.run_id for p in plain.cells}]
    assert {p.run_id for p in plain.cells} < {c.run_id for c in grid.cells}
    assert len(extra) == 3 * 2
    assert {c.config.budget.flops for c in extra} == {4e11}
    assert {c.config.recipe.lr_multiplier for c in extra} == {0.4, 1.6}
    sizes = sorted({c.plan.params["no_input_embedding"] for c in extra})
    assert math.log(sizes[0] / 4e4) == pytest.approx(-math.log(3), abs=0.5)
    assert math.log(sizes[1] / 4e4) == pytest.approx(0.0, abs=0.5)
    assert math.log(sizes[2] / 4e4) == pytest.approx(math.log(3), abs=0.5)
    for cell in extra:
        twin = next(
            p
            for p in plain.cells
            if p.config.model == cell.config.model and p.config.budget.flops == 4e11
        )
        factor = cell.config.recipe.lr_multiplier / 0.8
        assert cell.plan.hyper.peak_lr == pytest.approx(factor * twin.plan.hyper.peak_lr)
        assert f"recipe.lr_multiplier={0.8 * factor!r}" in cell.overrides()


@pytest.mark.parametrize(
    ("base", "changes", "reason"),
    [
        ({"budget.min_steps": 1000}, {}, "fewer than budget.min_steps=1000"),
        ({"data.max_epochs": 2.0}, {}, "more than data.max_epochs=2"),
        ({"runtime.memory_gb": 0.004}, {}, "more than runtime.memory_gb=0.004"),
        ({}, {"lr_max": 0.01}, "is outside sweep.lr_max=0.01"),
        ({}, {"lr_min": 0.008}, "is outside sweep.lr_min=0.008"),
    ],
)
def test_steps_epochs_memory_and_rate_each_refuse_some_cells_and_not_all(
    make, base, changes, reason
):
    grid = plan_sweep(make(RULE | base), sweep(seeds=[0], **changes), unique_tokens=10**6)
    assert grid.cells
    assert grid.refused
    assert all(reason in refused.reason for refused in grid.refused)


def test_a_law_centres_the_sizes_in_its_own_count(make, tmp_path):
    """The optimum is where the family, counted the law's way, meets the law."""
    shapes = family(sweep(), make().model)
    for name in ("besiroglu", "kaplan", "deepseek"):
        law = published_law(name)
        centre = expected_params(sweep(law=name), shapes, make(), 3e12)
        near = sorted(
            shapes,
            key=lambda s: abs(
                math.log((12 * s.n_layers * s.d_model**2 + 256 * s.d_model) / centre)
            ),
        )[:2]
        for shape in near:
            body, head = 12 * shape.n_layers * shape.d_model**2, 256 * shape.d_model
            attention = 12 * shape.n_layers * shape.d_model * 32
            tokens = 3e12 / (6 * (body + head) + attention)
            n, c = {
                "besiroglu": (body + 2 * head, 6 * (body + 2 * head) * tokens),
                "kaplan": (body, 6 * body * tokens),
                "deepseek": (6 * body + attention, (6 * body + attention) * tokens),
            }[name]
            gap = math.log(n / float(law.params_law.at(c)))
            away = math.log((body + head) / centre)
            assert gap == pytest.approx(away, abs=0.12 + 0.4 * abs(away)), (name, shape)


def test_a_law_that_cannot_centre_this_family_is_refused(make, tmp_path):
    shapes = family(sweep(), make().model)
    with pytest.raises(ConfigError, match="is neither a file nor one of"):
        expected_params(sweep(law="nonesuch"), shapes, make(), 1e11)
    with pytest.raises(ConfigError, match="does not exist"):
        expected_params(sweep(law=str(tmp_path / "law.json")), shapes, make(), 1e11)
    with pytest.raises(ConfigError, match="above the shapes of the family; change"):
        expected_params(sweep(law="besiroglu"), shapes, make(), 1e18)


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
        ({"branching": True, "mode": "adaptive"}, "use sweep.mode=fixed"),
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
    write_sweep(tmp_path, [grid])
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
