"""What an agent's request is: a small graph of steps, drawn from a seed, and its prompts and tools.

plan -> route -> one to three branches (choose a tool and call it; reason; write code) -> summarise.
Token counts, tasks and service times of tools are made up (assumed), and small enough for the
shipped models; the text is whatever those models write.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.experiments.serving import Lengths, poisson

NEW_TOKENS = {
    "plan": 12,
    "route": 2,
    "choose_tool": 4,
    "reason": 24,
    "write_code": 32,
    "summarise": 16,
}
"""Tokens a model writes in a step of each kind; call_tool asks no model."""
LIGHT = frozenset({"plan", "route", "choose_tool", "summarise"})
"""Kinds that a small model can do."""
TOOL_MS = {"calculator": 1, "database": 5, "search": 20, "run_code": 50}
"""Service time of each tool in milliseconds; any number of calls at once."""
PROMPT_CHARACTERS = 240
_TASKS = (
    "read a file and count its words",
    "sort a list of names",
    "parse a date",
    "find the largest number",
    "merge two dictionaries",
    "write a log line",
    "open a socket",
    "test that a string is a number",
)
_BRANCHES = (("choose_tool", "call_tool"), ("reason",), ("write_code",))


@dataclass(frozen=True)
class AgentStep:
    """One node of a request's graph; after: numbers of the steps it needs, all lower.

    tool: what a call_tool calls.  It is drawn with the graph, not read from a model's text, so that
    all ways of routing do the same work; the text becomes its argument.
    """

    kind: str
    after: tuple[int, ...]
    tool: str | None = None


@dataclass(frozen=True)
class AgentRequest:
    """A request of an agent: when it comes, what it is about, its steps in order of number."""

    arrival_ps: int
    task: str
    steps: tuple[AgentStep, ...]


def draw_requests(rate_per_s: float, requests: int, seed: int) -> list[AgentRequest]:
    """``requests`` arrivals of a Poisson process, each with a graph of 4 to 9 steps."""
    arrivals = poisson(rate_per_s, requests, Lengths(), seed).arrival_ps.tolist()
    random = np.random.Generator(np.random.Philox(key=np.array([seed, 2], np.uint64)))
    drawn = []
    for arrival in arrivals:
        task = _TASKS[int(random.integers(len(_TASKS)))]
        steps = [AgentStep("plan", ()), AgentStep("route", (0,))]
        ends = []
        for _ in range(int(random.integers(1, 4))):
            before = 1
            for kind in _BRANCHES[int(random.integers(len(_BRANCHES)))]:
                tool = None
                if kind == "call_tool":
                    tool = sorted(TOOL_MS)[int(random.integers(len(TOOL_MS)))]
                steps.append(AgentStep(kind, (before,), tool))
                before = len(steps) - 1
            ends.append(before)
        steps.append(AgentStep("summarise", tuple(ends)))
        drawn.append(AgentRequest(arrival, task, tuple(steps)))
    return drawn


def prompt_of(task: str, kind: str, before: Sequence[str]) -> str:
    """What a model is asked in a step, given the texts of the steps before it."""
    known = " ".join(" ".join(before).split())[-PROMPT_CHARACTERS // 2 :]
    return f"# {task}\n# {kind}: {known}\ndef "[-PROMPT_CHARACTERS:]


def argument_of(text: str) -> str:
    """What a tool is called with after a model wrote ``text``."""
    return " ".join(text.split())[:200]


def tool_result(name: str, argument: str) -> str:
    """What the stub of a tool returns."""
    return f"{name} = {zlib.crc32(argument.encode()) % 1000}"
