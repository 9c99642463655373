"""What a plan is asked for: numbers as people write them, axes, what-ifs, and what follows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chip.spec import PRESETS, ChipSpec, changed_spec, load_chip_spec
from cluster.errors import InputError
from cluster.planning import PlanSettings
from cluster.planning.values import axis_values, one_change, several

LPU = PRESETS["groq-lpu-1"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("650", 650),
        ("1200000000", 1_200_000_000),
        ("1_200_000_000", 1_200_000_000),
        ("1.2e9", 1_200_000_000),
        ("1.2E+9", 1_200_000_000),
        ("12000e-1", 1200),
        ("-3", -3),
    ],
)
def test_whole_numbers(text: str, value: int) -> None:
    name, found = one_change("--set", f"chip.clock_hz={text}")
    assert (name, found, type(found)) == ("chip.clock_hz", value, int)


@pytest.mark.parametrize("text", ["", "x", "1.5", "1e-3", "1e999999999", "0x10", "1 2", "inf", "٣"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(InputError, match=r"--set chip\.clock_hz=.* is no whole number; write 650"):
        one_change("--set", f"chip.clock_hz={text}")


def test_other_kinds_of_fields() -> None:
    assert one_change("--set", "chip.pcie_latency_s=5e-6") == ("chip.pcie_latency_s", 5e-6)
    west = one_change("--set", "chip.reserved_slices_west=16,20")
    assert west == ("chip.reserved_slices_west", (16, 20))
    assert one_change("--set", "dtype=fp16") == ("dtype", "fp16")
    assert one_change("--set", "context=4_096") == ("context", 4096)
    with pytest.raises(InputError, match=r"'fast' is no number; write 0.5 or 2.4e10"):
        one_change("--set", "chip.pcie_latency_s=fast")
    with pytest.raises(InputError, match=r"nothing is given; write a value after the ="):
        one_change("--set", "chip.name=")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("7", [7]),
        ("650,325", [650, 325]),
        ("64..1024", [64, 128, 256, 512, 1024]),
        ("3..20", [3, 6, 12]),
        ("300..400+50", [300, 350, 400]),
        ("1e3..4e3,5,1000", [1000, 2000, 4000, 5]),
    ],
)
def test_several_numbers(text: str, values: list[int]) -> None:
    assert several("--sweep", text) == values
    assert axis_values("--sweep", f"chip.hop_cycles={text}") == ("chip.hop_cycles", values)


def test_what_is_no_axis() -> None:
    for text in ("chips=9..3", "chips=0..8", "chips=8..16+0"):
        with pytest.raises(InputError, match=r"a range goes up from above 0, as in 64..1024"):
            axis_values("--sweep", text)
    for text in ("chips", "hop_cycles=3", "chip.reserved_slices_west=3,4"):
        with pytest.raises(InputError, match=r"as in chips=64..1024 or chip.hop_cycles=650,325"):
            axis_values("--sweep", text)
    for text in ("1..9e9+1", ",".join(map(str, range(65)))):
        with pytest.raises(InputError, match=r"more than 64 values; use fewer, or larger steps"):
            several("--chips", text)


def test_sixty_four_values_are_not_too_many() -> None:
    listed = ",".join(map(str, range(1, 65)))
    for text, values in (
        ("1..64+1", list(range(1, 65))),
        (listed, list(range(1, 65))),
        ("5..5+3", [5]),
        ("7..8", [7]),
    ):
        assert several("--chips", text) == values
    for text in ("1..65+1", f"{listed},65", f"1,{listed}"):
        with pytest.raises(InputError, match=r"^--chips: more than 64 values"):
            several("--chips", text)


def asked(**options: Any) -> list[dict[str, Any]]:
    return [step.varied for step in PlanSettings("target", **options).steps]


def test_two_axes_are_a_product_the_first_outermost() -> None:
    assert asked() == [{}]
    found = asked(context="64,128", sweep=["chip.hop_cycles=650,325"])
    assert [tuple(v.values()) for v in found] == [(64, 650), (64, 325), (128, 650), (128, 325)]
    steps = PlanSettings("target", context="64,128", sweep=["chip.hop_cycles=650,325"]).steps
    assert [(s.context, s.spec().hop_cycles) for s in steps] == [
        (64, 650),
        (64, 325),
        (128, 650),
        (128, 325),
    ]


def test_chips_are_compared() -> None:
    steps = PlanSettings("target", chip=["groq-lpu-1", "groq-3-lp30"], chips="8").steps
    assert [step.varied for step in steps] == [{"chip": "groq-lpu-1"}, {"chip": "groq-3-lp30"}]
    assert [step.spec().clock_hz for step in steps] == [900_000_000, 1_500_000_000]
    assert [step.chips for step in steps] == [8, 8]


def test_a_range_of_chips_names_machines_and_a_list_what_was_asked() -> None:
    assert [v["chips"] for v in asked(chips="256..1024")] == [256, 576, 1080]
    assert [v["chips"] for v in asked(chips="64,1000")] == [64, 1000]
    assert [v["chips"] for v in asked(chips="257..1024", wiring="chain")] == [264, 520]
    assert asked(sweep=["wiring=usual,chain"]) == [{"wiring": "usual"}, {"wiring": "chain"}]


def test_a_range_of_chips_names_machines_of_the_wiring_however_it_is_said() -> None:
    chain = [{"chips": 264}, {"chips": 520}]
    assert asked(chips="257..1024", set_=["wiring=chain"]) == chain
    assert asked(sweep=["chips=257..1024"], set_=["wiring=chain"]) == chain
    assert asked(sweep=["chips=257..1024"], wiring="chain") == chain
    both = {"what_if": ["in a row: wiring=chain"]}, {"sweep": ["wiring=chain,usual"]}
    for options in both:
        sizes = {found["chips"] for found in asked(chips="257..1024", **options)}
        assert sizes == {264, 576}, "machines of both wirings, so that a table has no gaps"
    with pytest.raises(InputError, match="wiring"):
        asked(chips="257..1024", set_=["wiring=ring"])


def test_what_ifs_follow_each_other() -> None:
    texts = ["near: chip.hop_cycles=325", "and long: context=64 chip.words_per_bank=8e3"]
    steps = PlanSettings("target", what_if=texts, set_=["context=32"]).steps
    assert [step.varied["what if"] for step in steps] == ["as it is", "near", "and long"]
    assert [step.context for step in steps] == [32, 32, 64]
    assert [step.spec().hop_cycles for step in steps] == [650, 325, 325]
    assert [step.spec().words_per_bank for step in steps] == [4096, 4096, 8000]
    for text in ("near", ": context=3", "near:"):
        with pytest.raises(InputError, match=r"use NAME: FIELD=VALUE, as in 'near: chip.hop"):
            PlanSettings("target", what_if=[text])
    with pytest.raises(InputError, match=r"--what-if near: two have this name; give each its own"):
        PlanSettings("target", what_if=["near: context=3", "near: context=4"])
    with pytest.raises(InputError, match=r"--what-if odd: chip.no=1: use chip.FIELD=VALUE"):
        PlanSettings("target", what_if=["odd: chip.no=1"])


def test_what_is_too_much() -> None:
    with pytest.raises(InputError, match=r"chips varies twice; give it once"):
        asked(chips="8,16", sweep=["chips=24..48"])
    with pytest.raises(InputError, match=r"chips, context, batch vary; use two of them, a table"):
        asked(chips="8,16", context="8,16", batch="1,2")
    with pytest.raises(InputError, match=r"100 plans; use 64 or fewer"):
        asked(context="1..10+1", batch="1..10+1")
    for option in ("--chips 0", "--context 0", "--batch 0"):
        name, value = option.removeprefix("--").split()
        with pytest.raises(InputError, match=f"{option}: use 1 or more"):
            asked(**{name: value})
    with pytest.raises(InputError, match=r"--tp 3: use 1, 2, 4 or 8"):
        asked(set_=["tp=3"])
    with pytest.raises(InputError, match=r"--wiring ring: use usual or chain"):
        asked(wiring="ring")
    with pytest.raises(InputError, match=r"--dtype fp8: use int8 or fp16"):
        asked(sweep=["dtype=int8,fp8"])


def test_numbers_and_single_texts_from_python() -> None:
    """As their texts and lists of one: nothing is walked letter by letter."""
    given: dict[str, Any] = {
        "chip": "groq-3-lp30",
        "chips": 56,
        "context": 640,
        "sweep": "batch=1,2",
        "set_": "chip.hop_cycles=325",
    }
    settings = PlanSettings("target", **given)
    assert (settings.chips, settings.context) == ("56", "640")
    assert settings.chip == ["groq-3-lp30"]
    assert [(s.chip, s.chips, s.context, s.batch) for s in settings.steps] == [
        ("groq-3-lp30", 56, 640, 1),
        ("groq-3-lp30", 56, 640, 2),
    ]
    given = {"prompt": [5, 7]}
    assert PlanSettings("target", **given).prompts == [5, 7]
    given = {"batch": 3, "what_if": "near: chip.hop_cycles=325"}
    assert [s.batch for s in PlanSettings("target", **given).steps] == [3, 3]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"context": "8,16", "what_if": ["l: context=64"]},
            "context varies and is changed by --wh",
        ),
        ({"context": "8,16", "set_": ["context=64"]}, "context varies and is set; give it once"),
        ({"sweep": ["batch=1,2"], "set_": ["batch=4"]}, "batch varies and is set; give it once"),
        ({"chips": "8", "sweep": ["chips=16,24"]}, "chips varies and is set; give it once"),
        (
            {"sweep": ["chip.hop_cycles=650,325"], "set_": ["chip.hop_cycles=9"]},
            r"chip\.hop_cycles varies and is set; give it once",
        ),
        ({"chips": "128", "set_": ["chips=64"]}, "chips is set twice; give it once"),
        ({"set_": ["batch=2", "batch=3"]}, "batch is set twice; give it once"),
    ],
)
def test_a_field_has_one_value_in_a_plan(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        asked(**options)


@pytest.mark.parametrize("details", [{"explain": "ffn"}, {"buckets": True}, {"prompt": "5"}])
@pytest.mark.parametrize("axis", [{"context": "8,16"}, {"sweep": ["context=8"]}])
def test_what_one_plan_shows_is_not_asked_of_several(
    details: dict[str, Any], axis: dict[str, Any]
) -> None:
    assert asked(**details) == [{}]
    with pytest.raises(InputError, match=r"beside several plans: one plan shows it, ask one"):
        asked(**details, **axis)


@pytest.mark.parametrize("preset", PRESETS)
def test_spacing_follows_from_clock_rate_and_packet(preset: str) -> None:
    """A cycle more than a vector takes at most, unless it is given; as in the presets."""
    spec = PRESETS[preset]
    assert spec.send_spacing_cycles == math.ceil(spec.cycles_per_vector)
    for changes in (
        {"clock_hz": 1_200_000_000},
        {"clock_hz": 850_000_000},
        {"link_bytes_per_s": 25_000_000_000},
        {"packet_bytes": 400},
    ):
        changed = changed_spec(spec, changes)
        exact = (
            changed.packet_bytes * changed.clock_hz / changed.link_bytes_per_s
        )  # bytes / (bytes/s) * cycles/s
        assert exact <= changed.send_spacing_cycles < exact + 1
        kept = changed_spec(spec, {**changes, "send_spacing_cycles": 77})
        assert kept.send_spacing_cycles == 77
    assert changed_spec(spec, {"hop_cycles": 300}) == replace(spec, hop_cycles=300)


def test_spacing_follows_in_a_chip_file(tmp_path: Path) -> None:
    file = tmp_path / "fast.toml"
    file.write_text("[chip]\nclock_hz = 1200000000\n", encoding="utf-8")
    assert load_chip_spec(file) == replace(
        ChipSpec(), clock_hz=1_200_000_000, send_spacing_cycles=32
    )
    file.write_text("[chip]\nclock_hz = 1200000000\nsend_spacing_cycles = 40\n", encoding="utf-8")
    assert load_chip_spec(file).send_spacing_cycles == 40
    assert LPU.send_spacing_cycles == 24
