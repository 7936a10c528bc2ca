"""The edge that every script shares: Hydra composes, errors become one line and an exit code."""

import contextlib
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from help_text import fitted_help
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from overrides import CONFIG_DIR, check_overrides, explain, key_values, short

from llmtrain.spec.disk import disk_error
from llmtrain.spec.errors import ConfigError, LlmtrainError
from llmtrain.spec.redact import redact

__all__ = ["CONFIG_DIR", "check_overrides", "compose", "guarded", "key_values", "run_edge"]

MAX_LINE = 2000
CLOSED_PIPE = 141
"""What a shell reports of a command whose output nobody reads any more: 128 + SIGPIPE."""


def compose(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return configs/<config_name>.yaml with `overrides` as a plain dictionary.

    Raises ConfigError in one line for anything Hydra or OmegaConf refuses.
    """
    check_overrides(overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(
            version_base="1.3", config_dir=str(CONFIG_DIR), job_name=config_name
        ):
            config = hydra_compose(config_name, list(overrides))
        raw = OmegaConf.to_container(config, resolve=False, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    return {str(key): value for key, value in raw.items()} if isinstance(raw, dict) else {}


def run_edge(main: Callable[[list[str]], int | None]) -> None:
    """Run a script's main on its arguments and leave with the exit code of the design."""
    arguments = sys.argv[1:]

    def answer() -> int | None:
        if {"-h", "--help"} & set(arguments):
            print(fitted_help((sys.modules["__main__"].__doc__ or "").strip()))
            return 0
        return main(arguments)

    sys.exit(guarded(answer))


def guarded(action: Callable[[], int | None]) -> int:
    """Return the exit code of `action`; a user's error is one line on stderr."""
    program = Path(sys.argv[0]).name
    try:
        code = action() or 0
        sys.stdout.flush()  # here, where a full disk can still be said in one line
        return code
    except LlmtrainError as error:
        _complain(f"{program}: {error}")
        return error.exit_code
    except (HydraException, OmegaConfBaseException) as error:
        _complain(f"{program}: {explain(error)}")
        return ConfigError.exit_code
    except KeyboardInterrupt as error:
        _complain(f"{program}: stopped by {str(error) or 'SIGINT'}; run the same command to go on")
        return 75
    except Exception as error:
        if _raised_by_hydra(error):  # some malformed overrides reach Python's own errors in there
            given = short(" ".join(sys.argv[1:]), 200)
            _complain(
                f"{program}: {explain(error)}; expected overrides as configs/ has them: {given}"
            )
            return ConfigError.exit_code
        if isinstance(error, BrokenPipeError) and _nobody_reads():  # `| head` has read enough
            _drop_output()
            return CLOSED_PIPE
        if isinstance(error, OSError) and (told := disk_error(error)) is not None:
            _drop_output()
            _complain(f"{program}: {told}")
            return told.exit_code
        sys.stderr.write(redact(traceback.format_exc()))  # a bug: Python's own report and code
        return 1


def _raised_by_hydra(error: BaseException) -> bool:
    innermost = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return bool({"hydra", "omegaconf"} & set(innermost.parts))


def _nobody_reads() -> bool:
    """Return whether stdout is a pipe whose other end is closed."""
    with contextlib.suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def _drop_output() -> None:
    """Send what stdout still holds nowhere: Python would fail over it once more as it leaves."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(line: str) -> None:
    """Print a line on stderr, once per machine: torchrun's processes all fail alike."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in redact(line))
        print(short(line, MAX_LINE), file=sys.stderr)
