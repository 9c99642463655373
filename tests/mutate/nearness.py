"""Which test files to run for a module: those that import it first, then its importers' ones."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from .imports import Imports
from .operators import last_name


class Nearness:
    """The test files of a checkout by their distance from a module, in imports."""

    def __init__(self, imports: Imports) -> None:
        self._imports = imports
        self._importers: dict[str, set[str]] = {}
        self._reach: dict[str, int] = {}
        for module in imports.paths:
            needed = imports.dependencies(module) | set(self._fixtures(module))
            self._reach[module] = len(needed)
            for other in needed:
                self._importers.setdefault(other, set()).add(module)

    def test_files(self, module: str) -> list[Path]:
        """Relative to the checkout, nearest first; among equals the one that shares the module's
        name, then those in a folder of its package's name, then the one that imports least.
        """
        distance = {module: 0}
        waiting = [module]
        for at in waiting:
            for importer in sorted(self._importers.get(at, ())):
                if importer not in distance:
                    distance[importer] = distance[at] + 1
                    waiting.append(importer)
        package, stem = module.split(".")[0], module.rpartition(".")[2].strip("_")

        def order(test: str) -> tuple[int, bool, bool, int, str]:
            *folders, name = test.split(".")
            return distance[test], stem not in name, package not in folders, self._reach[test], test

        tests = [found for found in distance if _is_test(found)]
        paths = [self._imports.paths[test] for test in sorted(tests, key=order)]
        return [path.relative_to(self._imports.root) for path in paths]

    def _fixtures(self, module: str) -> Iterator[str]:
        """The conftest files above a test file whose fixtures it asks for."""
        if not _is_test(module):
            return
        tree = self._imports.trees[module]
        asked = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        asked |= {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        parts = module.split(".")
        for n in range(1, len(parts)):
            conftest = ".".join([*parts[:n], "conftest"])
            for node in ast.walk(self._imports.trees.get(conftest, ast.Module([], []))):
                if isinstance(node, ast.FunctionDef) and _is_fixture(node):
                    everywhere = any("autouse" in ast.unparse(m) for m in node.decorator_list)
                    if everywhere or node.name in asked:
                        yield conftest


def _is_test(module: str) -> bool:
    # this tool's own tests name modules, and test none of them
    *folders, name = module.split(".")
    return folders[:1] == ["tests"] and name.startswith("test_") and "mutate" not in folders


def _is_fixture(node: ast.FunctionDef) -> bool:
    return any(last_name(mark) == "fixture" for mark in node.decorator_list)
