"""The run file: what a report needs to know of a run, as one JSON object.

A command writes it with ``--save``, ``lpu report`` reads it.  It holds results, not pictures, and
every number in it was computed by the run's own command.  Reading trusts nothing: size, shape and
every number are checked before anything is drawn, and any file ends in a run or in one line.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.whole_files import replace_text

Run = dict[str, Any]

FORMAT, VERSION = "lpu-run", 1
KINDS = ("generate", "run", "collective", "load", "disaggregated", "speculative")
MAX_FILE_BYTES = 64 * 2**20
MOST_ITEMS, MOST_STAGES, MOST_BINS = 400, 64, 512

#: Whose figures they are: cycles of compiled programs, a model's estimate, or given by the user.
SOURCES = ("exact", "estimated", "given")

#: What an SRAM word is for, in the order in which a coarser cell shows it.
WORD_KINDS = (
    "free",
    "reserved",
    "temporary",
    "KV cache or data written by position",
    "weights and tables",
    "weights and tables, rewritten",
    "inputs",
    "outputs",
)

_TEXT = {"type": "string", "maxLength": 2000}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**53}
_CHIP = {"type": "integer", "minimum": 0, "maximum": 20_000}
#: Far beyond any machine, and far from where floating point overflows on logarithmic axes.
_NUMBER = {"type": "number", "minimum": 0, "maximum": 1e30}
_POSITIVE = {"type": "number", "minimum": 1e-30, "maximum": 1e30}
_PERHAPS = {"type": ["number", "null"], "minimum": 0, "maximum": 1e30}


def _list(of: dict[str, Any], most: int, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": least, "maxItems": most}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


_SERIES = _list(_NUMBER, MOST_BINS, 1)
_SOURCE = {"enum": list(SOURCES)}
#: Every section of a run; absent sections are named under ``absent`` with the reason.
SECTIONS: dict[str, dict[str, Any]] = {
    "machine": _object(
        chip=_TEXT,
        chips={**_CHIP, "minimum": 1},
        chips_per_node={**_CHIP, "minimum": 1},
        clock_hz={**_COUNT, "minimum": 1},
        topology=_TEXT,
        cables=_list(_list(_CHIP, 4, 4), 200_000),
        others=_list(_object(name=_TEXT, count=_COUNT, link=_TEXT), 16),
        note=_TEXT,
    ),
    "belts": _list(
        _object(
            name=_TEXT,
            unit=_TEXT,
            per_second=_POSITIVE,
            note=_TEXT,
            stages=_list(_TEXT, MOST_STAGES, 1),
            items=_list(
                _object(label=_TEXT, times=_list(_COUNT, MOST_STAGES + 1, 2)), MOST_ITEMS, 1
            ),
        ),
        16,
        1,
    ),
    "sram": _object(
        words_per_slice={**_COUNT, "minimum": 1},
        cells=_list(
            _list({"type": "integer", "minimum": 0, "maximum": len(WORD_KINDS) - 1}, MOST_BINS, 1),
            88,
            88,
        ),
        words=_list(_list(_COUNT, len(WORD_KINDS), len(WORD_KINDS)), 88, 88),
        word_bytes=_COUNT,
        note=_TEXT,
    ),
    "utilisation": _object(
        entry=_TEXT,
        edges=_list(_COUNT, MOST_BINS + 1, 2),
        note=_TEXT,
        families=_list(_object(name=_TEXT, units=_COUNT, ratio=_SERIES, mean=_NUMBER), 16, 1),
    ),
    "links": _object(
        entry=_TEXT,
        edges=_list(_COUNT, MOST_BINS + 1, 2),
        mean=_SERIES,
        most=_SERIES,
        busy=_list(_object(chip=_CHIP, to=_CHIP, ratio=_NUMBER), 400_000, 1),
        note=_TEXT,
    ),
    "roofline": _object(
        machines=_list(
            _object(name=_TEXT, source=_SOURCE, ops_per_s=_POSITIVE, bytes_per_s=_POSITIVE), 8, 1
        ),
        points=_list(
            _object(name=_TEXT, source=_SOURCE, ops_per_byte=_POSITIVE, ops_per_s=_POSITIVE), 8, 1
        ),
        note=_TEXT,
    ),
    "latencies": _list(
        _object(
            title=_TEXT,
            edges_s=_list(_POSITIVE, MOST_BINS + 1, 2),
            note=_TEXT,
            series=_list(
                _object(
                    name=_TEXT,
                    source=_SOURCE,
                    count=_COUNT,
                    share=_SERIES,
                    least_s=_NUMBER,
                    p50_s=_POSITIVE,
                    p99_s=_POSITIVE,
                    most_s=_NUMBER,
                ),
                16,
                1,
            ),
        ),
        8,
        1,
    ),
    "bars": _list(
        _object(
            title=_TEXT,
            unit=_TEXT,
            note=_TEXT,
            values=_list(_object(name=_TEXT, value=_PERHAPS, source=_SOURCE), 64, 1),
        ),
        8,
        1,
    ),
}

#: Sections whose absence a report explains; bars stand in where there are no distributions.
EXPECTED = tuple(name for name in SECTIONS if name != "bars")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "format": {"const": FORMAT},
        "version": {"const": VERSION},
        "kind": {"enum": list(KINDS)},
        "title": _TEXT,
        "facts": _list(_list(_TEXT, 2, 2), 200),
        "absent": {
            "type": "object",
            "additionalProperties": _TEXT,
            "propertyNames": {"enum": list(EXPECTED)},
        },
        **SECTIONS,
    },
    "required": ["format", "version", "kind", "title", "facts", "absent"],
    "additionalProperties": False,
}


def new_run(kind: str, title: str, facts: list[tuple[str, str]], sections: Run) -> Run:
    """A run of ``kind``; a section that is a string says why it is absent."""
    absent = dict.fromkeys(EXPECTED, "not part of this run")
    absent |= {name: value for name, value in sections.items() if isinstance(value, str)}
    present = {name: value for name, value in sections.items() if not isinstance(value, str)}
    run: Run = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "title": title,
        "facts": [[name, value] for name, value in facts],
        "absent": {name: why for name, why in absent.items() if name not in present},
        **present,
    }
    if problem := _problem(run):
        raise ValueError(f"not a run: {problem}")
    return run


def save_run(run: Run, path: Path) -> None:
    """Write ``run`` to ``path``, whole or not at all."""
    replace_text(path, json.dumps(run, allow_nan=False))


def read_run(path: Path) -> Run:
    """The run in a file; raises InputError with one line for anything else."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{path}: more than {MAX_FILE_BYTES:,} bytes: no run file is as large")
    try:
        run = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise InputError(
            f"{path}: is no JSON; name a file that --save of a command has written"
        ) from None
    if isinstance(run, dict) and run.get("format") == FORMAT and run.get("version") != VERSION:
        raise InputError(
            f"{path}: run file version {str(run.get('version'))[:20]}, not {VERSION}: save the "
            "run again with this lpu-cluster"
        )
    if problem := _problem(run):
        raise InputError(f"{path}: is no run file: {problem}; write one with --save")
    checked: Run = run
    return checked


def _refuse(constant: str) -> float:
    raise ValueError(constant)


def _problem(run: Any) -> str | None:
    """What the schema, or a rule between its parts, has against ``run``; None if nothing."""
    from jsonschema import Draft202012Validator

    error = next(Draft202012Validator(SCHEMA).iter_errors(run), None)
    if error is not None:
        place = ".".join(str(step) for step in error.absolute_path)
        return f"{place or 'the whole'}: {error.message[:120]}"
    return _mismatch(run)


def _mismatch(run: Run) -> str | None:
    """Lists that do not have each other's length, or times that run backwards."""
    for belt in run.get("belts", ()):
        for item in belt["items"]:
            times = item["times"]
            if len(times) != len(belt["stages"]) + 1 or times != sorted(times):
                return f"belts: {belt['name'][:40]}: an item's times do not fit its stages"
    for name in ("utilisation", "links"):
        if (part := run.get(name)) is None:
            continue
        rows = (
            [part["mean"], part["most"]]
            if name == "links"
            else [family["ratio"] for family in part["families"]]
        )
        if any(len(row) + 1 != len(part["edges"]) for row in rows) or not _ascends(part["edges"]):
            return f"{name}: edges do not fit the values"
    for picture in run.get("latencies", ()):
        if not _ascends(picture["edges_s"]) or any(
            len(series["share"]) + 1 != len(picture["edges_s"]) for series in picture["series"]
        ):
            return "latencies: edges do not fit the shares"
    sram = run.get("sram")
    if sram is not None and len({len(cells) for cells in sram["cells"]}) != 1:
        return "sram: slices differ in their number of cells"
    machine = run.get("machine")
    if machine is not None:
        if any(max(a, b) >= machine["chips"] for a, _, b, _ in machine["cables"]):
            return "machine: a cable of a chip that is not there"
        for part in run.get("links", {}).get("busy", ()):
            if max(part["chip"], part["to"]) >= machine["chips"]:
                return "links: a link of a chip that is not there"
    elif "links" in run:
        return "links: without a machine"
    return None


def _ascends(edges: list[float]) -> bool:
    return all(a < b for a, b in pairwise(edges)) and all(math.isfinite(edge) for edge in edges)
