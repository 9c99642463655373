"""Speculative decoding writes the target's own text, whoever drafts and whatever crosses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cluster.bench.experiments import speculative_tokens_per_wall_second
from cluster.commands import experiment
from cluster.errors import InputError, RunError
from cluster.experiments.speculative import (
    SpeculativeSettings,
    acceptance,
    run,
)
from cluster.experiments.speculative.acceptance import Draws, Use
from cluster.experiments.speculative.rig import Rig
from cluster.experiments.speculative.steps import (
    GpuDrafter,
    Job,
    LookupDrafter,
    follow,
    lookup,
    target_only,
)
from cluster.gpu import GpuPool
from programs.models import architecture, load_checkpoint, shipped_model
from tests import ROOT
from tests.unit.cluster.test_acceptance import DRAWS, check_drawn_from

PROMPTS = ([70, 221, 304], [33, 9, 5, 9, 5, 9], [512])
NEW = 24


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig(SpeculativeSettings(), 256, lambda _: None)


@pytest.fixture(scope="module")
def greedy(rig: Rig) -> list[list[int]]:
    return [target_only(rig.target, prompt, None, NEW)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("gamma", range(1, 9))
@pytest.mark.parametrize("drafter", ["lpu", "gpu", "lookup"])
@pytest.mark.cases(4)
def test_greedy_text_is_the_targets(
    rig: Rig, greedy: list[list[int]], drafter: str, gamma: int
) -> None:
    traces = rig.traces(PROMPTS, Job(gamma, NEW), drafter)
    assert [trace.tokens for trace in traces] == greedy
    assert rig.lossless(traces, greedy, 0.0) == (True, None)
    steps = [step for trace in traces for step in trace.steps]
    assert all(step.accepted <= step.drafted <= gamma for step in steps)
    assert not any(step.replayed for step in steps)
    if drafter == "lpu":
        assert all(step.drafted == gamma for step in steps)
        # One launch per proposal, one more when the last step's last proposal was accepted.
        assert {step.work.launches for step in steps} <= {gamma, gamma + 1}


@pytest.mark.parametrize("gamma", [1, 4, 8])
@pytest.mark.parametrize("mode", ["tokens", "kv"])
@pytest.mark.cases(2)
def test_both_modes_are_lossless(greedy: list[list[int]], mode: str, gamma: int) -> None:
    result = run(PROMPTS, SpeculativeSettings(gamma=gamma, mode=mode, max_new_tokens=NEW))
    assert result["lossless"] is True
    assert result["texts"] == greedy
    assert result["variant"] == f"lpu-{mode}"
    emitted = round(result["tokens_per_step"] * result["steps"])
    kv = architecture("target").kv_bytes_per_token() if mode == "kv" else 0
    assert result["bytes"]["kv"] == kv * emitted
    assert result["bytes"]["kv_prompt"] == kv * sum(map(len, PROMPTS))
    first = 4 * len(PROMPTS)
    assert result["bytes"]["tokens"] == first + result["steps"] * (4 * gamma + 8)
    assert result["bytes"]["logits"] == 0


@pytest.mark.parametrize("drafter", ["lpu", "gpu", "lookup"])
def test_sampled_text_is_judged_by_the_targets_logits(rig: Rig, drafter: str) -> None:
    traces = rig.traces(PROMPTS, Job(3, NEW, temperature=0.8, seed=5), drafter)
    own = [trace.tokens for trace in traces]
    lossless, check = rig.lossless(traces, own, 0.8)
    assert lossless is None and check is not None
    assert check.tokens == NEW * len(PROMPTS) and check.fits
    again = rig.traces(PROMPTS, Job(3, NEW, temperature=0.8, seed=5), drafter)
    assert [trace.tokens for trace in again] == own
    other = rig.traces(PROMPTS, Job(3, NEW, temperature=0.8, seed=6), drafter)
    assert [trace.tokens for trace in other] != own


def test_a_lost_token_is_noticed(rig: Rig, greedy: list[list[int]]) -> None:
    for temperature in (0.0, 0.8):
        traces = rig.traces(PROMPTS, Job(3, NEW, temperature), "lookup")
        assert rig.lossless(traces, greedy, temperature)[0] is not False
        traces[1].tokens[3] += 1
        assert rig.lossless(traces, greedy, temperature)[0] is False


@pytest.mark.long
def test_a_rule_that_lets_drafts_pass_is_noticed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits are the target's in every bit; only the tokens tell."""
    prompts, job = [list(prompt) for prompt in PROMPTS * 4], Job(4, 60, 0.8, 3)
    honest = rig.traces(prompts, job, "gpu")
    own = [trace.tokens for trace in honest]
    assert rig.lossless(honest, own, 0.8)[0] is None

    def lax(
        proposed: Sequence[int], q: Any, p: Any, position: int, draws: Draws
    ) -> acceptance.Verdict:
        last = len(proposed)
        u = draws.uniform(position + last, Use.TARGET)
        return acceptance.Verdict(last, acceptance.draw(p[last], u))

    monkeypatch.setattr(acceptance, "accept_sampled", lax)
    leaked = rig.traces(prompts, job, "gpu")
    lossless, check = rig.lossless(leaked, own, 0.8)
    assert lossless is False and check is not None and check.p_value < 1e-6
    assert "do not fit" in check.told


@pytest.mark.long
def test_next_tokens_of_the_real_models_follow_the_target(rig: Rig) -> None:
    prompt = PROMPTS[0]
    row = rig.target.forward(prompt, rig.target.new_cache())[-1]
    p = acceptance.probabilities(row, 1.0)
    q = acceptance.probabilities(rig.session.read(prompt), 1.0)
    tokens = []
    for request in range(DRAWS):
        draws = Draws(1, request)
        drafted = acceptance.draw(q, draws.uniform(3, Use.DRAFT))
        verdict = acceptance.accept_sampled([drafted], [q], [p, p], 3, draws)
        tokens.append(drafted if verdict.accepted else verdict.token)
    check_drawn_from(tokens, p)


class Chain:
    """A model whose logits depend on the last token alone."""

    def __init__(self, seed: int) -> None:
        self.table = np.random.Generator(np.random.Philox(seed)).standard_normal((3, 3))

    def new_cache(self) -> Chain:
        return self

    def truncate(self, length: int) -> None:
        """Nothing is held."""

    def forward(self, tokens: Sequence[int], cache: Any) -> np.ndarray:
        return self.table[list(tokens)].astype(np.float32)


@pytest.mark.long
@pytest.mark.parametrize("drafter", ["model", "lookup"])
@pytest.mark.cases(1)
def test_whole_texts_follow_the_target(drafter: str) -> None:
    """The joint distribution of three tokens over several steps: no draw is used twice."""
    target, draft = Chain(1), Chain(2)
    pool = GpuPool.in_process(target)
    by = GpuDrafter(draft) if drafter == "model" else LookupDrafter(3)
    job = Job(gamma=2, max_new_tokens=3, temperature=1.0)
    texts = [follow(r, [0, 1, 0], job, by, pool).tokens for r in range(4000)]
    law = np.zeros(27)
    step = [acceptance.probabilities(row, 1.0) for row in target.forward([0, 1, 2], target)]
    for a in range(3):
        for b in range(3):
            for c in range(3):
                law[9 * a + 3 * b + c] = step[0][a] * step[a][b] * step[b][c]
    check_drawn_from([9 * a + 3 * b + c for a, b, c in texts], law)


def test_lookup_takes_the_latest_place_of_the_longest_run() -> None:
    assert lookup([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3], 2) == [8, 1]
    assert lookup([5, 1, 2, 7, 2, 6, 1, 2], 3) == [7, 2, 6]
    assert lookup([1, 1, 1], 4) == [1]
    assert lookup([1, 2, 3], 4) == []
    assert lookup([1], 4) == []


@pytest.mark.long
def test_nodes_do_not_show(greedy: list[list[int]]) -> None:
    one = run(PROMPTS, SpeculativeSettings(max_new_tokens=NEW))
    assert one == run(PROMPTS, SpeculativeSettings(max_new_tokens=NEW))
    for nodes in (2, 3):
        settings = SpeculativeSettings(max_new_tokens=NEW, gpu_nodes=nodes, in_process=True)
        several = run(PROMPTS, settings)
        assert {**several, "gpu_nodes": 1} == one


def check_survival(lost: dict[str, Any], whole: dict[str, Any], greedy: list[list[int]]) -> None:
    assert lost["lossless"] is True
    assert lost["texts"] == whole["texts"] == greedy
    assert (lost["nodes_lost"], whole["nodes_lost"]) == (1, 0)
    assert lost["positions_replayed"] > 0
    assert lost["tokens_per_step"] == whole["tokens_per_step"]
    # Computing the text again takes time, which is charged.
    assert lost["virtual_seconds"] > whole["virtual_seconds"]


@pytest.mark.long
def test_a_node_killed_in_the_middle_changes_no_token(greedy: list[list[int]]) -> None:
    settings = SpeculativeSettings(max_new_tokens=NEW, gpu_nodes=2, in_process=True)
    whole = run(PROMPTS, settings)
    check_survival(run(PROMPTS, replace(settings, kill_after=2)), whole, greedy)
    with pytest.raises(RunError, match="every GPU node is lost"):
        run(PROMPTS, replace(settings, gpu_nodes=1, kill_after=2))
    alone = replace(settings, gpu_nodes=1, kill_after=2, replace_lost=True)
    check_survival(run(PROMPTS, alone), whole, greedy)


@pytest.mark.ray
@pytest.mark.long
def test_an_actor_killed_in_the_middle_changes_no_token(
    greedy: list[list[int]], local_ray: None
) -> None:
    settings = SpeculativeSettings(max_new_tokens=NEW, gpu_nodes=2)
    whole = run(PROMPTS, settings)
    assert whole == run(PROMPTS, replace(settings, in_process=True))
    check_survival(run(PROMPTS, replace(settings, kill_after=2)), whole, greedy)


@pytest.mark.long
def test_concurrent_requests_keep_their_texts(greedy: list[list[int]]) -> None:
    one = run(PROMPTS, SpeculativeSettings(max_new_tokens=NEW))
    three = run(PROMPTS, SpeculativeSettings(max_new_tokens=NEW, concurrent=3))
    assert three["lossless"] is True and three["texts"] == one["texts"] == greedy
    assert three["bytes"] == one["bytes"] and three["steps"] == one["steps"]
    assert three["tokens_per_second"] > one["tokens_per_second"]
    assert three["wait_seconds"] > 0 == one["wait_seconds"]
    assert three == run(PROMPTS, SpeculativeSettings(max_new_tokens=NEW, concurrent=3))
    alone = {row["variant"]: row for row in three["rows"]}["gpu-only"]
    assert three["end_to_end_speedup"] == pytest.approx(
        alone["virtual_seconds"] / three["virtual_seconds"]
    )
    with pytest.raises(InputError, match="--concurrent 4 with 3 prompts"):
        run(PROMPTS, SpeculativeSettings(concurrent=4))


def test_speed_ups_add_up() -> None:
    result = run(PROMPTS, SpeculativeSettings(max_new_tokens=NEW))
    rows = {row["variant"]: row for row in result["rows"]}
    assert set(rows) == {
        "lpu-tokens",
        "lpu-kv",
        "gpu-draft",
        "lookup",
        "gpu-only",
        "lpu-only",
    }
    for row in rows.values():
        alone = rows["gpu-only"]
        assert row["speedup"] == pytest.approx(alone["decode_seconds"] / row["decode_seconds"])
        seconds = row["start_seconds"] + row["decode_seconds"]
        assert row["virtual_seconds"] == pytest.approx(seconds)
        assert row["tokens_per_second"] == pytest.approx(NEW * len(PROMPTS) / seconds)
    lpu = rows["lpu-tokens"]
    for row in rows.values():
        if row["variant"] != "lpu-only":
            names = ("draft", "verify", "link", "host", "wait")
            parts = sum(row[f"{name}_seconds"] for name in names)
            assert parts == pytest.approx(row["decode_seconds"])
    assert lpu["host_seconds"] == 0 < rows["gpu-only"]["host_seconds"]
    # Leviathan et al. 2023, equation 1: the mean of a geometric series of gamma + 1 terms
    share = lpu["acceptance"]
    assert lpu["formula_tokens_per_step"] == pytest.approx((1 - share**5) / (1 - share))
    assert 0.5 < rows["lpu-only"]["agreement"] <= 1


@pytest.mark.long
@pytest.mark.parametrize("gamma", [1, 5])
def test_drafts_verified_on_lpus(gamma: int) -> None:
    """The text is that of the target alone on LPUs, whose tokens are walked along one by one."""
    settings = SpeculativeSettings(gamma=gamma)
    rig = Rig(settings, 64, lambda _: None)
    total, traces, same = rig.lpu_verified(PROMPTS, Job(gamma, NEW))
    assert same
    texts = [trace.tokens for trace in traces]
    alone, agreement = rig.lpu_only(PROMPTS, texts)
    assert agreement == 1, "its own greedy tokens"
    assert total.draft + total.verify == pytest.approx(total.decode)
    steps = [step for trace in traces for step in trace.steps]
    assert all(step.drafted == gamma and step.replayed == 0 for step in steps)
    assert len(steps) < len(PROMPTS) * (NEW - 1) and total.verify < alone.decode
    each = alone.decode / (len(PROMPTS) * (NEW - 1))
    assert total.verify < (gamma + 1) / 1.3 * each * len(steps), "a step's share installs"


@pytest.mark.long
def test_a_row_of_drafts_verified_on_lpus() -> None:
    result = run(PROMPTS[:1], SpeculativeSettings(max_new_tokens=NEW, lpu_verify=True))
    rows = {row["variant"]: row for row in result["rows"]}
    row = rows["lpu-verified"]
    assert row["lossless"] and "alone on LPUs, bit for bit" in row["lossless_check"]
    assert row["tokens"] == NEW and row["agreement"] == rows["lpu-only"]["agreement"]
    seconds = row["draft_seconds"] + row["verify_seconds"]
    assert seconds == pytest.approx(row["decode_seconds"])
    whole = rows["gpu-only"]["decode_seconds"]
    assert row["speedup"] == pytest.approx(whole / row["decode_seconds"])
    assert row["formula_speedup"] is None


@pytest.mark.long
def test_sampling_ships_the_drafts_distributions() -> None:
    result = run(PROMPTS, SpeculativeSettings(max_new_tokens=NEW, temperature=0.7, gamma=2))
    assert result["lossless"] is None and "no sample proves" in result["lossless_check"]
    assert 1e-6 < result["sampling_p_value"] <= 1
    assert result["bytes"]["logits"] == result["steps"] * 2 * 1024 * 4


@pytest.mark.long
def test_a_slow_link_makes_shipping_kv_a_loss(tmp_path: Path) -> None:
    slow = tmp_path / "slow.toml"
    slow.write_text('[link]\nname = "slow"\nlatency_s = 1e-6\nbytes_per_s = 2e7\n')
    result = run(PROMPTS, SpeculativeSettings(max_new_tokens=NEW, link=str(slow)))
    points = {point["link"]: point for point in result["crossover"]["points"]}
    assert result["crossover"]["checked"] == len(points) == 7
    for point in points.values():
        over = point["kv_bytes_per_step"] > point["break_even_kv_bytes_per_step"]
        assert point["slower_than_gpu_only"] == over
        assert point["slower_than_gpu_only"] == (point["speedup_kv"] < 1)
    bad = points[str(slow)]
    assert bad["cause"] == "kv" and bad["speedup_tokens"] > 1
    assert points["pcie5-x16"]["cause"] is None
    assert [case["link"] for case in result["crossover"]["slower"]] == [str(slow)]


@pytest.mark.long
def test_a_sweep_covers_gammas_links_and_temperatures() -> None:
    result = run(PROMPTS[:1], SpeculativeSettings(max_new_tokens=8, sweep=True))
    assert result["lossless"] is True
    for row in result["rows"]:
        if row["gamma"]:
            assert row["lossless"] is (True if row["temperature"] == 0 else None)
    assert result["crossover"]["checked"] == 8 * 6 * 3
    assert len(result["rows"]) == 8 * 3 * (2 * 6 + 2) + 2
    assert (result["gamma"], result["temperature"], result["link"]) == (4, 0.0, "pcie5-x16")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--gamma", "0"], "--gamma 0: use 1 to 64"),
        (["--max-new-tokens", "1"], "--max-new-tokens 1"),
        (["--max-new-tokens", "600"], "shipped models were made for 512"),
        (["--link", "string"], "no such preset"),
        (["--gpu", "abacus"], "no such preset"),
        (["--mode", "all"], "--mode all: use tokens or kv"),
        (["--drafter", "me"], "--drafter me: use lpu or gpu or lookup"),
        (["--mode", "kv", "--drafter", "gpu"], "nothing crosses a link"),
        (["--temperature", "-1"], "--temperature -1.0"),
        (["--temperature", "nan"], "--temperature nan"),
        (["--gpu-nodes", "0"], "--gpu-nodes 0"),
        (["--chips", "3"], "--chips 3"),
        (["--alpha", "1.5"], "--alpha 1.5: use a probability"),
        (["--alpha", "nan"], "--alpha nan"),
        (["--alpha", "0.5", "--drafter", "lookup"], "--alpha with --drafter lookup"),
        (["--alpha", "0.5", "--kill-after", "1"], "--replace-lost with --alpha"),
        (["--alpha", "0.5", "--lpu-verify"], "--lpu-verify with --alpha: no model runs"),
        (["--temperature", "0.5", "--lpu-verify"], "--temperature 0.5: it is greedy; use 0"),
        (
            ["--gamma", "64", "--lpu-verify"],
            "--gamma 64 with --lpu-verify: a launch takes 64 tokens, the last one before the "
            "drafts among them; use --gamma 63 or less",
        ),
        (["--gpu-model", "llama-3-70b"], "give the acceptance rate with --alpha"),
        (["--lpu-cycles-per-token", "5"], "without --alpha"),
        (["--prompt", ""], "a prompt is empty"),
        (["--prompts", "/nowhere"], "cannot be read"),
        (["--seed", "-1"], "--seed -1"),
    ],
)
def test_wrong_input(arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(experiment.app, ["speculative", *arguments])
    assert isinstance(done.exception, InputError)
    assert complaint in str(done.exception)
    assert done.output == ""


@pytest.mark.long
def test_command_line(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("def \n\nclass \n")
    common = ["speculative", "--prompts", str(prompts), "--max-new-tokens", "8"]
    done = CliRunner().invoke(experiment.app, [*common, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["prompts"], len(result["text"])) == (2, 2)
    for key in (
        "lossless",
        "tokens_per_step",
        "acceptance",
        "formula_tokens_per_step",
        "speedup",
        "lossless_check",
        "compares",
        "left_out",
        "virtual_seconds",
        "tokens_per_second",
        "bytes",
        "rows",
        "crossover",
        "ttft_s",
        "tpot_s",
    ):
        assert key in result
    done = CliRunner().invoke(experiment.app, common)
    assert done.exit_code == 0 and "lossless" in done.output


@pytest.mark.long
def test_workload_runs_from_a_checkout(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "programs.workloads.speculative", "--json", tmp_path / "r.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("lossless: True") == 8 * 4
    assert "lossless: False" not in done.stdout
    result = json.loads((tmp_path / "r.json").read_text())
    assert [result["gammas"][str(gamma)]["lossless"] for gamma in range(1, 9)] == [True] * 8


@pytest.mark.long
def test_fast_enough() -> None:
    (row,) = speculative_tokens_per_wall_second()
    assert row.value >= 10


@pytest.mark.long
@pytest.mark.parametrize("mode", ["tokens", "kv"])
@pytest.mark.parametrize("gamma", range(1, 9))
def test_fifty_prompts(gamma: int, mode: str) -> None:
    """50 prompts of 16 held-out tokens, 64 new tokens each."""
    home = shipped_model()
    text = (home.parent / "heldout.txt").read_text(encoding="utf-8")
    ids = load_checkpoint(home).tokenizer.encode(text).ids
    prompts = [ids[at : at + 16] for at in range(0, 50 * 300, 300)]
    result = run(prompts, SpeculativeSettings(gamma=gamma, mode=mode, max_new_tokens=64))
    assert (result["lossless"], result["tokens"]) == (True, 3200)
    print(
        f"gamma {gamma} {mode}: {result['acceptance']:.4f} accepted, "
        f"{result['tokens_per_step']:.3f} tokens per step "
        f"(formula {result['formula_tokens_per_step']:.3f}), {result['speedup']:.3f} x"
    )
