"""Who imports whom: modules of a checkout, names followed through packages' faces and stubs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

#: A definition: its module and its name there; the name is None for the module itself.
Target = tuple[str, str | None]
_SKIPPED = {"__pycache__", "build", "dist"}


class Imports:
    """The modules below ``root`` by dotted name, and what each name in them stands for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: dict[str, Path] = {}
        self.trees: dict[str, ast.Module] = {}
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if not any(part in _SKIPPED or part.startswith(".") for part in parts):
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                self.paths[name] = path
                self.trees[name] = ast.parse(path.read_bytes())
        self._stubs = {
            name: ast.parse(path.with_suffix(".pyi").read_bytes())
            for name, path in self.paths.items()
            if path.with_suffix(".pyi").exists()
        }
        self._packages = {
            ".".join(name.split(".")[:n])
            for name in self.paths
            for n in range(1, name.count(".") + 2)
        }
        self._bindings = {name: dict(self._bound(name)) for name in self.paths}
        self.defined = {name: top_level(tree) for name, tree in self.trees.items()}

    def is_face(self, module: str) -> bool:
        """Whether a module only hands names on: a package's ``__init__``, or one with a stub."""
        return self.paths[module].name == "__init__.py" or module in self._stubs

    def chain(self, module: str, name: str) -> list[Target]:
        """The definitions a name of a module stands for, the last one where it is defined."""
        found: list[Target] = []
        target: Target = (module, name)
        while target not in found:
            found.append(target)
            where, what = target
            if what is None:
                break
            bound = self._bindings.get(where, {}).get(what)
            if bound is not None:
                target = bound
            elif f"{where}.{what}" in self._packages:
                target = (f"{where}.{what}", None)
            else:
                break
        return found

    def used(self, module: str, tree: ast.AST) -> Iterator[Target]:
        """Every definition of the checkout that a part of a module's tree names."""
        own = self._bindings[module]
        inner: set[int] = set()
        for node in ast.walk(tree):
            if id(node) in inner:
                continue
            names: list[str] = []
            part: ast.AST = node
            while isinstance(part, ast.Attribute):
                inner.add(id(part.value))
                names.append(part.attr)
                part = part.value
            if not isinstance(part, ast.Name):
                continue
            if part.id not in own:
                yield module, part.id
                continue
            found = self.chain(module, part.id)
            # an attribute of a module is a name of that module
            for name in reversed(names):
                where, what = found[-1]
                if what is not None:
                    break
                found += self.chain(where, name)
            yield from (target for target in found[1:] if target[0] in self.paths)

    def dependencies(self, module: str) -> set[str]:
        """The modules that a module imports, through faces where the names are defined.

        A module named by a string (``python -m``, a lazy import) counts as imported.
        """
        tree = self.trees[module]
        targets = list(self.used(module, tree))
        for node in _imports(tree, typed=False):
            names = [name for name, _ in self._names(module, node)]
            targets += [target for name in names for target in self.chain(module, name)[1:]]
            if isinstance(node, ast.Import):
                targets += [(alias.name, None) for alias in node.names]
        for part in ast.walk(tree):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and "." in part.value:
                targets.append((part.value, None))
        found = set()
        for where, what in targets:
            if where in self.paths and where != module:
                itself = what is None or what in self.defined[where] or not self.is_face(where)
                found |= {where} if itself else set()
        return found

    def _bound(self, module: str) -> Iterator[tuple[str, Target]]:
        # a lazy face names its types for mypy in a stub or under TYPE_CHECKING
        typed = "__getattr__" in top_level(self.trees[module])
        for tree in (self._stubs.get(module), self.trees[module]):
            for node in _imports(tree, typed) if tree is not None else ():
                yield from self._names(module, node)

    def _names(
        self, module: str, node: ast.Import | ast.ImportFrom
    ) -> Iterator[tuple[str, Target]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                # "import a.b" binds a; a's attribute b is the module a.b
                name = alias.name if alias.asname else alias.name.split(".")[0]
                where = self._located(module, name)
                if where is not None:
                    yield alias.asname or name, (where, None)
            return
        base = self._base(module, node)
        if base is None:
            return
        for alias in node.names:
            submodule = f"{base}.{alias.name}"
            inside = base == module and submodule in self._packages
            yield alias.asname or alias.name, (submodule, None) if inside else (base, alias.name)

    def _base(self, module: str, node: ast.ImportFrom) -> str | None:
        if not node.level:
            return self._located(module, node.module or "")
        parts = module.split(".")
        inside = self.paths[module].name == "__init__.py"
        kept = parts[: len(parts) - node.level + inside]
        return ".".join([*kept, *(node.module.split(".") if node.module else ())])

    def _located(self, module: str, name: str) -> str | None:
        if name in self._packages:
            return name
        if not module.startswith("tests.") or name in sys.stdlib_module_names:
            return None
        # pytest puts a test file's own folder on the path
        beside = f"{module.rpartition('.')[0]}.{name}"
        if beside in self.paths:
            return beside
        found = [other for other in self.paths if other.endswith(f".{name}")]
        found = [other for other in found if other.startswith("tests.")]
        return found[0] if len(found) == 1 else None


def top_level(tree: ast.Module) -> dict[str, ast.stmt]:
    """The names a module defines itself, each with the statement that does."""
    found: dict[str, ast.stmt] = {}
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found[statement.name] = statement
        elif not isinstance(statement, ast.Import | ast.ImportFrom):
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    found[node.id] = statement
    return found


def _imports(tree: ast.Module, typed: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and not typed and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        else:
            waiting += ast.iter_child_nodes(node)
