"""Shim for options that Fairseq gives to `eval`; applied by `compat.apply_shims`.

They come from checkpoints: `conv_feature_layers` of wav2vec 2.0 could run code, and `adaptive_softmax_cutoff`
of any Transformer.
"""

from __future__ import annotations

import ast
import operator
import sys
from collections.abc import Callable
from typing import Any

from fairseq_openvino.errors import UnsafeCheckpointError, failure

OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Mult: operator.mul,
}
SEQUENCES = {ast.List: list, ast.Tuple: tuple}
MAX_REPEATED = 100_000
"""Items of a sequence that is repeated: models have fewer layers."""
MAX_CHARACTERS = 200
"""Of a text, in the message about it."""


def literal(text: Any) -> Any:
    """The value of an option in Python's notation, as `[(512, 10, 5)] + [(512, 3, 2)] * 4`.

    Raises:
        TypeError: it is no text, as of `eval`.
        UnsafeCheckpointError: it is more than numbers, texts, tuples, lists and dictionaries, `+` and `*`.
    """
    if not isinstance(text, str):
        raise TypeError(f"a text expected, got {type(text).__name__}")
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise failure(
            UnsafeCheckpointError, "Reading an option of Fairseq", f"{text[:MAX_CHARACTERS]!r}",
            "numbers, texts, tuples, lists and dictionaries, added or repeated", "what eval would run",
            "Write it so with --model-overrides",
        ) from error  # fmt: skip


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _value(node.left), _value(node.right)
        for part, times in ((left, right), (right, left)):
            is_repeated = isinstance(node.op, ast.Mult) and isinstance(part, (str, list, tuple))
            if is_repeated and len(part) * times > MAX_REPEATED:
                raise ValueError(f"more than {MAX_REPEATED} items")
        return OPERATORS[type(node.op)](left, right)
    if type(node) in SEQUENCES:
        return SEQUENCES[type(node)](map(_value, node.elts))  # type: ignore[attr-defined]
    return ast.literal_eval(node)


def literal_options() -> None:
    """Options that Fairseq gives to `eval` are read as what they are, and run nothing.

    models/wav2vec/wav2vec2.py:314, utils.py:791 and 20 others evaluate texts of checkpoints. In all modules
    of Fairseq the name `eval` becomes `literal`, also in those that are loaded later, when a model is built.
    Versions: all.
    """
    from fairseq import models

    build_model = models.build_model

    def build(*args: Any, **options: Any) -> Any:
        _replace_eval()
        return build_model(*args, **options)

    models.build_model = build
    _replace_eval()


def _replace_eval() -> None:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("fairseq", "fairseq_cli"):
            vars(module).setdefault("eval", literal)
