"""Which keywords a call may leave out: those with a default in every definition of that name."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from .operators import definitions, last_name

#: Keywords of NumPy, Python and numba that have defaults wherever the product uses them.
LIBRARY = {
    "axis",
    "dtype",
    "keepdims",
    "key",
    "reverse",
    "default",
    "copy",
    "order",
    "kind",
    "side",
    "endpoint",
    "initial",
    "start",
    "minlength",
    "return_index",
    "return_counts",
    "return_inverse",
    "exist_ok",
    "missing_ok",
    "parents",
    "maxsplit",
    "signed",
}


class Defaults:
    """Keyword defaults of functions and dataclasses, by their names."""

    def __init__(self, trees: Iterable[ast.Module]) -> None:
        self._found: dict[str, set[str]] = {}
        for tree in trees:
            for name, node in definitions(tree):
                if isinstance(node, ast.ClassDef):
                    if any(last_name(mark) == "dataclass" for mark in node.decorator_list):
                        self._note(name, _fields(node))
                    for statement in node.body:
                        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                            self._note(name, _parameters(statement))
                else:
                    self._note(name, _parameters(node))

    def __call__(self, call: ast.Call, keyword: str) -> bool:
        """Whether ``call`` may leave ``keyword`` out; an unknown function only a library's."""
        name = last_name(call.func)
        if name == "replace":
            return True
        known = self._found.get(name)
        return keyword in (LIBRARY if known is None else known)

    def _note(self, name: str, keywords: set[str]) -> None:
        self._found[name] = self._found.get(name, keywords) & keywords


def _fields(node: ast.ClassDef) -> set[str]:
    return {
        last_name(statement.target)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and statement.value is not None
    }


def _parameters(node: ast.FunctionDef) -> set[str]:
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    found = {argument.arg for argument in positional[len(positional) - len(given.defaults) :]}
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        if default is not None:
            found.add(argument.arg)
    return found
