"""Machines that lack something: a place for compiled kernels, a home, IPv4 on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from cluster.processes import ray_session
from tests import ROOT

NOBODY = 65534
#: Reads everything, so that a Python of root's can be run, and writes what it owns only.
AS_NOBODY = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
)
WITHOUT_NETWORK = ("unshare", "--net", "sh", "-c")


def can(*command: str) -> bool:
    """Whether this process may run things so."""
    if os.getuid() != 0 or shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command, "true"], capture_output=True).returncode == 0


needs_nobody = pytest.mark.skipif(
    not can(*AS_NOBODY), reason="only root with setpriv can run a command as nobody"
)
needs_namespace = pytest.mark.skipif(
    not can(*WITHOUT_NETWORK) or shutil.which("ip") is None,
    reason="only root with unshare and ip can take the network away",
)


def python(code: str, *before: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOME", "TMPDIR") and not name.startswith("RAY_")
    }
    return subprocess.run(
        [*before, sys.executable, "-W", "default", "-c", textwrap.dedent(code)],
        cwd="/",
        env={**own, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """A temporary directory of nobody's that nobody can get at."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.owner() == "root" and not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o001)
    os.chown(tmp_path, NOBODY, NOBODY)
    return tmp_path


@needs_nobody
def test_facts_of_a_wiring_need_no_kernels() -> None:
    done = python(
        """
        import sys
        from cluster.cli import run
        print(run(["fabric", "info", "--chips", "8", "--json"]), sorted(
            {"numba", "ray"} & set(sys.modules)))
        """,
        *AS_NOBODY,
    )
    facts, last = done.stdout.strip().splitlines()
    assert '"diameter_hops": 1' in facts and last == "0 []" and not done.stderr


KERNEL = """
    from chip.numerics import f32_bits
    from chip.kernel_cache import compiled
    assert f32_bits(1.0) == 0x3F800000
    print(f32_bits.stats.cache_path)
    print(sum(f32_bits.stats.cache_hits.values()))
"""


@pytest.mark.long
@needs_nobody
def test_kernels_go_to_the_temporary_directory(temporary: Path) -> None:
    """Where neither the sources' directory nor a home can be written, and are found again there."""
    for hits in ("0", "1"):
        done = python(KERNEL, *AS_NOBODY, TMPDIR=str(temporary))
        path, found = done.stdout.split()
        own = temporary / f"lpu-kernels-{NOBODY}"
        assert Path(path).is_relative_to(own) and found == hits and not done.stderr
        assert own.stat().st_mode & 0o777 == 0o700 and own.stat().st_uid == NOBODY


@pytest.mark.long
@needs_nobody
@pytest.mark.parametrize("trap", ["of another user", "open to all", "a link"])
def test_kernels_that_others_could_write_are_not_run(temporary: Path, trap: str) -> None:
    own = temporary / f"lpu-kernels-{NOBODY}"
    target = temporary / "elsewhere"
    made = target if trap == "a link" else own
    made.mkdir(mode=0o700)
    if trap == "a link":
        own.symlink_to(target)
    if trap != "of another user":
        os.chown(made, NOBODY, NOBODY)
    if trap == "open to all":
        made.chmod(0o777)
    done = python(KERNEL, *AS_NOBODY, TMPDIR=str(temporary))
    assert done.stdout.split() == ["None", "0"] and not list(made.iterdir())
    assert done.stderr.count("compiled kernels can be kept nowhere") == 1
    assert "set NUMBA_CACHE_DIR to a directory that you may write" in done.stderr


@pytest.mark.long
def test_a_full_disk_ends_no_run(tmp_path: Path) -> None:
    done = python(
        """
        import chip.kernel_cache as cache
        def full(*_): raise OSError(28, "No space left on device")
        cache.caching.IndexDataCacheFile._save_data = full
        from chip.numerics import f32_bits
        print(f32_bits(1.0))
        """,
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    assert done.stdout.strip() == str(0x3F800000), done.stderr


def test_a_private_ray_keeps_no_token_in_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it leave anything in the environment, which another cluster would be asked by."""
    names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    tokens = []
    for _ in range(2):
        with ray_session._own_token():
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
            os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
        assert not any(name in os.environ for name in names)
    assert len(set(tokens)) == 2 and all(len(token) == 64 for token in tokens)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/of/the/user")
    with ray_session._own_token():
        assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.long
@needs_nobody
def test_a_private_ray_needs_no_home(temporary: Path) -> None:
    done = python(
        """
        import os
        import ray
        from cluster.processes import open_ray
        for again in range(2):  # the second Ray of a process has another token
            with open_ray(None, 1) as where:
                work = ray.remote(num_cpus=0)(lambda: os.getuid())
                print(ray.get(work.options(scheduling_strategy=where).remote()))
        """,
        *AS_NOBODY,
    )
    assert done.stdout.split() == [str(NOBODY)] * 2, done.stderr
    assert "Permission" not in done.stderr


@pytest.mark.long
def test_a_ray_of_the_users_own_after_a_private_one(tmp_path: Path) -> None:
    """In the same process: its servers ask for the home's token, and must not be shown another."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("5" * 64)
    short = tempfile.mkdtemp(prefix="lpu-t-", dir="/tmp")
    try:
        done = python(
            f"""
            import ray
            from cluster.processes import open_ray
            with open_ray(None, 1):
                pass
            ray.init(
                "local", num_cpus=1, include_dashboard=False, _temp_dir="{short}",
                object_store_memory=80 << 20, logging_level="ERROR", log_to_driver=False,
            )
            print(ray.get(ray.remote(num_cpus=0)(lambda: 7).remote()))
            """,
            HOME=str(tmp_path),
        )
        assert done.stdout.split() == ["7"], done.stderr
    finally:
        shutil.rmtree(short, ignore_errors=True)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["with a token", "on loopback only"])
def test_a_cluster_that_is_joined_by_its_address(kind: str, tmp_path: Path) -> None:
    """``ray start`` asks for the token that lies in the home; and Ray makes of loopback another
    address of the machine, where a head may not listen."""
    (tmp_path / ".ray").mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**own, "HOME": str(tmp_path)}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rest = ["--num-cpus", "1", "--include-dashboard", "false", "--disable-usage-stats"]
    if kind == "with a token":
        (tmp_path / ".ray" / "auth_token").write_text("5" * 64)
    else:
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        rest += ["--node-ip-address", "127.0.0.1"]
    short = tempfile.mkdtemp(prefix="lpu-t-", dir="/tmp")  # paths of sockets are short
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    head = subprocess.Popen(
        [*ray, *rest, "--port", str(port), "--temp-dir", short],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        done = python(
            f"""
            import ray
            from cluster.processes import ray_session
            ray_session.LONGEST_ANSWER_SECONDS = 60
            for asked in range(2):
                with ray_session.open_ray("127.0.0.1:{port}", 1) as where:
                    work = ray.remote(num_cpus=0)(lambda: 7)
                    print(ray.get(work.options(scheduling_strategy=where).remote()))
            """,
            HOME=str(tmp_path),
        )
        assert done.stdout.split() == ["7", "7"], done.stderr
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(short, ignore_errors=True)


@needs_namespace
@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ("true", "Network is unreachable"),
        ("ip link set lo up; ip addr del 127.0.0.1/8 dev lo", ""),
    ],
    ids=["no loopback", "IPv6 only"],
)
def test_a_machine_that_cannot_reach_itself(network: str, reason: str) -> None:
    began = time.monotonic()
    done = python(
        """
        import sys
        from cluster.errors import InputError
        from cluster.processes import open_ray
        try:
            with open_ray(None, 1): pass
        except InputError as error:
            print(error, "ray" in sys.modules)
        """,
        *WITHOUT_NETWORK,
        f'{network}; exec "$0" "$@"',
    )
    assert time.monotonic() - began < 30
    said = done.stdout.strip()
    assert said.startswith("this machine cannot reach itself at 127.0.0.1 (") and reason in said
    assert said.endswith("bring its loopback up (ip link set lo up), or use --in-process False")
