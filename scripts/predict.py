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

from collections.abc import Sequence

import key_help
from edge import compose, run_edge
from rich.console import Console
from screen import has_width, open_console, say
from tables import Column, columns_of, print_columns, whole_width

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
# Columns that a terminal leaves out where they are too many for it, the first one first.
MODELS_GIVE_WAY = ("hoffmann_a3_tex", "hoffmann_a3_table", "hoffmann_a2", "hoffmann_a1")
LAWS_GIVE_WAY = ("confirmed by", "data", "C counts", "N counts")


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
    lines = model_table()
    rows = []
    for line in lines:
        optima = [f"{count(n)} / {count(d)}" for n, d in line.optima]
        own = [line.name, count(line.params), count(line.tokens), flops(line.flops)]
        rows.append([*own, *optima, f"{100 * line.wasted:.1f} %"])
    columns = columns_of(["model", "N", "D", "FLOPs", *TABLE_LAWS, "wasted"], rows, n_left=1)
    if hidden := [column.title for column in print_columns(console, columns, MODELS_GIVE_WAY)]:
        say(console, f"at {whole_width(columns)} columns also {', '.join(hidden)}")
    say(console, "below a law's name: N / D that the model's FLOPs buy by it")
    say(console, "wasted: share of 6ND that an optimal run of equal loss saves, by besiroglu2024")
    for line in lines:
        sizes = [n for n, _ in line.optima]
        n, d = line.optima[0]
        first = f"its budget buys {count(n)} parameters on {count(d)} tokens by {TABLE_LAWS[0]}"
        spread = f"{first}, {count(min(sizes))} to {count(max(sizes))} parameters over the laws"
        note = f"; {line.note}" if line.note else ""
        say(console, f"{line.name}: {spread}{note}", indent="  ")


def print_laws(console: Console) -> None:
    """Print the registry: every printed law, how it counts and what to beware of.

    What has no room in the table follows in the law's sentence.
    """
    titles = ("law", "a", "b", "N counts", "C counts", "data", "loss", "confirmed by")
    rows = []
    for law in REGISTRY:
        exponents = (f"{power.exponent:.4f}" for power in (law.params_law, law.tokens_law))
        has_loss = "no" if law.loss_law is None else "yes"
        rows.append([law.key, *exponents, law.params, law.flops, law.data, has_loss, law.confirmed])
    columns = columns_of(titles, rows, n_left=len(titles))
    hidden = print_columns(console, columns, LAWS_GIVE_WAY)
    for i, law in enumerate(REGISTRY):
        parts = [law.source, law.warning, *(f"{own.title}: {own.texts[i]}" for own in hidden)]
        say(console, f"{law.key}: {'; '.join(part for part in parts if part)}", indent="  ")


def print_predictions(console: Console, config: PredictConfig) -> None:
    """Print the answers to the configuration's questions."""
    law = find_law(config)
    found = predict(config, law)
    rows = [row(prediction) for prediction in found]
    say(console, f"{law.name}: {law.source}")
    say(console, f"N counts {law.params}; C counts {law.flops}")
    columns = [own for own in columns_of(TITLES, rows, n_left=1) if set(own.texts) != {"–"}]
    if has_width(console) and whole_width(columns) > console.width:
        for line in rows:
            print_columns(console, answer_columns(line))
    else:
        print_columns(console, columns)
    best = found[-1]
    say(
        console,
        f"{count(best.params)} parameters, {count(best.tokens)} tokens at {flops(best.flops)} "
        "FLOPs",
    )
    for note in dict.fromkeys(note for prediction in found for note in prediction.notes):
        say(console, f"note: {note}")


def answer_columns(line: Sequence[str]) -> list[Column]:
    """Return one prediction with a row for each quantity, for terminals too narrow for a line."""
    rows: list[list[str]] = []
    for title, text in zip(TITLES[1:], line[1:], strict=True):
        if title == "90 %":
            rows[-1].append(text)
        else:
            rows.append([title, text])
    whole = [[*own, "–"][:3] for own in rows if own[1] != "–"]
    return columns_of([line[0], "value", "90 %"], whole, n_left=1)


def main(overrides: list[str]) -> None:
    """Answer and print; nothing is written."""
    config = build(PredictConfig, compose("predict", overrides))
    if config.table is not None and len(overrides) > 1:
        others = ", ".join(o for o in overrides if not o.startswith("table="))
        raise ConfigError(f"table={config.table} has its own laws and budgets; leave out {others}")
    console = open_console()
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
