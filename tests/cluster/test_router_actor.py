"""The agents' router in a Ray actor: the same decisions, and nothing that arrives ends it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import run
from cluster.errors import InputError, RunError
from cluster.experiments.agentic import GPU, LPU, Rule, actor_desk, split_name
from cluster.experiments.agentic.messages import RESULT, StepMessage, Tool, encode
from cluster.experiments.agentic.routing import Desk, LocalDesk
from cluster.processes import JOB_VARIABLE
from cluster.processes.ray_session import address_to_join

NONE = {LPU: 0, GPU: 0}
LIGHT = encode(StepMessage(0, 0, "plan", prompt="a task", max_new_tokens=12))
HEAVY = encode(StepMessage(0, 1, "reason", (0,), prompt="a task", max_new_tokens=24))
MALFORMED: list[Any] = [
    b"",
    b"\xff",
    b"{",
    b"[]",
    b"null",
    b"3",
    b"NaN",
    b"[" * 20_000,
    b'"' + b"x" * 40_000,
    LIGHT[:-1],
    LIGHT + b"}",
    LIGHT.replace(b'"plan"', b'"dance"'),
    LIGHT.replace(b'"version":1', b'"version":2'),
    LIGHT.replace(b'"step":0', b'"step":true'),
    None,
    3,
    LIGHT.decode(),
    {"kind": "plan"},
    encode(StepMessage(0, 2, "call_tool", (1,), tool=Tool("search", "x"))),
    encode(StepMessage(0, 0, "plan", phase=RESULT, text="done")),
]


def check_desk(desk: Desk) -> None:
    """Good messages between bad ones are routed, bad ones counted."""
    for number, raw in enumerate(MALFORMED):
        assert desk.route(raw, NONE) is None
        assert desk.counts()["rejected"] == number + 1
    routed = desk.route(HEAVY, {LPU: 2, GPU: 5})
    assert routed is not None
    view, pool = routed
    assert pool == GPU
    assert view == {
        "kind": "reason",
        "request": 0,
        "step": 1,
        "prompt_characters": 6,
        "max_new_tokens": 24,
        "in_flight": {LPU: 2, GPU: 5},
    }
    desk.observe(view, pool, 0.1)
    routed = desk.route(LIGHT, NONE)
    assert routed is not None and routed[1] == LPU
    counts = desk.counts()
    assert (counts["accepted"], counts["rejected"]) == (2, len(MALFORMED))
    assert all("\n" not in reason and len(reason) < 200 for reason in counts["reasons"])
    assert sum(counts["reasons"].values()) <= len(MALFORMED)


def test_a_desk_in_this_process() -> None:
    check_desk(LocalDesk(Rule()))


def test_names() -> None:
    assert split_name("rule") == ("rule", False)
    assert split_name("actor") == ("rule", True)
    assert split_name("actor/learned") == ("learned", True)
    assert split_name("actor/a.b:c") == ("a.b:c", True)
    assert split_name("actor:c") == ("actor:c", False)


@pytest.mark.parametrize("name", ["actor/", "actor/clever", "actor/absent:x", "actors"])
def test_a_wrong_name_is_one_line(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run(["experiment", "agentic", "--router", name]) == 2
    captured = capsys.readouterr()
    assert "--router" in captured.err and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.ray
@pytest.mark.long
def test_a_malformed_message_never_ends_the_actor(local_ray: None) -> None:
    with actor_desk("rule", 0) as desk:
        check_desk(desk)


@pytest.mark.ray
@pytest.mark.parametrize(
    "policy",
    [
        "rule",
        *(
            pytest.param(p, marks=pytest.mark.long)
            for p in ("learned", "my_actor_router:alternate")
        ),
    ],
)
@pytest.mark.long
def test_the_same_json_as_in_process(
    local_ray: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
) -> None:
    """To the byte, with damaged messages on the way; the user's module is where the user is."""
    (tmp_path / "my_actor_router.py").write_text(
        "def alternate(view):\n    return ('lpu', 'gpu')[(view['request'] + view['step']) % 2]\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["experiment", "agentic", "--requests", "4", "--seed", "3", "--corrupt", "0.1"]
    printed = []
    for router in (policy, "actor" if policy == "rule" else f"actor/{policy}"):
        assert run([*arguments, "--json", "--router", router]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    routing = json.loads(printed[0])["runs"]["routed"]["routing"]
    assert routing["accepted"] > 4 and routing["rejected"] == 0


@pytest.mark.ray
@pytest.mark.long
def test_a_users_function_that_fails_is_one_line_and_a_lost_actor_too(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    (tmp_path / "my_bad_router.py").write_text(
        "def broken(view):\n    return view['colour']\n"
        "def leaving(view):\n    raise SystemExit(0)\n"
        "def ending(view):\n    import os\n    os._exit(3)\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("broken", "leaving"):
        with actor_desk(f"my_bad_router:{name}", 0) as desk:
            with pytest.raises(InputError, match=name) as caught:
                desk.route(LIGHT, NONE)
            assert "\n" not in str(caught.value)
            assert desk.counts()["accepted"] == 1
    with actor_desk("my_bad_router:ending", 0) as desk, pytest.raises(RunError, match="lost"):
        desk.route(LIGHT, NONE)
    with actor_desk("rule", 0) as desk:
        first = desk.route(HEAVY, {LPU: 2, GPU: 5})
        assert first is not None
        desk.observe(first[0], first[1], 0.5)
        before = desk.counts()
        ray.kill(desk.actor)
        assert desk.counts() == before
        assert desk.route(HEAVY, {LPU: 2, GPU: 5}) == first
        assert desk.lost == 1


def test_a_submitted_job_joins_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    assert JOB_VARIABLE == RAY_JOB_CONFIG_JSON_ENV_VAR
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    assert address_to_join(None) is None
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    assert address_to_join(None) == "auto"
    assert address_to_join("10.0.0.1:6379") == "10.0.0.1:6379"
