"""Damaged and random chat templates: an answer in one line, or a process that its limits end."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from time import perf_counter

import pytest

from programs.models import template_process as process

from .mutation import damage_bytes

SAMPLES = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m.content | trim }}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{{ bos_token }}{% set ns = namespace(n=0) %}{%- for m in messages -%}{% if m.role == 'user' %}"
    "{% set ns.n = ns.n + 1 %}{{ ns.n ~ ':' ~ m.content }}{% else %}{% continue %}{% endif %}"
    "{%- endfor -%}{% macro f(x) %}{{ x * 3 }}{% endmacro %}{{ f('ab') }}{{ tools | tojson }}",
    "{% generation %}{{ strftime_now('%Y') }}{% endgeneration %}{{ raise_exception('no') }}",
)
PIECES = (
    *("{{", "}}", "{%", "%}", "{#", "#}", "for", "in", "if", "endif", "endfor", "set", "macro"),
    *("messages", "range(10**6)", "'a'", "*", "**", "10**9", "[0]", ".__class__", "()", "|", "~"),
    *(
        "join",
        "tojson",
        "list",
        "length",
        "replace('', 'aa')",
        "format",
        "center(10**9)",
        " ",
        "\n",
    ),
    *(
        "%0999999d",
        "[[]]",
        "cycler",
        "lipsum",
        "namespace()",
        "include 'x'",
        "extends 'x'",
        "99999",
    ),
)
VALUES = {
    "messages": [{"role": "user", "content": "héllo"}, {"role": "assistant", "content": "x" * 99}],
    "tools": None,
    "bos_token": "<s>",
    "add_generation_prompt": True,
}


def template(rng: random.Random) -> str:
    if rng.random() < 0.4:
        inside = " ".join(rng.choices(PIECES, k=rng.randrange(1, 9)))
        ends = rng.choice((("{{ ", " }}"), ("{% ", " %}"), ("", "")))
        return inside.join(ends)
    return damage_bytes(rng.choice(SAMPLES).encode(), rng).decode("utf-8", "replace")


def answers(templates: list[str]) -> Counter[str]:
    """What became of each template; the process starts again after one that ends it."""
    found: Counter[str] = Counter()
    script = [sys.executable, "-P", str(Path(process.__file__))]
    while templates:
        requests = [json.dumps({"template": t, "values": VALUES}) for t in templates]
        began = perf_counter()
        done = subprocess.run(
            script, input="\n".join(requests) + "\n", capture_output=True, encoding="utf-8"
        )
        lines = done.stdout.splitlines()
        for line in lines:
            answer = json.loads(line)
            assert set(answer) in ({"text"}, {"error"})
            assert "\n" not in answer.get("error", "")
            assert len(answer.get("text", "")) <= process.MOST_CHARACTERS
            found["text" if "text" in answer else "error"] += 1
        if done.returncode:
            assert done.returncode < 0 or "MemoryError" in done.stderr, done.stderr[-500:]
            assert len(lines) < len(templates), "it died between two templates"
            found[f"ended {done.returncode}"] += 1
        assert done.returncode or len(lines) == len(templates)
        assert perf_counter() - began < 0.1 * len(templates) + 10 * process.MOST_SECONDS
        templates = templates[len(lines) + 1 :]
    return found


@pytest.mark.parametrize(
    "count", [300, pytest.param(5_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_hostile_templates(count: int) -> None:
    rng = random.Random(f"templates {count}")
    found = answers([template(rng) for _ in range(count)])
    assert sum(found.values()) == count
    assert found["text"] > count // 20 and found["error"] > count // 20


def test_one_that_ends_the_process_is_counted() -> None:
    loop = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    assert answers(["a", loop, "{{ 1/0 }}"]) == {"text": 1, "ended -14": 1, "error": 1}
