"""Chat templates: what they may do, what they cannot, and what a bad one says."""

from __future__ import annotations

import resource
import shutil
import signal
from datetime import datetime
from pathlib import Path
from time import perf_counter

import pytest

from programs.models import CheckpointError, chat_prompt, load_checkpoint, render_chat
from programs.models import template_process as process
from tests import ROOT

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße & <b>\n"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def rendered(template: str) -> str:
    return render_chat(template, CHAT, TOKENS, "here")


def refused(template: str) -> str:
    with pytest.raises(CheckpointError) as error:
        rendered(template)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("here: its chat template cannot be used (")
    assert "; mend " in text
    return text


def test_a_template_reads_as_in_transformers() -> None:
    # The shape of ChatML, as most published templates have it; written by hand what it gives.
    template = """{{ bos_token }}
{% for message in messages %}
    {% if message['role'] == 'tool' %}{% continue %}{% endif %}
    {% generation %}
{{ '<|' + message.role + '|>' }}{{ message['content'] | trim }}
    {% endgeneration %}
    {% if loop.last %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{{ tools is none }} {{ {'a': 'é<'} | tojson }} {{ messages[0] | tojson(indent=1) }}"""
    assert rendered(template) == (
        "<s>\n<|system|>Be brief.\n<|user|>Grüße & <b>\n<|assistant|>\n"
        'True {"a": "é<"} {\n "role": "system",\n "content": "Be brief."\n}'
    )


def test_a_template_may_ask_for_the_date() -> None:
    before = datetime.now().strftime("%d %b %Y")
    assert rendered("{{ strftime_now('%d %b %Y') }}") in (
        before,
        datetime.now().strftime("%d %b %Y"),
    )


def test_a_template_refuses_in_its_own_words() -> None:
    said = refused("{{ raise_exception('System role\\nnot supported') }}")
    assert "(System role not supported)" in said


@pytest.mark.parametrize(
    "template",
    [
        "{% for",
        "{{ 1 / 0 }}",
        "{{ messages[99].content }}",
        "{{ nothing.at.all }}",
        "{{ 'a' + 1 }}",
    ],
)
@pytest.mark.cases(2)
def test_a_broken_template_is_one_line(template: str) -> None:
    refused(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% include '/etc/hostname' %}",
        "{% extends 'config.json' %}",
        "{% import '/etc/passwd' as x %}{{ x }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.listdir('/') }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(strftime_now) }}",
        "{{ open('/etc/passwd').read() }}",
    ],
)
@pytest.mark.cases(3)
def test_a_template_reaches_no_file_and_no_insides(template: str) -> None:
    refused(template)


def test_even_python_itself_opens_no_file_in_that_process(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda what, to: made.append((what, to)))
    process._limit()
    assert dict(made)[resource.RLIMIT_NOFILE] == (0, 0)
    assert dict(made)[resource.RLIMIT_AS] == (process.MOST_MEMORY_BYTES,) * 2


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 'a' * (5 * 10**6) }}", "more than 4,194,304 characters"),
        ("{{ ('a' * 10**10) | length }}", "more than 512 MiB"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ '%0999999999d' % 1 }}", "more than"),
    ],
)
@pytest.mark.cases(1)
def test_what_a_template_takes_is_bounded(template: str, said: str) -> None:
    assert said in refused(template)


@pytest.mark.long
def test_a_template_without_end_is_ended() -> None:
    loop = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    began = perf_counter()
    assert "takes too long" in refused(loop)
    assert perf_counter() - began < process.MOST_SECONDS + 10


def test_a_process_that_dies_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from programs.models import chat

    script = tmp_path / "dies.py"
    script.write_text(f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", encoding="utf-8")
    monkeypatch.setattr(chat, "PROCESS", script)
    assert "brought its process down" in refused("x")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "programs" / "checkpoints" / "draft", tmp_path / "model")
    return tmp_path / "model"


def test_the_template_alone_writes_the_beginning(model: Path) -> None:
    (model / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8"
    )
    checkpoint = load_checkpoint(model)
    ids = chat_prompt(checkpoint, [{"role": "user", "content": "def f"}])
    begin = checkpoint.tokenizer.token_to_id("<|endoftext|>")
    assert ids[0] == begin
    assert begin not in ids[1:]
    assert checkpoint.tokenizer.decode(ids) == "def f"


def test_a_model_without_a_template_is_told(model: Path) -> None:
    with pytest.raises(CheckpointError, match="has no chat template; use a chat model"):
        chat_prompt(load_checkpoint(model), [{"role": "user", "content": "a"}])
