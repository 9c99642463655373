"""One plan of several: what is changed for it, and the machine that comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from chip.spec import ChipSpec, SpecError, changed_spec, load_chip_spec
from cluster.errors import InputError
from cluster.option_checks import CHIPS, check_at_least, check_choice
from cluster.planning.values import CHIP, PLAN_FIELDS, one_change
from cluster.runs import DTYPES

#: How a machine's nodes are joined.
WIRING_NAMES = ("usual", "chain")
#: The name of the axis of named what-ifs, and of its first point.
WHAT_IF, AS_IT_IS = "what if", "as it is"


class Axis(NamedTuple):
    """What varies from plan to plan: its name, and its points (as shown, the fields changed)."""

    name: str
    points: list[tuple[Any, dict[str, Any]]]


@dataclass(frozen=True)
class PlanStep:
    """One plan: fields by name.  varied: its place on every axis, as a table shows it.

    chip: preset or file.  changes: of fields of the chip.  chips, tp: None for what fits.
    """

    chip: str
    changes: dict[str, Any]
    chips: int | None
    tp: int | None
    context: int
    batch: int
    dtype: str
    wiring: str
    varied: dict[str, Any] = field(default_factory=dict)

    def spec(self) -> ChipSpec:
        """The chip as it is then.  Raises SpecError for one that cannot be."""
        return changed_spec(load_chip_spec(self.chip), self.changes)

    @property
    def asked(self) -> dict[str, Any]:
        """What a row says of a step that has no plan."""
        return {**{name: getattr(self, name) for name in PLAN_FIELDS}, **self.varied}


def step_of(fields: Mapping[str, Any], varied: Mapping[str, Any]) -> PlanStep:
    """A step of all fields by name; raises InputError for values that cannot be."""
    plain = {name: value for name, value in fields.items() if not name.startswith(CHIP)}
    changes = {
        name.removeprefix(CHIP): value for name, value in fields.items() if name.startswith(CHIP)
    }
    for name in ("chips", "context", "batch"):
        check_at_least(f"--{name}", plain[name], 1)
    check_choice("--dtype", plain["dtype"], DTYPES)
    check_choice("--wiring", plain["wiring"], WIRING_NAMES)
    if plain["tp"] is not None and plain["tp"] not in CHIPS:
        raise InputError(f"--tp {plain['tp']}: use 1, 2, 4 or 8")
    return PlanStep(**plain, changes=changes, varied=dict(varied))


def specs_of(steps: Sequence[PlanStep]) -> list[ChipSpec]:
    """The chips of the steps, those that can be, each once."""
    found: list[ChipSpec] = []
    for step in steps:
        with suppress(SpecError):
            found.append(step.spec())
    return list(dict.fromkeys(found))


def what_ifs(texts: Sequence[str]) -> Axis:
    """Named changes, each on top of those before it, from the machine as it is.

    texts: ``NAME: FIELD=VALUE FIELD=VALUE``.
    """
    points: list[tuple[Any, dict[str, Any]]] = [(AS_IT_IS, {})]
    for text in texts:
        name, colon, changes = text.partition(":")
        if not colon or not name.strip() or not changes.split():
            raise InputError(
                f"--what-if {text[:80]}: use NAME: FIELD=VALUE, as in 'near: chip.hop_cycles=325'"
            )
        known = dict(one_change(f"--what-if {name.strip()}:", part) for part in changes.split())
        points.append((name.strip(), points[-1][1] | known))
    names = [name for name, _ in points]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"--what-if {min(twice)}: two have this name; give each its own")
    return Axis(WHAT_IF, points)
