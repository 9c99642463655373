"""What the pictures of a report show: every number of a section at its place, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch

from cluster.report import drawing, pictures, topology_picture
from cluster.report.drawing import WIDTH_INCHES, Drawing
from cluster.report.run_file import WORD_KINDS


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures of the pictures made, not turned into SVG."""
    found: list[Figure] = []

    @contextmanager
    def kept(name: str, title: str, height_inches: float) -> Iterator[Drawing]:
        found.append(Figure(figsize=(WIDTH_INCHES, height_inches)))
        yield Drawing(found[-1])

    monkeypatch.setattr(pictures, "drawing", kept)
    monkeypatch.setattr(topology_picture, "drawing", kept)
    return found


def stairs(axes: Axes) -> list[tuple[list[float], list[float]]]:
    """(heights, edges) of every histogram in the order drawn."""
    steps = [patch.get_data() for patch in axes.patches if isinstance(patch, StepPatch)]
    return [(np.asarray(s.values).tolist(), np.asarray(s.edges).tolist()) for s in steps]


def ticks(axis: Any) -> dict[float, str]:
    return {
        float(at): text.get_text()
        for at, text in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    }


def size(figure: Figure) -> float:
    return round(float(figure.get_size_inches()[1]), 6)


def test_utilisation(drawn: list[Figure]) -> None:
    families = [
        {"name": "mxm", "units": 4, "mean": 0.25, "ratio": [0.5, 0.0]},
        {"name": "sxm\nway", "units": 1200, "mean": 0.3, "ratio": [0.002, 0.004]},
        {"name": "vxm", "units": 16, "mean": 0.0, "ratio": [0.0, 0.0]},
    ]
    section = {"entry": "decode", "edges": [0, 10, 2000], "families": families, "note": "So."}
    picture = pictures.utilisation(section)
    assert picture.title == "Units over the cycles of decode"
    assert picture.caption == (
        "decode, 2,000 cycles; every panel has its own scale.  Busiest: sxm way, 30.0% on average."
        "  So."
    )
    axes = drawn[0].axes
    assert size(drawn[0]) == pytest.approx(0.55 + 3 * 0.62)
    assert [stairs(one) for one in axes] == [[(f["ratio"], [0, 10, 2000])] for f in families]
    assert [one.get_title("left") for one in axes] == [
        "mxm: mean 25.0% of 4",
        "sxm way: mean 30.0% of 1,200",
        "vxm: mean 0.0% of 16",
    ]
    assert ticks(axes[0].yaxis) == {0: "0", 0.5: "50%"}
    assert ticks(axes[1].yaxis) == {0: "0", 0.004: "0.4%"}
    for one, most in zip(axes, (0.5, 0.004, 1e-9), strict=True):
        assert one.get_xlim() == (0, 2000)
        low, high = one.get_ylim()
        assert low == 0 and most < high < 1.5 * most
    assert [one.get_xlabel() for one in axes] == ["", "", "cycle"]


def links_of(chips: int) -> dict[str, Any]:
    busy = [
        {"chip": 0, "to": 1, "ratio": 0.25},
        {"chip": 0, "to": 1, "ratio": 0.5},
        {"chip": chips - 1, "to": 0, "ratio": 0.0},
    ]
    return {
        "entry": "decode",
        "edges": [0, 4, 8],
        "busy": busy,
        "most": [0.5, 1.25],
        "mean": [0.1, 0.2],
        "note": "So.",
    }


@pytest.mark.parametrize("chips", [8, 16, 17, 72])
def test_links_of_a_small_machine_are_a_matrix(chips: int, drawn: list[Figure]) -> None:
    picture = pictures.links(links_of(chips), chips)
    assert picture.caption == (
        "3 directions of cables; busy for 0.00% to 50.00% of the launch, 25.00% on average.  So."
    )
    over, each, _ = drawn[0].axes
    assert stairs(over) == [([0.5, 1.25], [0, 4, 8]), ([0.1, 0.2], [0, 4, 8])]
    assert over.get_xlim() == (0, 8)
    assert over.get_ylim()[0] == 0 and 1.25 < over.get_ylim()[1] < 1.4
    legend = over.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["busiest", "mean"]
    values = np.ma.asarray(each.collections[0].get_array()).reshape(chips, chips)
    # the two cables from 0 to 1 together; blank where there is none
    assert values[0, 1] == 0.75 and values[chips - 1, 0] == 0.0
    assert values.count() == 2
    assert each.collections[0].get_clim()[0] == 0
    assert each.yaxis_inverted() and not each.xaxis_inverted()
    assert (each.get_xlabel(), each.get_ylabel()) == ("to chip", "from chip")
    named = {n + 0.5: str(n) for n in range(chips)}
    if chips <= 16:
        assert ticks(each.xaxis) == ticks(each.yaxis) == named
    else:
        for axis in (each.xaxis, each.yaxis):
            places = axis.get_major_locator().tick_values(0, chips)
            assert 3 <= len(places) <= 10 and (places == np.round(places)).all()


def test_links_of_a_large_machine_are_sorted(drawn: list[Figure]) -> None:
    pictures.links(links_of(73), 73)
    over, each = drawn[0].axes
    assert stairs(each) == [([0.5, 0.25, 0.0], [0, 1, 2, 3])]
    assert each.yaxis.get_major_formatter()(0.25, 0) == "25%"
    assert over.yaxis.get_major_formatter()(1.0, 0) == "100%"
    pictures.links({**links_of(73), "most": [0.5, 0.5]}, 73)
    # an idle machine's scale still ends at all of the time
    assert 1.0 < drawn[1].axes[0].get_ylim()[1] < 1.1


def sram_section() -> dict[str, Any]:
    """88 slices of 8 words in 4 rows; the first reserved, the second weights above two KV words."""
    kv, weights = 3, 4
    cells = [[0] * 4 for _ in range(88)]
    words = [[8, *[0] * 7] for _ in range(88)]
    cells[0] = [1] * 4
    words[0] = [0, 8, 0, 0, 0, 0, 0, 0]
    cells[1] = [kv, weights, weights, 0]
    words[1] = [1, 0, 0, 2, 5, 0, 0, 0]
    cells[87] = [weights, 0, 0, weights]
    words[87] = [4, 0, 0, 0, 4, 0, 0, 0]
    return {"cells": cells, "words": words, "words_per_slice": 8, "word_bytes": 320, "note": "So."}


def boxes(axes: Axes) -> list[list[tuple[float, float, float, float]]]:
    """(left, bottom, right, top) of the boxes of every collection."""
    extents = [[path.get_extents() for path in c.get_paths()] for c in axes.collections]
    return [[(e.x0, e.y0, e.x1, e.y1) for e in one] for one in extents]


def test_the_sram_map(drawn: list[Figure]) -> None:
    picture = pictures.sram(sram_section())
    assert picture.caption == (
        f"Of {88 * 8 * 320:,} B: reserved 2,560 B; {WORD_KINDS[3]} 640 B; {WORD_KINDS[4]} 2,880 B."
        "  So."
    )
    assert size(drawn[0]) == pytest.approx(4.2 + 3 * 0.2)  # a line of the legend for each kind
    which, held_by = drawn[0].axes
    assert boxes(which) == [
        [(0, 0, 1, 8)],
        [(1, 0, 2, 2)],
        [(1, 2, 2, 6), (87, 0, 88, 2), (87, 6, 88, 8)],
    ]
    assert which.get_xlim() == (0, 88) and which.get_ylim() == (0, 8)
    bars = [p for p in held_by.patches if isinstance(p, Rectangle)]
    assert len(bars) == 2 * 88  # reserved slices are full anyhow
    tall = [(b.get_x(), b.get_width(), b.get_y(), b.get_height()) for b in bars if b.get_height()]
    assert tall == [(1, 1, 0, 2), (1, 1, 2, 5), (87, 1, 0, 4)]
    for axes in drawn[0].axes:
        # between the hemispheres
        assert [np.unique(line.get_xdata()).tolist() for line in axes.lines] == [[44]]
    middles = {0.5: "0", 22.0: "west", 44.0: "43 | 0", 66.0: "east", 87.5: "43"}
    assert ticks(held_by.xaxis) == middles
    (legend,) = drawn[0].legends
    assert [t.get_text() for t in legend.get_texts()] == [WORD_KINDS[n] for n in (1, 3, 4)]
    # a patch of the legend has the colour of its boxes
    colours = [tuple(c.get_facecolor()[0]) for c in which.collections]
    assert [p.get_facecolor() for p in legend.get_patches()] == colours
    assert len(set(colours)) == 3


def test_an_empty_sram_has_no_legend(drawn: list[Figure]) -> None:
    section = sram_section()
    section.update(cells=[[0] * 4 for _ in range(88)], words=[[8, *[0] * 7] for _ in range(88)])
    assert "Of 225,280 B: nothing." in pictures.sram(section).caption
    assert drawn[0].legends == []


def test_the_roofline(drawn: list[Figure]) -> None:
    machines = [
        {"name": "LPU", "ops_per_s": 8e14, "bytes_per_s": 8e13, "source": "exact"},
        {"name": "GPU", "ops_per_s": 1e15, "bytes_per_s": 2e12, "source": "given"},
    ]
    points = [
        {"name": "decode", "ops_per_byte": 2.0, "ops_per_s": 1.5e12, "source": "exact"},
        {"name": "prefill", "ops_per_byte": 2000.0, "ops_per_s": 9e14, "source": "estimated"},
    ]
    picture = pictures.roofline({"machines": machines, "points": points, "note": "So."})
    assert picture.caption == (
        "decode: 1,500 G operations/s at 2 per byte (exact); "
        "prefill: 900,000 G operations/s at 2,000 per byte (estimated).  So."
    )
    assert size(drawn[0]) == pytest.approx(3.1 + 4 * 0.2)
    (axes,) = drawn[0].axes
    lpu, gpu, decode, prefill = axes.lines
    # a quarter of the least to eight times the most intensity; knees at 10 and 500
    assert lpu.get_xdata() == pytest.approx([0.5, 10, 16000])
    assert lpu.get_ydata() == pytest.approx([4e13, 8e14, 8e14])
    assert gpu.get_xdata() == pytest.approx([0.5, 500, 16000])
    assert gpu.get_ydata() == pytest.approx([1e12, 1e15, 1e15])
    assert (lpu.get_linestyle(), gpu.get_linestyle()) == ("-", "--")
    assert (decode.get_xdata(), decode.get_ydata()) == ([2.0], [1.5e12])
    assert (prefill.get_xdata(), prefill.get_ydata()) == ([2000.0], [9e14])
    assert (decode.get_marker(), prefill.get_marker()) == ("o", "s")
    assert [line.get_label() for line in axes.lines] == [
        "LPU",
        "GPU",
        "decode (exact)",
        "prefill (estimated)",
    ]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert len({line.get_color() for line in (lpu, gpu)}) == 2
    assert len(drawn[0].legends) == 1
    assert [axis.get_major_formatter()(2e12, 0) for axis in (axes.xaxis, axes.yaxis)] == ["2T"] * 2


@pytest.mark.parametrize(("last", "subs"), [(0.29, (1, 2, 5)), (0.3, (1,))])
def test_latencies(last: float, subs: tuple[int, ...], drawn: list[Figure]) -> None:
    series = [
        {
            "name": "lpu",
            "source": "exact",
            "share": [0.0, 1.0],
            "p50_s": 0.02,
            "p99_s": 0.02,
            "count": 1000,
            "least_s": 0.02,
            "most_s": 0.02,
        },
        {
            "name": "gpu",
            "source": "given",
            "share": [0.25, 0.5],
            "p50_s": 0.012,
            "p99_s": 0.03,
            "count": 7,
            "least_s": 0.0115,
            "most_s": 0.031,
        },
    ]
    section = {
        "title": "First token",
        "edges_s": [0.01, 0.015, last],
        "series": series,
        "note": "So.",
    }
    picture = pictures.latencies(section, 3)
    assert (picture.name, picture.title) == ("latency-3", "First token")
    assert picture.caption == (
        "lpu: 1,000 times from 20 ms to 20 ms, p99/p50 1.000; "
        "gpu: 7 times from 11.5 ms to 31 ms, p99/p50 2.500.  Dotted: p99.  So."
    )
    axes = drawn[0].axes
    assert size(drawn[0]) == pytest.approx(0.75 + 2 * 0.85)
    assert [stairs(one) for one in axes] == [[(s["share"], section["edges_s"])] for s in series]
    assert [one.get_title("left") for one in axes] == [
        "lpu (exact): p50 20 ms, p99 20 ms",
        "gpu (given): p50 12 ms, p99 30 ms",
    ]
    assert [np.unique(one.lines[0].get_xdata()).tolist() for one in axes] == [[0.02], [0.03]]
    assert [ticks(one.yaxis) for one in axes] == [{1.0: "100%"}, {0.5: "50%"}]
    for one, most in zip(axes, (1.0, 0.5), strict=True):
        assert one.get_xlim() == pytest.approx((0.01, last)) and one.get_xscale() == "log"
        assert one.get_ylim()[0] == 0 and most < one.get_ylim()[1] < 1.5 * most
    locator: Any = axes[-1].xaxis.get_major_locator()
    assert tuple(locator._subs) == subs
    assert axes[-1].xaxis.get_major_formatter()(0.02, 0) == "20 ms"


def test_bars(drawn: list[Figure]) -> None:
    values = [
        {"name": "lpu", "value": 1234.5, "source": "exact"},
        {"name": "gpu", "value": None, "source": "estimated"},
        {"name": "both", "value": 2000.0, "source": "given"},
    ]
    section = {"title": "Rate", "unit": "tokens/s", "values": values, "note": "So."}
    picture = pictures.bars(section, 2)
    assert picture.name == "bars-2"
    assert picture.caption == (
        "lpu 1,234 tokens/s (exact); gpu none (estimated); both 2,000 tokens/s (given).  So."
    )
    (axes,) = drawn[0].axes
    bars = [p for p in axes.patches if isinstance(p, Rectangle)]
    assert [(b.get_x(), b.get_width()) for b in bars] == [(0, 1234.5), (0, 0), (0, 2000)]
    assert [b.get_y() + b.get_height() / 2 for b in bars] == pytest.approx([0, 1, 2])
    assert ticks(axes.yaxis) == {0: "lpu", 1: "gpu", 2: "both"}
    assert [t.get_text() for t in axes.texts] == ["1,234 tokens/s", "none", "2,000 tokens/s"]
    # the first on top; room for the number beside the longest
    assert axes.yaxis_inverted() and len(axes.get_xticks()) == 0
    assert axes.get_xlim() == (0, pytest.approx(2900))
    assert not axes.spines["bottom"].get_visible()
    pictures.bars({**section, "unit": "s", "values": [{**values[1], "value": 0.0}]}, 0)
    assert drawn[1].axes[0].get_xlim() == (0, pytest.approx(1.45))
    assert [t.get_text() for t in drawn[1].axes[0].texts] == ["0 ns"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (2.5, "2.5 s"),
        (1.0, "1 s"),
        (0.9999, "999.9 ms"),
        (1e-3, "1 ms"),
        (2e-6, "2 µs"),
        (1e-6, "1 µs"),
        (9.5e-7, "950 ns"),
        (-3.0, "-3 s"),
    ],
)
def test_times_for_people(value: float, said: str) -> None:
    assert drawing.seconds(value) == said


def test_texts_for_people() -> None:
    assert drawing.count(999.94) == "999.9" and drawing.count(1000) == "1,000"
    assert drawing.count(-12345.6) == "-12,346"
    assert drawing.plain(" a\n b ") == "a b"
    assert drawing.plain("x" * 60) == "x" * 60 and drawing.plain("x" * 61) == "x" * 59 + "…"
    assert drawing.plain("abcd", 4) == "abcd" and drawing.plain("abcde", 4) == "abc…"
    assert drawing.paragraphs("a  b\nc", 99) == "a b\nc"
    assert drawing.printable({"k": ["a\x1b[1m\nb", 3]}) == {"k": ["a�[1m\nb", 3]}


# --- the machine ----------------------------------------------------------------------------------


def machine(chips: int, per_node: int, cables: Any = (), others: Any = ()) -> dict[str, Any]:
    return {
        "chips": chips,
        "chips_per_node": per_node,
        "topology": "dragonfly",
        "chip": "lp30",
        "clock_hz": 1.2e9,
        "cables": list(cables),
        "others": list(others),
        "note": "So.",
    }


def test_places_of_a_node_are_a_ring() -> None:
    at = topology_picture.places(4, 8)
    # members of a node of eight stand 45 degrees apart, the first on top
    angles = np.degrees(np.unwrap(np.arctan2(at[:, 1], at[:, 0])))
    assert angles == pytest.approx([90, 135, 180, 225])
    assert np.hypot(*at.T) == pytest.approx(np.ones(4))
    assert topology_picture.places(1, 8).tolist() == [[0, 0]]


@pytest.mark.parametrize("nodes", [2, 9, 33])
def test_places_of_nodes_are_rings_in_a_ring(nodes: int) -> None:
    at = topology_picture.places(8 * nodes - 1, 8)
    assert at.shape == (8 * nodes - 1, 2)
    middles = np.array([at[8 * n : 8 * n + 8].mean(axis=0) for n in range(nodes - 1)])
    assert np.hypot(*middles.T) == pytest.approx(np.ones(nodes - 1))
    first = np.degrees(np.arctan2(middles[:2, 1], middles[:2, 0]))
    assert first[0] == pytest.approx(90)
    around = at[:8] - middles[0]
    reach = np.hypot(*around.T)
    assert reach == pytest.approx(np.full(8, reach[0])) and 0 < reach[0] < 0.33
    assert around[0] == pytest.approx([0, reach[0]])
    if nodes > 2:
        assert (first[1] - first[0]) % 360 == pytest.approx(360 / nodes)
        # nodes do not touch: their middles are farther apart than two rings reach
        assert np.linalg.norm(middles[1] - middles[0]) > 2 * reach[0]


def test_chips_and_cables_of_a_node(drawn: list[Figure]) -> None:
    cables = [(0, 3, 1, 5), (1, 0, 7, 2)]
    picture = topology_picture.topology(machine(8, 8, cables))
    assert picture.title == "8 chips, dragonfly"
    assert picture.caption == "8 chips (lp30, 1,200 MHz) in one node, 2 cables.  So."
    (axes,) = drawn[0].axes
    at = topology_picture.places(8, 8)
    lines, dots = axes.collections
    ends = [path.vertices for path in lines.get_paths()]
    assert np.allclose(ends, [[at[0], at[1]], [at[1], at[7]]])
    assert np.allclose(np.asarray(dots.get_offsets()), at)
    assert {t.get_text(): t.get_position() for t in axes.texts} == {
        str(n): tuple(at[n]) for n in range(8)
    }
    limits = axes.get_xlim()[1], axes.get_ylim()[1]
    assert axes.get_xlim() == (-limits[0], limits[0]) == axes.get_ylim()
    assert np.abs(at).max() < limits[0]
    assert size(drawn[0]) == pytest.approx(WIDTH_INCHES)
    assert axes.get_aspect() == 1


@pytest.mark.parametrize(("chips", "named"), [(17, 3), (72, 9), (512, 64), (513, 0)])
def test_nodes_are_named_by_their_chips(chips: int, named: int, drawn: list[Figure]) -> None:
    picture = topology_picture.topology(machine(chips, 8))
    nodes = -(-chips // 8)
    assert f"in {nodes} nodes of 8, 0 cables" in picture.caption
    (axes,) = drawn[0].axes
    texts = [t.get_text() for t in axes.texts]
    expected = [f"{n}–{min(n + 8, chips) - 1}" for n in range(0, chips, 8)]
    assert texts == expected[:named]
    at = topology_picture.places(chips, 8)
    for number, text in enumerate(axes.texts[:-1]):
        # outside its node, in the node's direction from the middle
        place, middle = np.array(text.get_position()), at[8 * number : 8 * number + 8].mean(axis=0)
        assert np.dot(place, middle) > np.dot(at[8 * number : 8 * number + 8], middle).max()
        assert abs(place[0] * middle[1] - place[1] * middle[0]) < 1e-9


@pytest.mark.parametrize(("chips", "said"), [(1, "1 chip"), (8, "8 chips")])
def test_what_stands_beside(chips: int, said: str, drawn: list[Figure]) -> None:
    others = [
        {"name": "router", "count": 1, "link": ""},
        {"name": "gpu", "count": 1024, "link": "ethernet"},
    ]
    picture = topology_picture.topology(machine(chips, 8, (), others))
    assert picture.title == f"{said}, dragonfly"
    assert picture.caption == (
        f"{said} (lp30, 1,200 MHz) in one node, 0 cables."
        "  Beside them 1 x router.  Beside them 1,024 x gpu over ethernet.  So."
    )
    (axes,) = drawn[0].axes
    texts = {t.get_text(): t.get_position() for t in axes.texts}
    assert list(texts)[chips:] == ["1 ×\nrouter", "ethernet", "1,024 ×\ngpu"]
    upper, lower = texts["1,024 ×\ngpu"], texts["1 ×\nrouter"]
    # one above the other, as far from the middle
    assert upper[0] == lower[0] and upper[1] == -lower[1] > 0
    at = np.abs(topology_picture.places(chips, 8)).max()
    for line, box in zip(axes.lines, (lower, upper), strict=True):
        near, far = zip(line.get_xdata(), line.get_ydata(), strict=True)
        assert near[1] == 0 and at < near[0] < far[0] < box[0] and far[1] == box[1]
    name = texts["ethernet"]
    begin, end = axes.lines[1].get_xdata()
    assert begin < name[0] < end
    if chips > 1:
        assert name[1] > upper[1] * (name[0] - begin) / (end - begin)
    assert upper[0] + 1 < axes.get_xlim()[1] and axes.get_ylim()[0] == -axes.get_ylim()[1]
    assert abs(upper[1]) < axes.get_ylim()[1]
