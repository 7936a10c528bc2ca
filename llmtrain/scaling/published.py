"""Printed scaling laws, each with its source and its way of counting."""

import math
from dataclasses import dataclass

from llmtrain.scaling.law import FLOPS_PER_PARAM_TOKEN, LossLaw, PowerLaw
from llmtrain.spec.errors import ConfigError

PETAFLOP_DAY = 8.64e19


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedLaw:
    """A law as printed: a loss surface, or power laws of the optimum."""

    key: str
    aliases: tuple[str, ...]
    source: str
    params: str
    """What N counts."""
    flops: str
    """What C counts."""
    loss_law: LossLaw | None
    params_law: PowerLaw
    tokens_law: PowerLaw
    warning: str


def _surface(
    key: str,
    aliases: tuple[str, ...],
    source: str,
    law: LossLaw,
    *,
    params: str = "total",
    warning: str = "",
) -> PublishedLaw:
    return PublishedLaw(
        key=key,
        aliases=aliases,
        source=source,
        params=params,
        flops="6ND",
        loss_law=law,
        params_law=law.params_law,
        tokens_law=law.tokens_law,
        warning=warning,
    )


def _powers(
    key: str,
    aliases: tuple[str, ...],
    source: str,
    params_law: tuple[float, float],
    tokens_law: tuple[float, float],
    *,
    params: str = "total",
    flops: str = "about 6ND",
    warning: str = "",
) -> PublishedLaw:
    return PublishedLaw(
        key=key,
        aliases=aliases,
        source=source,
        params=params,
        flops=flops,
        loss_law=None,
        params_law=PowerLaw(coefficient=params_law[0], exponent=params_law[1]),
        tokens_law=PowerLaw(coefficient=tokens_law[0], exponent=tokens_law[1]),
        warning=warning,
    )


TWO_DIGITS = (
    "constants of two digits: at 5.76e23 FLOPs they turn 58.9 tokens per parameter into 92.6"
)
KAPLAN = 1.3e9 * PETAFLOP_DAY**-0.73
LLAMA3_TOKENS = (0.29, 0.53)

REGISTRY = (
    _powers(
        "kaplan2020",
        ("kaplan",),
        "Kaplan et al. 2020 (2001.08361), N = 1.3e9 C^.73 in PF-days of C_min",
        (KAPLAN, 0.73),
        (1.0 / (FLOPS_PER_PARAM_TOKEN * KAPLAN), 0.27),
        params="non_embedding",
        flops="6ND",
    ),
    _powers(
        "hoffmann_a1",
        ("hoffmann1", "chinchilla1"),
        "Hoffmann et al. 2022 (2203.15556), Approach 1, from table 3",
        (0.0992, 0.4981),
        (1.696, 0.5019),
    ),
    _powers(
        "hoffmann_a2",
        ("hoffmann2", "chinchilla2"),
        "Hoffmann et al. 2022 (2203.15556), Approach 2, from table A3",
        (0.1449, 0.4899),
        (1.153, 0.5100),
    ),
    _powers(
        "hoffmann_a3_table",
        ("hoffmann3_table",),
        "Hoffmann et al. 2022 (2203.15556), Approach 3, from table A3",
        (0.5346, 0.4587),
        (0.3154, 0.5410),
    ),
    _surface(
        "hoffmann_a3_tex",
        ("hoffmann3", "chinchilla3", "chinchilla", "hoffmann"),
        "Hoffmann et al. 2022 (2203.15556), Approach 3, constants of the TeX source",
        LossLaw(
            # The source gives logarithms: E 1.6934, A 406.40, B 410.72.
            E=math.exp(0.5267228),
            A=math.exp(6.0073404),
            B=math.exp(6.0179186),
            alpha=0.33917084,
            beta=0.2849083,
        ),
        warning="Besiroglu et al. 2024 find this fit stopped early; it does not give table A3",
    ),
    _surface(
        "hoffmann_a3_rounded",
        ("hoffmann3_rounded",),
        "Hoffmann et al. 2022 (2203.15556), Approach 3, as printed",
        LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
        warning=TWO_DIGITS,
    ),
    _surface(
        "besiroglu2024",
        ("besiroglu", "epoch"),
        "Besiroglu et al. 2024 (2404.10102)",
        LossLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
    ),
    _surface(
        "muennighoff_c4",
        ("muennighoff", "muennighoff2023"),
        "Muennighoff et al. 2023 (2305.16264), C4",
        LossLaw(
            # The source gives logarithms: E 1.86914, A 520.825, B 1487.716.
            E=math.exp(0.6254804),
            A=math.exp(6.255414),
            B=math.exp(7.3049974),
            alpha=0.3526596,
            beta=0.3526596,
        ),
    ),
    _surface(
        "sardana2024",
        ("sardana",),
        "Sardana et al. 2024 (2401.00448), the constants of their inference study",
        LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.336, beta=0.283),
    ),
    _powers(
        "deepseek2024",
        ("deepseek",),
        "DeepSeek LLM 2024 (2401.02954), M non-embedding FLOPs per token",
        (0.1715, 0.5243),
        (5.8316, 0.4757),
        params="M, FLOPs per token",
        flops="M D",
        warning="N is M, FLOPs per token: divide by 6 for an effective size",
    ),
    _powers(
        "porian_tuned_rw",
        ("porian", "porian2024"),
        "Porian et al. 2024 (2406.19146), tuned, RefinedWeb",
        (0.118926, 0.496895),
        (1.401426, 0.503105),
        params="no_input_embedding",
        flops="6ND",
    ),
    _powers(
        "llama3",
        ("llama3_2024",),
        "Llama 3 team 2024 (2407.21783), D = .29 C^.53, N = C / 6D",
        (1.0 / (FLOPS_PER_PARAM_TOKEN * LLAMA3_TOKENS[0]), 1.0 - LLAMA3_TOKENS[1]),
        LLAMA3_TOKENS,
        flops="6ND",
        warning="constants of two digits: at 3.8e25 they give 10.5T tokens, the paper says 16.55T",
    ),
)


def published_law(name: str) -> PublishedLaw:
    """Return the law of a key or alias. Raises ConfigError naming the known keys."""
    for law in REGISTRY:
        if name.lower() in (law.key, *law.aliases):
            return law
    known = ", ".join(law.key for law in REGISTRY)
    raise ConfigError(f"law={name!r} is neither a file nor one of {known}")


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
