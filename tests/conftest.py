"""What runs when, and what tests share: one compiled model, one local Ray, kernels compiled once.

By need: ``tests/unit`` needs nothing, ``tests/machine`` runs compiled programs, ``tests/cluster`` a
local Ray.  A plain ``python -m pytest`` takes of these what is quick; ``long`` marks the rest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from chip.spec import ChipSpec
from cluster.processes import open_ray
from programs.artifact import Artifact
from programs.decoder import compile_decoder, partition_model
from programs.models import load_checkpoint, shipped_model
from tests import ROOT

# A drawn example of a millisecond takes longer where other processes have the cores.
settings.register_profile("any speed", deadline=None)
settings.load_profile("any speed")

HERE = Path(__file__).parent
#: The process that compiles kernels, told to the processes that run tests.
COMPILING = "LPU_TESTS_COMPILER"


#: Tests of these folders come first: they need no compiled kernels.
ORDER = ("unit", "mutate")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the kernels once, in a process of its own, while the first tests run."""
    # How many lines a log has hangs on the machine's speed; tests count those of errors.
    os.environ["LPU_PROGRESS"] = "0"
    option = session.config.option
    if not hasattr(session.config, "workerinput") and not option.collectonly:
        code = "from chip.engine import warm_up; warm_up()"
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        session.config.add_cleanup(lambda: _end(process))
        os.environ[COMPILING] = str(process.pid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Wait for the kernels where a test runs programs, instead of compiling them once more."""
    if item.path.relative_to(HERE).parts[0] in ORDER:
        return
    compiler = os.environ.pop(COMPILING, "")
    while compiler and _runs(int(compiler)):
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The session is over: whoever compiles still has no use any more."""
    process.kill()
    process.wait()


def _runs(process: int) -> bool:
    """Whether a process has not ended; one that nobody has waited for has."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, thin out long lists of cases, keep tests with Ray together."""
    items.sort(key=lambda item: item.path.relative_to(HERE).parts[0] not in ORDER)
    cases = defaultdict(list)
    for item in items:
        need = item.path.relative_to(HERE).parts[0]
        if need == "long":
            item.add_marker(pytest.mark.long)
        fixtures = set(getattr(item, "fixturenames", ()))
        if need == "cluster" or item.get_closest_marker("ray") or "local_ray" in fixtures:
            item.add_marker(pytest.mark.ray)
            # One Ray on the machine at a time: one worker process runs them all.
            item.add_marker(pytest.mark.xdist_group("ray"))
        if hasattr(getattr(item, "obj", None), "hypothesis"):
            item.add_marker(pytest.mark.property)
        if item.get_closest_marker("cases"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for of_one in cases.values():
        quick = of_one[0].get_closest_marker("cases").args[0]  # type: ignore[union-attr]
        kept = {n * len(of_one) // quick for n in range(quick)}
        for number, item in enumerate(of_one):
            if number not in kept:
                item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def artifact() -> Artifact:
    """The shipped model on eight chips."""
    return compile_decoder(partition_model(load_checkpoint(shipped_model()), 8), ChipSpec(), 64)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A private Ray that lives as long as the tests."""
    with open_ray(None, 9):
        yield
