"""Who uses which definition, directly and through others."""

from __future__ import annotations

from collections.abc import Iterable

from .imports import Imports, Target


class Users:
    """The definitions of a checkout's modules, each with those that name it."""

    def __init__(self, imports: Imports) -> None:
        self._defined = imports.defined
        self._users: dict[Target, set[Target]] = {}
        for module, defined in imports.defined.items():
            for name, statement in defined.items():
                for used in imports.used(module, statement):
                    self._users.setdefault(used, set()).add((module, name))

    def at(self, module: str, line: int) -> list[Target]:
        """The definitions of a module that a line belongs to."""
        return [
            (module, name)
            for name, statement in self._defined[module].items()
            if statement.lineno <= line <= (statement.end_lineno or line)
        ]

    def steps(self, targets: Iterable[Target]) -> dict[Target, int]:
        """Every definition that reaches one of ``targets`` by names, with the fewest steps."""
        found = dict.fromkeys(targets, 0)
        waiting = list(found)
        for target in waiting:
            for user in sorted(self._users.get(target, ()), key=str):
                if user not in found:
                    found[user] = found[target] + 1
                    waiting.append(user)
        return found
