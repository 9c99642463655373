"""What a mutant may change: every edit of a module's code, not of its types, texts and help."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .text import Text

#: Operator tokens and what each becomes.
COMPARISONS = {
    "<": ("<=", ">="),
    "<=": ("<", ">"),
    ">": (">=", "<="),
    ">=": (">", "<"),
    "==": ("!=",),
    "!=": ("==",),
    "in": ("not in",),
    "not in": ("in",),
    "is": ("is not",),
    "is not": ("is",),
}
ARITHMETIC = {
    "+": "-",
    "-": "+",
    "*": "//",
    "//": "*",
    "/": "*",
    "%": "//",
    "<<": ">>",
    ">>": "<<",
    "&": "|",
    "|": "&",
    "^": "|",
}
NAMES = {
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "argmin": "argmax",
    "argmax": "argmin",
    "any": "all",
    "all": "any",
}

#: Calls whose arguments are types, texts or help.
UNTOUCHED_CALLS = {
    "TypeVar",
    "NewType",
    "ParamSpec",
    "Option",
    "Argument",
    "Typer",
    "print",
    "echo",
    "warn",
}
#: Calls that say what goes on, where their arguments are texts: ``tell(token)`` delivers.
TELLING_CALLS = {"phase", "tell"}
LOGGERS = {"log", "logger", "logging", "_log", "_logger", "warnings"}
#: Keywords that say something to people only.
TEXT_KEYWORDS = {"help", "metavar", "show_default", "rich_help_panel", "epilog", "title", "label"}
#: Keywords of Matplotlib that change how a picture looks, and not what it shows where.
LOOK_KEYWORDS = {
    "alpha",
    "bbox_to_anchor",
    "color",
    "colors",
    "figsize",
    "fontsize",
    "height_inches",
    "height_ratios",
    "inches",
    "linewidth",
    "linewidths",
    "loc",
    "ls",
    "lw",
    "markersize",
    "mew",
    "ms",
    "ncols",
    "pad",
    "padding",
    "s",
    "shrink",
    "textcoords",
    "xytext",
    "zorder",
}


@dataclass(frozen=True)
class Edit:
    """Bytes [start, end) of a source become ``text``."""

    start: int
    end: int
    text: str
    operator: str


#: Whether the function a call names has a default for a keyword.
HasDefault = Callable[[ast.Call, str], bool]


def edits(text: Text, has_default: HasDefault) -> list[Edit]:
    """Every edit of a module, in the order of its source."""
    finder = _Finder(text, has_default)
    finder.visit(text.tree)
    return sorted(finder.found, key=lambda edit: (edit.start, edit.end, edit.operator, edit.text))


def last_name(node: ast.expr) -> str:
    """``c`` of ``a.b.c``, ``c(...)`` or ``c``; empty for anything else."""
    if isinstance(node, ast.Call):
        return last_name(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _first_name(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and not isinstance(node.value, int | float)
    )


class _Finder(ast.NodeVisitor):
    def __init__(self, text: Text, has_default: HasDefault) -> None:
        self.text = text
        self.has_default = has_default
        self.found: list[Edit] = []
        self._returns: list[ast.expr | None] = []

    def _add(self, start: int, end: int, text: str, operator: str) -> None:
        self.found.append(Edit(start, end, text, operator))

    def _swap(self, start: int, end: int, table: dict[str, str], operator: str) -> None:
        for token in self.text.between(start, end):
            # "+" of "+=" too
            sign = token.text.removesuffix("=") if operator == "assignment" else token.text
            if sign in table:
                self._add(token.start, token.start + len(sign), table[sign], operator)

    def _replace(self, node: ast.stmt | ast.expr, text: str, operator: str) -> None:
        self._add(self.text.start(node), self.text.end(node), text, operator)

    # What is left alone

    def visit_Import(self, node: ast.Import) -> None:
        """Imports stay."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Imports stay."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Texts stay, with what they format."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """What asserts hold, they hold for mypy."""

    def visit_If(self, node: ast.If) -> None:
        """Code for type checkers and the script's own call stay."""
        named = {sub.id for sub in ast.walk(node.test) if isinstance(sub, ast.Name)}
        named |= {sub.attr for sub in ast.walk(node.test) if isinstance(sub, ast.Attribute)}
        if not named & {"TYPE_CHECKING", "__name__"}:
            self.generic_visit(node)
            return
        for statement in node.orelse:
            self.visit(statement)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Bases and decorators stay; a protocol is a type."""
        if not {"Protocol", "TypedDict"} & {last_name(base) for base in node.bases}:
            for statement in node.body:
                self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Defaults and the body; annotations and decorators stay."""
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self._returns.append(node.returns)
        for statement in node.body:
            self.visit(statement)
        self._returns.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        """The body; what is caught stays."""
        for statement in node.body:
            self.visit(statement)

    # Statements

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """The value, unless it is a type."""
        if node.value is not None and last_name(node.annotation) != "TypeAlias":
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        """The value; ``table[place] = value`` may go away."""
        if any(last_name(target) == "__all__" for target in node.targets):
            return
        if any(isinstance(target, ast.Subscript) for target in node.targets):
            self._replace(node, "pass", "statement")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """The operator; ``table[place] += value`` may go away."""
        if isinstance(node.target, ast.Subscript):
            self._replace(node, "pass", "statement")
        if not _is_text(node.value):
            start, end = self.text.end(node.target), self.text.start(node.value)
            self._swap(start, end, ARITHMETIC, "assignment")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        """A call made for its effect may go away; docstrings stay."""
        if isinstance(node.value, ast.Call) and not self._untouched(node.value):
            self._replace(node, "pass", "statement")
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """A refusal may go away; its text stays."""
        self._replace(node, "pass", "raise")

    def visit_Continue(self, node: ast.Continue) -> None:
        """Gone, or the loop's end."""
        self._replace(node, "break", "loop")
        self._replace(node, "pass", "loop")

    def visit_Break(self, node: ast.Break) -> None:
        """Gone."""
        self._replace(node, "pass", "loop")

    def visit_Return(self, node: ast.Return) -> None:
        """An early return may go away; None where the type allows it."""
        returns = self._returns[-1] if self._returns else None
        if node.value is None:
            self._replace(node, "pass", "return")
            return
        none = isinstance(node.value, ast.Constant) and node.value.value is None
        if returns is not None and not none and "None" in ast.unparse(returns).split(" | "):
            self._replace(node.value, "None", "return")
        self.visit(node.value)

    # Expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        """Each comparison shifted by one, or turned round."""
        left = node.left
        for right in node.comparators:
            tokens = self.text.between(self.text.end(left), self.text.start(right))
            sign = " ".join(token.text for token in tokens)
            for other in COMPARISONS.get(sign, ()):
                self._add(tokens[0].start, tokens[-1].end, other, "comparison")
            left = right
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """The operator, unless it joins texts or types."""
        joined = (node.left, node.right)
        if not any(_is_text(side) or isinstance(side, ast.List | ast.Tuple) for side in joined):
            start, end = self.text.end(node.left), self.text.start(node.right)
            self._swap(start, end, ARITHMETIC, "arithmetic")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """One ``and`` to ``or`` and back."""
        for left, right in zip(node.values, node.values[1:], strict=False):
            start, end = self.text.end(left), self.text.start(right)
            self._swap(start, end, {"and": "or", "or": "and"}, "boolean")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """``not`` dropped."""
        if isinstance(node.op, ast.Not):
            start = self.text.start(node)
            blank = self.text.source[start + 3 : start + 4] == b" "
            self._add(start, start + (4 if blank else 3), "", "not")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Numbers one more and one less, truth turned round."""
        value = node.value
        if isinstance(value, bool):
            self._replace(node, str(not value), "constant")
        elif isinstance(value, int):
            for other in {0: (1,), 1: (0, 2)}.get(value, (value - 1, value + 1)):
                self._replace(node, str(other), "constant")
        elif isinstance(value, float):
            # one more would be lost in a large figure
            self._replace(node, repr(value + 1.0 if value < 1e3 else value * 2), "constant")

    def visit_Slice(self, node: ast.Slice) -> None:
        """A bound dropped."""
        for bound in (node.lower, node.upper):
            if bound is not None:
                self._replace(bound, "", "slice")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """``min`` and ``max``, a keyword dropped; calls that make texts and types stay.

        zip's ``strict`` stays as asserts do.
        """
        if self._untouched(node):
            return
        name = last_name(node.func)
        if name in NAMES:
            end = self.text.end(node.func)
            self._add(end - len(name), end, NAMES[name], "name")
        self.visit(node.func)
        for argument in node.args[1:] if name == "cast" else node.args:
            self.visit(argument)
        for keyword in node.keywords:
            if keyword.arg in TEXT_KEYWORDS | LOOK_KEYWORDS:
                continue
            if name == "zip" and keyword.arg == "strict":
                continue
            if keyword.arg is not None and self.has_default(node, keyword.arg):
                self._add(*self._with_comma(keyword), "", "keyword")
            self.visit(keyword.value)

    def _with_comma(self, keyword: ast.keyword) -> tuple[int, int]:
        start, end = self.text.start(keyword), self.text.end(keyword)
        after = self.text.next_token(end)
        return start, after.end if after.text == "," else end

    def _untouched(self, call: ast.Call) -> bool:
        name = last_name(call.func)
        if name in TELLING_CALLS:
            return all(_is_told(argument) for argument in call.args)
        return name in UNTOUCHED_CALLS or _first_name(call.func) in LOGGERS


def _is_told(node: ast.expr) -> bool:
    """A literal, a choice of texts, or what is named as one: a constant, ``text``."""
    if isinstance(node, ast.IfExp):
        return _is_told(node.body) and _is_told(node.orelse)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    named = last_name(node)
    return isinstance(node, ast.JoinedStr) or named.isupper() or named == "text"


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Every function and class of a module, methods too, by its own name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
