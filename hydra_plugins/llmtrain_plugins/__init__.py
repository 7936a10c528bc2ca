"""Hydra finds plugins here; the code behind them is llmtrain/sweep."""

from llmtrain.sweep import launcher, sweeper


class PoolLauncher(launcher.PoolLauncher):
    """`hydra/launcher=pool`."""


class IsoflopSweeper(sweeper.IsoflopSweeper):
    """`hydra/sweeper=isoflop`."""
