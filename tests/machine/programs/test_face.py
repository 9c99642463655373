"""The first names of the package: they load nothing before they are used, and do what they say."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

import programs
from programs import LpuSession, compile_model, open_model


def test_the_face_is_lazy() -> None:
    code = "import programs, sys; print(*(n in sys.modules for n in ('numba', 'numpy')))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "False"]


def test_every_name_is_there() -> None:
    assert all(getattr(programs, name) is not None for name in programs.__all__)


def test_a_model_by_name_gives_logits() -> None:
    checkpoint = open_model("draft")
    session = LpuSession(
        compile_model(checkpoint, tp=1, dtype="int8", context=64, chip="groq-lpu-1")
    )
    logits = session.read([70, 221])
    assert logits.shape == (checkpoint.config.vocab,) and np.isfinite(logits).all()
    assert session.context == 64 and session.launches == 2
