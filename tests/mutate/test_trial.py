"""A whole judgement in a small checkout: killed, hung, survived; and the same draw for a seed."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import pytest

from . import trial
from .__main__ import main
from .baseline import LONG, QUICK, Baseline, Baselines
from .copies import CheckoutError, checkout_files, copy_checkout, mirror_caches
from .equivalents import EquivalentsError, key, read_equivalents
from .imports import Imports
from .mutant import Mutant
from .sampling import PACKAGES, draw, mutants, product, stratum
from .table import lines, rates
from .trial import EQUIVALENT, KILLED, SURVIVED, TIMEOUT, Bench, Verdict

SOURCE = """def count(end):
    at = 0
    while at < end:
        at += 2
    spare = 5
    return at


def jit(function):
    return function


@jit
def fast(x):
    return x + 1
"""
TESTS = """import pytest
from chip.counting import count

def test_count():
    assert count(4) == 4

def test_always_fails():
    assert count(4) == 5

@pytest.mark.soak
def test_soak():
    assert False
"""
BUDGET = 60.0
NINE = [Path(str(number)) for number in range(1, 10)]
HERE = Path(__file__).resolve().parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name, text in {
        "chip/__init__.py": "",  # found before an installed chip
        "chip/counting.py": SOURCE,
        "tests/test_counting.py": TESTS,
        "pyproject.toml": "[tool.pytest.ini_options]\nmarkers = ['soak', 'long']\n",
        ".gitignore": "__pycache__/\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


@pytest.fixture
def found(checkout: Path) -> list[Mutant]:
    return mutants(Imports(checkout), ["chip.counting"])


def one(found: list[Mutant], before: str, after: str) -> Mutant:
    return next(m for m in found if (m.before, m.after) == (before, after))


@pytest.mark.long
def test_verdicts(
    checkout: Path, found: list[Mutant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_PATIENCE", 1.5)
    monkeypatch.setattr(trial, "_GRACE_SECONDS", 1.0)
    pristine, copy = tmp_path / "pristine", tmp_path / "worker"
    files = checkout_files(checkout)
    for target in (pristine, copy):
        copy_checkout(checkout, files, target)
    stop = threading.Event()
    baselines = Baselines(pristine, BUDGET, stop)
    bench = Bench(copy, pristine, baselines, BUDGET, stop)
    tests = [Path("tests/test_counting.py")]
    killed = bench.judge(one(found, "at = 0", "at = 1"), tests, set())
    assert (killed.outcome, killed.by) == (KILLED, "tests/test_counting.py::test_count")
    hung = bench.judge(one(found, "at += 2", "at -= 2"), tests, set())
    assert (hung.outcome, hung.files) == (TIMEOUT, 1)
    # the test that fails without a mutant kills nobody
    assert baselines.of(tests[0], QUICK).failing == ("tests/test_counting.py::test_always_fails",)
    survived = bench.judge(one(found, "spare = 5", "spare = 6"), tests, set())
    assert (survived.outcome, survived.files) == (SURVIVED, 1)
    assert (copy / "chip/counting.py").read_bytes() == (checkout / "chip/counting.py").read_bytes()
    known = Verdict(one(found, "spare = 5", "spare = 4"), EQUIVALENT, "unused", 0.0)
    counts = rates([killed, hung, survived, known])["chip"]
    assert counts == {
        KILLED: 1,
        TIMEOUT: 1,
        SURVIVED: 1,
        EQUIVALENT: 1,
        "run": 3,
        "kill_rate": 2 / 3,
    }
    assert any("67%" in line for line in lines([killed, hung, survived, known]))
    again = json.loads(next(tmp_path.glob("baselines-*.json")).read_text())
    assert list(again) == [f"tests/test_counting.py -m {marker}" for marker in (QUICK, LONG)]


def test_the_draw_depends_on_the_seed_alone(checkout: Path, found: list[Mutant]) -> None:
    assert draw(checkout, found, 5, 3) == draw(checkout, found, 5, 3)
    assert draw(checkout, found, 5, 3) != draw(checkout, found, 5, 4)
    assert draw(checkout, found, 7, 3)[:5] == draw(checkout, found, 5, 3)
    everything = draw(checkout, found, 100, 0)
    assert len({(m.start, m.end) for m in everything}) == len(everything)
    # the strata take turns
    assert [stratum(mutant) for mutant in everything[:4]] == ["chip", "compiled"] * 2


def test_compiled_functions_are_mirrored_but_for_the_stale_ones(tmp_path: Path) -> None:
    pristine, copy = tmp_path / "pristine", tmp_path / "copy"
    there = {pristine: ("a.f-1.nbi", "a.g-9.nbi"), copy: ("a.h-3.nbi", "a.g-2.nbi")}
    for folder, names in there.items():
        (folder / "chip/__pycache__").mkdir(parents=True)
        for name in names:
            (folder / "chip/__pycache__" / name).write_text(name)
    mirror_caches(pristine, copy, {"chip/__pycache__/a.g-"})
    assert {path.name for path in copy.rglob("*.nbi")} == {"a.f-1.nbi", "a.g-2.nbi"}


def test_outside_a_repository(tmp_path: Path) -> None:
    with pytest.raises(CheckoutError, match="run it in a clone"):
        checkout_files(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"file": "a"}]', '{"a": 1}'])
def test_a_list_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(EquivalentsError, match="a JSON list of objects with file, line"):
        read_equivalents(tmp_path / "list.json")


@pytest.mark.long
def test_the_committed_list_names_mutants_that_there_are() -> None:
    root = next(folder for folder in HERE.parents if (folder / "pyproject.toml").exists())
    judged = read_equivalents(HERE / "equivalent.json")
    files = {root / file for file, _, _ in judged}
    imports = Imports(root)
    modules = [module for module in product(imports, PACKAGES) if imports.paths[module] in files]
    there = {key(mutant) for mutant in mutants(imports, modules)}
    gone = sorted(set(judged) - there)
    assert not gone, "moved or rewritten: mend the list's file, line and becomes, or drop them"


def test_long_tests_come_behind_the_quick_ones_of_the_next_files() -> None:
    order = [f"{path}{'-' if marker == LONG else ''}" for path, marker in trial._in_turn(NINE)]
    assert " ".join(order) == "1 2 3 4 5 6 7 1- 8 2- 9 3- 4- 5- 6- 7- 8- 9-"


def test_the_search_ends_at_the_third_file_too_long(
    checkout: Path, found: list[Mutant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in (tmp_path / "pristine", tmp_path / "worker"):
        copy_checkout(checkout, checkout_files(checkout), target)
    asked = []

    def of(file: Path, marker: str) -> Baseline:
        asked.append(file.name)
        return Baseline(left_out="no tests") if file.name == "a" else Baseline(seconds=BUDGET + 1)

    stop = threading.Event()
    baselines = Baselines(tmp_path / "pristine", BUDGET, stop)
    monkeypatch.setattr(baselines, "of", of)
    bench = Bench(tmp_path / "worker", tmp_path / "pristine", baselines, BUDGET, stop)
    verdict = bench.judge(found[0], [Path(name) for name in "bacdefg"], set())
    assert asked == ["b", "a", "c", "d"]
    assert (verdict.outcome, verdict.files, verdict.left_out) == (SURVIVED, 0, 7)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--package chips", "--package chips: one of chip, interconnect, programs, cluster"),
        ("--equivalent nowhere.json", "nowhere.json: No such file or directory"),
        ("--json nowhere/found.json", "name a file in a directory that exists"),
        ("--sample 0", "--sample"),
        ("--colour", "No such option: --colour"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tests.mutate", *arguments.split()])
    assert main() == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1
