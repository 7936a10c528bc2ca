"""R1 to R3: a run killed anywhere goes on and ends bit for bit as if it had been left alone.

Compared are the hash of the final state (weights, optimizer, step, losses not yet in a row), every
row of the metrics without what the clock decides, the record, the states kept for branches, and
that no temporary file is left.
"""

import itertools
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.branching import share_trunk
from llmtrain.spec.plan import plan_run

pytestmark = pytest.mark.timeout(900)  # for a busy machine; the full counts take minutes

SMALL = {
    "model.d_model": 16,
    "model.n_layers": 1,
    "checkpoint.every_steps": 3,
    "tracking.points": 7,
    "evaluation.points": 4,
    "budget.n_tokens": 5632,
    "budget.tolerance": 0.1,
    "data.max_epochs": 100,
}
"""22 steps with a row after every third: a save falls on and between rows."""
WARMED = {
    "seq_len.pacing": "discrete",
    "seq_len.warmup_fraction": 0.6,
    "model.dropout": 0.1,
    "recipe.warmup_tokens": 1280,
}
SETUPS = {
    "plain": {},
    "warmed": WARMED,
    "window": WARMED | {"seq_len.mode": "window", "seq_len.pacing": "linear"},
    "muon": {"optimizer.name": "muon", "schedule.name": "inverse_sqrt"},
    "accumulated": {"runtime.micro_batch_tokens": 96, "model.dropout": 0.1},
    "trunk": WARMED | {"schedule.name": "wsd", "seq_len.warmup_tokens": 2048},
    "branch": {"schedule.name": "wsd", "model.dropout": 0.1},
}


@pytest.fixture
def case(make):
    """Return a function that makes a set-up's runs: one, a trunk, or a trunk and a branch."""

    def of(setup, settings=None, **rest):
        given = SMALL | SETUPS[setup] | (settings or {})
        if setup not in ("trunk", "branch"):
            return {"configs": [make(given)]} | rest
        both = [make(given), make(given | {"budget.n_tokens": 4096})]
        plans = [plan_run(config, vocab_size=256, unique_tokens=None) for config in both]
        shared, refused = share_trunk(list(zip(both, plans, strict=True)), unique_tokens=None)
        assert not refused
        return {"configs": [c for c, _ in shared][: 1 if setup == "trunk" else 2]} | rest

    return of


def assert_equal(answers):
    """Assert that every run came to what it would have, and say how many there were."""
    runs = [run for answer in answers for run in answer]
    unequal = [run for run in runs if run["differs"]]
    lives = sum(len(run["lives"]) for run in runs)
    differs = Counter(what for run in unequal for what in run["differs"])
    print(f"{len(runs) - len(unequal)} of {len(runs)} runs equal in {lives} lives", dict(differs))
    assert [run["differs"] for run in unequal] == [], unequal[0]


def deaths(rng, n_runs):
    """Return how runs die: at any time, then a third at any time again, a third in a first step."""
    every = []
    for i in range(n_runs):
        first = {"share": rng.uniform(0.0, 1.0)}
        again = {"share": rng.uniform(0.0, 1.0)}, {"step": 1, "after": rng.uniform(0.0, 1.0)}
        every.append([first, *again[i % 3 : i % 3 + 1]])
    return every


@pytest.mark.parametrize("n_runs", [14, pytest.param(203, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_time_ends_as_one_left_alone(case, killed, n_runs):
    rng = random.Random(n_runs)
    each = -(-n_runs // len(SETUPS))
    answers = killed(*(case(setup, runs=deaths(rng, each)) for setup in SETUPS))
    assert_equal(answers)


@pytest.mark.slow
def test_a_run_killed_a_hundred_times_loses_and_repeats_no_row(case, killed):
    rng = random.Random(1)
    long = {"budget.n_tokens": 256 * 1500, "tracking.points": 10_000, "checkpoint.every_steps": 5}
    kills = [{"step": rng.randint(1, 10), "after": rng.uniform(0.0, 1.0)} for _ in range(100)]
    (answers,) = killed(case("plain", long, runs=[kills]))
    assert_equal([answers])
    dead = [life["status"] == signal.SIGALRM for life in answers[0]["lives"]]
    assert dead == [True] * 100 + [False]


STATES = [[{"state": state}] for state in ("running", "trained", "evaluated", "done")]


def edges(plan, blocks_per_epoch):
    """Return the steps at which something begins or ends, and their neighbours."""
    warmed_up = plan.warmup_tokens // plan.batch_tokens
    stages = itertools.accumulate(stage.n_steps for stage in plan.stages)
    evaluations = range(0, plan.n_steps, max(1, plan.n_steps // SMALL["evaluation.points"]))
    blocks = plan.batch_tokens // plan.block_len * plan.n_steps
    epochs = range(0, blocks, blocks_per_epoch)
    ends = [int(plan.n_steps * begin / blocks) for begin in epochs]
    found = {1, warmed_up, *stages, *evaluations[:3], *ends, plan.n_steps}
    return sorted({s + d for s in found for d in (-1, 0, 1) if 0 <= s + d <= plan.n_steps})


@pytest.fixture
def few_tokens(tmp_path, make):
    """A corpus that 22 steps read more than twice; a batch holds the end of an epoch."""
    rng = random.Random(0)
    for i in range(5):
        text = " ".join(rng.choices(["def", "return", "loss", "model"], k=110))
        (tmp_path / f"{i}.txt").write_text(text)
    settings = {"data.paths": [str(tmp_path)], "data.root": str(tmp_path), "data.val_fraction": 0.2}
    return prepare(make(settings).data)


@pytest.mark.parametrize("every_step", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_goes_on_from_every_edge(case, killed, few_tokens, tiny_corpus_dir, every_step):
    setups = SETUPS if every_step else ("warmed", "muon", "trunk", "branch")
    cases = [case(setup, corpus=str(tiny_corpus_dir)) for setup in setups]
    epochs = case("accumulated", {"evaluation.n_tokens": 64}, corpus=str(few_tokens))
    for asked in (*cases, epochs):
        n_tokens = open_corpus(Path(asked["corpus"])).manifest.train.n_tokens
        plan = plan_run(asked["configs"][-1], vocab_size=256, unique_tokens=n_tokens)
        blocks = (n_tokens - 1) // plan.block_len
        steps = range(plan.n_steps + 1) if every_step else edges(plan, blocks)
        asked["runs"] = STATES + [[{"cut_to": step}] for step in steps]
    assert plan.consumed_tokens > 2 * n_tokens
    assert_equal(killed(*cases, epochs))


PRUNING = {"budget.n_tokens": 1792, "checkpoint.keep": 1}
"""7 steps with saves after 3 and 6, of which the second prunes."""


def assert_whole_or_absent(runs, every, power, *, background=True):
    """Assert what each kill left: whole checkpoints, the newest used, and not too old.

    Its step is the last to save at; in the background the one before that.
    """
    for run in runs:
        killed, last = run["lives"]
        assert killed["status"] == 9
        newest = max((step for step, whole in last["checkpoints"] if whole), default=0)
        torn = [step for step, whole in last["checkpoints"] if not whole]
        # One that was being removed may come back in part.
        assert torn == [] or (power and max(torn) < newest), run
        assert last["steps"][:1] in ([newest], []), run  # none where the record was there
        begun = max(killed["steps"], default=0)
        assert newest >= (begun // every - background) * every, run


@pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])
@pytest.mark.parametrize("power", [False, True], ids=["killed", "power_cut"])
@pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_no_change_on_the_disk_is_the_wrong_one_to_die_at(case, killed, power, every, background):
    changes, how = {"power": power, "every": every}, {"checkpoint.background": background}
    cases = [case("plain", PRUNING | how, changes=changes)]
    if every == 1:
        cases.append(case("trunk", how, changes=changes | {"every": 4}))
    answers = killed(*cases)
    by = {kill["by"] for runs in answers for run in runs for kill in run["kills"]}
    assert by == {"MainThread"} | ({"saver"} if background else set())
    for runs in answers:
        assert_whole_or_absent(runs, every=3, power=power, background=background)
    assert_equal(answers)
    print(f"{sum(map(len, answers))} kills, each at another change")


@pytest.mark.parametrize("setup", ["accumulated", pytest.param("trunk", marks=pytest.mark.slow)])
def test_a_signal_at_any_step_or_evaluation_saves_and_another_tears_nothing(case, killed, setup):
    settings = {"evaluation.sample_tokens": 3, "checkpoint.every_steps": 22}
    n_signs = 22 + 5  # steps, evaluations
    runs = [[{"signal": n}] for n in range(1, n_signs + 1)]
    (answers,) = killed(case(setup, settings, runs=runs))
    assert_equal([answers])
    assert_saved(answers)


def assert_saved(runs):
    """Assert that each signal made its run save that very step, and go on from there."""
    for run in runs:
        killed_one, last = run["lives"]
        assert killed_one["status"] >> 8 == 75
        (saved,) = last["checkpoints"]
        assert saved == [killed_one["steps"][-1] + 1, True]  # of this very step
        assert last["steps"] == list(range(saved[0], 22))


FROM_10, FROM_21 = [[{"cut_to": 10}]], [[{"cut_to": 21}]]
CHANGES, CUTS = {"power": False, "every": 2}, {"power": True, "every": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("off", "asked"),
    [
        ("cursor", {"runs": FROM_10}),
        ("recent", {"runs": FROM_10}),
        ("rows", {"runs": FROM_10}),
        ("moments", {"runs": FROM_10}),
        ("random", {"runs": FROM_10}),
        ("tail", {"runs": FROM_21}),
        ("handlers", {"runs": [[{"signal": 9}]]}),
        ("aside", {"changes": CHANGES}),
        ("save_first", {"changes": CHANGES}),
        ("sweeping", {"changes": CHANGES}),
        ("sync", {"changes": CUTS}),
        ("sync_of_files", {"changes": CUTS}),
        ("sync_of_folders", {"changes": CUTS}),
    ],
)
def test_without_a_guard_the_damage_is_seen(case, killed, off, asked):
    how = {"checkpoint.background": off != "save_first"}  # without it, how old is certain
    if changes := asked.get("changes"):
        asked = case("plain", PRUNING | how, off=off, changes=changes)
    else:
        asked = case("accumulated", off=off, runs=asked["runs"])
    (runs,) = killed(asked)
    with pytest.raises(AssertionError):  # noqa: PT012 - any of the three sees it
        assert_equal([runs])
        if off == "handlers":
            assert_saved(runs)
        background = how["checkpoint.background"]
        assert_whole_or_absent(runs, every=3, power=changes is CUTS, background=background)
