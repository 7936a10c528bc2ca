"""What a reader wants first: the model to train next, and the answer in five lines."""

from dataclasses import dataclass

import numpy as np

from llmtrain.scaling.bootstrap import Interval, LawDraws, PowerDraws, interval
from llmtrain.scaling.envelope import EnvelopeFit
from llmtrain.scaling.isoflop import IsoflopFit
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.results import GroupAnalysis
from llmtrain.scaling.texts import loss_unit
from llmtrain.scaling.wording import count, count_span, counted, flops, span
from llmtrain.spec.words import plural


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The optimal model at the target budget."""

    flops: float
    params: float
    params_interval: Interval | None
    tokens: float
    tokens_interval: Interval | None
    loss: float | None
    loss_interval: Interval | None
    params_from: str
    """Method behind N and D."""
    loss_from: str


def target(group: GroupAnalysis) -> Target | None:
    """Return the recommended model at the target budget; None where every fit is refused."""
    main, surface = group.main, group.surface
    C = group.target_flops
    if main is None:
        return None
    if isinstance(main.fit, IsoflopFit | EnvelopeFit) and isinstance(main.draws, PowerDraws):
        n, d = float(main.fit.params_law.at(C)), float(main.fit.tokens_law.at(C))
        n_draws, d_draws = main.draws.n_opt(C), main.draws.d_opt(C)
    else:
        assert isinstance(main.fit, ParametricFit)
        assert isinstance(main.draws, LawDraws)
        n = float(group.cost.n_opt(main.fit.law, C))
        d = float(group.cost.tokens(C, n))
        n_draws = main.draws.n_opt(C, group.cost)
        d_draws = group.cost.tokens(C, n_draws)
    loss, loss_draws = None, np.array([])
    if surface is not None:
        assert isinstance(surface.fit, ParametricFit)
        assert isinstance(surface.draws, LawDraws)
        loss = float(group.cost.loss_opt(surface.fit.law, C))
        loss_draws = group.cost.loss_opt(surface.draws, C)
    return Target(
        flops=C,
        params=n,
        params_interval=interval(n_draws),
        tokens=d,
        tokens_interval=interval(d_draws),
        loss=loss,
        loss_interval=interval(loss_draws),
        params_from=main.title,
        loss_from=surface.title if surface is not None else "",
    )


def _without_grid(group: GroupAnalysis) -> str:
    """Say what the parabolas alone give, where the verdict departs from them for their grid."""
    if not group.grid_misleads:
        return ""
    assert group.bias is not None
    plain = group.estimate("approach2")
    return (
        f" The parabolas as they are say {plain.a:.3f} {span(plain.a_interval)}, but on this grid "
        f"they would miss the surface's own exponent by {group.bias.exponent_shift:+.3f}."
    )


def _no_law(group: GroupAnalysis) -> list[str]:
    """Return why Approaches 1, 2 and 3 refuse; the guards list the variants of each."""
    opening = "No law: Approaches 1, 2 and 3 all refuse these runs."
    reasons = dict.fromkeys(estimate.reason for estimate in group.approaches)
    if len(reasons) == 1:
        return [f"{opening} {''.join(reasons)}"]
    return [opening, *(f"{estimate.title}: {estimate.reason}" for estimate in group.approaches)]


def verdict(group: GroupAnalysis) -> list[str]:
    """Return the answer in at most five lines of plain text."""
    main, aim = group.main, target(group)
    if main is None or aim is None:
        return _no_law(group)
    given = group.runs.conventions
    unit = loss_unit(given.texts.metric)
    lines = [
        f"N_opt grows as C^{main.a:.3f} {span(main.a_interval)} and D_opt as C^{main.b:.3f} "
        f"{span(main.b_interval)} by {main.title} (90 % intervals; "
        f"{counted(given.params, given.flops)}).{_without_grid(group)}",
        f"At C = {flops(aim.flops)} train N = {count(aim.params)} "
        f"{count_span(aim.params_interval)} on D = {count(aim.tokens)} tokens "
        f"{count_span(aim.tokens_interval)}, {aim.tokens / aim.params:.3g} tokens per parameter.",
    ]
    if aim.loss is not None:
        lines.append(
            f"Projected loss there {aim.loss:.4f} {span(aim.loss_interval, '.4f')} {unit} "
            f"({aim.loss_from})."
        )
    else:
        lines.append("No loss is forecast: every surface fit is refused, see the guards.")
    held = group.held_out
    best = None if held is None else held.best
    if held is not None and best is not None and best.error is not None:
        lines.append(
            f"Back-test: the budget {flops(held.budget)}, forecast from the {held.n_budgets} "
            f"smaller ones, {best.loss:.4f} {span(best.loss_interval, '.4f')} against "
            f"{held.loss:.4f} measured: {100 * best.error:+.2f} % ({best.method})."
        )
    n_left = len(group.runs.left_out)
    n_warned = sum(finding.level != "note" for finding in group.findings)
    noise = "" if group.noise is None else f" seed noise {group.noise.sd:.4f} {unit};"
    lines.append(
        f"{plural(len(group.runs), 'run')}, {plural(len(group.runs.budgets), 'budget')};{noise} "
        f"{plural(n_left, 'row')} left out; {n_warned} warnings or refusals."
    )
    return lines
