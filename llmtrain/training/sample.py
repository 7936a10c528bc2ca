"""A short text from the trained model, for a look; nothing is measured on it."""

from collections.abc import Callable

import torch

from llmtrain.corpus import tokenizer
from llmtrain.corpus.shards import Corpus
from llmtrain.spec.settings import TrainConfig
from llmtrain.training.model import Transformer

PROMPT_TOKENS = 32
SAMPLE_FILE = "sample.txt"


@torch.no_grad()
def sample_text(
    model: Transformer, corpus: Corpus, config: TrainConfig, between: Callable[[], None]
) -> str:
    """Return the beginning of the validation text as the model goes on with it.

    `between` is called before every token.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(config.seed)
    tokens = [int(token) for token in corpus.val[:PROMPT_TOKENS]]
    # One shape for every step; the padding lies behind the last token, where a causal model does
    # not look.
    row = torch.zeros((1, config.seq_len.seq_len), dtype=torch.long, device=device)
    model.eval()
    with torch.compiler.set_stance("force_eager"):  # not worth a graph for a single row
        for _ in range(config.evaluation.sample_tokens):
            between()
            seen = tokens[-row.shape[1] :]
            row[0, : len(seen)] = torch.tensor(seen)
            logits = model(row)[0, len(seen) - 1].float()
            tokens.append(int(torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)))
    model.train()
    return tokenizer.load(corpus.directory).decode(tokens)
