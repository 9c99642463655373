"""Commands that take settings objects: what typer sees of them and what they get."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

import cluster
from cluster.commands.settings import takes_settings
from cluster.runs import ChatSettings, CollectiveSettings


@dataclass(frozen=True)
class Place:
    town: Annotated[str, typer.Option("--in", help="Which town.")] = "Bern"
    number: int = 1


@dataclass(frozen=True)
class Greeting:
    name: Annotated[str, typer.Option(help="Whom.")]
    place: Place = field(default_factory=Place)
    loud: bool = False


def _run(*arguments: str) -> tuple[int, list[object], str]:
    app = typer.Typer(add_completion=False)
    seen: list[object] = []

    @app.command()
    @takes_settings
    def greet(
        context: typer.Context,
        what: Annotated[str, typer.Argument()],
        settings: Greeting,
        as_json: Annotated[bool, typer.Option("--json")] = False,
    ) -> None:
        """Say something."""
        seen.extend([what, settings, as_json, type(context).__name__])

    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, seen, result.output


def test_a_field_is_an_option() -> None:
    code, seen, _ = _run("hello", "--name", "Ada", "--in", "Turin", "--number", "3", "--json")
    assert code == 0
    assert seen == ["hello", Greeting("Ada", Place("Turin", 3)), True, "Context"]


def test_defaults_are_those_of_the_class() -> None:
    assert _run("hello", "--name", "Ada")[1][1] == Greeting("Ada")


def test_a_field_without_a_default_is_required() -> None:
    code, seen, text = _run("hello")
    assert (code, seen) == (2, [])
    assert "--name" in text


def test_help_keeps_the_order_of_fields() -> None:
    text = _run("--help")[2]
    places = [text.index(name) for name in ("--name", "--in", "--number", "--loud", "--json")]
    assert places == sorted(places)
    assert "Say something." in text


def test_two_things_of_one_name_are_refused() -> None:
    with pytest.raises(TypeError, match=r"greet: \['loud'\] stand for two things each"):

        @takes_settings
        def greet(settings: Greeting, loud: bool = False) -> None: ...


def test_the_face_is_lazy_and_whole() -> None:
    """Naming the package loads nothing heavy; every name that it lists is there."""
    code = "import sys, cluster; assert not {'numba', 'ray', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert all(getattr(cluster, name) is not None for name in cluster.__all__)


def test_settings_check_themselves() -> None:
    with pytest.raises(cluster.InputError, match="--sync never: use lookahead or barrier"):
        cluster.GenerateSettings(sync="never")
    assert cluster.GenerateSettings(tp=2, pp=2).split == (2, 2)
    for settings in (cluster.GenerateSettings, ChatSettings):
        for packing, address in (("1", None), ("auto", "auto")):
            with pytest.raises(cluster.InputError, match="are no actors; leave --chips-per-actor"):
                settings(in_process=True, chips_per_actor=packing, address=address)
    with pytest.raises(cluster.InputError, match="are no actors; leave --chips-per-actor out"):
        CollectiveSettings(run=True, in_process=True, chips_per_actor=2)
    with pytest.raises(cluster.InputError, match="only with --run"):
        cluster.CollectiveSettings(dtype="fp32")
    steps = cluster.PlanSettings("target", sweep=["batch=3..20"]).steps
    assert [step.batch for step in steps] == [3, 6, 12]
