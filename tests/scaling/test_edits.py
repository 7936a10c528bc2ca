"""T12: a record or a metrics file that was edited, copied or renamed enters no fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmtrain.scaling.load import load_runs

Record = dict[str, Any]


def set_field(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return an edit of one field of the record."""

    def edit(folder: Path) -> None:
        path = folder / "record.json"
        record = json.loads(path.read_text())
        record[name] = change(record[name])
        path.write_text(json.dumps(record))

    return edit


def append_row(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1}\n')


def rename(folder: Path) -> None:
    folder.rename(folder.with_name(f"{folder.name}-renamed"))


def copy(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name(f"{folder.name}-copy"))


EDITS: dict[str, Callable[[Path], None]] = {
    "loss": set_field("val_loss", lambda loss: loss * 0.999),
    "bits": set_field("val_bpb", lambda bits: bits - 1e-9),
    "loss_text": set_field("val_loss", lambda _: "low"),
    "error": set_field("val_loss_se", lambda se: se / 2),
    "training_loss": set_field("train_loss", lambda loss: loss - 0.1),
    "tokens": set_field("n_tokens", lambda n: n + 1),
    "epochs": set_field("epochs", lambda epochs: epochs / 2),
    "params": set_field("params", lambda params: params | {"total": 1}),
    "flops": set_field("flops", lambda flops: {k: 1.01 * v for k, v in flops.items()}),
    "budget": set_field("flops_budget", lambda budget: 2 * budget),
    "seed": set_field("seed", lambda seed: seed + 1),
    "data": set_field("data_id", lambda data: "e" + data[1:]),
    "config": set_field("config_id", lambda config: config[::-1] + "0"),
    "code": set_field("code_id", lambda _: "0123456789ab"),
    "annealed": set_field("annealed", lambda annealed: not annealed),
    "recipe": set_field("recipe", lambda _: "steplaw"),
    "hardware": set_field("hardware", lambda hardware: hardware | {"gpu": "H100"}),
    "metrics_hash": set_field("metrics_sha256", lambda _: "0" * 64),
    "own_hash": set_field("sha256", lambda _: "0" * 64),
    "version": set_field("versions", lambda _: {}),
    "metrics": append_row,
    "renamed": rename,
    "copied": copy,
}


def test_every_edit_is_found_and_listed(planted_sweep: Callable[..., Path]) -> None:
    root = planted_sweep()
    assert len(load_runs(root)) == 36
    folders = sorted(root.iterdir())
    for folder, edit in zip(folders, EDITS.values(), strict=False):
        edit(folder)
    runs = load_runs(root)
    reasons = {item.run_id: item.reason for item in runs.exclusions}
    assert len(reasons) == len(EDITS) == 23
    assert len(runs) == 36 - 22  # the copied run itself is sound
    found = " ".join(reasons.values())
    for word in ("was edited", "does not match the hash", "a copy, or a folder renamed"):
        assert word in found
