"""`transformers`, importable where torchaudio is installed but broken.

A torchaudio built for another torch (its CUDA build with the CPU build of torch) raises OSError when
imported, and transformers imports it whenever it is installed, for functions Whisper does not use.
"""

from __future__ import annotations

import sys


def _hide_broken_torchaudio() -> None:
    try:
        import torchaudio  # noqa: F401
    except ImportError:
        return
    except OSError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # "not installed" to importlib
        known = sys.modules.get("transformers.utils.import_utils")
        if known is not None:  # Fairseq has imported transformers before: it remembers the answer
            known.is_torchaudio_available.cache_clear()


_hide_broken_torchaudio()

import transformers  # noqa: E402

__all__ = ["transformers"]
