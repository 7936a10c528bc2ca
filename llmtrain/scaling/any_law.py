"""A printed law or a fit of a law.json, ready to answer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmtrain.scaling.bootstrap import LawDraws, PowerDraws
from llmtrain.scaling.config import PredictConfig
from llmtrain.scaling.cost import SIX_N_D, CostModel
from llmtrain.scaling.diagnose import REACH_LIMIT
from llmtrain.scaling.law import LossLaw, PowerLaw
from llmtrain.scaling.law_file import read_law
from llmtrain.scaling.optimal_path import (
    OptimalPath,
    path_of_laws,
    path_of_powers,
    path_of_surfaces,
)
from llmtrain.scaling.published import published_law
from llmtrain.spec.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AnyLaw:
    """A published or a fitted law."""

    name: str
    source: str
    params: str
    """What N counts."""
    flops: str
    """What C counts."""
    loss_law: LossLaw | None
    params_law: PowerLaw | None
    tokens_law: PowerLaw | None
    cost: CostModel
    draws: LawDraws | PowerDraws | None
    largest_flops: float | None
    """Largest run behind the law."""
    warning: str

    @property
    def path(self) -> OptimalPath:
        """The optimum, shapes (1,)."""
        if self.loss_law is not None:
            return path_of_surfaces([self.loss_law], self.cost)
        assert self.params_law is not None
        assert self.tokens_law is not None
        return path_of_laws(self.params_law, self.tokens_law)

    @property
    def drawn_path(self) -> OptimalPath | None:
        """The optimum of every draw, shapes (b,); None for a law without draws."""
        if isinstance(self.draws, LawDraws):
            return path_of_surfaces(self.draws.laws(), self.cost)
        return None if self.draws is None else path_of_powers(self.draws)

    def surface(self, what: str) -> LossLaw:
        """Return the loss surface that the question `what` needs, or raise ConfigError."""
        if self.loss_law is None:
            raise ConfigError(f"law={self.name} has no loss, which {what} needs; use besiroglu2024")
        return self.loss_law

    def notes(self, C: float) -> tuple[str, ...]:
        """Return what a reader of an answer at C FLOPs must know."""
        notes = [self.warning] if self.warning else []
        if self.largest_flops is not None and REACH_LIMIT * self.largest_flops < C:
            notes.append(
                f"{C / self.largest_flops:.3g} times the largest run behind the law: extrapolation"
            )
        if not np.isfinite(C):
            notes.append("no budget does this")
        if not (self.cost.is_exact or self.cost.is_rounded):
            form = f"6ND x {self.cost.factor:.4g} N^{self.cost.slope:+.4f}"
            notes.append(f"C counts {self.flops}: {form} in these runs")
        return tuple(notes)


def find_law(config: PredictConfig) -> AnyLaw:
    """Return the published law or the fit that the configuration names."""
    path = Path(config.law)
    if path.suffix == ".json" or path.is_file():
        if not path.is_file():
            raise ConfigError(f"law={config.law} does not exist; name a law.json or a printed law")
        saved = read_law(path, fit=config.fit, group=config.group, surface=True)
        by = saved.verdict
        return AnyLaw(
            name=saved.name,
            source=saved.source,
            params=saved.params,
            flops=saved.flops,
            loss_law=saved.loss_law,
            params_law=saved.params_law,
            tokens_law=saved.tokens_law,
            cost=saved.cost,
            draws=saved.draws,
            largest_flops=saved.largest_flops,
            warning=""
            if by == saved.name
            else f"the report's verdict is by {by}: fit={by} gives it",
        )
    found = published_law(config.law)
    if config.fit is not None or config.group is not None:
        key = "fit" if config.fit is not None else "group"
        raise ConfigError(
            f"{key}={getattr(config, key)} chooses within a law.json, and law={config.law} is a "
            f"printed law; leave out {key}, or name a law.json"
        )
    return AnyLaw(
        name=found.key,
        source=f"{found.source}; {found.data}",
        params=found.params,
        flops=found.flops,
        loss_law=found.loss_law,
        params_law=found.params_law,
        tokens_law=found.tokens_law,
        cost=SIX_N_D,
        draws=None,
        largest_flops=found.largest_flops,
        warning=found.warning,
    )
