"""Cost of tokens by a user's prices: the sums, the file, and what it must say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chip.spec import PRESETS
from cluster.cli import run
from cluster.errors import InputError
from cluster.planning import (
    PlanSettings,
    Prices,
    cost_per_million,
    cost_per_second,
    plan_models,
    read_prices,
    unknown_chips,
)
from tests import ROOT

LPU, LP30 = PRESETS["groq-lpu-1"], PRESETS["groq-3-lp30"]
PLAIN = "chip_price = 3.6525\nyears = 1\nelectricity_per_kwh = 0.0\n"


def listed(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_chip_s_price_is_spread_over_its_years() -> None:
    """365.25 days of 86,400 s: 31.5576 in a year of as many million seconds."""
    prices = Prices(chip_price=31.5576, years=2, electricity_per_kwh=0, chip_power_w=100)
    assert cost_per_second(prices, 10) == pytest.approx(10 * 31.5576 / 2 / 31_557_600)
    # 5e-6 a second: a million tokens at 100 a second take 10,000 s
    assert cost_per_million(prices, 10, 100) == pytest.approx(0.05)


def test_energy_room_and_idle_time_count() -> None:
    """A kilowatt at the chips is 1.5 at the meter; half of the time nobody wants a token."""
    prices = Prices(0, 1, 0.2, power_overhead=1.5, chip_power_w=100, utilisation=0.5)
    assert cost_per_second(prices, 10) == pytest.approx(1.5 * 0.2 / 3600)
    assert cost_per_million(prices, 10, 1e6) == pytest.approx(2 * 1.5 * 0.2 / 3600)
    yearly = Prices(0, 1, 0, yearly_per_chip=31.5576)
    assert cost_per_second(yearly, 3) == pytest.approx(3e-6)


def test_a_chip_has_prices_of_its_own(tmp_path: Path) -> None:
    own = "[chip.groq-3-lp30]\nchip_price = 7\nchip_power_w = 300\n"
    prices = read_prices(listed(tmp_path, PLAIN + own))
    assert (prices.of(LPU).chip_price, prices.of(LPU).chip_power_w) == (3.6525, 185)
    assert (prices.of(LP30).chip_price, prices.of(LP30).chip_power_w) == (7, 300)
    assert prices.of(LP30).years == 1 and prices.of(LPU).utilisation == 1
    assert PlanSettings("target", prices=tmp_path / "prices.toml").prices is not None


def test_the_example_is_read_and_says_that_it_is_none() -> None:
    path = ROOT / "docs" / "prices.toml"
    assert "made up" in path.read_text(encoding="utf-8")
    prices = read_prices(path)
    assert prices.of(LPU).currency == "EUR" and prices.of(LP30).chip_power_w > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chip_price = ", "not valid TOML"),
        ("price = 3", "price is no price; known: chip_price, years"),
        ("years = 0", "years is 0; use a number above 0 to 100"),
        ("years = nan", "years is nan; use a number above 0 to 100"),
        ("chip_price = -1", "chip_price is -1; use a number from 0 to 1e+09"),
        ("power_overhead = 0.5", "power_overhead is 0.5; use a number from 1 to 10"),
        ("utilisation = 1.5", "utilisation is 1.5; use a number above 0 to 1"),
        ("years = true", "years is no number"),
        ("currency = 3", "currency is a word of at most 20 characters"),
        ("chip = 3", "chip is no table of tables; write [chip.groq-lpu-1]"),
        ("[chip]\nyears = 3", "chip is no table of tables; write [chip.groq-lpu-1]"),
        ("[chip.mine]\nyears = 'x'", "years is no number"),
    ],
)
def test_what_is_no_price_list(tmp_path: Path, text: str, words: str) -> None:
    path = listed(tmp_path, text)
    with pytest.raises(InputError) as refused:
        PlanSettings("target", prices=path)
    assert str(refused.value).startswith(f"{path}: ") and words in str(refused.value)


def test_what_a_list_leaves_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="years of groq-lpu-1 is not given; add it, prices are y"):
        read_prices(listed(tmp_path, "chip_price = 3")).of(LPU)
    with pytest.raises(InputError, match="groq-3-lp30 has no average power; give its chip_power_w"):
        read_prices(listed(tmp_path, PLAIN)).of(LP30)


def test_prices_are_looked_at_before_anything_is_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every chip that is asked for, not only of the first."""
    path = listed(tmp_path, PLAIN + "[chip.groq-lpu1]\nyears = 3\n")
    chips = ["groq-lpu-1", "groq-3-lp30"]
    told: list[str] = []
    with pytest.raises(InputError, match="groq-3-lp30 has no average power; give its chip_power_w"):
        plan_models(PlanSettings("target", chip=chips, prices=path), told.append)
    assert told == []
    assert unknown_chips(path, [LPU]) == ["groq-lpu1"]
    assert unknown_chips(path, [replace(LPU, name="groq-lpu1")]) == []
    asked = ["plan", "--model", "target", "--prices", str(path), "--chip", "groq-3-lp30"]
    assert run(asked) == 2
    assert f"{path}: [chip.groq-lpu1] is of no chip that is known" in capsys.readouterr().err
