"""The rate bracket for readers."""

import math

from llmtrain.scaling.lr_bracket import RateBracket
from llmtrain.scaling.wording import Table, count, flops, span


def bracket_table(bracket: RateBracket | None) -> Table | None:
    """Return the rates and what they cost; None without a bracket."""
    if bracket is None or not bracket.cells:
        return None
    factors = sorted({factor for cell in bracket.cells for factor in cell.factors})
    rows = [
        (
            flops(cell.budget) if math.isfinite(cell.budget) else "–",
            f"w{cell.d_model}d{cell.n_layers}",
            count(cell.params),
            *(
                f"{cell.losses[cell.factors.index(f)]:.4f}" if f in cell.factors else "–"
                for f in factors
            ),
            f"x {cell.best:.2f}" + ("" if cell.inside else " (edge)"),
            f"{cell.excess:+.4f}",
        )
        for cell in bracket.cells
    ]
    return Table(
        title="Rates: the recipe's bracketed",
        header=("budget", "shape", "N", *(f"x {f:g}" for f in factors), "best", "excess, nats"),
        rows=tuple(rows),
        note=bracket_line(bracket),
    )


def bracket_line(bracket: RateBracket) -> str:
    """Say in one sentence what the recipe's rates do to the exponent and the optimum."""
    if bracket.a is None or bracket.a_best is None:
        return f"No refit at the best rates: {bracket.note}."
    assert bracket.optimum_shift is not None
    return (
        f"Approach 2 at the recipe's rates gives a {bracket.a:.4f}, with the losses at the best "
        f"rates {bracket.a_best:.4f}: a moves by {bracket.a_best - bracket.a:+.4f} "
        f"{span(bracket.a_shift_interval)}, N_opt at the largest budget by a factor "
        f"{bracket.optimum_shift:.3f} {span(bracket.optimum_shift_interval)} (90 %)."
        + (f" {bracket.note}." if bracket.note else "")
    )
