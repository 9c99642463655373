"""How each test file does without a mutant: its time, and which of its tests fail anyway."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from .copies import caches
from .pytest_run import PASSED, run_pytest

#: A file's quick tests and its long ones, run apart; soak never.
QUICK, LONG = "not long and not soak", "long and not soak"
#: What compiling may add to a run, on a busy host.
COMPILE_SECONDS = 300.0


@dataclass(frozen=True)
class Baseline:
    """The usual ``seconds`` of a test file's quick or long tests; ``failing`` ones are left out.

    ``left_out`` says why they are not run at all; empty if they are.
    """

    seconds: float = 0.0
    failing: tuple[str, ...] = ()
    left_out: str = ""


class Baselines:
    """Measured once in the unmutated copy; noted beside it for the next call."""

    def __init__(self, pristine: Path, budget_seconds: float, stop: threading.Event) -> None:
        self.lock = threading.Lock()
        self._pristine = pristine
        self._budget = budget_seconds
        self._stop = stop
        self._notes = pristine.parent / f"baselines-{budget_seconds:g}.json"
        self._found: dict[str, Baseline] = {}
        if self._notes.exists():
            for file, values in json.loads(self._notes.read_text()).items():
                values["failing"] = tuple(values["failing"])
                self._found[file] = Baseline(**values)

    def of(self, file: Path, marker: str) -> Baseline:
        """The baseline of a test file's tests of a marker; runs them if that has not been done."""
        with self.lock:
            name = f"{file} -m {marker}"
            if name not in self._found:
                self._found[name] = self._measure(file, marker)
                notes = {name: asdict(found) for name, found in self._found.items()}
                self._notes.write_text(json.dumps(notes, indent=1))
            return self._found[name]

    def _measure(self, file: Path, marker: str) -> Baseline:
        before = caches(self._pristine)
        limit = self._budget + COMPILE_SECONDS
        run = run_pytest(self._pristine, [file], marker, (), limit, self._stop)
        if not run.timed_out and caches(self._pristine) != before:
            # it compiled: its usual time is that of another run
            run = run_pytest(self._pristine, [file], marker, (), limit, self._stop)
        if run.timed_out or run.seconds > self._budget:
            return Baseline(float("inf"), (), f"takes more than {self._budget:g} s")
        if run.code != PASSED and (run.code != 1 or not run.failed):
            last = run.output.strip().splitlines()[-1:] or [f"exit code {run.code}"]
            return Baseline(run.seconds, (), last[0])
        return Baseline(run.seconds, run.failed)
