"""X1, T10, T11: no source file runs what it reads, and no known hole is let in."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "cPickle.load", "marshal.loads", "marshal.load", "shelve.open", "dill.load", "dill.loads",
    "cloudpickle.load", "cloudpickle.loads", "joblib.load", "yaml.load", "yaml.unsafe_load",
    "torch.load", "torch.hub.load", "os.system", "os.popen", "tempfile.mktemp", "instantiate",
    "hydra.utils.instantiate", "call", "subprocess.getoutput", "np.fromstring",
}  # fmt: skip
FORBIDDEN_KEYWORDS = {"shell": True, "weights_only": False, "allow_pickle": True, "usetex": True}


def dangers(source: str) -> Iterator[str]:
    """Yield a line per call that could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in FORBIDDEN_CALLS:
            yield f"{node.lineno}: {name}"
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if keyword.arg == "trust_remote_code" or (
                keyword.arg in FORBIDDEN_KEYWORDS and value is FORBIDDEN_KEYWORDS[keyword.arg]
            ):
                yield f"{node.lineno}: {keyword.arg}={value}"
        numpy_file = name in ("np.load", "np.save", "numpy.load", "numpy.save")
        if numpy_file and not any(k.arg == "allow_pickle" for k in node.keywords):
            yield f"{node.lineno}: {name} without allow_pickle=False"


def test_no_source_runs_what_it_reads(root: Path) -> None:
    paths = [
        p for top in ("llmtrain", "scripts", "hydra_plugins") for p in (root / top).rglob("*.py")
    ]
    found = [f"{p}:{d}" for p in paths for d in dangers(p.read_text(encoding="utf-8"))]
    assert len(paths) > 80
    assert found == []


@pytest.mark.parametrize(
    "planted",
    [
        "pickle.load(f)", "torch.load(p)", "torch.load(p, weights_only=False)", "yaml.load(t)",
        "eval(x)", "exec(x)", "subprocess.run(c, shell=True)", "os.system(c)", "np.load(p)",
        "np.load(p, allow_pickle=True)", "load_dataset(p, trust_remote_code=True)",
        "hydra.utils.instantiate(c)", "joblib.load(p)", "plt.rc(usetex=True)",
    ],
)  # fmt: skip
def test_a_planted_use_is_found(planted: str) -> None:
    assert list(dangers(planted))


FLOORS = {
    "torch": "2.10",  # CVE-2025-32434, CVE-2026-24747: weights_only=True ran code below
    "hydra-core": "1.3.7",  # CVE-2026-68508, CVE-2026-106439: instantiate
    "datasets": "4.0",  # below it ran the scripts of data sets
    "safetensors": "0.4",
    "numpy": "1.16.3",  # CVE-2019-6446: allow_pickle was on
}


def test_dependencies_stand_above_the_known_holes(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = {r.name: r for r in map(Requirement, project["dependencies"])}
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line.strip()]
    for name, floor in FLOORS.items():
        lowest = [s.version for s in requirements[name].specifier if s.operator == ">="]
        assert lowest, f"{name} has no floor"
        assert Version(lowest[0]) >= Version(floor), name
        pinned = [s.version for r in pins if r.name == name for s in r.specifier]
        assert pinned, f"{name} is not pinned in constraints.txt"
        assert min(map(Version, pinned)) >= Version(lowest[0]), name
    assert all(s.operator == "==" for pin in pins for s in pin.specifier)


BUILDS = ("torch", "triton", "nvidia", "cuda")  # differ by where they are installed from


def test_the_lock_holds_every_pin_and_a_hash_for_each_package(root: Path) -> None:
    text = (root / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert "index" not in text.replace("--hash", "")
    entries = [entry.split() for entry in text.replace("\\\n", " ").splitlines()]
    locked: dict[str, set[str]] = {}
    for entry in entries:
        pin = Requirement(" ".join(word for word in entry if not word.startswith("--hash=")))
        assert [s.operator for s in pin.specifier] == ["=="]
        hashes = [word for word in entry if word.startswith("--hash=")]
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in hashes)
        locked.setdefault(canonicalize_name(pin.name), set()).add(str(pin.specifier))
    for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name = canonicalize_name(Requirement(line).name)
        if not name.startswith(BUILDS) or name == "nvidia-ml-py":
            assert str(Requirement(line).specifier) in locked[name], line
    assert "torch" not in locked


def test_a_training_process_needs_no_network_library(root: Path) -> None:
    program = (
        "import sys\nfrom llmtrain.training import loop, session\n"
        "print([m for m in ('datasets', 'huggingface_hub', 'requests') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
