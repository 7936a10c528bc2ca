"""Maximal-update parametrisation: what the width changes, as factors of m = d_model / base_d_model.

The aim: activations, logits and their change per step keep their size when the model widens, so a
learning rate tuned at the base width holds at every width; every factor is 1 at the base width and
under the standard parametrisation. For Adam-like updates (entries of size 1, aligned with the
activations) that means:

| part | initialisation | learning rate | weight decay | forward |
|---|---|---|---|---|
| hidden matrices | variance / m | / m (Muon: / sqrt(m)) | * m (Muon: * sqrt(m)) | |
| embeddings, gains, biases | unchanged | unchanged | none | |
| head | unchanged | unchanged | unchanged | logits / m |

and Adam's epsilon / m everywhere, because gradients shrink as 1/m. Decay grows as the rate falls,
so that their product, the decay per step, does not depend on the width. Muon's update has equal
singular values: scaled to Adam's root mean square its spectral norm grows as sqrt(width), hence
the square root. Sources: Yang et al. 2022 (arXiv 2203.03466), table 8; Yang, Simon and Bernstein
2023 (arXiv 2310.17813), condition 1; Wang and Aitchison 2024 (arXiv 2405.13698) for the decay.
"""

import math

from llmtrain.spec.config import ModelConfig


def width_multiplier(config: ModelConfig) -> float:
    """Return m = d_model / base_d_model under muP, else 1."""
    if config.parametrization == "standard":
        return 1.0
    return config.d_model / config.base_d_model


def attention_scale(config: ModelConfig) -> float:
    """Return the factor on query-key products: 1 / sqrt(d_head).

    muP asks for 1/d_head where heads widen with the model, because trained queries and keys align
    and their product grows as d_head. Here a wider model has more heads of the same width: the
    factor is then a constant, and this one equals the standard parametrisation at the base width.
    Rates therefore transfer between shapes of equal d_head: fix `model.d_head` when using muP.
    """
    return 1.0 / math.sqrt(config.d_head)


def output_scale(config: ModelConfig) -> float:
    """Return the factor on the logits, 1/m."""
    return 1.0 / width_multiplier(config)


def head_std(config: ModelConfig) -> float:
    """Return the untied head's initial std: 1/d_model after `output_scale`, whatever the width."""
    return width_multiplier(config) / config.d_model


def fixed_hidden_std(config: ModelConfig) -> float:
    """Return the hidden matrices' std under init=fixed: init_std / sqrt(m)."""
    return config.init_std / math.sqrt(width_multiplier(config))
