"""Which SRAM words a linked program may change: what a snapshot has to hold, known before a run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip.isa import Op
from chip.linking.linker import ELEMENTS, FIRST, OP, STRIDE, LinkedProgram

#: Arguments of an executed element that name words; see ``chip.linking.layout``.
_WRITTEN, _RECEIVED, _RECEIVED_BY_WRITE = 1, 0, 2
_UNIT, _LOW, _HIGH = 3, 5, 6


def touched_words(linked: LinkedProgram) -> NDArray[np.int64]:
    """Rows ``slice * words_per_slice + word`` that a launch may write, ascending, int64 [n].

    Every word of a WRITE, also of one that takes a received vector straight from its link, and
    the whole declared window of a SCATTER.  All other words are after a launch as before it.
    """
    parts = [np.zeros(0, np.int64)]
    arguments = linked.arguments.astype(np.int64)
    for piece in linked.table[np.isin(linked.table[:, OP], (Op.WRITE, Op.RECEIVE, Op.SCATTER))]:
        at = int(piece[FIRST]) + np.arange(int(piece[ELEMENTS])) * int(piece[STRIDE])
        if piece[OP] == Op.WRITE:
            parts.append(arguments[at + _WRITTEN])
        elif piece[OP] == Op.RECEIVE:
            written = arguments[at + _RECEIVED_BY_WRITE] >= 0
            parts.append(arguments[at + _RECEIVED][written])
        else:
            windows = np.stack([arguments[at + k] for k in (_UNIT, _LOW, _HIGH)], axis=1)
            for unit, low, high in np.unique(windows, axis=0).tolist():
                parts.append(unit * linked.spec.words_per_slice + np.arange(low, high + 1))
    return np.unique(np.concatenate(parts))
