"""When a plan's first token comes: by hand from beats that compiled programs take, too."""

from __future__ import annotations

import json

import pytest

from chip.scheduling import CompileError
from chip.spec import ChipSpec
from cluster.cli import run
from programs.decoder import compile_decoder, partition_model
from programs.models import ModelConfig, random_checkpoint
from programs.plans import Plan, compile_plan, prompt_costs

SPEC = ChipSpec()
CONFIG = ModelConfig(100, 6, 8, 4, 24, 130, 331)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_plan("test", CONFIG, SPEC, context=250, chips=24)


def test_beats_are_those_of_compiled_programs(plan: Plan) -> None:
    model = partition_model(random_checkpoint(CONFIG, 0), 8)
    cycles = compile_decoder(model, SPEC, 256, pp=3, weights=False).predicted_cycles
    assert plan.pipeline.prompt_cycles(128) == (cycles["prompt-128"], cycles["prompt-128-end"])


@pytest.mark.parametrize("tokens", [1, 2, 3, 127, 128, 129, 200, 250])
def test_first_tokens_by_hand(plan: Plan, tokens: int) -> None:
    stages, pipeline = 3, plan.pipeline
    assert len(plan.starts) == stages
    (short, short_end), (long, long_end) = map(pipeline.prompt_cycles, (128, 250))
    beats = 0
    for beat in range(stages + tokens - 2):
        beats += short if min(beat, tokens - 1) < 128 else long
    beats += short_end if tokens <= 128 else long_end
    alone = 0
    for position in range(tokens):
        bucket = 128 if position < 128 else 250
        last = plan.pipeline.code[-1].body(bucket)
        alone += pipeline.starts(bucket)[-1] + last.cycles
        alone += last.head_cycles if position == tokens - 1 else 0
    (cost,) = prompt_costs(plan, [tokens])
    assert (cost.tokens, cost.one_by_one_cycles, cost.cycles) == (tokens, alone, min(beats, alone))
    assert cost.launches == (tokens if alone <= beats else tokens + stages - 1)
    assert (tokens == 1) == (cost.launches == tokens)


def test_a_prompt_beyond_the_caches(plan: Plan) -> None:
    with pytest.raises(CompileError, match="a prompt of 251 tokens: the plan has caches for 250"):
        prompt_costs(plan, [3, 251])


def test_one_stage_has_nothing_to_overlap() -> None:
    plan = compile_plan("test", CONFIG, SPEC, context=64, chips=8)
    (cost,) = prompt_costs(plan, [5])
    last = plan.pipeline.code[-1].body(64)
    assert cost.cycles == cost.one_by_one_cycles == 5 * plan.cycles - 4 * last.head_cycles


@pytest.mark.parametrize("tokens", [3, 21])
@pytest.mark.long
def test_chunks_are_those_of_compiled_programs(tokens: int) -> None:
    """The last chunk ends with the prompt, so five of 21 tokens are in it anew (eight a chunk)."""
    model = partition_model(random_checkpoint(CONFIG, 0), 8)
    cycles = compile_decoder(model, SPEC, 64, pp=3, weights=False, chunk=8).predicted_cycles
    (cost,) = prompt_costs(compile_plan("test", CONFIG, SPEC, context=64, chips=24), [tokens], 8)
    count = -(-tokens // 8)
    apart = (count - 1) * cycles["chunk-64"] + cycles["chunk-64-end"]
    beats = (3 + count - 2) * cycles["chunks-64"] + cycles["chunks-64-end"]
    if tokens < 8:
        assert cost.chunk == 1
    else:
        assert cost.chunk == 8 and cost.cycles == min(apart, beats) < cost.one_by_one_cycles
        assert cost.launches == (count if apart <= beats else count + 2)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--model", "smollm2-135m", "--chips", "16", "--context", "128", "--no-run"]
    assert run([*asked, "--no-advice", "--prompt", "100,7", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert [cost["tokens"] for cost in row["prompts"]] == [100, 7]
    for cost in row["prompts"]:
        assert cost["seconds"] == pytest.approx(cost["cycles"] / 900e6)
        assert cost["cycles"] < cost["one_by_one_cycles"]
    assert run([*asked, "--no-advice", "--prompt", "7"]) == 0
    shown = capsys.readouterr().out
    assert "first token after 7" in shown and "8 launches" in shown
    assert run([*asked, "--no-advice", "--chunk", "4"]) == 2
    assert "--chunk 4: say of what prompt with --prompt" in capsys.readouterr().err
    for text, said in (("0", "--prompt 0: use 1 or more"), ("129", "use --context 129")):
        assert run([*asked, "--no-advice", "--prompt", text]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.long
def test_chunks_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--model", "smollm2-135m", "--chips", "8", "--context", "128", "--no-run"]
    assert run([*asked, "--no-advice", "--prompt", "100", "--chunk", "4", "--json"]) == 0
    (cost,) = json.loads(capsys.readouterr().out)["prompts"]
    assert (cost["chunk"], cost["launches"]) == (4, 25)
    assert cost["cycles"] < 0.6 * cost["one_by_one_cycles"]
