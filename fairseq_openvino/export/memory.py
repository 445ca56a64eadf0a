"""Memory between the stages of an export."""

from __future__ import annotations

import ctypes
import gc
import sys


def release() -> None:
    """Give dropped weights back to the system.

    Models hold reference cycles, and glibc keeps freed blocks of up to 32 MB, which most weights are.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)
