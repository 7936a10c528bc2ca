"""Make the wandb workspace of a sweep, and its report with the verdict first.

  python scripts/dashboard.py project=llmtrain group=NAME entity=TEAM
  python scripts/dashboard.py group=NAME publish=offline out=DIR

Writes workspace.json and report.json, and saves both to wandb where a key is (`wandb login` or
WANDB_API_KEY). Needs wandb-workspaces: pip install -e '.[dashboard]'. Every key stands in
configs/dashboard.yaml.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import key_help
from edge import compose, run_edge

from llmtrain.board.dashboard import DashboardConfig, build_boards
from llmtrain.board.identity import has_key, wandb_id
from llmtrain.scaling.plot.style import budget_colours
from llmtrain.spec.build import build
from llmtrain.spec.disk import make_folder, write_whole
from llmtrain.spec.errors import ConfigError, MismatchError
from llmtrain.spec.expense import cost_lines, expense_of
from llmtrain.spec.jsonfile import read_json
from llmtrain.spec.record import RECORD_FILE, RunRecord, read_record

LAW = "report/law.json"


def verdict_of(path: Path) -> list[str]:
    """Return a law.json's verdict and warnings, a sentence each; or how to get one.

    Raises ConfigError for a file that is no law.json of this version.
    """
    again = "run scripts/analyze.py on the finished runs, then this again"
    if not path.is_file():
        return [f"No law yet: {again}."]
    lines: list[str] = []
    try:
        groups = read_json(path)["groups"]
        for group in groups:
            name = f"{group['group']}: " if len(groups) > 1 else ""
            lines += [f"{name}{line}" for line in group["verdict"]]
            lines += [f["message"] for f in group["findings"] if f["level"] == "warning"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no verdict ({error!r}); {again}") from error
    return lines


def records_of(folder: Path) -> list[RunRecord]:
    """Return the records of the finished runs in a sweep's folder."""
    records = []
    for path in sorted(path.parent for path in folder.glob(f"*/{RECORD_FILE}")):
        with contextlib.suppress(MismatchError):  # the analysis lists it
            if (record := read_record(path)) is not None:
                records.append(record)
    return records


def colours_of(records: Sequence[RunRecord], group: str) -> dict[str, str]:
    """Return the colour of each run's budget, by its wandb id."""
    budgets = sorted({record.flops_budget or 0.0 for record in records})
    colour = dict(zip(budgets, budget_colours(len(budgets)), strict=True))
    return {wandb_id(group, r.run_id): colour[r.flops_budget or 0.0] for r in records}


def cost_of(folder: Path, records: Sequence[RunRecord]) -> list[str]:
    """Return what the runs have cost as a sentence, where their folders say how to count."""
    expense = expense_of(folder, records)
    if expense is None:
        return []
    return [f"{line[0].upper()}{line[1:]}." for line in cost_lines(expense, "run")]


def main(overrides: list[str]) -> None:
    """Build both, write their JSON, and save them where a key is."""
    config = build(DashboardConfig, compose("dashboard", overrides))
    runs = Path(config.runs or f"runs/{config.group}")
    if not runs.is_dir():
        print(f"note: no folder {runs} here, so no law and no colours by budget: set runs= to it")
    records = records_of(runs)
    verdict = verdict_of(runs / LAW) + cost_of(runs, records)
    colours = colours_of(records, config.group)
    out = Path(config.out) if config.out else runs / "dashboard"
    boards = build_boards(config, online=False, verdict=verdict, colours=colours)
    make_folder(out)
    for name, text in boards.documents().items():
        write_whole(out / name, text + "\n")
        print(f"written: {out / name}")
    if config.publish == "offline" or (config.publish == "auto" and not has_key()):
        print("not published: run `wandb login`, then this command with entity=YOUR_TEAM")
        return
    if config.entity is None:
        raise ConfigError("entity is not set: name the wandb user or team, as in entity=my-team")
    for address in build_boards(config, online=True, verdict=verdict, colours=colours).save():
        print(f"saved:   {address}")


if __name__ == "__main__":
    if key_help.is_asked_for():
        __doc__ = f"{__doc__}\n{key_help.dashboard_keys()}"
    run_edge(main)
