"""What a command says beside its result: a line on stderr, once; and where a job's result goes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import typer

from chip.errors import LpuWarning
from cluster.commands.invoke import FINE, invoke
from cluster.commands.script import kept_place, results_directory
from cluster.processes import JOB_VARIABLE


def test_a_warning_is_one_line_on_stderr_once(capsys: pytest.CaptureFixture[str]) -> None:
    """However often it is raised; the result on stdout stays alone."""
    app = typer.Typer()

    @app.command()
    def work() -> None:
        for _ in range(3):
            warnings.warn(LpuWarning("model: tensor 'x'\nnot read"), stacklevel=1)
        typer.echo("{}")

    assert invoke(app, [], "lpu") == FINE
    told = capsys.readouterr()
    assert told.out == "{}\n"
    assert told.err == "lpu: model: tensor 'x' not read\n"


def test_relative_paths_of_a_job_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's directory is a copy that Ray removes: what it leaves goes to its home."""
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for job, base in ((None, here), ("{}", home)):
        monkeypatch.delenv("LPU_RESULTS_DIR", raising=False)
        monkeypatch.delenv(JOB_VARIABLE, raising=False)
        if job is not None:
            monkeypatch.setenv(JOB_VARIABLE, job)
        assert kept_place(Path("a/result.json")) == base / "a" / "result.json"
        assert kept_place(tmp_path / "result.json") == tmp_path / "result.json"
        assert results_directory() == base / "lpu-results"
        monkeypatch.setenv("LPU_RESULTS_DIR", "kept")
        assert results_directory() == base / "kept"
