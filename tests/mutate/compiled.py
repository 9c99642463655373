"""Functions that numba compiles, and which of its caches a change of the source makes stale.

Numba keeps one index per function beside its file and compiles anew when that file changes; it does
not notice a change in another file, of a function that is called or of a constant that is read.
"""

from __future__ import annotations

import ast

from .imports import Imports
from .operators import last_name
from .users import Users


def is_compiled(node: ast.stmt) -> bool:
    """Whether a decorator has numba compile the function."""
    return isinstance(node, ast.FunctionDef) and any(
        last_name(mark).startswith(("jit", "njit")) for mark in node.decorator_list
    )


class CompiledFunctions:
    """Numba's caches of a checkout's compiled functions."""

    def __init__(self, imports: Imports, users: Users) -> None:
        self._imports = imports
        self._users = users

    def stale(self, module: str, line: int) -> set[str]:
        """Prefixes (paths relative to the checkout, ``folder/__pycache__/file.function-``) of the
        caches that a change in a line makes stale.

        The mutated file's own are all among them if any is: they go with the file's time stamp.
        """
        reached = set(self._users.steps(self._users.at(module, line)))
        reached |= {(module, name) for name in self._imports.defined[module]}
        found = set()
        for where, name in reached:
            statement = self._imports.defined[where].get(name or "")
            if statement is not None and is_compiled(statement):
                path = self._imports.paths[where].relative_to(self._imports.root)
                found.add(f"{path.parent.as_posix()}/__pycache__/{path.stem}.{name}-")
        return found


def compiled_lines(tree: ast.Module) -> set[int]:
    """The lines of a module's compiled functions."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and is_compiled(node):
            found.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found
