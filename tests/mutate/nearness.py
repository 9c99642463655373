"""Which test files to run for a line: those that name what stands there first, the fast before the
slow.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from .imports import Imports
from .operators import last_name
from .users import Users

#: What a folder of tests costs, in steps: a test that much nearer is worth running first.
_COSTS = {"unit": 0, "machine": 2, "cluster": 4, "long": 6}
_COST_OF_OTHER_FOLDERS = 2
_COST_OF_NO_FOLDER = 6
#: What it is worth, in steps, that a test file bears the name of the module or of the folder it is
#: in, or stands in a folder of the package's name.
_SAME_NAME, _SAME_PACKAGE = 3, 1
#: Representative runs, which say whether anything is computed otherwise, and how many files come
#: before them: by names they are far from everything.
_RUNS, _BEFORE_RUNS = "tests.test_guard", 4


class Nearness:
    """The test files of a checkout by their distance from a line, in uses and imports."""

    def __init__(self, imports: Imports, users: Users) -> None:
        self._imports = imports
        self._users = users
        self._importers: dict[str, set[str]] = {}
        self._reach: dict[str, int] = {}
        for module in imports.paths:
            needed = imports.dependencies(module) | set(self._fixtures(module))
            self._reach[module] = len(needed)
            for other in needed:
                self._importers.setdefault(other, set()).add(module)

    def test_files(self, module: str, line: int) -> list[Path]:
        """Relative to the checkout, nearest first.

        A file is as far as its tests are from the definition around the line, by names; one that
        only imports the module is farther than all of those.  Slow folders count as farther, files
        that bear the module's name as nearer.  Among equals the one that imports least comes first.
        The representative runs of ``tests/guard.py`` come behind the nearest few.
        """
        by_import = self._imported(module)
        by_name: dict[str, int] = {}
        for (user, _), steps in self._users.steps(self._users.at(module, line)).items():
            by_name[user] = min(steps, by_name.get(user, steps))
        farther = max(by_name.values(), default=0)
        package, *rooms = (part.strip("_") for part in module.split("."))

        def order(test: str) -> tuple[int, int, str]:
            _, *folders, name = test.split(".")
            away = by_name.get(test, by_import.get(test, 0) + farther)
            cost = _COSTS.get(folders[0], _COST_OF_OTHER_FOLDERS) if folders else _COST_OF_NO_FOLDER
            same = any(room in name for room in rooms if room != package)
            worth = _SAME_NAME * same + _SAME_PACKAGE * (package in folders)
            return away + cost - worth, self._reach[test], test

        tests = [found for found in {*by_import, *by_name} if _is_test(found)]
        nearest = sorted(tests, key=order)
        if _RUNS in nearest[_BEFORE_RUNS:]:
            nearest.remove(_RUNS)
            nearest.insert(_BEFORE_RUNS, _RUNS)
        paths = [self._imports.paths[test] for test in nearest]
        return [path.relative_to(self._imports.root) for path in paths]

    def _imported(self, module: str) -> dict[str, int]:
        """Every module that imports a module, directly or not, with the fewest steps."""
        distance = {module: 0}
        waiting = [module]
        for at in waiting:
            for importer in sorted(self._importers.get(at, ())):
                if importer not in distance:
                    distance[importer] = distance[at] + 1
                    waiting.append(importer)
        return distance

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
