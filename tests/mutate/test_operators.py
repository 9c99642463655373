"""What each operator makes of a line, and what none of them touches."""

from __future__ import annotations

import ast

import pytest

from .defaults import Defaults
from .mutant import replace_bytes
from .operators import edits
from .text import Text


def becomes(source: str, known: str = "") -> set[str]:
    """Every mutated source."""
    text = Text(source.encode())
    found = edits(text, Defaults([ast.parse(known)]))
    return {replace_bytes(text.source, edit.start, edit.end, edit.text).decode() for edit in found}


@pytest.mark.parametrize(
    ("source", "mutated"),
    [
        ("a < b", {"a <= b", "a >= b"}),
        ("a  <=  (b) == c", {"a  <  (b) == c", "a  >  (b) == c", "a  <=  (b) != c"}),
        ("a not in b", {"a in b"}),
        ("a is None", {"a is not None"}),
        ("(a) + (b)", {"(a) - (b)"}),
        ("größe * b", {"größe // b"}),
        ("a << b | c", {"a >> b | c", "a << b & c"}),
        ("a and b and c", {"a or b and c", "a and b or c"}),
        ("x = not(a)", {"x = (a)"}),
        ("x = not a", {"x = a"}),
        ("x = 7", {"x = 6", "x = 8"}),
        ("x = 0", {"x = 1"}),
        ("x = 1", {"x = 0", "x = 2"}),
        ("x = True", {"x = False"}),
        ("x = 2.5", {"x = 3.5"}),
        ("x = 1e9", {"x = 2000000000.0"}),
        ("x = np.minimum(a, b)", {"x = np.maximum(a, b)"}),
        ("x = a[b:c]", {"x = a[:c]", "x = a[b:]"}),
        ("x += y", {"x -= y"}),
        ("x[i] = y", {"pass"}),
        ("x[i] += y", {"pass", "x[i] -= y"}),
        ("f(x)", {"pass"}),
        ("self.tell(token)", {"pass"}),
        ("phase(text, n)", {"pass"}),
        ("raise ValueError(f'{1 + 2}')", {"pass"}),
        ("for _ in a:\n    continue", {"for _ in a:\n    break", "for _ in a:\n    pass"}),
        ("for _ in a:\n    break", {"for _ in a:\n    pass"}),
        ("def f() -> int | None:\n    return a", {"def f() -> int | None:\n    return None"}),
        ("def f() -> None:\n    return", {"def f() -> None:\n    pass"}),
        (
            "def f(a: int = 1) -> int:\n    return a",
            {"def f(a: int = 0) -> int:\n    return a", "def f(a: int = 2) -> int:\n    return a"},
        ),
        ("x = np.sum(a, axis=b, out=c)", {"x = np.sum(a,  out=c)"}),
    ],
)
def test_each_operator(source: str, mutated: set[str]) -> None:
    assert becomes(source) == mutated


@pytest.mark.parametrize(
    "source",
    [
        '"""A 1 < 2 text."""',
        "import a.b as c",
        "x: Literal[1] = y",
        "def f(a: Array[1]) -> Literal[2]: ...",
        "__all__ = ['a'] + ['b']",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    x = 1",
        "if __name__ == '__main__':\n    main(1)",
        "class A(Protocol):\n    x = 1",
        "T = TypeVar('T', bound=1)",
        "x = f'{a + 1}'",
        "tell(f'{a + 1} of {b} ...')",
        "tell('compiling' if a else f'{b + 1}')",
        "self.phase(COMPILING)",
        "listener.phase(text)",
        "x = 'a' + b",
        "logger.info('text', 1)",
        "assert a < b",
        "x = zip(a, b, strict=True)",
        "x = axes.bar(a, b, lw=0.5)",
        "x = typer.Option(1, help='text')",
        "x = cast(int | None, a)",
        "f: TypeAlias = int | float",
    ],
)
def test_what_is_left_alone(source: str) -> None:
    assert becomes(source) == set()


def test_a_keyword_goes_where_every_definition_has_a_default() -> None:
    known = "def f(a, b=g): ...\nclass A:\n    def h(self, *, c, d=g): ...\n"
    assert becomes("x = f(a=y, b=z)", known) == {"x = f(a=y, )"}
    assert becomes("x = o.h(c=y, d=z)", known) == {"x = o.h(c=y, )"}
    assert becomes("x = f(a=y, b=z)", known + "def f(a, b): ...") == set()
    fields = "@dataclass(frozen=True)\nclass P:\n    a: int\n    b: int = g\n"
    assert becomes("x = P(a=y, b=z)", fields) == {"x = P(a=y, )"}


def test_an_edit_keeps_the_lines_and_everything_around() -> None:
    source = "x = 'ä'; f(\n    a,  # why\n)\ny = z\n"
    assert becomes(source) == {"x = 'ä'; pass\n\n\ny = z\n"}
