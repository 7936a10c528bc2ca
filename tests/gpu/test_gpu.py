"""What only a GPU can show: `pytest -m gpu`. Without CUDA these are not collected by default."""

import os
import re
import signal

import pytest
import torch
from setups import new_session

from llmtrain.spec.errors import DivergedError, InterruptedRunError
from llmtrain.spec.plan import plan_run
from llmtrain.training.checkpoint import snapshot
from llmtrain.training.loop import train
from llmtrain.training.session import Session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("default"),  # torch's own, as of its sync debug mode
]
CUDA = {"runtime.device": "cuda"}


def losses(make, corpus, changes, steps=20):
    """Return the training losses of the first steps."""
    session = new_session(make, corpus, CUDA | changes)
    found = []
    for _ in range(steps):
        session.train_step()
        found.append(session.drain_losses())
    return found


def test_the_gpu_trains_as_the_cpu_does(make, corpus, tmp_path):
    on_cpu = train(make({"runs_root": str(tmp_path / "cpu")}), corpus)
    on_gpu = train(make(CUDA | {"runs_root": str(tmp_path / "gpu")}), corpus)
    assert on_gpu.val_loss == pytest.approx(on_cpu.val_loss, rel=2e-3)
    assert on_gpu.hardware["device"] == "cuda"
    assert on_gpu.hardware["gpu"] == torch.cuda.get_device_name()
    assert re.fullmatch(r"\d+(\.\d+)+", on_gpu.versions["driver"])
    assert on_gpu.memory_bytes > 0


def test_compiled_equals_eager(make, corpus):
    eager, compiled = losses(make, corpus, {}), losses(make, corpus, {"runtime.compile": True})
    assert compiled == pytest.approx(eager, rel=2e-3)


def test_bfloat16_stays_near_float32(make, corpus):
    full, half = losses(make, corpus, {}), losses(make, corpus, {"runtime.dtype": "bfloat16"})
    assert half == pytest.approx(full, rel=2e-2)


def test_a_steady_step_waits_for_nothing(make, corpus):
    session = new_session(make, corpus, CUDA)
    session.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            session.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert session.drain_losses() > 0


def test_the_wait_for_the_device_is_the_time_of_its_steps(make, corpus):
    session = new_session(make, corpus, CUDA)
    session.train_step()
    session.drain_losses()
    before = session.seconds["train"]
    session.train_step()
    torch.cuda._sleep(2_000_000_000)  # clock cycles: a second, or nearly
    session.drain_losses()
    assert session.seconds["train"] - before > 0.5


def test_a_run_reports_its_own_peak_of_memory(make, corpus, tmp_path):
    before = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    del before
    record = train(make(CUDA | {"runs_root": str(tmp_path)}), corpus)
    assert record.memory_bytes < 2**30


def test_resume_goes_on_with_the_same_losses(make, corpus, tmp_path):
    def interrupt(progress):
        if progress.step == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = train(make(CUDA | {"runs_root": str(tmp_path / "whole")}), corpus)
    parts = make(CUDA | {"runs_root": str(tmp_path / "parts")})
    with pytest.raises(InterruptedRunError):
        train(parts, corpus, on_progress=interrupt)
    assert train(parts, corpus).val_loss == pytest.approx(whole.val_loss, rel=1e-4)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_the_device_holds_a_nan_back_by_itself(make, corpus, policy):
    config = make(CUDA | {"guard.on_nonfinite": policy})
    plan = plan_run(config, vocab_size=256, unique_tokens=len(corpus.train))
    session = Session(config, plan, corpus, torch.device("cuda"))
    assert session.guard.on_device
    session.train_step()
    before = [weight.detach().clone() for weight in session.model.parameters()]
    hook = session.model.embedding.register_forward_hook(lambda _m, _i, out: out * torch.nan)
    session.train_step()
    hook.remove()
    assert all(map(torch.equal, before, session.model.parameters()))
    session.train_step()  # under stop the device goes on holding back until it is asked
    assert all(map(torch.equal, before, session.model.parameters())) == (policy == "stop")
    if policy == "stop":
        with pytest.raises(DivergedError, match=r"^step 2: "):
            session.drain_losses()
    else:
        session.drain_losses()
        assert session.guard.n_skipped == 1


def test_a_snapshot_is_of_its_moment_though_steps_go_on(make, corpus):
    made = new_session(make, corpus, CUDA)
    made.train_step()
    made.drain_losses()
    state = made.state()
    expected = {name: weight.cpu().clone() for name, weight in state["model"].items()}
    taken = snapshot(state)
    for _ in range(3):
        made.train_step()
    for name, weight in expected.items():
        assert torch.equal(taken.tensors[f"/model/{name}"], weight), name
        assert not torch.equal(made.model.state_dict()[name].cpu(), weight), name
