"""The rules of the house that no single package can keep: rooms, imports, determinism, names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from tests import ROOT

PACKAGES = ("chip", "interconnect", "programs", "cluster")
MODEL_PACKAGES = ("chip", "interconnect", "programs")
#: Trains the shipped checkpoints; runs on other machines and is imported by nothing.
OUTSIDE = ROOT / "programs" / "checkpoints"
#: Scripts that sit on top of everything and are imported by nothing.
WORKLOADS = ROOT / "programs" / "workloads"
#: Compute nothing for a model: one times itself while it verifies, one tells a chat template the
#: date that it asks for.
SCRIPTS = (
    ROOT / "chip" / "verify_numerics.py",
    ROOT / "programs" / "models" / "template_process.py",
)
#: Modules whose values differ from run to run.
UNREPEATABLE = {"time", "random", "secrets", "uuid", "datetime"}
#: Builtins whose values depend on addresses or on the interpreter's hash seed.
UNREPEATABLE_CALLS = {"hash", "id"}
SHARED_STREAM = ("np.random.rand", "np.random.seed", "np.random.normal", "np.random.choice")
VAGUE = ("util", "helper", "manager", "misc", "common")

#: The rooms of each package, lowest floor first: a room imports from the floors below it, from
#: itself, and, where it stands beside others, not from those.  A room is a folder or a lone file.
FLOORS: dict[str, list[set[str]]] = {
    "chip": [
        {"errors", "saturation", "toml_files"},
        {"kernel_cache", "intrinsics"},
        {"jit"},
        {"isa", "numerics"},
        {"opcodes", "spec"},
        {"digest", "ecc", "faults", "program"},
        {"checker", "encoding", "linking", "reference", "scheduling", "verify_numerics"},
        {"engine", "timeline"},
    ],
    "interconnect": [{"wiring", "fec"}, {"wires", "clocks", "vectors"}, {"collectives"}],
    "programs": [
        {"models", "sram", "artifact"},
        {"kernels", "faults"},
        {"decoder", "convnet", "encoder", "matmul", "cholesky"},
        {"running"},
        {"evaluation", "plans", "quantising"},
    ],
    "cluster": [
        {"errors"},
        {"whole_files"},
        {"listening", "option_checks"},
        {"option_types"},
        {"processes"},
        {"gpu", "metrics", "tracing"},
        {"runs"},
        {"evaluation", "experiments", "planning", "quantising"},
        {"architecture_picture", "bench", "instruction_examples", "library", "plots", "report"},
        {"commands"},
        {"cli"},
        {"reference_pages"},
    ],
}
#: Experiments build on each other in this order.
EXPERIMENTS = ("serving", "speculative", "agentic")
#: Files in a folder at most, ``__init__`` aside; and the folders with more, each with its reason.
MOST_FILES = 15
LARGE_FOLDERS = {"cluster/commands": "a file for each verb"}
#: Lines and parameters of a function at most; of a command's.
MOST_LINES, MOST_PARAMETERS = 120, 10
MOST_COMMAND_LINES, MOST_COMMAND_PARAMETERS = 60, 12
#: Compiled kernels and others with more, each with its reason.
LARGE_FUNCTIONS = {
    "chip/scheduling/builder.py:op": "an instruction's fields by name, most with a default",
}
#: Argument positions, opcodes and queues that are written as numbers.
BY_NUMBER = re.compile(r"== 16[0-9]\b|queue - [0-9]|arguments\[at \+ [0-9]")


def modules(package: str) -> list[Path]:
    outside = {OUTSIDE, WORKLOADS}
    return [p for p in sorted((ROOT / package).rglob("*.py")) if not outside & set(p.parents)]


@lru_cache(None)
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, running: bool = False) -> Iterator[str]:
    """Modules that a file imports; running: not those imported for the type checker only."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree_of(path)):
        if running and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(ast.walk(node))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def room_of(path: Path) -> tuple[str, ...]:
    """(package, room) or, in experiments, (package, room, kind)."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    deep = 3 if parts[:2] == ("cluster", "experiments") else 2
    return parts[: min(deep, len(parts) - (parts[-1] == "__init__"))]


def faces() -> list[str]:
    """Sub-packages with a list of what they hand on."""
    return [
        ".".join(p.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for p in sorted((ROOT / package).rglob("__init__.pyi"))
        if p.parent.name != package
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    above = set(PACKAGES[PACKAGES.index(package) + 1 :])
    for path in modules(package):
        wrong = [name for name in imports(path) if name.split(".")[0] in above]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_stand_on_floors(package: str) -> None:
    """Inside a package a room imports from lower floors only, never from beside or above."""
    floor = {room: n for n, rooms in enumerate(FLOORS[package]) for room in rooms}
    rooms = {room_of(p)[1] for p in modules(package) if len(room_of(p)) > 1}
    assert rooms == set(floor), f"rooms without a floor: {rooms ^ set(floor)}"
    for path in modules(package):
        if len(room_of(path)) == 1:
            continue
        room = room_of(path)[1]
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != package or len(parts) == 1 or parts[1] == room:
                continue
            below = floor[parts[1]] < floor[room]
            assert below, f"{path.relative_to(ROOT)} imports {name}"


def test_experiments_build_on_each_other_one_way() -> None:
    for number, kind in enumerate(EXPERIMENTS):
        above = {f"cluster.experiments.{other}" for other in EXPERIMENTS[number + 1 :]}
        for path in sorted((ROOT / "cluster" / "experiments" / kind).glob("*.py")):
            assert not above & set(imports(path)), path.relative_to(ROOT)


def test_a_room_is_entered_by_its_face() -> None:
    """From outside a folder only the folder is imported, never a file in it."""
    known = set(faces())
    for package in PACKAGES:
        for path in [*modules(package), *WORKLOADS.glob("*.py")]:
            own = ".".join(path.parent.relative_to(ROOT).parts)
            for node in ast.walk(tree_of(path)):
                if not isinstance(node, ast.ImportFrom) or not node.module:
                    continue
                inside = node.module.rpartition(".")[0]
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert inside not in known - {own}, f"{where} imports a file of {inside}"
                if node.module in known - {own}:
                    folder = ROOT / Path(*node.module.split("."))
                    files = [a.name for a in node.names if (folder / f"{a.name}.py").exists()]
                    assert not files, f"{where} imports the file {files} of {node.module}"


@pytest.mark.parametrize("face", faces())
def test_a_face_lists_what_there_is(face: str) -> None:
    """Names are sorted, exist, and hide no file; the list at run time is the typed one."""
    folder = ROOT / Path(*face.split("."))
    listed = tree_of(folder / "__init__.pyi")
    names = [a.name for n in listed.body if isinstance(n, ast.ImportFrom) for a in n.names]
    assert len(names) == len(set(names))
    for name in names:
        assert not (folder / f"{name}.py").exists() and not (folder / name).exists(), name
    module = __import__(face, fromlist=["_"])
    assert sorted(module.__all__) == sorted(names)
    for name in names:
        assert getattr(module, name) is not None or name, name


@pytest.mark.parametrize(
    "module",
    ["chip", "chip.spec", "interconnect", "programs", "cluster", "cluster.processes.clock"],
)
def test_packages_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print({{'numba', 'ray', 'torch'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_folders_are_small() -> None:
    for package in PACKAGES:
        for folder in [ROOT / package, *(ROOT / package).rglob("*")]:
            if not folder.is_dir() or folder.name == "__pycache__" or folder == OUTSIDE:
                continue
            name = str(folder.relative_to(ROOT))
            files = [p for p in folder.glob("*.py") if p.stem != "__init__"]
            assert len(files) <= MOST_FILES or name in LARGE_FOLDERS, f"{name}: {len(files)} files"
            families = defaultdict(list)
            for p in files:
                families[p.stem.partition("_")[0]].append(p.stem)
            for first, family in families.items():
                allowed = name in LARGE_FOLDERS or (name == "cluster/report" and first == "from")
                assert len(family) < 3 or allowed, f"{name}: {family}"


def test_a_public_class_has_a_name_of_its_own() -> None:
    found = defaultdict(list)
    for package in PACKAGES:
        for path in [*modules(package), *(WORKLOADS.glob("*.py") if package == "programs" else [])]:
            for node in tree_of(path).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in found.items() if len(paths) > 1}


def functions() -> Iterator[tuple[str, Path, ast.FunctionDef]]:
    for package in PACKAGES:
        for path in modules(package):
            for node in ast.walk(tree_of(path)):
                if isinstance(node, ast.FunctionDef):
                    yield f"{path.relative_to(ROOT)}:{node.name}", path, node


def size_of(node: ast.FunctionDef) -> tuple[int, int]:
    """(lines, parameters without self)."""
    a = node.args
    names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    own = [n for n in names if n not in ("self", "cls")]
    return (node.end_lineno or 0) - node.lineno + 1, len(own)


def test_functions_are_small() -> None:
    large = {
        name
        for name, _, node in functions()
        if size_of(node)[0] > MOST_LINES or size_of(node)[1] > MOST_PARAMETERS
    }
    assert large == set(LARGE_FUNCTIONS)


def test_commands_check_call_and_print() -> None:
    commands = ROOT / "cluster" / "commands"
    for name, path, node in functions():
        if path.parent == commands:
            lines, parameters = size_of(node)
            assert lines <= MOST_COMMAND_LINES, f"{name}: {lines} lines"
            assert parameters <= MOST_COMMAND_PARAMETERS, f"{name}: {parameters} parameters"


@pytest.mark.parametrize("package", PACKAGES)
def test_opcodes_queues_and_arguments_have_names(package: str) -> None:
    for path in modules(package):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not BY_NUMBER.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


def test_the_formatter_is_never_switched_off() -> None:
    switch = "# fmt" + ":"
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0].startswith("."):
            continue
        assert switch not in path.read_text(encoding="utf-8"), path.relative_to(ROOT)


def test_every_sub_package_has_a_page() -> None:
    for face in faces():
        page = ROOT / Path(*face.split(".")) / "README.md"
        assert page.exists() and "```python" in page.read_text(encoding="utf-8"), face


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
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in UNREPEATABLE_CALLS, f"{path}:{node.lineno}"
            stream = isinstance(node, ast.Attribute) and ast.unparse(node).startswith(SHARED_STREAM)
            assert not stream, f"{path}:{node.lineno}: a process-wide random stream"


@pytest.mark.parametrize("package", PACKAGES)
def test_names_say_what_is_inside(package: str) -> None:
    for path in modules(package):
        assert not any(word in path.stem for word in VAGUE), path.relative_to(ROOT)
        assert path.stem != "base", path.relative_to(ROOT)
