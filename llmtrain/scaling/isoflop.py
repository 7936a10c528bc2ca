"""Approach 2: one parabola per budget, and power laws through their vertices.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.2. The FLOPs are the budgets as recorded;
nothing here assumes C = 6 N D.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmtrain.scaling.law import Array, PowerLaw, fit_power_law
from llmtrain.spec.errors import FitRefusedError

MIN_SIZES = 4
MIN_BUDGETS = 3
Status = Literal["used", "edge", "no minimum", "thin"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Vertex:
    """Lowest point of loss against ln x for one budget."""

    status: Status
    x: float
    """Position of the minimum; NaN where there is none."""
    loss: float
    """Loss at the minimum, nats per token."""
    coefficients: tuple[float, float, float]
    """loss = p u^2 + q u + r in u = ln x - centre; NaN for read-outs without a parabola."""
    centre: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One IsoFLOP curve: its runs and the minima read from it."""

    budget: float
    n_runs: int
    n_sizes: int
    params: Vertex
    tokens: Vertex
    reason: str
    """Why the budget is left out; empty for a used one."""

    @property
    def used(self) -> bool:
        """Whether the curve enters the power laws."""
        return not self.reason


@dataclass(frozen=True, kw_only=True, slots=True)
class IsoflopFit:
    """Power laws N_opt(C) and D_opt(C) with the curves they come from."""

    name: str
    curves: tuple[Curve, ...]
    params_law: PowerLaw
    tokens_law: PowerLaw

    @property
    def a(self) -> float:
        """Exponent of N_opt."""
        return self.params_law.exponent

    @property
    def b(self) -> float:
        """Exponent of D_opt."""
        return self.tokens_law.exponent

    @property
    def used(self) -> tuple[Curve, ...]:
        """The curves behind the laws."""
        return tuple(curve for curve in self.curves if curve.used)


ReadOut = Callable[[Array, Array], Vertex]
"""From x (parameters or tokens) and loss of one budget to the minimum."""


def parabola_vertex(x: Array, loss: Array, min_sizes: int = MIN_SIZES) -> Vertex:
    """Fit loss = p u^2 + q u + r in u = ln x - mean; the minimum is at u = -q / 2p.

    Shapes (n,). Several runs per size all enter. A minimum outside the sizes is an `edge`, a
    curvature p <= 0 is `no minimum`, fewer than `min_sizes` distinct sizes are `thin`.
    """
    n_sizes = len(np.unique(x))
    if n_sizes < min_sizes:
        nan = float("nan")
        return Vertex(status="thin", x=nan, loss=nan, coefficients=(nan, nan, nan), centre=nan)
    log_x = np.log(x)
    centre = float(log_x.mean())
    u = log_x - centre
    p, q, r = (float(value) for value in np.polyfit(u, loss, 2))
    if p <= 0:
        nan = float("nan")
        return Vertex(status="no minimum", x=nan, loss=nan, coefficients=(p, q, r), centre=centre)
    lowest = -q / (2.0 * p)
    inside = u.min() <= lowest <= u.max()
    return Vertex(
        status="used" if inside else "edge",
        x=float(np.exp(lowest + centre)),
        loss=r - q * q / (4.0 * p),
        coefficients=(p, q, r),
        centre=centre,
    )


def local_parabola(points: int) -> ReadOut:
    """Return a read-out by a parabola through `points` sizes around the lowest run.

    Near an end of the grid the window is cut, not shifted, so that it stays centred.
    """
    reach = points // 2

    def read(x: Array, loss: Array) -> Vertex:
        sizes = np.unique(x)
        best = int(np.searchsorted(sizes, x[loss.argmin()]))
        window = np.isin(x, sizes[max(0, best - reach) : best + reach + 1])
        return parabola_vertex(x[window], loss[window], min_sizes=min(points, MIN_SIZES))

    return read


def mean_by_size(x: Array, loss: Array) -> tuple[Array, Array]:
    """Return ln x ascending without repeats, and the mean of ln loss at each, shapes (n,)."""
    log_x, own = np.unique(np.log(x), return_inverse=True)
    return log_x, np.bincount(own, weights=np.log(loss)) / np.bincount(own)


def local_minima(points: int) -> Callable[[Array, Array], Array]:
    """Return the read-out of `local_parabola` for all columns of ln loss (n, b) at once."""
    reach = points // 2

    def read(log_x: Array, log_loss: Array) -> Array:
        best = log_loss.argmin(axis=0)
        found = np.full(len(best), np.nan)
        for at in np.unique(best):
            window = slice(max(0, at - reach), at + reach + 1)
            own, u = best == at, log_x[window] - log_x[at]
            if len(u) >= 3:
                p, q, _ = np.polyfit(u, np.exp(log_loss[window][:, own]), 2)
                lowest = -q / np.where(p > 0, 2.0 * p, np.nan)
                inside = (lowest >= u[0]) & (lowest <= u[-1])
                found[own] = np.where(inside, log_x[at] + lowest, np.nan)
        return found

    return read


def read_curves(
    N: Array, D: Array, loss: Array, budget: Array, read: ReadOut = parabola_vertex
) -> tuple[Curve, ...]:
    """Return one curve per finite budget, ascending; nothing is refused here."""
    curves = []
    for value in np.unique(budget[np.isfinite(budget)]):
        rows = budget == value
        by_params, by_tokens = read(N[rows], loss[rows]), read(D[rows], loss[rows])
        curves.append(
            Curve(
                budget=float(value),
                n_runs=int(rows.sum()),
                n_sizes=len(np.unique(N[rows])),
                params=by_params,
                tokens=by_tokens,
                reason=_reason(by_params, by_tokens, N[rows]),
            )
        )
    return tuple(curves)


def _reason(by_params: Vertex, by_tokens: Vertex, N: Array) -> str:
    n_sizes = len(np.unique(N))
    for vertex, axis in ((by_params, "N"), (by_tokens, "D")):
        if vertex.status == "thin" and n_sizes >= MIN_SIZES:
            return f"the lowest loss is too near an end of the {n_sizes} sizes for a window on it"
        if vertex.status == "thin":
            return f"{n_sizes} sizes, needs {MIN_SIZES}"
        if vertex.status == "no minimum":
            return f"no minimum: curvature {vertex.coefficients[0]:.2g} in ln {axis} is not above 0"
        if vertex.status == "edge":
            where = f"sizes {N.min():.3g} to {N.max():.3g}"
            return f"minimum at {axis} = {vertex.x:.3g} is not inside the grid ({where})"
    return ""


def fit_isoflop(
    N: Array,
    D: Array,
    loss: Array,
    budget: Array,
    *,
    read: ReadOut = parabola_vertex,
    name: str = "approach2",
    drop_edges: bool = True,
) -> IsoflopFit:
    """Fit ln N_opt and ln D_opt as straight lines in ln C through the minima of the budgets.

    Shapes (n,); rows with a NaN budget belong to no curve. Raises FitRefusedError for fewer than
    three usable budgets or an exponent outside (0, 1). `drop_edges=False` keeps minima outside the
    grid, to show what they would have done.
    """
    curves = read_curves(N, D, loss, budget, read)
    usable = [
        curve
        for curve in curves
        if curve.used or (not drop_edges and np.isfinite(curve.params.x + curve.tokens.x))
    ]
    if len(usable) < MIN_BUDGETS:
        raise FitRefusedError(_too_few(curves, len(usable)))
    budgets = np.array([curve.budget for curve in usable])
    fit = IsoflopFit(
        name=name,
        curves=curves,
        params_law=fit_power_law(budgets, np.array([curve.params.x for curve in usable])),
        tokens_law=fit_power_law(budgets, np.array([curve.tokens.x for curve in usable])),
    )
    if drop_edges and not (0 < fit.a < 1 and 0 < fit.b < 1):
        raise FitRefusedError(
            f"Approach 2 gives exponents a={fit.a:.3f}, b={fit.b:.3f} outside (0, 1) from "
            f"{len(usable)} budgets; widen the grid of sizes, or add budgets"
        )
    return fit


def _too_few(curves: tuple[Curve, ...], n_usable: int) -> str:
    if not curves:
        return (
            "Approach 2: no rows share a FLOP budget; name the budgets with budgets=[...] where "
            "the runs were planned at some, else train sizes at equal FLOPs"
        )
    lost = "; ".join(f"C={curve.budget:.3g}: {curve.reason}" for curve in curves if not curve.used)
    return (
        f"Approach 2 needs {MIN_BUDGETS} budgets with a minimum inside their sizes, has {n_usable}"
        + (f" ({lost})" if lost else "")
        + "; widen the grid of sizes there, or add budgets"
    )
