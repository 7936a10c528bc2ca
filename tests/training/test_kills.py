"""R1 to R3: a run killed anywhere goes on and ends bit for bit as if it had been left alone.

Compared are the hash of the final state (weights, optimizer, step, losses not yet in a row), every
row of the metrics without what the clock decides, the record, the states kept for branches, and
that no temporary file is left.
"""

import random

import pytest

from llmtrain.spec.branching import share_trunk
from llmtrain.spec.plan import plan_run

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
    print(f"{len(runs) - len(unequal)} of {len(runs)} runs equal in {lives} lives")
    assert [run["differs"] for run in unequal] == [], unequal[0]


def deaths(rng, n_runs):
    """Return how runs die: at any time, then a third at any time again, a third in a first step."""
    every = []
    for i in range(n_runs):
        first = {"share": rng.uniform(0.0, 1.0)}
        again = {"share": rng.uniform(0.0, 1.0)}, {"first_step": rng.uniform(0.0, 1.0)}
        every.append([first, *again[i % 3 : i % 3 + 1]])
    return every


@pytest.mark.parametrize("n_runs", [15, pytest.param(203, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_time_ends_as_one_left_alone(case, killed, n_runs):
    rng = random.Random(n_runs)
    each = -(-n_runs // len(SETUPS))
    answers = killed(*(case(setup, runs=deaths(rng, each)) for setup in SETUPS))
    assert_equal(answers)


def steps_of(configs, unique_tokens=None):
    """Return every step that the last of the runs may go on from."""
    plan = plan_run(configs[-1], vocab_size=256, unique_tokens=unique_tokens)
    return [[{"cut_to": step}] for step in range(plan.n_steps + 1)]


@pytest.mark.parametrize("setup", [pytest.param(s, marks=pytest.mark.slow) for s in SETUPS])
def test_a_run_goes_on_from_every_step(case, killed, setup):
    asked = case(setup)
    assert_equal(killed(asked | {"runs": steps_of(asked["configs"])}))


PRUNING = {"budget.n_tokens": 1792, "checkpoint.keep": 1}
"""7 steps with saves after 3 and 6, of which the second prunes."""


def assert_whole_or_absent(runs, every, power):
    """Assert what each kill left: whole checkpoints, the newest used, one interval lost at most."""
    for run in runs:
        killed, last = run["lives"]
        assert killed["status"] == 9
        newest = max((step for step, whole in last["checkpoints"] if whole), default=0)
        torn = [step for step, whole in last["checkpoints"] if not whole]
        # One that was being removed may come back in part.
        assert torn == [] or (power and max(torn) < newest), run
        assert last["steps"][:1] in ([newest], []), run  # none where the record was there
        reached = max(killed["steps"], default=-1) + 1
        assert reached - newest <= every, run


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power_cut"])
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_no_change_on_the_disk_is_the_wrong_one_to_die_at(case, killed, power, every):
    changes = {"power": power, "every": every}
    cases = [case("plain", PRUNING, changes=changes)]
    if every == 1:
        cases.append(case("trunk", changes=changes | {"every": 4}))
    answers = killed(*cases)
    for runs in answers:
        assert_whole_or_absent(runs, every=3, power=power)
    assert_equal(answers)
