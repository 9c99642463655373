"""Every command in README and docs runs, or is marked with why it does not."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from cluster.cli import run
from programs.models import CheckpointError, packaged_model
from tests import ROOT
from tests.stands.prometheus_server import free_ports

#: Folders with a README of their own, in them or below.
FOLDERS = ("chip", "interconnect", "programs", "cluster", "dashboards", "tests")
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/README.md")),
    ]
)
MARK = re.compile(r"<!-- not run in the tests: \S.* -->\n$")
#: What stands for the reader's own in a command: what the test gives.
OWN = {
    "DIR": str(ROOT / "programs" / "checkpoints" / "draft"),
    "TEXT": "x = ",
    "FILE": "prompts.txt",
}
#: Beginnings of commands that start several processes or take a minute.
LONG = (
    "lpu generate --chips",
    "lpu generate --m",
    "lpu generate --trace",
    "lpu generate --report",
    "lpu bench",
    "lpu fabric collective",
    "lpu fabric sweep",
    "lpu experiment",
    "lpu workload",
    "lpu plan",
    "lpu generate --tp",
    "lpu generate --faults",
    "lpu chat --model smollm2",
)
NOT_RUN = {
    "lpu bench": "the whole table takes several minutes; its rows have tests of their own",
}


def blocks() -> list[tuple[str, str, bool]]:
    """(document, commands, marked as not run) of every shell block."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"```(?:bash|console|sh)\n(.*?)```", text, re.S):
            marked = MARK.search(text[: match.start()]) is not None
            found.append((str(path.relative_to(ROOT)), match[1], marked))
    return found


def table_commands() -> list[str]:
    """The commands in the first column of tables."""
    rows = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    return list(dict.fromkeys(re.findall(r"^\| `(lpu [^`]+)` \|", rows, re.M)))


def shown() -> dict[str, list[str]]:
    """Commands of the blocks that are run, each with the lines of its output that stand there.

    Where lines begin with ``$``, these are the commands and the others what they print, or, with
    ``>`` before them, what was typed.
    """
    found: dict[str, list[str]] = {}
    for _, text, marked in blocks():
        if marked:
            continue
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines[0].startswith("$ "):
            lines = [f"$ {line}" for line in lines]
        for line in lines:
            if line.startswith("$ "):
                output = found.setdefault(line[2:], [])
            else:
                output.append(line)
    return found


def cases() -> list[object]:
    commands = [*table_commands(), *shown()]
    return [
        pytest.param(c, marks=[pytest.mark.long] if c.startswith(LONG) else [], id=c)
        for c in dict.fromkeys(commands)
        if c not in NOT_RUN
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the commands name."""
    directory = tmp_path_factory.mktemp("reader")
    (directory / "prompts.txt").write_text("def f(\nimport os\n", encoding="utf-8")
    for path in DOCUMENTS:
        for name, text in re.findall(r"```asm\n; (\S+)\n(.*?)```", path.read_text("utf-8"), re.S):
            (directory / name).write_text(text, encoding="utf-8")
        for name, text in re.findall(r"```toml\n# (\S+)\n(.*?)```", path.read_text("utf-8"), re.S):
            (directory / name).write_text(text, encoding="utf-8")
    shutil.copytree(OWN["DIR"], directory / "chatty")
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (directory / "chatty" / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert run(["compile", "-o", "model.lpu"]) == 0
        assert run(["run", "model.lpu", "--save", "run.json"]) == 0
        assert run(["assemble", "sender.asm", "receiver.asm", "-o", "pair.lpu"]) == 0
        for name in ("add", "matmul"):
            assert run(["assemble", f"{name}.asm", "-o", f"{name}.lpu"]) == 0
    return directory


def _words(text: str) -> str:
    """Text without the lines of tables and with single blanks."""
    return " ".join(re.sub(r"[\u2500-\u257f]", " ", text).split())


@pytest.mark.parametrize("command", cases())
def test_command_runs(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("LPU_METRICS_LINGER", "0")
    monkeypatch.setenv("COLUMNS", "200")
    # Another process may run a command with the documents' port at the same time.
    own = {**OWN, "9464": str(free_ports(1)[0])}
    output = shown().get(command, [])
    if "chat" in command:  # the shipped models have no template
        own["DIR"] = "chatty"
        typed = "\n".join(line[2:] for line in output if line.startswith("> ")) or "x = "
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{typed}\n".encode())))
    if "smollm2" in command:
        try:
            packaged_model()
        except CheckpointError as error:
            pytest.skip(str(error))
    words = [own.get(word, word) for word in shlex.split(command)]
    assert words[0] == "lpu", "a command of another program: mark its block as not run, with why"
    assert run(words[1:]) == 0
    printed = _words(capsys.readouterr().out)
    told = [line for line in output if not line.startswith("> ")]
    assert [line for line in told if _words(line) not in printed] == []


def test_marks_stand_before_blocks() -> None:
    """A mark that is not directly before a shell block marks nothing."""
    marks = sum(path.read_text(encoding="utf-8").count("<!-- not run") for path in DOCUMENTS)
    assert marks == sum(marked for _, _, marked in blocks()) > 0
