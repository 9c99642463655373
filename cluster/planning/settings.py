"""What ``lpu plan`` can be asked for: a settings object, the same from Python and from ``lpu``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import option_types
from cluster.errors import InputError
from cluster.option_checks import check_at_least, check_choice, check_chunk
from cluster.planning.prices import read_prices
from cluster.planning.steps import WHAT_IF, WIRING_NAMES, Axis, PlanStep, step_of, what_ifs
from cluster.planning.values import PLAN_FIELDS, axis_values, one_change, several

#: Plans of one call, and things that vary over them, at most.
MOST_PLANS, MOST_AXES = 64, 2


@dataclass(frozen=True)
class PlanSettings:
    """A model's plan, or one for every point of one or two axes.

    model: see ``programs.models.find_model``; its shape is enough.  chip: presets or files, an axis
    if there are several.  chips, context, batch: a number, or several (``64..1024``, ``650,325``),
    which are an axis; chips None for the fewest that fit.  From Python a number may be an int, and
    one text of what is a list stands for a list of one.  wiring: of the machine.  sweep: further
    axes, as ``FIELD=VALUES``.  set_: fields to change, as ``FIELD=VALUE``.  what_if: named changes,
    each on top of those before it.  prices: a file of ``cluster.planning.prices``.  buckets: also
    what a token costs at shorter contexts.  prompt: a number of tokens, or several: also when the
    first token after them comes, ``chunk`` tokens of them going together where that is sooner.
    explain: a block of one plan whose passes are wanted, with what they waited for.  advice: for
    one plan, what would move its bottleneck is planned as well.  run: also run the programs.
    """

    model: Annotated[str, typer.Option(help=option_types.MODEL_SHAPE)]
    chip: Annotated[
        list[str] | None,
        typer.Option(
            help="Chip preset or a TOML file; again to compare.",
            show_default=option_types.DEFAULT_CHIP,
        ),
    ] = None
    chips: Annotated[
        str | None,
        typer.Option(help="Chips to use; 64..1024 or 64,128.", show_default="the fewest that fit"),
    ] = None
    tp: Annotated[
        int | None, typer.Option(help="Chips that share every matrix.", show_default="up to 8")
    ] = None
    wiring: Annotated[
        str, typer.Option(help="usual, or chain: nodes in a row, 8 cables to the next.")
    ] = "usual"
    context: Annotated[str, typer.Option(help="Positions of every sequence.")] = "2048"
    batch: Annotated[str, typer.Option(help="Sequences in flight; in batches if many.")] = "1"
    dtype: option_types.Dtype = "int8"
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="A field over a range (chips=64..1024: doubling; context=300..400+25) or a list "
            "(chip.hop_cycles=650,325); twice for two axes.",
            show_default="none",
        ),
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="What if: chip.FIELD=VALUE; again for more.", show_default="none"
        ),
    ] = None
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            help="A row for 'NAME: FIELD=VALUE ...'; again for one on top.", show_default="none"
        ),
    ] = None
    prices: Annotated[
        Path | None,
        typer.Option(help="Your prices, a TOML file: cost of tokens.", show_default="none"),
    ] = None
    buckets: Annotated[
        bool, typer.Option("--buckets", help="Also a token's cycles at shorter contexts.")
    ] = False
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Also when the first token comes after prompts of so many tokens; 512,1024.",
            show_default="none",
        ),
    ] = None
    chunk: Annotated[
        int, typer.Option(help="With --prompt: tokens that may share each install of weights.")
    ] = 1
    explain: Annotated[
        str | None,
        typer.Option(
            help="Also why passes wait in a block: attention, ffn or head.", show_default="none"
        ),
    ] = None
    advice: Annotated[
        bool, typer.Option(help="For one plan, also try what would move its bottleneck.")
    ] = True
    run: Annotated[bool, typer.Option(help="Also run the programs on chips without data.")] = True

    def __post_init__(self) -> None:
        """Take numbers as text and one text as a list of one; refuse what cannot be."""
        for name in ("chips", "context", "batch", "prompt"):
            object.__setattr__(self, name, _as_text(getattr(self, name)))
        for name in ("chip", "sweep", "set_", "what_if"):
            object.__setattr__(self, name, _as_list(getattr(self, name)))
        self._check_details(self.steps)
        for tokens in self.prompts:
            check_at_least("--prompt", tokens, 1)
        check_chunk(self.chunk)
        if self.chunk > 1 and not self.prompts:
            raise InputError(f"--chunk {self.chunk}: say of what prompt with --prompt")
        if self.prices is not None:
            read_prices(self.prices)
        if self.explain is not None:
            check_choice("--explain", self.explain, ("attention", "ffn", "head"))

    @property
    def prompts(self) -> list[int]:
        """Tokens of the prompts that are asked about."""
        return [] if self.prompt is None else several(f"--prompt {self.prompt}", self.prompt)

    @property
    def axes(self) -> list[Axis]:
        """What varies from plan to plan; empty for one plan."""
        found = self._option_axes()
        for text in self.sweep or ():
            name, values = axis_values("--sweep", text)
            found.append(_axis(name, values, self._wirings if ".." in text else ()))
        if self.what_if:
            found.append(what_ifs(self.what_if))
        names = [axis.name for axis in found]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"{min(twice)} varies twice; give it once")
        if len(found) > MOST_AXES:
            raise InputError(f"{', '.join(names)} vary; use two of them, a table has two axes")
        return found

    @property
    def steps(self) -> list[PlanStep]:
        """The plans, in the order of the axes' points."""
        fields: dict[str, Any] = {
            "chip": self.chip[0] if self.chip else option_types.DEFAULT_CHIP,
            "tp": self.tp,
            "dtype": self.dtype,
            "wiring": self.wiring,
        }
        for name in ("chips", "context", "batch"):
            text = getattr(self, name)
            fields[name] = None if text is None else several(f"--{name} {text}", text)[0]
        axes = self.axes
        changed = [one_change("--set", text) for text in self.set_ or ()]
        self._check_given_once([name for name, _ in changed], axes)
        fields |= dict(changed)
        steps = []
        for point in itertools.product(*(axis.points for axis in axes)):
            varied = {axis.name: label for axis, (label, _) in zip(axes, point, strict=True)}
            changes = {name: value for _, change in point for name, value in change.items()}
            steps.append(step_of(fields | changes, varied))
        if len(steps) > MOST_PLANS:
            raise InputError(f"{len(steps):,} plans; use {MOST_PLANS} or fewer")
        return steps

    def _check_details(self, steps: Sequence[PlanStep]) -> None:
        """Refuse what only the table of one plan shows where fields vary."""
        details = {
            "--explain": self.explain is not None,
            "--buckets": self.buckets,
            "--prompt": self.prompt is not None,
        }
        for name, asked in details.items():
            if asked and any(step.varied for step in steps):
                raise InputError(f"{name} beside several plans: one plan shows it, ask one")

    def _option_axes(self) -> list[Axis]:
        """The axes of options that have several values."""
        found: list[Axis] = []
        if len(self.chip or ()) > 1:
            found.append(Axis("chip", [(name, {"chip": name}) for name in self.chip or ()]))
        for name in ("chips", "context", "batch"):
            text = getattr(self, name)
            values = several(f"--{name} {text}", text) if text is not None else []
            if len(values) > 1:
                found.append(_axis(name, values, self._wirings if ".." in text else ()))
        return found

    @property
    def _wirings(self) -> list[str]:
        """The wirings that plans are asked for, however it is said."""
        changed = [one_change("--set", text) for text in self.set_ or ()]
        own = [value for name, value in changed if name == "wiring"]
        swept = [axis_values("--sweep", text) for text in self.sweep or ()]
        own = [*own, *(value for name, values in swept if name == "wiring" for value in values)]
        points = what_ifs(self.what_if).points if self.what_if else []
        supposed = [change["wiring"] for _, change in points if "wiring" in change]
        return [*(own or [self.wiring]), *supposed]

    def _check_given_once(self, changed: Sequence[str], axes: Sequence[Axis]) -> None:
        """Refuse a field with two values for one plan; a what-if may change what is set.

        changed: the fields of ``--set``.
        """
        own = [axis.name for axis in axes if axis.name != WHAT_IF]
        in_what_ifs = {
            name
            for axis in axes
            if axis.name == WHAT_IF
            for _, change in axis.points
            for name in change
        }
        for name in own:
            if name in in_what_ifs:
                raise InputError(f"{name} varies and is changed by --what-if; give it once")
        options = [
            f.name
            for f in fields_of(self)
            if f.name in PLAN_FIELDS and getattr(self, f.name) != f.default
        ]
        varied = {axis.name for axis in self._option_axes()}
        given = [*changed, *(name for name in options if name not in varied)]
        for name in given:
            if name in own:
                raise InputError(f"{name} varies and is set; give it once")
            if given.count(name) > 1:
                raise InputError(f"{name} is set twice; give it once")


def _as_text(value: object) -> str | None:
    """A number, or several, as ``lpu`` has them."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ",".join(map(str, value))
    return str(value)


def _as_list(value: str | Path | Sequence[str] | None) -> list[str] | None:
    """Texts; one alone is a list of one."""
    if value is None:
        return None
    return [str(value)] if isinstance(value, (str, Path)) else [str(part) for part in value]


def _axis(name: str, values: list[Any], wirings: Sequence[str]) -> Axis:
    """An axis of values; wirings: numbers of chips are those of machines that all of these have."""
    if name == "chips" and wirings and set(wirings) <= set(WIRING_NAMES):
        from programs.decoder import machine_sizes

        sizes = sorted(set.intersection(*(set(machine_sizes(wiring)) for wiring in wirings)))
        near = (next((size for size in sizes if size >= n), sizes[-1]) for n in values)
        values = list(dict.fromkeys(near))
    return Axis(name, [(value, {name: value}) for value in values])
