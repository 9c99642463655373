"""Checks of the matrix planes: weight loads, installs, activations, accumulators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chip.checker.findings import CheckReport
from chip.checker.units import find, key, latest, pick
from chip.isa import MXM_QUEUE, AccMode, Op
from chip.program import Columns, Ints
from chip.spec import ChipSpec

_GROUPS = 32  # more than the 20 column groups of a plane


def check_mxm(c: Columns, spec: ChipSpec, report: CheckReport) -> None:
    """Rule ``mxm`` and the pairing of ABC with ACC (rule ``missing``)."""
    loads = _ordered(c, np.flatnonzero((c.op == Op.LW) & (c.a >= 0) & (c.a < _GROUPS)))
    installs = _ordered(c, np.flatnonzero((c.op == Op.IW) & (c.a >= 0) & (c.a < _GROUPS)))
    activations = _ordered(c, np.flatnonzero(c.op == Op.ABC))
    accumulates = _ordered(c, np.flatnonzero(c.op == Op.ACC))
    _check_reload(c, loads, spec, report)
    _check_installs(c, loads, installs, report)
    _check_activations(c, installs, activations, spec, report)
    _check_overlap(c, activations, report)
    _check_accumulates(c, activations, accumulates, spec, report)


def _plane(c: Columns, rows: Ints) -> Ints:
    plane: Ints = (c.queue[rows] - MXM_QUEUE) // 2
    return plane


def _ordered(c: Columns, rows: Ints) -> Ints:
    """Rows by (plane, cycle)."""
    ordered: Ints = rows[np.argsort(key(_plane(c, rows), c.cycle[rows]), kind="stable")]
    return ordered


def _check_reload(c: Columns, loads: Ints, spec: ChipSpec, report: CheckReport) -> None:
    starts = np.flatnonzero(c.a[loads] == 0)
    before, after = loads[starts[:-1]], loads[starts[1:]]
    gap = np.diff(starts) + spec.mxm_reload_gap_cycles
    early = (_plane(c, before) == _plane(c, after)) & (c.cycle[after] - c.cycle[before] < gap)
    report.against(
        "mxm",
        after[early],
        before[early],
        f"start the next tile m + {spec.mxm_reload_gap_cycles} cycles after the last",
        "the plane's buffer still serves the tile begun by ",
    )


def _check_installs(c: Columns, loads: Ints, installs: Ints, report: CheckReport) -> None:
    """Each of an install's column groups was loaded after the plane's previous install."""
    plane = _plane(c, installs)
    since = np.full(len(installs), np.iinfo(np.int64).min, np.int64)
    again = np.flatnonzero(plane[1:] == plane[:-1]) + 1
    since[again] = c.cycle[installs[again - 1]]
    load_keys = key(_plane(c, loads) * _GROUPS + c.a[loads], c.cycle[loads])
    order = np.argsort(load_keys, kind="stable")
    load_keys, loads = load_keys[order], loads[order]
    owner = np.repeat(np.arange(len(installs), dtype=np.int64), c.a[installs])
    count = c.a[installs]
    group = np.arange(len(owner), dtype=np.int64) - np.repeat(np.cumsum(count) - count, count)
    major = plane[owner] * _GROUPS + group
    at = latest(load_keys, key(major, c.cycle[installs[owner]]) - 1, major)
    load = pick(loads, at)
    stale = (load < 0) | (c.cycle[np.maximum(load, 0)] <= since[owner]) if len(c.cycle) else at < 0
    wrong = np.unique(owner[stale])
    first = np.full(len(installs), -1, np.int64)
    first[owner[stale][::-1]] = group[stale][::-1]
    report.add(
        "mxm",
        installs[wrong],
        lambda i: f"column group {first[wrong[i]]} was not loaded since the last IW",
        "load every group below a before the IW",
    )


@dataclass
class _Use:
    """One plane used by one ABC: the row, the plane and the install in force (-1: none)."""

    row: Ints
    plane: Ints
    install: Ints


def _used_planes(c: Columns, installs: Ints, activations: Ints) -> _Use:
    fp16 = c.of("w0", activations) == 2
    row = np.concatenate([activations, activations[fp16]])
    plane = _plane(c, row)
    plane[len(activations) :] ^= 1
    install_keys = key(_plane(c, installs), c.cycle[installs])
    at = latest(install_keys, key(plane, c.cycle[row]) - 1, plane)
    return _Use(row, plane, pick(installs, at))


def _check_activations(
    c: Columns, installs: Ints, activations: Ints, spec: ChipSpec, report: CheckReport
) -> None:
    use = _used_planes(c, installs, activations)
    nothing = use.install < 0
    report.add(
        "mxm",
        use.row[nothing],
        lambda i: f"nothing is installed on plane {use.plane[nothing][i]}",
        "install weights first",
    )
    row, install = use.row[~nothing], use.install[~nothing]
    early = c.cycle[row] < c.cycle[install] + spec.mxm_install_cycles
    report.against(
        "mxm",
        row[early],
        install[early],
        f"dispatch it at the IW or {spec.mxm_install_cycles} cycles after it",
        "the plane is being installed by ",
    )
    wide = c.of("w0", activations) == 2
    odd = wide & (_plane(c, activations) % 2 == 1)
    report.add(
        "mxm",
        activations[odd],
        "an fp16 activation enters a pair at its even plane",
        "dispatch it on the even plane's queue",
    )
    first, second = use.install[: len(activations)][wide], use.install[len(activations) :]
    pair = activations[wide]
    known = np.flatnonzero((first >= 0) & (second >= 0))
    differ = known[c.a[first[known]] != c.a[second[known]]]
    report.against(
        "mxm",
        pair[differ],
        second[differ],
        "install the same number of column groups on both planes",
        "the planes of the pair hold different group counts, see ",
    )


def _check_overlap(c: Columns, activations: Ints, report: CheckReport) -> None:
    """An fp16 ABC holds both planes of its pair for two cycles."""
    wide = activations[c.of("w0", activations) == 2]
    if len(wide) == 0:
        return
    rows, planes, cycles = [activations], [_plane(c, activations)], [c.cycle[activations]]
    for other, later in ((0, 1), (1, 0), (1, 1)):
        rows.append(wide)
        planes.append(_plane(c, wide) ^ other)
        cycles.append(c.cycle[wide] + later)
    row = np.concatenate(rows)
    keys = key(np.concatenate(planes), np.concatenate(cycles))
    order = np.lexsort((c.queue[row], c.cycle[row], keys))
    row, keys = row[order], keys[order]
    same = np.flatnonzero((keys[1:] == keys[:-1]) & (row[1:] != row[:-1]))
    report.against(
        "mxm",
        row[same + 1],
        row[same],
        "leave an fp16 activation its pair for two cycles",
        "the plane is occupied by ",
    )


def _check_accumulates(
    c: Columns, activations: Ints, accumulates: Ints, spec: ChipSpec, report: CheckReport
) -> None:
    abc_keys = key(_plane(c, activations), c.cycle[activations])
    acc_keys = key(_plane(c, accumulates), c.cycle[accumulates])
    product = pick(activations, find(abc_keys, acc_keys - spec.mxm_multiply_cycles))
    lost = product < 0
    report.add(
        "missing",
        accumulates[lost],
        f"no ABC was dispatched on the plane {spec.mxm_multiply_cycles} cycles before",
        f"dispatch ACC {spec.mxm_multiply_cycles} cycles after its ABC",
    )
    unused = find(acc_keys, abc_keys + spec.mxm_multiply_cycles) < 0
    report.add(
        "missing",
        activations[unused],
        f"no ACC takes its product {spec.mxm_multiply_cycles} cycles later",
        f"dispatch ACC {spec.mxm_multiply_cycles} cycles after the ABC",
    )
    if len(accumulates) == 0:
        return
    wide = np.where(lost, -1, c.of("w0", np.maximum(product, 0)))
    order = np.lexsort((c.cycle[accumulates], c.a[accumulates], _plane(c, accumulates)))
    rows, wide = accumulates[order], wide[order]
    mode = c.of("mode", rows)
    adds = (mode == AccMode.ADD) | (mode == AccMode.ADD_EMIT)
    index = np.arange(len(rows), dtype=np.int64)
    setter = np.maximum.accumulate(np.where(adds, -1, index))
    at = np.maximum(setter, 0)
    same = (setter >= 0) & (c.a[rows[at]] == c.a[rows]) & (_plane(c, rows[at]) == _plane(c, rows))
    report.add(
        "mxm",
        rows[adds & ~same],
        "the accumulator row was never SET in this launch",
        "SET the row first",
    )
    differ = adds & same & (wide >= 0) & (wide[at] >= 0) & (wide != wide[at])
    report.against(
        "mxm",
        rows[differ],
        rows[at][differ],
        "accumulate one number type per row",
        "the row holds the other number type, SET by ",
    )
