"""Where text comes from: installed Python source, files on this machine, the Hugging Face hub."""

import gzip
import hashlib
import json
import logging
import os
import platform
import re
import site
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from llmtrain.spec.data import DataConfig
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.jsonfile import parse_json

JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
TEXT_SUFFIXES = (".txt", ".txt.gz")
SUFFIXES = (*TEXT_SUFFIXES, *JSON_SUFFIXES, ".parquet")
SETS_OF_LINES = frozenset({"Salesforce/wikitext", "wikitext"})
ARTICLE_HEADING = re.compile(rb" = [^=].*[^=] = \n")
PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})

TEXT_PIECE = 2**16
"""A longer txt file becomes several documents, cut at line ends, so that one big file (a book, a
dump) still has a part to hold out. A false separator every 64 KiB is the price."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a corpus and where it was read."""

    text: bytes
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What a source is, found without reading its text."""

    fingerprint: str
    """Changes when the files behind the source do."""
    n_bytes: int | None
    """Bytes of the files on disk; None for the hub."""
    facts: dict[str, str]
    """For the manifest: no clocks, no absolute paths."""


def survey(config: DataConfig) -> Survey:
    """Return what would be read. Raises ConfigError where nothing matches."""
    if config.source == "hub":
        facts = {
            "source": "hub",
            "path": str(config.hub_path),
            "config": str(config.hub_config),
            "split": str(config.hub_split),
            "revision": str(config.hub_revision),
        }
        return Survey(fingerprint="", n_bytes=None, facts=facts)
    if config.source == "pysource":
        sizes = [(name, path.stat().st_size) for name, path in python_files(config.scope)]
        facts = {"source": "pysource", "scope": config.scope, "python": platform.python_version()}
        return _survey_of(sizes, facts)
    stats = [(path, path.stat()) for path in local_files(config.paths)]
    listing = [(f"{path}:{stat.st_mtime_ns}", stat.st_size) for path, stat in stats]
    return _survey_of(listing, {"source": "local", "files": str(len(listing))})


def documents(config: DataConfig) -> Iterator[Document]:
    """Yield the documents of a source in an order that depends on their names alone.

    Raises ConfigError for files that cannot be read, columns that are absent, and a hub that
    cannot be reached.
    """
    if config.source == "pysource":
        for name, path in python_files(config.scope):
            yield Document(path.read_bytes(), name)
    elif config.source == "local":
        for path in local_files(config.paths):
            yield from _local_documents(path, config.text_field)
    else:
        yield from _hub_documents(config)


def python_files(scope: str) -> list[tuple[str, Path]]:
    """Return (relative name, path) of every installed .py file, ordered by the name's hash.

    `stdlib` is the interpreter's standard library with its tests where they are installed (19 of
    32 MB in CPython 3.11; they are real code, and a larger corpus means fewer epochs); `all` adds
    every installed package. The order is by hash, so that `max_bytes` takes a sample and not the
    letter a.
    """
    roots = {Path(sysconfig.get_path("stdlib")).resolve()}
    if scope == "all":
        folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        folders += [*site.getsitepackages(), site.getusersitepackages()]
        roots |= {Path(folder).resolve() for folder in folders if Path(folder).is_dir()}
    found = {}
    for root in sorted(roots):
        for folder, subfolders, names in os.walk(root):
            skipped = {"__pycache__", *PACKAGE_FOLDERS}
            subfolders[:] = [name for name in subfolders if name not in skipped]
            for name in names:
                path = Path(folder, name)
                if name.endswith(".py") and path.is_file() and not path.is_symlink():
                    found[f"{root.name}/{path.relative_to(root).as_posix()}"] = path
    return sorted(found.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())


def local_files(patterns: Iterable[str]) -> list[Path]:
    """Return the files that paths, folders and globs name, sorted, each once.

    Raises ConfigError for a pattern that matches nothing and for other file types.
    """
    files: set[Path] = set()
    for pattern in patterns:
        where = Path(pattern).expanduser()
        if has_magic(pattern):
            names = glob(str(where), recursive=True)  # noqa: PTH207 - Path.glob is relative only
            matches = [Path(name) for name in names if Path(name).is_file()]
        elif where.is_dir():
            matches = [path for path in where.rglob("*") if _is_text(path, where)]
        else:
            matches = [where] if where.is_file() else []
        if not matches:
            raise ConfigError(
                f"data.paths: {pattern!r} matches no file ({', '.join(SUFFIXES)}); name files, "
                "folders or globs, as in 'data.paths=[my/*.txt]'"
            )
        for match in matches:
            if not match.name.endswith(SUFFIXES):
                raise ConfigError(f"data.paths: {match} is none of {', '.join(SUFFIXES)}")
            files.add(match.resolve())
    return sorted(files)


def _is_text(path: Path, folder: Path) -> bool:
    # A plain .json in a folder is mostly settings, and may be a corpus's own manifest; it is read
    # where it is named.
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    text = path.name.endswith(SUFFIXES) and path.suffix != ".json"
    return text and not hidden and path.is_file()


def _survey_of(listing: list[tuple[str, int]], facts: dict[str, str]) -> Survey:
    fingerprint = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    return Survey(fingerprint=fingerprint, n_bytes=sum(size for _, size in listing), facts=facts)


def _local_documents(path: Path, text_field: str) -> Iterator[Document]:
    try:
        if path.name.endswith(TEXT_SUFFIXES):
            yield from _text_documents(path)
        elif path.name.endswith(JSON_SUFFIXES):
            for number, row in _json_rows(path):
                yield Document(_text_of(row, text_field, f"{path}:{number}"), f"{path}:{number}")
        else:
            options = {"path": "parquet", "data_files": [str(path)], "split": "train"}
            for number, row in enumerate(_streamed(str(path), "check the file", options)):
                yield Document(_text_of(row, text_field, f"{path}, row {number}"), str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read ({_first_line(error)})") from error


def _text_documents(path: Path) -> Iterator[Document]:
    # As characters, so that no cut falls inside one; surrogates carry bytes that are no UTF-8.
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", errors="surrogateescape", newline="") as file:
        while piece := file.read(TEXT_PIECE):
            piece += file.readline(TEXT_PIECE)
            yield Document(piece.encode("utf-8", errors="surrogateescape"), str(path))


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, parse_json(line)
                except ValueError as error:
                    message = f"{path}:{number}: no JSON object on this line ({error})"
                    raise ConfigError(message) from error


def _hub_documents(config: DataConfig) -> Iterator[Document]:
    origin = str(config.hub_path)
    options = {
        "path": config.hub_path,
        "name": config.hub_config,
        "split": config.hub_split,
        "revision": config.hub_revision,
    }
    remedy = "check the name, the network and HF_HUB_OFFLINE"
    rows = enumerate(_streamed(f"data.hub_path={origin}", remedy, options))
    found = (
        Document(_text_of(row, config.text_field, f"{origin}, row {number}"), origin)
        for number, row in rows
    )
    yield from articles(found) if origin in SETS_OF_LINES else found


def articles(lines: Iterable[Document]) -> Iterator[Document]:
    """Join the lines of WikiText into articles; one begins at a heading of the first level.

    Without this a line would be a document, and lines of one article would be on both sides of
    the held-out split.
    """
    parts: list[bytes] = []
    for line in lines:
        if parts and ARTICLE_HEADING.fullmatch(line.text):
            yield Document(b"".join(parts), line.origin)
            parts = []
        parts.append(line.text)
    if parts:
        yield Document(b"".join(parts), line.origin)


def _streamed(what: str, remedy: str, options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    # The one door to `datasets`: streaming, so nothing is cached, and no code of a repository is
    # ever run (`trust_remote_code` is not passed; datasets >= 4 has none).
    try:
        import datasets  # noqa: PLC0415 - costs 0.6 s, and finished shards need none of it
    except ImportError as error:
        message = f"{what}: needs the datasets package: pip install 'datasets>=5,<6'"
        raise ConfigError(message) from error
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports every retry
    try:
        yield from datasets.load_dataset(**options, streaming=True)
    except Exception as error:  # its errors share no base: hub, http, arrow, builder, own
        cause = f"{type(error).__name__}: {_first_line(error)}"
        raise ConfigError(f"{what}: cannot be read ({cause}); {remedy}") from error


def _text_of(row: Any, text_field: str, where: str) -> bytes:
    if not isinstance(row, Mapping) or text_field not in row:
        columns = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise ConfigError(
            f"{where}: no column data.text_field={text_field!r}; it has {columns or 'none'}"
        )
    text = row[text_field]
    if text is None:
        return b""
    if not isinstance(text, str):
        kind = type(text).__name__
        raise ConfigError(f"{where}: column {text_field!r} holds {kind}, not text")
    return text.encode("utf-8", errors="replace")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
