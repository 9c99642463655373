"""Tables of figures are those of the data sheets and papers they name, one by one.

And numbers that files of format 1 hold (opcodes, queues, chips of a topology) stay what they are.
"""

from __future__ import annotations

from dataclasses import asdict, astuple
from typing import Any

import pytest

from chip.isa import (
    EAST_EDGE,
    QUEUES,
    WEST_EDGE,
    AccMode,
    Op,
    alu_stream_groups,
    drive_position,
    queue_name,
    sample_position,
    stream_name,
)
from chip.spec import ChipSpec
from cluster.gpu import GPU_PRESETS, LINK_PRESETS
from interconnect.clocks.links import TABLE_2
from programs.artifact.header import TOPOLOGIES
from programs.models import ARCHITECTURES
from programs.models.architectures import LatentAttention

#: GB, TB/s, dense TFLOP/s at 16, 8 and 4 bits, then GB/s one way: NVLink, PCIe, C2C, network; watts
#: and GPUs of one NVLink domain.  0: none, or not published.
GPUS = {
    "a100": (80.0, 2.039, 312, 624, 0, 300, 32, 0, 25, 400, 8),
    "h100": (80.0, 3.35, 989, 1978, 0, 450, 64, 0, 50, 700, 8),
    "h200": (141.0, 4.8, 989, 1978, 0, 450, 64, 0, 50, 700, 8),
    "b200": (193.27352832, 7.7, 2250, 4500, 9000, 900, 64, 0, 100, 1000, 8),
    "gb200": (198.64223744, 8.0, 2500, 5000, 10_000, 900, 64, 450, 100, 1200, 72),
    "b300": (288.836550656, 7.75, 2250, 4500, 14_000, 900, 128, 0, 100, 1100, 8),
    "gb300": (297.426485248, 8.0, 2500, 5000, 15_000, 900, 64, 450, 100, 1400, 72),
    "rubin": (288.0, 22.0, 4000, 17_500, 35_000, 1800, 128, 900, 100, 0, 72),
    "rubin-cpx": (128.0, 2.0, 5000, 10_000, 20_000, 0, 128, 0, 100, 0, 8),
}


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_is_its_data_sheet(name: str) -> None:
    assert len(GPUS) == len(GPU_PRESETS)
    memory, rate, *peaks, nvlink, pcie, c2c, network, watts, domain = GPUS[name]
    gpu = GPU_PRESETS[name]
    assert gpu.hbm_bytes == round(memory * 1e9)
    assert gpu.hbm_bytes_per_s == pytest.approx(rate * 1e12, rel=1e-12)
    found = [gpu.fp16_flops, gpu.fp8_flops, gpu.fp4_flops]
    assert found == pytest.approx([peak * 1e12 for peak in peaks], rel=1e-12)
    ways = [gpu.nvlink_bytes_per_s, gpu.pcie_bytes_per_s]
    ways += [gpu.c2c_bytes_per_s, gpu.internode_bytes_per_s]
    assert ways == pytest.approx([way * 1e9 for way in (nvlink, pcie, c2c, network)], rel=1e-12)
    assert (gpu.watts, gpu.gpus_per_node) == (watts, domain)
    # software on all of them: aiconfigurator's figures, and those that are assumed
    assert (gpu.achieved_hbm_ratio, gpu.achieved_flops_ratio) == (0.8, 0.7)
    assert (gpu.achieved_link_ratio, gpu.kernels_per_layer) == (0.8, 10)
    assert (gpu.host_latency_s, gpu.kernel_overhead_s) == (10e-6, 3e-6)
    assert (gpu.internode_step_s, gpu.lateness_s) == (5e-6, 1e-6)
    # without NVLink a step goes over PCIe
    assert gpu.nvlink_step_s == (10e-6 if name == "rubin-cpx" else 1e-6)


def test_links_are_their_standards() -> None:
    """Latency in us, GB/s one way, and the part of it that is achieved."""
    found = {
        name: (round(link.latency_s * 1e6, 9), link.bytes_per_s / 1e9, link.achieved_ratio)
        for name, link in LINK_PRESETS.items()
    }
    assert found == {
        "pcie5-x16": (10, 64, 0.75),
        "pcie6-x16": (10, 128, 0.75),
        "100gbe": (15, 12.5, 0.9),
        "400gbe": (15, 50, 0.9),
        "800gbe": (15, 100, 0.9),
        "nvlink-c2c": (1, 450, 0.8),
    }


#: config.json: layers, hidden, heads, kv heads, head_dim, FFN, vocab.
MODELS = {
    "llama-2-7b": (32, 4096, 32, 32, 128, 11008, 32000),
    "llama-2-13b": (40, 5120, 40, 40, 128, 13824, 32000),
    "llama-2-70b": (80, 8192, 64, 8, 128, 28672, 32000),
    "llama-3-8b": (32, 4096, 32, 8, 128, 14336, 128256),
    "llama-3-70b": (80, 8192, 64, 8, 128, 28672, 128256),
    "llama-3-405b": (126, 16384, 128, 8, 128, 53248, 128256),
    "mistral-7b": (32, 4096, 32, 8, 128, 14336, 32000),
    "mixtral-8x7b": (32, 4096, 32, 8, 128, 14336, 32000),
    "qwen3-8b": (36, 4096, 32, 8, 128, 12288, 151936),
    "qwen3-235b": (94, 4096, 64, 4, 128, 1536, 151936),
    "qwen3-30b-a3b": (48, 2048, 32, 4, 128, 768, 151936),
    "qwen1.5-moe-a2.7b": (24, 2048, 16, 16, 128, 1408, 151936),
    "llama-4-scout": (48, 5120, 40, 8, 128, 8192, 202048),
    "gpt-oss-20b": (24, 2880, 64, 8, 64, 2880, 201088),
    "gpt-oss-120b": (36, 2880, 64, 8, 64, 2880, 201088),
    "opt-66b": (64, 9216, 72, 72, 128, 36864, 50272),
    "deepseek-v3": (61, 7168, 128, 128, 128, 2048, 129280),
    "deepseek-v2-lite": (27, 2048, 16, 16, 128, 1408, 102400),
    "gemma-2b": (18, 2048, 8, 1, 256, 16384, 256000),
    "gemma-7b": (28, 3072, 16, 16, 256, 24576, 256000),
    "tinyllama-1.1b": (22, 2048, 32, 4, 64, 5632, 32000),
    "smollm2-135m": (30, 576, 9, 3, 64, 1536, 49152),
}
GPT_OSS = {
    "experts_per_token": 4,
    "qkv_bias": True,
    "o_bias": True,
    "sinks": True,
    "expert_bias": True,
    "window": 128,
}
#: What is not as in Llama, by model; every other model has none of it.
SPECIAL: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": {"experts": 8, "experts_per_token": 2},
    "qwen3-8b": {"head_norms": True},
    "qwen3-235b": {"experts": 128, "experts_per_token": 8, "head_norms": True},
    "qwen3-30b-a3b": {"experts": 128, "experts_per_token": 8, "head_norms": True},
    "qwen1.5-moe-a2.7b": {
        "experts": 60,
        "experts_per_token": 4,
        "shared_experts": 4,
        "shared_gate": True,
        "shares_of_all": True,
        "qkv_bias": True,
    },
    "llama-4-scout": {
        "experts": 16,
        "shared_experts": 1,
        "input_shares": True,
        "plain_every": 4,
        "head_norms": True,
        "head_gains": False,
        "most_positions": 8191,
    },
    "gpt-oss-20b": {**GPT_OSS, "experts": 32},
    "gpt-oss-120b": {**GPT_OSS, "experts": 128},
    "opt-66b": {"tied": True, "gated": False, "biases": True, "learned_positions": 2050},
    "deepseek-v3": {
        "experts": 256,
        "experts_per_token": 8,
        "latent": {"key_value": 512, "rope": 64, "query": 1536, "value": 128},
        "shared_experts": 1,
        "dense_layers": 3,
        "dense_ffn": 18432,
        "routed_factor": 2.5,
        "expert_groups": 8,
        "chosen_groups": 4,
        "sigmoid_scores": True,
    },
    "deepseek-v2-lite": {
        "experts": 64,
        "experts_per_token": 6,
        "latent": {"key_value": 512, "rope": 64, "query": 0, "value": 128},
        "shares_of_all": True,
        "shared_experts": 2,
        "dense_layers": 1,
        "dense_ffn": 10944,
    },
    "gemma-2b": {"tied": True, "gemma": True},
    "gemma-7b": {"tied": True, "gemma": True},
    "smollm2-135m": {"tied": True},
}
PLAIN: dict[str, Any] = {
    "experts": 1,
    "experts_per_token": 1,
    "tied": False,
    "latent": None,
    "shared_experts": 0,
    "dense_layers": 0,
    "dense_ffn": 0,
    "routed_factor": 1.0,
    "expert_groups": 1,
    "chosen_groups": 1,
    "sigmoid_scores": False,
    "gated": True,
    "biases": False,
    "learned_positions": 0,
    "head_norms": False,
    "wide_norms": False,
    "block_norms": 2,
    "gemma": False,
    "qkv_bias": False,
    "o_bias": False,
    "shared_gate": False,
    "input_shares": False,
    "plain_every": 0,
    "head_gains": True,
    "most_positions": 0,
    "shares_of_all": False,
    "sinks": False,
    "expert_bias": False,
    "window": 0,
}


def test_models_are_their_config_files() -> None:
    assert set(ARCHITECTURES) == {*MODELS, "target", "draft"}
    for name, sizes in MODELS.items():
        shape = ARCHITECTURES[name]
        assert astuple(shape)[:8] == (name, *sizes)
        rest = dict(list(asdict(shape).items())[8:])
        assert rest == PLAIN | SPECIAL.get(name, {}), name
    assert LatentAttention() == LatentAttention(512, 64, 1536, 128)


def test_the_chip_is_what_is_published_and_calibrated() -> None:
    """Sources stand with the fields; the calibration rows of docs/numerics.md rest on these."""
    assert asdict(ChipSpec()) == {
        "name": "groq-lpu-1",
        "clock_hz": 900_000_000,
        "hemispheres": 2,
        "slices_per_hemisphere": 44,
        "banks_per_slice": 2,
        "words_per_bank": 4096,
        "lanes": 320,
        "superlane_skew_cycles": 20,
        "read_cycles": 1,
        "write_cycles": 2,
        "gather_cycles": 1,
        "alu_entry_cycles": 4,
        "alu_cycles": 3,
        "mxm_install_cycles": 3,
        "mxm_reload_gap_cycles": 7,
        "mxm_multiply_cycles": 13,
        "mxm_accumulate_cycles": 31,
        "mxm_accumulator_rows": 320,
        "distribute_cycles": 2,
        "transpose_cycles": 4,
        "permute_cycles": 52,
        "shift_cycles": 28,
        "rotate_cycles": 4,
        "notify_cycles": 35,
        "nop_max_cycles": 65_535,
        "receive_cycles": 1,
        "hop_cycles": 650,
        "link_wire_cycles": 217,
        "link_bytes_per_s": 12_500_000_000,
        "packet_bytes": 328,
        "send_spacing_cycles": 24,
        "links": 16,
        "wired_links": 11,
        "pcie_latency_s": 10e-6,
        "pcie_bytes_per_s": 24e9,
        "average_power_w": 185.0,
        "reserved_slices_west": (16, 20, 24, 28, 38),
        "reserved_slices_east": (16, 20, 24, 28),
    }


def test_table_2_is_the_papers() -> None:
    """ISCA'22, table 2: min, mean, max and std of the seven links in cycles."""
    assert [astuple(row) for row in TABLE_2] == [
        ("A", 209, 216.87, 228, 2.93),
        ("B", 210, 216.87, 227, 2.88),
        ("C", 209, 216.41, 226, 2.66),
        ("D", 210, 216.47, 226, 2.71),
        ("E", 209, 216.27, 226, 2.78),
        ("F", 209, 216.48, 225, 2.63),
        ("G", 211, 217.35, 228, 2.84),
    ]


# --- numbers that files hold ----------------------------------------------------------------------

#: Opcodes of a unit from its first number on.
OPCODES = {
    1: "SYNC NOTIFY",
    32: "READ WRITE GATHER SCATTER",
    64: "MOV ADD_F32 SUB_F32 MUL_F32 MAX_F32 MIN_F32 ADD_I32 SUB_I32 MUL_I32 SHL ASR AND OR XOR "
    "EXP TANH RSQRT RELU NEG_F32 CVT_F32_I32 CVT_I32_F32 CVT_F32_F16 CVT_F16_F32 CVT_I32_I8 "
    "CVT_I8_I32 MASK MASK_BAR EQ NE GT_F32 GE_F32",
    128: "LW IW ABC ACC",
    160: "DISTRIBUTE TRANSPOSE PERMUTE SHIFT ROTATE",
    192: "SEND RECEIVE DESKEW",
}


def test_opcodes_keep_their_numbers() -> None:
    expected = {
        name: first + number
        for first, names in OPCODES.items()
        for number, name in enumerate(names.split())
    }
    assert {name: int(op) for name, op in Op.__members__.items()} == expected
    modes = {"SET": 0, "ADD": 1, "SET_EMIT": 2, "ADD_EMIT": 3}
    assert {name: int(mode) for name, mode in AccMode.__members__.items()} == modes


def test_topologies_keep_their_sizes() -> None:
    assert TOPOLOGIES == {
        "single": (1, 1),
        "node-2": (2, 2),
        "node-4": (4, 4),
        "node-8": (8, 8),
        "node": (1, 8),
        "nodes": (16, 264),
        "dragonfly": (144, 10_440),
        "lpx": (256, 256),
        "custom": (1, 10_440),
    }


# --- the floor plan -------------------------------------------------------------------------------

SXM_UNITS = [f"distributor[{n}]" for n in range(4)]
SXM_UNITS += ["transposer[0]", "transposer[1]", "permutor", "rotator"]
#: The queues in order: names, where their units take E0 and W0, and where they drive them.
#: Positions run from the west edge at -1 over the VXM, between 20 and 24, to the east edge at 45.
PLAN = [
    *((f"mem_w[{n}]", *[19 - n // 4] * 4) for n in range(44)),
    *((f"mem_e[{n}]", *[25 + n // 4] * 4) for n in range(44)),
    *((f"alu[{n}]", 20, 24, 24, 20) for n in range(16)),
    *(
        (f"mxm[{n}].{kind}", *[-1 if n < 2 else 45] * 4)
        for n in range(4)
        for kind in ("weights", "activations")
    ),
    *((f"sxm_w.{unit}", 4, 5, 8, 4) for unit in SXM_UNITS),
    *((f"sxm_e.{unit}", 39, 40, 40, 36) for unit in SXM_UNITS),
    *((f"c2c[{n}]", *[-1 if n < 8 else 45] * 4) for n in range(16)),
]


def test_the_floor_plan() -> None:
    assert (WEST_EDGE, EAST_EDGE, QUEUES, len(PLAN)) == (-1, 45, 144, 144)
    for queue, row in enumerate(PLAN):
        for east, west in ((0, 32), (31, 63)):
            places = [
                at(queue, s) for at in (sample_position, drive_position) for s in (east, west)
            ]
            assert (queue_name(queue), *places) == row


def test_names_of_operands() -> None:
    names = [*(f"E{n}" for n in range(32)), *(f"W{n}" for n in range(32))]
    names += [*(f"alu{n}" for n in range(16)), "self", "imm"]
    assert [stream_name(code) for code in range(-1, 82)] == ["-", *names]


def test_rows_of_alus_reach_four_groups_of_streams() -> None:
    rows = [(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6, 7), (6, 7, 0, 1)]
    assert [alu_stream_groups(alu) for alu in range(16)] == [r for r in rows for _ in range(4)]
