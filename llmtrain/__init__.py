"""llmtrain: find compute-optimal language models by experiment."""

__version__ = "0.1.0"
