"""The roofline at its limits, its monotonicity, and what fits in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.gpu import GPU_PRESETS, GpuGroup, KernelJitter
from programs.models import ARCHITECTURES

LLAMA = ARCHITECTURES["llama-3-8b"]
H100 = GpuGroup(GPU_PRESETS["h100"])
#: Allowance for rounding where two sums are equal on paper.
SLACK = 1 + 1e-12

groups = st.builds(
    GpuGroup,
    st.sampled_from([GPU_PRESETS[name] for name in ("a100", "h100", "b200", "gb300", "rubin-cpx")]),
    st.sampled_from([1, 2, 8, 16]),
    st.sampled_from(["fp16", "fp8"]),
)
models = st.sampled_from(sorted(ARCHITECTURES)).map(ARCHITECTURES.__getitem__)
counts = st.integers(1, 4096)
cached = st.integers(0, 100_000)


def without_overheads(name: str) -> GpuGroup:
    return GpuGroup(replace(GPU_PRESETS[name], kernel_overhead_s=1e-15))


def test_decoding_one_sequence_is_bytes_over_bandwidth() -> None:
    read = 2 * (LLAMA.parameters - LLAMA.embedding_parameters) + 1024 * 131_072
    ideal = read / (3.35e12 * 0.8)
    assert without_overheads("h100").decode_seconds(LLAMA, [1023]) == pytest.approx(ideal)
    overhead = (32 * 10 + 3) * 3e-6
    assert H100.decode_seconds(LLAMA, [1023]) == pytest.approx(ideal + overhead)


def test_a_long_prefill_is_operations_over_rate() -> None:
    tokens = 8192
    layers = 2 * (LLAMA.parameters - 2 * LLAMA.embedding_parameters) * tokens
    attention = 4 * 32 * 4096 * tokens * (tokens + 1) / 2
    ideal = (layers + attention + LLAMA.head_flops) / (989e12 * 0.7)
    assert without_overheads("h100").prefill_seconds(LLAMA, tokens) == pytest.approx(ideal)
    assert H100.prefill_seconds(LLAMA, tokens) == pytest.approx(ideal, rel=0.01)


def test_a_batch_costs_nothing_until_arithmetic_bounds_it() -> None:
    group = without_overheads("h100")
    one, eight, many = (group.decode_seconds(LLAMA, [0] * n) for n in (1, 8, 4096))
    assert eight == pytest.approx(one, rel=0.001)
    assert many > 5 * one


def test_a_group_pays_two_all_reduces_per_layer() -> None:
    group = replace(H100, tensor_parallel=8)
    time = group.pass_time(LLAMA, [100], 4)
    # a tree over eight: a kernel, three steps up and three down, fp16 of four hidden vectors
    exchange = 3e-6 + 2 * (3 * 1e-6 + 4 * 4096 * 2 / (0.8 * 450e9))
    assert time.all_reduce_s == pytest.approx(64 * exchange)
    assert time.seconds == max(time.memory_s, time.compute_s) + time.overhead_s + time.all_reduce_s
    assert H100.pass_time(LLAMA, [100], 4).all_reduce_s == 0
    assert time.memory_s == pytest.approx(H100.pass_time(LLAMA, [100], 4).memory_s / 8)


def test_one_token_of_mixtral_reads_two_experts_and_a_batch_reads_all() -> None:
    mixtral = ARCHITECTURES["mixtral-8x7b"]
    group = replace(without_overheads("h200"), tensor_parallel=1, dtype="fp8")
    one = group.pass_time(mixtral, [0], 1).memory_s
    many = group.pass_time(mixtral, [0] * 64, 1).memory_s
    assert one * 4.8e12 * 0.8 == pytest.approx(mixtral.active_parameters, rel=0.02)
    assert many * 4.8e12 * 0.8 == pytest.approx(mixtral.parameters, rel=0.01)


def test_keys_are_copied_when_gpus_outnumber_their_heads() -> None:
    """4,096 tokens of Qwen3-8B are 576 MiB; 1,024 of Qwen3-235B on 8 GPUs 394 MB, twice its own."""
    qwen = ARCHITECTURES["qwen3-235b"]
    eight = GpuGroup(GPU_PRESETS["h200"], 8)
    assert eight.kv_bytes_per_token(qwen) * 1024 == 394_264_576
    assert GpuGroup(GPU_PRESETS["h200"], 4).kv_bytes_per_token(qwen) == 192_512
    assert eight.kv_bytes_per_token(ARCHITECTURES["qwen3-8b"]) * 4096 == 576 * 2**20
    assert eight.kv_bytes_per_token(ARCHITECTURES["deepseek-v3"]) == 8 * 70_272


def test_memory_is_counted_to_the_byte() -> None:
    weights = H100.weight_bytes(LLAMA)
    assert weights == 2 * LLAMA.parameters
    fit = H100.max_sequences(LLAMA, 4096)
    assert fit == (80_000_000_000 - weights) // (4096 * 131_072)
    H100.check_fits(LLAMA, fit, 4096)
    excess = weights + (fit + 1) * 4096 * 131_072 - 80_000_000_000
    with pytest.raises(InputError, match=f"exceeds 1 x H100 SXM by {excess:,} bytes") as caught:
        H100.check_fits(LLAMA, fit + 1, 4096)
    assert "\n" not in str(caught.value)
    assert H100.max_sequences(ARCHITECTURES["llama-3-405b"], 1) == 0


@given(groups, models, st.lists(cached, min_size=1, max_size=8), cached)
def test_decoding_grows_with_batch_and_context(group, model, contexts, more) -> None:  # type: ignore[no-untyped-def]
    base = group.decode_seconds(model, contexts)
    assert base <= group.decode_seconds(model, [*contexts, more]) * SLACK
    assert base <= group.decode_seconds(model, [contexts[0] + more, *contexts[1:]]) * SLACK
    assert base > 0


@given(groups, models, cached, counts, counts, st.integers(1, 16))
def test_a_pass_grows_with_its_tokens(group, model, context, one, two, n) -> None:  # type: ignore[no-untyped-def]
    few, many = sorted((one, two))
    short, long = (group.verify_seconds(model, context, t, n) for t in (few, many))
    assert short <= long * SLACK
    assert short <= group.verify_seconds(model, context, few, n + 1) * SLACK
    before, after = (group.prefill_seconds(model, t, context) for t in (few, many))
    assert before <= after * SLACK
    assert group.prefill_seconds(model, few) <= before * SLACK
    assert before <= group.verify_seconds(model, context, few) * SLACK


@given(groups, models, st.lists(cached, min_size=1, max_size=4))
def test_verifying_one_token_is_decoding(group, model, contexts) -> None:  # type: ignore[no-untyped-def]
    same = [contexts[0]] * len(contexts)
    decoded = group.decode_seconds(model, same)
    assert group.verify_seconds(model, same[0], 1, len(same)) == decoded


@given(models, cached, counts)
def test_a_better_gpu_is_never_slower(model, context, tokens) -> None:  # type: ignore[no-untyped-def]
    spec = GPU_PRESETS["h100"]
    base = GpuGroup(spec).verify_seconds(model, context, tokens)
    for name in ("hbm_bytes_per_s", "fp16_flops"):
        better = replace(spec, **{name: 2 * getattr(spec, name)})
        assert GpuGroup(better).verify_seconds(model, context, tokens) <= base


@given(models, st.integers(1, 100_000), st.sampled_from([1, 2, 4, 8, 64]))
def test_what_fits_fits_exactly(model, context, gpus) -> None:  # type: ignore[no-untyped-def]
    group = GpuGroup(GPU_PRESETS["gb200"], gpus)
    fit = group.max_sequences(model, context)
    if group.weight_bytes(model) <= group.hbm_bytes:
        group.check_fits(model, fit, context)
    with pytest.raises(InputError):
        group.check_fits(model, fit + 1, context)


def test_jitter_is_seeded_and_only_slows() -> None:
    def times(seed: int, stream: str) -> list[float]:
        group = replace(H100, jitter=KernelJitter(seed, stream))
        return [group.decode_seconds(LLAMA, [100]) for _ in range(100)]

    best = H100.decode_seconds(LLAMA, [100])
    assert times(1, "a") == times(1, "a")
    assert times(1, "a") != times(2, "a")
    assert times(1, "a") != times(1, "b")
    assert all(best < time < 1.3 * best for time in times(1, "a"))
    assert KernelJitter(0, sigma=0.0).factor() == 1.0


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: GpuGroup(GPU_PRESETS["h100"], 0), "tensor parallel 0"),
        (lambda: GpuGroup(GPU_PRESETS["h100"], 1, "fp4"), "no published fp4 rate"),
        (lambda: GpuGroup(GPU_PRESETS["h100"], 1, "fp5"), "number type 'fp5'"),
        (lambda: GpuGroup(GPU_PRESETS["h100"], kv_bytes_per_value=0), "bytes per KV value"),
        (lambda: H100.decode_seconds(LLAMA, []), "sequences 0"),
        (lambda: H100.decode_seconds(LLAMA, [5, -1]), "cached positions -1"),
        (lambda: H100.prefill_seconds(LLAMA, 0), "tokens 0"),
        (lambda: H100.verify_seconds(LLAMA, 0, 1, 0), "sequences 0"),
        (lambda: H100.max_sequences(LLAMA, 0), "context 0"),
        (lambda: H100.check_fits(LLAMA, -1, 10), "sequences -1"),
        (lambda: KernelJitter(0, sigma=-1), "jitter sigma"),
    ],
)
def test_wrong_arguments(act, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=words):
        act()


def test_host_transfers_have_latency_and_bytes() -> None:
    slow = replace(H100.spec, host_latency_s=2e-3, pcie_bytes_per_s=1000.0)
    group = replace(H100, spec=slow)
    assert group.host_seconds(0) == 2e-3
    assert group.host_seconds(200) == pytest.approx(2e-3 + 800 / (0.8 * 1000))
    assert H100.host_seconds(1) == pytest.approx(1e-5, rel=1e-3)
    with pytest.raises(InputError, match="check the units"):
        replace(H100, spec=replace(slow, pcie_bytes_per_s=1e-9)).host_seconds(1)


def test_models_beside_each_other_share_the_memory() -> None:
    draft = ARCHITECTURES["smollm2-135m"]
    need = sum(H100.weight_bytes(m) + 2 * 100 * H100.kv_bytes_per_token(m) for m in (LLAMA, draft))
    for spare, fits in ((0, True), (-1, False)):
        group = replace(H100, spec=replace(H100.spec, hbm_bytes=need + spare))
        if fits:
            group.check_fits(LLAMA, 2, 100, draft)
            continue
        with pytest.raises(InputError, match=r"beside smollm2-135m .* by 1 bytes"):
            group.check_fits(LLAMA, 2, 100, draft)
