"""Reports opened in a real browser: nothing asked for, nothing complained of, everything drawn."""

from __future__ import annotations

import copy
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from cluster.cli import run
from cluster.errors import InputError
from cluster.report import read_run, write_page
from cluster.report.page import render
from tests.stands import chromium

#: In one process: they share the runs that they draw.
pytestmark = pytest.mark.xdist_group("report")

#: One quick run of every kind.
RUNS = {
    "generate": ("generate", "--in-process", "--max-new-tokens", "4"),
    "collective": (
        "fabric",
        "collective",
        "--chips",
        "16",
        "--bytes",
        "5000",
        "--run",
        "--in-process",
    ),
    "load": ("experiment", "load", "--requests", "40", "--lpu-cycles-per-token", "30000"),
    "disaggregated": (
        "experiment",
        "disaggregated",
        "--requests",
        "20",
        "--lpu-cycles-per-token",
        "30000",
    ),
    "speculative": (
        "experiment",
        "speculative",
        "--alpha",
        "0.7",
        "--lpu-cycles-per-token",
        "30000",
        "--max-new-tokens",
        "16",
    ),
}
needs_chromium = pytest.mark.skipif(
    chromium.find() is None, reason="Chromium is not installed (Debian package chromium)"
)
HOSTILE = (
    "</script><script>alert(1)</script><img src=http://x.test/ onerror=alert(2)> {{ 7*7 }} "
    "$\\frac{ & \" ' \x00\x1b[31m \ud800 #010203 url(#a)"
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """The run file and the page of every kind of run."""
    directory = tmp_path_factory.mktemp("reports")
    made = {}
    for kind, arguments in RUNS.items():
        saved, page = directory / f"{kind}.json", directory / f"{kind}.html"
        assert run([*arguments, "--save", str(saved), "--report", str(page), "--json"]) == 0
        made[kind] = saved, page
    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


BOXES = """[...document.querySelectorAll("figure svg, .belt")].map((one) => {
  const box = one.getBoundingClientRect();
  return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height,
          name: one.getAttribute("aria-labelledby") || "belt"};
})"""
CONTRAST = """(() => {
  const light = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).map((part) => {
    const c = part / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  }).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return Math.min(...[...document.querySelectorAll("svg text, p, dt, dd, figcaption, h1, h2, a, "
                                                   + "button, .name, .took")]
    .filter((one) => one.textContent.trim() && one.checkVisibility())
    .map((one) => {
      const style = getComputedStyle(one);
      const ink = one.tagName === "text" ? style.fill : style.color;
      if (one.tagName === "text" && ink === "rgb(255, 255, 255)") return 21; // on a dot
      const both = [light(ink), light(behind(one))].sort((a, b) => b - a);
      return (both[0] + 0.05) / (both[1] + 0.05);
    }));
})()"""


def pixels(png: bytes) -> np.ndarray:  # type: ignore[type-arg]
    return imread(io.BytesIO(png), format="png")[..., :3]


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (375, True)])
@pytest.mark.parametrize("kind", list(RUNS))
@pytest.mark.long
def test_a_page_is_whole_and_asks_for_nothing(
    pages: dict[str, tuple[Path, Path]], page: chromium.Browser, kind: str, width: int, dark: bool
) -> None:
    page.open(pages[kind][1], width, dark=dark)
    wide, seen = page.value("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= seen == width
    boxes = page.value(BOXES)
    drawn = json.loads(pages[kind][0].read_text())
    assert len(boxes) >= sum(name in drawn for name in ("machine", "roofline", "links", "sram")) + 2
    for box in boxes:
        assert box["width"] > 200 and box["height"] > 40, box
        clip = {key: box[key] for key in ("x", "y", "width", "height")}
        picture = pixels(page.picture(clip))
        paint = np.abs(picture - picture[0, 0]).max(axis=2) > 0.1
        assert paint.mean() > 0.005, box["name"]
    assert page.value(CONTRAST) >= 4.5
    assert page.complaints() == []
    assert {url for url in page.requests() if not url.startswith("data:")} == {
        pages[kind][1].as_uri()
    }


@needs_chromium
@pytest.mark.long
def test_the_belt_is_moved_by_keyboard_and_rests_if_asked(
    pages: dict[str, tuple[Path, Path]], page: chromium.Browser
) -> None:
    state = "[document.querySelector('.play').textContent, document.querySelector('output').value]"
    later = "new Promise((done) => setTimeout(() => done(1), 300))"
    page.open(pages["generate"][1], 1280, still=True)
    before = page.value(state)
    page.value(later)
    assert before == page.value(state) and before[0] == "Play"
    page.press("Tab", 9)
    assert page.value("document.activeElement.className") == "skip"
    for _ in range(30):
        page.press("Tab", 9)
        if page.value("document.activeElement.className") == "play":
            break
    page.press(" ", 32)
    page.value(later)
    after = page.value(state)
    assert after[0] == "Pause" and after[1] != before[1]
    page.press(" ", 32)
    stopped = page.value(state)
    page.value(later)
    assert page.value(state) == stopped and stopped[0] == "Play"
    page.press("Tab", 9)
    for _ in range(3):
        page.press("ArrowRight", 39)
    assert page.value("document.activeElement.className") == "at"
    assert page.value(state)[1] != stopped[1]
    assert page.value("document.querySelectorAll('.dot').length") >= 1
    page.open(pages["generate"][1], 1280, still=False)
    page.value(later)
    assert page.value(state)[0] == "Pause"


def hostile(value: Any) -> Any:
    """A run with every free string made hostile."""
    if isinstance(value, dict):
        kept = ("format", "kind", "source", "unit")
        return {key: one if key in kept else hostile(one) for key, one in value.items()}
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return HOSTILE if isinstance(value, str) else value


@needs_chromium
@pytest.mark.parametrize("kind", ["generate", "disaggregated"])
@pytest.mark.long
def test_hostile_strings_stay_text(
    pages: dict[str, tuple[Path, Path]], page: chromium.Browser, tmp_path: Path, kind: str
) -> None:
    saved = tmp_path / "run.json"
    saved.write_text(json.dumps(hostile(json.loads(pages[kind][0].read_text()))))
    write_page(read_run(saved), tmp_path / "page.html")
    page.open(tmp_path / "page.html", 375)
    assert page.value("document.scripts.length") == 2
    assert page.value("document.images.length") == 0
    assert page.value("document.querySelectorAll('[onerror]').length") == 0
    assert "</script><script>alert(1)</script>" in page.value("document.body.innerText")
    assert "{{ 7*7 }}" in page.value("document.title")
    wide, seen = page.value("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= seen
    assert page.complaints() == [] and len(page.requests()) <= 2


@pytest.mark.long
@pytest.mark.parametrize("kind", list(RUNS))
@pytest.mark.cases(1)
def test_a_saved_run_gives_the_same_page(
    pages: dict[str, tuple[Path, Path]], tmp_path: Path, kind: str
) -> None:
    saved, made = pages[kind]
    again = tmp_path / "again.html"
    assert run(["report", str(saved), "-o", str(again)]) == 0
    text = again.read_text()
    assert text == made.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*""", text)
    named = re.findall(r'\bid="([^"]+)"', text)
    assert len(named) == len(set(named))
    for target in re.findall(r'(?:href="|url\()#([^")]+)', text):
        assert target in named
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        assert 'role="img"' in svg and "<title" in svg


def changed(value: dict[str, Any], path: str, to: Any) -> dict[str, Any]:
    made = copy.deepcopy(value)
    *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
    here: Any = made
    for step in way:
        here = here[step]
    here[last] = to
    return made


@pytest.mark.parametrize(
    ("path", "to", "says"),
    [
        ("version", 2, "version 2, not 1"),
        ("format", "other", "format"),
        ("kind", "dance", "kind"),
        ("machine.chips", -1, "machine.chips"),
        ("machine.chips", 2, "a chip that is not there"),
        ("machine.cables.0", [0, 1], "machine.cables.0"),
        ("belts.0.items.0.times", [5, 4], "times do not fit"),
        ("belts.0.stages", [], "belts.0.stages"),
        ("links.mean", [0.5], "edges do not fit"),
        ("utilisation.edges.1", 0, "edges do not fit"),
        ("latencies.0.edges_s.3", 1e-30, "edges do not fit"),
        ("latencies.0.series.0.p50_s", "fast", "p50_s"),
        ("roofline.points.0.ops_per_s", 0, "ops_per_s"),
        ("sram.cells.0", [1], "differ in their number"),
        ("sram.cells.0.0", 9, "sram.cells.0.0"),
        ("extra", 1, "extra"),
    ],
)
@pytest.mark.long
def test_a_run_file_that_is_none_is_one_line(
    pages: dict[str, tuple[Path, Path]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    path: str,
    to: Any,
    says: str,
) -> None:
    value = json.loads(pages["generate"][0].read_text())
    broken, out = tmp_path / "broken.json", tmp_path / "out.html"
    broken.write_text(json.dumps(changed(value, path, to)))
    capsys.readouterr()
    assert run(["report", str(broken), "-o", str(out)]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
    assert not out.exists()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"3", b"NaN", b"\xff\xfe", b"[" * 100_000, b'{"format":"lpu-run"}']
)
def test_other_files_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(data)
    assert run(["report", str(path), "-o", str(tmp_path / "out.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("report", "nowhere.json"), "cannot be read"),
        (("generate", "--report", "page.txt"), ".html"),
        (("generate", "--save", "run.txt"), ".json"),
        (("generate", "--save", "/nowhere/run.json"), "not written"),
        (("fabric", "collective", "--report", "a.html"), "only with --run"),
        (("experiment", "load", "--report", "/nowhere/a.html"), "not written"),
    ],
)
def test_paths_are_checked_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(list(arguments)) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_sections_may_be_absent(pages: dict[str, tuple[Path, Path]]) -> None:
    value = json.loads(pages["generate"][0].read_text())
    bare = {key: value[key] for key in ("format", "version", "kind", "title", "facts")}
    text = render({**bare, "absent": {"sram": "too small to see"}})
    assert "SRAM map: too small to see" in text and "<svg" not in text


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all numbers and strings, of long lists the first two."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from leaves(one, f"{path}.{key}")
    elif isinstance(value, list):
        for number, one in enumerate(value[:2]):
            yield from leaves(one, f"{path}.{number}")
    else:
        yield path[1:]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", list(RUNS))
def test_any_number_is_drawn_or_refused(
    pages: dict[str, tuple[Path, Path]], tmp_path: Path, kind: str
) -> None:
    value = json.loads(pages[kind][0].read_text())
    counts = Counter[str]()
    # Fewer pictures at once: a broken one shows as well, and faster.
    for path in leaves({key: one for key, one in value.items() if key != "facts"}):
        section = path.partition(".")[0]
        beside = ("format", "version", "kind", "title", "facts", "absent", "machine", section)
        for to in (0, 2**53, 1e30, ""):
            broken = changed({key: value[key] for key in beside if key in value}, path, to)
            saved = tmp_path / "broken.json"
            saved.write_text(json.dumps(broken))
            try:
                loaded = read_run(saved)
            except InputError as error:
                assert "\n" not in str(error) and str(saved) in str(error)
                counts["refused"] += 1
                continue
            assert loaded == json.loads(json.dumps(broken))
            page = render(loaded)
            assert page.startswith("<!") and page.rstrip().endswith("</html>")
            for number in re.findall(r'(?:[dxy]|points|width|height)="([^"]*)"', page):
                assert "nan" not in number and "inf" not in number
            counts["drawn"] += 1
    assert counts["refused"] and counts["drawn"]
