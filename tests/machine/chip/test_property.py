"""Random programs: the two executors agree, and nobody accepts what another one rejects.

``LPU_PROPERTY_PROGRAMS`` sets the number of programs (default 500).  A failing seed reproduces
with ``random_program(np.random.default_rng(seed), spec)`` after ``fill_words``.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from chip.checker import ERROR, check
from chip.engine import Chip, Rings, Status
from chip.faults import ProgramFault
from chip.isa import Op
from chip.linking import link
from chip.program import Program
from chip.reference import ReferenceChip
from chip.spec import PRESETS, ChipSpec
from tests.stands.programs_mutated import mutate
from tests.stands.programs_random import WORDS, fill_words, last_effect, random_program
from tests.stands.unit_bench import Bench
from tests.unit.chip.test_checker import BROKEN_MAP, GANGS, MAP, RULES, errors, program
from tests.unit.chip.test_reference_faults import CASES, Case

PROGRAMS = int(os.environ.get("LPU_PROPERTY_PROGRAMS", "500"))
CHUNK = 50
SPEC = ChipSpec()
CHIP = 5
Ran = tuple[int, tuple[int, int], tuple[int, int, int]]


class Pair:
    """A reference chip and an engine chip with the same contents; every link goes nowhere."""

    def __init__(self, spec: ChipSpec) -> None:
        self.spec = spec
        self.reference = ReferenceChip(spec, CHIP)
        self.engine = Chip(spec, CHIP)
        self.rings = Rings.allocate(16)
        self.engine.wire(list(range(16)), [-1] * 16)

    def fill(self, rng: np.random.Generator) -> None:
        words, bank = fill_words(rng), self.spec.words_per_bank
        for sram in (self.reference.sram, self.engine.sram):
            sram[:, :WORDS] = words[:, 0]
            sram[:, bank : bank + WORDS] = words[:, 1]
            sram[:, bank - 16 : bank] = 0  # in reach of a mutant

    def run_reference(self, p: Program, launch: int) -> Ran | ProgramFault:
        """(cycles, digest sums, lanes that conversions lost by kind), or the fault."""
        try:
            result = self.reference.run(p, launch)
        except ProgramFault as fault:
            return fault
        return result.cycles, result.digest_sums, result.saturated

    def run_engine(self, p: Program, launch: int) -> Ran | ProgramFault:
        """As the reference; the digest sums and counts are this launch's alone."""
        self.engine.digest_sums[:] = 0
        self.engine.saturated[:] = 0
        self.rings.clear()
        try:
            self.engine.begin(link(p, self.spec), launch)
            status = self.engine.run(self.rings)
        except ProgramFault as fault:
            return fault
        assert status == Status.DONE
        first, second = (int(s) for s in self.engine.digest_sums)
        fp16, int32, int8 = (int(n) for n in self.engine.saturated.sum(axis=0))
        return self.engine.retired_cycles, (first, second), (fp16, int32, int8)

    def assert_same_words(self, seed: int) -> None:
        for bank in (0, self.spec.words_per_bank):
            left = self.reference.sram[:, bank : bank + WORDS]
            right = self.engine.sram[:, bank : bank + WORDS]
            if not np.array_equal(left, right):
                slice_, word, lane = (int(x) for x in np.argwhere(left != right)[0])
                raise AssertionError(
                    f"seed {seed}: slice {slice_} word {bank + word} lane {lane}: reference "
                    f"{left[slice_, word, lane]}, engine {right[slice_, word, lane]}"
                )


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair(SPEC)


@pytest.mark.parametrize("first", range(0, PROGRAMS, CHUNK))
@pytest.mark.cases(1)
def test_random_programs(pair: Pair, first: int) -> None:
    """Legal programs run alike; a mutant is rejected by all or runs alike."""
    _check_seeds(pair, range(first, min(first + CHUNK, PROGRAMS)))


@pytest.mark.parametrize(
    "spec",
    [PRESETS["groq-3-lp30"], replace(SPEC, words_per_bank=2 * WORDS)],
    ids=["larger", "smaller"],
)
@pytest.mark.long
def test_random_programs_of_another_sram(spec: ChipSpec) -> None:
    """The same with banks of another size."""
    _check_seeds(Pair(spec), range(CHUNK))


def _check_seeds(pair: Pair, seeds: range) -> None:
    rejected: Counter[str] = Counter()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        pair.fill(rng)
        legal = random_program(rng, pair.spec)
        ran = pair.run_reference(legal, seed)
        assert ran == pair.run_engine(legal, seed), f"seed {seed}"
        assert not isinstance(ran, ProgramFault) and ran[0] == legal.cycles
        pair.assert_same_words(seed)
        mutant = replace(mutate(rng, legal, pair.spec), cycles=2000)
        fault = _check_mutant(pair, mutant, seed)
        if fault is not None:
            rejected[fault.code] += 1
    pair.fill(np.random.default_rng(seeds[0]))  # a mutant may have stopped half way
    for left, right in zip(pair.reference.sram, pair.engine.sram, strict=True):
        assert np.array_equal(left, right)
    assert len(seeds) < CHUNK or sum(rejected.values()) > CHUNK // 5, rejected


def test_a_launch_ends_at_its_last_effect(pair: Pair) -> None:
    """``Program.cycles`` only ever makes it longer."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        pair.fill(rng)
        legal = random_program(rng, SPEC)
        for stated, cycles in ((0, last_effect(legal, SPEC)), (2000, 2000)):
            for run in (pair.run_reference, pair.run_engine):
                ran = run(replace(legal, cycles=stated), seed)
                assert not isinstance(ran, ProgramFault) and ran[0] == cycles, run.__name__


def _check_mutant(pair: Pair, mutant: Program, seed: int) -> ProgramFault | None:
    found = [f for f in check(mutant, pair.spec, chip=CHIP) if f.severity == ERROR]
    reference = pair.run_reference(mutant, seed)
    engine = pair.run_engine(mutant, seed)
    what = f"seed {seed}: checker {[str(f) for f in found[:3]]}, reference {reference!r}, "
    what += f"engine {engine!r}"
    if not isinstance(reference, ProgramFault):
        assert not found and reference == engine, what
        pair.assert_same_words(seed)
        return None
    assert isinstance(engine, ProgramFault), what
    if reference.code == "offset":
        assert found or engine.code == "offset", what
    else:
        named = {(f.code, f.chip, f.cycle, f.queue) for f in found}
        assert (reference.code, CHIP, reference.cycle, reference.queue) in named, what
        assert all(f.instruction and f.other and f.mend for f in found), what
        with pytest.raises(ProgramFault):
            link(mutant, pair.spec)
    return reference


@pytest.mark.parametrize("name", RULES)
def test_rule_on_both_executors(pair: Pair, name: str) -> None:
    """The checker's minimal illegal programs are refused by both executors, with its code."""
    legal, code, illegal = RULES[name]
    maps = [MAP, BROKEN_MAP]
    pair.fill(np.random.default_rng(1))
    pair.reference.sram[:2, 0] = pair.engine.sram[:2, 0] = 0  # offsets of the GATHER cases
    good = program(legal, GANGS, maps)
    assert pair.run_reference(good, 0) == pair.run_engine(good, 0)
    pair.assert_same_words(0)
    bad = program(illegal, GANGS, maps)
    codes = {f.code for f in errors(bad)}
    for fault in (pair.run_reference(bad, 0), pair.run_engine(bad, 0)):
        assert isinstance(fault, ProgramFault), fault
        assert fault.code == code or fault.code in codes


@pytest.mark.parametrize(("code", "offence"), CASES)
def test_checker_names_what_the_reference_refuses(code: str, offence: Case) -> None:
    """The reference's own catalogue of faults: the checker names the same rule and place."""
    bench = Bench()
    bench.gangs, bench.maps = [(1, 2)], [np.zeros(320, int)]
    offence(bench)
    with pytest.raises(ProgramFault) as caught:
        bench.run()
    fault = caught.value
    received = any(row["op"] == Op.RECEIVE for row in bench.rows)
    if code == "offset" or (code == "missing" and received):
        return  # data, and the other chip's vectors, are not in the program
    named = {(f.code, f.cycle, f.queue) for f in errors(bench.program())}
    assert (code, fault.cycle, fault.queue) in named
