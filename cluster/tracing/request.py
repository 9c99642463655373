"""``--trace`` and its options, checked before a run, and the file written after it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import InputError
from cluster.tracing.plan import EVERYTHING, Launched, TracePlan, Window
from cluster.whole_files import check_writable, replace_file
from programs.artifact import Artifact

_WINDOW = re.compile(r"([0-9]{1,15}):([0-9]{1,15})", re.ASCII)


@dataclass(frozen=True)
class TraceRequest:
    """What the options ask for: a file, the cycles shown, and how many of the last launches."""

    path: Path
    window: Window = EVERYTHING
    launches: int | None = None

    def plan(self, artifact: Artifact, launches: Sequence[Launched]) -> TracePlan:
        """The plan of a run with these launches; raises InputError where it is too large."""
        plan = TracePlan(artifact, launches, self.window, self.launches)
        if not plan.launches:
            raise InputError(
                f"--trace-window {self.window.first}:{self.window.last}: the run ends at cycle "
                f"{plan.horizon}, and its traced launches are not in the window; move it"
            )
        plan.check_size()
        return plan

    def write(self, artifact: Artifact, launches: Sequence[Launched]) -> TracePlan:
        """Make the trace; the file is there whole or not at all."""
        plan = self.plan(artifact, launches)
        replace_file(self.path, lambda target: _writer(self.path)(plan, target))
        return plan


def trace_request(
    path: Path | None, window: str | None, launches: int | None
) -> TraceRequest | None:
    """The options of ``--trace``, checked; None where no trace is asked for."""
    if path is None:
        if window is not None or launches is not None:
            raise InputError("--trace-window and --trace-launches: only with --trace")
        return None
    _writer(path)
    shown = EVERYTHING
    if window is not None:
        match = _WINDOW.fullmatch(window)
        if match is None or int(match[1]) >= int(match[2]):
            raise InputError(f"--trace-window {window}: use FIRST:LAST, two cycles in order")
        shown = Window(int(match[1]), int(match[2]))
    if launches is not None and launches < 1:
        raise InputError(f"--trace-launches {launches}: use 1 or more")
    check_writable(path)
    return TraceRequest(path, shown, launches)


def trace_text(summary: Mapping[str, int]) -> str:
    """What people are told of a trace that was written, from ``TracePlan.summary``."""
    return f"{summary['events']:,} events, {summary['blocks']:,} blocks"


def _writer(path: Path) -> Callable[[TracePlan, Path], None]:
    if path.name.endswith((".json", ".json.gz")):
        from cluster.tracing.chrome import write_chrome

        return write_chrome
    if path.suffix == ".pftrace":
        from cluster.tracing.perfetto import write_perfetto

        return write_perfetto
    raise InputError(f"--trace {path}: use a name that ends in .json, .json.gz or .pftrace")
