"""``lpu clean`` removes what a killed run left, and nothing that a living one uses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.cli import run
from cluster.processes import leftovers

RUN = """
import sys, tempfile, time
from pathlib import Path
from cluster.processes import ray_session, snapshots
from cluster.processes.mapping import MappingLayout, SharedMapping

where = Path(sys.argv[1])
tempfile.tempdir = str(where)
snapshots.Path = lambda name: where / "none" if name == "/dev/shm" else Path(name)
mapping = SharedMapping.create(MappingLayout(processes=1, chips=1, values=4, rings=0), where)
with snapshots.snapshot_directory() as kept:
    (kept / "group-0.spare").write_bytes(bytes(1000))
    ray_session.LONGEST_DIRECTORY = 1000
    (Path(ray_session._short_directory()) / "log").write_text("x")
    print("there", flush=True)
    time.sleep(600 if sys.argv[2] == "stay" else 0)
mapping.unlink()
ray_session._remove_all()
"""


def found(age: float = 0.0) -> dict[str, int]:
    return {each.path.name: each.nbytes for each in leftovers.find_leftovers(age)}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(leftovers, "places", lambda: [tmp_path])
    return tmp_path


def test_what_a_killed_run_leaves_is_found_and_removed(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(place), "stay"], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        assert len(list(place.iterdir())) == 3
        assert found() == {}, "a living run's"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert sorted(name.split("-")[1] for name in found() if not name.endswith(".map")) == [
        "ray",
        "snapshots",
    ]
    left = found()
    assert len(left) == 3 and 1000 in left.values()
    assert found(60.0) == {}, "too young to be sure"
    (place / "lpu-results").mkdir()
    (place / "lpu-other.map").write_bytes(b"someone's")
    monkeypatch.setattr(leftovers.find_leftovers, "__defaults__", (0.0,))
    assert run(["clean", "--dry-run"]) == 0
    assert f"would remove {place}/lpu-snapshots-" in capsys.readouterr().out
    assert found() == left
    assert run(["clean", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {Path(each["path"]).name: each["bytes"] for each in told["removed"]} == left
    assert sorted(each.name for each in place.iterdir()) == ["lpu-other.map", "lpu-results"]
    assert run(["clean"]) == 0
    assert capsys.readouterr().out == "removed 0, 0 B\n"


def test_links_and_other_kinds_are_left_alone(place: Path) -> None:
    target = place / "precious"
    target.mkdir()
    (place / "lpu-chips-abcdefgh").symlink_to(target)
    (place / "lpu-abcdefgh.map").mkdir()
    (place / "lpu-ray-abcdefgh").write_text("a file")
    assert found() == {}


def test_a_released_path_is_left_over(place: Path) -> None:
    directory = place / "lpu-chips-abcdefgh"
    directory.mkdir()
    leftovers.hold(directory)
    assert found() == {}
    leftovers.release(directory)
    leftovers.release(directory)
    assert list(found()) == [directory.name]
    assert time.time() - directory.stat().st_ctime < leftovers.LEAST_AGE_SECONDS
