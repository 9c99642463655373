"""Code in the documents runs."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cluster import architecture_picture
from tests import ROOT

ROOMS = sorted(
    path.parent
    for package in ("chip", "interconnect", "programs", "cluster")
    for path in ROOT.glob(f"{package}/*/**/__init__.pyi")
)
#: Folders with a README of their own, in them or below.
FOLDERS = ("chip", "interconnect", "programs", "cluster", "dashboards", "tests")
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/README.md")),
    ]
)
#: A snippet, and what it prints where the document says so.
SNIPPET = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.S)
#: Ray's actors are on the machine one run at a time.
ACTORS = [pytest.mark.ray, pytest.mark.xdist_group("ray")]
SNIPPETS = [
    pytest.param(
        *snippet,
        id=f"{path.relative_to(ROOT)}-{number}",
        marks=ACTORS if "actors=True" in snippet[0] else [],
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


def test_the_picture_shows_the_folders() -> None:
    """What it looks like is held by the unit test of reference pages."""
    drawn = architecture_picture.PICTURE.read_text(encoding="utf-8")
    names = {element.text for element in ElementTree.fromstring(drawn).iter() if element.text}
    assert {str(room.relative_to(ROOT)).split("/", 1)[1] for room in ROOMS} <= names


def test_readme_is_short() -> None:
    """At most 900 words, code and tables among them."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_sub_package_has_a_page(room: Path) -> None:
    """A README of a page: the idea, the types, a snippet."""
    text = (room / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {room.relative_to(ROOT)}\n")
    assert 15 <= len(text.splitlines()) <= 40
    assert "```python\n" in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_exist(document: Path) -> None:
    """Files and folders in backticks, links, and the files that a sub-package's page names."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    folders = "|".join((*FOLDERS, "docs"))
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (document.parent / link).exists()] == []
    beside = re.findall(r"`(\w+\.py)`", text) if document.parent in ROOMS else []
    assert [name for name in beside if not (document.parent / name).exists()] == []
