"""``lpu check`` and ``lpu run`` on 300 damaged files: exit code 2, one line, little memory."""

from __future__ import annotations

import random
import resource
import sys
from pathlib import Path

import pytest

from chip.spec import ChipSpec
from cluster import cli
from programs.artifact import save
from programs.decoder import compile_decoder, partition_model
from programs.models import ModelConfig, random_checkpoint

FOREIGN = (b"PK\3\4", b"\x89PNG\r\n", b"hello\n", b"", b"\x7fELF")


def _damaged(good: bytes, kind: int, rng: random.Random) -> bytes:
    """Truncated, bit-flipped, foreign, of a future version, or with an absurd header size."""
    data = bytearray(good)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    if kind == 1:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        return rng.choice(FOREIGN) + rng.randbytes(rng.randrange(2000))
    elif kind == 3:
        data[4:8] = rng.randrange(2, 2**31).to_bytes(4, "little")
    else:
        data[8:16] = rng.randrange(2**40, 2**63).to_bytes(8, "little")
    return bytes(data)


@pytest.mark.long
def test_damaged_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig(100, 1, 4, 2, 16, 64, 97, tied=True)
    good = tmp_path / "good.lpu"
    save(compile_decoder(partition_model(random_checkpoint(config, 0), 2), ChipSpec(), 64), good)
    whole = good.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = random.Random(1)
    bad = tmp_path / "bad.lpu"
    for number in range(300):
        bad.write_bytes(_damaged(whole, number % 5, rng))
        for verb in ("check", "run"):
            monkeypatch.setattr(sys, "argv", ["lpu", verb, str(bad)])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            lines = capsys.readouterr().err.strip().splitlines()
            assert ended.value.code == 2 and len(lines) == 1, (verb, number, lines[:3])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 512 * 1024, f"{grown} KiB"
