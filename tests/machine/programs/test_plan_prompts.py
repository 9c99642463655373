"""When a plan's first token comes: by hand from beats that compiled programs take, too."""

from __future__ import annotations

import json
import re

import pytest

from chip.scheduling import CompileError
from chip.spec import ChipSpec
from cluster.cli import run
from programs.decoder import compile_decoder, partition_model
from programs.models import ModelConfig, random_checkpoint
from programs.plans import Plan, compile_plan, prompt_costs
from programs.plans.plan import instruction_bytes
from programs.running import prompt_feedings
from tests.families import FAMILIES, checkpoint_of

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
    wait = SPEC.pcie_latency_s * SPEC.clock_hz  # of the host, before every launch
    sooner = alone + tokens * wait <= beats + (stages + tokens - 1) * wait
    ((cost,), pieces, refused) = prompt_costs(plan, [tokens])
    assert (cost.tokens, cost.one_by_one_cycles) == (tokens, alone) and (pieces, refused) == (0, "")
    assert cost.cycles == (alone if sooner else beats)
    assert cost.launches == (tokens if sooner else tokens + stages - 1)
    assert sooner == (tokens < 3)


def test_a_prompt_beyond_the_caches(plan: Plan) -> None:
    with pytest.raises(CompileError, match="a prompt of 251 tokens: the plan has caches for 250"):
        prompt_costs(plan, [3, 251])


def test_one_stage_has_nothing_to_overlap() -> None:
    plan = compile_plan("test", CONFIG, SPEC, context=64, chips=8)
    (cost,) = prompt_costs(plan, [5]).costs
    last = plan.pipeline.code[-1].body(64)
    assert cost.cycles == cost.one_by_one_cycles == 5 * plan.cycles - 4 * last.head_cycles


@pytest.mark.long
def test_a_plan_feeds_as_its_compiled_programs_do() -> None:
    """Of every length of one chunk to three and, to the context's end, the last ones."""
    model = partition_model(random_checkpoint(CONFIG, 0), 8)
    made = compile_decoder(model, SPEC, 64, pp=3, weights=False, chunk=8)
    lengths = [3, *range(8, 25), *range(54, 65)]
    found = prompt_costs(compile_plan("test", CONFIG, SPEC, context=64, chips=24), lengths, 8)
    assert not found.refused and found.pieces > 0
    ways = set()
    for cost, tokens in zip(found.costs, lengths, strict=True):
        fed = prompt_feedings(made, 0, tokens)
        assert (cost.tokens, cost.launches) == (tokens, len(fed))
        assert cost.cycles == sum(made.predicted_cycles[feeding.entry] for feeding in fed)
        assert cost.chunk == max(feeding.tokens for feeding in fed) == (1 if tokens < 8 else 8)
        assert tokens < 8 or cost.cycles < cost.one_by_one_cycles
        ways.add(tuple(dict.fromkeys(feeding.entry for feeding in fed)))
    assert len(ways) > 3


def test_chunks_that_cannot_be_leave_the_tokens() -> None:
    """They are told beside what the prompt costs without them; a prompt below one asks for none."""
    config = checkpoint_of(FAMILIES["mixtral"]).config
    experts = compile_plan("experts", config, SPEC, context=64, chips=1)
    alone = prompt_costs(experts, [9]).costs
    costs, pieces, refused = prompt_costs(experts, [9], 4)
    assert (costs, pieces) == (alone, 0)
    assert refused.startswith("--chunk 4: a chunk of 4 tokens: they would choose different experts")
    assert prompt_costs(experts, [3], 4) == prompt_costs(experts, [3])


@pytest.mark.long
def test_instruction_words_of_chunks_fit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a chunk are several times as many as a token's."""
    plan = compile_plan("test", CONFIG, SPEC, context=64, chips=8)
    words = instruction_bytes(plan)
    monkeypatch.setattr("programs.plans.plan.system_bytes", lambda _: 2 * words)
    assert compile_plan("test", CONFIG, SPEC, context=64, chips=8).cycles == plan.cycles
    found = prompt_costs(plan, [9], 8)
    assert [cost.chunk for cost in found.costs] == [1]
    assert re.match(r"--chunk 8: a chunk of 8 tokens: [0-9,]+ bytes of instruction", found.refused)


@pytest.mark.long
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
    assert run([*asked, "--no-advice", "--prompt", "7", "--chunk", "65"]) == 2
    assert "--chunk 65: a launch takes 64 tokens of a prompt at most" in capsys.readouterr().err
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
