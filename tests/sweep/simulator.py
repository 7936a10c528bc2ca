"""Training replaced by a planted law plus noise, to drive the adaptive policy at no cost."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.precision import Local, local_isoflop, local_surface
from llmtrain.spec.build import build
from llmtrain.spec.errors import FitRefusedError
from llmtrain.spec.record import ORIGIN, SCHEMA, RunRecord, write_record
from llmtrain.spec.rundir import run_directory
from llmtrain.spec.sweeps import SweepConfig
from llmtrain.sweep.adaptive import next_round
from llmtrain.sweep.decision import Candidate, Measured, Round, columns
from llmtrain.sweep.grid import Cell

BUDGETS = (1e16, 3e16, 1e17)
RATIO = 1.2  # of neighbouring sizes of the ladder


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A law, its noise, and how far off the sweep's expectation of its optimum is."""

    law: LossLaw
    noise: float
    """Standard deviation of ln L."""
    offset: float
    """ln of the expected optimum over the true one, at the largest budget."""
    exponent: float
    """Expected a."""
    seed: int

    @classmethod
    def draw(cls, seed: int) -> "Surface":
        """Draw exponents, floor, noise and a wrong expectation."""
        rng = np.random.default_rng(seed)
        alpha, beta = rng.uniform(0.25, 0.5, size=2)
        n_opt, gamma_loss = rng.uniform(np.log(1e7), np.log(1e8)), rng.uniform(1.0, 2.0)
        d_opt = BUDGETS[-1] / 6 / np.exp(n_opt)
        # alpha A N^-alpha = beta B D^-beta at the optimum; their sum is the reducible loss.
        part = gamma_loss / (alpha + beta)
        law = LossLaw(
            E=rng.uniform(1.2, 2.2),
            A=float(part * beta * np.exp(alpha * n_opt)),
            B=float(part * alpha * d_opt**beta),
            alpha=float(alpha),
            beta=float(beta),
        )
        return cls(
            law=law,
            noise=float(np.exp(rng.uniform(np.log(0.002), np.log(0.01)))),
            offset=float(0.5 * rng.standard_normal()),
            exponent=float(np.clip(law.a + 0.08 * rng.standard_normal(), 0.2, 0.8)),
            seed=seed,
        )

    def loss(self, cell: Candidate, seed: int) -> float:
        """Return the planted loss of a run: the same whenever it is run."""
        key = (self.seed, round(cell.params), round(np.log(cell.budget) * 1e6), seed)
        noise = self.noise * np.random.default_rng(key).standard_normal()
        return float(self.law.loss(cell.params, cell.tokens) * np.exp(noise))

    def centre(self, budget: float) -> float:
        """Return the optimum that the sweep expects."""
        top = float(self.law.n_opt(BUDGETS[-1])) * np.exp(self.offset)
        return float(top * (budget / BUDGETS[-1]) ** self.exponent)

    def candidates(self) -> list[Candidate]:
        """Return a ladder of sizes at every budget, C = 6 N D."""
        sizes = np.exp(np.arange(np.log(1e5), np.log(1e10), np.log(RATIO)))
        return [
            Candidate(shape=f"n{n:.3g}", budget=b, params=float(n), tokens=b / 6 / n, flops=b)
            for b in BUDGETS
            for n in sizes
        ]

    def sweep(self, **adaptive: object) -> SweepConfig:
        """Return sweep=isoflop's numbers with this surface's expectation."""
        rules = {
            "method": "approach2", "first_sizes": 4, "cells_per_round": 2, "width": None,
            "forecast_sd": None, "forecast_flops": None, "max_flops": None, "max_rounds": 60,
        }  # fmt: skip
        raw = {
            "name": "planted", "budgets": BUDGETS, "widths": [64], "depths": [4], "n_heads": None,
            "aspect_min": 1, "aspect_max": 99, "sizes_per_budget": 7, "span": 4.0,
            "optimum_flops": BUDGETS[-1], "optimum_params": self.centre(BUDGETS[-1]),
            "optimum_exponent": self.exponent, "seeds": [0], "branching": False,
            "mode": "adaptive", "law": None,
            "lr_min": None, "lr_max": None, "adaptive": rules | adaptive,
            "bracket": {"budgets": [], "factors": [0.5, 1.0, 2.0], "arm": 2.0},
        }  # fmt: skip
        return build(SweepConfig, raw)


def fixed_runs(surface: Surface, sizes: int = 7, span: float = 4.0) -> list[Measured]:
    """Run the fixed grid: every budget, sizes even in log N around the expectation."""
    found = []
    candidates = surface.candidates()
    for budget in BUDGETS:
        free = [c for c in candidates if c.budget == budget]
        for u in np.linspace(-np.log(span), np.log(span), sizes):
            target = np.log(surface.centre(budget)) + u
            cell = min(free, key=lambda c: abs(np.log(c.params) - target))
            free.remove(cell)
            found.append(Measured(cell=cell, seed=0, loss=surface.loss(cell, 0)))
    return found


def adaptive_runs(surface: Surface, sweep: SweepConfig) -> tuple[list[Measured], list[Round]]:
    """Run an adaptive sweep to its end."""
    runs: list[Measured] = []
    rounds: list[Round] = []
    centres = {budget: surface.centre(budget) for budget in BUDGETS}
    candidates = surface.candidates()
    for _ in range(sweep.adaptive.max_rounds):
        rounds.append(next_round(candidates, runs, sweep, centres))
        if rounds[-1].stop:
            break
        for pick in rounds[-1].picks:
            loss = surface.loss(pick.cell, pick.seed)
            runs.append(Measured(cell=pick.cell, seed=pick.seed, loss=loss))
    return runs, rounds


def cost(runs: list[Measured]) -> float:
    """Return the FLOPs of runs."""
    return sum(run.cell.flops for run in runs)


def exponent(runs: list[Measured], method: str) -> Local | None:
    """Return the fit of a method; None where it refuses."""
    cells = columns([run.cell for run in runs])
    loss = np.array([run.loss for run in runs])
    try:
        if method == "surface":
            return local_surface(cells, loss, 10 * BUDGETS[-1])
        return local_isoflop(cells, loss)
    except FitRefusedError:
        return None


def write_planted_record(cell: Cell, law: LossLaw, noise: float) -> None:
    """Write the record that training a planned cell would, with the loss of a law."""
    config, plan = cell.config, cell.plan
    N, D = float(plan.params["no_input_embedding"]), float(plan.n_tokens)
    key = (plan.params["total"], plan.n_tokens, config.seed)
    scatter = noise * np.random.default_rng(key).standard_normal()
    known = {
        "schema": SCHEMA,
        "run_id": cell.run_id,
        "d_model": config.model.d_model,
        "n_layers": config.model.n_layers,
        "params": plan.params,
        "n_tokens": plan.n_tokens,
        "flops_convention": config.budget.convention,
        "flops_budget": config.budget.flops,
        "flops": dict(plan.flops),
        "seed": config.seed,
        "annealed": True,
        "val_loss": float(law.loss(N, D) * np.exp(scatter)),
    }
    blank = {"str": "x", "int": 1, "float": 1.0}
    raw = {
        f.name: known.get(f.name, blank.get(getattr(f.type, "__name__", str(f.type))))
        for f in dataclasses.fields(RunRecord)
    }
    raw |= {"seconds": {}} | {name: dict.fromkeys(keys, "1") for name, keys in ORIGIN.items()}
    directory = run_directory(config)
    directory.mkdir(parents=True, exist_ok=True)
    write_record(directory, build(RunRecord, raw))
