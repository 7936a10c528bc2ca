"""Questions to a law: every way of asking, what has no answer, and the two scripts."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.any_law import find_law
from llmtrain.scaling.config import AnalyzeConfig, PredictConfig
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.predict import predict
from llmtrain.spec.build import build
from llmtrain.spec.errors import ConfigError

Ask = Callable[..., PredictConfig]
ROOT = Path(__file__).resolve().parents[2]
PLANTED = LossLaw(E=0.9, A=60.0, B=90.0, alpha=0.38, beta=0.33)


@pytest.mark.parametrize(
    ("changes", "params", "tokens"),
    [
        ({"flops": 5.76e23}, 72.25e9, 1.329e12),
        ({"params": 72.25e9}, 72.25e9, 1.329e12),
        ({"tokens": 1.3287e12}, 72.25e9, 1.329e12),
        ({"gpu_hours": 5.76e23 / 3600 / 0.4 / 989e12}, 72.25e9, 1.329e12),
        ({"loss": 1.974375}, 72.25e9, 1.329e12),
    ],
)
def test_every_way_of_asking_gives_the_same_model(
    changes: dict[str, float], params: float, tokens: float, ask: Ask
) -> None:
    question = ask(**changes)  # type: ignore[arg-type]
    found = predict(question, find_law(question))[0]
    assert (found.params, found.tokens) == pytest.approx((params, tokens), rel=5e-3)


def test_a_pair_of_size_and_tokens_is_priced_and_told_its_waste(ask: Ask) -> None:
    question = ask(params=280e9, tokens=300e9)
    own, best = predict(question, find_law(question))
    assert own.wasted == pytest.approx(0.503, abs=1e-3)
    assert best.flops == own.flops
    assert best.loss is not None
    assert own.loss is not None
    assert best.loss < own.loss


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": None}, "nothing asked"),
        ({"flops": 1e20, "loss": 2.0}, "set one of"),
        ({"flops": 1e20, "params": 1e9}, "leave out params"),
        ({"flops": -1.0}, "flops=-1.0"),
        ({"gpu_hours": 1.0, "mfu": 1.5}, "mfu=1.5"),
    ],
)
def test_questions_without_an_answer_are_refused(
    changes: dict[str, float | None], message: str, ask: Ask
) -> None:
    with pytest.raises(ConfigError, match=message):
        ask(**changes)  # type: ignore[arg-type]


def test_a_law_without_losses_names_what_it_lacks(ask: Ask) -> None:
    question = ask(law="hoffmann_a1", loss=2.0)
    with pytest.raises(ConfigError, match="has no loss"):
        predict(question, find_law(question))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 9}', '{"schema": 1, "groups": [{}]}'])
def test_a_damaged_law_file_is_one_line(tmp_path: Path, text: str, ask: Ask) -> None:
    path = tmp_path / "law.json"
    path.write_text(text)
    question = ask(law=str(path), flops=1e20)
    with pytest.raises(ConfigError, match=r"law\.json"):
        find_law(question)


@pytest.mark.parametrize(("name", "kind"), [("analyze", AnalyzeConfig), ("predict", PredictConfig)])
def test_yaml_keys_are_the_fields(name: str, kind: type) -> None:
    text = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    keys = re.findall(r"^([a-z_]+):", text, flags=re.MULTILINE)
    assert keys == [field.name for field in dataclasses.fields(kind)]


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(ROOT / "scripts" / f"{arguments[0]}.py"), *arguments[1:]]
    return subprocess.run(script, capture_output=True, text=True, check=False)


def test_predict_prints_72b_parameters_and_1_33t_tokens() -> None:
    done = run_script("predict", "flops=5.76e23", "law=besiroglu")
    assert done.returncode == 0
    assert "72.2B parameters, 1.33T tokens" in done.stdout


def test_analyze_writes_a_report_and_leaves_nothing_after_bad_input(tmp_path: Path) -> None:
    path, out = tmp_path / "runs.csv", tmp_path / "out"
    path.write_text("params,loss\n1,2\n", encoding="utf-8")
    done = run_script("analyze", f"runs={path}", f"out={out}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not out.exists()
    rows = [f"{n},{d},{PLANTED.loss(n, d)}" for n in (1e4, 3e4, 1e5, 3e5) for d in (1e5, 1e6, 1e7)]
    path.write_text("params,tokens,loss\n" + "\n".join(rows), encoding="utf-8")
    done = run_script("analyze", f"runs={path}", f"out={out}", "bootstrap=50")
    assert done.returncode == 0, done.stderr
    assert "Approach 3" in done.stdout
    assert (out / "report.html").is_file()
    sizes = np.geomspace(1e7, 1e9, 8)
    lines = [f"{n},{20 * n},{3 - 0.1 * np.log(n / 1e7)}" for n in sizes]
    path.write_text("params,tokens,loss\n" + "\n".join(lines), encoding="utf-8")
    done = run_script("analyze", f"runs={path}", f"out={tmp_path / 'refused'}", "bootstrap=50")
    assert done.returncode == 7
    assert "no law" in done.stderr


def test_unknown_keys_are_refused(ask: Ask) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        build(PredictConfig, {**dataclasses.asdict(ask()), "flop": 1.0})
