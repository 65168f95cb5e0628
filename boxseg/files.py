"""Files that are whole whenever somebody reads them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside and rename, so that readers see the old file or the new one, never a part."""
    scratch = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(3)}")
    scratch.write_bytes(content.encode() if isinstance(content, str) else content)
    scratch.replace(path)
