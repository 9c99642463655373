"""Commands that take settings objects: one option of the command line per field of a dataclass.

A settings object is a frozen dataclass of plain data, so that the work behind a command can be
called from Python with the same object that the command makes.  Its fields carry their option as
``Annotated[type, typer.Option(...)]`` (``cluster.option_types`` has those that several share); a
field without says its own name and type, as a parameter of a command does.  A field that is itself
a dataclass stands for its fields, at its place among the others: the order of fields is the order
of ``--help``, those by keyword only last.

    @dataclass(frozen=True)
    class GreetSettings:
        name: Annotated[str, typer.Option(help="Whom.")] = "you"
        metrics: MetricsSettings = MetricsSettings()

    @app.command()
    @takes_settings
    def greet(settings: GreetSettings, as_json: Json = False) -> None: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter
from typing import Any, TypeVar, get_type_hints

Result = TypeVar("Result")


def takes_settings(command: Callable[..., Result]) -> Callable[..., Result]:
    """``command`` as typer reads it: parameters that are dataclasses replaced by their fields.

    Other parameters (a context, arguments, ``--json``) stay as they are.  Raises TypeError when
    two fields or parameters have one name: no option could say which is meant.
    """
    hints = get_type_hints(command, include_extras=True)
    objects: dict[str, type[Any]] = {}
    options: list[Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if _is_settings(hints[name]):
            objects[name] = hints[name]
            options += _options_of(hints[name])
        else:
            options.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name]))
    names = [option.name for option in options]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TypeError(f"{command.__name__}: {sorted(twice)} stand for two things each")

    @wraps(command)
    def invoked(**values: Any) -> Result:
        made = {name: _made(kind, values) for name, kind in objects.items()}
        return command(**made, **values)

    # ``inspect.signature`` reads the one, ``typing.get_type_hints`` the other.
    invoked.__dict__["__signature__"] = inspect.Signature(options)
    invoked.__annotations__ = {option.name: option.annotation for option in options}
    return invoked


def _is_settings(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _fields_of(kind: type[Any]) -> Iterator[tuple[Field[Any], Any]]:
    """The fields of a settings class, as its ``__init__`` has them, with types and options."""
    hints = get_type_hints(kind, include_extras=True)
    for field in sorted(fields(kind), key=lambda field: field.kw_only is True):
        yield field, hints[field.name]


def _options_of(kind: type[Any]) -> Iterator[Parameter]:
    for field, hint in _fields_of(kind):
        if _is_settings(hint):
            yield from _options_of(hint)
            continue
        default = field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        yield Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            annotation=hint,
            default=Parameter.empty if default is MISSING else default,
        )


def _made(kind: type[Any], values: dict[str, Any]) -> Any:
    """An object of ``kind``; what it takes of ``values`` is taken out."""
    return kind(
        **{
            field.name: _made(hint, values) if _is_settings(hint) else values.pop(field.name)
            for field, hint in _fields_of(kind)
        }
    )
