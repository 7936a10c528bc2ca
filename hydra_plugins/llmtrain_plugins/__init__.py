"""Hydra finds plugins here; the code behind them is llmtrain/sweep."""

from llmtrain.sweep import launcher, slurm, sweeper


class PoolLauncher(launcher.PoolLauncher):
    """`hydra/launcher=pool`."""


class SlurmLauncher(slurm.SlurmLauncher):
    """`hydra/launcher=slurm`."""


class IsoflopSweeper(sweeper.IsoflopSweeper):
    """`hydra/sweeper=isoflop`."""
