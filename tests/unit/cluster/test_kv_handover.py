"""KV caches on a link: against formulas, a plain sort, and a bound on memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.experiments.serving import PS
from cluster.experiments.serving.kv_handover import (
    exposed_by_formula,
    hand_over,
    kv_bytes,
    kv_pieces,
)
from cluster.gpu import LINK_PRESETS, LinkLedger, WorldLink
from programs.models import architecture
from tests import examples


@settings(max_examples=examples(200), deadline=None)
@given(
    st.integers(1, 100_000),
    st.floats(1e-4, 10.0),
    st.integers(1, 100),
    st.floats(1e8, 1e12),
)
def test_a_handover_shows_what_the_formula_says(
    tokens: int, prefill_s: float, layers: int, rate: float
) -> None:
    """Exactly max(last layer, S/B - t (1 - 1/layers)) + latency; the formula counts one more."""
    link = WorldLink("test", 1e-5, rate, 1.0)
    nbytes = 1280 * layers * tokens
    end = round(prefill_s * PS)
    _, arrived = hand_over(
        np.array([0]), np.array([end]), [nbytes], layers, LinkLedger(link), "layers"
    )
    exposed = (int(arrived[0]) - end) / PS
    last, whole = nbytes / layers / rate, nbytes / rate
    exact = max(last, whole - prefill_s * (1 - 1 / layers)) + 1e-5
    slack = 1e-9 + 4 / rate * (layers + 1) + 1e-12 * whole
    assert exposed == pytest.approx(exact, rel=1e-9, abs=slack)
    formula = exposed_by_formula(nbytes, link, prefill_s, layers)
    assert exposed - slack <= formula <= exposed + last + slack


def test_serial_handover_waits_for_all_and_the_link_is_shared_in_order() -> None:
    link = WorldLink("test", 1.0, 100.0, 1.0)
    ends = np.array([10 * PS, 11 * PS])
    left, arrived = hand_over(ends - PS, ends, [996, 996], 4, LinkLedger(link), "serial")
    assert left.tolist() == [10 * PS, 20 * PS]
    assert arrived.tolist() == [21 * PS, 31 * PS]


def test_every_byte_of_the_cache_crosses_once() -> None:
    for handover in ("serial", "layers"):
        ledger = LinkLedger(LINK_PRESETS["pcie5-x16"])
        hand_over(np.array([0, 5]), np.array([7, 9]), [1001, 13], 80, ledger, handover)
        assert ledger.bytes_by_kind["kv"] == 1014 and ledger.bytes_by_kind["tokens"] == 8


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40), st.integers(0, 99)), max_size=12),
    st.integers(1, 7),
)
def test_pieces_come_in_the_order_of_a_plain_sort(
    rows: list[tuple[int, int, int]], pieces: int
) -> None:
    begin = np.cumsum([gap for gap, _, _ in rows]).astype(np.int64)
    end = begin + np.array([span for _, span, _ in rows], np.int64)
    nbytes = [size for _, _, size in rows]
    expected = sorted(
        (
            first + (last - first) * (n + 1) // pieces,
            request,
            n,
            whole * (n + 1) // pieces - whole * n // pieces,
        )
        for request, (first, last, whole) in enumerate(zip(begin, end, nbytes, strict=True))
        for n in range(pieces)
    )
    assert list(kv_pieces(begin, end, nbytes, pieces)) == expected


@pytest.mark.long
def test_memory_does_not_grow_with_requests_times_layers() -> None:
    """1,000 requests of 126 layers are 126,000 transfers; few are known at a time."""
    begin = np.arange(1000) * PS
    tracemalloc.start()
    for _ in kv_pieces(begin, begin + 3 * PS, [10**9] * 1000, 126):
        pass
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1_000_000


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("llama-2-70b", 327_680),
        ("llama-3-70b", 327_680),
        ("opt-66b", 2_359_296),
        ("llama-3-405b", 516_096),
        ("deepseek-v3", 70_272),
        ("qwen3-8b", 147_456),
        ("qwen3-235b", 192_512),
    ],
)
def test_kv_bytes_per_token_are_the_published_ones(name: str, bytes_per_token: int) -> None:
    assert kv_bytes(architecture(name), 3) == 3 * bytes_per_token
