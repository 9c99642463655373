"""One local Ray for all chaos runs, and the undisturbed runs they are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chip.spec import ChipSpec
from cluster.processes import open_ray
from programs.artifact import Artifact
from programs.decoder import compile_decoder, partition_model
from programs.models import load_checkpoint, shipped_model
from tests.long.chaos.kills import Calm, calm_generation


@pytest.fixture(scope="session")
def artifact() -> Artifact:
    """The shipped model on eight chips."""
    return compile_decoder(partition_model(load_checkpoint(shipped_model()), 8), ChipSpec(), 64)


@pytest.fixture(scope="session")
def calm(artifact: Artifact) -> Calm:
    """A generation nobody disturbs."""
    return calm_generation(artifact)


@pytest.fixture(scope="session")
def chaos_ray() -> Iterator[None]:
    """A private Ray that lives as long as the tests."""
    with open_ray(None, 9):
        yield
