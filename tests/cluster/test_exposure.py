"""What a run exposes: sockets on loopback only, and no file that is read is unpickled."""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from programs.artifact import ArtifactError, load
from tests import ROOT

PACKAGES = ("chip", "interconnect", "programs", "cluster")
#: Modules that run what they read, and functions that do unless they are told not to.
DANGEROUS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "yaml"}

LISTENING = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from cluster.processes import open_ray

    def listening():
        sockets = {}
        for name in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    sockets[fields[9]] = fields[1].split(":")[0]
        return sockets

    def descendants():
        parents = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry.name)] = int(fields[1])
            except OSError:
                pass
        def ours(pid):
            while pid > 1 and pid != os.getpid():
                pid = parents.get(pid, 0)
            return pid == os.getpid()
        return [pid for pid in parents if ours(pid)]

    with open_ray(None, 2):
        import ray

        @ray.remote(num_cpus=0)
        class Actor:
            def process(self):
                return os.getpid()

        actor = Actor.remote()
        ray.get(actor.process.remote())
        all_sockets, found = listening(), set()
        for pid in descendants():
            for link in Path(f"/proc/{pid}/fd").glob("*"):
                try:
                    target = os.readlink(link)
                except OSError:
                    continue
                if target.startswith("socket:[") and target[8:-1] in all_sockets:
                    found.add(all_sockets[target[8:-1]])
        print(" ".join(sorted(found)))
        for pid in descendants():
            print(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\\0", b" ").decode())
    """
)
LOOPBACKS = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.mark.ray
@pytest.mark.long
def test_a_private_ray_listens_on_loopback_only_and_starts_what_it_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENING],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    listening, *commands = done.stdout.splitlines()
    found = set(listening.split())
    assert found and found <= LOOPBACKS, found
    assert any("gcs_server" in command for command in commands), commands
    for unused in ("monitor.py", "log_monitor.py", "dashboard.py"):
        assert not any(unused in command for command in commands), commands


def test_nothing_we_read_is_unpickled() -> None:
    """No package imports a reader that runs what it reads, or lets NumPy be one."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if "checkpoints/train" in str(path) or "checkpoints/llama" in str(path):
                continue  # training scripts, imported by nothing; they write, with torch
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                assert not {name.split(".")[0] for name in names} & DANGEROUS, path
                if isinstance(node, ast.keyword):
                    assert node.arg != "allow_pickle", path
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in ("eval", "exec", "__import__"), path


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os._exit, (3,)  # type: ignore[return-value]


def test_a_pickle_is_just_a_foreign_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object) -> None:
        raise AssertionError("somebody unpickles")

    data = pickle.dumps(Bomb())
    monkeypatch.setattr(pickle, "loads", no)
    monkeypatch.setattr(pickle, "load", no)
    monkeypatch.setattr(pickle, "Unpickler", no)
    path = tmp_path / "x.lpu"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"no \.lpu file"):
        load(path)
