"""Fairseq's data configuration: a YAML file of any origin, read in bounded time and space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairseq_openvino.atomic import read_whole

MAX_BYTES = 64 << 10
MAX_DEPTH = 32
MAX_NODES = 10_000
"""Of the document with every alias written out."""


def read_yaml(path: Path) -> Any:
    """Content of a YAML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no YAML, holds more than data, or too much of it.
        ImportError: there is no PyYAML.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses brackets in brackets early: PyYAML looks at each of them again and again."""

        def fetch_flow_collection_start(self, kind: Any) -> None:
            if self.flow_level == MAX_DEPTH:
                raise yaml.YAMLError(f"more than {MAX_DEPTH} brackets in each other")
            super().fetch_flow_collection_start(kind)

    content = read_whole(path, MAX_BYTES).decode("utf-8-sig")
    try:
        loader = Loader(content)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (RecursionError, OverflowError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"a document that cannot be read ({type(error).__name__})") from error


def _count(node: Any, counts: dict[int, int]) -> int:
    """Nodes of a tree whose branches may be the same: an alias can stand for many of another one."""
    if id(node) not in counts:
        counts[id(node)] = MAX_NODES  # if it is met again before it is counted, it contains itself
        value = node.value if isinstance(node.value, list) else ()
        parts = [part for item in value for part in (item if isinstance(item, tuple) else (item,))]
        counts[id(node)] = 1 + sum(_count(part, counts) for part in parts)
    if counts[id(node)] > MAX_NODES:
        raise ValueError(f"a document of more than {MAX_NODES} values")
    return counts[id(node)]
