"""Memory between the stages of an export."""

from __future__ import annotations

import ctypes
import sys


def trim() -> None:
    """Give freed weights back to the system: glibc keeps blocks of up to 32 MB, as most of them are."""
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if malloc_trim is not None:
            malloc_trim(0)
