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
from test_acceptance import DRAWS, check_drawn_from
from typer.testing import CliRunner

from chip.spec import load_chip_spec
from cluster.commands import experiment
from cluster.commands.options import shipped_model
from cluster.errors import InputError, RunError
from cluster.experiments import acceptance
from cluster.experiments.acceptance import Draws, Use
from cluster.experiments.speculative import Rig, run, tokens_per_wall_second
from cluster.experiments.speculative_settings import Settings
from cluster.experiments.speculative_steps import (
    GpuDrafter,
    Job,
    LookupDrafter,
    follow,
    lookup,
    target_only,
)
from cluster.gpu.pool import GpuPool
from programs.architectures import architecture
from programs.checkpoint import load_checkpoint

PROMPTS = ([70, 221, 304], [33, 9, 5, 9, 5, 9], [512])
NEW = 24


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig(Settings(), 256, lambda _: None)


@pytest.fixture(scope="module")
def greedy(rig: Rig) -> list[list[int]]:
    return [target_only(rig.target, prompt, None, NEW)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("gamma", range(1, 9))
@pytest.mark.parametrize("drafter", ["lpu", "gpu", "lookup"])
def test_greedy_text_is_the_targets(
    rig: Rig, greedy: list[list[int]], drafter: str, gamma: int
) -> None:
    traces = rig.traces(PROMPTS, Job(gamma, NEW), drafter)
    assert [trace.tokens for trace in traces] == greedy
    assert rig.lossless(traces, greedy, 0.0)
    steps = [step for trace in traces for step in trace.steps]
    assert all(step.accepted <= step.drafted <= gamma for step in steps)
    assert not any(step.replayed for step in steps)
    if drafter == "lpu":
        assert all(step.drafted == gamma for step in steps)
        # One launch per proposal, one more when the last step's last proposal was accepted.
        assert {step.work.launches for step in steps} <= {gamma, gamma + 1}


@pytest.mark.parametrize("gamma", [1, 4, 8])
@pytest.mark.parametrize("mode", ["tokens", "kv"])
def test_both_modes_are_lossless(greedy: list[list[int]], mode: str, gamma: int) -> None:
    result = run(PROMPTS, Settings(gamma=gamma, mode=mode, max_new_tokens=NEW))
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
    assert rig.lossless(traces, own, 0.8)
    again = rig.traces(PROMPTS, Job(3, NEW, temperature=0.8, seed=5), drafter)
    assert [trace.tokens for trace in again] == own
    other = rig.traces(PROMPTS, Job(3, NEW, temperature=0.8, seed=6), drafter)
    assert [trace.tokens for trace in other] != own


def test_a_lost_token_is_noticed(rig: Rig, greedy: list[list[int]]) -> None:
    for temperature in (0.0, 0.8):
        traces = rig.traces(PROMPTS, Job(3, NEW, temperature), "lookup")
        assert rig.lossless(traces, greedy, temperature)
        traces[1].tokens[3] += 1
        assert not rig.lossless(traces, greedy, temperature)


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


@pytest.mark.parametrize("drafter", ["model", "lookup"])
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


def test_nodes_do_not_show(greedy: list[list[int]]) -> None:
    one = run(PROMPTS, Settings(max_new_tokens=NEW))
    assert one == run(PROMPTS, Settings(max_new_tokens=NEW))
    for nodes in (2, 3):
        several = run(PROMPTS, Settings(max_new_tokens=NEW, gpu_nodes=nodes, in_process=True))
        assert {**several, "gpu_nodes": 1} == one


def check_survival(lost: dict[str, Any], whole: dict[str, Any], greedy: list[list[int]]) -> None:
    assert lost["lossless"] is True
    assert lost["texts"] == whole["texts"] == greedy
    assert (lost["nodes_lost"], whole["nodes_lost"]) == (1, 0)
    assert lost["positions_replayed"] > 0
    assert lost["tokens_per_step"] == whole["tokens_per_step"]
    # Computing the text again takes time, which is charged.
    assert lost["virtual_seconds"] > whole["virtual_seconds"]


def test_a_node_killed_in_the_middle_changes_no_token(greedy: list[list[int]]) -> None:
    settings = Settings(max_new_tokens=NEW, gpu_nodes=2, in_process=True)
    whole = run(PROMPTS, settings)
    check_survival(run(PROMPTS, replace(settings, kill_after=2)), whole, greedy)
    with pytest.raises(RunError, match="every GPU node is lost"):
        run(PROMPTS, replace(settings, gpu_nodes=1, kill_after=2))


@pytest.mark.ray
def test_an_actor_killed_in_the_middle_changes_no_token(
    greedy: list[list[int]], local_ray: None
) -> None:
    settings = Settings(max_new_tokens=NEW, gpu_nodes=2)
    whole = run(PROMPTS, settings)
    assert whole == run(PROMPTS, replace(settings, in_process=True))
    check_survival(run(PROMPTS, replace(settings, kill_after=2)), whole, greedy)


def test_speed_ups_add_up() -> None:
    result = run(PROMPTS, Settings(max_new_tokens=NEW))
    rows = {row["variant"]: row for row in result["rows"]}
    assert set(rows) == {
        "lpu-tokens", "lpu-kv", "gpu-draft", "lookup", "gpu-only", "lpu-only",
    }  # fmt: skip
    for row in rows.values():
        alone = rows["gpu-only"]
        assert row["speedup"] == pytest.approx(alone["decode_seconds"] / row["decode_seconds"])
        seconds = row["start_seconds"] + row["decode_seconds"]
        assert row["virtual_seconds"] == pytest.approx(seconds)
        assert row["tokens_per_second"] == pytest.approx(NEW * len(PROMPTS) / seconds)
    lpu = rows["lpu-tokens"]
    parts = lpu["draft_seconds"] + lpu["verify_seconds"] + lpu["link_seconds"]
    assert parts == pytest.approx(lpu["decode_seconds"])
    assert lpu["formula_tokens_per_step"] == pytest.approx(
        acceptance.expected_tokens(lpu["acceptance"], 4)
    )
    assert 0.5 < rows["lpu-only"]["agreement"] <= 1


def test_sampling_ships_the_drafts_distributions() -> None:
    result = run(PROMPTS, Settings(max_new_tokens=NEW, temperature=0.7, gamma=2))
    assert result["lossless"] is True
    assert result["bytes"]["logits"] == result["steps"] * 2 * 1024 * 4


def test_a_slow_link_makes_shipping_kv_a_loss(tmp_path: Path) -> None:
    slow = tmp_path / "slow.toml"
    slow.write_text('[link]\nname = "slow"\nlatency_s = 1e-6\nbytes_per_s = 2e7\n')
    result = run(PROMPTS, Settings(max_new_tokens=NEW, link=str(slow)))
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


def test_a_sweep_covers_gammas_links_and_temperatures() -> None:
    result = run(PROMPTS[:1], Settings(max_new_tokens=8, sweep=True))
    assert result["lossless"] is True
    assert result["crossover"]["checked"] == 8 * 6 * 3
    assert len(result["rows"]) == 8 * 3 * (2 * 6 + 2) + 2
    assert (result["gamma"], result["temperature"], result["link"]) == (4, 0.0, "pcie5-x16")


def test_alpha_needs_no_models() -> None:
    settings = Settings(alpha=0.8, gamma=4, max_new_tokens=4000, prompt_tokens=100)
    result = run([[1]], settings)
    assert result["lossless"] is None
    assert result["tokens_per_step"] == pytest.approx(acceptance.expected_tokens(0.8, 4), rel=0.03)
    assert result["acceptance"] == pytest.approx(0.8, abs=0.02)
    assert result == run([[1]], settings)
    sure = run([[1]], replace(settings, alpha=1.0, max_new_tokens=101))
    assert sure["tokens_per_step"] == 5.0


def test_lpus_without_models_are_charged_what_running_them_charges() -> None:
    """Launches, transfers and first tokens of a drawn run, counted by hand."""
    chip = load_chip_spec("groq-lpu-1")
    settings = Settings(
        alpha=0.0, gamma=3, max_new_tokens=11, prompt_tokens=7, lpu_cycles_per_token=9_000
    )
    result = run([[1]], settings)
    # Every step drafts three tokens, each with logits, and gives one: ten steps after the first.
    launch = 9_000 / chip.clock_hz + 2 * chip.pcie_latency_s
    assert result["draft_seconds"] == pytest.approx(10 * 3 * launch)
    # The prompt is fed without logits; nothing is read back.
    slow = run([[1]], replace(settings, lpu_cycles_per_token=9_000_000))
    reading = 7 * (9_000_000 / chip.clock_hz + chip.pcie_latency_s)
    assert slow["start_seconds"] == pytest.approx(reading)
    assert slow["lpu_cycles_per_token"] == 9_000_000


def test_the_shipped_drafts_cycles_grow_with_the_text() -> None:
    """Without models the draft costs its longest program that the text needs."""
    each = [
        run([[1]], Settings(alpha=0.0, max_new_tokens=2, prompt_tokens=n))["draft_cycles"]
        for n in (16, 300)
    ]
    assert each[1] > 1.5 * each[0]


def test_large_models_by_their_shape() -> None:
    settings = Settings(
        alpha=0.8, gpu_model="llama-3-70b", draft_model="llama-3-8b", gpu_tp=8,
        lpu_cycles_per_token=500_000, max_new_tokens=200, mode="kv", prompt_tokens=8192,
        link="100gbe",
    )  # fmt: skip
    result = run([[1]], settings)
    assert result["kv_bytes_per_step"] == pytest.approx(327_680 * result["tokens_per_step"])
    assert result["bytes"]["kv_prompt"] == 327_680 * 8192
    assert result["speedup"] > 1
    # Reading the prompt token by token takes the draft longer than all its proposals gain.
    assert {point["cause"] for point in result["crossover"]["points"]} == {"reading"}
    quick = run([[1]], replace(settings, lpu_cycles_per_token=10_000, max_new_tokens=20))
    assert {case["cause"] for case in quick["crossover"]["slower"]} == {"prompt kv"}
    assert quick["crossover"]["slower"][0]["prompt_kv_bytes"] == 327_680 * 8192
    with pytest.raises(InputError, match="exceeds 1 x H100"):
        run([[1]], replace(settings, gpu_tp=1))
    with pytest.raises(InputError, match="without --lpu-cycles-per-token"):
        run([[1]], replace(settings, lpu_cycles_per_token=None))


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
        (["--alpha", "0.5", "--kill-after", "1"], "--kill-after with --alpha"),
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


def test_command_line(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("def \n\nclass \n")
    common = ["speculative", "--prompts", str(prompts), "--max-new-tokens", "8"]
    done = CliRunner().invoke(experiment.app, [*common, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["prompts"], len(result["text"])) == (2, 2)
    for key in ("lossless", "tokens_per_step", "acceptance", "formula_tokens_per_step", "speedup",
                "virtual_seconds", "tokens_per_second", "bytes", "rows", "crossover", "ttft_s",
                "tpot_s"):  # fmt: skip
        assert key in result
    done = CliRunner().invoke(experiment.app, common)
    assert done.exit_code == 0 and "lossless" in done.output


def test_workload_runs_from_a_checkout(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "programs.workloads.speculative", "--json", tmp_path / "r.json"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("lossless: True") == 8 * 4
    assert "lossless: False" not in done.stdout
    result = json.loads((tmp_path / "r.json").read_text())
    assert [result["gammas"][str(gamma)]["lossless"] for gamma in range(1, 9)] == [True] * 8


def test_fast_enough() -> None:
    assert tokens_per_wall_second() >= 10


@pytest.mark.long
@pytest.mark.parametrize("mode", ["tokens", "kv"])
@pytest.mark.parametrize("gamma", range(1, 9))
def test_fifty_prompts(gamma: int, mode: str) -> None:
    """50 prompts of 16 held-out tokens, 64 new tokens each."""
    home = shipped_model()
    text = (home.parent / "heldout.txt").read_text(encoding="utf-8")
    ids = load_checkpoint(home).tokenizer.encode(text).ids
    prompts = [ids[at : at + 16] for at in range(0, 50 * 300, 300)]
    result = run(prompts, Settings(gamma=gamma, mode=mode, max_new_tokens=64))
    assert (result["lossless"], result["tokens"]) == (True, 3200)
    print(
        f"gamma {gamma} {mode}: {result['acceptance']:.4f} accepted, "
        f"{result['tokens_per_step']:.3f} tokens per step "
        f"(formula {result['formula_tokens_per_step']:.3f}), {result['speedup']:.3f} x"
    )
