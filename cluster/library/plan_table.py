"""Plans as a table: rows of plain data, and a pandas frame for whoever has pandas."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.planning import PlanSettings, plan_models

Row = dict[str, Any]


class MissingPandasError(InputError, ImportError):
    """A frame was asked for where pandas is not installed."""


class PlanTable:
    """One row per plan, with the keys of ``lpu plan --json``.

    The figures of a single plan are attributes as well: ``plan.cycles_per_token``.  ``+`` puts
    tables one under the other.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = [dict(row) for row in rows]

    def rows(self) -> list[Row]:
        """Plain data: a dict per plan.  A step of a sweep that fits no machine has a problem."""
        return deepcopy(self._rows)

    def frame(self) -> Any:
        """A pandas DataFrame, a line per plan; nested figures are columns as ``phases.vxm``.

        Raises MissingPandasError, an ImportError.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise MissingPandasError(
                "a frame needs pandas: pip install pandas, or take rows()"
            ) from None
        return pandas.json_normalize(self.rows())

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows())

    def __add__(self, other: PlanTable) -> PlanTable:
        return PlanTable([*self._rows, *other._rows])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if len(self._rows) != 1:
            raise AttributeError(f"{name}: the table has {len(self._rows)} plans; use rows()")
        if name not in self._rows[0]:
            known = ", ".join(sorted(self._rows[0]))
            raise AttributeError(f"a plan has no {name}; use {known}")
        return deepcopy(self._rows[0][name])

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(self._rows[0] if len(self._rows) == 1 else ())]

    def __repr__(self) -> str:
        keys = ("model", "chips", "context", "batch", "cycles_per_token", "problem")
        lines = [", ".join(f"{key} {row[key]}" for key in keys if key in row) for row in self._rows]
        return "\n".join(f"<plan: {line}>" for line in lines)


def plan_named(
    model: str | Path,
    *,
    chip: str = "groq-lpu-1",
    chips: int | str | None = None,
    tp: int | None = None,
    context: int | str = 2048,
    batch: int | str = 1,
    dtype: str = "int8",
    sweep: str | Sequence[str] | None = None,
    changes: Mapping[str, object] | None = None,
    run: bool = True,
) -> PlanTable:
    """Plan a model by its shape alone, as ``lpu plan`` does: one row, or one per point of axes.

    model: a name of an architecture, a checkpoint directory or a ``config.json``.  chips: None for
    the fewest that fit.  context: positions of every sequence.  batch: sequences in flight.
    sweep: a field over values, as ``chips=64..1024`` or ``chip.hop_cycles=650,325``, or two such;
    chips, context and batch may be several, too, as ``"64..1024"``.  changes: fields of the chip by
    name, ``{"hop_cycles": 400}``.  run: also run the programs on chips without data.  Raises an
    LpuError, one line, for what cannot be; one plan of several gets a ``problem`` instead.
    """
    settings = PlanSettings(
        model=str(model),
        chip=[chip],
        chips=None if chips is None else str(chips),
        tp=tp,
        context=str(context),
        batch=str(batch),
        dtype=dtype,
        sweep=[sweep] if isinstance(sweep, str) else list(sweep or ()),
        set_=[f"chip.{field}={_text(value)}" for field, value in (changes or {}).items()],
        run=run,
    )
    return PlanTable(plan_models(settings))


def _text(value: object) -> str:
    """A field's value as an option of the command line is written."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
