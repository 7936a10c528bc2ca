"""What is compiled and captured before the first step."""

from collections.abc import Iterator

from llmtrain.spec.plan import PlanStage
from llmtrain.training.session import Session


def warm_up(session: Session) -> Iterator[None]:
    """Compile and capture all that the rest of the run needs, largest first; yield after each.

    Weights, moments and random numbers stay as they are. Nothing to do for eager runs.
    """
    for stage in cold_stages(session):
        with session.timed("compile"):
            if session.whole is not None:
                session.whole.capture(session.step, stage)
            else:
                session.rehearse(stage)
        yield
    yield from warm_up_evaluation(session)


def warm_up_evaluation(session: Session) -> Iterator[None]:
    """Compile what an evaluation needs, and yield; nothing to do for eager runs."""
    if session.config.runtime.compile:
        with session.timed("compile"), session.evaluating():
            session.evaluator.rehearse(session.model, session.autocast)
        yield


def cold_stages(session: Session) -> list[PlanStage]:
    """Return the stages ahead that must be compiled or captured, the largest first."""
    if not (session.config.runtime.compile or session.whole is not None):
        return []
    plan = session.plan
    ahead = {plan.shape_at(step) for step in range(session.step, plan.n_steps)}
    return sorted(ahead, key=lambda stage: -stage.row_len * (stage.window or stage.row_len))
