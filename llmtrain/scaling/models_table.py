"""What the budgets of known models would have bought under the printed laws."""

from dataclasses import dataclass

from llmtrain.scaling.published import published_law


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownModel:
    """A trained model: parameters, tokens, and the compute its paper (or 6ND) gives."""

    name: str
    params: float
    tokens: float
    flops: float
    note: str = ""


MODELS = (
    KnownModel(name="GPT-3", params=175e9, tokens=300e9, flops=3.14e23),
    KnownModel(name="Gopher", params=280e9, tokens=300e9, flops=5.76e23, note="6ND is 5.04e23"),
    KnownModel(
        name="OPT-175B",
        params=175e9,
        tokens=180e9,
        flops=1.89e23,
        note="180B tokens of corpus; with the 300B seen 6ND is 3.15e23",
    ),
    KnownModel(name="MT-NLG 530B", params=530e9, tokens=270e9, flops=8.59e23),
    KnownModel(name="PaLM 540B", params=540e9, tokens=780e9, flops=2.53e24),
    KnownModel(name="LLaMA-13B", params=13e9, tokens=1e12, flops=7.8e22),
    KnownModel(name="Chinchilla", params=70e9, tokens=1.4e12, flops=5.76e23, note="6ND is 5.88e23"),
)
TABLE_LAWS = (
    "hoffmann_a1",
    "hoffmann_a2",
    "hoffmann_a3_table",
    "hoffmann_a3_tex",
    "besiroglu2024",
)


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
