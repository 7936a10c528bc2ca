"""Numbers and tables as people read them."""

from dataclasses import dataclass

from llmtrain.scaling.bootstrap import Interval

PARAMS_WORDS = {
    "no_input_embedding": "head counted, input embedding not",
    "non_embedding": "non-embedding",
    "total": "all parameters",
}
FLOPS_WORDS = {
    "non_embedding": "6 N D of the blocks alone",
    "with_head": "blocks and head, no attention",
    "causal_attention": "matmuls with causal attention",
    "full_attention": "matmuls with full attention",
    "chinchilla": "Chinchilla's appendix F",
    "total": "6 N D of all parameters",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A titled table of text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def counted(params: str, flops: str) -> str:
    """Return the conventions of N and C in words; a name of its own stays as it is."""
    n, c = PARAMS_WORDS.get(params, params), FLOPS_WORDS.get(flops, flops)
    return f"N: {n}; C: {c}"


def count(value: float) -> str:
    """Return a count to three digits: 812, 1.24k, 72.2B, 1.33T."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            number = value / size
            places = 2 if number < 9.995 else 1 if number < 99.95 else 0
            return f"{number:,.{places}f}{unit}"
    return f"{value:.3g}"


def flops(value: float) -> str:
    """Return FLOPs with three digits and without zeros: 1e+18 as 1e18."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def span(bounds: Interval | None, form: str = ".3f") -> str:
    """Return [low, high], or a dash where there is no interval."""
    return "–" if bounds is None else f"[{bounds.low:{form}}, {bounds.high:{form}}]"


def count_span(bounds: Interval | None) -> str:
    """Return an interval of counts."""
    return "–" if bounds is None else f"[{count(bounds.low)}, {count(bounds.high)}]"


def flops_span(bounds: Interval | None) -> str:
    """Return an interval of FLOPs."""
    return "–" if bounds is None else f"[{flops(bounds.low)}, {flops(bounds.high)}]"


def percent_span(bounds: Interval | None) -> str:
    """Return an interval of shares in percent."""
    return "–" if bounds is None else f"[{100 * bounds.low:.1f}, {100 * bounds.high:.1f}] %"
