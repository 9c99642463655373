"""The rules of the house that no single package can keep: imports, determinism, names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

PACKAGES = ("chip", "interconnect", "programs", "cluster")
MODEL_PACKAGES = ("chip", "interconnect", "programs")
#: Trains the shipped checkpoints; runs on other machines and is imported by nothing.
OUTSIDE = ROOT / "programs" / "checkpoints"
#: Scripts that sit on top of everything and are imported by nothing.
WORKLOADS = ROOT / "programs" / "workloads"
#: Times itself while it verifies; computes nothing for a model.
SCRIPTS = (ROOT / "chip" / "verify_numerics.py",)
#: Modules whose values differ from run to run.
UNREPEATABLE = {"time", "random", "secrets", "uuid", "datetime"}
#: Builtins whose values depend on addresses or on the interpreter's hash seed.
UNREPEATABLE_CALLS = {"hash", "id"}
SHARED_STREAM = ("np.random.rand", "np.random.seed", "np.random.normal", "np.random.choice")
VAGUE = ("util", "helper", "manager", "misc", "common")


def modules(package: str) -> list[Path]:
    outside = {OUTSIDE, WORKLOADS}
    return [p for p in sorted((ROOT / package).rglob("*.py")) if not outside & set(p.parents)]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    above = set(PACKAGES[PACKAGES.index(package) + 1 :])
    for path in modules(package):
        wrong = [name for name in imports(path) if name.split(".")[0] in above]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_nothing_imports_a_workload() -> None:
    for package in PACKAGES:
        for path in modules(package):
            wrong = [name for name in imports(path) if name.startswith("programs.workloads")]
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("package", MODEL_PACKAGES)
def test_only_cluster_knows_ray_and_prometheus(package: str) -> None:
    for path in modules(package):
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & {"ray", "prometheus_client"}, path.relative_to(ROOT)


@pytest.mark.parametrize("package", MODEL_PACKAGES)
def test_model_code_is_repeatable(package: str) -> None:
    for path in modules(package):
        if path in SCRIPTS:
            continue
        assert not UNREPEATABLE & {name.split(".")[0] for name in imports(path)}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in UNREPEATABLE_CALLS, f"{path}:{node.lineno}"
            stream = isinstance(node, ast.Attribute) and ast.unparse(node).startswith(SHARED_STREAM)
            assert not stream, f"{path}:{node.lineno}: a process-wide random stream"


@pytest.mark.parametrize("package", PACKAGES)
def test_names_say_what_is_inside(package: str) -> None:
    for path in modules(package):
        assert not any(word in path.stem for word in VAGUE), path.relative_to(ROOT)


#: Rooms of ``cluster`` from low to high; what stands together may see each other.
LAYERS = (
    ("errors", "whole_files", "option_types", "option_checks"),
    ("processes",),
    ("gpu", "metrics", "tracing"),
    ("runs",),
    ("experiments",),
    ("report", "plots", "bench"),
    ("commands",),
    ("cli", "instruction_examples", "reference_pages", "__init__"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def test_imports_inside_cluster_point_downwards() -> None:
    for path in modules("cluster"):
        room = path.relative_to(ROOT / "cluster").parts[0].removesuffix(".py")
        seen = {name.split(".")[1] for name in imports(path) if name.startswith("cluster.")}
        wrong = sorted(other for other in seen if LEVEL[other] > LEVEL[room])
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"
