"""scripts/train.py and its neighbours as a user runs them: files, exit codes, one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time

import edge
import pytest

SWEEP = [
    "sweep=isoflop",
    "sweep.name=mini",
    "sweep.budgets=[1e9,2e9]",
    "sweep.widths=[8,16,24]",
    "sweep.depths=[1]",
    "sweep.aspect_min=4",
    "sweep.sizes_per_budget=3",
    "sweep.span=2",
    "sweep.optimum_flops=1e9",
    "sweep.optimum_params=6e3",
    "sweep.seeds=[0]",
]


def records(folder):
    found = sorted(folder.glob("*/record.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def test_one_run_trains_and_the_same_command_again_does_not(cli, tiny_overrides, tmp_path):
    first = cli("train.py", *tiny_overrides)
    assert first.returncode == 0, first.stderr
    assert "validation loss" in first.stdout
    assert "done before" not in first.stdout
    ((name, record),) = records(tmp_path / "runs/single").items()
    before = (tmp_path / "runs/single" / name / "record.json").stat().st_mtime_ns
    again = cli("train.py", *tiny_overrides)
    assert again.returncode == 0, again.stderr
    assert f"{record['val_loss']:.4f}" in again.stdout
    assert again.stdout.startswith("done before; nothing was trained now\n")
    assert (tmp_path / "runs/single" / name / "record.json").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_two_by_two_multirun_leaves_four_records_and_runs_nothing_twice(
    cli, tiny_overrides, tmp_path
):
    product = ["-m", *tiny_overrides, "model.d_model=8,16", "budget.flops=1e9,2e9"]
    first = cli("train.py", *product)
    assert first.returncode == 0, first.stderr
    found = records(tmp_path / "runs/single")
    shapes = {(r["d_model"], r["flops_budget"]) for r in found.values()}
    assert shapes == {(8, 1e9), (8, 2e9), (16, 1e9), (16, 2e9)}
    again = cli("train.py", *product)
    assert "4 done before, 0 to train" in again.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_sweep_trains_what_its_plan_lists_and_says_what_is_next(
    cli, tiny_overrides, tmp_path, monkeypatch
):
    arguments = [*tiny_overrides, *SWEEP]
    plan = cli("plan.py", *arguments)
    assert plan.returncode == 0, plan.stderr
    assert "6 cells, 0 refused" in plan.stdout
    sweep = cli("train.py", *arguments)
    assert sweep.returncode == 0, sweep.stderr
    found = records(tmp_path / "runs/mini")
    assert len(found) == 6
    for record in found.values():
        spent = record["flops"]["full_attention"]
        assert spent == pytest.approx(record["flops_budget"], rel=0.02)
    assert set(json.loads((tmp_path / "runs/mini/sweep.json").read_text())["cells"]) == set(found)
    lines = sweep.stdout.splitlines()
    cost, verdict = (
        next(i for i, line in enumerate(lines) if line.startswith(words))
        for words in ("cost of 6", "- ")
    )
    assert lines[cost + 1 : verdict] == ["fitting the law to 6 runs"]
    assert lines[-1].startswith("next: python scripts/analyze.py runs=runs/mini")
    for terminal in (False, True):
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
        status = cli("status.py", "runs=runs/mini")
        assert status.stdout.splitlines()[-1] == lines[-1], terminal


def test_the_plan_of_trunks_and_branches_says_what_they_save(cli):
    plan = cli("plan.py", "sweep=demo_trunk", "data.root=absent", "sweep.seeds=[0]")
    assert plan.returncode == 0, plan.stderr
    # Six of the demo's shapes serve several budgets: 0.8 of the smaller ones is saved.
    saved = 0.8 * (3e10 + (3e10 + 6.5e10) + (3e10 + 1.4e11) + 3 * 3e10)
    whole = 6 * (3e10 + 6.5e10 + 1.4e11 + 3e11)
    assert f"{100 * saved / whole:.1f}% less than the cells one by one" in plan.stdout


def test_a_failed_cell_is_named_and_the_others_go_on(cli, tiny_overrides, tmp_path):
    done = cli("train.py", "-m", *tiny_overrides, "recipe.lr_multiplier=1,1e30")
    assert done.returncode == 1
    assert "1 of 2 cells failed, the others are done; first: " in done.stderr
    assert "lower recipe.lr_multiplier" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(records(tmp_path / "runs/single")) == 1


def test_a_stopped_sweep_goes_on_where_it_was(tiny_overrides, tmp_path, cli, root):
    once = [o for o in tiny_overrides if not o.startswith("budget.flops")]
    arguments = [*once, "-m", "budget.flops=4e10", "seed=0,1,2"]
    script = [sys.executable, str(root / "scripts/train.py"), *arguments]
    process = subprocess.Popen(
        script, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "runs/single"
    deadline = time.monotonic() + 240
    while not any(path.stat().st_size for path in folder.glob("*/metrics.jsonl")):  # not a row yet
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 75, error
    assert "run the same command to go on" in error
    assert "Traceback" not in error
    assert list(folder.glob("*/checkpoints/step-*"))
    done = cli("train.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert len(records(folder)) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["model.d_modle=3"], 2, "d_modle"),
        (["model.n_layers=two"], 2, "model.n_layers: expected int, got 'two'"),
        (["budget.flops=-1"], 2, "budget.flops=-1.0 must be a finite number above 0"),
        (["budget.flops=nan"], 2, "budget.flops: expected a finite number, got nan"),
        (["budget.flops=1e3"], 2, "buys 0 steps"),
        (["budget.flops=1e18"], 2, "more than data.max_epochs"),
        (["data=local", "data.paths=[absent.txt]"], 2, "absent.txt"),
        (["retry=failed"], 2, "retry=failed is for sweeps (sweep=..., or -m), not for one run"),
        (["name=../x"], 2, "name='../x' must match"),
        (["sweep=isoflop", "sweep.budgets=[]"], 2, "sweep.budgets is empty"),
        (["-m", "seed=0,1", "budget.flops=1e3"], 2, "buys 0 steps"),
        (["nonsense"], 2, "'nonsense' is no override"),
    ],
)
def test_bad_input_is_one_line_the_right_code_and_leaves_nothing(
    cli, tmp_path, arguments, code, message
):
    done = cli("train.py", "data.root=prepared", *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    left = [path for path in tmp_path.iterdir() if path.name != "prepared"]
    assert left == []


def test_a_corrupted_corpus_is_refused_with_code_5(cli, tiny_overrides, text_files, tmp_path):
    private = [o for o in tiny_overrides if not o.startswith("data.root")] + ["data.root=data"]
    assert cli("prepare_data.py", *[o for o in private if o.startswith("data")]).returncode == 0
    (shards,) = (tmp_path / "data").glob("tiny-*")
    target = next(path for path in shards.iterdir() if path.name.startswith("train"))
    content = bytearray(target.read_bytes())
    content[100] ^= 1
    target.write_bytes(content)
    os.utime(target, ns=(1, 1))
    done = cli("train.py", *private)
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("\n") == 1
    assert str(target.name) in done.stderr


CSV = "params,tokens,loss\n" + "".join(
    f"{n},{c / 6 / n},{1.7 + 400 / n**0.34 + 410 / (c / 6 / n) ** 0.28}\n"
    for c in (1e18, 1e19, 1e20)
    for n in (1e8 * 1.5**i * (c / 1e18) ** 0.45 for i in range(-3, 4))
)


def test_a_table_of_runs_becomes_a_law_and_the_law_a_prediction(cli, tmp_path):
    (tmp_path / "runs.csv").write_text(CSV)
    done = cli("analyze.py", "runs=runs.csv", "out=report", "bootstrap=50")
    assert done.returncode == 0, done.stderr
    assert "N_opt grows as C^" in done.stdout
    assert {"law.json", "report.md", "report.html"} <= {
        path.name for path in (tmp_path / "report").iterdir()
    }
    predicted = cli("predict.py", "flops=1e21", "law=report/law.json")
    assert predicted.returncode == 0, predicted.stderr
    assert "1e21" in predicted.stdout


def test_a_tables_own_names_are_mapped_from_the_shell(cli, tmp_path):
    (tmp_path / "runs.csv").write_text(CSV.replace("params,tokens", "N,D", 1))
    done = cli(
        "analyze.py",
        "runs=runs.csv",
        "columns={params: N, tokens: D}",
        "out=report",
        "bootstrap=20",
    )
    assert done.returncode == 0, done.stderr
    assert "N_opt grows as C^" in done.stdout


def test_besiroglus_law_gives_the_published_model_for_gophers_budget(cli):
    done = cli("predict.py", "flops=5.76e23", "law=besiroglu")
    assert done.returncode == 0, done.stderr
    assert "72.2B parameters, 1.33T tokens" in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "code", "message"),
    [
        ("analyze.py", ["runs=absent"], 2, "absent"),
        ("analyze.py", ["runs=bad.csv"], 2, "loss"),
        ("analyze.py", ["runs=empty"], 2, "holds no runs"),
        ("analyze.py", ["runs=unfinished"], 7, "is finished"),
        ("analyze.py", ["runs=few.csv"], 7, "budgets"),
        ("predict.py", ["flops=1e21", "law=nonesuch"], 2, "nonesuch"),
        ("predict.py", ["flops=-1"], 2, "flops=-1"),
        ("predict.py", ["1e21"], 2, "'1e21' is no override; write name=value, as in seed=1"),
        ("predict.py", ["table=models", "law=none"], 2, "budgets; leave out law=none"),
        ("predict.py", ["flops=1e21", "fit=approach2"], 2, "law=besiroglu2024 is a printed law; l"),
        ("status.py", ["watch=2"], 2, "runs= is missing; name a sweep's folder, as in runs="),
        ("status.py", ["runs=."], 2, "runs=. holds no cells; name a sweep's folder under runs/"),
        ("status.py", ["runs=absent"], 2, "does not exist"),
        ("status.py", ["~runs"], 2, "~runs"),
        ("plan.py", ["sweep=demo", "sweep.budgets=[1e3]"], 0, "0 cells, 12 refused"),
        ("prepare_data.py", ["data=local", "data.paths=[absent]"], 2, "as in 'data.paths=[my/*"),
        ("prepare_data.py", ["data=local", "data.paths=absent"], 2, "a list, as in [a,b]; got 'ab"),
    ],
)
def test_every_script_refuses_bad_input_in_one_line(
    cli, tmp_path, script, arguments, code, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished" / "cell").mkdir(parents=True)
    state = '{"state": "failed", "reason": "loss nan"}'
    (tmp_path / "unfinished" / "cell" / "state.json").write_text(state)
    (tmp_path / "bad.csv").write_text("params,tokens\n1e8,1e9\n")
    (tmp_path / "few.csv").write_text("\n".join(CSV.splitlines()[:4]))
    before = sorted(tmp_path.rglob("*"))
    done = cli(script, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    if code:
        assert done.stderr.count("\n") == 1, done.stderr
        assert sorted(tmp_path.rglob("*")) == before


def test_help_says_what_to_type(cli):
    for script in ("train.py", "plan.py", "prepare_data.py", "analyze.py", "predict.py"):
        done = cli(script, "--help")
        assert done.returncode == 0
        assert f"python scripts/{script}" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["plan.py", "format=json"],
        ["predict.py", "table=laws"],
        ["predict.py", "flops=1e21"],
        ["status.py", "--help"],
    ],
)
def test_output_that_nobody_reads_ends_without_a_word(root, tmp_path, command):
    ours, theirs = os.pipe()
    os.close(ours)  # as `| head` leaves it
    done = subprocess.run(
        [sys.executable, str(root / "scripts" / command[0]), *command[1:]],
        check=False,
        cwd=tmp_path,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_broken_pipe_is_an_error_like_any_other(capfd):
    def fail():
        raise BrokenPipeError("a child died")

    assert edge.guarded(fail) == 1
    assert "BrokenPipeError: a child died" in capfd.readouterr().err
