"""Make the wandb workspace of a sweep, and its report with the verdict first.

  python scripts/dashboard.py project=llmtrain group=NAME entity=TEAM
  python scripts/dashboard.py group=NAME publish=offline out=DIR

Writes workspace.json and report.json, and saves both to wandb where a key is (`wandb login` or
WANDB_API_KEY). Needs wandb-workspaces: pip install -e '.[dashboard]'. Every key stands in
configs/dashboard.yaml.
"""

import contextlib
import json
from pathlib import Path

import key_help
from edge import compose, run_edge

from llmtrain.board.dashboard import DashboardConfig, build_boards
from llmtrain.board.identity import has_key, wandb_id
from llmtrain.scaling.plot.style import budget_colours
from llmtrain.scaling.wording import flops
from llmtrain.spec.build import build
from llmtrain.spec.disk import make_folder, write_whole
from llmtrain.spec.errors import ConfigError, MismatchError
from llmtrain.spec.record import RECORD_FILE, read_record
from llmtrain.spec.words import plural

LAW = "report/law.json"


def verdict_of(path: Path) -> list[str]:
    """Return what a law.json found, a sentence each; or how to get one."""
    if not path.is_file():
        return ["No law yet: run scripts/analyze.py on the finished runs, then this again."]
    law = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for group in law["groups"]:
        chosen = group["recommended"]["exponents"]
        fit = next((fit for fit in group["fits"] if fit["name"] == chosen), None)
        if fit is None:
            lines.append(f"{group['group']}: no law, every method refuses these runs.")
            continue
        a, b = (
            f"{fit[name]:.3f} [{fit[f'{name}_interval90'][0]:.3f}, "
            f"{fit[f'{name}_interval90'][1]:.3f}]"
            for name in ("a", "b")
        )
        lines.append(f"N_opt grows as C^{a} and D_opt as C^{b} by {fit['method']} (90 %).")
        lines.append(
            f"{plural(group['n_runs'], 'run')}, {plural(len(group['budgets']), 'budget')} up to "
            f"{flops(group['largest_flops'])} FLOPs; {plural(len(law['exclusions']), 'run')} left "
            "out."
        )
        lines += [f["message"] for f in group["findings"] if f["level"] == "warning"]
    return lines


def colours_of(folder: Path, group: str) -> dict[str, str]:
    """Return the colour of each finished run's budget, by its wandb id."""
    folders = sorted(path.parent for path in folder.glob(f"*/{RECORD_FILE}"))
    records = []
    for path in folders:
        with contextlib.suppress(MismatchError):  # the analysis lists it; it has no colour
            if (record := read_record(path)) is not None:
                records.append(record)
    budgets = sorted({record.flops_budget or 0.0 for record in records})
    colour = dict(zip(budgets, budget_colours(len(budgets)), strict=True))
    return {wandb_id(group, r.run_id): colour[r.flops_budget or 0.0] for r in records}


def main(overrides: list[str]) -> None:
    """Build both, write their JSON, and save them where a key is."""
    config = build(DashboardConfig, compose("dashboard", overrides))
    runs = Path(config.runs or f"runs/{config.group}")
    if not runs.is_dir():
        print(f"note: no folder {runs} here, so no law and no colours by budget: set runs= to it")
    verdict, colours = verdict_of(runs / LAW), colours_of(runs, config.group)
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
