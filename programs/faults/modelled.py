"""Faults of the modelled machine while it runs: drawn, counted, paid for in cycles, survived.

A launch that fails is *replayed*: what it wrote is lost (the emulator overwrites it with a pattern,
so that nothing can lean on it), memory is put back as it was before the launch, and the launch
runs again.  Numbers and digest are those of the launches that succeeded, hence those of a machine
without faults; what the faults cost is kept apart.

Assumed, as no source says: a failed launch is known as failed when it ends (a dead node at its last
cycle, drift at the cycle it leaves its budget), a replay needs its inputs again over PCIe and one
synchronised start, a reloaded word one PCIe transfer, a spare node its whole memory image over
PCIe of each chip and every launch since the first, because the dead node held the state.  Words of
the memory images are the ones that upsets are drawn over.

Everything follows from (plan, launch, attempt), so every process of a run knows it without a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from chip.ecc import CODE_BITS, CORRECTED, DATA_BITS, DETECTED, SUPERLANES, decode, encode, flip
from chip.engine import Chip
from chip.errors import ErrorKind, LpuError
from chip.isa import C2C_QUEUE, LANES, LINKS, Op
from interconnect.clocks import (
    HAC_PERIOD_CYCLES,
    DriftError,
    draw_drift,
    simulate_run,
    spanning_tree,
    start_cost_epochs,
)
from interconnect.fec import (
    LINK_ERRORS,
    SRAM_ERRORS,
    SRAM_PLACES,
    Ints,
    draw_errors,
    random_stream,
)
from interconnect.wiring import NODE_SIZES
from programs.artifact import Artifact, Bindings
from programs.faults.plan import DeadNode, FaultPlan, FaultPlanError

#: What is counted, over all attempts; ``cost_cycles``: beside the cycles of a machine without
#: faults.
COUNTS = (
    "packets",
    "fec_corrected",
    "uncorrectable",
    "replays",
    "sram_corrected",
    "sram_detected",
    "drift_caught",
    "deskew_interval_cycles",
    "spare_used",
    "cost_cycles",
)
#: A launch that fails so often will not succeed.
MOST_ATTEMPTS = 100
#: Upset words of a chip and launch that are really turned over and decoded; the rest is counted.
REAL_UPSETS = 256
POISON = 0xA5

Rows = NDArray[np.uint8]
Counts = dict[str, int]


class UnrecoverableError(LpuError):
    """Faults that replaying and spares do not survive."""

    kind = ErrorKind.PROBLEM


@dataclass(frozen=True)
class FaultSetting:
    """A plan and what every process must know of all chips: words of their memory images."""

    plan: FaultPlan
    image_words: tuple[int, ...]

    @classmethod
    def of(cls, plan: FaultPlan, artifact: Artifact, relinks: bool = False) -> FaultSetting:
        """The setting of a run of the whole ``artifact``; FaultPlanError if they do not fit.

        relinks: nodes that die are replaced by others, whose programs are compiled then.
        """
        words = tuple(sum(len(rows) for _, _, rows in image) for image in artifact.memory)
        nodes = -(-artifact.chips // max(NODE_SIZES))
        for dead in plan.dead_nodes if not relinks else ():
            if dead.node >= nodes:
                raise FaultPlanError(f"dead_node {dead.node}: the run has nodes 0..{nodes - 1}")
            if nodes > 1:
                raise FaultPlanError(
                    f"dead_node {dead.node}: a run of {nodes} nodes goes on without one only when "
                    "[spares] nodes is 1 or more and it is not from an --artifact"
                )
        for upset in plan.upsets:
            if upset.chip >= artifact.chips or not words[upset.chip]:
                raise FaultPlanError(
                    f"upset of chip {upset.chip}: the run has chips 0..{artifact.chips - 1}, of "
                    f"which {np.count_nonzero(words)} hold words"
                )
        for cable in plan.cables:
            if cable.cable >= len(artifact.cables):
                last = len(artifact.cables) - 1
                has = f"cables 0..{last}" if last >= 0 else "no cables"
                raise FaultPlanError(f"cable {cable.cable}: the nodes in use have {has}")
        return cls(plan, words)


def packets_by_ring(artifact: Artifact, entry: str) -> Ints:
    """Vectors that a launch sends on every directed link, int64 [2 * cables], ring by ring."""
    sent = []
    for program in artifact.programs[entry]:
        blocks = program.blocks[program.blocks["op"] == Op.SEND]
        wide = np.array([len(gang) for gang in program.gangs] + [1])[blocks["gang"]]
        links = blocks["queue"].astype(np.int64) - C2C_QUEUE
        times = blocks["n1"].astype(np.int64) * blocks["n2"] * wide
        sent.append(np.bincount(links, times, LINKS).astype(np.int64))
    packets = np.zeros(2 * len(artifact.cables), np.int64)
    for number, (a, link_a, b, link_b) in enumerate(artifact.cables):
        packets[2 * number] = sent[artifact.program_of_chip[a]][link_a]
        packets[2 * number + 1] = sent[artifact.program_of_chip[b]][link_b]
    return packets


@dataclass
class _Verdict:
    """What happened in one attempt at a launch; lost_cycles: until the failure was known."""

    bad_cables: Ints
    doubles: int = 0
    drifted: bool = False
    dead: bool = False
    lost_cycles: int = 0

    @property
    def failed(self) -> bool:
        return bool(len(self.bad_cables)) or self.doubles > 0 or self.drifted or self.dead


@dataclass(frozen=True)
class LostNode:
    """A node that cannot go on: ``node`` of the machine, in launch ``launch``.

    counts: everything until a spare has taken its place, with the launches that were lost with it.
    death: the one of the plan; None when a cable of the node kept failing.
    """

    node: int
    launch: int
    counts: Counts
    death: DeadNode | None


class ModelledFaults:
    """The faults of one run; knows plan and artifact, keeps nothing but what it is handed."""

    def __init__(self, setting: FaultSetting, artifact: Artifact) -> None:
        self._plan, self._words = setting.plan, np.array(setting.image_words, np.int64)
        self._artifact = artifact
        self._packets = cache(lambda entry: packets_by_ring(artifact, entry))
        height = spanning_tree(artifact.cables, artifact.chips).height if artifact.cables else 0
        wire = artifact.spec.link_wire_cycles
        self._start_cycles = HAC_PERIOD_CYCLES * start_cost_epochs(wire, HAC_PERIOD_CYCLES, height)
        inputs = Bindings.of(artifact).inputs.values()
        self._inputs_cycles = self._pcie_cycles(
            LANES * sum(n for places in inputs for _, _, n in places)
        )
        self._seed = self._plan.seed + self._plan.redraws
        self._drift = draw_drift(artifact.chips, self._plan.ppm, self._plan.seed)

    @staticmethod
    def new_counts() -> Counts:
        """Nothing has happened yet."""
        return dict.fromkeys(COUNTS, 0)

    def launch(
        self,
        chips: list[Chip],
        number: int,
        entry: str,
        counts: Counts,
        once: Callable[[], dict[int, int]],
        touched: Callable[[Chip], Ints],
        from_first: Callable[[], int],
        by_ring: Ints | None = None,
    ) -> dict[int, int]:
        """Run a launch until it succeeds; the cycle at which each chip retired.

        counts: is added to.  once: runs the launch.  touched: rows a launch may write.
        from_first: new chips, and every launch before this one again; how many those were cycles.
        by_ring: int64 [2 * cables, 2] is added to, packets corrected and not.
        Raises UnrecoverableError when it never succeeds or no spare is left.
        """
        for verdict, broken in self._failures(chips, number, entry, counts, by_ring):
            self._fail(chips, once, touched)
            if verdict.dead or broken:
                self._bring_spare(broken, counts)
                counts["cost_cycles"] += from_first() + number * self._inputs_cycles
        return once()

    def lost_node(self, entries: Sequence[str], nodes: Sequence[int]) -> LostNode | None:
        """The first node of several that a run of these launches loses, before anything runs.

        nodes: of the machine, which is in use as node 0, 1, ...; ``dead_nodes`` name the machine's.
        A cable between two nodes is taken as the fault of the one in the lower place (assumed).
        Raises UnrecoverableError for a launch that never succeeds.
        """
        counts, reached = self.new_counts(), 0
        for number, entry in enumerate(entries):
            for verdict, broken in self._failures([], number, entry, counts, None):
                if not (verdict.dead or broken):
                    continue
                death = min(self._deaths(number), key=lambda d: d.cycle) if verdict.dead else None
                if death is None:
                    a, _, b, _ = self._artifact.cables[broken[0]]
                    node = nodes[min(a, b) // max(NODE_SIZES)]
                else:
                    node = death.node
                self._pay_spare(counts)
                counts["cost_cycles"] += reached + number * self._inputs_cycles
                return LostNode(node, number, counts, death)
            reached += self._artifact.predicted_cycles[entry]
        return None

    def _failures(
        self, chips: list[Chip], number: int, entry: str, counts: Counts, by_ring: Ints | None
    ) -> Iterator[tuple[_Verdict, list[int]]]:
        """Every attempt at a launch that fails, and the cables that are broken by then."""
        in_a_row: dict[int, int] = {}
        for attempt in range(MOST_ATTEMPTS):
            verdict = self._judge(chips, number, attempt, entry, counts, by_ring)
            if not verdict.failed:
                return
            counts["replays"] += 1
            counts["cost_cycles"] += (
                verdict.lost_cycles
                + self._start_cycles
                + self._inputs_cycles
                + verdict.doubles * self._pcie_cycles(LANES)
            )
            again = {int(cable) for cable in verdict.bad_cables}
            in_a_row = {cable: in_a_row.get(cable, 0) + 1 for cable in again}
            broken = [c for c, times in in_a_row.items() if times >= self._plan.spare_after]
            yield verdict, sorted(broken)
            if verdict.dead or broken:
                in_a_row = {}
        raise UnrecoverableError(
            f"launch {number} ({entry}) failed {MOST_ATTEMPTS} times in a row: the modelled faults "
            "are too many; lower their rates"
        )

    def _deaths(self, number: int) -> list[DeadNode]:
        return [dead for dead in self._plan.dead_nodes if dead.launch == number]

    def _judge(
        self,
        chips: list[Chip],
        number: int,
        attempt: int,
        entry: str,
        counts: Counts,
        by_ring: Ints | None,
    ) -> _Verdict:
        """Draw and count what happens in one attempt."""
        plan, length = self._plan, self._artifact.predicted_cycles[entry]
        packets = self._packets(entry)
        random = random_stream(self._seed, LINK_ERRORS, number, attempt)
        bits = 8 * self._artifact.spec.packet_bytes
        one, more = draw_errors(packets, self._rates(number, counts), bits, random)
        counts["packets"] += int(packets.sum())
        counts["fec_corrected"] += int(one.sum())
        counts["uncorrectable"] += int(more.sum())
        if by_ring is not None:
            by_ring += np.stack((one, more), axis=1)
        verdict = _Verdict(np.unique(np.flatnonzero(more) // 2))
        verdict.doubles = self._upset(chips, number, attempt, counts)
        if len(verdict.bad_cables) or verdict.doubles:
            verdict.lost_cycles = length
        if attempt == 0 and (deaths := self._deaths(number)):
            verdict.dead = True
            first = min(dead.cycle for dead in deaths)
            verdict.lost_cycles = max(verdict.lost_cycles, min(first, length))
        if plan.ppm and self._artifact.cables:
            self._keep_time(length, counts, verdict)
        return verdict

    def _rates(self, number: int, counts: Counts) -> NDArray[np.float64]:
        """Bit error rate of every directed link; a node that was replaced has good cables."""
        rates = np.full(2 * len(self._artifact.cables), self._plan.link_bit_error_rate)
        for fault in self._plan.cables if not counts["spare_used"] else ():
            if number >= fault.from_launch:
                rates[2 * fault.cable : 2 * fault.cable + 2] = fault.bit_error_rate
        return rates

    def _upset(self, chips: list[Chip], number: int, attempt: int, counts: Counts) -> int:
        """Upsets of stored words: counted, and in our own chips real; the double ones."""
        plan = self._plan
        random = random_stream(self._seed, SRAM_ERRORS, number, attempt)
        singles, doubles = draw_errors(
            self._words * SUPERLANES, plan.sram_bit_error_rate, CODE_BITS, random
        )
        for upset in plan.upsets if attempt == 0 else ():
            if upset.launch == number:
                (singles if upset.bits == 1 else doubles)[upset.chip] += 1
        for chip in chips:
            n = int(singles[chip.chip_id]), int(doubles[chip.chip_id])
            if any(n):
                salt = attempt << 20 | chip.chip_id
                self._turn_over(chip, n, random_stream(self._seed, SRAM_PLACES, number, salt))
        counts["sram_corrected"] += int(singles.sum())
        counts["sram_detected"] += int(doubles.sum())
        return int(doubles.sum())

    def _turn_over(self, chip: Chip, numbers: tuple[int, int], random: np.random.Generator) -> None:
        """Turn bits of stored words over, let SECDED look at them, and mend what it found."""
        image = self._artifact.memory[chip.chip_id]
        lengths = np.array([len(rows) for _, _, rows in image])
        ends = np.cumsum(lengths)
        for bits, count in enumerate(numbers, start=1):
            for place in random.integers(ends[-1], size=min(count, REAL_UPSETS)).tolist():
                part = int(np.searchsorted(ends, place, side="right"))
                slice_, first, rows = image[part]
                word = chip.sram[slice_, first + place - (int(ends[part]) - len(rows))][None]
                good, checks = word.copy(), encode(word)
                superlane = int(random.integers(SUPERLANES))
                wrong = random.choice(DATA_BITS, bits, replace=False).tolist()
                flip(word, 0, superlane, tuple(wrong))
                fixed, state = decode(word, checks)
                if state[0, superlane] != (CORRECTED if bits == 1 else DETECTED) or (
                    bits == 1 and not np.array_equal(fixed, good)
                ):
                    raise UnrecoverableError(
                        f"chip {chip.chip_id}: SECDED did not see {bits} wrong bits"
                    )
                word[:] = fixed if bits == 1 else good  # good: loaded again

    def _keep_time(self, length: int, counts: Counts, verdict: _Verdict) -> None:
        """Let clocks drift over the launch; too much fails it and makes deskews more frequent."""
        plan = self._plan
        interval = counts["deskew_interval_cycles"] or plan.deskew_interval_cycles
        try:
            run = simulate_run(
                self._artifact.cables, self._drift, length, interval, plan.budget_cycles
            )
        except DriftError as error:
            interval = min(interval or length, length) // 2
            if interval < HAC_PERIOD_CYCLES:
                raise UnrecoverableError(
                    f"{str(error).partition(':')[0]}, and a deskew takes {HAC_PERIOD_CYCLES} "
                    "cycles, so more often is no use: lower ppm or raise budget_cycles"
                ) from None
            counts["deskew_interval_cycles"] = interval
            counts["drift_caught"] += 1
            verdict.drifted = True
            verdict.lost_cycles = max(verdict.lost_cycles, error.cycle)
        else:
            counts["cost_cycles"] += run.deskew_cycles

    def _fail(
        self,
        chips: list[Chip],
        once: Callable[[], dict[int, int]],
        touched: Callable[[Chip], Ints],
    ) -> None:
        """Run a launch that fails, and undo it."""
        rows = [touched(chip) for chip in chips]
        memory = [chip.sram.reshape(-1, LANES) for chip in chips]
        words = [chip[row] for chip, row in zip(memory, rows, strict=True)]
        sums = [chip.digest_sums.copy() for chip in chips]
        saturated = [chip.saturated.copy() for chip in chips]
        once()
        for chip, counts in zip(chips, saturated, strict=True):
            chip.saturated = counts
        for chip, flat, row, word, sum_ in zip(chips, memory, rows, words, sums, strict=True):
            flat[row] = POISON
            flat[row] = word
            chip.digest_sums[:] = sum_

    def _bring_spare(self, broken: list[int], counts: Counts) -> None:
        """A spare node takes the place of the one that failed: pay for its memory and its start.

        Nodes are wired alike, so a program of one node runs on the spare as it is.
        """
        if self._artifact.chips > max(NODE_SIZES):
            raise UnrecoverableError(
                f"cable {broken[0]} keeps failing in a run of several nodes: lower its "
                "bit_error_rate, or name it under [[links.cable]] with [spares] nodes = 1 or more, "
                "not from an --artifact"
            )
        if counts["spare_used"] == self._plan.spare_nodes:
            raise UnrecoverableError(
                f"node 0 is lost and no spare is left of {self._plan.spare_nodes}; give more "
                "[spares] nodes"
            )
        self._pay_spare(counts)

    def _pay_spare(self, counts: Counts) -> None:
        counts["spare_used"] += 1
        image = LANES * int(self._words.max())
        counts["cost_cycles"] += self._pcie_cycles(image) + self._start_cycles

    def _pcie_cycles(self, nbytes: int) -> int:
        spec = self._artifact.spec
        return math.ceil((spec.pcie_latency_s + nbytes / spec.pcie_bytes_per_s) * spec.clock_hz)


def fault_summary(counts: Counts) -> str:
    """What befell the modelled machine, in words."""
    return (
        f"{counts['fec_corrected']:,} packets corrected, {counts['uncorrectable']:,} not; SRAM "
        f"{counts['sram_corrected']:,} corrected, {counts['sram_detected']:,} detected; "
        f"{counts['replays']:,} replays, {counts['spare_used']} spares; "
        f"cost {counts['cost_cycles']:,} cycles"
    )
