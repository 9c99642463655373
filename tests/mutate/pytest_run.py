"""One pytest in a copy of the checkout: what failed, how long it took, and nothing left running."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Set in the environment of each run; whatever still carries it afterwards is killed.
_MARK = "TESTS_MUTATE_RUN"
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
#: Share of the machine's memory one pytest may hold.
_MEMORY_SHARE = 0.6
#: pytest's exit codes: all passed, nothing to run.
PASSED, NOTHING = 0, 5


@dataclass(frozen=True)
class PytestRun:
    """Exit code (negative: a signal), the tests that failed, seconds, and how it was cut."""

    code: int
    failed: tuple[str, ...]
    seconds: float
    timed_out: bool
    output: str

    @property
    def passed(self) -> bool:
        """Whether nothing failed; no test at all counts as that."""
        return not self.timed_out and self.code in (PASSED, NOTHING)


class StoppedError(Exception):
    """Somebody asked for the end."""


def run_pytest(
    copy: Path,
    files: Sequence[Path],
    marker: str,
    options: Iterable[str],
    limit_seconds: float,
    stop: threading.Event,
) -> PytestRun:
    """Run test files of a copy that is on the path before everything else.

    After ``limit_seconds`` the run and all it started are killed.  StoppedError once ``stop`` is
    set.
    """
    mark = uuid.uuid4().hex
    environment = dict(os.environ, PYTHONPATH=str(copy), **{_MARK: mark})
    for name in ("NUMBA_CACHE_DIR", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-q", "-m", marker, "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") is not None:
        # whatever pyproject says: a share of a test file is no baseline, and workers hide a hang
        command += ["-n", "0"]
    command += [*options, *map(str, files)]
    log = copy.parent / f"{copy.name}.log"
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            timed_out = not _ends(process, began + limit_seconds, stop)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _kill_marked(mark)
    text = log.read_text(errors="replace")
    failed = () if timed_out else tuple(_FAILED.findall(text))
    return PytestRun(process.returncode, failed, time.monotonic() - began, timed_out, text)


def _ends(process: subprocess.Popen[bytes], until: float, stop: threading.Event) -> bool:
    """Whether the process ends by itself in time and within the machine's memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    most = os.sysconf("SC_PHYS_PAGES") * page * _MEMORY_SHARE
    while process.poll() is None:
        if stop.is_set():
            raise StoppedError
        if time.monotonic() > until:
            return False
        with contextlib.suppress(OSError, IndexError, ValueError):
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            if pages * page > most:
                return False
        time.sleep(0.1)
    return True


def _kill_marked(mark: str) -> None:
    """End what left the process group: servers of Ray in sessions of their own.  Linux."""
    wanted = f"{_MARK}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
