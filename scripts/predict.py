"""Which model a budget should train, by a printed law or by one of your own.

  python scripts/predict.py flops=5.76e23 law=besiroglu
  python scripts/predict.py flops=1e20 law=runs/NAME/report/law.json
  python scripts/predict.py gpu_hours=1000 mfu=0.4 peak_tflops=989
  python scripts/predict.py params=70e9 tokens=1.4e12       what the pair reaches and wastes
  python scripts/predict.py flops=1e23 unique_tokens=1e11 inference_tokens=1e13
  python scripts/predict.py table=models                    what known budgets would have bought
  python scripts/predict.py table=laws                      the printed laws and their caveats

Every key stands in configs/predict.yaml.
"""

import key_help
from edge import compose, run_edge
from rich.console import Console
from rich.table import Table
from screen import ScriptConsole

from llmtrain.scaling.any_law import find_law
from llmtrain.scaling.config import PredictConfig
from llmtrain.scaling.models_table import TABLE_LAWS, model_table
from llmtrain.scaling.predict import Prediction, predict
from llmtrain.scaling.published import REGISTRY
from llmtrain.scaling.wording import count, count_span, flops, flops_span, percent_span, span
from llmtrain.spec.build import build
from llmtrain.spec.errors import ConfigError

TITLES = (
    "question", "FLOPs", "90 %", "N", "90 %", "D", "90 %", "D/N", "loss", "90 %", "wasted", "90 %",
)  # fmt: skip


def row(found: Prediction) -> list[str]:
    """Return a prediction's line of the table."""
    return [
        found.question,
        flops(found.flops),
        flops_span(found.flops_interval),
        count(found.params),
        count_span(found.params_interval),
        count(found.tokens),
        count_span(found.tokens_interval),
        f"{found.tokens / found.params:.3g}",
        "–" if found.loss is None else f"{found.loss:.4f}",
        span(found.loss_interval, ".4f"),
        "–" if found.wasted is None else f"{100 * found.wasted:.1f} %",
        percent_span(found.wasted_interval),
    ]


def print_models(console: Console) -> None:
    """Print what known budgets would have bought."""
    table = Table(box=None, pad_edge=False)
    laws = [f"{key} N / D" for key in TABLE_LAWS]
    for name in ("model", "N", "D", "FLOPs", *laws, "wasted"):
        table.add_column(name, justify="left" if name == "model" else "right")
    rows = model_table()
    for line in rows:
        optima = [f"{count(n)} / {count(d)}" for n, d in line.optima]
        own = [line.name, count(line.params), count(line.tokens), flops(line.flops)]
        table.add_row(*own, *optima, f"{100 * line.wasted:.1f} %")
    console.print(table)
    console.print("wasted: share of 6ND that an optimal run of equal loss saves, by besiroglu2024")
    for line in rows:
        sizes = [n for n, _ in line.optima]
        n, d = line.optima[0]
        first = f"its budget buys {count(n)} parameters on {count(d)} tokens by {TABLE_LAWS[0]}"
        spread = f"{first}, {count(min(sizes))} to {count(max(sizes))} parameters over the laws"
        note = f"; {line.note}" if line.note else ""
        console.print(f"{line.name}: {spread}{note}", markup=False)


def print_laws(console: Console) -> None:
    """Print the registry: every printed law, how it counts and what to beware of."""
    table = Table(box=None, pad_edge=False)
    for name in ("law", "a", "b", "N counts", "C counts", "data", "loss", "confirmed by"):
        table.add_column(name)
    for law in REGISTRY:
        exponents = (f"{power.exponent:.4f}" for power in (law.params_law, law.tokens_law))
        has_loss = "no" if law.loss_law is None else "yes"
        table.add_row(law.key, *exponents, law.params, law.flops, law.data, has_loss, law.confirmed)
    console.print(table)
    for law in REGISTRY:
        caveat = f"; {law.warning}" if law.warning else ""
        console.print(f"{law.key}: {law.source}{caveat}", markup=False)


def print_predictions(console: Console, config: PredictConfig) -> None:
    """Print the answers to the configuration's questions."""
    law = find_law(config)
    found = predict(config, law)
    rows = [row(prediction) for prediction in found]
    table = Table(box=None, pad_edge=False)
    shown = [i for i in range(len(TITLES)) if any(line[i] != "–" for line in rows)]
    for i in shown:
        table.add_column(TITLES[i], justify="right" if i else "left")
    for line in rows:
        table.add_row(*(line[i] for i in shown))
    console.print(f"{law.name}: {law.source}", markup=False)
    console.print(f"N counts {law.params}; C counts {law.flops}", markup=False)
    console.print(table)
    best = found[-1]
    console.print(
        f"{count(best.params)} parameters, {count(best.tokens)} tokens at {flops(best.flops)} FLOPs"
    )
    for note in dict.fromkeys(note for prediction in found for note in prediction.notes):
        console.print(f"note: {note}", markup=False)


def main(overrides: list[str]) -> None:
    """Answer and print; nothing is written."""
    config = build(PredictConfig, compose("predict", overrides))
    if config.table is not None and len(overrides) > 1:
        others = ", ".join(o for o in overrides if not o.startswith("table="))
        raise ConfigError(f"table={config.table} has its own laws and budgets; leave out {others}")
    console = ScriptConsole(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no width; nothing may be cut
    if config.table == "models":
        print_models(console)
    elif config.table == "laws":
        print_laws(console)
    else:
        print_predictions(console, config)


if __name__ == "__main__":
    if key_help.is_asked_for():
        __doc__ = f"{__doc__}\n{key_help.predict_keys()}"
    run_edge(main)
