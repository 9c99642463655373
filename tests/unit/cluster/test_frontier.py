"""Which plans no other beats in speed of one user and in tokens for a kilowatt."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import InputError
from cluster.planning import (
    PlanSettings,
    check_frontier,
    check_power,
    frontier_points,
    write_frontier,
)
from cluster.plots import draw_frontier


def plan(speed: float, per_kw: float, **more: Any) -> dict[str, Any]:
    return {
        "model": "target",
        "tokens_per_second_per_user": speed,
        "energy": {"joules_per_token_in_all": 1000 / per_kw},
        **more,
    }


def test_the_frontier_is_what_nobody_beats() -> None:
    """Against the definition, pair by pair; of equals the first one is kept."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        rows = [plan(float(a), float(b)) for a, b in draw.integers(1, 9, (12, 2))]
        points = frontier_points(rows)
        values = [
            (p["tokens_per_second_per_user"], round(p["tokens_per_second_per_kw"], 6))
            for p in points
        ]
        for point, (number, own) in zip(points, enumerate(values), strict=True):
            beaten = any(
                other != own and other[0] >= own[0] and other[1] >= own[1] for other in values
            )
            if beaten:
                assert not point["on_frontier"]
            elif values.index(own) == number:
                assert point["on_frontier"]


def test_plans_without_a_power_have_no_place_on_it() -> None:
    rows = [plan(5, 3), plan(9, 1) | {"energy": None}, {"problem": "no room"}]
    (point,) = frontier_points(rows)
    assert point["tokens_per_second_per_kw"] == pytest.approx(3) and point["on_frontier"]
    with pytest.raises(InputError, match=r"no plan has a power; give it with --set chip.average"):
        frontier_points(rows[1:])


def test_a_frontier_without_any_power_is_refused_before_planning() -> None:
    both = PlanSettings("target", chip=["groq-lpu-1", "groq-3-lp30"])
    check_power(both.steps)
    with pytest.raises(InputError, match=r"no plan has a power; give it with --set chip.average"):
        check_power(PlanSettings("target", chip=["groq-3-lp30"]).steps)
    check_power(PlanSettings("target", chip=["groq-3-lp30"], set_=["chip.average_power_w=9"]).steps)


@pytest.mark.long
def test_a_file_and_a_picture(tmp_path: Path) -> None:
    rows = [plan(s, k, batch=s * k) for s, k in product((1, 2), (3, 4))]
    points = frontier_points(rows)
    write_frontier(points, ["batch"], tmp_path / "f.csv")
    lines = (tmp_path / "f.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("batch,chips,context,mode,tokens_per_second_per_user,")
    assert [line.endswith("True") for line in lines[1:]] == [False, False, False, True]
    draw_frontier(points, ["batch"], tmp_path / "f.svg")
    text = (tmp_path / "f.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    draw_frontier(points, ["batch"], tmp_path / "g.svg")
    assert (tmp_path / "g.svg").read_text(encoding="utf-8") == text
    with pytest.raises(InputError, match=r"use a name that ends in \.csv, \.png or \.svg"):
        check_frontier(tmp_path / "f.txt")
