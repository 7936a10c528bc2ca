"""Hydra's own sweeps, adaptive sweeps and rate brackets, as a user types them."""

import itertools
import json
import os
import re

import pytest

from llmtrain.sweep.sweeper import varied_overrides

FAMILY = [
    "sweep=isoflop",
    "sweep.name=mini",
    "sweep.budgets=[1e9,1.5e9,2e9]",
    "sweep.widths=[8,12,16,20,24,32]",
    "sweep.depths=[1]",
    "sweep.aspect_min=4",
    "sweep.n_heads=1",
    "sweep.sizes_per_budget=4",
    "sweep.span=2",
    "sweep.optimum_flops=1e9",
    "sweep.optimum_params=6e3",
]


def records(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/record.json")}


@pytest.mark.parametrize(
    ("swept", "field", "values"),
    [
        ("model.d_model=choice(8,16)", "d_model", {8, 16}),
        ("seed=range(0,3)", "seed", {0, 1, 2}),
        ("budget.flops=range(1e9,2e9,step=5e8)", "flops_budget", {1e9, 1.5e9}),
    ],
)
def test_any_hydra_sweep_runs_through_the_same_launcher(
    cli, tiny_overrides, tmp_path, swept, field, values
):
    done = cli("train.py", *tiny_overrides, "name=swept", swept, "-m")
    assert done.returncode == 0, done.stderr
    assert f"{len(values)} cells: 0 done before, {len(values)} to train" in done.stdout
    assert {record[field] for record in records(tmp_path / "runs/swept").values()} == values


@pytest.mark.parametrize(
    ("swept", "message"),
    [
        (["name=a,b"], "name=a and name=b make one run, C1e9-w16d1-s0-"),
        (["runtime.n_threads=1,2", "seed=0,1"], "runtime.n_threads=1 and runtime.n_threads=2 make"),
        ([*FAMILY, "sweep.name=a,b"], "name=a and name=b make one run, C1e9-w8d1-s0-"),
    ],
)
def test_a_product_of_runs_that_are_one_is_refused_before_any_file(
    cli, tiny_overrides, tmp_path, swept, message
):
    before = set(tmp_path.iterdir())
    done = cli("train.py", *tiny_overrides, *swept, "-m")
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert set(tmp_path.iterdir()) == before


def test_what_a_run_id_tells_and_what_no_run_has_is_not_repeated():
    points = [
        ["optimizer=adamw", "seed=0", "sweep.budgets=[1e9]", "sweep=isoflop", "name=x"],
        ["optimizer=muon", "seed=1", "sweep.budgets=[2e9]", "sweep=demo", "name=x"],
    ]
    assert varied_overrides(points) == {"optimizer=adamw", "optimizer=muon"}


def test_cells_that_differ_in_an_option_alone_are_told_apart_by_it(cli, tiny_overrides, tmp_path):
    swept = ["optimizer=adamw,nadam", "model.d_model=8,16", "seed=0"]
    for given in (["dry_run=true"], []):
        done = cli("train.py", *tiny_overrides, "name=told", *swept, *given, "-m")
        assert done.returncode == 0, done.stderr
        for name, width in itertools.product(("adamw", "nadam"), (8, 16)):
            told = re.findall(rf"C1e9-w{width}d1-s0-\w+  optimizer={name} +N ", done.stdout)
            assert len(told) == 1, done.stdout
    assert "  model.d_model=" not in done.stdout  # the run id says that
    for given in (["optimizer=nadam"], []):  # later commands do not know of the product
        again = cli("train.py", *tiny_overrides, "name=told", *given, "model.d_model=8,16", "-m")
        assert again.returncode == 0, again.stderr
    status = cli("status.py", "runs=runs/told")
    found = re.findall(r"^done (\S+)  optimizer=(\w+)  loss", status.stdout, re.MULTILINE)
    assert sorted(name for _, name in found) == ["adamw", "adamw", "nadam", "nadam"]
    for run, name in found:
        config = json.loads((tmp_path / "runs/told" / run / "config.json").read_text())["config"]
        assert config["optimizer"]["name"] == name


def test_a_run_that_a_product_names_twice_is_trained_once(cli, tiny_overrides, tmp_path):
    done = cli("train.py", *tiny_overrides, "name=once", "seed=1,1", "-m")
    assert done.returncode == 0, done.stderr
    assert len(records(tmp_path / "runs/once")) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.launcher.compile_ahead=1", "compile_ahead=1 has nothing to do with runtime.com"),
        ("hydra.launcher.compile_ahead=-1", "compile_ahead=-1 must lie in [0, 64]"),
        ("runtime.compile=true", "can be written by others"),
    ],
)
@pytest.mark.parametrize("mode", ["fixed", "adaptive"])
def test_what_cannot_be_compiled_ahead_is_refused_before_any_file(
    cli, tiny_overrides, tmp_path, tmp_path_factory, monkeypatch, override, message, mode
):
    shared = tmp_path_factory.mktemp("shared")
    shared.chmod(0o777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared))
    done = cli("train.py", *tiny_overrides, *FAMILY, f"sweep.mode={mode}", override)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_adaptive_sweep_writes_its_rounds_and_the_same_command_trains_nothing(
    cli, tiny_overrides, tmp_path
):
    asked = ["sweep.mode=adaptive", "sweep.adaptive.width=null", "sweep.adaptive.max_flops=2.2e10"]
    arguments = [*tiny_overrides, *FAMILY, *asked]
    plan = cli("plan.py", *arguments)
    assert plan.returncode == 0, plan.stderr
    assert "8 cells, 0 refused" in plan.stdout
    assert "round 1: 8 cells" in plan.stdout
    assert "later rounds depend on its losses" in plan.stdout
    done = cli("train.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "stopped after" in done.stdout
    assert ": cost: " in done.stdout
    folder = tmp_path / "runs/mini"
    saved = json.loads((folder / "rounds.json").read_text())
    listed = [cell["run_id"] for entry in saved["rounds"] for cell in entry["cells"]]
    found = records(folder)
    assert sorted(listed) == sorted(found)
    assert sum(r["flops"]["full_attention"] for r in found.values()) <= 2.2e10
    assert {r["flops_budget"] for r in found.values()} == {1e9, 1.5e9, 2e9}
    assert len(saved["rounds"]) > 1
    locks = [path.read_text() for path in folder.glob("*/lock")]
    workers = {re.search(r"process (\d+)", lock)[1] for lock in locks}
    # Warm from round to round; the first one, of eight cells, is the largest.
    assert len(workers) <= min(8, len(os.sched_getaffinity(0)))
    again = cli("train.py", *arguments)
    assert again.returncode == 0, again.stderr
    assert "to train" not in again.stdout
    assert json.loads((folder / "rounds.json").read_text()) == saved


@pytest.mark.slow
def test_a_bracket_is_planned_trained_and_reported(cli, tiny_overrides, tmp_path):
    free = [o for o in tiny_overrides if not o.startswith("recipe.batch_tokens")]
    asked = ["recipe.batch_tokens=64", "sweep.mode=lr_bracket", "sweep.bracket.budgets=[2e9]"]
    arguments = [*free, *FAMILY, *asked]
    plan = cli("plan.py", *arguments)
    assert "18 cells, 0 refused" in plan.stdout, plan.stdout + plan.stderr
    done = cli("train.py", *arguments)
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "runs/mini").values()
    rates = {r["lr_multiplier"] for r in found if r["flops_budget"] == 2e9}
    assert rates == {0.5, 1.0, 2.0}
    assert {r["lr_multiplier"] for r in found if r["flops_budget"] != 2e9} == {1.0}
    report = cli("analyze.py", "runs=runs/mini", "bootstrap=20")
    assert report.returncode in (0, 7), report.stderr  # tiny runs need not identify a law
    assert "Rates: the recipe's bracketed" in report.stdout
    saved = json.loads((tmp_path / "runs/mini/report/law.json").read_text())
    assert len(saved["groups"][0]["lr_bracket"]["cells"]) == 3
    assert saved["groups"][0]["n_runs"] == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep.mode=adaptive", "sweep.adaptive.width=0"], "sweep.adaptive.width=0.0 must be"),
        (
            ["sweep.mode=adaptive", "sweep.adaptive.max_flops=1e9"],
            "at every budget cost, 1.8e+10",
        ),
        (["-m", "sweep.mode=adaptive", "seed=0,1"], "share 1 sweep.name with sweep.mode=adaptive"),
        (["sweep.mode=often"], "sweep.mode: expected one of fixed, adaptive, lr_bracket"),
        (["sweep.law=nonesuch"], "law='nonesuch' is neither a file nor one of"),
        (["sweep.mode=lr_bracket", "sweep.bracket.factors=[1]"], "rates on both sides of it"),
        (["runtime.memory_gb=-1"], "runtime.memory_gb=-1.0 must be"),
        (["runtime.memory_gb=1e-4"], "no cell of this sweep can be trained: w8d1 needs about"),
    ],
)
def test_a_mode_that_cannot_begin_is_refused_before_any_file(cli, tmp_path, arguments, message):
    done = cli("train.py", "data.root=prepared", *FAMILY, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []
