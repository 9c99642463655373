"""A module's source with its tree and tokens; positions are byte offsets, as edits need them."""

from __future__ import annotations

import ast
import bisect
import io
import tokenize
from dataclasses import dataclass

#: Tokens without text of their own.
_EMPTY = {tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT}


@dataclass(frozen=True)
class Token:
    """A token's text and the bytes [start, end) it stands in."""

    text: str
    start: int
    end: int


class Text:
    """Source bytes (UTF-8) of one module.  SyntaxError if it is not Python."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.tree = ast.parse(source)
        lines = source.splitlines(keepends=True)
        self._starts = [0]
        for line in lines:
            self._starts.append(self._starts[-1] + len(line))
        decoded = [line.decode() for line in lines]
        self.tokens = []
        for token in tokenize.generate_tokens(io.StringIO(source.decode(), newline="").readline):
            if token.type in _EMPTY or not token.string:
                continue
            (row, column), (last, until) = token.start, token.end
            start = self._starts[row - 1] + len(decoded[row - 1][:column].encode())
            end = self._starts[last - 1] + len(decoded[last - 1][:until].encode())
            self.tokens.append(Token(token.string, start, end))
        self._tokens_start = [token.start for token in self.tokens]

    def start(self, node: ast.expr | ast.stmt | ast.keyword) -> int:
        """The byte at which a node begins."""
        return self._starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt | ast.keyword) -> int:
        """The byte after a node."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._starts[node.end_lineno - 1] + node.end_col_offset

    def between(self, start: int, end: int) -> list[Token]:
        """The tokens within the bytes [start, end), without brackets around an operand."""
        first = bisect.bisect_left(self._tokens_start, start)
        last = bisect.bisect_left(self._tokens_start, end)
        return [token for token in self.tokens[first:last] if token.text not in "()"]

    def next_token(self, offset: int) -> Token:
        """The first token that begins at a byte or after it."""
        return self.tokens[bisect.bisect_left(self._tokens_start, offset)]

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column of a byte, both from 1; the column counts bytes."""
        line = bisect.bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def line_end(self, offset: int) -> int:
        """The byte after the line of a byte."""
        return self._starts[min(bisect.bisect_right(self._starts, offset), len(self._starts) - 1)]

    def line(self, number: int) -> str:
        """A line's text, stripped."""
        return self.source[self._starts[number - 1] : self._starts[number]].decode().strip()
