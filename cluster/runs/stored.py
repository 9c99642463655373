"""One launch of an artifact as it is stored, with its inputs: entry points, facts and rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chip.faults import LockstepViolation, ProgramFault
from cluster.errors import InputError, RunError
from cluster.metrics import Board, RunWatch
from cluster.processes import Placement
from cluster.runs.launch import launch_everywhere
from cluster.tracing import Launched, TraceRequest, trace_text
from programs.artifact import Artifact, compiled_at, fault_text
from programs.running import LOOKAHEAD, saturation_json, saturation_text

#: Outputs that people are shown.
OUTPUTS_SHOWN = 8


def entry_names(artifact: Artifact) -> list[str]:
    """Entry points by name, numbers inside names by value: decode-64 before decode-128."""

    def key(name: str) -> list[tuple[int, str]]:
        return [(int(p), "") if p.isdecimal() else (0, p) for p in re.split(r"([0-9]+)", name)]

    return sorted(artifact.programs, key=key)


def pick_entry(artifact: Artifact, entry: str | None) -> str:
    """The entry point asked for; else the decode of the fewest positions, or the first there is.

    The first of a decoder by name may be one of a prompt's, which ends without logits.
    """
    names = entry_names(artifact)
    if entry is None and names:
        return next((name for name in names if name.startswith("decode-")), names[0])
    if entry is not None and entry in names:
        return entry
    raise InputError(f"--entry {entry}: the entry points are {', '.join(names) or 'none'}")


@dataclass(frozen=True)
class StoredRun:
    """A finished launch.  facts: of ``lpu run --json``; launched: for a report.

    saturated: what conversions lost, in words; empty for nothing.
    """

    facts: dict[str, Any]
    launched: Launched
    saturated: str = ""

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What there is to say, for people."""
        facts = self.facts
        rows = [
            ("entry point", facts["entry"]),
            ("cycles", f"{facts['cycles']:,} (predicted {facts['predicted_cycles']:,})"),
            ("digest", facts["digest"]),
        ]
        rows += [
            (f"{name} of chip {output['chip']} ({described['type']})", _values(described))
            for output in facts["outputs"]
            for name, described in output.items()
            if name != "chip"
        ][:OUTPUTS_SHOWN]
        if self.saturated:
            rows.append(("saturated", self.saturated))
        if "trace" in facts:
            rows.append(("trace", trace_text(facts["trace"])))
        return rows


def run_stored(
    artifact: Artifact,
    entry: str,
    tracing: TraceRequest | None = None,
    board: Board | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> StoredRun:
    """Run one launch of an entry point here, with memory as stored.

    tracing: a trace to write.  board: where metrics go.  tell: hears what goes on.  Raises RunError
    for a fault of the programs, named by its line where the artifact knows it.
    """
    predicted = artifact.predicted_cycles.get(entry)
    if tracing is not None and predicted is not None:
        tracing.plan(artifact, [Launched(entry, predicted)])
    watch = None if board is None else RunWatch(board, "run")
    placement = Placement(artifact.chips, in_process=True)
    artifact = compiled_at(artifact, "")  # one launch needs no host, wherever its checkpoint is
    try:
        result = launch_everywhere(artifact, entry, LOOKAHEAD, placement, watch=watch)
    except (LockstepViolation, ProgramFault) as fault:
        raise RunError(fault_text(fault, artifact)) from None
    launched = Launched(entry, result.cycles)
    saturated = saturation_text(result.saturations)
    facts = {
        "entry": entry,
        "chips": artifact.chips,
        "digest": result.digest,
        "cycles": result.cycles,
        "predicted_cycles": result.cycles if predicted is None else predicted,
        "outputs": result.outputs,
        "saturations": saturation_json(result.saturations),
    }
    if tracing is not None:
        tell("writing the trace ...")
        facts["trace"] = tracing.write(artifact, [launched]).summary()
    return StoredRun(facts, launched, saturated)


def _values(described: dict[str, Any]) -> str:
    """The first values of an output, for people."""
    first = ", ".join(
        f"{value:g}" if isinstance(value, float) else str(value) for value in described["first"]
    )
    return f"{first}{', ...' if described['values'] > len(described['first']) else ''}"
