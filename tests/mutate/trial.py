"""One mutant against the tests: killed by which, or survived which."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .baseline import COMPILE_SECONDS, LONG, QUICK, Baselines
from .copies import applied, mirror_caches
from .mutant import Mutant
from .pytest_run import run_pytest

KILLED, TIMEOUT, SURVIVED, EQUIVALENT = "killed", "timeout", "survived", "equivalent"
#: A file hangs that takes this many times its usual seconds, and some for a busy host.
_PATIENCE = 5.0
_GRACE_SECONDS = 30.0
#: Files too long for what is left of the budget, before the rest are not looked at.
_TOO_LONG = 3
#: So many files' quick tests are run before the nearest file's long ones.
_BEFORE_LONG = 6


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    ``by`` is the test (or the file, if it hung or broke) that killed it, or the reason it is judged
    equivalent; ``files`` counts test files run (twice with their long tests), ``left_out`` those
    near it that were not.
    """

    mutant: Mutant
    outcome: str
    by: str
    seconds: float
    files: int = 0
    left_out: int = 0


class Bench:
    """A worker's copy and the unmutated one beside it."""

    def __init__(
        self,
        copy: Path,
        pristine: Path,
        baselines: Baselines,
        budget_seconds: float,
        stop: threading.Event,
    ) -> None:
        self._copy = copy
        self._pristine = pristine
        self._baselines = baselines
        self._budget = budget_seconds
        self._stop = stop

    def judge(self, mutant: Mutant, tests: Sequence[Path], stale: set[str]) -> Verdict:
        """Run ``tests`` in their order, as many as the budget allows, until one fails."""
        began = time.monotonic()
        left, files, too_long, run_at_all = self._budget, 0, 0, set()
        with applied(mutant, self._copy, self._pristine, stale):
            for test, marker in _in_turn(tests):
                usual = self._baselines.of(test, marker)
                if usual.left_out:
                    continue
                if usual.seconds > left:
                    too_long += 1
                    if too_long == _TOO_LONG:
                        break
                    continue
                left -= usual.seconds
                files += 1
                run_at_all.add(test)
                with self._baselines.lock:
                    mirror_caches(self._pristine, self._copy, stale)
                limit = usual.seconds * _PATIENCE + _GRACE_SECONDS
                limit += COMPILE_SECONDS if stale else 0.0
                options = ["-x", *(f"--deselect={name}" for name in usual.failing)]
                run = run_pytest(self._copy, [test], marker, options, limit, self._stop)
                if not run.passed:
                    outcome = TIMEOUT if run.timed_out else KILLED
                    by = run.failed[0] if run.failed else f"{test} (exit code {run.code})"
                    took = time.monotonic() - began
                    return Verdict(mutant, outcome, by, took, files)
        took = time.monotonic() - began
        return Verdict(mutant, SURVIVED, "", took, files, len(tests) - len(run_at_all))


def _in_turn(tests: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Each file's quick tests, and behind those of the next few files its long ones."""
    for number in range(len(tests) + _BEFORE_LONG):
        if number < len(tests):
            yield tests[number], QUICK
        if number >= _BEFORE_LONG:
            yield tests[number - _BEFORE_LONG], LONG
