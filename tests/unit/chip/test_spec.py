"""Chip specs: presets, where their numbers come from, and what no chip can be."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from chip.isa import MAX_WORDS_PER_BANK, Op, slice_position
from chip.program import Program, new_blocks
from chip.reference import ReferenceChip
from chip.reference.chip import run_together
from chip.spec import (
    ASSUMED,
    CALIBRATED,
    PRESETS,
    PUBLISHED,
    ChipSpec,
    SpecError,
    field_source,
    load_chip_spec,
)
from tests.stands.unit_bench import vector

DEFAULT, LP30 = PRESETS["groq-lpu-1"], PRESETS["groq-3-lp30"]
FIELDS = [f.name for f in fields(ChipSpec)]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_known_by_name_and_every_field_has_a_source(preset: str) -> None:
    assert load_chip_spec(preset) is PRESETS[preset] and PRESETS[preset].name == preset
    for name in FIELDS:
        source, note = field_source(preset, name)
        assert source in (PUBLISHED, CALIBRATED, ASSUMED) and 0 < len(note) <= 100, name


@pytest.mark.parametrize("name", FIELDS)
def test_lp30_never_borrows_the_source_of_the_default_chip(name: str) -> None:
    source, note = field_source("groq-3-lp30", name)
    if getattr(LP30, name) == getattr(DEFAULT, name):
        assert source in (PUBLISHED, ASSUMED)
    else:
        assert note != "not public; as groq-lpu-1"
    assert source == ASSUMED or note != field_source("groq-lpu-1", name)[1]


def test_lp30_shows_what_is_published() -> None:
    """500 MB, 320-byte vectors, 96 lanes x 112 Gb/s, and 1.23 PF at the derived clock."""
    assert round(LP30.sram_bytes / 1e6, 1) == 500.0
    assert LP30.sram_bytes == 88 * 2 * 8_878 * 320 and LP30.words_per_slice == 17_756
    assert LP30.links * LP30.link_bytes_per_s * 8 == 96 * 112_000_000_000
    assert round(2 * 4 * 320 * 320 * LP30.clock_hz / 1e15, 2) == 1.23
    assert LP30.send_spacing_cycles - 1 < LP30.cycles_per_vector <= LP30.send_spacing_cycles


def test_lp30_moves_a_word_from_sram_to_sram_in_350_ns() -> None:
    """From the read in the slice beside one chip's edge to readable in that of the other's."""
    first, last = 87, 43  # MEM43 east of one chip, MEM43 west of the other
    send = LP30.read_cycles + 45 - slice_position(first)
    arrival = send + LP30.send_to_receive_cycles
    write = arrival + LP30.receive_cycles + slice_position(last) + 1
    there, here = new_blocks(2), new_blocks(2)
    for row, columns in zip(
        [*there, *here],
        [
            {"queue": first, "op": Op.READ, "a": 17_000, "out": 0},
            {"cycle": send, "queue": 136, "op": Op.SEND, "s0": 0},
            {"cycle": arrival, "queue": 128, "op": Op.RECEIVE, "out": 0},
            {"cycle": write, "queue": last, "op": Op.WRITE, "a": 17_001, "s0": 0},
        ],
        strict=True,
    ):
        for name, value in columns.items():
            row[name] = value
    chips = [ReferenceChip(LP30, 0), ReferenceChip(LP30, 1)]
    chips[0].sram[first, 17_000] = vector(3)
    results = run_together(chips, [Program(there), Program(here)], [(0, 8, 1, 0)])
    assert (chips[1].sram[last, 17_001] == vector(3)).all()
    assert results[1].cycles * 1_000_000_000 == 350 * LP30.clock_hz


def test_what_cannot_be(tmp_path: Path) -> None:
    assert replace(DEFAULT, words_per_bank=MAX_WORDS_PER_BANK).words_per_slice == 1 << 15
    with pytest.raises(SpecError, match="words_per_bank is 16385: a word address of 15 bits"):
        replace(DEFAULT, words_per_bank=MAX_WORDS_PER_BANK + 1)
    with pytest.raises(SpecError, match="words_per_bank is 0: it must be positive"):
        replace(DEFAULT, words_per_bank=0)
    with pytest.raises(SpecError, match=r"'lpu-9' is no preset; known: groq-lpu-1, groq-3-lp30"):
        field_source("lpu-9", "lanes")
    with pytest.raises(SpecError, match=r"chip\.lane is no field"):
        field_source("groq-lpu-1", "lane")
    path = tmp_path / "chip.toml"
    path.write_text("[chip]\nlanes = [3]\n")
    with pytest.raises(SpecError, match=r"chip\.lanes must be int, not list"):
        load_chip_spec(path)
    path.write_text("[chip]\nreserved_slices_west = 3\n")
    with pytest.raises(SpecError, match=r"chip\.reserved_slices_west must be tuple, not int"):
        load_chip_spec(path)
    path.write_text("[chip]\nhop_cycles = 650.0\n")
    with pytest.raises(SpecError, match=r"chip\.hop_cycles must be int, not float"):
        load_chip_spec(path)
    path.write_text("[chip]\npcie_latency_s = 2\nreserved_slices_east = [3, 5]\n")
    assert load_chip_spec(path) == replace(DEFAULT, pcie_latency_s=2.0, reserved_slices_east=(3, 5))
    path.write_text('[chip]\nbase = "groq-3-lp30"\nname = "half"\nwords_per_bank = 4439\n')
    half = load_chip_spec(path)
    assert half == replace(LP30, name="half", words_per_bank=4439)
    assert 2 * half.sram_bytes == LP30.sram_bytes
