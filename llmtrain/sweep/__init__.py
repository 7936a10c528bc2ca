"""Which cells a sweep has, and running them: grid, ledger, pool, and the two Hydra plugins."""
