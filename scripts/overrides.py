"""Overrides as users type them: refused in one line, before Hydra sees what it would misread."""

import difflib
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString
from hydra.errors import HydraException

from llmtrain.spec.check import NAME
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.redact import refuse_secret

CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"

# Everything else under hydra.* could name code to run or a place to write.
HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
HYDRA_KEYS = (*HYDRA_GROUPS, "hydra.launcher.")
EXTRA = "hydra.launcher.extra."  # options of sbatch: any name
EMPTY_GROUPS = ("sweep", "experiment")  # null until one is chosen
OVERRIDE = re.compile(
    r"(?P<sign>\+\+|[+~]?)(?P<key>[A-Za-z_][A-Za-z0-9_./@-]*)(=(?P<value>.*))?", re.DOTALL
)
INSTANTIATE = r"_(target|partial|args|recursive|convert)_"
MAX_CHARS = 10_000
MAX_DEPTH = 8

# In a configuration file: code to run, the environment, another folder, an escape that hides one.
UNSAFE_YAML = re.compile(
    rf"{INSTANTIATE}|callbacks|env_set|searchpath|\$\{{|\.\./|\\[xuU]|!!|<<:|file://|pkg://"
)
OUR_TARGET = re.compile(r"^_target_: hydra_plugins\.llmtrain_plugins\.\w+$", re.MULTILINE)


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse what is no override, sets a key twice, holds a secret, or could run code.

    The configuration files are held to the same rules. Raises ConfigError.
    """
    _check_files()
    _each_once([(_checked_key(override), override) for override in overrides])


def key_values(overrides: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Return key -> value for a script that Hydra has no part in. Raises ConfigError."""
    matches = [_matched(override) for override in overrides]
    for match in matches:
        if match["sign"] or match["key"] not in known:
            raise ConfigError(f"{short(match[0])!r}: unknown key; known keys: {', '.join(known)}")
    _each_once([(match["key"], match[0]) for match in matches])
    return {match["key"]: match["value"] for match in matches}


def explain(error: BaseException) -> str:
    """Return what Hydra or OmegaConf says in several lines as one, with what to do about it."""
    text = " ".join(line.strip() for line in str(error).splitlines())
    if found := re.match(r"Could not override '(.+?)'", text):
        return f"{found[1]}: unknown key{_nearest(found[1])}"
    if found := re.match(r"Could not delete from config\. '(.+?)' does not exist", text):
        return f"~{found[1]}: unknown key{_nearest(found[1])}"
    if found := re.match(r"Error merging override (.+)", text):
        return f"{found[1]}: expected the kind of value that configs/ has for this key"
    if found := re.search(r"Could not (?:find|load) '([^']+)/([^/']*)'", text):
        group, choice = found[1].removeprefix("/"), found[2]
        names = ", ".join(sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml")))
        return f"{group}={choice}: no such choice; choices: {names}"
    if found := re.match(r"Ambiguous value for argument '([^=]+)=(.*?)' 1\.", text):
        key, values = found[1], short(found[2])
        return (
            f"{key}={values}: expected one value; scripts/train.py -m trains a run for each, and a "
            f"list is written '{key}=[{values}]'"
        )
    kept = re.split(r" (?:Set the env|full_key:|object_type=|See https|Config search path)", text)
    return short(kept[0], 600) or type(error).__name__


def short(text: str, limit: int = 120) -> str:
    """Return `text` cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _each_once(given: Sequence[tuple[str, str]]) -> None:
    seen: dict[str, str] = {}
    for key, override in given:
        if key in seen:
            pair = f"{short(seen[key], 60)!r} and {short(override, 60)!r}"
            raise ConfigError(f"{key} is set twice, by {pair}; keep one")
        seen[key] = override


def _matched(override: str) -> re.Match[str]:
    """Return an override's sign, key and value. Raises ConfigError."""
    if override in ("-m", "--multirun"):
        raise ConfigError(f"{override} is for scripts/train.py; leave it out")
    match = OVERRIDE.fullmatch(override)
    if match is None or (match["value"] is None) != (match["sign"] == "~"):
        raise ConfigError(f"{short(override)!r} is no override; write name=value, as in seed=1")
    refuse_secret(match["key"], match["value"] or "")
    if len(override) > MAX_CHARS:
        raise ConfigError(
            f"{short(override)!r} has {len(override)} characters, more than {MAX_CHARS}; shorten it"
        )
    if not override.isprintable():
        raise ConfigError(f"{short(override)!r} holds an unprintable character; remove it")
    return match


def _checked_key(override: str) -> str:
    """Return the key of an override that may be passed to Hydra. Raises ConfigError."""
    match = _matched(override)
    shown, sign, key, value = (
        repr(short(override)),
        match["sign"],
        match["key"],
        match["value"] or "",
    )
    if (depth := _depth(value)) > MAX_DEPTH:
        raise ConfigError(f"{shown} nests {depth} brackets, more than {MAX_DEPTH}; flatten it")
    if key.startswith("hydra") and key not in HYDRA_GROUPS and not key.startswith(HYDRA_KEYS[2]):
        raise ConfigError(f"{short(key)}: only {', '.join(HYDRA_KEYS)}* can be set from here")
    if "${" in value or re.search(INSTANTIATE, override):
        raise ConfigError(f"{shown}: interpolations and targets are not accepted")
    if sign == "+" and not key.startswith(EXTRA):
        raise ConfigError(f"{shown} adds a key, and every key is known; write {override[1:61]!r}")
    _check_group(key, _parsed(override, shown), shown)
    return key


def _parsed(override: str, shown: str) -> Override:
    try:
        return OverridesParser.create().parse_override(override)
    except (HydraException, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{shown} cannot be read; quote its value within the shell's quotes, as in "
            "'name=\"my text\"'"
        ) from error


def _check_group(key: str, override: Override, shown: str) -> None:
    """Refuse for a group of files what is not the name of one: Hydra would open it as a path."""
    group = key.partition("@")[0]
    if not (CONFIG_DIR / group).is_dir() and group not in HYDRA_GROUPS:
        return
    value: Any = override.value()
    if isinstance(value, Glob):  # matches names only
        return
    for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
        text = choice.text if isinstance(choice, QuotedString) else choice
        named = isinstance(text, str) and NAME.fullmatch(text) is not None
        absent = text is None and (group in EMPTY_GROUPS or override.is_delete())
        if not (named or absent or isinstance(text, dict)):
            names = ", ".join(sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml")))
            raise ConfigError(f"{shown}: no such choice of {group}; choices: {names}")


@functools.cache
def _check_files() -> None:
    for path in sorted(CONFIG_DIR.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if path.parent.parent == CONFIG_DIR / "hydra":
            text = OUR_TARGET.sub("", text)
        if found := UNSAFE_YAML.search(text):
            raise ConfigError(
                f"{path} holds {found[0]!r}: configuration files name no code, no environment and "
                "no other folder; remove it"
            )


def _nearest(key: str) -> str:
    """Return a hint at the key that was meant, from the words of the configuration files."""
    group, _, name = key.rpartition(".")
    if group in EMPTY_GROUPS:
        return f"; choose {group}=NAME first"
    folder = CONFIG_DIR / group.replace(".", "/") if group else CONFIG_DIR
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml")))
    known = dict.fromkeys(re.findall(r"^(?:  - )?(\w+):", text, re.MULTILINE))
    near = difflib.get_close_matches(name, known, n=1)
    prefix = f"{group}." if group else ""
    if near:
        return f"; did you mean {prefix}{near[0]}?"
    return f"; configs/{group} names every key" if folder.is_dir() else "; configs/ names every key"


def _depth(value: str) -> int:
    depth = deepest = 0
    for character in value:
        if character in "[{(":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]})":
            depth -= 1
    return deepest
