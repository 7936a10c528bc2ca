"""What a printed scaling law is made of."""

from dataclasses import dataclass

from llmtrain.scaling.law import FLOPS_PER_PARAM_TOKEN, LossLaw, PowerLaw


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedLaw:
    """A law as printed: a loss surface, or power laws of the optimum."""

    key: str
    aliases: tuple[str, ...]
    source: str
    """Paper, arXiv number, and the table or equation."""
    data: str
    """Training text behind the fit."""
    params: str
    """What N counts."""
    flops: str
    """What C counts."""
    loss_law: LossLaw | None
    params_law: PowerLaw
    tokens_law: PowerLaw
    largest_flops: float | None
    """Largest run behind the fit; null where the paper does not say."""
    confirmed: str
    """How the constants were checked; a law without such a check does not enter."""
    warning: str


def surface(
    key: str,
    aliases: tuple[str, ...],
    source: str,
    law: LossLaw,
    *,
    data: str,
    confirmed: str,
    params: str = "total",
    largest_flops: float | None = None,
    warning: str = "",
) -> PublishedLaw:
    """Return a printed loss surface, with its optimum at C = 6 N D."""
    return PublishedLaw(
        key=key,
        aliases=aliases,
        source=source,
        data=data,
        params=params,
        flops="6ND",
        loss_law=law,
        params_law=law.params_law,
        tokens_law=law.tokens_law,
        largest_flops=largest_flops,
        confirmed=confirmed,
        warning=warning,
    )


def powers(
    key: str,
    aliases: tuple[str, ...],
    source: str,
    params_law: tuple[float, float],
    tokens_law: tuple[float, float],
    *,
    data: str,
    confirmed: str,
    params: str = "total",
    flops: str = "about 6ND",
    largest_flops: float | None = None,
    warning: str = "",
) -> PublishedLaw:
    """Return printed power laws (coefficient, exponent) of N_opt and D_opt in C."""
    return PublishedLaw(
        key=key,
        aliases=aliases,
        source=source,
        data=data,
        params=params,
        flops=flops,
        loss_law=None,
        params_law=PowerLaw(coefficient=params_law[0], exponent=params_law[1]),
        tokens_law=PowerLaw(coefficient=tokens_law[0], exponent=tokens_law[1]),
        largest_flops=largest_flops,
        confirmed=confirmed,
        warning=warning,
    )


def over_training_law(E: float, a: float, b: float, eta: float) -> LossLaw:
    """Return L = E + (a M^eta + b M^-eta) C^-eta, M = D/N and C = 6ND, as a surface of N and D.

    Source: Gadre et al. 2024 (arXiv 2403.08540), eq. 4: alpha = beta = 2 eta.
    """
    scale = FLOPS_PER_PARAM_TOKEN**-eta
    return LossLaw(E=E, A=a * scale, B=b * scale, alpha=2.0 * eta, beta=2.0 * eta)
