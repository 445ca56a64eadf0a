"""Progress bars on a terminal's stderr; nothing elsewhere."""

from __future__ import annotations

import sys
from typing import Any


def bar(description: str, total: int, unit: str = "utterances") -> Any:
    """A context manager with `update(n)`."""
    from tqdm import tqdm

    return tqdm(
        total=total, desc=description, unit=f" {unit}", file=sys.stderr, leave=False, disable=None
    )
