import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.corpus import prepare as prepare_module
from llmtrain.corpus import shards
from llmtrain.corpus.manifest import read_manifest, write_manifest
from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.build import config_hash
from llmtrain.spec.data import DataConfig
from llmtrain.spec.errors import ConfigError, LlmtrainError, MismatchError

Damage = Callable[[Path, Path], None]


def flip_byte(folder: Path, _other: Path) -> None:
    content = bytearray((folder / "train.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "train.bin").write_bytes(content)


def flip_and_restore_times(folder: Path, other: Path) -> None:
    stat = (folder / "train.bin").stat()
    flip_byte(folder, other)
    os.utime(folder / "train.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def zero_block(folder: Path, _other: Path) -> None:
    with (folder / "val.bin").open("r+b") as file:
        file.seek(64)
        file.write(bytes(64))


def cut_off(folder: Path, _other: Path) -> None:
    os.truncate(folder / "train.bin", (folder / "train.bin").stat().st_size - 2)


def append(folder: Path, _other: Path) -> None:
    with (folder / "train.bin").open("ab") as file:
        file.write(b"\1\0")


def empty(folder: Path, _other: Path) -> None:
    os.truncate(folder / "val.bin", 0)


def delete(folder: Path, _other: Path) -> None:
    (folder / "val.bin").unlink()


def delete_token_bytes(folder: Path, _other: Path) -> None:
    (folder / "token_bytes.npy").unlink()


def alter_token_bytes(folder: Path, _other: Path) -> None:
    np.save(folder / "token_bytes.npy", np.full(256, 2))


def swap_splits(folder: Path, _other: Path) -> None:
    (folder / "train.bin").rename(folder / "swap")
    (folder / "val.bin").rename(folder / "train.bin")
    (folder / "swap").rename(folder / "val.bin")


def foreign_shard(folder: Path, other: Path) -> None:
    content = (other / "train.bin").read_bytes()
    size = (folder / "train.bin").stat().st_size
    (folder / "train.bin").write_bytes((content * (size // len(content) + 1))[:size])


def foreign_manifest(folder: Path, other: Path) -> None:
    shutil.copy(other / "manifest.json", folder / "manifest.json")


def edit_manifest(folder: Path, _other: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"vocab_size": 256', '"vocab_size": 300'))


def edit_field_type(folder: Path, _other: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"vocab_size": 256', '"vocab_size": "many"'))


def edit_name(folder: Path, _other: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"name": "toy"', '"name": "joy"'))


def outside_folder(folder: Path, _other: Path) -> None:
    # Sound in itself, but it names a file outside: that one is there, too.
    shutil.copy(folder / "train.bin", folder.parent)
    path = folder / "manifest.json"
    raw = json.loads(path.read_text().replace("train.bin", "../train.bin"))
    del raw["data_id"]
    path.write_text(json.dumps({"data_id": config_hash(raw), **raw}))


def other_hashes(folder: Path, _other: Path) -> None:
    # The manifest of a corpus of the same size.
    manifest = read_manifest(folder)
    shard = dataclasses.replace(manifest.train.shards[0], sha256="0" * 64)
    train = dataclasses.replace(manifest.train, shards=(shard,))
    write_manifest(folder, dataclasses.replace(manifest, train=train))


def newer_schema(folder: Path, _other: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))


def id_beyond_vocabulary(folder: Path, _other: Path) -> None:
    # A builder with a bug: its hashes agree with its tokens.
    content = np.fromfile(folder / "train.bin", dtype="<u2")
    content[5] = 256
    content.tofile(folder / "train.bin")
    manifest = read_manifest(folder)
    shard = dataclasses.replace(
        manifest.train.shards[0], sha256=hashlib.sha256(content.tobytes()).hexdigest()
    )
    train = dataclasses.replace(manifest.train, shards=(shard,))
    write_manifest(folder, dataclasses.replace(manifest, train=train))


DAMAGES = [
    flip_byte,
    flip_and_restore_times,
    zero_block,
    cut_off,
    append,
    empty,
    delete,
    delete_token_bytes,
    alter_token_bytes,
    swap_splits,
    foreign_shard,
    foreign_manifest,
    edit_manifest,
    edit_field_type,
    edit_name,
    outside_folder,
    other_hashes,
    newer_schema,
    id_beyond_vocabulary,
]


@pytest.mark.parametrize("opened_before", [False, True], ids=["new", "verified_before"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_corpus_is_refused_in_one_line(
    toy: DataConfig,
    configure: Callable[..., DataConfig],
    tmp_path: Path,
    damage: Damage,
    opened_before: bool,
) -> None:
    (tmp_path / "other.txt").write_text("another text\n" * 20_000)
    other = prepare(configure(paths=(str(tmp_path / "other.txt"),), deduplicate="none"))
    folder = prepare(toy)
    if opened_before:
        open_corpus(folder)
    damage(folder, other)
    with pytest.raises(LlmtrainError) as caught:
        open_corpus(folder)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{", "\x00\xff", "[" * 100])
def test_a_missing_or_unreadable_manifest_is_bad_input(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        open_corpus(tmp_path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_an_unchanged_corpus_is_hashed_once(
    toy: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(toy)
    hashed: list[Path] = []
    verify = shards._verify

    def counting(*arguments: object) -> None:
        hashed.append(arguments[-1])  # type: ignore[arg-type]
        verify(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "_verify", counting)
    open_corpus(folder)
    open_corpus(folder)
    assert [path.name for path in hashed] == ["train.bin", "val.bin"]
    (folder / "val.bin").touch()
    open_corpus(folder)
    assert [path.name for path in hashed] == ["train.bin", "val.bin", "val.bin"]


def test_a_change_right_after_an_opening_is_seen_on_a_coarse_clock(
    toy: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = shards._stamp

    def coarse(path: Path) -> list[int]:
        size, *times, inode = stamp(path)
        return [size, *(ns // shards.TICK_NS * shards.TICK_NS for ns in times), inode]

    monkeypatch.setattr(shards, "TICK_NS", 10**9)
    monkeypatch.setattr(shards, "_stamp", coarse)
    folder = prepare(toy)
    sound = (folder / "train.bin").read_bytes()
    for _ in range(2):
        (folder / "train.bin").write_bytes(sound)
        (folder / ".verified.json").unlink(missing_ok=True)
        open_corpus(folder)
        flip_and_restore_times(folder, folder)
        with pytest.raises(MismatchError, match="differ from their sha256"):
            open_corpus(folder)


def test_a_corpus_opens_where_nothing_can_be_written(toy: DataConfig) -> None:
    folder = prepare(toy)
    (folder / ".verified.json").mkdir()  # even root cannot replace a folder by a file
    assert len(open_corpus(folder).train) == open_corpus(folder).manifest.train.n_tokens
    assert not list(folder.glob(".verified.json.*"))


def test_many_shards_are_one_array_and_each_has_its_own_hash(
    toy: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_corpus(prepare(toy))
    monkeypatch.setattr(prepare_module, "SHARD_TOKENS", 1000)
    folder = prepare(dataclasses.replace(toy, root=str(tmp_path / "sharded")))
    sharded = open_corpus(folder)
    np.testing.assert_array_equal(sharded.train, whole.train)
    shard_sizes = [shard.n_tokens for shard in sharded.manifest.train.shards]
    assert len(shard_sizes) > 10
    assert set(shard_sizes[:-1]) == {1000}
    with (folder / "train.bin").open("r+b") as file:
        file.seek(2 * 3500)
        file.write(b"\1\0")
    with pytest.raises(MismatchError, match="tokens 3000 to 4000 differ"):
        open_corpus(folder)


def test_equal_text_has_an_equal_id_wherever_it_lies(toy: DataConfig, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.jsonl"
    shutil.copy(toy.paths[0], elsewhere)
    first = prepare(toy)
    second = prepare(dataclasses.replace(toy, paths=(str(elsewhere),), root=str(tmp_path / "two")))
    assert read_manifest(first).data_id == read_manifest(second).data_id
    other_split = prepare(dataclasses.replace(toy, val_fraction=0.3))
    assert read_manifest(other_split).data_id != read_manifest(first).data_id
