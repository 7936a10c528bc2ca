"""An adaptive sweep on disk: its cells, its rounds, and what a restart takes up again."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmtrain.spec.disk import make_folder
from llmtrain.spec.errors import ConfigError, MismatchError
from llmtrain.spec.expense import ROUNDS_FILE
from llmtrain.spec.flops import param_groups
from llmtrain.spec.record import read_record
from llmtrain.spec.rundir import run_directory, write_json
from llmtrain.spec.settings import TrainConfig
from llmtrain.spec.sweeps import SweepConfig
from llmtrain.spec.words import plural
from llmtrain.sweep.adaptive import next_round
from llmtrain.sweep.centre import expected_params
from llmtrain.sweep.decision import Candidate, Measured, Pick, Round
from llmtrain.sweep.grid import Cell, Grid, Refused, as_grid, family, plan_cell, plan_sweep
from llmtrain.sweep.ledger import alone, write_sweep

RunCells = Callable[[Sequence[Cell]], dict[str, str]]
"""Trains cells and returns why some failed, by run id; a cell without record is still to come."""
Tell = Callable[[str], None]


class AdaptiveSweep:
    """The cells that an adaptive sweep may choose from, planned once."""

    def __init__(self, base: TrainConfig, sweep: SweepConfig, *, unique_tokens: int | None) -> None:
        self.base, self.sweep, self.unique_tokens = base, sweep, unique_tokens
        self.directory = Path(base.runs_root) / sweep.name
        shapes = family(sweep, base.model)
        planned = [
            plan_cell(base, sweep, shape, flops, sweep.seeds[0], unique_tokens=unique_tokens)
            for flops in sweep.budgets
            for shape in shapes
        ]
        grid = as_grid(planned)
        self.cells = {_key(cell): cell for cell in grid.cells}
        self.centres = {
            flops: expected_params(sweep, shapes, base, flops) for flops in sweep.budgets
        }
        self.refused = tuple(item for item in grid.refused if self._is_near(item, base))
        self.candidates = [_candidate(cell) for cell in grid.cells]

    def _is_near(self, refused: Refused, base: TrainConfig) -> bool:
        """Return whether a refused cell lies where the sweep would have looked first."""
        shape = next(
            shape
            for shape in family(self.sweep, base.model)
            if (shape.d_model, shape.n_layers) == (refused.d_model, refused.n_layers)
        )
        counts = param_groups(
            shape, vocab_size=base.data.vocab_size, seq_len=base.seq_len.seq_len
        ).counts()
        away = abs(math.log(counts["no_input_embedding"] / self.centres[refused.budget]))
        return away <= math.log(self.sweep.span)

    @functools.cached_property
    def grid_flops(self) -> float:
        """FLOPs of the fixed grid with the same budgets, sizes and seeds: what to compare with."""
        fixed = dataclasses.replace(self.sweep, mode="fixed")
        grid = plan_sweep(self.base, fixed, unique_tokens=self.unique_tokens)
        return sum(cell.spent for cell in grid.cells)

    def decide(self, runs: Sequence[Measured]) -> Round:
        """Return the next round after `runs`."""
        return next_round(self.candidates, runs, self.sweep, self.centres)

    def first_round(self) -> tuple[Round, Grid]:
        """Return what is run before anything is known. Raises ConfigError where nothing can be."""
        decision = self.decide([])
        if not decision.picks:
            first = f": {self.refused[0].reason}" if self.refused and not self.cells else ""
            raise ConfigError(f"the adaptive sweep cannot begin: {decision.stop}{first}")
        return decision, Grid(cells=tuple(map(self.cell, decision.picks)), refused=self.refused)

    def cell(self, pick: Pick) -> Cell:
        """Return the planned cell of a pick; the plan does not depend on the seed."""
        planned = self.cells[pick.cell.shape, pick.cell.budget]
        config = dataclasses.replace(planned.config, seed=pick.seed)
        return Cell(config=config, plan=planned.plan)

    def run(self, run_cells: RunCells, tell: Tell) -> dict[str, str]:
        """Run round after round until the policy stops, and return the failures by run id.

        Rounds on disk are finished first and never decided anew. Returns early, to be called again,
        where a round's cells were handed to a cluster. Raises MismatchError where the rounds on
        disk belong to another configuration.
        """
        rounds, failures = self._read(), dict[str, str]()
        while True:
            cells = [self.cell(pick) for picks, _ in rounds for pick in picks]
            missing = [cell for cell in cells if read_record(run_directory(cell.config)) is None]
            missing = [cell for cell in missing if cell.run_id not in failures]
            if missing:
                write_sweep(self.directory, [Grid(cells=tuple(cells), refused=self.refused)])
                failures |= run_cells(missing)
                waiting = [c for c in missing if read_record(run_directory(c.config)) is None]
                waiting = [c for c in waiting if c.run_id not in failures]
                if waiting:
                    tell(
                        f"round {len(rounds)}: {plural(len(waiting), 'cell')} still to come; run "
                        "the same command when that is done"
                    )
                    return failures
            decision = self.decide(self._measured([pick for picks, _ in rounds for pick in picks]))
            stop = decision.stop
            if not stop and len(rounds) >= self.sweep.adaptive.max_rounds:
                stop = f"rounds: sweep.adaptive.max_rounds={len(rounds)} is reached"
            if stop:
                self._write(rounds, {**_facts(decision), "reason": stop})
                tell(f"stopped after {len(rounds)} rounds, {decision.spent:.4g} FLOPs: {stop}")
                return failures
            rounds.append((list(decision.picks), _facts(decision)))
            self._write(rounds, None)
            tell(describe_round(len(rounds), decision))

    def _measured(self, picks: Sequence[Pick]) -> list[Measured]:
        found = []
        for pick in picks:
            record = read_record(run_directory(self.cell(pick).config))
            loss = math.nan if record is None else record.val_loss
            found.append(Measured(cell=pick.cell, seed=pick.seed, loss=loss))
        return found

    def _write(self, rounds: Sequence[tuple[list[Pick], dict[str, Any]]], stopped: Any) -> None:
        make_folder(self.directory)
        listed = [
            {
                **facts,
                "cells": [
                    {
                        "run_id": self.cell(pick).run_id,
                        "shape": pick.cell.shape,
                        "budget": pick.cell.budget,
                        "seed": pick.seed,
                        "reason": pick.reason,
                    }
                    for pick in picks
                ],
            }
            for picks, facts in rounds
        ]
        facts = {"rounds": listed, "stopped": stopped, "grid_flops": self.grid_flops}
        with alone(self.directory):
            write_json(self.directory / ROUNDS_FILE, facts)

    def _read(self) -> list[tuple[list[Pick], dict[str, Any]]]:
        path = self.directory / ROUNDS_FILE
        if not path.is_file():
            return []
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))["rounds"]
            return [
                (
                    [self._pick(path, cell) for cell in entry["cells"]],
                    {key: value for key, value in entry.items() if key != "cells"},
                )
                for entry in listed
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise MismatchError(
                f"{path} is damaged: {error!r}; move it away to decide anew from the records"
            ) from error

    def _pick(self, path: Path, raw: dict[str, Any]) -> Pick:
        """Return a pick of an earlier round, if this configuration still makes the same run."""
        planned = self.cells.get((raw["shape"], raw["budget"]))
        if planned is not None:
            pick = Pick(cell=_candidate(planned), seed=raw["seed"], reason=raw["reason"])
            if self.cell(pick).run_id == raw["run_id"]:
                return pick
        raise MismatchError(
            f"{path} holds {raw['run_id']}, which this configuration does not make; give the new "
            "sweep another sweep.name"
        )


def describe_round(number: int, decision: Round) -> str:
    """Say in one line what a round adds and why."""
    reasons = ", ".join(dict.fromkeys(pick.reason for pick in decision.picks))
    known = ""
    if decision.a is not None and decision.interval is not None:
        known = f"; a {decision.a:.3f} [{decision.interval[0]:.3f}, {decision.interval[1]:.3f}]"
    if decision.forecast_sd is not None:
        known += f"; sd of the forecast of ln L {decision.forecast_sd:.2g}"
    cost = sum(pick.cell.flops for pick in decision.picks)
    n = len(decision.picks)
    return (
        f"round {number}: {n} cells, {cost:.4g} FLOPs, after {decision.spent:.4g}{known}: {reasons}"
    )


def _facts(decision: Round) -> dict[str, Any]:
    return {
        "a": decision.a,
        "interval90": decision.interval,
        "forecast_sd": decision.forecast_sd,
        "spent_flops": decision.spent,
    }


def _candidate(cell: Cell) -> Candidate:
    shape, budget = _key(cell)
    return Candidate(
        shape=shape,
        budget=budget,
        params=float(cell.plan.params["no_input_embedding"]),
        tokens=float(cell.plan.n_tokens),
        flops=cell.plan.flops[cell.config.budget.convention],
    )


def _key(cell: Cell) -> tuple[str, float]:
    model, flops = cell.config.model, cell.config.budget.flops
    assert flops is not None
    return f"w{model.d_model}d{model.n_layers}", flops
