"""What an analysis found, as frozen facts that reports and figures are made from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.bias import GridBias
from llmtrain.scaling.compare import Multiplier
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.design import NextRun
from llmtrain.scaling.diagnose import INFLUENCE_LIMIT, Finding
from llmtrain.scaling.estimate import Estimate, Fit
from llmtrain.scaling.farseer import FarseerFit
from llmtrain.scaling.forecast import HeldOut, SeedNoise, Step, parabola_residuals
from llmtrain.scaling.held_model import HeldModel
from llmtrain.scaling.influence import LeftOut
from llmtrain.scaling.interaction import InteractionFit
from llmtrain.scaling.isoflop import Curve
from llmtrain.scaling.law import Array
from llmtrain.scaling.lr_bracket import RateBracket
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.profile import Profile
from llmtrain.scaling.runs import Runs
from llmtrain.scaling.sensitivity import Sensitivity
from llmtrain.scaling.training_curves import TrainingCurves
from llmtrain.scaling.variations import Variation
from llmtrain.spec.expense import Expense


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroupAnalysis:
    """Everything about one group."""

    group: str
    runs: Runs
    budgets_from: str
    """How rows came to their IsoFLOP curves."""
    cost: CostModel
    estimates: tuple[Estimate, ...]
    outliers: NDArray[np.bool_]
    """Rows of `runs` that no smooth curve explains."""
    target_flops: float
    training: TrainingCurves | None = None
    """Losses along training, where metrics or repeated run ids hold them: Approach 1 only."""
    curves: tuple[Curve, ...] = ()
    bias: GridBias | None = None
    """Expected error of Approach 2 on this grid."""
    findings: tuple[Finding, ...] = ()
    held_out: HeldOut | None = None
    held_model: HeldModel | None = None
    sensitivity: Sensitivity | None = None
    """Of Approach 3, or of the surface recommended in its place."""
    steps: tuple[Step, ...] = ()
    noise: SeedNoise | None = None
    variations: tuple[Variation, ...] = ()
    """The headline first, then one choice made otherwise at a time."""
    left_out: tuple[LeftOut, ...] = ()
    """How a moves when runs, models, budgets or points of the hull leave."""
    profile: Profile | None = None
    """Gaussian profile likelihood of a at C = 6 N D, from the least squares of ln L."""
    farseer: FarseerFit | str | None = None
    """Farseer's form beside the five constants, or why it has no fit; null where not asked for."""
    next_runs: tuple[NextRun, ...] = ()
    rates: RateBracket | None = None
    """Cells at several learning rates and what they say of the recipe; null without any."""

    def estimate(self, name: str) -> Estimate:
        """Return the estimate of a method."""
        return next(e for e in self.estimates if e.name == name)

    @property
    def approaches(self) -> tuple[Estimate, ...]:
        """Approaches 1, 2 (without outliers, where there are any) and 3, without their variants."""
        names = ("approach1_hull", self.isoflop_name, "approach3")
        return tuple(map(self.estimate, names))

    @property
    def isoflop_name(self) -> str:
        """Which row is Approach 2's."""
        return "approach2_robust" if self.has("approach2_robust") else "approach2"

    def has(self, name: str) -> bool:
        """Return whether a method was tried."""
        return any(e.name == name for e in self.estimates)

    def accepted(self, name: str) -> Fit | None:
        """Return a method's fit where it was accepted."""
        found = self.estimate(name)
        return found.fit if found.status == "accepted" else None

    @property
    def interaction(self) -> InteractionFit | None:
        """The surface with a term in N and D together, where it was asked for and identified."""
        fit = self.accepted("interaction") if self.has("interaction") else None
        assert fit is None or isinstance(fit, InteractionFit)
        return fit

    def shape_residuals(self) -> Array:
        """Return what shape may explain: percent of loss over the surface, or over the parabolas.

        The parabolas stand in where every surface is refused; NaN off the used curves.
        """
        runs, surface = self.runs, self.surface
        if surface is not None and isinstance(surface.fit, ParametricFit):
            return 100.0 * surface.fit.residuals(runs.params, runs.tokens, runs.loss)
        return 100.0 * parabola_residuals(runs, self.curves) / runs.loss

    @property
    def surface(self) -> Estimate | None:
        """The recommended loss surface: Approach 3, else the projection, where accepted."""
        names = ("approach3", "projection", "log_squares")
        return next((e for e in map(self.estimate, names) if e.status == "accepted"), None)

    @property
    def grid_misleads(self) -> bool:
        """Whether the grid moves Approach 2's exponent by more than its interval can hold.

        Beyond a quarter of the interval's width a 90 % interval covers less than 80 %.
        """
        if self.bias is None or not self.has("approach2_corrected"):
            return False
        limit = max(INFLUENCE_LIMIT, 0.25 * self.estimate("approach2").width)
        return abs(self.bias.exponent_shift) > limit

    @property
    def main(self) -> Estimate | None:
        """The estimate the verdict is about.

        Approach 2 (without outliers, where there are any), which assumes least, where every curve
        has its minimum; where curves had to be dropped, whichever of Approach 2 and the recommended
        surface knows a better. Where the grid alone moves Approach 2 too far, the row with that
        bias removed stands for it (the surface, where that row has outliers). Approach 1 only where
        those are refused.
        """
        has_outliers = self.has("approach2_robust")
        isoflop, surface = self.estimate(self.isoflop_name), self.surface
        hull = self.estimate("approach1_hull")
        if surface is not None and self.grid_misleads:
            if has_outliers or self.estimate("approach2_corrected").status == "refused":
                return surface
            isoflop = self.estimate("approach2_corrected")
        if isoflop.status == "refused" and surface is None:
            return hull if hull.status == "accepted" else None
        if isoflop.status == "refused" or surface is None:
            return surface if isoflop.status == "refused" else isoflop
        if all(curve.used for curve in self.curves):
            return isoflop
        return min((isoflop, surface), key=lambda e: e.width)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Analysis:
    """The analyses of all groups of one source."""

    config: AnalyzeConfig
    runs: Runs
    """All rows as loaded, with what loading left out."""
    groups: tuple[GroupAnalysis, ...]
    multipliers: tuple[Multiplier, ...] = ()
    """Compute multipliers over the sweep that `against` names."""
    multiplier_notes: tuple[str, ...] = ()
    """What was taken for granted when the two sweeps' losses were compared."""
    expense: Expense | None = None
    """What the finished runs cost; null for a table, and where no run says how to count."""

    @property
    def refusals(self) -> str:
        """Why Approaches 1, 2 and 3 refuse, each reason once, under the names of several groups."""
        several = len(self.groups) > 1
        return "; ".join(
            f"{group.group}: {reason}" if several else reason
            for group in self.groups
            for reason in dict.fromkeys(e.reason for e in group.approaches if e.reason)
        )
