"""The journal of a sweep: an append-only file of what happened to each trial, safe on disk line by line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class Journal:
    """Appends events to `journal.jsonl` and reads them again.

    Every line has `time` [s since 1970] and `event`: `sweep_start`, `trial_start` (with `trial`, `values`, `seed`),
    `trial_end` (with `trial`, `status`, `cause`), `sweep_end` (with `status`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **details: Any) -> None:
        """Append one event; it is on disk when this returns."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **details}) + "\n"
        torn = self.path.exists() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("ab") as file:
            file.write((("\n" if torn else "") + line).encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All events, oldest first; a line that a kill tore is left out."""
        events = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events
