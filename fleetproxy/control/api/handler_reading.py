"""What a handler reads of a request, told by its source: query parameters and the type of its body.

A handler reads where it reads (`reading.hours(request, 24)`, `reading.body(request, Shape, ...)`); nothing is written
twice for the API document.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import msgspec

Schema = dict[str, Any]


class Reads(msgspec.Struct):
    """What a handler reads of a request."""

    query: dict[str, Schema]
    #: The type of its JSON body; None when it reads none.
    body: Any = None


_PERIODS = {"hours": {"type": "number"}, "limit": {"type": "integer"}}


def read(function: Callable[..., Any], depth: int = 2) -> Reads:
    """What a function reads, and the functions of its module that it gives the request to."""
    reads = Reads({})
    tree = _tree(function)
    names = getattr(function, "__globals__", {})
    if tree is None:
        return reads
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        callee = node.func
        if isinstance(callee, ast.Attribute) and callee.attr == "get" and _is_query(callee.value, tree):
            if node.args and isinstance(node.args[0], ast.Constant):
                reads.query.setdefault(str(node.args[0].value), {"type": "string"})
        elif isinstance(callee, ast.Name) and _gets_request(node):
            if callee.id in _PERIODS:
                default = node.args[1] if len(node.args) > 1 else None
                known = {"default": default.value} if isinstance(default, ast.Constant) else {}
                reads.query[callee.id] = {**_PERIODS[callee.id], **known}
            elif callee.id == "body" and len(node.args) > 1:
                reads.body = _type(node.args[1], names) if reads.body is None else reads.body
            elif depth and getattr(names.get(callee.id), "__module__", "") == function.__module__:
                further = read(names[callee.id], depth - 1)
                reads.query = further.query | reads.query
                reads.body = reads.body if reads.body is not None else further.body
    return reads


def _type(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The type that an expression names: `Shape`, `list[Shape]`, `dict[str, Any]`."""
    if isinstance(node, ast.Name):
        return names.get(node.id, getattr(builtins, node.id, Any))
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _type(node.value, names)[tuple(_type(part, names) for part in inner)]
    return Any


@cache
def _tree(function: Callable[..., Any]) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


def _gets_request(call: ast.Call) -> bool:
    return any(isinstance(argument, ast.Name) and argument.id == "request" for argument in call.args)


def _is_query(value: ast.expr, tree: ast.AST) -> bool:
    """`request.query_params`, or a name that was given to it."""
    if isinstance(value, ast.Attribute):
        return value.attr == "query_params"
    if not isinstance(value, ast.Name):
        return False
    return any(
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "query_params"
        and any(isinstance(target, ast.Name) and target.id == value.id for target in node.targets)
        for node in ast.walk(tree)
    )
