"""What the budgets of known models would have bought under the printed laws."""

from dataclasses import dataclass

from llmtrain.scaling.published import MODELS, TABLE_LAWS, published_law


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRow:
    """What a known model's compute would have bought under each law."""

    name: str
    params: float
    tokens: float
    flops: float
    optima: tuple[tuple[float, float], ...]
    """(N, D) by the laws of TABLE_LAWS."""
    wasted: float
    """Share of 6ND wasted, by besiroglu2024."""
    note: str


def model_table() -> list[ModelRow]:
    """Return the table of known models."""
    laws = [published_law(key) for key in TABLE_LAWS]
    judge = published_law("besiroglu2024").loss_law
    assert judge is not None
    return [
        ModelRow(
            name=model.name,
            params=model.params,
            tokens=model.tokens,
            flops=model.flops,
            optima=tuple(
                (float(law.params_law.at(model.flops)), float(law.tokens_law.at(model.flops)))
                for law in laws
            ),
            wasted=judge.wasted_share(model.params, model.tokens),
            note=model.note,
        )
        for model in MODELS
    ]
