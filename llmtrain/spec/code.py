"""Which code a result comes from: the git commit, the uncommitted change, the files themselves."""

import functools
import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import llmtrain

UNKNOWN = "unknown"
PACKAGE = Path(llmtrain.__file__).resolve().parent
LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "datasets", "wandb", "hydra-core")
GIT_S = 20.0


def code_identity(package: Path = PACKAGE) -> dict[str, str]:
    """Return the identity of the code that runs.

    commit: the full hash, or 'unknown' where git does not track this package; change: sha256 of
    what differs from the commit in the package, new files included, empty where nothing does;
    source: sha256 of the package's own files, which tells code apart where there is no git.
    """
    return dict(_identity(package))


def code_id() -> str:
    """Return the commit, after '+' the hash of the change where there is one, or 'unknown'."""
    found = _identity(PACKAGE)
    commit = found["commit"][:12]
    return f"{commit}+{found['change'][:8]}" if found["change"] else commit


@functools.cache
def environment() -> dict[str, str]:
    """Return the versions and the machine that a result depends on, without importing a library."""
    found = {
        "llmtrain": llmtrain.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
    }
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@functools.cache
def _identity(package: Path) -> dict[str, str]:
    root, files = package.parent, sorted(package.rglob("*.py"))
    source = hashlib.sha256()
    for path in files:
        source.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    found = {"commit": UNKNOWN, "change": "", "source": source.hexdigest()}

    def git(*arguments: str) -> bytes:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=GIT_S).stdout

    try:
        if not git("ls-files", "--", f"{package.name}/__init__.py"):
            return found  # installed inside someone else's repository
        commit = git("rev-parse", "HEAD").decode().strip()
        change = git("diff", "HEAD", "--", package.name)
        new = git("ls-files", "--others", "--exclude-standard", "-z", "--", package.name)
        for name in new.split(b"\0")[:-1]:
            change += name + b"\0" + (root / name.decode()).read_bytes()
    except (OSError, subprocess.SubprocessError):
        return found
    return found | {
        "commit": commit,
        "change": hashlib.sha256(change).hexdigest() if change else "",
    }
