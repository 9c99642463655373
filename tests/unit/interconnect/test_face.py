"""What a user imports first."""

from __future__ import annotations

import interconnect


def test_every_name_of_the_face_is_there() -> None:
    assert interconnect.topology_of(8).chips == 8
    for name in interconnect.__all__:
        assert getattr(interconnect, name).__name__ == name
