"""What analyze.py and predict.py say on terminals of 80 and 140 columns, and in a pipe."""

import io

import analyze
import predict
import pytest
from edge import CONFIG_DIR
from rich.console import Console

from llmtrain.scaling.models_table import TABLE_LAWS, model_table
from llmtrain.scaling.published import REGISTRY
from llmtrain.scaling.wording import count

RUNS = CONFIG_DIR.parent / "docs/results/demo/runs.csv"


@pytest.fixture
def seen(monkeypatch):
    """Return a function: the lines that a script prints on a terminal of so many columns."""

    def run(script, width, *overrides):
        file = io.StringIO()
        terminal = Console(
            file=file,
            width=width,
            force_terminal=True,
            color_system=None,
            soft_wrap=True,
            markup=False,
        )
        monkeypatch.setattr(script, "open_console", lambda: terminal)
        script.main(list(overrides))
        lines = [line.rstrip() for line in file.getvalue().splitlines()]
        wide = [line for line in lines if len(line) > width]
        assert not [line for line in wide if " " in line.strip() and not is_command(line)]
        return lines

    return run


def is_command(line):
    return line.startswith(("next: ", "report: ", "figures: ", "law: ", "wandb: "))


def flat(lines):
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", [80, 123, 140])
def test_pairs_of_n_and_d_stay_on_their_models_line(seen, width):
    lines = seen(predict, width, "table=models")
    shown = [law for law in TABLE_LAWS if law in lines[0].split()]
    assert len(shown) == (2 if width == 80 else len(TABLE_LAWS))
    for line, row in zip(lines[1:], model_table(), strict=False):
        assert line.startswith(row.name)
        optima = dict(zip(TABLE_LAWS, row.optima, strict=True))
        assert all(f"{count(optima[law][0])} / {count(optima[law][1])}" in line for law in shown)
    left_out = [law for law in TABLE_LAWS if law not in shown]
    named = f"at 123 columns also {', '.join(left_out)} below a law's name"
    assert (named in flat(lines)) == bool(left_out)


@pytest.mark.parametrize("width", [80, 140])
def test_every_printed_law_has_a_line_and_nothing_of_it_is_lost(seen, width):
    lines = seen(predict, width, "table=laws")
    text = flat(lines)
    for line, law in zip(lines[1:], REGISTRY, strict=False):
        assert line.split()[0] == law.key
        for fact in (law.params, law.flops, law.data, law.confirmed, law.source, law.warning):
            assert fact in text, law.key


def test_in_a_pipe_every_law_and_note_is_one_line_unless_columns_is_set(cli, monkeypatch):
    lines = cli("predict.py", "table=laws").stdout.splitlines()
    assert len(lines) == 1 + 2 * len(REGISTRY)
    for row, note, law in zip(lines[1:], lines[1 + len(REGISTRY) :], REGISTRY, strict=False):
        assert all(fact in row for fact in (law.key, law.params, law.data, law.confirmed))
        assert note.startswith(f"{law.key}: {law.source}")
    monkeypatch.setenv("COLUMNS", "80")
    narrow = cli("predict.py", "table=models").stdout.splitlines()
    assert max(map(len, narrow)) <= 80


def test_an_analysis_and_its_prediction_fit_the_terminal(seen, tmp_path):
    keys = [f"runs={RUNS}", "bootstrap=40", "publish=disabled", f"out={tmp_path}"]
    lines = seen(analyze, 80, *keys)
    text = flat(lines)
    (row,) = [line for line in lines if line.startswith("Approach 2, parabolas")]
    assert row.count("[") == row.count("]") == 2  # both intervals, whole
    assert "Approach 1, convex hull: refused: Approach 1 finds 2 runs on the envelope" in text
    assert "at 102 columns also mean |error| of its runs, worst; the report has all" in text
    assert "line through the minima: ln L against ln C, no floor" in text
    (begin,) = [i for i, line in enumerate(lines) if line.startswith("- N_opt grows as C^")]
    assert max(map(len, lines[begin:-1])) <= 80
    for verdict in ("- At C = 3e12 train N = ", "- Projected loss there ", "- 48 runs, 4 budgets"):
        assert any(line.startswith(verdict) for line in lines[begin:])
    assert lines[-1].startswith("next: python scripts/predict.py flops=3e12 law=")

    wide = flat(seen(analyze, 140, *keys))
    assert "mean |error| of its runs worst note" in wide
    assert "columns also" not in wide

    asked = ("flops=1e13", f"law={tmp_path / 'law.json'}")
    rows = {line.split()[0]: line.split()[1:] for line in seen(predict, 80, *asked) if line}
    for quantity in ("N", "D", "loss"):  # a row each, with its interval whole
        _, low, high = rows[quantity]
        assert (low[0], low[-1], high[-1]) == ("[", ",", "]")
