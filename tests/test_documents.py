"""Code in the documents runs."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from cluster.reference_pages import DIRECTORY, PAGES

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md"), ROOT / "README.md"])
#: A snippet, and what it prints where the document says so.
SNIPPET = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.S)
SNIPPETS = [
    pytest.param(
        *snippet,
        id=f"{path.relative_to(ROOT)}-{number}",
        marks=[pytest.mark.ray] if "actors=True" in snippet[0] else [],
    )
    for path in DOCUMENTS
    for number, snippet in enumerate(SNIPPET.findall(path.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("code", "printed"), SNIPPETS)
def test_snippet_runs(code: str, printed: str) -> None:
    output = StringIO()
    with redirect_stdout(output):
        exec(compile(code, "snippet", "exec"), {})
    assert not printed or output.getvalue() == printed


@pytest.mark.parametrize("name", PAGES)
def test_reference_page_is_what_the_code_says(name: str) -> None:
    """Made anew by ``python -m cluster.reference_pages``."""
    assert (DIRECTORY / name).read_text(encoding="utf-8") == PAGES[name]()
