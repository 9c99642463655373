"""Pages and pictures that are made from the code: those in ``docs`` are what it says now.

Made anew by ``python -m cluster.reference_pages``.
"""

from __future__ import annotations

import pytest

from cluster import architecture_picture
from cluster.reference_pages import DIRECTORY, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_reference_page_is_what_the_code_says(name: str) -> None:
    assert (DIRECTORY / name).read_text(encoding="utf-8") == PAGES[name]()


def test_the_picture_is_what_the_folders_say() -> None:
    assert architecture_picture.PICTURE.read_text(encoding="utf-8") == architecture_picture.draw()
