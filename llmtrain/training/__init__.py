"""One run: model, optimizer, data, loop, checkpoints, metrics and record."""
