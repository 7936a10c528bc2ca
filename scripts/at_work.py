"""What a worker of this process has reported of its cell."""

import time
from typing import Any

from pace import Pace
from sweep_view import Slot


class AtWork:
    """A cell that a worker of this process is at."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self.pace = Pace()
        self.report: dict[str, Any] = {}
        self.share: float | None = None
        self.left_s: float | None = None

    def take(self, report: dict[str, Any]) -> None:
        """Note what the cell reports."""
        self.report = report
        self.share = report["step"] / report["n_steps"]
        self.left_s = self.pace.left(self.share)

    def slot(self, title: str) -> Slot:
        """Return what is shown of it."""
        return Slot(
            title=title,
            share=self.share,
            loss=self.report.get("loss"),
            tokens_per_second=self.report.get("tokens_per_second"),
            mfu=self.report.get("mfu"),
            left_s=self.left_s,
        )
