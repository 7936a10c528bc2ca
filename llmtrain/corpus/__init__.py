"""Text becomes token shards: documents, tokenizers, held-out splits, order of training data."""
