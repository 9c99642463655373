"""Every error's text is held by a test: some words of it, which no other error has, stand there."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

#: What a formatted value is in a message.
GAP = "\0"
MOST_WORDS = 5
#: Longer strings in tests are files and programs.
MOST_CHARACTERS = 300
#: Messages that may share the words by which a test knows them.
ALIKE = 6


def sources(tests: bool) -> Iterator[ast.Module]:
    """The syntax trees of the product's files, or of the tests' but for this one."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if any(part.startswith(".") or part == "build" for part in parts):
            continue
        if ("tests" in parts) == tests and path != Path(__file__).resolve():
            yield ast.parse(path.read_text(encoding="utf-8"))


def text_of(node: ast.expr) -> str:
    """A literal's text, with a gap for everything that is formatted in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return GAP


@cache
def messages() -> frozenset[str]:
    """The texts that the product raises, those that have words."""
    found: set[str] = set()
    for tree in sources(tests=False):
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                texts = [text_of(argument) for argument in node.exc.args]
                found |= {max(texts, key=len)} if texts else set()
    return frozenset(text for text in found if len(re.findall(r"[a-z]{2,}", text)) > 1)


def runs(text: str) -> set[str]:
    """Words in a row, up to five, numbers and what is formatted in being any."""
    words = []
    for word in text.replace(GAP, " 0 ").split():
        if word[0] in "'\"":
            word = "0"  # a quoted value
        bare = word.strip("\\:;,.()[]{}'\"^$*+?|")
        if bare:
            words.append("*" if bare[0].isdigit() else bare)
    found: set[str] = set()
    for count in range(1, MOST_WORDS + 1):
        for i in range(len(words) - count + 1):
            run = words[i : i + count]
            if sum(map(len, run)) >= 5 and (count > 1 or len(run[0]) > 6):
                found.add(" ".join(run))
    return found


def literals() -> Iterator[str]:
    """The strings in the tests that are no documentation."""
    for tree in sources(tests=True):
        nodes = list(ast.walk(tree))
        apart = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
        apart |= {id(value) for n in nodes if isinstance(n, ast.JoinedStr) for value in n.values}
        for node in nodes:
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in apart:
                text = text_of(node)
                if " " in text and len(text) <= MOST_CHARACTERS:
                    yield text.replace("\\", "")


def unheld() -> set[str]:
    """The messages of which no test has two words or more that no other message has."""
    every = messages()
    of_run: dict[str, int] = defaultdict(int)
    for text in every:
        for run in runs(text):
            of_run[run] += 1
    held = {run for text in literals() for run in runs(text)}

    def knows(run: str) -> bool:
        return of_run[run] <= (ALIKE if " " in run else 1)

    return {text for text in every if not any(map(knows, runs(text) & held))}


#: Errors that no test provokes, by words of theirs, and why.
DEFENCES = {
    "other tokens came on the spare": "the spare would have to compute other bits",
    "processes picked different tokens": "processes would have to compute other bits",
    "recovery_seconds: the kill": "a benchmark on a host that does not replace processes",
    "the NumPy baseline failed": "a benchmark whose NumPy would have to fail",
    "llama.cpp failed": "a benchmark whose baseline, a library of others, would have to fail",
    "llama.cpp wrote no": "as the last",
    "the NumPy baseline of the all-reduce": "a benchmark whose NumPy would have to add wrongly",
    "the all-reduce breaks rules": "a benchmark of a schedule that the planner would have to break",
    "the logits are not those of the golden": "a benchmark of a wrong engine",
    "the schedule breaks a rule": "the planner would have to break its own rules",
    "the plan was not checked": "a benchmark of a plan that would have to be illegal",
    "the node was killed": "the pool catches it and starts another node",
    "negative cycle": "the loader's own check, behind the static one that every caller runs first",
    "the router's actor failed": "an actor with a fault of its own; a user's function is refused",
    "no schedule for this shape": "no shape is known that fits the memory and has none",
}

#: Errors of so few words of their own that only their values tell them apart: tests hold these.
BY_VALUE = {
    f"{GAP} {GAP}: use 1 to {GAP}": "test_cluster_refusals: groups 0",
    f"{GAP} {GAP}: use {GAP} to {GAP}": "test_cluster_refusals: --kill-after -1",
}


@pytest.mark.long
def test_every_error_is_held_by_a_test() -> None:
    found = unheld()
    assert len(messages()) > 400
    assert set(BY_VALUE) <= messages()
    known = {text for text in found if any(words in text for words in DEFENCES)}
    unknown = found - known - set(BY_VALUE)
    assert unknown == set(), "write a test for each, in the words of its message"
    stale = {words for words in DEFENCES if not any(words in text for text in messages())}
    assert stale == set(), "nothing is said so any more: take them off the list"


@pytest.mark.long
def test_the_search_can_fail() -> None:
    """A message's words count in a row, with any value; those of many messages do not."""
    assert "* dragons over * hills" in runs("7 dragons over 'nine' hills")
    assert "* dragons over * hills" in runs(f"{GAP} dragons over {GAP} hills; flee")
    assert "dragons" in runs("dragons") and "hill" not in runs("hill 3")
    assert "use *" not in runs("use 3") and "a hill of *" in runs("a hill of 3")
