"""How each test file does without a mutant: its time, and which of its tests fail anyway."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from .copies import caches
from .pytest_run import PASSED, run_pytest

#: All but soak; then without the long tests, for files that take too long with them.
MARKERS = ("not soak", "not long and not soak")
#: What compiling may add to a run, on a busy host.
COMPILE_SECONDS = 300.0


@dataclass(frozen=True)
class Baseline:
    """A test file's usual ``seconds`` under ``marker``; ``failing`` tests are left out.

    ``left_out`` says why the file is not run at all; empty if it is.
    """

    marker: str = MARKERS[0]
    seconds: float = 0.0
    failing: tuple[str, ...] = ()
    left_out: str = ""


class Baselines:
    """Measured once per test file in the unmutated copy; noted beside it for the next call."""

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

    def of(self, file: Path) -> Baseline:
        """The baseline of a test file; runs it if it has not been run yet."""
        with self.lock:
            if str(file) not in self._found:
                self._found[str(file)] = self._measure(file)
                notes = {name: asdict(found) for name, found in self._found.items()}
                self._notes.write_text(json.dumps(notes, indent=1))
            return self._found[str(file)]

    def _measure(self, file: Path) -> Baseline:
        for marker in MARKERS:
            before = caches(self._pristine)
            limit = self._budget + COMPILE_SECONDS
            run = run_pytest(self._pristine, [file], marker, (), limit, self._stop)
            if not run.timed_out and caches(self._pristine) != before:
                # it compiled: its usual time is that of another run
                run = run_pytest(self._pristine, [file], marker, (), limit, self._stop)
            if run.timed_out or run.seconds > self._budget:
                continue
            if run.code != PASSED and (run.code != 1 or not run.failed):
                last = run.output.strip().splitlines()[-1:] or [f"exit code {run.code}"]
                return Baseline(marker, run.seconds, (), last[0])
            return Baseline(marker, run.seconds, run.failed)
        return Baseline(seconds=float("inf"), left_out=f"takes more than {self._budget:g} s")
