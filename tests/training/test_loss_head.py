"""The chunked loss head: the full one's loss and gradients, and what it refuses."""

import math

import pytest
import torch
from setups import GPT2, new_session
from torch.nn import functional

from llmtrain.spec.errors import ConfigError
from llmtrain.training import model as model_module
from llmtrain.training.loop import train
from llmtrain.training.model import chunked_nll, cross_entropy

ROWS, WIDTH, VOCAB = 100, 48, 331
CHUNKED = {"runtime.loss_head": "chunked"}
UNTIED = {"model.init": "fixed", "model.init_std": 0.2}
VARIANTS = {
    "untied": UNTIED,
    "tied": GPT2,
    "mup": UNTIED | {"model.parametrization": "mup", "model.base_d_model": 8},
    "window": UNTIED | {"seq_len.mode": "window", "seq_len.pacing": "linear"},
    "passes": GPT2 | {"runtime.micro_batch_tokens": 96},
    "checkpointing": UNTIED | {"runtime.activation_checkpointing": True},
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Passes of the tiny run have several chunks, the last one smaller."""
    monkeypatch.setattr(model_module, "HEAD_ROWS", 30)


def exact_nll(x, weight, targets):
    return functional.cross_entropy(functional.linear(x, weight), targets)


def full_nll(x, weight, targets):
    return cross_entropy(functional.linear(x, weight), targets, z_loss=0.0)[1]


def measured(head, x, weight, targets, dtype=torch.float32):
    """Return a head's loss and its gradients for inputs and weight, scaled as passes are."""
    x, weight = (tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, weight))
    loss = head(x, weight, targets)
    (loss * 0.375).backward()
    assert loss.dtype == x.grad.dtype == weight.grad.dtype == dtype
    return [loss.detach().double(), x.grad.double(), weight.grad.double()]


def errors(found, truth):
    """Return the relative errors of loss and gradients."""
    pairs = zip(found, truth, strict=True)
    return [float((one - other).norm() / other.norm()) for one, other in pairs]


@pytest.fixture
def problem():
    """Return normed inputs, a weight and targets; logits of a few units, as when trained."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH, generator=generator)
    weight = torch.randn(VOCAB, WIDTH, generator=generator) * 2 / math.sqrt(WIDTH)
    return x, weight, torch.randint(VOCAB, (ROWS,), generator=generator)


def test_loss_and_gradients_are_as_near_to_float64_as_the_full_heads(problem):
    truth = measured(exact_nll, *problem, torch.float64)
    full = errors(measured(full_nll, *problem), truth)
    chunked = errors(measured(chunked_nll, *problem), truth)
    assert max(full) < 1e-6
    for one, other in zip(chunked, full, strict=True):
        assert one < 3 * other + 1e-7
        assert other < 3 * one + 1e-7


def test_under_bfloat16_it_stays_in_float32(problem):
    truth = measured(exact_nll, *problem, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        full, chunked = (
            errors(measured(head, *problem), truth) for head in (full_nll, chunked_nll)
        )
    assert max(chunked) < 1e-6
    assert min(full[1:]) > 1e-4  # bfloat16 was on


def gradients(session):
    """Return the mean loss of the first batch and every parameter's gradient."""
    stage = session.plan.shape_at(0)
    loss = session._backward(stage, *session.batches.at(0, stage))
    return loss, {name: p.grad for name, p in session.model.named_parameters()}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_models_gradients_are_those_of_the_full_head(make, corpus, name):
    changes = VARIANTS[name]
    loss, full = gradients(new_session(make, corpus, changes))
    found, chunked = gradients(new_session(make, corpus, changes | CHUNKED))
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=0)
    assert full.keys() == chunked.keys()
    for key, gradient in full.items():
        scale = float(gradient.abs().max())
        assert scale > 0, key
        torch.testing.assert_close(chunked[key], gradient, rtol=1e-4, atol=1e-5 * scale, msg=key)


@pytest.mark.parametrize(
    ("changes", "rel"),
    [({}, 1e-5), (VARIANTS["passes"], 1e-5), ({"runtime.dtype": "bfloat16"}, 3e-3)],
)
def test_a_run_ends_where_the_full_heads_does_under_the_same_name(
    make, corpus, tmp_path, changes, rel
):
    full = train(make(changes | {"runs_root": str(tmp_path / "full")}), corpus)
    chunked = train(make(changes | CHUNKED | {"runs_root": str(tmp_path / "chunked")}), corpus)
    assert chunked.run_id == full.run_id
    assert chunked.val_loss != full.val_loss  # another order of sums: it was another head
    assert chunked.val_loss == pytest.approx(full.val_loss, rel=rel)
    assert chunked.train_loss == pytest.approx(full.train_loss, rel=rel)


def test_what_it_cannot_do_is_refused(make):
    with pytest.raises(ConfigError, match=r"z_loss=0\.0001 .* use runtime.loss_head=full"):
        make(CHUNKED | {"optimizer.z_loss": 1e-4})
    with pytest.raises(ConfigError, match=r"stack=2 .* use runtime.stack=1 or runtime.loss_head="):
        make(CHUNKED | {"runtime.stack": 2})
    graph = {"runtime.device": "cuda", "runtime.cuda_graph": "on"}
    make(graph)
    with pytest.raises(ConfigError, match=r"cuda_graph=on does not go with runtime.loss_head=ch"):
        make(CHUNKED | graph)


def test_a_torch_without_it_is_refused_before_any_file(make, corpus, tmp_path, monkeypatch):
    monkeypatch.delattr(functional, "linear_cross_entropy")
    where = {"runs_root": str(tmp_path / "runs")}
    with pytest.raises(ConfigError, match=r"loss_head=chunked needs torch 2\.13.*loss_head=full"):
        train(make(CHUNKED | where), corpus)
    assert not (tmp_path / "runs").exists()
    train(make(where), corpus)
