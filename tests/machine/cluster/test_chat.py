"""A conversation: the template writes it, the model continues it, the context ends it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.listening import Listener
from cluster.runs import (
    BeltSettings,
    ChatSettings,
    GenerateSettings,
    conversation,
    generate,
    generate_on_belt,
    generation_json,
)
from programs.models import Checkpoint, CheckpointError, load_checkpoint, shipped_model

TEMPLATE = """{{ bos_token }}{% for m in messages %}
{{ m.role }}: {{ m.content }}
{% endfor %}
assistant:"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The shipped draft with a template of its own."""
    place = tmp_path / "model"
    shutil.copytree(shipped_model("draft"), place)
    (place / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return place


class Heard(Listener):
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def token(self, token: int) -> None:
        self.tokens.append(token)


def settings(model: Path, **options: object) -> ChatSettings:
    values = {"chips": 1, "in_process": True, "max_new_tokens": 8, "context": 96, **options}
    return ChatSettings(str(model), **values)  # type: ignore[arg-type]


def by_hand(model: Path, text: str, tokens: int) -> list[int]:
    """Greedy tokens after ``text``, from one generation that knows nothing of chats."""
    done = generate(
        GenerateSettings(
            str(model), text, tokens, chips=1, in_process=True, context=96, ignore_eos=True
        )
    )
    return done.tokens


def test_a_conversation_is_what_its_template_writes(model: Path) -> None:
    with conversation(settings(model, system="Be brief.")) as talk:
        heard = Heard()
        first = talk.say("def f(x):", heard)
        second = talk.say("class A:")
        closing = talk.closing
    begin = "<|endoftext|>system: Be brief.\nuser: def f(x):\nassistant:"
    tokens = by_hand(model, begin, 8)
    assert first.result is not None and second.result is not None
    assert heard.tokens == first.result.tokens == tokens
    assert first.text == load_checkpoint(model).tokenizer.decode(tokens)
    again = f"{begin[:-10]}assistant: {first.text}\nuser: class A:\nassistant:"
    assert second.result.tokens == by_hand(model, again, 8)
    assert [m["role"] for m in talk.messages] == ["system"] + ["user", "assistant"] * 2
    assert closing.startswith("2 answers, 16 tokens, ")
    assert closing.endswith(" cycles per token (as predicted)")


def test_an_answer_says_that_it_was_cut(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the tokenizer is read once, however many turns there are."""
    read: list[Checkpoint] = []
    whole = Checkpoint.tokenizer
    assert isinstance(whole, property) and whole.fget is not None
    get = whole.fget
    monkeypatch.setattr(Checkpoint, "tokenizer", property(lambda own: read.append(own) or get(own)))
    with conversation(settings(model, max_new_tokens=2)) as talk:
        answers = [talk.say(text) for text in ("def f(x):", "class A:")]
    assert all(answer.cut and not answer.full for answer in answers) and len(read) == 1
    assert all(answer.result and answer.result.ended == "length" for answer in answers)


def test_generate_chat_makes_one_message_of_the_prompt(model: Path) -> None:
    single = GenerateSettings(str(model), "def f(x):", 8, chips=1, in_process=True, chat=True)
    done = generate(single)
    prompt = "<|endoftext|>user: def f(x):\nassistant:"
    assert done.tokens == by_hand(model, prompt, 8)
    assert done.prompt == load_checkpoint(model).tokenizer.encode(prompt).ids
    assert done.prompt.count(0) == 1  # the template's beginning, not the tokenizer's as well


@pytest.mark.long
def test_every_end_token_ends_a_text(model: Path) -> None:
    prompt = "<|endoftext|>user: def f(x):\nassistant:"
    tokens = by_hand(model, prompt, 8)
    end = next(token for n, token in enumerate(tokens) if n and token not in tokens[:n])
    at = tokens.index(end)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, end]}))
    one = GenerateSettings(str(model), prompt, 8, chips=1, in_process=True)
    done = generate(one)
    assert done.tokens == tokens[: at + 1]
    assert (done.ended, generation_json(done)["ended"]) == ("stop", "stop")
    assert generate(replace(one, ignore_eos=True)).ended == "length"
    with conversation(settings(model)) as talk:
        heard = Heard()
        answer = talk.say("def f(x):", heard)
    assert heard.tokens == tokens[:at]
    assert answer.result is not None and answer.result.ended == "stop" and not answer.cut
    assert answer.text == load_checkpoint(model).tokenizer.decode(tokens[:at])
    assert not answer.full
    belt = BeltSettings(str(model), [prompt], 8, tp=1, pp=1, context=96)
    assert generate_on_belt(belt).result.tokens == [tokens]
    assert generate_on_belt(belt).facts["tokens"] == [tokens[: at + 1]]


@pytest.mark.long
def test_a_full_context_ends_the_conversation(model: Path) -> None:
    (model / "generation_config.json").write_text('{"eos_token_id": 1023}')
    with conversation(settings(model, context=64, max_new_tokens=80)) as talk:
        cut = talk.say("def f(x):")
        assert cut.full and cut.result is not None
        ids = (
            load_checkpoint(model).tokenizer.encode("<|endoftext|>user: def f(x):\nassistant:").ids
        )
        assert len(ids) + len(cut.result.tokens) - 1 == talk.context == 64
        before = list(talk.messages)
        more = talk.say("and?")
        assert (more.full, more.text, more.result) == (True, "", None)
        assert talk.messages == before


def test_a_model_without_a_template_is_told_before_it_is_compiled(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    with (
        pytest.raises(CheckpointError, match="has no chat template"),
        conversation(settings(model)),
    ):
        pass


def lpu(*arguments: str, said: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", *arguments],
        input=said,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.long
def test_the_command_answers_line_by_line(model: Path) -> None:
    options = ("--model", str(model), "--chips", "1", "--in-process", "--context", "64")
    done = lpu("chat", *options, "--max-new-tokens", "4", said="def f(x):\n/exit\nnever\n")
    assert done.returncode == 0
    assert done.stderr == (
        "lpu: the answer is cut at 4 tokens; a larger --max-new-tokens lets it go on\n"
    )
    assert done.stdout.rstrip().splitlines()[-1].startswith("1 answer, 4 tokens, ")
    full = lpu("chat", *options, said="def f(x):\n" + "x = 1; " * 60 + "\n")
    assert full.returncode == 0
    assert full.stderr.splitlines()[-1].startswith("lpu: the context of 64 positions is full; ")
    (model / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    bad = lpu("chat", *options, said="a\n")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.count("\n") == 1 and "(no)" in bad.stderr
