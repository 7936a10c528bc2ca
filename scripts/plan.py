"""Print the cells of a sweep, or of one run, as a table; nothing is trained.

  python scripts/plan.py sweep=demo
  python scripts/plan.py sweep=isoflop 'sweep.budgets=[1e16,3e16]'
  python scripts/plan.py sweep=isoflop sweep.mode=adaptive sweep.law=besiroglu     the first round
  python scripts/plan.py sweep=isoflop sweep.mode=lr_bracket                       with its rates
  python scripts/plan.py model=w256d6 budget.flops=1e15

Takes the same overrides as scripts/train.py.
"""

from edge import compose, run_edge
from rich.console import Console
from rich.table import Table

from llmtrain.corpus.prepare import known_tokens
from llmtrain.spec.plan import plan_run
from llmtrain.spec.recipe import outside_range
from llmtrain.spec.settings import TrainConfig, build_run
from llmtrain.spec.sweeps import SweepConfig
from llmtrain.sweep.centre import describe, expected_params
from llmtrain.sweep.grid import Cell, Grid, family, plan_sweep
from llmtrain.sweep.rounds import AdaptiveSweep, describe_round

COLUMNS = (
    "budget", "d_model", "n_layers", "seed", "N", "D", "D/N", "epochs",
    "steps", "batch", "lr", "FLOPs", "off",
)  # fmt: skip


def row(cell: Cell) -> list[str]:
    """Return a cell's line of the table."""
    plan, model = cell.plan, cell.config.model
    spent = plan.flops[cell.config.budget.convention]
    asked = cell.config.budget.flops
    return [
        "" if asked is None else f"{asked:.3g}",
        str(model.d_model),
        str(model.n_layers),
        str(cell.config.seed),
        f"{plan.params['no_input_embedding']:,}",
        f"{plan.n_tokens:,}",
        f"{plan.tokens_per_param:.1f}",
        "?" if plan.epochs is None else f"{plan.epochs:.3f}",
        str(plan.n_steps),
        str(plan.batch_tokens),
        f"{plan.hyper.peak_lr:.2e}",
        f"{spent:.4g}",
        f"{plan.budget_error:+.3%}",
    ]


def plan_grid(
    config: TrainConfig, sweep: SweepConfig, tokens: int | None
) -> tuple[Grid, list[str]]:
    """Return the cells of a sweep (an adaptive one's first round), and lines that explain them."""
    shapes = family(sweep, config.model)
    centres = ", ".join(
        f"C={flops:.3g}: N={expected_params(sweep, shapes, config, flops):.4g}"
        for flops in sweep.budgets
    )
    lines = [
        f"centred at {centres} (no_input_embedding)",
        f"expected optimum from {describe(sweep)}",
    ]
    if sweep.mode != "adaptive":
        return plan_sweep(config, sweep, unique_tokens=tokens), lines
    decision, grid = AdaptiveSweep(config, sweep, unique_tokens=tokens).first_round()
    return grid, [*lines, f"{describe_round(1, decision)}; later rounds depend on its losses"]


def main(overrides: list[str]) -> None:
    """Plan and print."""
    config, sweep = build_run(compose("train", overrides))
    tokens = known_tokens(config.data)
    lines: list[str] = []
    if sweep is None:
        plan = plan_run(config, vocab_size=config.data.vocab_size, unique_tokens=tokens)
        grid = Grid(cells=(Cell(config=config, plan=plan),), refused=())
    else:
        grid, lines = plan_grid(config, sweep, tokens)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width; nothing may be cut
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for cell in grid.cells:
        table.add_row(*row(cell))
    console.print(table)
    for refused in grid.refused:
        console.print(
            f"refused: w{refused.d_model}d{refused.n_layers} seed {refused.seed}: {refused.reason}"
        )
    convention = config.budget.convention
    total = sum(cell.plan.flops[convention] for cell in grid.cells)
    console.print(
        f"{len(grid.cells)} cells, {len(grid.refused)} refused; {total:.4g} FLOPs in all "
        f"({convention}; N without the input embedding)"
    )
    for line in lines:
        console.print(line, markup=False)
    spent = sum(cell.spent for cell in grid.cells)
    if spent < total:
        console.print(
            f"trunks and branches: {spent:.4g} FLOPs are spent, {1 - spent / total:.1%} less than "
            "the cells one by one"
        )
    notes = {
        note
        for cell in grid.cells
        if (note := outside_range(config.recipe.name, cell.plan.params["no_input_embedding"]))
    }
    for note in notes:
        console.print(f"note: {note}; some cells lie outside")
    if tokens is None:
        console.print("note: the corpus is not prepared yet, so epochs are unknown")


if __name__ == "__main__":
    run_edge(main)
