import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmtrain.board import mirror

sys.path.insert(0, str(Path(__file__).parent))

from wandb_server import WandbServer

_spec = importlib.util.spec_from_file_location(
    "scaling_fixtures", Path(__file__).parents[1] / "scaling" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_scaling = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_scaling)
planted_sweep, analyze_config = _scaling.planted_sweep, _scaling.analyze_config


@pytest.fixture(scope="session", autouse=True)
def _patience() -> Iterator[None]:
    """A crowded machine's first start of wandb takes longer than a run would wait for it."""
    with pytest.MonkeyPatch.context() as limits:
        for name in ("TIMEOUT_S", "LOCAL_S", "FINISH_S"):
            limits.setattr(mirror, name, 120)
        yield


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Neither a key nor a login of the machine's owner reaches a test."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    mirror.Process.stop_idle()  # one of another folder's tests has imported wandb already
    yield
    mirror.Process.stop_idle()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., WandbServer]]:
    """Return a function that starts a server and points wandb's client at it."""
    started: list[WandbServer] = []

    def start(behaviour: str = "well", page: int = 1000) -> WandbServer:
        found = WandbServer(behaviour, page).__enter__()
        started.append(found)
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        return found

    yield start
    for found in started:
        found.__exit__()
