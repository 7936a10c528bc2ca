import pytest

from llmtrain.spec.errors import ConfigError
from llmtrain.spec.plan import plan_run
from llmtrain.spec.settings import build_launch
from llmtrain.sweep.grid import Cell
from llmtrain.sweep.select import select


@pytest.fixture
def cells(make):
    """Three cells of three budgets: 5,120, 10,240 and 15,360 tokens."""
    configs = [make({"seed": n, "budget.n_tokens": 5120 * n}) for n in (1, 2, 3)]
    plans = [plan_run(config, vocab_size=256, unique_tokens=None) for config in configs]
    return [Cell(config=c, plan=p) for c, p in zip(configs, plans, strict=True)]


def test_cells_are_named_by_id_glob_expression_and_budget(cells):
    first, second, third = cells
    assert select(cells, ()) == cells
    assert select(cells, [second.run_id]) == [second]
    assert select(cells, ["*-s3-*"]) == [third]
    assert select(cells, ["re:-s[12]-"]) == [first, second]
    assert select(cells, ["5.12e3"]) == [first]
    assert select(cells, ["15360", "*-s1-*"]) == [first, third]


@pytest.mark.parametrize("item", ["*-s9-*", "7e3", "re:s9", "w32d2"])
def test_an_item_that_names_nothing_is_refused(cells, item):
    words = r"none of the 3 cells; write a budget \(5120, 10240, 15360\), .* D5.12e3-w32d2"
    with pytest.raises(ConfigError, match=words):
        select(cells, ["*", item])
    with pytest.raises(ConfigError, match=r"only=re:\( is no regular expression"):
        select(cells, ["re:("])


def test_one_item_needs_no_brackets_and_the_keys_are_strict():
    rest = {"retry": "none", "dry_run": False}
    assert build_launch({"only": 3e10, **rest}).only == ("30000000000.0",)
    assert build_launch({"only": ["a", 1], **rest, "seed": 0}).only == ("a", "1")
    assert build_launch({"only": [], **rest}).only == ()
    with pytest.raises(ConfigError, match="retry: expected one of none, failed; got 'all'"):
        build_launch({"only": [], "retry": "all", "dry_run": False})
