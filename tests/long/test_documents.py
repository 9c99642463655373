"""Code in the documents runs."""

from __future__ import annotations

import re

import pytest

from cluster.reference_pages import DIRECTORY, PAGES
from tests import ROOT

DOCUMENTS = sorted([*ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md"), ROOT / "README.md"])
SNIPPETS = [
    pytest.param(code, id=f"{path.relative_to(ROOT)}-{number}")
    for path in DOCUMENTS
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.S))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet_runs(code: str) -> None:
    exec(compile(code, "snippet", "exec"), {})


@pytest.mark.parametrize("name", PAGES)
def test_reference_page_is_what_the_code_says(name: str) -> None:
    """Made anew by ``python -m cluster.reference_pages``."""
    assert (DIRECTORY / name).read_text(encoding="utf-8") == PAGES[name]()
