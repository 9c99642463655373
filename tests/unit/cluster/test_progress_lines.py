"""A log hears of phases that last, in plain lines, and what they took."""

from __future__ import annotations

import re
import time

import pytest

from cluster.commands import output
from cluster.commands.output import PhaseLines, Terminal, stderr_console, working
from cluster.processes.session import COMPILING

PATIENCE, LONG = 0.05, 0.2


@pytest.fixture(autouse=True)
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPU_PROGRESS", "1")
    monkeypatch.setattr(output, "PhaseLines", lambda: PhaseLines(PATIENCE))


def test_what_takes_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(stream=False)
    terminal.phase("compiling")  # over at once: not worth a line
    terminal.phase(COMPILING)
    time.sleep(LONG)
    terminal.phase("starting 2 actors of 4 chips each")
    time.sleep(LONG)
    terminal.phase("generating")
    time.sleep(LONG)
    terminal.token(7)
    time.sleep(LONG)
    terminal.token(8)
    terminal.close()
    told = capsys.readouterr()
    assert told.out == ""
    lines = [re.sub(r"\d+\.\d s", "N s", line) for line in told.err.splitlines()]
    assert lines == [
        "lpu: compiling kernels (a minute or two the first time, then kept) ...",
        "lpu: compiling kernels: N s",
        "lpu: starting 2 actors of 4 chips each ...",
        "lpu: starting 2 actors of 4 chips each: N s",
        "lpu: generating: the first token ...",
        "lpu: generating: the first token: N s",
    ]
    seconds = [float(found) for found in re.findall(r"(\d+\.\d) s", told.err)]
    assert all(LONG - 0.06 <= each < 10 for each in seconds)


def test_a_command_without_actors_says_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), working("planning ...", stderr_console()) as tell:
        time.sleep(LONG)
        tell("planning 2 of 2 ...")
        time.sleep(LONG)
        raise KeyError
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "lpu: planning ..." and told[1].startswith("lpu: planning: 0.")
    assert told[2] == "lpu: planning 2 of 2 ..." and len(told) == 4


@pytest.mark.parametrize("quiet", [False, True])
def test_what_is_soon_over_or_unwanted_is_not_told(
    quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if quiet:
        monkeypatch.setenv("LPU_PROGRESS", "0")
    with working("drawing ...", stderr_console()):
        time.sleep(LONG if quiet else 0)
    time.sleep(0 if quiet else LONG)
    assert capsys.readouterr().err == ""
