"""Printed scaling laws, each with its source, its data, its way of counting and its caveat."""

import math

from llmtrain.scaling.law import FLOPS_PER_PARAM_TOKEN, LossLaw
from llmtrain.scaling.printed import PublishedLaw, over_training_law, powers, surface
from llmtrain.spec.errors import ConfigError

PETAFLOP_DAY = 8.64e19
KAPLAN = 1.3e9 * PETAFLOP_DAY**-0.73
LLAMA3_TOKENS = (0.299, 0.537)
BILLION = 1e9
HOFFMANN = "Hoffmann et al. 2022 (2203.15556)"
GADRE = "Gadre et al. 2024 (2403.08540), eq. 4 at table 2's five runs"
GADRE_CHECK = "refit of the released losses, rounds to the printed constants"
GADRE_WARNING = "fitted to five runs of 0.4B parameters at most; loss on C4's validation text"
MASSIVE_TEXT = "MassiveText"
# MiniCPM counts N and D in billions; its loss is per byte, so only the optimum enters.
MINICPM = LossLaw(E=0.31, A=0.0715 * BILLION**0.29, B=0.300 * BILLION**0.23, alpha=0.29, beta=0.23)

REGISTRY = (
    powers(
        "kaplan2020",
        ("kaplan",),
        "Kaplan et al. 2020 (2001.08361), figure 14: N = 1.3e9 C^.73 in PF-days of C_min",
        (KAPLAN, 0.73),
        (1.0 / (FLOPS_PER_PARAM_TOKEN * KAPLAN), 0.27),
        data="WebText2",
        confirmed="paper",
        params="non_embedding",
        flops="6ND",
        warning="embeddings and head not counted, long warmup, no cosine of its own length: "
        "Porian et al. 2024 trace .73 to these",
    ),
    powers(
        "hoffmann_a1",
        ("hoffmann1", "chinchilla1"),
        f"{HOFFMANN}, Approach 1, line through table 3",
        (0.0992, 0.4981),
        (1.696, 0.5019),
        data=MASSIVE_TEXT,
        confirmed="all rows of table 3",
        largest_flops=1.3e22,
    ),
    powers(
        "hoffmann_a2",
        ("hoffmann2", "chinchilla2"),
        f"{HOFFMANN}, Approach 2, line through table A3",
        (0.1449, 0.4899),
        (1.153, 0.5100),
        data=MASSIVE_TEXT,
        confirmed="all rows of table A3",
        largest_flops=3e21,
    ),
    powers(
        "hoffmann_a3_table",
        ("hoffmann3_table",),
        f"{HOFFMANN}, Approach 3, line through table A3",
        (0.5346, 0.4587),
        (0.3154, 0.5410),
        data=MASSIVE_TEXT,
        confirmed="all rows of table A3",
        largest_flops=1.3e22,
        warning="neither the printed nor the TeX constants of Approach 3 give this table",
    ),
    surface(
        "hoffmann_a3_tex",
        ("hoffmann3", "chinchilla3", "chinchilla", "hoffmann"),
        f"{HOFFMANN}, eq. 10, Approach 3 with the constants of the TeX source",
        LossLaw(
            # The source gives logarithms: E 1.6934, A 406.40, B 410.72.
            E=math.exp(0.5267228),
            A=math.exp(6.0073404),
            B=math.exp(6.0179186),
            alpha=0.33917084,
            beta=0.2849083,
        ),
        data=MASSIVE_TEXT,
        confirmed="TeX source",
        largest_flops=1.3e22,
        warning="Besiroglu et al. 2024 find this fit stopped early; it does not give table A3",
    ),
    surface(
        "hoffmann_a3_rounded",
        ("hoffmann3_rounded",),
        f"{HOFFMANN}, eq. 10, Approach 3 as printed",
        LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
        data=MASSIVE_TEXT,
        confirmed="paper",
        largest_flops=1.3e22,
        warning="constants of two digits: at 5.76e23 FLOPs they turn 58.9 tokens per parameter "
        "into 92.6",
    ),
    surface(
        "besiroglu2024",
        ("besiroglu", "epoch"),
        "Besiroglu et al. 2024 (2404.10102), table 1",
        LossLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
        data="MassiveText, 240 runs read off a figure",
        confirmed="paper, and a refit of the extracted runs",
        largest_flops=1.3e22,
    ),
    surface(
        "muennighoff_c4",
        ("muennighoff", "muennighoff2023"),
        "Muennighoff et al. 2023 (2305.16264), parametric fit",
        LossLaw(
            # The source gives logarithms: E 1.86914, A 520.825, B 1487.716.
            E=math.exp(0.6254804),
            A=math.exp(6.255414),
            B=math.exp(7.3049974),
            alpha=0.3526596,
            beta=0.3526596,
        ),
        data="C4",
        confirmed="paper and code",
        warning="alpha = beta was imposed",
    ),
    surface(
        "sardana2024",
        ("sardana",),
        "Sardana et al. 2024 (2401.00448), the constants of their inference study",
        LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.336, beta=0.283),
        data=MASSIVE_TEXT,
        confirmed="gives figure 1's 17 % and 1.7e22 FLOPs",
        largest_flops=1.3e22,
        warning="Hoffmann's Approach 3 by other roundings",
    ),
    powers(
        "deepseek2024",
        ("deepseek",),
        "DeepSeek LLM 2024 (2401.02954), eq. 4, M non-embedding FLOPs per token",
        (0.1715, 0.5243),
        (5.8316, 0.4757),
        data="their own",
        confirmed="paper",
        params="M, FLOPs per token",
        flops="M D",
        largest_flops=3e20,
        warning="N is M, FLOPs per token: divide by 6 for an effective size; table 4 gives a of "
        ".450, .524 and .578 by data quality",
    ),
    powers(
        "porian_tuned_rw",
        ("porian", "porian2024"),
        "Porian et al. 2024 (2406.19146), tuned, RefinedWeb",
        (0.118926, 0.496895),
        (1.401426, 0.503105),
        data="RefinedWeb",
        confirmed="76.9B parameters at 5.88e23, and a refit of the released runs",
        params="no_input_embedding",
        flops="6ND",
        largest_flops=2.56e19,
    ),
    surface(
        "gadre_c4",
        ("gadre", "gadre2024"),
        GADRE,
        over_training_law(1.50826, 141.2772, 189.5155, 0.1212361),
        data="C4",
        confirmed=GADRE_CHECK,
        largest_flops=2.03e19,
        warning=GADRE_WARNING,
    ),
    surface(
        "gadre_redpajama",
        ("gadre_rpj",),
        GADRE,
        over_training_law(1.836648, 212.2361, 366.6872, 0.1364254),
        data="RedPajama",
        confirmed=f"{GADRE_CHECK}, and the printed errors on two held-out runs",
        largest_flops=2.03e19,
        warning=GADRE_WARNING,
    ),
    surface(
        "gadre_refinedweb",
        ("gadre_rw",),
        GADRE,
        over_training_law(1.734462, 157.1163, 246.2067, 0.1271974),
        data="RefinedWeb",
        confirmed=GADRE_CHECK,
        largest_flops=2.03e19,
        warning=GADRE_WARNING,
    ),
    powers(
        "minicpm2024",
        ("minicpm",),
        "MiniCPM 2024 (2404.06395), eq. 2 and 3, mean of five texts",
        (MINICPM.params_law.coefficient, MINICPM.a),
        (MINICPM.tokens_law.coefficient, MINICPM.b),
        data="their own, WSD schedule",
        confirmed="alpha, beta and K^2 in the text; A/B from figure 10 gives that K^2",
        params="non_embedding",
        flops="6ND",
        largest_flops=1.5e21,
        warning="constants of two digits: 184 tokens per parameter at 1e21, the paper says 192; "
        "its loss is per byte and not given here",
    ),
    powers(
        "llama3",
        ("llama3_2024",),
        "Llama 3 team 2024 (2407.21783), figure 3: D = .299 C^.537, N = C / 6D",
        (1.0 / (FLOPS_PER_PARAM_TOKEN * LLAMA3_TOKENS[0]), 1.0 - LLAMA3_TOKENS[1]),
        LLAMA3_TOKENS,
        data="their own",
        confirmed="the text's 402B on 16.55T at 3.8e25, within 4 %",
        flops="6ND",
        largest_flops=1e22,
        warning="the text prints D = .29 C^.53, which gives 10.5T tokens at 3.8e25 where it says "
        "16.55T; its C is 5.71 ND",
    ),
    powers(
        "gemstones2025",
        ("gemstones",),
        "McLeish et al. 2025 (2502.06857), Approach 1 on the convex hull, released constants",
        (0.0581276, 0.4993802),
        (6.661341, 0.4809888),
        data="Dolma",
        confirmed="released parameters, all three lines agree",
        flops="by shape, about 1.1 of 6ND",
        largest_flops=4.2e21,
        warning="rate held constant, so no loss is annealed; with cooldowns their a is .597",
    ),
    powers(
        "nanochat2026",
        ("nanochat",),
        "nanochat 2026 (dev/LOG.md, January), line through its four optima",
        (0.0413787, 0.5240891),
        (3.043048, 0.4785807),
        data="FineWeb-Edu",
        confirmed="all four optima within 4 %",
        params="no_input_embedding",
        flops="with attention, 1.1 to 1.3 of 6ND",
        largest_flops=1e19,
        warning="one decade of compute; the log rounds the exponents to .54 and .49, and by other "
        "counts of N they are .37 and .70",
    ),
)


def published_law(name: str) -> PublishedLaw:
    """Return the law of a key or alias. Raises ConfigError naming the known keys."""
    for law in REGISTRY:
        if name.lower() in (law.key, *law.aliases):
            return law
    known = ", ".join(law.key for law in REGISTRY)
    raise ConfigError(f"law={name!r} is neither a file nor one of {known}")
