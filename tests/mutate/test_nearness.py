"""Imports followed through stubs, faces and fixtures in a small tree; stale compiled functions."""

from __future__ import annotations

from pathlib import Path

import pytest

from .compiled import CompiledFunctions
from .imports import Imports
from .nearness import Nearness
from .users import Users

TREE = {
    "chip/__init__.py": "x, y, z = attach_stub(__name__, __file__)\n",
    "chip/__init__.pyi": "from .checker import check as check\n",
    "chip/checker/__init__.py": "x, y, z = attach_stub(__name__, __file__)\n",
    "chip/checker/__init__.pyi": (
        "from .rules import check as check\nfrom . import units as units\n"
    ),
    "chip/checker/rules.py": "from . import units\ndef check(): return units.UNITS\n",
    "chip/checker/units.py": "from math import pi\nUNITS = 3\n",
    "chip/checker/math.py": "",
    "lpu.py": "x, y, z = attach_stub(__name__, __file__)\n",
    "lpu.pyi": "from chip import check as check\n",
    "cluster/__init__.py": "",
    "cluster/cli.py": "from chip.checker import check\n",
    "cluster/lazy.py": "def f(): return import_module('cluster.cli')\n",
    "cluster/typed.py": "if TYPE_CHECKING:\n    from chip.checker.rules import check\n",
    "tests/unit/chip/test_direct.py": "from chip.checker.rules import check\ncheck()\n",
    "tests/unit/chip/test_face.py": "from chip.checker import check\n",
    "tests/unit/chip/test_root.py": "import lpu\nlpu.check()\n",
    "tests/unit/chip/test_attribute.py": "import chip.checker\nchip.checker.units.UNITS\n",
    "tests/unit/chip/wires.py": "from chip import check\n",
    "tests/unit/chip/test_wires.py": "from wires import check\n",
    "tests/unit/conftest.py": "from chip import check\n@pytest.fixture\ndef checked(): ...\n",
    "tests/unit/test_fixture.py": "def test_it(checked): ...\n",
    "tests/cluster/test_process.py": "LPU = [executable, '-m', 'cluster.cli']\n",
    "tests/cluster/test_lazy.py": "import cluster.lazy\n",
    "tests/cluster/test_typed.py": "import cluster.typed\n",
    "tests/mutate/test_tool.py": "NAMED = 'chip.checker.rules'\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, source in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    return tmp_path


def names(root: Path, module: str, line: int = 1) -> list[str]:
    imports = Imports(root)
    return [path.stem for path in Nearness(imports, Users(imports)).test_files(module, line)]


def test_a_name_leads_through_faces_to_where_it_is_defined(tree: Path) -> None:
    imports = Imports(tree)
    assert imports.chain("lpu", "check")[-1] == ("chip.checker.rules", "check")
    assert imports.chain("chip.checker", "units")[-1] == ("chip.checker.units", None)
    assert imports.dependencies("cluster.cli") == {"chip.checker.rules"}
    assert imports.dependencies("tests.unit.chip.test_root") == {"lpu", "chip.checker.rules"}
    assert imports.dependencies("chip.checker.units") == set()
    assert imports.dependencies("cluster.typed") == set()


def test_tests_by_their_distance(tree: Path) -> None:
    near = names(tree, "chip.checker.rules")
    assert set(near[:3]) == {"test_direct", "test_face", "test_root"}
    # a fixture, a file beside the test, and the command as a process are one import further
    assert set(near[3:6]) == {"test_fixture", "test_wires", "test_process"}
    assert near[6:] == ["test_lazy"]
    assert names(tree, "chip.checker.units")[0] == "test_attribute"
    assert names(tree, "cluster.typed") == ["test_typed"]


def test_the_shared_name_comes_first_among_equals(tree: Path) -> None:
    (tree / "tests/unit/chip/test_rules.py").write_text("from chip.checker import check, units\n")
    assert names(tree, "chip.checker.rules")[0] == "test_rules"


def test_who_names_the_line_comes_before_who_only_imports_the_module(tree: Path) -> None:
    (tree / "chip/checker/units.py").write_text("UNITS = 3\nOTHER = 4\n")
    (tree / "tests/unit/chip/test_other.py").write_text(
        "from chip.checker.units import OTHER\ndef test_it(): assert OTHER\n"
    )
    (tree / "tests/unit/chip/test_check.py").write_text(
        "from chip.checker import check\ndef test_it(): assert check()\n"
    )
    assert names(tree, "chip.checker.units", 2)[0] == "test_other"
    # two steps by name, through check; test_other only imports the module
    near = names(tree, "chip.checker.units", 1)
    assert near.index("test_check") < near.index("test_other")


def test_slow_folders_come_later(tree: Path) -> None:
    text = "from chip.checker.rules import check\ndef test_it(): assert check()\n"
    for folder in ("long", "machine", "cluster"):
        (tree / f"tests/{folder}/chip").mkdir(parents=True)
        (tree / f"tests/{folder}/chip/test_{folder}.py").write_text(text)
    near = names(tree, "chip.checker.rules")
    places = [near.index(f"test_{name}") for name in ("direct", "machine", "cluster", "long")]
    assert places == sorted(places)


def test_representative_runs_come_behind_the_nearest_few(tree: Path) -> None:
    text = "LPU = [executable, '-m', 'cluster.cli']\n"
    (tree / "tests/test_guard.py").write_text(text)
    assert names(tree, "chip.checker.rules").index("test_guard") == 4
    assert names(tree, "cluster.cli")[:2] == ["test_process", "test_lazy"]
    assert names(tree, "cluster.typed") == ["test_typed"]


def test_stale_are_all_that_use_a_changed_definition(tree: Path) -> None:
    (tree / "chip/numbers.py").write_text(
        "WIDTH = 4\nOTHER = 5\n\n@jit_inline\ndef double(x):\n    return x * 2\n"
    )
    (tree / "chip/loop.py").write_text(
        "from chip import numbers\nfrom chip.numbers import double\n\n"
        "TWICE = numbers.WIDTH * 2\n\n@jit\ndef run(x):\n    return double(x)\n\n"
        "@numba.njit(cache=True)\ndef wide():\n    return TWICE\n\n"
        "@jit\ndef apart():\n    return 1\n"
    )
    imports = Imports(tree)
    compiled = CompiledFunctions(imports, Users(imports))
    own = "chip/__pycache__/numbers.double-"
    run, wide = "chip/__pycache__/loop.run-", "chip/__pycache__/loop.wide-"
    assert compiled.stale("chip.numbers", 1) == {own, wide}
    assert compiled.stale("chip.numbers", 2) == {own}
    assert compiled.stale("chip.numbers", 6) == {own, run}
    assert compiled.stale("chip.checker.units", 2) == set()
