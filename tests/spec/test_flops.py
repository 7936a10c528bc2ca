"""Golden numbers: Porian et al.'s 22.5M shape, and the shapes of performance tables, by hand."""

import pytest

from llmtrain.spec.build import build
from llmtrain.spec.config import ModelConfig
from llmtrain.spec.flops import flops_per_token, mean_keys, param_groups


def shape(raw, **changes):
    return build(ModelConfig, raw["model"] | changes)


def test_porian_shape_matches_the_published_counts_under_every_convention(raw):
    model = shape(
        raw,
        d_model=288,
        n_layers=8,
        d_head=72,
        ff_ratio=8 / 3,
        ff_multiple=256,
        activation="swiglu",
    )
    flops = flops_per_token(model, vocab_size=50_432, seq_len=2048)
    groups = param_groups(model, vocab_size=50_432, seq_len=2048)
    assert (groups.blocks, groups.head) == (7_962_624, 14_524_416)
    assert flops["non_embedding"] == 47_775_744
    assert flops["with_head"] == 134_922_240
    assert flops["causal_attention"] == 163_233_792
    assert flops["full_attention"] == 191_545_344
    # 6 x all parameters, with the norms' gains that the published 222,068,736 leaves out.
    assert flops["total"] == 222_068_736 + 6 * groups.vectors
    assert flops["chinchilla"] == 279_281_664


@pytest.mark.parametrize(
    ("d_model", "n_layers", "vocab_size", "matmul"),
    [(64, 2, 256, 114_688), (512, 8, 8192, 29_360_128), (256, 6, 256, 4_784_128)],
)
def test_matmul_parameters_match_the_closed_form(raw, d_model, n_layers, vocab_size, matmul):
    model = shape(raw, d_model=d_model, n_layers=n_layers)
    counts = param_groups(model, vocab_size=vocab_size, seq_len=128).counts()
    assert (
        counts["no_input_embedding"] == matmul == 12 * n_layers * d_model**2 + vocab_size * d_model
    )


def test_oracle_shape_at_context_128(raw):
    flops = flops_per_token(shape(raw, d_model=64), vocab_size=256, seq_len=128)
    assert (flops["causal_attention"], flops["full_attention"]) == (786_432, 884_736)


def test_every_named_count_of_one_shape(raw):
    """L 8, d 512, 8 heads of 64, f 2048, V 32000, T 1024; the counts other papers mix are sums."""
    model = shape(raw, d_model=512, n_layers=8, d_head=64, ff_ratio=4.0)
    flops = flops_per_token(model, vocab_size=32_000, seq_len=1024)
    attention = flops["causal_attention"] - flops["with_head"]
    assert flops["non_embedding"] == 150_994_944  # Kaplan et al. 2020, 6 N
    assert flops["non_embedding"] + attention == 176_160_768  # with its attention term
    assert flops["with_head"] == 249_298_944
    assert flops["causal_attention"] == 274_464_768
    assert flops["full_attention"] == 299_630_592  # PaLM's MFU
    assert flops["non_embedding"] + 2 * attention == 201_326_592  # DeepSeek LLM's M
    assert flops["chinchilla"] == 398_524_416
    embedding = 3 * 2 * 32_000 * 512
    assert flops["chinchilla"] - embedding == 300_220_416
    assert flops["chinchilla"] - 2 * embedding == 201_916_416


# Hoffmann et al. 2022, appendix F over 6N. Table A4 prints 1.03 1.10 1.08 1.04 1.03 .99, which is
# the version without the input embedding and the final logits; `literal` has both.
@pytest.mark.parametrize(
    ("n_layers", "d_model", "d_ff", "d_head", "ratio", "literal"),
    [
        (10, 640, 2560, 64, 1.026, 1.58),
        (20, 1024, 4096, 64, 1.102, 1.32),
        (24, 1280, 5120, 128, 1.084, 1.23),
        (26, 1792, 7168, 128, 1.045, 1.14),
        (28, 2048, 8192, 128, 1.033, 1.12),
        (40, 3584, 14336, 128, 0.994, 1.03),
    ],
)
def test_appendix_f_over_6n_matches_table_a4(raw, n_layers, d_model, d_ff, d_head, ratio, literal):
    model = shape(raw, d_model=d_model, n_layers=n_layers, d_head=d_head, ff_ratio=d_ff / d_model)
    vocab, seq_len = 32_000, 2048
    flops = flops_per_token(model, vocab_size=vocab, seq_len=seq_len)
    without_vocabulary = flops["chinchilla"] - 3 * 4 * vocab * d_model
    # Their N: relative positions add one d x d matrix per layer; embedding once.
    n_params = n_layers * (5 * d_model**2 + 2 * d_model * d_ff) + vocab * d_model
    assert without_vocabulary / (6 * n_params) == pytest.approx(ratio, abs=0.006)
    assert flops["chinchilla"] / (6 * n_params) == pytest.approx(literal, abs=0.006)


def test_palms_model_flops_utilisation_is_the_published_46_2_percent(raw):
    # Chowdhery et al. 2022 (2204.02311), appendix B: 6144 TPU v4 of 275 TFLOP/s, 238.3k tokens/s.
    n_params, tokens_per_second, peak = 540.35e9, 238.3e3, 6144 * 275e12
    # PaLM's 48 heads of 256 are narrower than its d_model; attention costs what the heads span.
    heads = shape(raw, d_model=48 * 256, n_layers=118, d_head=256)
    flops = flops_per_token(heads, vocab_size=256_000, seq_len=2048)
    attention = flops["full_attention"] - flops["with_head"]
    assert attention == 12 * 118 * 48 * 256 * 2048
    mfu = tokens_per_second * (6 * n_params + attention) / peak
    assert mfu == pytest.approx(0.4623, abs=5e-4)
    assert tokens_per_second * 6 * n_params / peak == pytest.approx(0.4573, abs=5e-4)


def test_tied_head_costs_the_same_flops_and_fewer_parameters(raw):
    tied = shape(raw, tied_head=True)
    untied = shape(raw, tied_head=False)
    for name in ("non_embedding", "with_head", "causal_attention", "full_attention"):
        pair = [flops_per_token(m, vocab_size=99, seq_len=32)[name] for m in (tied, untied)]
        assert pair[0] == pair[1]
    counts = [param_groups(m, vocab_size=99, seq_len=32).total for m in (untied, tied)]
    assert counts[0] - counts[1] == 99 * 32


def test_mean_keys_of_a_window_is_the_average_over_positions():
    seq_len, window = 2048, 300
    exact = sum(min(i + 1, window) for i in range(seq_len)) / seq_len
    full, causal = mean_keys(seq_len, window)
    assert full == window
    assert causal == pytest.approx(exact, rel=2e-3)  # the convention drops the diagonal's half
    assert mean_keys(seq_len, None) == (2048.0, 1024.0)
