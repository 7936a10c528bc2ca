"""Approach 1 from training curves: the loss of every run along its training, not at its end only.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.1 (smoothed curves, the lowest run at
each of 1500 FLOP counts).
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llmtrain.scaling.bootstrap import PowerDraws, draw_lines, power_draws
from llmtrain.scaling.envelope import EnvelopeFit, fit_envelope
from llmtrain.scaling.law import Array, fit_power_law
from llmtrain.scaling.load import METRICS_FILE
from llmtrain.scaling.runs import Labels, Runs
from llmtrain.spec.errors import FitRefusedError

WINDOW = 10
"""Points under the Gaussian: two standard deviations to either side."""
FLOP_VALUES = 1500
MIN_RUNS = 3
HULL_EVERY = 5
RANKED = 40
"""Runs kept in order of loss at each FLOP count; a draw that holds none of them has no answer."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingCurves:
    """Points of all runs' training curves, shape (p,), each run's in order of its tokens."""

    run_id: Labels
    tokens: Array
    flops: Array
    loss: Array
    """Nats per token: training loss, or validation loss where a run repeats its tokens."""
    unannealed: int
    """Points before the end of a schedule that decays, or of a run whose schedule is unknown."""

    def of(self, runs: Runs) -> "TrainingCurves":
        """Return the points of these runs only."""
        keep = np.isin(self.run_id, runs.run_id)
        share = keep.mean() if len(keep) else 0.0
        return TrainingCurves(
            run_id=self.run_id[keep],
            tokens=self.tokens[keep],
            flops=self.flops[keep],
            loss=self.loss[keep],
            unannealed=round(self.unannealed * float(share)),
        )


def load_curves(root: Path, runs: Runs) -> TrainingCurves | None:
    """Read the `metrics.jsonl` of every run of a sweep's folder; None where there is no curve.

    Runs of more than one epoch give their validation losses: on repeated text the training loss
    falls by memory too.
    """
    rows: list[tuple[str, float, float, float]] = []
    for record in runs.records:
        path = root / record.run_id / METRICS_FILE
        key = "train/loss" if record.epochs <= 1.0 else "val/loss"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        found = [json.loads(line) for line in lines if f'"{key}"' in line]
        rows += [
            (record.run_id, float(row["tokens"]), float(row["flops"]), float(row[key]))
            for row in found
            if row["tokens"] > 0 and row["flops"] > 0 and 0 < float(row[key]) < np.inf
        ]
    decaying = {record.run_id for record in runs.records if record.schedule != "constant"}
    return _columns(rows, decaying)


def curves_of(rows: Runs) -> TrainingCurves | None:
    """Return the curves that a table holds as repeated run ids; None where no id repeats."""
    if len(np.unique(rows.run_id)) == len(rows):
        return None
    columns = zip(rows.run_id, rows.tokens, rows.flops, rows.loss, strict=True)
    points = [(str(name), float(d), float(c), float(loss)) for name, d, c, loss in columns]
    return _columns(points, {str(name) for name in rows.run_id})


def _columns(
    rows: list[tuple[str, float, float, float]], decaying: set[str]
) -> TrainingCurves | None:
    if not rows:
        return None
    rows.sort(key=lambda row: row[:2])
    last = {name: tokens for name, tokens, _, _ in rows}
    return TrainingCurves(
        run_id=np.array([row[0] for row in rows], dtype=np.str_),
        tokens=np.array([row[1] for row in rows]),
        flops=np.array([row[2] for row in rows]),
        loss=np.array([row[3] for row in rows]),
        unannealed=sum(name in decaying and d < last[name] for name, d, _, _ in rows),
    )


def smooth(log_x: Array, log_loss: Array) -> Array:
    """Smooth ln L of one curve, shape (p,), with a Gaussian of 10 points; short curves stay.

    A plain mean would lift the end of a falling curve, which is where the envelope touches it, so
    the mean is carried along the slope of a Gaussian four times as wide: a slope from ten points
    would let the noise of the last ones through.
    """
    n = len(log_x)
    if n < 3 * WINDOW:
        return log_loss
    offset = np.arange(n)[None] - np.arange(n)[:, None]
    means = []
    for width in (WINDOW / 4.0, WINDOW):
        weight = np.exp(-0.5 * (offset / width) ** 2)
        weight /= weight.sum(axis=1, keepdims=True)
        means.append((weight @ log_x, weight @ log_loss))
    (x_mean, y_mean), (x_wide, y_wide) = means
    covariance = weight @ (log_x * log_loss) - x_wide * y_wide
    variance = np.maximum(weight @ (log_x * log_x) - x_wide**2, 1e-300)
    return np.asarray(y_mean + covariance / variance * (log_x - x_mean))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SmoothCurves:
    """Smoothed curves of r runs, read at the same 1500 FLOP values."""

    log_c: Array
    """ln C, shape (1500,)."""
    log_loss: Array
    """ln L of each run there, shape (r, 1500); infinite outside its curve."""
    log_tokens: Array
    """ln D of each run there, shape (r, 1500)."""
    log_params: Array
    """ln N of each run, shape (r,)."""

    def lowest(self, weights: Array) -> tuple[Array, Array, Array]:
        """Return ln N, ln D and ln L of the lowest drawn run at each FLOP value, (b, 1500) each.

        `weights` (b, r) says how often a run is drawn. NaN where no drawn run has a curve.
        """
        order = np.argsort(self.log_loss, axis=0)[:RANKED]
        present = weights > 0
        columns = np.arange(FLOP_VALUES)
        found = [np.full((len(weights), FLOP_VALUES), np.nan) for _ in range(3)]
        for own in order[::-1]:
            loss = self.log_loss[own, columns]
            usable = present[:, own] & np.isfinite(loss)
            values = (self.log_params[own], self.log_tokens[own, columns], loss)
            found = [np.where(usable, v, old) for v, old in zip(values, found, strict=True)]
        return found[0], found[1], found[2]


def smooth_curves(curves: TrainingCurves, finals: Runs) -> SmoothCurves:
    """Smooth every curve and read it at 1500 FLOP values, log-spaced.

    The values begin where the first run ends (below, every curve is in its warmup or far from its
    schedule's end), or at a tenth of it where all runs end alike. Raises FitRefusedError for fewer
    than three runs with curves.
    """
    names, run = np.unique(curves.run_id, return_inverse=True)
    size = dict(zip(finals.run_id, finals.params, strict=True))
    if len(names) < MIN_RUNS or not set(names) <= set(size):
        raise FitRefusedError(
            f"{len(names)} runs have training curves, Approach 1 needs {MIN_RUNS}; add runs"
        )
    log_c, log_d = np.log(curves.flops), np.log(curves.tokens)
    rows = [np.flatnonzero(run == k) for k in range(len(names))]
    loss = [smooth(log_c[own], np.log(curves.loss[own])) for own in rows]
    ends = np.array([log_c[own[-1]] for own in rows])
    low, high = float(ends.min()), float(ends.max())
    at = np.linspace(low if high - low > np.log(2.0) else low - np.log(10.0), high, FLOP_VALUES)
    pairs = list(zip(rows, loss, strict=True))
    return SmoothCurves(
        log_c=at,
        log_loss=np.stack(
            [np.interp(at, log_c[own], y, left=np.inf, right=np.inf) for own, y in pairs]
        ),
        log_tokens=np.stack([np.interp(at, log_c[own], log_d[own]) for own in rows]),
        log_params=np.log([size[name] for name in names]),
    )


def fit_lowest(curves: SmoothCurves) -> EnvelopeFit:
    """Fit ln N and ln D of the lowest run at each FLOP value against ln C by least squares.

    Raises FitRefusedError where fewer than three sizes are ever the lowest.
    """
    columns = curves.lowest(np.ones((1, len(curves.log_params))))
    log_n, log_d, log_loss = (column[0] for column in columns)
    known = np.flatnonzero(np.isfinite(log_n))
    if len(np.unique(log_n[known])) < MIN_RUNS:
        raise FitRefusedError(
            f"fewer than {MIN_RUNS} sizes are ever the lowest curve; add sizes or budgets"
        )
    C = np.exp(curves.log_c[known])
    return EnvelopeFit(
        name="approach1_smoothed",
        rows=known,
        flops=C,
        loss=np.exp(log_loss[known]),
        params_law=fit_power_law(C, np.exp(log_n[known])),
        tokens_law=fit_power_law(C, np.exp(log_d[known])),
    )


def bootstrap_lowest(curves: SmoothCurves, weights: Array) -> PowerDraws:
    """Refit with the lowest of each draw's runs; `weights` has shape (b, r)."""
    log_n, log_d, _ = curves.lowest(weights)
    return draw_lines(np.broadcast_to(curves.log_c, log_n.shape), log_n, log_d)


def fit_curve_hull(curves: SmoothCurves) -> EnvelopeFit:
    """Fit the convex hull of all curves, read at every fifth FLOP value.

    Equal steps in ln C weigh every stretch of the envelope alike; the logged points, even in
    tokens, would weigh the end of the longest run.
    """
    columns = curves.lowest(np.ones((1, len(curves.log_params))))
    return _hull(curves, *(column[0] for column in columns))


def bootstrap_curve_hull(curves: SmoothCurves, weights: Array) -> PowerDraws:
    """Refit the hull of each draw's runs; draws with too few hull points fail."""
    laws = []
    for columns in zip(*curves.lowest(weights), strict=True):
        try:
            fit = _hull(curves, *columns)
        except FitRefusedError:
            continue
        laws.append((fit.params_law, fit.tokens_law))
    return power_draws(laws, failed=len(weights) - len(laws))


def _hull(curves: SmoothCurves, log_n: Array, log_d: Array, log_loss: Array) -> EnvelopeFit:
    known = np.flatnonzero(np.isfinite(log_loss))
    known = known[known % HULL_EVERY == 0]
    columns = (np.exp(column[known]) for column in (log_n, log_d, curves.log_c, log_loss))
    fit = fit_envelope(*columns, name="approach1_curves")
    return replace(fit, rows=known[fit.rows])
