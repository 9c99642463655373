"""The digest in plain integers, number by number, beside the arrays that compute it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from chip.digest import KEY_A, KEY_B, finish, mix_effect, scatter_address, splitmix64

WORDS = 80  # of 32 bits, in a vector
GOLDEN = 0x9E3779B97F4A7C15
WRAP = 2**64


def mixed(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea, Flood, 2014)."""
    value = (value ^ value // 2**30) * 0xBF58476D1CE4E5B9 % WRAP
    value = (value ^ value // 2**27) * 0x94D049BB133111EB % WRAP
    return value ^ value // 2**31


def numbers(seed: int, count: int) -> list[int]:
    """The generator's first numbers."""
    return [mixed((seed + n * GOLDEN) % WRAP) for n in range(1, count + 1)]


def test_the_finaliser_is_the_published_one() -> None:
    """The first numbers of seed 1234567, as implementations of splitmix64 are tested with."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = np.array([(1234567 + n * GOLDEN) % WRAP for n in range(1, 6)], np.uint64)
    assert splitmix64(states).tolist() == published == numbers(1234567, 5)


def test_keys_are_the_upper_halves_of_a_seeds_numbers() -> None:
    """The seeds are the letters "lpu-clus" and "ter-dige"."""
    for key, letters in ((KEY_A, b"lpu-clus"), (KEY_B, b"ter-dige")):
        seed = int.from_bytes(letters, "big")
        assert key.tolist() == [number >> 32 for number in numbers(seed, WORDS)]


def keyed(vector: bytes, key: list[int]) -> int:
    words = [int.from_bytes(vector[4 * i : 4 * i + 4], "little") for i in range(WORDS)]
    sums = [(word + part) % 2**32 for word, part in zip(words, key, strict=True)]
    return sum(a * b for a, b in zip(sums[:40], sums[40:], strict=True)) % WRAP


@pytest.mark.parametrize("seed", range(3))
def test_effects_are_mixed_as_written(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (5, 320), np.uint8)
    chip, launch, op = (int(n) for n in rng.integers(0, 2**30, 3))
    cycles, queues, addresses = rng.integers(0, 2**40, (3, 5))
    expected = [0, 0]
    for row, *place in zip(rows, cycles, queues, addresses, strict=True):
        cycle, queue, address = (int(n) for n in place)
        start = mixed((mixed(chip + 1) + launch) % WRAP)
        meta = mixed((start + cycle) % WRAP)
        meta = mixed((meta + (op << 16 | queue)) % WRAP)
        meta = mixed((meta + address) % WRAP)
        vector = row.tobytes()
        expected[0] += mixed((keyed(vector, KEY_A.tolist()) + meta) % WRAP)
        expected[1] += mixed((keyed(vector, KEY_B.tolist()) + meta * GOLDEN) % WRAP)
    found = mix_effect(rows, chip, launch, cycles, op, queues, addresses)
    assert found.tolist() == [total % WRAP for total in expected]
    one = mix_effect(rows[:1], chip, launch, int(cycles[0]), op, int(queues[0]), int(addresses[0]))
    rest = mix_effect(rows[1:], chip, launch, cycles[1:], op, queues[1:], addresses[1:])
    assert (one + rest).tolist() == found.tolist()


def test_addresses_of_a_scatter_are_one_number() -> None:
    addresses = np.arange(20, dtype=np.int64) * 7 % 11
    number = 0
    for address in addresses.tolist():
        number = (number * 1_000_003 + address + 1) % WRAP
    assert scatter_address(addresses) == number
    assert scatter_address(addresses[::-1]) != number


def test_the_end_is_a_sha256_of_file_sums_and_cycles() -> None:
    sums = np.array([[1, 2**64 - 1], [3, 4]], np.uint64)
    data = b"hash" + b"".join(n.to_bytes(8, "little") for n in (1, 2**64 - 1, 3, 4, 500, 2**40))
    assert finish(b"hash", sums, [500, 2**40]) == hashlib.sha256(data).hexdigest()
