"""Train speech-to-text models in Fairseq, run them on OpenVINO.

One table of letters is used in every comment and docstring:

    N utterances in a batch    K beams             R = N * K rows of the decoder
    T input frames             F feature bins      S encoder output frames
    l tokens in one call       L tokens before it  V vocabulary size
    D model width              H attention heads   dh = D / H
    P decoder layers           C candidates per row

Importing the package loads neither torch nor fairseq nor openvino.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairseq_openvino.loading import load_model

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from fairseq_openvino.loading import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _accept_user_dir_spellings() -> None:
    """Let `--user-dir fairseq_openvino` succeed after the package was imported by name.

    Fairseq compares the user directory's spelling with `__path__` (`fairseq/utils.py:504`), and its
    fallback spells site-packages as `<fairseq>/../fairseq_openvino`.
    """
    package = os.path.dirname(os.path.abspath(__file__))
    fallback = os.path.join(os.path.dirname(package), "fairseq", "..", os.path.basename(package))
    for spelling in (package, fallback):
        if spelling not in __path__:
            __path__.append(spelling)


_accept_user_dir_spellings()
