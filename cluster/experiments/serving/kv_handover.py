"""The KV cache of a prompt on its way from where it was made to where it is used.

Whole after the prefill (*serial*), or each layer when it is computed (*layers*); all caches cross
one link, first come, first served.  This module knows requests by when they compute, not machines.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cluster.experiments.serving.arrivals import PS, check_time
from cluster.gpu import TOKEN_BYTES, LinkLedger, WorldLink
from programs.models import Architecture

I64 = NDArray[np.int64]


def kv_bytes(arch: Architecture, prompt_tokens: int) -> int:
    """Bytes of a prompt's KV cache, 16-bit values."""
    return arch.kv_bytes_per_token() * prompt_tokens


def exposed_by_formula(nbytes: int, link: WorldLink, prefill_s: float, layers: int) -> float:
    """Seconds a layer-by-layer handover shows on an idle link, by the published kind of formula.

    max(0, S/B - t_prefill (1 - 1/layers)) + last layer + latency; one layer stands for a serial
    handover, S/B + latency.  An upper bound: where the link
    is slower than the prefill it counts the last layer twice, at most one layer's S/(B layers).
    """
    whole, last = link.occupied_seconds(nbytes), link.occupied_seconds(-(-nbytes // layers))
    if layers == 1:
        return whole + link.latency_s
    return max(0.0, whole - prefill_s * (1 - 1 / layers)) + last + link.latency_s


def kv_pieces(
    begin: I64, end: I64, nbytes: Sequence[int], pieces: int
) -> Iterator[tuple[int, int, int, int]]:
    """(when it is computed, request, number, bytes) of every piece, in this order.

    As ``hand_over``.  Pieces of requests that have not begun are not held: there are never more in
    memory than requests that prefill at one instant.
    """
    waiting: list[tuple[int, int, int]] = []
    first, last = begin.tolist(), end.tolist()
    coming = 0
    while waiting or coming < len(first):
        while coming < len(first) and (not waiting or first[coming] <= waiting[0][0]):
            span = last[coming] - first[coming]
            heapq.heappush(waiting, (first[coming] + span // pieces, coming, 0))
            coming += 1
        at, request, piece = heapq.heappop(waiting)
        whole = nbytes[request]
        yield at, request, piece, whole * (piece + 1) // pieces - whole * piece // pieces
        if piece + 1 < pieces:
            span = last[request] - first[request]
            after = first[request] + span * (piece + 2) // pieces
            heapq.heappush(waiting, (after, request, piece + 1))


def hand_over(
    begin: I64, end: I64, nbytes: Sequence[int], layers: int, ledger: LinkLedger, handover: str
) -> tuple[I64, I64]:
    """When each request's last KV piece sets out, and when all has crossed; ps, int64 [requests].

    begin, end: of the prefills' passes, ps, begins ascending; layers are done at equal intervals.
    The first token travels in front of the last piece and sets out with it.
    """
    pieces = layers if handover == "layers" else 1
    left, arrived = (np.zeros(len(begin), np.int64) for _ in range(2))
    for at, request, piece, part in kv_pieces(begin, end, nbytes, pieces):
        if piece == pieces - 1:
            left[request] = max(at, round(ledger.free_s * PS))
            ledger.send("tokens", TOKEN_BYTES, at / PS)
        arrival = ledger.send("kv", part, at / PS)
        check_time(arrival)
        arrived[request] = round(arrival * PS)
    return left, arrived
