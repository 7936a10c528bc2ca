"""What an adaptive sweep runs next: a pure function of the runs so far, without clock or chance.

Budgets are opened from the smallest, each centred by the minima below it; a budget whose minimum is
not bracketed gets cells on the open side; then single cells are added where the variance of the
target falls most per FLOP, until the asked precision or the cost cap. A restart that sees the same
runs decides the same.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from llmtrain.scaling.isoflop import Curve, read_curves
from llmtrain.scaling.law import Array
from llmtrain.scaling.precision import (
    Local,
    cheapest_precision,
    local_isoflop,
    local_surface,
)
from llmtrain.spec.errors import FitRefusedError
from llmtrain.spec.sweeps import SweepConfig
from llmtrain.sweep.decision import Candidate, Measured, Pick, Round, columns

FIRST_BUDGETS = 2
"""Budgets opened before any run is known; their minima centre the dearer ones."""
MIN_DEGREES = 6
"""Degrees of freedom below which the scatter, and so the width, may be small by luck."""
BOTH_SIDES = 0.25
"""A minimum is bracketed once sizes reach this share of ln span beyond it on both sides."""


def next_round(
    candidates: Sequence[Candidate],
    runs: Sequence[Measured],
    sweep: SweepConfig,
    centres: Mapping[float, float],
) -> Round:
    """Return what to run next, or why to stop.

    `candidates` are the cells that can be trained; `centres` the expected optimum N of each budget
    before any run (same count as the candidates' params).
    """
    return _Policy(candidates, runs, sweep, centres).decide()


class _Policy:
    """The runs so far as columns, and the rules in the order in which they are asked."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        runs: Sequence[Measured],
        sweep: SweepConfig,
        centres: Mapping[float, float],
    ) -> None:
        self.sweep, self.rules, self.centres = sweep, sweep.adaptive, centres
        failed = {(run.cell.shape, run.cell.budget) for run in runs if not np.isfinite(run.loss)}
        self.candidates = [c for c in candidates if (c.shape, c.budget) not in failed]
        good = [run for run in runs if np.isfinite(run.loss)]
        self.seen = [(run.cell.shape, run.cell.budget, run.seed) for run in runs]
        self.spent = sum(run.cell.flops for run in runs)
        self.runs = columns([run.cell for run in good])
        self.loss = np.array([run.loss for run in good], dtype=np.float64)
        self.budgets = sorted(sweep.budgets)
        self.curves = {
            curve.budget: curve
            for curve in read_curves(
                self.runs.params, self.runs.tokens, self.loss, self.runs.budget
            )
        }
        self.a: float | None = None
        self.interval: tuple[float, float] | None = None
        self.forecast_sd: float | None = None

    def decide(self) -> Round:
        """Ask the rules in turn."""
        picks = [] if self.curves else self._open(self.budgets[:FIRST_BUDGETS])
        picks = picks or self._bracket()
        closed = [budget for budget in self.budgets if budget not in self.curves]
        if not picks and closed:
            picks = self._open(closed)
        if picks:
            return self._round(picks)
        if not self.curves:
            return self._round([], "no cell can be trained")
        try:
            local, row, stop = self._target()
        except FitRefusedError as error:
            return self._round(self._spread_out(str(error)), "no cell of the family is left")
        if stop:
            return self._round([], stop)
        return self._round(self._gain(local, row), self._nothing_helps())

    def _round(self, picks: list[Pick], otherwise: str = "") -> Round:
        """Return the round, or the reason why it cannot be run."""
        cost = sum(pick.cell.flops for pick in picks)
        cap, stop = self.rules.max_flops, "" if picks else otherwise
        if cap is not None and self.spent + cost > cap:
            picks, stop = self._within(picks, cap - self.spent), ""
            if not picks:
                stop = f"cost: the next cells would pass sweep.adaptive.max_flops={cap:g}"
        return Round(
            picks=tuple(picks),
            stop=stop,
            a=self.a,
            interval=self.interval,
            forecast_sd=self.forecast_sd,
            spent=self.spent,
        )

    def _nothing_helps(self) -> str:
        cap = self.rules.max_flops
        if cap is None:
            return "no cell of the family lowers the variance"
        return f"cost: {self.spent:.4g} FLOPs are spent, no cell fits under max_flops={cap:g}"

    @staticmethod
    def _within(picks: list[Pick], left: float) -> list[Pick]:
        kept = []
        for pick in picks:
            if pick.cell.flops <= left:
                kept.append(pick)
                left -= pick.cell.flops
        return kept

    def _open(self, budgets: Sequence[float]) -> list[Pick]:
        """Spread first_sizes cells over the span around the expected optimum of each budget."""
        picks: list[Pick] = []
        for budget in budgets:
            centre, source = self._centre(budget)
            reach = np.log(self.sweep.span)
            targets = np.log(centre) + np.linspace(-reach, reach, self.rules.first_sizes)
            reason = f"opens C={budget:.3g} around N={centre:.3g} ({source})"
            picks += self._nearest(budget, targets, reason)
        return picks

    def _centre(self, budget: float) -> tuple[float, str]:
        """Return the expected optimum: by the minima found, at their slope once there are three."""
        used = [curve for curve in self.curves.values() if curve.used]
        prior = np.log(self.centres[budget])
        if not used:
            return float(np.exp(prior)), "expected"
        offset = [np.log(c.params.x) - np.log(self.centres[c.budget]) for c in used]
        return float(np.exp(prior + np.mean(offset))), f"minima of {len(used)} smaller budgets"

    def _bracket(self) -> list[Pick]:
        """Add cells where an opened budget's minimum does not lie well inside its sizes."""
        picks: list[Pick] = []
        for budget, curve in self.curves.items():
            here = self.runs.budget == budget
            sizes = np.unique(np.log(self.runs.params[here]))
            step = 2 * np.log(self.sweep.span) / (self.rules.first_sizes - 1)
            targets, why = self._open_sides(curve, sizes, step)
            picks += self._nearest(budget, targets, f"C={budget:.3g}: {why}", beyond=sizes)
        return picks

    def _open_sides(self, curve: Curve, sizes: Array, step: float) -> tuple[Array, str]:
        """Return ln N of the cells that would bracket a minimum; none where it is bracketed."""
        low, high = sizes[0] - step, sizes[-1] + step
        vertex = curve.params
        if vertex.status == "thin":
            return np.array([low, high]), f"{curve.n_sizes} sizes are too few for a minimum"
        if vertex.status == "no minimum":
            return np.array([low, high]), "the sizes so far show no minimum"
        margin = BOTH_SIDES * np.log(self.sweep.span)
        x = np.log(vertex.x)
        if x < sizes[0] + margin:
            return np.array([low, low - step]), f"the minimum N={vertex.x:.3g} is at the lower edge"
        if x > sizes[-1] - margin:
            return np.array([high, high + step]), f"the minimum N={vertex.x:.3g} is at the top edge"
        return np.array([]), ""

    def _nearest(
        self, budget: float, targets: Array, reason: str, beyond: Array | None = None
    ) -> list[Pick]:
        """Take the unused candidate nearest each target; `beyond` asks for sizes outside it."""
        taken: list[Pick] = []
        free = [
            c
            for c in self.candidates
            if c.budget == budget
            and not any(seen[:2] == (c.shape, c.budget) for seen in self.seen)
            and (beyond is None or not beyond[0] <= np.log(c.params) <= beyond[-1])
        ]
        for target in targets:
            side = free
            if beyond is not None:
                side = [c for c in free if (np.log(c.params) > beyond[-1]) == (target > beyond[-1])]
            if side:
                best = min(side, key=lambda c: abs(np.log(c.params) - target))
                free.remove(best)
                taken.append(Pick(cell=best, seed=self.sweep.seeds[0], reason=reason))
        return taken

    def _target(self) -> tuple[Local, Array, str]:
        """Return the fit and row of the precision that is still missing, or why to stop."""
        rules = self.rules
        C = rules.forecast_flops or 10.0 * self.budgets[-1]
        wants_forecast = rules.forecast_sd is not None
        wants_width = rules.width is not None or not wants_forecast
        surface = None
        if wants_forecast or rules.method == "surface":
            surface = local_surface(self.runs, self.loss, C)
        exponent = surface
        if rules.method == "approach2" and wants_width:
            exponent = local_isoflop(self.runs, self.loss)
        assert exponent is not None
        bounds = exponent.interval
        self.a, self.interval = exponent.a, (bounds.low, bounds.high)
        missing = wants_width and (rules.width is None or bounds.high - bounds.low > rules.width)
        chosen = (exponent, exponent.exponent_row)
        done = "" if rules.width is None else f"a is known to {bounds.high - bounds.low:.3g}"
        if wants_forecast:
            assert surface is not None
            assert surface.forecast_row is not None
            assert rules.forecast_sd is not None
            self.forecast_sd = surface.sd(surface.forecast_row)
            done += f"{', ' if done else ''}ln L at {C:.3g} FLOPs to {self.forecast_sd:.2g}"
            if not missing:
                missing = self.forecast_sd > rules.forecast_sd
                chosen = (surface, surface.forecast_row)
        if min(chosen[0].degrees, exponent.degrees) < MIN_DEGREES:
            missing = True
        return (*chosen, "" if missing else f"precision: {done}")

    def _gain(self, local: Local, row: Array) -> list[Pick]:
        """Add cells one by one where the target's variance falls most per FLOP."""
        pool, rules = self._window(), self.rules
        is_exponent = row is local.exponent_row
        goal = rules.width if is_exponent else rules.forecast_sd
        now = local.interval.high - local.interval.low if is_exponent else local.sd(row)
        chosen = cheapest_precision(
            local,
            row,
            columns(pool),
            n_cells=rules.cells_per_round,
            enough=0.0 if goal is None else goal / now,
            max_flops=np.inf if rules.max_flops is None else rules.max_flops - self.spent,
        )
        what = "a" if is_exponent else "the forecast"
        if goal is not None and now <= goal:
            why = f"the scatter rests on {local.degrees} degrees of freedom, needs {MIN_DEGREES}; "
        else:
            why = ""
        picks: list[Pick] = []
        for index, share in chosen:
            reason = f"{why}lowers the variance of {what} by {100 * share:.0f} %, most per FLOP"
            cell = pool[index]
            picks.append(Pick(cell=cell, seed=self._seed(cell, picks), reason=reason))
        return picks

    def _window(self) -> list[Candidate]:
        """Return the candidates within the span of their budget's minimum."""
        reach = np.log(self.sweep.span)
        centre = {b: c.params.x if c.used else self._centre(b)[0] for b, c in self.curves.items()}
        return [c for c in self.candidates if abs(np.log(c.params / centre[c.budget])) <= reach]

    def _spread_out(self, why: str) -> list[Pick]:
        """Add cells far from those there are, the cheapest budgets first: a fit was refused."""
        picks: list[Pick] = []
        pool = self._window()
        seen = {(shape, budget) for shape, budget, _ in self.seen}
        while len(picks) < self.rules.cells_per_round:
            taken = {(p.cell.shape, p.cell.budget) for p in picks} | seen
            free = [c for c in pool if (c.shape, c.budget) not in taken]
            if not free:
                free = pool
            if not free:
                break
            best = max(free, key=lambda c: self._distance(c, picks) / c.flops)
            picks.append(Pick(cell=best, seed=self._seed(best, picks), reason=why))
        return picks

    def _distance(self, cell: Candidate, picks: Sequence[Pick]) -> float:
        here = self.runs.budget == cell.budget
        others = [p.cell.params for p in picks if p.cell.budget == cell.budget]
        sizes = np.concatenate([self.runs.params[here], others])
        return float(np.abs(np.log(sizes / cell.params)).min()) + 1e-9

    def _seed(self, cell: Candidate, picks: Sequence[Pick]) -> int:
        """Return the first seed that this cell has not been given: the sweep's, then the next."""
        given = {seed for shape, budget, seed in self.seen if (shape, budget) == cell.key}
        given |= {pick.seed for pick in picks if pick.cell == cell}
        listed = [seed for seed in self.sweep.seeds if seed not in given]
        return listed[0] if listed else max(given) + 1
