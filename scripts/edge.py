"""The edge that every script shares: Hydra composes, errors become one line and an exit code."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmtrain.spec.errors import ConfigError, LlmtrainError

CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"

# Everything else under hydra.* could name code to run or a place to write.
HYDRA_KEYS = ("hydra/launcher", "hydra/sweeper", "hydra.launcher.")
OVERRIDE = re.compile(r"[+~]{0,2}(?P<key>[A-Za-z0-9_./@-]+)(=(?P<value>.*))?", re.DOTALL)


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse overrides that are none, that name code, or that read the environment."""
    for override in overrides:
        match = OVERRIDE.fullmatch(override)
        if match is None or (match["value"] is None and not override.startswith("~")):
            raise ConfigError(f"{_short(override)!r} is no override; write key=value, as in seed=1")
        key, value = match["key"], match["value"] or ""
        if key.startswith("hydra") and not key.startswith(HYDRA_KEYS):
            raise ConfigError(f"{_short(key)}: only {', '.join(HYDRA_KEYS)}* can be set from here")
        if "${" in value or re.search(r"_(target|partial|args|recursive|convert)_", override):
            raise ConfigError(f"{_short(override)!r}: interpolations and targets are not accepted")


def compose(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return configs/<config_name>.yaml with `overrides` as a plain, resolved dictionary.

    Raises ConfigError in one line for anything Hydra or OmegaConf refuses.
    """
    check_overrides(overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(
            version_base="1.3", config_dir=str(CONFIG_DIR), job_name=config_name
        ):
            config = hydra_compose(config_name, list(overrides))
        raw = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error
    return {str(key): value for key, value in raw.items()} if isinstance(raw, dict) else {}


def one_line(error: BaseException) -> str:
    """Return what Hydra says in several lines as one, without its advice on stack traces."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Set the env", "full_key:"))]
    kept = [line for line in kept if not line.startswith(("object_type=", "See https"))]
    return _short(" ".join(kept), 600) or type(error).__name__


def run_edge(main: Callable[[list[str]], int | None]) -> None:
    """Run a script's main on its arguments and leave with the exit code of the design."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print((sys.modules["__main__"].__doc__ or "").strip())
        sys.exit(0)
    sys.exit(guarded(lambda: main(arguments)))


def guarded(action: Callable[[], int | None]) -> int:
    """Return the exit code of `action`; a user's error is one line on stderr."""
    program = Path(sys.argv[0]).name
    try:
        return action() or 0
    except LlmtrainError as error:
        _complain(f"{program}: {error}")
        return error.exit_code
    except (HydraException, OmegaConfBaseException) as error:
        _complain(f"{program}: {one_line(error)}")
        return ConfigError.exit_code
    except KeyboardInterrupt:
        _complain(f"{program}: interrupted; run the same command to go on")
        return 75


def _complain(line: str) -> None:
    """Print a line on stderr, once per machine: torchrun's processes all fail alike."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(line, file=sys.stderr)


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
