"""Durations and sizes in words."""

from __future__ import annotations


def show_duration(seconds: float) -> str:
    """`48 s`, `12 min`, `3.5 h`."""
    seconds = max(seconds, 0.0)  # the clock may have been set back meanwhile
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_bytes(count: float) -> str:
    """`35 MB`, `1.2 GB`."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
