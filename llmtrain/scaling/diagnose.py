"""Guards: what makes a fit doubtful, and what makes it none. Limits are choices, named here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmtrain.scaling.bootstrap import Interval
from llmtrain.scaling.estimate import METHODS
from llmtrain.scaling.farseer import FarseerFit
from llmtrain.scaling.forecast import HeldOut, Step
from llmtrain.scaling.held_model import HeldModel
from llmtrain.scaling.influence import LeftOut
from llmtrain.scaling.interaction import InteractionFit
from llmtrain.scaling.isoflop import Curve
from llmtrain.scaling.law import Array
from llmtrain.scaling.parametric import GRADIENT_LIMIT, ParametricFit
from llmtrain.scaling.runs import Runs
from llmtrain.scaling.sensitivity import Sensitivity
from llmtrain.scaling.wording import span
from llmtrain.spec.words import plural

CONDITION_LIMIT = 2000.0
"""Sound public families lie between 110 and 700, ladders of one D/N above 2500."""
WIDTH_LIMIT = 0.2
"""Widest 80 % interval of a that still says something."""
EXPONENT_GAP = 0.1
FLOOR_GAP = 0.3
REACH_LIMIT = 100.0
"""Predictions this many times beyond the largest budget are extrapolation."""
INFLUENCE_LIMIT = 0.02
DRIFT_RUNS = 20
"""Fewest rows whose refit may say that the exponent drifts: four per constant."""
BACKTEST_LIMIT = 0.01
"""Relative error of the held-out budget's loss that a sound law stays under."""


UNUSABLE = {"thin": "thin", "no minimum": "curvature", "edge": "edge"}
"""Why a budget has no minimum to use -> name of the finding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something a reader of the fit must know."""

    level: Literal["note", "warning", "refusal"]
    code: str
    message: str


def refuse_parametric(fit: ParametricFit, width_of_a: Interval | None) -> str:
    """Return why a surface fit is refused, with the cure; empty for a sound one.

    `width_of_a` is the 80 % interval of a; None means too few draws converged.
    """
    proof = fit.certificate
    if proof.gradient > GRADIENT_LIMIT or proof.agreeing < 2:
        return (
            f"not certified: gradient {proof.gradient:.1e} (limit {GRADIENT_LIMIT:g}), "
            f"{proof.agreeing} of {proof.starts} starts agree (at least 2)"
        )
    if proof.at_bounds:
        values = ", ".join(f"{name}={getattr(fit.law, name):.3g}" for name in proof.at_bounds)
        return f"not identified: {values} at a limit; spread D/N wider, or add budgets"
    if proof.condition > CONDITION_LIMIT:
        return (
            f"not identified: Jacobian condition {proof.condition:.3g} above {CONDITION_LIMIT:g}; "
            "vary D/N at each size (at least a factor of 4)"
        )
    return refuse_width(width_of_a)


def refuse_width(width_of_a: Interval | None) -> str:
    """Return why an exponent with this 80 % interval is refused; empty for a narrow one."""
    if width_of_a is None:
        return "not identified: too few bootstrap draws converge; add runs"
    if width_of_a.high - width_of_a.low > WIDTH_LIMIT:
        return (
            f"not identified: 80 % interval of a is {width_of_a.low:.2f} to {width_of_a.high:.2f}, "
            f"wider than {WIDTH_LIMIT:g}; add runs, or spread D/N wider"
        )
    return ""


def check_curves(runs: Runs, curves: Sequence[Curve]) -> list[Finding]:
    """Name the budgets that Approach 2 leaves out, and minima measured at the end of a grid."""
    found = []
    for curve in curves:
        label = f"budget {curve.budget:.3g}"
        if not curve.used:
            message = f"{label} left out of Approach 2: {curve.reason}"
            statuses = (curve.params.status, curve.tokens.status)
            code = next(name for status, name in UNUSABLE.items() if status in statuses)
            found.append(Finding(level="warning", code=code, message=message))
            continue
        rows = runs.budget == curve.budget
        sizes = runs.params[rows]
        best = sizes[runs.loss[rows].argmin()]
        if best in (sizes.min(), sizes.max()):
            side = "smallest" if best == sizes.min() else "largest"
            message = f"{label}: the lowest run is the {side} size ({best:.3g}); widen the grid"
            found.append(Finding(level="warning", code="edge", message=message))
    return found


def refuse_exponents(a: float, b: float) -> str:
    """Return why power laws are refused; empty where both exponents lie in (0, 1)."""
    if 0 < a < 1 and 0 < b < 1:
        return ""
    return f"exponents a={a:.3f}, b={b:.3f} outside (0, 1); widen the grid of sizes, add budgets"


def check_agreement(
    fits: Sequence[tuple[str, float, Interval | None, float | None]],
) -> list[Finding]:
    """Warn where methods disagree; each entry is (name, a, interval of a, E or None)."""
    found = []
    bounds = [own for _, _, own, _ in fits if own is not None]
    apart = bool(bounds) and max(own.low for own in bounds) > min(own.high for own in bounds)
    exponents = [a for _, a, _, _ in fits]
    if apart or (exponents and max(exponents) - min(exponents) > EXPONENT_GAP):
        values = ", ".join(f"{a:.3f} ({name})" for name, a, _, _ in fits)
        message = f"the methods differ in a: {values}"
        found.append(Finding(level="warning", code="methods", message=message))
    floors = [E for _, _, _, E in fits if E]
    if floors and max(floors) > (1.0 + FLOOR_GAP) * min(floors):
        values = ", ".join(f"{E:.3g} ({name})" for name, _, _, E in fits if E)
        message = f"the methods differ in the floor E: {values}"
        found.append(Finding(level="warning", code="methods", message=message))
    return found


def check_trends(residuals: Array, runs: Runs) -> list[Finding]:
    """Warn where residuals of ln L still follow N, D or C: the form misses something."""
    found: list[Finding] = []
    if len(residuals) < 8:
        return found
    for name, column in (("N", runs.params), ("D", runs.tokens), ("C", runs.flops)):
        u = np.log(column) - np.log(column).mean()
        for power, shape in ((1, "slope"), (2, "curvature")):
            basis = u**power - (u**power).mean()
            if not np.ptp(basis):
                continue
            slope = float(basis @ residuals / (basis @ basis))
            rest = residuals - residuals.mean() - slope * basis
            error = float(np.sqrt(rest @ rest / (len(rest) - 3) / (basis @ basis)))
            if error > 0 and abs(slope) > 4.0 * error:
                message = (
                    f"residuals of the surface show a {shape} in ln {name} "
                    f"({abs(slope) / error:.0f} standard errors): extrapolate with care"
                )
                found.append(Finding(level="warning", code="trend", message=message))
    return found


def check_stability(
    left_out: Sequence[LeftOut], held_out: HeldOut | None, held_model: HeldModel | None
) -> list[Finding]:
    """Warn where a few runs carry the surface's exponent, or a back-test misses."""
    found = []
    for item in left_out:
        # Lines through a few minima or hull points move at every step; their range is in the table.
        if item.on_lines or abs(item.shift) <= INFLUENCE_LIMIT:
            continue
        unit = f" {item.worst}" if item.n_units > 1 else ""
        message = (
            f"leaving out {item.kind}{unit} moves a by {item.shift:+.3f} ({METHODS[item.method]})"
        )
        found.append(Finding(level="warning", code="influence", message=message))
    size = held_model.best if held_model is not None else None
    if held_model is not None and size is not None and (size.mean_absolute or 0) > BACKTEST_LIMIT:
        assert size.mean_absolute is not None
        message = (
            f"the smaller models miss the largest, N = {held_model.params:.3g} "
            f"({plural(held_model.n_runs, 'run')}), by {100 * size.mean_absolute:.1f} % on average "
            f"({size.method}): losses of larger models deserve little trust"
        )
        found.append(Finding(level="warning", code="backtest", message=message))
    best = held_out.best if held_out is not None else None
    if best is not None and best.error is not None and abs(best.error) > BACKTEST_LIMIT:
        message = (
            f"the back-test misses by {100 * best.error:+.1f} % ({best.method}): losses beyond the "
            "largest budget deserve little trust"
        )
        found.append(Finding(level="warning", code="backtest", message=message))
    return found


def check_starts(sensitivity: Sensitivity | None) -> list[Finding]:
    """Warn where a search from elsewhere ends below the optimum that is reported."""
    if sensitivity is None or sensitivity.better is None:
        return []
    message = (
        f"a search from published or random constants ends at a lower objective, "
        f"{sensitivity.better:.6g}: set starts=hoffmann and compare"
    )
    return [Finding(level="warning", code="starts", message=message)]


def check_steps(steps: Sequence[Step], bounds: Interval | None) -> list[Finding]:
    """Warn where the exponent leaves its own interval as small budgets leave.

    A refit counts with four budgets or more (the last step has three), four rows per constant and
    half of all rows: with fewer it scatters further than the interval of all rows.
    """
    least = max(DRIFT_RUNS, steps[0].n_runs / 2) if steps else 0
    kept = [step for step in steps[:-1] if step.n_runs >= least]
    trusted = [step for step in kept if step.a_surface is not None]
    if bounds is None or len(trusted) < 2:
        return []
    last = trusted[-1]
    assert last.a_surface is not None
    if bounds.low <= last.a_surface <= bounds.high:
        return []
    message = (
        f"without the {last.n_dropped} smallest budgets Approach 3's a is {last.a_surface:.3f}, "
        f"outside its interval {bounds.low:.3f} to {bounds.high:.3f}: it drifts with scale"
    )
    return [Finding(level="warning", code="drift", message=message)]


def check_forms(mixed: InteractionFit | None, farseer: FarseerFit | str | None) -> list[Finding]:
    """Say whether the runs ask for a form with more constants than five."""
    found = []
    if mixed is not None:
        message = (
            f"the runs {_ask(mixed)} a term in N and D together: F = {mixed.F:.3g} (p = "
            f"{mixed.p_value:.2g}), AIC better by {mixed.aic_gain:.1f} with it, K/(A B) "
            f"{span(mixed.share_interval, '.3g')}"
        )
        found.append(Finding(level=_level(mixed), code="interaction", message=message))
    if isinstance(farseer, str):
        found.append(Finding(level="refusal", code="farseer", message=farseer))
    elif farseer is not None:
        message = (
            f"the runs {_ask(farseer)} Farseer's nine constants: F = {farseer.F:.3g} (p = "
            f"{farseer.p_value:.2g}), AIC better by {farseer.aic_gain:.1f} with them"
        )
        if farseer.held_out is not None:
            nine, five = farseer.held_out
            message += (
                f"; the largest budget's runs, forecast from the smaller ones, are off by "
                f"{100 * nine:.2f} % with nine constants and {100 * five:.2f} % with five"
            )
        found.append(Finding(level=_level(farseer), code="farseer", message=message))
    return found


def _ask(fit: InteractionFit | FarseerFit) -> str:
    return "ask for" if fit.asked_for else "do not ask for"


def _level(fit: InteractionFit | FarseerFit) -> Literal["note", "warning"]:
    return "warning" if fit.asked_for else "note"


def check_reach(target: float, largest: float) -> list[Finding]:
    """Warn where a prediction lies far beyond the data."""
    if target <= REACH_LIMIT * largest:
        return []
    message = f"the target is {target / largest:.3g} times the largest budget: extrapolation"
    return [Finding(level="warning", code="reach", message=message)]
