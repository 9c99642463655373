"""Feeding a reader: seeded, bounded in time and memory, and guided by what it answers.

An input that draws an answer nobody drew before (the refusal's text without its numbers and names)
becomes a sample for more damage, so that the search goes deeper than one step from real files.
"""

from __future__ import annotations

import gc
import random
import re
import resource
import signal
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from types import FrameType

from .formats import FORMATS

#: Of a processor; and by the clock, for a reader that waits, on whatever busy host.
MOST_SECONDS, MOST_WALL_SECONDS = 5, 100
MOST_BYTES = 1 << 30
#: Samples found on the way that are kept.
MOST_SAMPLES = 300


_TIMERS = (signal.SIGPROF, signal.SIGALRM)


class TooSlowError(BaseException):
    """The reader was still busy when its time was over."""


@dataclass
class Findings:
    """answers: how often each refusal came, ``accepted`` for none; crashes: input and traceback."""

    answers: Counter[str] = field(default_factory=Counter)
    crashes: list[tuple[bytes, str]] = field(default_factory=list)
    slowest_seconds: float = 0.0
    grown_bytes: int = 0


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlowError


def _kind(error: Exception) -> str:
    """A refusal's text without what differs from input to input."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\d+|[0-9a-fx.+-]{2,}", "_", str(error))
    return f"{type(error).__name__}: {text[:90]}"


def _limited(grow_bytes: int) -> tuple[int, int]:
    """Let the address space grow by so much at most; the limits of before."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + grow_bytes, before[1]))
    return before


def fuzz(name: str, inputs: int, seed: int) -> Findings:
    """``inputs`` damaged inputs of format ``name`` to its reader."""
    target, findings = FORMATS[name], Findings()
    rng = random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory(prefix="lpu-fuzz-") as scratch:
        directory = Path(scratch)
        samples = list(target.samples(directory))
        for sample in samples:
            target.read(sample, directory)  # what is whole is read
        originals = len(samples)
        before = _limited(MOST_BYTES)
        handlers = [signal.signal(number, _too_slow) for number in _TIMERS]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            for _ in range(inputs):
                pool = samples if rng.random() < 0.5 else samples[:originals]
                data = target.damage(rng.choice(pool), rng)
                answer = _feed(name, data, directory, findings)
                fresh = name in _GUIDED and not findings.answers[answer]
                if fresh and len(data) < 1 << 21 and len(samples) < originals + MOST_SAMPLES:
                    samples.append(data)
                findings.answers[answer] += 1
        finally:
            for number, handler in zip(_TIMERS, handlers, strict=True):
                signal.signal(number, handler)
            resource.setrlimit(resource.RLIMIT_AS, before)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        findings.grown_bytes = 1024 * grown
    return findings


#: Formats whose damage works on whatever bytes come; the others take real samples only.
_GUIDED = ("trace-csv", "assembly")


def _feed(name: str, data: bytes, directory: Path, findings: Findings) -> str:
    target = FORMATS[name]
    began = process_time()
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, MOST_WALL_SECONDS)
    try:
        target.read(data, directory)
        answer = "accepted"
    except target.refusals as error:
        answer = _kind(error)
        if "\n" in str(error):
            findings.crashes.append((data, f"more than one line: {error!s:.300}"))
    except TooSlowError:
        answer = "too slow"
        findings.crashes.append((data, f"more than {MOST_SECONDS} s"))
    except MemoryError:
        gc.collect()
        answer = "too much memory"
        findings.crashes.append((data, f"more than {MOST_BYTES} bytes"))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        answer = f"crash: {type(error).__name__}"
        findings.crashes.append((data, traceback.format_exc(limit=-4)))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    findings.slowest_seconds = max(findings.slowest_seconds, process_time() - began)
    return answer
