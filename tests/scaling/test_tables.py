"""Tables of other people: their headers, their conventions, their shapes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.binning import assign_budgets
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.law import LossLaw, fit_power_law
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.runs import Runs
from llmtrain.scaling.tables import TableOptions
from llmtrain.spec.errors import ConfigError

Config = Callable[..., AnalyzeConfig]
NAMES = {"params": "N", "tokens": "D"}


def read(tmp_path: Path, text: str, **options: object) -> Runs:
    path = tmp_path / "runs.csv"
    path.write_text(text, encoding="utf-8")
    return load_runs(path, TableOptions(**options))  # type: ignore[arg-type]


def test_case_blanks_and_delimiters_do_not_matter(tmp_path: Path) -> None:
    text = " Params ;TOKENS;Loss;Run ID\n1e9;2e10;3.1;a\n"
    runs = read(tmp_path, text)
    assert (runs.params[0], runs.tokens[0], runs.loss[0], runs.run_id[0]) == (1e9, 2e10, 3.1, "a")
    assert read(tmp_path, text.replace(";", "\t")).run_id[0] == "a"


def test_other_names_are_proposed_and_mapped_but_never_guessed(tmp_path: Path) -> None:
    text = "N,D,val_loss,sweep\n1e9,2e10,3.1,x\n"
    advice = r"add 'columns=\{params: N, tokens: D, loss: val_loss\}'"
    with pytest.raises(ConfigError, match=advice):
        read(tmp_path, text)
    runs = read(tmp_path, text, columns={**NAMES, "loss": "val_loss"})
    assert runs.flops[0] == 6 * 1e9 * 2e10
    assert runs.remarks == ("columns that nothing reads: sweep",)
    with pytest.raises(ConfigError, match=r"columns.tokens=T: .* no such column"):
        read(tmp_path, text, columns={"tokens": "T"})
    with pytest.raises(ConfigError, match=r"columns.size: not a field"):
        read(tmp_path, text, columns={"size": "N"})


def test_a_mapped_column_wins_over_one_of_the_fields_name(tmp_path: Path) -> None:
    text = "loss,eval,params,tokens\n9,3.1,1e9,2e10\n"
    runs = read(tmp_path, text, columns={"loss": "eval"})
    assert runs.loss.tolist() == [3.1]
    assert runs.remarks == ("columns that nothing reads: loss (another column is named for it)",)


def test_a_row_longer_than_its_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="row 2 has more cells than the header"):
        read(tmp_path, "params,tokens,loss\n1e9,2e10,3,1\n")


def test_a_budget_column_is_the_curve_and_the_flops(tmp_path: Path) -> None:
    lines = [f"{n},{c / 7 / n},{c},3" for c in (1e18, 3e18) for n in (1e7, 3e7, 1e8)]
    text = "params,tokens,budget,loss\n" + "\n".join(lines)
    runs, how = assign_budgets(read(tmp_path, text), (), 0.1)
    assert how == "budgets as planned"
    assert runs.budgets.tolist() == [1e18, 3e18]
    assert runs.flops.tolist() == runs.budget.tolist()
    assert not runs.conventions.flops_imputed
    named, how = assign_budgets(runs, (1e18,), 0.1)
    assert named.budgets.tolist() == [1e18]
    assert "given budgets" in how
    with pytest.raises(ConfigError, match="row 2, column budget: 'big'"):
        read(tmp_path, text.replace("1e+18", "big", 1))


def test_a_convention_is_named_by_column_or_option_but_not_both_ways(tmp_path: Path) -> None:
    text = "params,tokens,loss,params_convention\n1e9,2e10,3,total\n"
    assert read(tmp_path, text).conventions.params == "total"
    assert read(tmp_path, text, params_convention="total").conventions.params == "total"
    with pytest.raises(ConfigError, match=r"params_convention=non_embedding, but .* says total"):
        read(tmp_path, text, params_convention="non_embedding")
    with pytest.raises(ConfigError, match="is a folder"):
        load_runs(tmp_path, TableOptions(params_convention="total"))


SHAPE = "d_model,n_layers,n_heads,d_ff,vocab_size,seq_len"
CELLS = "512,8,8,2048,32000,1024"


def test_shapes_give_every_count_of_the_reference_row(tmp_path: Path) -> None:
    text = f"params,tokens,loss,flops,{SHAPE}\n41549824,1,3,274464768,{CELLS}\n"
    runs = read(tmp_path, text)
    found = {name: float(own[0]) for name, own in runs.flops_counts.items()}
    expected = {
        "non_embedding": 150_994_944,
        "with_head": 249_298_944,
        "causal_attention": 274_464_768,
        "full_attention": 299_630_592,
        "chinchilla": 398_524_416,
    }
    assert {name: found[name] for name in expected} == expected
    assert runs.conventions.params == "no_input_embedding"
    assert runs.conventions.flops == "causal_attention"
    assert runs.counts["non_embedding"][0] == 12 * 8 * 512**2
    assert runs.remarks[1:] == (
        "the shapes show that params counts no_input_embedding",
        "the shapes show that flops counts causal_attention",
    )


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        ("d_ff", "shapes are incomplete, so N and C stay as given: add d_ff or ff_ratio"),
        ("n_layers", "add n_layers"),
        ("seq_len", "shapes lack seq_len: no causal_attention, full_attention, chinchilla"),
        ("vocab_size", "shapes lack vocab_size: no with_head"),
        ("n_heads", "shapes lack n_heads or d_head: no chinchilla count of C"),
    ],
)
def test_partial_shapes_say_what_is_missing(tmp_path: Path, drop: str, words: str) -> None:
    pairs = [(k, v) for k, v in zip(SHAPE.split(","), CELLS.split(","), strict=True) if k != drop]
    header, cells = (",".join(column) for column in zip(*pairs, strict=True))
    runs = read(tmp_path, f"params,tokens,loss,{header}\n1e9,2e10,3,{cells}\n")
    assert any(words in remark for remark in runs.remarks), runs.remarks
    assert bool(runs.counts) == (drop not in ("d_ff", "n_layers"))


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("n_heads", "7", "do not fill"),
        ("n_layers", "8.5", "n_layers='8.5' must be a whole number"),
        ("d_model", "wide", "d_model='wide'"),
    ],
)
def test_impossible_shapes_leave_the_counts_as_given(
    tmp_path: Path, column: str, value: str, words: str
) -> None:
    cells = dict(zip(SHAPE.split(","), CELLS.split(","), strict=True)) | {column: value}
    text = f"params,tokens,loss,{','.join(cells)}\n1e9,2e10,3,{','.join(cells.values())}\n"
    runs = read(tmp_path, text)
    assert runs.counts == {}
    assert words in runs.remarks[0]


def test_a_declared_count_that_the_shapes_deny_is_said(tmp_path: Path) -> None:
    text = f"params,tokens,loss,params_convention,{SHAPE}\n41549824,2e10,3,total,{CELLS}\n"
    assert any("declared total, but differs" in own for own in read(tmp_path, text).remarks)


def test_the_exponent_is_refitted_under_every_count_of_the_shapes(
    tmp_path: Path, analyze_config: Config
) -> None:
    # A law in all parameters: the fewer of them are counted, the faster the count grows with C.
    law = LossLaw(E=1.7, A=400.0, B=400.0, alpha=0.34, beta=0.34)
    lines = [f"params,tokens,loss,{SHAPE}"]
    for c in np.geomspace(3e17, 3e19, 5):
        for d, layers in ((128, 4), (192, 6), (256, 6), (384, 8), (512, 10), (768, 12), (1024, 16)):
            n = 12 * layers * d * d + 2 * 32000 * d
            tokens = c / 6 / n
            loss = float(law.loss(float(n), float(tokens)))
            lines.append(f"{n},{tokens},{loss},{d},{layers},4,{4 * d},32000,1024")
    runs = read(tmp_path, "\n".join(lines))
    assert runs.conventions.params == "total"
    (group,) = analyze(analyze_config(bootstrap=50), runs).groups
    title = group.estimate("approach3").title
    found = {own.change: own.a for own in group.variations if own.fit == title}
    assert found["as it stands"] == pytest.approx(0.5, abs=1e-3)
    assert found["N: non_embedding"] is not None
    assert found["N: no_input_embedding"] is not None
    assert found["N: non_embedding"] > found["N: no_input_embedding"] > 0.5
    assert sum(change.startswith("C: ") for change in found) == 6


NANOCHAT = {
    "non-embedding + head": (
        [110.678e6, 167.797e6, 250.651e6, 381.758e6],
        [1.24151e9, 1.78534e9, 2.64223e9, 3.80687e9],
        (0.524, 0.479),
    ),
    "all": (
        [416.321e6, 560.240e6, 741.496e6, 988.644e6],
        [1.23216e9, 1.76367e9, 2.62991e9, 3.88484e9],
        (0.366, 0.490),
    ),
    "transformer": (
        [80.2597e6, 131.489e6, 220.985e6, 401.214e6],
        [1.31564e9, 1.86413e9, 2.59533e9, 3.32870e9],
        (0.681, 0.397),
    ),
}
"""Optima printed in nanochat's dev/LOG.md (2026-01) at 1, 2, 5 and 10 x 1e18 FLOPs, and slopes."""


@pytest.mark.parametrize("count", list(NANOCHAT))
def test_nanochats_exponents_follow_the_count(count: str) -> None:
    params, tokens, slopes = NANOCHAT[count]
    budgets = np.array([1e18, 2e18, 5e18, 1e19])
    found = [fit_power_law(budgets, np.array(column)).exponent for column in (params, tokens)]
    assert found == pytest.approx(slopes, abs=1e-3)
