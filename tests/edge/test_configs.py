"""Every configuration file composes and builds; every key is a field, and the other way round."""

import dataclasses
import typing

import pytest
from edge import CONFIG_DIR, compose

from llmtrain.spec.errors import ConfigError, LlmtrainError
from llmtrain.spec.plan import plan_run
from llmtrain.spec.settings import TrainConfig, build_run
from llmtrain.spec.sweeps import LaunchConfig

GROUPS = sorted(
    path.relative_to(CONFIG_DIR).with_suffix("").as_posix()
    for path in CONFIG_DIR.glob("*/*.yaml")
    if path.parent.name not in ("sweep", "experiment")
)
SWEEPS = sorted(path.stem for path in (CONFIG_DIR / "sweep").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))


def test_the_default_configuration_builds_and_plans():
    config, sweep = build_run(compose("train", []))
    assert sweep is None
    assert plan_run(config, vocab_size=256, unique_tokens=None).n_steps >= 100


@pytest.mark.parametrize("choice", GROUPS)
def test_every_group_file_composes_and_builds(choice):
    group, name = choice.split("/")
    extra = ["data.paths=[x.txt]"] if choice == "data/local" else []
    config, _ = build_run(compose("train", [f"{group}={name}", *extra]))
    assert config.seed == 0


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_composes_and_builds(name):
    _, sweep = build_run(compose("train", [f"sweep={name}"]))
    assert sweep is not None
    assert len(sweep.budgets) >= 3


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_builds_and_opens_with_its_command(name):
    build_run(compose("train", [f"experiment={name}"]))
    lines = (CONFIG_DIR / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert any(f"experiment={name}" in line for line in lines[:3])


def test_keys_of_the_files_are_the_fields_of_the_classes():
    """Strict building refuses unknown and missing keys; this says it of each file by itself."""
    hints = typing.get_type_hints(TrainConfig)
    for choice in GROUPS:
        group, name = choice.split("/")
        if not dataclasses.is_dataclass(hints[group]):
            continue
        fields = {field.name for field in dataclasses.fields(hints[group])}
        composed = compose("train", [f"{group}={name}"])[group]
        assert set(composed) == fields, choice


def test_top_level_keys_are_the_fields_of_the_run_and_of_the_call():
    fields = {
        field.name for kind in (TrainConfig, LaunchConfig) for field in dataclasses.fields(kind)
    }
    assert set(compose("train", [])) - {"sweep", "experiment"} == fields


def test_the_rungs_are_named_by_their_shape():
    rungs = [c.split("/")[1] for c in GROUPS if c.startswith("model/w")]
    assert len(rungs) >= 8
    for rung in rungs:
        model = compose("train", [f"model={rung}"])["model"]
        assert rung == f"w{model['d_model']}d{model['n_layers']}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.d_modle=3", r"d_modle: unknown key; did you mean model\.d_model\?"),
        ("model=nonesuch", "nonesuch"),
        ("nonsense", "is no override; write name=value, as in seed=1"),
        ("model=w16d2,w32d2", r"one value; .* -m trains .* 'model=\[w16d2,w32d2\]'"),
        ("-m", "-m is for scripts/train.py; leave it out"),
        ("++model._target_=os.system", "targets are not accepted"),
        ("name=${oc.env:HOME}", "interpolations"),
        ("hydra.run.dir=/tmp/x", "can be set from here"),
        ("+hydra.callbacks.x=1", "can be set from here"),
    ],
)
def test_a_bad_override_is_refused_in_one_line(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        compose("train", [override])
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, LlmtrainError)
