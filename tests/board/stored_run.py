"""A run as wandb's server keeps it."""

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StoredRun:
    """One run as the server knows it."""

    name: str
    project: str
    group: str = ""
    job_type: str = ""
    display_name: str = ""
    state: str = "running"
    tags: list[str] = field(default_factory=list)
    config: str = "{}"
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exported: int = 0
    """Rows of the history that lie in a parquet file; the rest is served live."""

    def node(self) -> dict[str, Any]:
        """The run as the API's queries return it."""
        return {
            "id": f"id-{self.name}",
            "projectId": 1,
            "name": self.name,
            "displayName": self.display_name,
            "tags": self.tags,
            "state": self.state,
            "config": self.config,
            "group": self.group,
            "jobType": self.job_type,
            "sweepName": None,
            "commit": None,
            "readOnly": False,
            "createdAt": "2026-11-21T00:00:00",
            "heartbeatAt": "2026-11-21T00:00:00",
            "description": "",
            "notes": "",
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(self.summary),
            "historyLineCount": len(self.history),
            "user": {"name": "me", "username": "me"},
            "historyKeys": {"lastStep": self.history[-1]["_step"] if self.history else -1},
        }
