"""GPU specs: figures, sources, files of one's own, and one line for everything wrong."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.gpu import (
    DTYPE_BYTES,
    GPU_PRESETS,
    WorldLink,
    collective_seconds,
    gpu_time,
    load_gpu_spec,
    load_link,
)
from cluster.gpu import link as link_module
from cluster.gpu.spec import ASSUMED, CALIBRATED, PUBLISHED, GpuSpec, field_source

SOURCES = (PUBLISHED, CALIBRATED, ASSUMED)


def test_presets_carry_the_published_figures() -> None:
    assert list(GPU_PRESETS) == [
        "a100",
        "h100",
        "h200",
        "b200",
        "gb200",
        "b300",
        "gb300",
        "rubin",
        "rubin-cpx",
    ]
    assert GPU_PRESETS["h100"] == GpuSpec()
    assert GPU_PRESETS["a100"].hbm_bytes_per_s == 2.039e12
    assert [spec.hbm_bytes_per_s / 1e12 for spec in GPU_PRESETS.values()] == [
        2.039,
        3.35,
        4.8,
        7.7,
        8.0,
        7.75,
        8.0,
        22.0,
        2.0,
    ]
    assert GPU_PRESETS["h200"].hbm_bytes == 141_000_000_000
    assert GPU_PRESETS["b200"].flops("fp4") == 9e15
    assert GPU_PRESETS["gb200"].gpus_per_node == 72
    assert GPU_PRESETS["rubin"].flops("fp8") == 17.5e15
    assert (
        GPU_PRESETS["rubin-cpx"].scale_up_bytes_per_s == GPU_PRESETS["rubin-cpx"].pcie_bytes_per_s
    )


@pytest.mark.parametrize("preset", GPU_PRESETS)
def test_every_field_has_a_source(preset: str) -> None:
    for f in fields(GpuSpec):
        assert type(getattr(GPU_PRESETS[preset], f.name)).__name__ == f.type
        source, note = field_source(preset, f.name)
        assert source in SOURCES and note
    with pytest.raises(InputError, match="no field"):
        field_source(preset, "colour")


@pytest.mark.parametrize("preset", link_module.LINK_PRESETS)
def test_every_number_of_a_link_has_a_source(preset: str) -> None:
    for f in fields(WorldLink):
        source, note = link_module.field_source(preset, f.name)
        assert source in SOURCES and note
    with pytest.raises(InputError, match="no field"):
        link_module.field_source(preset, "colour")


def test_unknown_presets_have_no_sources() -> None:
    for source in (field_source, link_module.field_source):
        with pytest.raises(InputError, match="no preset"):
            source("voodoo2", "name")


def test_a_rate_that_a_gpu_lacks_names_those_it_has() -> None:
    with pytest.raises(InputError, match="H100 SXM has no published fp4 rate: use fp16"):
        GPU_PRESETS["h100"].flops("fp4")
    with pytest.raises(InputError, match="number type 'fp3'"):
        GPU_PRESETS["h100"].flops("fp3")
    assert all(GPU_PRESETS["b200"].flops(dtype) > 0 for dtype in DTYPE_BYTES)


def test_a_file_overrides_its_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[gpu]\nbase = "b200"\nname = "B200 fast"\nhbm_bytes_per_s = 9_000_000_000_000')
    assert load_gpu_spec(path) == replace(
        GPU_PRESETS["b200"], name="B200 fast", hbm_bytes_per_s=9e12
    )
    path.write_text("[gpu]\nhbm_bytes = 94e9")
    assert load_gpu_spec(str(path)) == replace(GPU_PRESETS["h100"], hbm_bytes=94_000_000_000)
    path.write_text('[link]\nbase = "400gbe"\nlatency_s = 0')
    assert load_link(path) == replace(link_module.LINK_PRESETS["400gbe"], latency_s=0.0)


WRONG = {
    "[gpu]\nhbm_bytez = 1": "gpu.hbm_bytez is no field; known: name, hbm_bytes",
    "[gpu]\nhbm_bytes_per_s = -1.0": "gpu.hbm_bytes_per_s is -1.0: it must be positive",
    "[gpu]\nhbm_bytes_per_s = nan": "must be positive and finite",
    "[gpu]\nhbm_bytes_per_s = inf": "must be positive and finite",
    "[gpu]\nnvlink_bytes_per_s = -1": "must be at least 0",
    "[gpu]\nhbm_bytes = 0": "must be positive",
    "[gpu]\nhbm_bytes = 1.5": "must be int, not float",
    "[gpu]\nhbm_bytes = inf": "must be int, not float",
    "[gpu]\nhbm_bytes = true": "must be int, not bool",
    "[gpu]\nwatts = '700'": "must be float, not str",
    f"[gpu]\nwatts = 1{'0' * 400}": "does not fit 64 bits",
    f"[gpu]\nwatts = 0x1{'0' * 9000}": "does not fit 64 bits",
    "[gpu]\nname = 5": "must be str, not int",
    "[gpu]\nname = ''": "give the GPU a name",
    "[gpu]\nachieved_hbm_ratio = 1.5": "a ratio is at most 1",
    "[gpu]\nfp16_flops = 0\nfp8_flops = 0": "above 0",
    "[gpu]\nbase = 'h800'": "gpu.base 'h800' is not one of a100",
    "[gpu]\nbase = 3": "gpu.base 3 is not one of",
    "[gpu]\nwatts = {a = 1}": "must be float, not dict",
    "gpu = 3": r"no table \[gpu\]",
    "": r"no table \[gpu\]",
    "[gpu]\n[chip]\n": "chip is unknown",
    "[gpu": "not valid TOML",
    "x = " + "[" * 5000: "not valid TOML",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40].replace("\n", " "))
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpu.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=WRONG[text]) as caught:
        load_gpu_spec(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[link]\nbytes_per_s = -1", "link.bytes_per_s is -1.0"),
        ("[link]\nlatency_s = -1e-6", "at least 0"),
        ("[link]\nachieved_ratio = 2", "at most 1"),
        ("[link]\nspeed = 2", "link.speed is no field"),
        ("[link]\nname = ''", "give the link a name"),
        ("[gpu]", "one table"),
    ],
)
def test_wrong_links_are_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "link.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        load_link(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "missing.toml", "h101"):
        with pytest.raises(InputError, match="no such preset"):
            load_gpu_spec(wrong)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not valid TOML"):
        load_gpu_spec(binary)


@pytest.mark.parametrize("preset", GPU_PRESETS)
def test_collectives_of_every_preset(preset: str) -> None:
    """A ring moves 2 (n - 1) / n of the tensor over each link, however long it is."""
    spec, nbytes = GPU_PRESETS[preset], 1 << 36
    gpus = spec.gpus_per_node
    ring = collective_seconds(spec, "all-reduce", gpus, nbytes)["ring"]
    share = 2 * (gpus - 1) / gpus
    ideal = share * nbytes / (spec.achieved_link_ratio * spec.scale_up_bytes_per_s)
    assert ring == pytest.approx(ideal, rel=0.01)
    time = gpu_time(preset, "all-reduce", gpus, nbytes)
    assert time.best_s <= time.p50_s <= time.p99_s
    assert time.gpu == spec.name


def test_collectives_refuse_what_they_do_not_know() -> None:
    with pytest.raises(InputError, match="no such preset"):
        gpu_time("h800", "all-reduce", 8, 320)
    with pytest.raises(InputError, match="--op gossip"):
        gpu_time("h100", "gossip", 8, 320)
    assert collective_seconds(GPU_PRESETS["h100"], "all-reduce", 1, 320) == {"ring": 0.0}


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_bandwidth_slips_through(value: float) -> None:
    if math.isfinite(value) and value > 0:
        assert GpuSpec(hbm_bytes_per_s=value).hbm_bytes_per_s == value
    else:
        with pytest.raises(InputError):
            GpuSpec(hbm_bytes_per_s=value)
