"""D1, D2: whatever happens to shards or to a builder, what is read is what was built, whole."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from damage import cut, flip, zero

from llmtrain.corpus.manifest import read_manifest
from llmtrain.corpus.prepare import corpus_dir, prepare
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.data import DataConfig
from llmtrain.spec.errors import LlmtrainError

FORK = multiprocessing.get_context("fork")
FILES = ("train.bin", "val.bin", "token_bytes.npy", "manifest.json")
Damage = Callable[[Path, random.Random, Path], None]


def reorder(path: Path, rng: random.Random, _other: Path) -> None:
    content = path.read_bytes()
    half = 2 * rng.randrange(1, len(content) // 2)
    path.write_bytes(content[half:] + content[:half])


def swap(path: Path, _rng: random.Random, other: Path) -> None:
    """Put the same file of another corpus there, at this one's size."""
    content, size = other.read_bytes(), path.stat().st_size
    path.write_bytes((content * (size // len(content) + 1))[:size])


def other_type(path: Path, _rng: random.Random, _other: Path) -> None:
    path.write_bytes(np.fromfile(path, dtype="<u1").astype("<u2").tobytes())


def duplicate(path: Path, _rng: random.Random, _other: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


DAMAGES: tuple[Damage, ...] = (flip, flip, flip, cut, zero, reorder, swap, other_type, duplicate)


@pytest.mark.parametrize("count", [pytest.param(1000, marks=pytest.mark.slow), 100])
@pytest.mark.parametrize("opened_before", [False, True], ids=["first_opening", "later_opening"])
def test_no_damage_is_read(
    toy: DataConfig,
    configure: Callable[..., DataConfig],
    tmp_path: Path,
    opened_before: bool,
    count: int,
) -> None:
    (tmp_path / "other.txt").write_text("".join(f"another text {i}\n" for i in range(9000)))
    other = prepare(configure(paths=(str(tmp_path / "other.txt"),), deduplicate="none"))
    folder = prepare(toy)
    sound = {name: (folder / name).read_bytes() for name in FILES}
    rng = random.Random(count)
    silent: list[str] = []
    damaged = 0
    while damaged < count:
        name, damage = rng.choice(FILES), rng.choice(DAMAGES)
        for file, content in sound.items():
            (folder / file).write_bytes(content)
        (folder / ".verified.json").unlink(missing_ok=True)
        if opened_before:
            open_corpus(folder)
        times = (folder / name).stat()
        damage(folder / name, rng, other / name)
        os.utime(folder / name, ns=(times.st_atime_ns, times.st_mtime_ns))
        if (folder / name).read_bytes() == sound[name]:
            continue
        damaged += 1
        try:
            open_corpus(folder)
        except LlmtrainError as error:
            if error.exit_code not in (2, 5) or "\n" in str(error):
                silent.append(f"{damage.__name__} {name}: {error}")
        else:
            silent.append(f"{damage.__name__} {name}")
    assert silent == []


def build_once(config: DataConfig, seconds: float, barrier: Barrier | None = None) -> None:
    """Build a corpus, in a process that is killed after `seconds` (0: never)."""
    if barrier is not None:
        barrier.wait()
    if seconds:  # the default action ends the process as kill -9 does: nothing of it runs on
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    prepare(config)
    os._exit(0)


def seconds_to_build(config: DataConfig) -> float:
    shutil.rmtree(config.root)
    begin = time.perf_counter()
    prepare(config)
    return time.perf_counter() - begin


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


@pytest.mark.parametrize("n_builders", [1, 2])
@pytest.mark.parametrize("count", [pytest.param(100, marks=pytest.mark.slow), 10])
def test_a_builder_killed_anywhere_leaves_the_corpus_whole_or_absent(
    toy: DataConfig, tmp_path: Path, count: int, n_builders: int
) -> None:
    clean = content(prepare(toy))
    longest = 1.5 * min(seconds_to_build(toy) for _ in range(5))  # a busy machine's worst is none
    rng = random.Random(count)
    killed = 0
    for _ in range(count):
        shutil.rmtree(toy.root, ignore_errors=True)
        barrier = FORK.Barrier(n_builders)
        delays = [rng.uniform(1e-4, longest), 0.0][:n_builders]
        builders = [FORK.Process(target=build_once, args=(toy, d, barrier)) for d in delays]
        for process in builders:
            process.start()
        for process in builders:
            process.join(300)
        killed += builders[0].exitcode == -signal.SIGALRM
        assert builders[0].exitcode in (0, -signal.SIGALRM)
        if n_builders == 2:
            assert builders[1].exitcode == 0  # it waits for the other, then builds or finds
        folder = corpus_dir(toy)
        if folder.exists():
            assert content(folder) == clean
            open_corpus(folder)
        assert prepare(toy) == folder
        assert content(folder) == clean
        left = {path.name for path in Path(toy.root).iterdir()} - {folder.name}
        assert left <= {f".{folder.name}.lock"}  # of one that was killed with the folder in place
    assert killed >= count // 4
    assert read_manifest(corpus_dir(toy)).name == "toy"
