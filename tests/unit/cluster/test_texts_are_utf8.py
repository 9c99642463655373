"""Text that is not UTF-8 is told in one line that names the option, before any work."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cluster import InputError
from cluster.commands import chat
from cluster.experiments.speculative import SpeculativeSettings
from cluster.runs import BeltSettings, ChatSettings, GenerateSettings

LATIN = b"caf\xe9".decode("utf-8", "surrogateescape")


def test_every_text_of_the_settings_is_looked_at() -> None:
    for make, option in (
        (lambda: GenerateSettings(prompt=LATIN), "--prompt"),
        (lambda: BeltSettings(prompt=["a", LATIN]), "--prompt"),
        (lambda: ChatSettings(system=LATIN), "--system"),
        (lambda: SpeculativeSettings(prompt=LATIN), "--prompt"),
    ):
        with pytest.raises(InputError) as error:
            make()
        assert str(error.value) == (
            f"{option} is not UTF-8 (byte 0xe9 after 3 characters); give it as UTF-8 text"
        )


def test_a_lone_surrogate_from_python_is_told() -> None:
    with pytest.raises(InputError, match=r"U\+D800"):
        GenerateSettings(prompt="\ud800")


@pytest.mark.long
@pytest.mark.parametrize("verb", ["generate", "belt"])
def test_the_command_says_it_in_one_line(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", verb, "--prompt", b"caf\xe9"], capture_output=True
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"lpu: --prompt is not UTF-8") and done.stderr.count(b"\n") == 1


def lines(monkeypatch: pytest.MonkeyPatch, data: bytes) -> list[str]:
    stdin = SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False)
    monkeypatch.setattr(chat.sys, "stdin", stdin)
    return list(chat._lines())


def test_lines_of_a_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, "é\r\n\n  \n b \nend".encode()) == ["é", "b", "end"]
    assert lines(monkeypatch, b"a\n/exit\nb\n") == ["a"]
    with pytest.raises(InputError, match=r"not UTF-8 \(byte 0xe9 at 3\)"):
        lines(monkeypatch, b"a\ncaf\xe9\n")
    with pytest.raises(InputError, match="more than 1,048,576 bytes"):
        lines(monkeypatch, b"a" * (2 << 20))
