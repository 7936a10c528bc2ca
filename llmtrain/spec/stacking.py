"""Which runs can be trained as one: those of one shape that differ in seed and rate alone."""

import dataclasses

from llmtrain.spec.settings import TrainConfig


def stack_key(config: TrainConfig) -> TrainConfig | None:
    """Return what runs that are stacked have in common, or None for a run that never is.

    Dropout would draw other masks than the run alone, a trunk and its branches begin and end by
    themselves, a run that may roll back does so alone, and one over several devices has them to
    itself.
    """
    checkpoint = config.checkpoint
    by_itself = bool(checkpoint.branch_at) or checkpoint.branch_from is not None
    by_itself |= config.guard.on_nonfinite == "rollback" or config.runtime.parallel != "none"
    if config.model.dropout > 0 or by_itself:
        return None
    recipe = dataclasses.replace(config.recipe, lr_multiplier=1.0)
    return dataclasses.replace(config, recipe=recipe, seed=0)
