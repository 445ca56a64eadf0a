"""Command-line flags from dataclasses: names, types, defaults and help are those of the fields.

A field's help is the docstring below it. Flags that are left out stay out of the namespace, so that the
dataclass is the only place of a default.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints


def flag(
    *,
    name: str | None = None,
    metavar: str | None = None,
    choices: Collection[str] | None = None,
    parse: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Metadata of a field whose flag says more than name and type.

    Args:
        name: in place of the field's own.
        metavar: what stands for the value in the help.
        choices: the only values.
        parse: makes the value from text; it may raise `ValueError`.
    """
    return {"name": name, "metavar": metavar, "choices": choices, "parse": parse}


def add_flags(
    parser: argparse._ActionsContainer,
    options: type[Any],
    only: Collection[str] = (),
    prefix: str = "--",
    **texts: str,
) -> None:
    """Add the fields of a dataclass as flags.

    Args:
        parser: a parser or a group of it.
        options: the dataclass.
        only: which fields; default: all.
        prefix: of the flags' names.
        texts: help of a field in place of its docstring.
    """
    hints, help_texts = get_type_hints(options), docstrings(options)  # type: ignore[arg-type]
    for field in dataclasses.fields(options):
        if only and field.name not in only:
            continue
        given = {key: value for key, value in field.metadata.items() if value is not None}
        name = prefix + given.pop("name", field.name.replace("_", "-"))
        parse = given.pop("parse", None)
        given["help"] = _help(texts.get(field.name, help_texts[field.name]), field.default)
        kind, many = _value_type(hints[field.name])
        if kind is bool:
            can_be_off = field.default is not False
            given["action"] = argparse.BooleanOptionalAction if can_be_off else "store_true"
        elif parse is not None:
            given["type"] = _checked(parse)
        elif many:
            given["type"] = _checked(partial(_split, kind))
        else:
            given["type"] = kind
        parser.add_argument(
            name, dest=_dest(prefix, field.name), default=argparse.SUPPRESS, **given
        )


def given(namespace: argparse.Namespace, options: type[Any], prefix: str = "--") -> dict[str, Any]:
    """Those fields of a dataclass that were on the command line."""
    names = {_dest(prefix, field.name): field.name for field in dataclasses.fields(options)}
    return {names[dest]: value for dest, value in vars(namespace).items() if dest in names}


def spelled(error: Exception, parser: argparse.ArgumentParser, prefix: str = "--") -> str:
    """The message of an error, with the parser's own flag in place of the field that it names."""
    field = getattr(error, "field", None)
    for action in parser._actions if field else ():
        if action.dest == _dest(prefix, str(field)) and action.option_strings:
            return str(error).replace(f" in {field}:", f" in {action.option_strings[-1]}:", 1)
    return str(error)


def _dest(prefix: str, name: str) -> str:
    """Where a namespace holds a field: `--ov-` and `device` give `ov_device`."""
    return prefix.lstrip("-").replace("-", "_") + name


@cache
def docstrings(options: type[Any]) -> dict[str, str]:
    """The text below each field of a dataclass, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(options))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for node, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[node.target.id] = " ".join(str(after.value.value).split())
    return found


def _help(text: str, default: Any) -> str:
    """With the default, where it says something."""
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    silent = shown is None or shown is False or shown is dataclasses.MISSING or shown == ""
    if not silent and "efault" not in text:
        text = f"{text.removesuffix('.')} (default: {shown})"
    return text.removesuffix(".").replace("%", "%%").replace("`", "")


def _value_type(hint: Any) -> tuple[Any, bool]:
    """What text is turned into: a type, and whether the field is a tuple of it."""
    if get_origin(hint) in (types.UnionType, Union):
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    return (hint if hint in (bool, int, float, str, Path) else str), False


def _split(kind: Callable[[str], Any], text: str) -> tuple[Any, ...]:
    return tuple(map(kind, text.split(",")))


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """With an error that argparse shows as it is."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"got {text!r}: {error}") from error

    return read
