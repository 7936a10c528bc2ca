"""What the recipe's learning rate does to the law: cells at several rates, and a refit at the best.

Along one budget N and D move opposite ways, so a rule in the wrong variables mistunes the arms of
the U, and bends it. In every cell with three rates or more a parabola in ln(rate / recipe's rate)
gives the best rate and the excess loss at the recipe's. A smooth function of the excesses,

    excess = c0 + c1 u + c2 u^2 (+ c3 v + c4 u v),   u = ln(N / N_opt(C)), v = ln C,

with the terms in brackets where two budgets or more have brackets, is then taken off every run at
the recipe's rate, and Approach 2 refitted.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.bootstrap import Interval, interval
from llmtrain.scaling.isoflop import IsoflopFit, fit_isoflop
from llmtrain.scaling.law import Array
from llmtrain.scaling.precision import Cells, local_isoflop
from llmtrain.scaling.runs import Runs
from llmtrain.spec.errors import FitRefusedError
from llmtrain.spec.words import plural

MIN_RATES = 3
MIN_CELLS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class RateCell:
    """One shape at one budget, at several rates."""

    d_model: int
    n_layers: int
    budget: float
    params: float
    tokens: float
    factors: tuple[float, ...]
    """Rates over the recipe's, ascending."""
    losses: tuple[float, ...]
    """Mean over seeds at each."""
    best: float
    """Factor of the best rate; the lowest one's where the parabola has no minimum inside."""
    excess: float
    """Loss at the recipe's rate less that at the best, by the parabola, nats."""
    inside: bool
    """Whether the best rate lies between those tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RateBracket:
    """What the rates cost, and what they do to the optimum."""

    cells: tuple[RateCell, ...]
    a: float | None
    """Exponent of N_opt at the recipe's rate, by Approach 2; null where it refuses, see note."""
    a_best: float | None
    """The same with the best-rate losses."""
    a_shift_interval: Interval | None
    """90 % interval of a_best - a."""
    optimum_shift: float | None
    """N_opt at the largest budget with the best-rate losses over that at the recipe's."""
    optimum_shift_interval: Interval | None
    note: str
    """Why there is no refit, or which cells are not in it; empty where all are."""


def split_rates(runs: Runs) -> tuple[Runs, Runs | None]:
    """Return the runs at the recipe's rate, and the cells at several rates (None: there are none).

    The recipe's rate is the multiplier that most runs have, of equals the one nearest 1. Runs at
    other rates enter no fit: the lowest of three noisy losses, where other cells have one run,
    would lower just the bracketed cells. Records without a multiplier stay where they are.
    """
    factors = runs.lr_multiplier
    known = factors[np.isfinite(factors)]
    values, n_runs = np.unique(known, return_counts=True)
    if len(values) < 2:
        return runs, None
    most = values[n_runs == n_runs.max()]
    base = float(most[np.abs(np.log(most)).argmin()])
    off = np.isfinite(factors) & (factors != base)
    reason = (
        f"not at the rate of most runs (recipe.lr_multiplier={base:g}): used for the rates only"
    )
    cells = _cells_of(runs)
    bracketed = np.isin(cells, np.unique(cells[off]))
    return runs.without(off, reason), runs.take(bracketed)


def repeated_rates(runs: Runs) -> int:
    """Return how many cells have runs of one seed at more than one peak rate."""
    if not runs.records:
        return 0
    rates: dict[tuple[int, float], set[float]] = {}
    for cell, record in zip(_cells_of(runs), runs.records, strict=True):
        rates.setdefault((int(cell), record.seed), set()).add(record.peak_lr)
    return len({cell for (cell, _), found in rates.items() if len(found) > 1})


def fit_bracket(base: Runs, bracket: Runs, n_draws: int, seed: int) -> RateBracket:
    """Return the best rates, and Approach 2 refitted with the losses at them.

    A cell's budget is that of its runs in `base`; one in no IsoFLOP curve is left out of the refit.
    The interval redraws every loss with the scatter of the runs about their parabolas.
    """
    factors = bracket.lr_multiplier
    values, n_runs = np.unique(factors, return_counts=True)
    unit = base.lr_multiplier
    finite = unit[np.isfinite(unit)]
    own = float(finite[0]) if len(finite) else float(values[n_runs.argmax()])
    x = np.log(factors / own)
    bracket = _on_curves(bracket, base)
    members = _members(bracket, x)
    cells = tuple(_rate_cell(bracket, x, rows) for rows in members)
    nothing = RateBracket(
        cells=cells,
        a=None,
        a_best=None,
        a_shift_interval=None,
        optimum_shift=None,
        optimum_shift_interval=None,
        note="",
    )
    members = [own for own in members if np.isfinite(bracket.budget[own]).all()]
    n_off = len(cells) - len(members)
    off = f"{plural(n_off, 'cell')} in no IsoFLOP curve left out" if n_off else ""
    if len(members) < MIN_CELLS:
        note = f"{len(members)} cells with {MIN_RATES} rates, needs {MIN_CELLS}"
        return replace(nothing, note=f"{note}; {off}" if off else note)
    try:
        columns = Cells(
            params=base.params, tokens=base.tokens, flops=base.flops, budget=base.budget
        )
        noise = local_isoflop(columns, base.loss).noise
        before, after = _refit(base, bracket, x, members)
    except FitRefusedError as error:
        return replace(nothing, note=str(error))
    top = float(base.budgets[-1])
    shifts = _redrawn(base, bracket, x, members, noise, n_draws, seed)
    ratio = _ratio(before, after, top)
    return replace(
        nothing,
        note=off,
        a=before.a,
        a_best=after.a,
        a_shift_interval=_about(after.a - before.a, shifts[:, 0]),
        optimum_shift=float(np.exp(ratio)),
        optimum_shift_interval=_exp(_about(ratio, shifts[:, 1])),
    )


def _cells_of(runs: Runs) -> NDArray[np.int64]:
    """Return a number per row: which shape at which budget and token count it is."""
    return np.unique(_keys(runs), axis=0, return_inverse=True)[1].ravel()


def _keys(runs: Runs) -> Array:
    return np.stack([runs.flops, runs.tokens, runs.d_model, runs.n_layers], axis=1)


def _on_curves(bracket: Runs, base: Runs) -> Runs:
    """Return the bracket with its cells on the curves that `base` has them on."""
    keys = map(tuple, _keys(base).tolist())
    assigned = dict(zip(keys, base.budget.tolist(), strict=True))
    pairs = zip(map(tuple, _keys(bracket).tolist()), bracket.budget.tolist(), strict=True)
    return replace(bracket, budget=np.array([assigned.get(key, own) for key, own in pairs]))


def _members(bracket: Runs, x: Array) -> list[NDArray[np.bool_]]:
    cells = _cells_of(bracket)
    rows = [(cells == cell) & np.isfinite(x) for cell in np.unique(cells)]
    rows = [own for own in rows if len(np.unique(x[own])) >= MIN_RATES and (x[own] == 0.0).any()]
    return sorted(rows, key=lambda own: (bracket.budget[own][0], bracket.params[own][0]))


def _parabola(x: Array, loss: Array) -> tuple[float, float, bool]:
    """Return x of the lowest loss, the excess at x = 0 over it, and whether it lies inside."""
    p, q, r = np.polyfit(x, loss, 2)
    if p > 0 and x.min() <= -q / (2 * p) <= x.max():
        return float(-q / (2 * p)), float(q * q / (4 * p)), True
    ends = np.array([x.min(), 0.0, x.max()])
    values = np.polyval([p, q, r], ends)
    best = int(values.argmin())
    return float(ends[best]), float(r - values[best]), False


def _rate_cell(bracket: Runs, x: Array, own: NDArray[np.bool_]) -> RateCell:
    best, excess, inside = _parabola(x[own], bracket.loss[own])
    values = np.unique(x[own])
    first = int(np.flatnonzero(own)[0])
    return RateCell(
        d_model=int(bracket.d_model[first]),
        n_layers=int(bracket.n_layers[first]),
        budget=float(bracket.budget[first]),
        params=float(bracket.params[first]),
        tokens=float(bracket.tokens[first]),
        factors=tuple(float(f"{value:.6g}") for value in np.exp(values)),
        losses=tuple(float(bracket.loss[own & (x == value)].mean()) for value in values),
        best=float(np.exp(best)),
        excess=excess,
        inside=inside,
    )


def _refit(
    base: Runs, bracket: Runs, x: Array, members: list[NDArray[np.bool_]]
) -> tuple[IsoflopFit, IsoflopFit]:
    """Return Approach 2 at the recipe's rates and at the best ones."""
    before = fit_isoflop(base.params, base.tokens, base.loss, base.budget)
    excess = np.array([_parabola(x[own], bracket.loss[own])[1] for own in members])
    at = [int(np.flatnonzero(own)[0]) for own in members]
    where = (bracket.params[at], bracket.budget[at])
    several = len(np.unique(bracket.budget[at])) > 1 and len(members) >= 6
    basis = _basis(before, *where, several)
    solution = np.linalg.lstsq(basis, excess, rcond=None)[0]
    finite = np.isfinite(base.budget)
    rows = (base.params[finite], base.budget[finite])
    loss = base.loss[finite] - _basis(before, *rows, several) @ solution
    return before, fit_isoflop(base.params[finite], base.tokens[finite], loss, base.budget[finite])


def _basis(fit: IsoflopFit, params: Array, budget: Array, several: bool) -> Array:
    u = np.log(params / fit.params_law.at(budget))
    v = np.log(budget / fit.curves[0].budget)
    columns = [np.ones_like(u), u, u * u, *([v, u * v] if several else [])]
    return np.stack(columns, axis=1)


def _redrawn(
    base: Runs,
    bracket: Runs,
    x: Array,
    members: list[NDArray[np.bool_]],
    noise: float,
    n_draws: int,
    seed: int,
) -> Array:
    """Return the shifts of a and of ln N_opt at the largest budget with noise added, (b, 2)."""
    rng = np.random.default_rng(seed)
    place = {str(name): i for i, name in enumerate(bracket.run_id)}
    shared = [(i, place[str(name)]) for i, name in enumerate(base.run_id) if str(name) in place]
    of_base, of_bracket = (
        (list(column) for column in zip(*shared, strict=True)) if shared else ([], [])
    )
    found = np.full((n_draws, 2), np.nan)
    for k in range(n_draws):
        own = noise * rng.standard_normal(len(base))
        rates = noise * rng.standard_normal(len(bracket))
        rates[of_bracket] = own[of_base]
        noisy = replace(base, loss=base.loss + own)
        others = replace(bracket, loss=bracket.loss + rates)
        try:
            before, after = _refit(noisy, others, x, members)
        except FitRefusedError:
            continue
        found[k] = after.a - before.a, _ratio(before, after, float(base.budgets[-1]))
    return found


def _ratio(before: IsoflopFit, after: IsoflopFit, budget: float) -> float:
    return float(np.log(after.params_law.at(budget) / before.params_law.at(budget)))


def _about(value: float, draws: Array) -> Interval | None:
    """Return the draws' interval moved to `value`: noise added to noise shifts their middle."""
    found = interval(draws)
    if found is None:
        return None
    middle = float(np.nanmedian(draws))
    return Interval(low=value + found.low - middle, high=value + found.high - middle)


def _exp(bounds: Interval | None) -> Interval | None:
    if bounds is None:
        return None
    return Interval(low=float(np.exp(bounds.low)), high=float(np.exp(bounds.high)))
