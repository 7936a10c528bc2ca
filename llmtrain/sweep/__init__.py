"""Which cells a sweep has and running them: grid, ledger, pool, two Hydra launchers, a sweeper."""
