"""What a million tokens cost, by prices that a user gives: no price is known here.

A TOML file, with a table for each chip whose prices differ (``docs/prices.toml`` shows one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from chip.spec import PRESETS, ChipSpec
from chip.toml_files import TomlFileError, read_toml
from cluster.errors import InputError

YEAR_SECONDS = 365.25 * 86_400
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Prices:
    """Money per chip and kilowatt-hour, in ``currency``.

    chip_price: of a chip with its share of servers, racks and network, written off over ``years``.
    electricity_per_kwh, power_overhead: energy, and how many times as much the whole site draws.
    yearly_per_chip: room, people, service.  utilisation: share of the time in which tokens are
    wanted; the chips cost all the time.  chip_power_w: 0 for the average power of the chip's spec.
    """

    chip_price: float
    years: float
    electricity_per_kwh: float
    power_overhead: float = 1.0
    yearly_per_chip: float = 0.0
    utilisation: float = 1.0
    chip_power_w: float = 0.0
    currency: str = "units of money"


#: Least and greatest value of a price; the least is not allowed where nothing would come of it.
_LIMITS: dict[str, tuple[float, float, bool]] = {
    "chip_price": (0, 1e9, True),
    "years": (0, 100, False),
    "electricity_per_kwh": (0, 1e6, True),
    "power_overhead": (1, 10, True),
    "yearly_per_chip": (0, 1e9, True),
    "utilisation": (0, 1, False),
    "chip_power_w": (0, 1e6, True),
}
_NEEDED = ("chip_price", "years", "electricity_per_kwh")


@dataclass(frozen=True)
class PriceList:
    """Prices of any chip, and of those with a table of their own."""

    path: Path
    plain: dict[str, Any]
    chips: dict[str, dict[str, Any]]

    def of(self, spec: ChipSpec) -> Prices:
        """Prices of a chip; raises InputError where the file leaves one out."""
        given = self.plain | self.chips.get(spec.name, {})
        for name in _NEEDED:
            if name not in given:
                raise InputError(
                    f"{self.path}: {name} of {spec.name} is not given; add it, prices are yours"
                )
        prices = Prices(**given)
        if not prices.chip_power_w:
            prices = replace(prices, chip_power_w=spec.average_power_w)
        if not prices.chip_power_w:
            raise InputError(
                f"{self.path}: {spec.name} has no average power; give its chip_power_w"
            )
        return prices


def read_prices(path: Path) -> PriceList:
    """The prices in a file; raises InputError, one line, for everything that is none."""
    try:
        table = read_toml(path)
    except TomlFileError as error:
        raise InputError(f"{path}: {error}") from None
    chips = table.pop("chip", {})
    if not isinstance(chips, dict) or not all(isinstance(own, dict) for own in chips.values()):
        raise InputError(f"{path}: chip is no table of tables; write [chip.groq-lpu-1]")
    for own in (table, *chips.values()):
        for name, value in own.items():
            _check(path, name, value)
    return PriceList(path, table, chips)


def unknown_chips(path: Path, specs: Sequence[ChipSpec]) -> list[str]:
    """Chips with prices of their own that are neither planned nor a preset: misspelt, perhaps."""
    return sorted(set(read_prices(path).chips) - {spec.name for spec in specs} - set(PRESETS))


def _check(path: Path, name: str, value: object) -> None:
    if name == "currency":
        if not isinstance(value, str) or not 0 < len(value) <= 20 or not value.isprintable():
            raise InputError(f"{path}: currency is a word of at most 20 characters")
        return
    if name not in _LIMITS:
        known = ", ".join(f.name for f in fields(Prices))
        raise InputError(f"{path}: {name[:60]} is no price; known: {known}")
    least, most, with_least = _LIMITS[name]
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InputError(f"{path}: {name} is no number")
    if not least <= value <= most or (value == least and not with_least):
        beyond = "from" if with_least else "above"
        raise InputError(f"{path}: {name} is {value}; use a number {beyond} {least:g} to {most:g}")


def cost_per_second(prices: Prices, chips: int) -> float:
    """Money that ``chips`` chips cost in a second, working or not."""
    kilowatt_hours = prices.chip_power_w * prices.power_overhead / JOULES_PER_KWH
    each = (prices.chip_price / prices.years + prices.yearly_per_chip) / YEAR_SECONDS
    return chips * (each + kilowatt_hours * prices.electricity_per_kwh)


def cost_per_million(prices: Prices, chips: int, tokens_per_second: float) -> float:
    """Money per million tokens at a rate that is kept up for ``utilisation`` of the time."""
    return 1e6 * cost_per_second(prices, chips) / (tokens_per_second * prices.utilisation)


def cost_row(prices: Prices, chips: int, total: float, full: float) -> dict[str, Any]:
    """A plan's cost as JSON: at its own rate and with a full belt (tokens per second of all)."""
    return {
        "currency": prices.currency,
        "per_second": cost_per_second(prices, chips),
        "per_million_tokens": cost_per_million(prices, chips, total),
        "per_million_tokens_of_a_full_belt": cost_per_million(prices, chips, full),
    }
