"""A prompt's tokens follow each other through the stages: the same bits, sooner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from chip.spec import ChipSpec
from programs.artifact import Artifact
from programs.decoder import (
    GoldenDecoder,
    Host,
    PartitionedModel,
    compile_belt,
    compile_decoder,
    partition_model,
)
from programs.faults import FaultPlan, FaultSetting
from programs.faults.plan import DeadNode
from programs.models import ModelConfig, random_checkpoint
from programs.running import (
    BARRIER,
    LOOKAHEAD,
    Generation,
    LpuSession,
    Runner,
    RunResult,
    prompt_feedings,
    run_belt,
)
from tests.machine.programs.test_pipeline import assert_legal
from tests.machine.programs.test_saturation import loud

SPEC = ChipSpec()
CONFIG = ModelConfig(100, 4, 8, 4, 24, 130, 331)
CONTEXT = 128


def made(tp: int, pp: int) -> tuple[Artifact, PartitionedModel]:
    model = partition_model(random_checkpoint(CONFIG, tp + pp), tp)
    return compile_decoder(model, SPEC, CONTEXT, pp=pp), model


@pytest.fixture(scope="module")
def four() -> tuple[Artifact, PartitionedModel]:
    """Four stages of two chips."""
    return made(2, 4)


def plain(artifact: Artifact) -> Artifact:
    """The same without programs for prompts: every token goes through all stages by itself."""
    kept = {name: own for name, own in artifact.programs.items() if "prompt" not in name}
    return replace(artifact, programs=kept)


def runner_of(artifact: Artifact, model: PartitionedModel) -> Runner:
    return Runner.alone(artifact, Host(artifact, model))


def words(length: int, seed: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 331, length).tolist())


def first_token(result: RunResult, artifact: Artifact) -> int:
    """Cycles as the chips retired them, up to the launch that gave the first token."""
    own = [max(cycles) for cycles in zip(*result.retired.values(), strict=True)]
    return sum(own[: result.decode[0] + 1])


def by_hand(artifact: Artifact, prompt: int, stages: int) -> int:
    """Beat n is of the bucket of its furthest token, number min(n, prompt - 1)."""
    cycles, total = artifact.predicted_cycles, 0
    for beat in range(stages + prompt - 2):
        total += cycles["prompt-64" if min(beat, prompt - 1) < 64 else "prompt-128"]
    return total + cycles["prompt-64-end" if prompt <= 64 else "prompt-128-end"]


def test_programs_for_prompts_are_legal(four: tuple[Artifact, PartitionedModel]) -> None:
    artifact, _ = four
    chosen = {name: own for name, own in artifact.programs.items() if name.startswith("prompt")}
    assert set(chosen) == {"prompt-64", "prompt-64-end", "prompt-128", "prompt-128-end"}
    assert_legal(replace(artifact, programs=chosen))
    one, _ = made(2, 1)
    assert not any("prompt" in name for name in one.programs), "one stage has nothing to overlap"


@pytest.mark.long
@pytest.mark.parametrize(
    ("tp", "pp", "length", "sync"),
    [
        (2, 4, 5, LOOKAHEAD),
        (2, 4, 12, BARRIER),
        (1, 2, 7, LOOKAHEAD),
        (2, 2, 3, LOOKAHEAD),
        (2, 4, 40, LOOKAHEAD),
        (4, 2, 9, BARRIER),
        (8, 3, 6, LOOKAHEAD),
        (2, 4, 66, LOOKAHEAD),
        (1, 4, CONTEXT, LOOKAHEAD),
    ],
)
@pytest.mark.cases(3)
def test_every_bit_is_that_of_one_token_after_another(
    tp: int, pp: int, length: int, sync: str
) -> None:
    artifact, model = made(tp, pp)
    prompt = words(length, length)
    job = Generation(prompt, min(4, CONTEXT - length + 1), sync=sync)
    runner, alone = runner_of(artifact, model), runner_of(plain(artifact), model)
    together, single = runner.generate(job), alone.generate(job)
    assert together.tokens == single.tokens
    assert together.saturations == single.saturations
    assert first_token(together, artifact) == by_hand(artifact, length, pp)
    assert first_token(together, artifact) < first_token(single, artifact)
    assert len(together.decode) == len(single.decode)


@pytest.mark.parametrize("pp", [2, 4])
@pytest.mark.cases(1)
def test_stages_that_rest_lose_nothing(pp: int) -> None:
    """What conversions lose is counted for tokens, not for what lies in a stage without one."""
    config = ModelConfig(100, 2, 8, 2, 24, 130, 331)
    model = partition_model(loud(config, 3e9, down_proj=1e5), 2)
    artifact = compile_decoder(model, SPEC, CONTEXT, pp=pp)
    job = Generation(words(6, 0), 2)
    together = runner_of(artifact, model).generate(job)
    single = runner_of(plain(artifact), model).generate(job)
    assert together.saturations == single.saturations and together.saturations


def logits_of(
    session: LpuSession, tokens: tuple[int, ...], position: int = 0
) -> NDArray[np.uint32]:
    return session.read(tokens, position).view(np.uint32)


def test_logits_are_the_golden_models(four: tuple[Artifact, PartitionedModel]) -> None:
    """A prompt, a part of another over its end, and one that goes back: every bit."""
    artifact, model = four
    session, prompt, other = LpuSession(artifact, model), words(9, 1), words(6, 2)

    def golden(tokens: tuple[int, ...]) -> NDArray[np.uint32]:
        own = GoldenDecoder(model)
        return [own.step(token, n, 64) for n, token in enumerate(tokens)][-1].view(np.uint32)

    np.testing.assert_array_equal(logits_of(session, prompt), golden(prompt))
    cycles = artifact.predicted_cycles
    assert session.cycles == 11 * cycles["prompt-64"] + cycles["prompt-64-end"]
    assert session.launches == 12
    np.testing.assert_array_equal(logits_of(session, other, 9), golden((*prompt, *other)))
    np.testing.assert_array_equal(logits_of(session, other, 4), golden((*prompt[:4], *other)))
    again = session.logits(7, 10).view(np.uint32)
    np.testing.assert_array_equal(again, golden((*prompt[:4], *other, 7)))


def test_what_is_not_sooner_goes_one_by_one(four: tuple[Artifact, PartitionedModel]) -> None:
    artifact, _ = four
    (only,) = prompt_feedings(artifact, 5, 1)
    assert (only.entry, only.positions, only.resting) == ("decode-64", (5, 5, 5, 5), frozenset())
    # Without the host's latency two tokens are sooner on the belt; with a long one, they are not.
    free = replace(artifact, spec=replace(SPEC, pcie_latency_s=1e-9))
    slow = replace(artifact, spec=replace(SPEC, pcie_latency_s=1.0))
    entries = [[f.entry for f in prompt_feedings(a, 0, 2)] for a in (free, slow)]
    assert entries == [["prompt-64"] * 4 + ["prompt-64-end"], ["prefill-64", "decode-64"]]


@pytest.mark.parametrize("launch", [0, 2, 5, 8])
@pytest.mark.cases(1)
def test_a_spare_node_computes_the_beats_again(
    four: tuple[Artifact, PartitionedModel], launch: int
) -> None:
    artifact, model = four
    job = Generation(words(5, 3), 3)
    calm = runner_of(artifact, model).generate(job)
    plan = FaultPlan(dead_nodes=(DeadNode(0, launch, 1000),))
    setting = FaultSetting.of(plan, artifact)
    runner = Runner.alone(artifact, Host(artifact, model), faults=setting)
    result = runner.generate(job)
    assert (result.tokens, result.sums) == (calm.tokens, calm.sums)
    assert (result.retired, result.io_seconds) == (calm.retired, calm.io_seconds)
    assert (result.faults["spare_used"], result.faults["replays"]) == (1, 1)


@pytest.mark.long
def test_first_tokens_on_a_belt_of_several_prompts() -> None:
    """Prompt after prompt: q's last token has entered after all of its and those before it."""
    model = partition_model(random_checkpoint(CONFIG, 5), 2)
    belt = compile_belt(model, SPEC, 64, 4, sequences=5)
    alone = compile_decoder(model, SPEC, 64, pp=4)
    for lengths, new in (((5, 2, 7, 3), 3), ((6,), 4), ((2, 9), 1)):
        prompts = [words(length, n) for n, length in enumerate(lengths)]
        result = run_belt(belt, prompts, new, model)
        assert result.first_token_beats == [int(n) + 4 - 1 for n in np.cumsum(lengths)]
        for prompt, tokens in zip(prompts, result.tokens, strict=True):
            assert runner_of(alone, model).generate(Generation(prompt, new)).tokens == tokens
    # One prompt of six on four stages, then three tokens one after another.
    result = run_belt(belt, [words(6, 0)], 4, model)
    assert len(result.retired) == 6 + 3 + 3 * 4
