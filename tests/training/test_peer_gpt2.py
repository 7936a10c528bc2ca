"""The GPT-2 preset against a plain implementation that shares nothing with the package."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from llmtrain.spec.config import ModelConfig
from llmtrain.training.model import Transformer, cross_entropy

N_LAYERS, N_HEADS, D, T, V = 2, 2, 32, 16, 53


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred**2).mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5) * gain + bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(x: Tensor, w: dict[str, Tensor], layer: int) -> Tensor:
    at = f"blocks.{layer}.attention"
    qkv = x @ w[f"{at}.qkv.weight"].T + w[f"{at}.qkv.bias"]
    q, k, v = qkv[..., :D], qkv[..., D : 2 * D], qkv[..., 2 * D :]
    heads = []
    K = D // N_HEADS
    for h in range(N_HEADS):
        part = slice(h * K, (h + 1) * K)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(K)
        earlier = torch.ones(T, T).tril().bool()
        weights = torch.where(earlier, scores.exp(), torch.zeros(()))
        weights = weights / weights.sum(dim=-1, keepdim=True)
        heads.append(weights @ v[..., part])
    return torch.cat(heads, dim=-1) @ w[f"{at}.out.weight"].T + w[f"{at}.out.bias"]


def mlp(x: Tensor, w: dict[str, Tensor], layer: int) -> Tensor:
    at = f"blocks.{layer}.mlp"
    hidden = gelu(x @ w[f"{at}.up.weight"].T + w[f"{at}.up.bias"])
    return hidden @ w[f"{at}.down.weight"].T + w[f"{at}.down.bias"]


def plain_gpt2(w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    x = w["embedding.weight"][tokens] + w["position.weight"]
    for layer in range(N_LAYERS):
        at = f"blocks.{layer}"
        x = x + attention(
            layer_norm(x, w[f"{at}.attention_norm.weight"], w[f"{at}.attention_norm.bias"]),
            w,
            layer,
        )
        x = x + mlp(layer_norm(x, w[f"{at}.mlp_norm.weight"], w[f"{at}.mlp_norm.bias"]), w, layer)
    x = layer_norm(x, w["final_norm.weight"], w["final_norm.bias"])
    return x @ w["embedding.weight"].T


def test_twenty_steps_of_the_gpt2_preset_agree_with_a_plain_implementation(
    tiny_model_config: ModelConfig,
) -> None:
    config = replace(
        tiny_model_config,
        activation="gelu",
        norm="layernorm",
        position="learned",
        tied_head=True,
        bias=True,
        init="fixed",
        init_std=0.3,  # large enough to bend the softmax and the GELU; 0.02 hides their details
    )
    model = Transformer(config, vocab_size=V, seq_len=T)
    model.init_weights(seed=0)
    plain = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    rates = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
    ours = torch.optim.AdamW(model.parameters(), **rates)
    theirs = torch.optim.AdamW(plain.values(), **rates)
    # A Markov chain, so that there is something to learn beyond the frequencies.
    generator = torch.Generator().manual_seed(0)
    jumps = torch.randint(3, (20, 8, T + 1), generator=generator)
    batches = (7 * jumps.cumsum(dim=-1)) % V
    losses = []
    for batch in batches:
        inputs, targets = batch[:, :-1], batch[:, 1:]
        nll, loss = cross_entropy(model(inputs), targets, z_loss=0.0)
        model.zero_grad()
        loss.backward()
        ours.step()
        logits = plain_gpt2(plain, inputs)
        picked = logits.log_softmax(dim=-1).gather(-1, targets[..., None])
        plain_loss = -picked.mean()
        theirs.zero_grad()
        plain_loss.backward()
        theirs.step()
        losses.append((nll.item(), plain_loss.detach().item()))
    assert losses[0][0] > losses[-1][0] + 0.3, "nothing was learnt, so nothing was compared"
    # A unit in the last place of float32 at 5.5 is 5e-7; measured: 1e-6 at worst.
    assert max(abs(a - b) for a, b in losses) < 5e-6
