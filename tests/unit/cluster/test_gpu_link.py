"""The link between LPUs and GPUs: times, first come first served, and what it carried."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.gpu import KINDS, LINK_PRESETS, LinkLedger, WorldLink, load_link

links = st.builds(
    WorldLink,
    latency_s=st.floats(0, 1e-3),
    bytes_per_s=st.floats(1e6, 1e12),
    achieved_ratio=st.floats(0.1, 1),
)
transfers = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 10**9), st.floats(0, 10)),
    min_size=1,
    max_size=40,
).map(lambda sends: sorted(sends, key=lambda send: send[2]))


def test_presets() -> None:
    assert list(LINK_PRESETS) == [
        "pcie5-x16",
        "pcie6-x16",
        "100gbe",
        "400gbe",
        "800gbe",
        "nvlink-c2c",
    ]
    pcie = load_link("pcie5-x16")
    assert pcie.seconds(0) == 10e-6
    assert pcie.seconds(48_000_000) == pytest.approx(10e-6 + 1e-3)
    assert load_link("400gbe").seconds(45_000_000) == pytest.approx(15e-6 + 1e-3)


def test_a_transfer_waits_for_the_one_before() -> None:
    ledger = LinkLedger(WorldLink("slow", 0.5, 100.0, 1.0))
    assert ledger.send("kv", 200, 1.0) == 3.5
    assert ledger.send("tokens", 100, 1.0) == 4.5
    assert ledger.send("tokens", 100, 10.0) == 11.5
    assert ledger.bytes_by_kind == {
        "tokens": 200,
        "logits": 0,
        "kv": 200,
        "json": 0,
        "activations": 0,
    }
    assert (ledger.transfers, ledger.total_bytes, ledger.busy_s) == (3, 400, 4.0)
    assert ledger.waited_s == 2.0
    assert ledger.utilisation(16.0) == 0.25


@given(links, transfers)
def test_first_come_first_served(link: WorldLink, sends: list[tuple[str, int, float]]) -> None:
    ledger = LinkLedger(link)
    arrivals = [ledger.send(*send) for send in sends]
    assert arrivals == sorted(arrivals)
    free = 0.0
    for (_, nbytes, at), arrival in zip(sends, arrivals, strict=True):
        assert arrival >= at + link.latency_s
        assert arrival >= link.seconds(nbytes) + at or math.isclose(
            arrival, link.seconds(nbytes) + at
        )
        free = max(free, at) + link.occupied_seconds(nbytes)
        assert arrival == free + link.latency_s
    assert ledger.total_bytes == sum(nbytes for _, nbytes, _ in sends)
    assert ledger.transfers == len(sends)
    assert ledger.busy_s <= ledger.free_s * (1 + 1e-12)


@given(links, st.integers(0, 10**9), st.integers(0, 10**9))
def test_an_idle_link_takes_latency_and_bytes(link: WorldLink, one: int, two: int) -> None:
    few, many = sorted((one, two))
    assert link.latency_s <= link.seconds(few) <= link.seconds(many)
    assert LinkLedger(link).send("json", few, 0.0) == pytest.approx(link.seconds(few))


def test_mistakes_are_refused_and_book_nothing() -> None:
    ledger = LinkLedger(LINK_PRESETS["nvlink-c2c"])
    ledger.send("logits", 10, 5.0)
    with pytest.raises(ValueError, match="sort them by time"):
        ledger.send("logits", 10, 4.9)
    with pytest.raises(ValueError, match="sort them by time"):
        ledger.send("logits", 10, math.nan)
    with pytest.raises(ValueError, match="known are tokens"):
        ledger.send("gossip", 10, 6.0)
    with pytest.raises(InputError, match="a transfer of -1 bytes"):
        ledger.send("kv", -1, 6.0)
    assert (ledger.transfers, ledger.total_bytes) == (1, 10)
