"""Ctrl-C, ``kill -9`` and a full disk: no orphans, no half-written file, and one line."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chip.spec import ChipSpec
from cluster.cli import run
from programs.artifact import content_hash, load, save
from programs.decoder import compile_decoder, partition_model
from programs.models import ModelConfig, random_checkpoint

LPU = [sys.executable, "-m", "cluster.cli"]
SMALL = ModelConfig(64, 1, 2, 1, 32, 96, 64, tied=True)


@pytest.fixture
def place() -> Iterator[Path]:
    """A temporary directory with a short name, which also marks the processes that use it."""
    with tempfile.TemporaryDirectory(prefix="lpu-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


def environment(place: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(place)}


def heed_interrupts() -> None:
    """In the child: a shell may have started these tests in the background, deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def processes_of(place: Path) -> list[str]:
    """Command lines of the processes that were started with this temporary directory."""
    mark = f"TMPDIR={place}".encode() + b"\0"
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in found if line]


def shared_files() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("lpu-*")}


def left_behind(before: set[str]) -> set[str]:
    """New files in shared memory that stay: those of other runs on this machine have a user."""
    used = b""
    for entry in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            used += entry.read_bytes()
    return {
        name
        for name in shared_files() - before
        if name.endswith(".map") and name.encode() not in used
    }


@pytest.mark.ray
@pytest.mark.parametrize("running", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.long
def test_an_interrupted_run_leaves_nothing(place: Path, running: bool) -> None:
    """Interrupted while Ray starts, and while chips run."""
    before = shared_files()
    command = [*LPU, "generate", "--chips-per-actor", "4", "--max-new-tokens", "120"]
    run = subprocess.Popen(
        [*command, "--ignore-eos"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(place),
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    assert run.stdout is not None
    if running:
        assert run.stdout.read(4)  # the first token is there
    while not running and not any("gcs_server" in line for line in processes_of(place)):
        assert run.poll() is None, run.stderr.read().decode() if run.stderr else ""
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert errors.decode().strip().splitlines()[-1] == "lpu: interrupted"
    assert b"Traceback" not in errors
    deadline = time.monotonic() + 20
    while processes_of(place) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(place) == []
    assert left_behind(before) == set()
    assert sorted(place.rglob("*")) == []


@pytest.mark.ray
@pytest.mark.long
def test_the_next_run_works_after_one_was_killed(place: Path) -> None:
    run = subprocess.Popen(
        [*LPU, "generate", "--chips-per-actor", "4", "--ignore-eos"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(place),
        start_new_session=True,
    )
    assert run.stdout is not None and run.stdout.read(4)
    time.sleep(4)
    run.kill()
    run.communicate()
    again = subprocess.run(
        [*LPU, "generate", "--chips-per-actor", "4", "--max-new-tokens", "1", "--json"],
        capture_output=True,
        env=environment(place),
        check=True,
    )
    assert json.loads(again.stdout)["actors"] == 2


SAVER = """
import sys
from tests.cluster.test_interruptions import two_artifacts
from programs.artifact import save
one, other = two_artifacts()
print("ready", flush=True)
while True:
    save(other, sys.argv[1])
    save(one, sys.argv[1])
"""


def two_artifacts():
    return [
        compile_decoder(partition_model(random_checkpoint(SMALL, seed), 2), ChipSpec(), 64)
        for seed in (0, 1)
    ]


@pytest.mark.long
def test_killed_while_writing_either_the_old_file_or_the_new(tmp_path: Path) -> None:
    target = tmp_path / "x.lpu"
    hashes = {content_hash(artifact) for artifact in two_artifacts()}
    save(two_artifacts()[0], target)
    seen = random.Random(1)
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(target)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": f"{os.getcwd()}{os.pathsep}{Path(__file__).parent}"},
        )
        assert writer.stdout is not None and writer.stdout.readline()
        for _ in range(5):  # stopped, looked at, and let go on
            time.sleep(seen.random() * 0.02)
            writer.send_signal(signal.SIGSTOP)
            assert content_hash(load(target)) in hashes
            writer.send_signal(signal.SIGCONT)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        assert content_hash(load(target)) in hashes


@pytest.mark.long
def test_a_killed_compile_leaves_the_old_file_or_none(tmp_path: Path) -> None:
    target = tmp_path / "x.lpu"
    for delay, old in ((0.8, None), (1.6, b"old"), (2.4, b"old")):
        if old is not None:
            target.write_bytes(old)
        run = subprocess.Popen(
            [*LPU, "compile", "-o", str(target)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(delay)
        run.kill()
        run.wait()
        if target.exists() and target.read_bytes() != old:
            load(target)  # it was faster than the kill: the whole new file
            target.unlink()


def test_a_file_that_cannot_grow_is_one_line_and_the_old_one_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "one.asm", tmp_path / "x.lpu"
    source.write_text("0: alu[0] MOV s0=imm imm=40f\n")
    target.write_bytes(b"old")
    heeded = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        code = run(["assemble", str(source), "-o", str(target)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heeded)
    assert code == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith(f"lpu: {target}: not written: ")
    assert target.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"one.asm", "x.lpu"}


@pytest.mark.long
def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path: Path) -> None:
    target = tmp_path / "x.lpu"
    target.write_bytes(b"old")
    full = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
        "from cluster.cli import main; sys.argv = ['lpu', 'compile', '-o', sys.argv[1]]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", full, str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"lpu: {target}: not written: ") and "Traceback" not in done.stderr
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.lpu"]


@pytest.mark.long
def test_no_room_in_a_real_small_file_system(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    script = (
        f"mount -t tmpfs -o size=300k tmpfs {place} && printf old > {place}/x.lpu && "
        f"{' '.join(LPU)} compile -o {place}/x.lpu; echo code $?; cat {place}/x.lpu; "
        f"echo; ls -A {place}"
    )
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    if "code" not in done.stdout or "mount:" in done.stderr:
        pytest.skip("no private file systems here")
    assert done.stdout.split() == ["code", "2", "old", "x.lpu"]
    assert "No space left on device; free some disk" in done.stderr.splitlines()[-1]
