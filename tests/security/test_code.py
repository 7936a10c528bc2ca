"""T1, T2, T4, T8: files and settings are data; nothing in them runs."""

import json
import os
import pickle
import random
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmtrain.corpus.manifest import read_manifest, write_manifest
from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import open_corpus
from llmtrain.corpus.tokenizer import load
from llmtrain.spec.errors import CheckpointError, ConfigError, MismatchError
from llmtrain.spec.jsonfile import MAX_BYTES, parse_json, read_json
from llmtrain.training.checkpoint import _describe, load_checkpoint, save_checkpoint

Storm = Callable[[Sequence[Sequence[str]]], list[dict[str, Any]]]


class Gadget:
    """Pickled, it runs a shell command when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def checkpoint(folder: Path) -> Path:
    state = {"weights": torch.arange(12.0).reshape(3, 4), "step": 3, "nested": [1, {"a": 2.0}]}
    return save_checkpoint(folder, run_id="run", step=3, state=state, keep=2)


def agree(step: Path) -> None:
    """Make the manifest's hashes agree with the files: as someone who built the folder would."""
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["files"] = {name: _describe(step / name) for name in manifest["files"]}
    (step / "manifest.json").write_text(json.dumps(manifest))


def gadgets(ran: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (file of a checkpoint, content that runs code in a loader that unpickles)."""
    for protocol in range(6):
        for name in ("tensors.safetensors", "state.json"):
            yield name, pickle.dumps(Gadget(ran), protocol=protocol)
    for name in ("tensors.safetensors", "state.json", "manifest.json"):
        path = ran.with_name("gadget.pt")
        torch.save({"weights": Gadget(ran)}, path)
        yield name, path.read_bytes()
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps(Gadget(ran)))
        yield name, path.read_bytes()
    for name in ("tensors.safetensors", "state.json"):
        path = ran.with_name("gadget.npy")
        np.save(path, np.array([Gadget(ran)], dtype=object), allow_pickle=True)
        yield name, path.read_bytes()


def test_no_gadget_in_a_checkpoint_runs(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    planted = list(gadgets(ran))
    assert len(planted) == 20
    pickle.loads(planted[0][1])  # the gadget works: this scan's own proof
    assert ran.exists()
    ran.unlink()
    for number, (name, content) in enumerate(planted):
        folder = tmp_path / str(number)
        step = checkpoint(folder)
        (step / name).write_bytes(content)
        if name != "manifest.json":
            agree(step)
        with pytest.raises(CheckpointError, match="no sound checkpoint") as caught:
            load_checkpoint(folder, run_id="run")
        assert "\n" not in str(caught.value)
        assert not ran.exists(), (number, name)


def headers(count: int) -> Iterator[bytes]:
    """Yield malformed safetensors files."""
    rng = random.Random(0)
    good = {"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    for size in (0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 100_000_001):
        yield struct.pack("<Q", size) + b"{}"
    for text in ("", "{", "[]", "null", "[" * 50_000, '{"a":' * 50_000, '{"x":1}', "\0" * 64):
        yield struct.pack("<Q", len(text)) + text.encode()
    changes: list[dict[str, Any]] = [
        {"data_offsets": [0, 2**62]}, {"data_offsets": [16, 0]}, {"data_offsets": [-1, 16]},
        {"data_offsets": [8, 24]}, {"data_offsets": [0]}, {"data_offsets": "all"},
        {"shape": [2**62, 2**62]}, {"shape": [-1, -4]}, {"shape": [2, 3]}, {"shape": 4},
        {"shape": [2**40]}, {"dtype": "PICKLE"}, {"dtype": None}, {"dtype": "F64"},
    ]  # fmt: skip
    for change in changes:
        text = json.dumps({"x": good["x"] | change})
        yield struct.pack("<Q", len(text)) + text.encode() + bytes(16)
    whole = json.dumps(good).encode()
    whole = struct.pack("<Q", len(whole)) + whole + bytes(16)
    for _ in range(count - 30):
        yield whole[: rng.randrange(len(whole))]


def test_malformed_tensors_and_deep_json_are_refused_within_little_memory(tmp_path: Path) -> None:
    step = checkpoint(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bombs = [("tensors.safetensors", content) for content in headers(100)]
    assert len(bombs) == 100
    for text in ("[" * 100_000, '{"a":' * 100_000, "1" * 5000, "NaN", "[1e999", '"\\ud800', "{}x"):
        bombs += [("state.json", text.encode()), ("manifest.json", text.encode())]
    good = {path.name: path.read_bytes() for path in step.iterdir()}
    for name, content in bombs:
        for other, whole in good.items():
            (step / other).write_bytes(whole)
        (step / name).write_bytes(content)
        if name != "manifest.json":
            agree(step)
        with pytest.raises(CheckpointError, match="no sound checkpoint"):
            load_checkpoint(tmp_path, run_id="run")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 200e6


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**6, "9" * 10**5, "NaN", "[Infinity]"])
def test_json_that_would_break_the_reader_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|digits"):
        parse_json(text)


def test_a_huge_file_of_json_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    path.touch()
    os.truncate(path, MAX_BYTES + 1)
    with pytest.raises(ValueError, match="bytes of JSON, more than"):
        read_json(path)


def test_a_corpus_with_pickles_and_a_foreign_tokenizer_is_refused(
    tiny_corpus_dir: Path, tmp_path: Path, make: Any, text_files: Path
) -> None:
    ran = tmp_path / "ran"
    changes = {"data.paths": [str(text_files)], "data.root": str(tmp_path / "data")}
    bpe = {"data.tokenizer": "bpe", "data.vocab_size": 270}
    folder = prepare(make(changes | bpe).data)
    for name, field in (
        ("token_bytes.npy", "token_bytes_sha256"),
        ("tokenizer.json", "tokenizer_id"),
    ):
        path, manifest = folder / name, read_manifest(folder)
        contents = [b"", b"{}", b"[" * 100_000, b'{"model": {"type": "BPE"}}', b"\xff\xfe"]
        whole = path.read_bytes()
        if name == "token_bytes.npy":
            np.save(path, np.array([Gadget(ran)] * 270, dtype=object), allow_pickle=True)
            contents.append(path.read_bytes())
            np.save(path, np.full(270, 0.5))
            contents.append(path.read_bytes())
        for content in contents:
            path.write_bytes(content)
            digest = _describe(path)["sha256"]
            write_manifest(folder, type(manifest)(**_fields(manifest) | {field: digest}))
            with pytest.raises(MismatchError, match=name.replace(".", r"\.")) as caught:
                open_corpus(folder) if name == "token_bytes.npy" else load(folder)
            assert "\n" not in str(caught.value)
        path.write_bytes(whole)
        write_manifest(folder, manifest)
    assert not ran.exists()


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in type(value).__dataclass_fields__}


TARGETS = ("os.system", "builtins.exec", "torch.load", "numpy.load", "subprocess.run")
KEYS = (
    "{key}._target_={target}", "++{key}._target_={target}", "+{key}={{_target_:{target}}}",
    "{key}={{_target_:{target},_args_:[touch ran]}}", "{key}={{_partial_:true}}",
)  # fmt: skip


@pytest.mark.parametrize("full", [pytest.param(True, marks=pytest.mark.slow), False])
def test_no_target_is_accepted_from_a_command_line(storm: Storm, full: bool) -> None:
    lines = [
        [form.format(key=key, target=target)]
        for key in (
            "model",
            "hydra.launcher",
            "hydra.callbacks.x",
            "hydra.sweeper",
            "optimizer.name",
        )
        for form in KEYS
        for target in (TARGETS if full else TARGETS[:1])
    ]
    lines = lines[: 100 if full else 25]
    lines += [["--config-dir=evil"], ["-m", "hydra/callbacks=evil"], ["model=../../evil"]]
    for line, answer in zip(lines, storm(lines), strict=True):
        assert answer["code"] == 2, (line, answer)
        assert answer["touched"] == []


EVIL_FILES = (
    "_target_: os.system",
    "hydra:\n  callbacks:\n    x:\n      _target_: os.system\n      command: touch ran",
    '"\\x5ftarget_": os.system',
    "hydra:\n  job:\n    env_set:\n      A: b",
    "hydra:\n  searchpath: [file:///tmp]",
    "defaults:\n  - ../../../tmp/evil",
    "name: ${oc.env:HOME}",
    "name: !!python/object/apply:os.system [touch ran]",
)


@pytest.mark.parametrize("content", EVIL_FILES)
def test_a_configuration_file_names_no_code_and_no_environment(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.syspath_prepend(str(root / "scripts"))
    import overrides  # noqa: PLC0415 - a script's module

    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "shared.yaml").write_text(f"# @package _global_\n{content}\n")
    monkeypatch.setattr(overrides, "CONFIG_DIR", tmp_path)
    overrides._check_files.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"shared\.yaml holds"):
            overrides.check_overrides(["experiment=shared"])
    finally:
        overrides._check_files.cache_clear()
