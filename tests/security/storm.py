"""Give scripts/train.py many command lines in one process and note what each one did.

Reads a JSON list of argument lists on stdin; prints a JSON list of {code, error, touched}.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
sys.dont_write_bytecode = True  # what Python keeps of a module seen first is no file of ours

import train  # noqa: E402
from edge import guarded  # noqa: E402

TOUCHING = ("os.mkdir", "os.rename", "os.remove", "socket.connect", "subprocess.Popen", "os.system")
touched: list[str] = []


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what writes a file, starts a process or opens a connection."""
    if arguments and arguments[0] == ".":  # Hydra makes sure of the current folder
        return
    if event in TOUCHING or (event == "open" and set(str(arguments[1])) & set("wax+")):
        touched.append(f"{event} {arguments[0]!r}")


def attempt(arguments: list[str]) -> dict[str, Any]:
    """Run one command line and return its exit code, its stderr and what it touched."""
    sys.argv = ["train.py", *arguments]
    touched.clear()
    with contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            code: Any = guarded(train.run)
        except SystemExit as left:
            code = left.code
        except BaseException as crash:
            code = f"{type(crash).__name__}: {str(crash)[:200]}"
    return {"code": code, "error": error.getvalue(), "touched": list(touched)}


if __name__ == "__main__":
    command_lines = json.load(sys.stdin)
    sys.addaudithook(note)
    answers = [attempt(arguments) for arguments in command_lines]
    print(json.dumps({"answers": answers, "heavy": sorted({"torch", "wandb"} & set(sys.modules))}))
