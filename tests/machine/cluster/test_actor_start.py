"""What an actor does to get ready, here without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.processes import GroupPlan, SharedMapping, layout_of
from cluster.processes.actors import ChipActor
from cluster.processes.group import Ticket
from programs.artifact import save
from programs.decoder import compile_model_apart, host
from programs.models import open_model


def test_a_checkpoint_that_comes_with_the_plan_is_not_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, images = compile_model_apart(
        open_model("draft"), tp=1, dtype="int8", context=16, chip="groq-lpu-1", pp=1
    )
    path = tmp_path / "group.lpu"
    save(artifact, path)

    def no(*_: object) -> None:
        raise AssertionError("the checkpoint is opened again")

    monkeypatch.setattr(host, "load_checkpoint", no)
    mapping = SharedMapping.create(layout_of(artifact, 1))
    assert mapping.path is not None
    ticket = Ticket(mapping.path, mapping.layout, mapping.token)
    try:
        failures = [
            ChipActor(GroupPlan(path, (0,), 0, tmp_path, 0, images=given), None).ready(ticket)
            for given in (images.unread(), None)
        ]
    finally:
        mapping.unlink()
    assert failures[0].failure is None and failures[0].image_bytes[0] > 0
    assert failures[1].failure == "the checkpoint is opened again"  # so it would be seen
