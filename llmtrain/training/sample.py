"""A short text from the trained model, for a look; nothing is measured on it."""

import torch

from llmtrain.corpus import tokenizer
from llmtrain.corpus.shards import Corpus
from llmtrain.spec.settings import TrainConfig
from llmtrain.training.model import Transformer

PROMPT_TOKENS = 32
SAMPLE_FILE = "sample.txt"


@torch.no_grad()
def sample_text(model: Transformer, corpus: Corpus, config: TrainConfig) -> str:
    """Return the beginning of the validation text as the model goes on with it."""
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(config.seed)
    prompt = [int(token) for token in corpus.val[:PROMPT_TOKENS]]
    tokens = torch.tensor([prompt], device=device)
    model.eval()
    for _ in range(config.evaluation.sample_tokens):
        logits = model(tokens[:, -config.seq_len.seq_len :])[:, -1].float()
        following = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
        tokens = torch.cat([tokens, following], dim=1)
    model.train()
    return tokenizer.load(corpus.directory).decode(tokens[0].tolist())
