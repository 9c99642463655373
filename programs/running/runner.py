"""Runs a compiled decoder's chips in lockstep and generates tokens with them.

``Runner`` steps any subset of an artifact's chips in this process; what it needs from whoever runs
the other chips (waiting for them, a barrier, their logits) it asks of ``Peers``.  Without peers it
runs all chips here, in one thread, so that a compiler engineer can step through it in a debugger:

    result = generate(artifact, prompt=[1, 2, 3], max_new_tokens=8)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip, Rings, ring_vectors
from chip.faults import ProgramFault
from chip.linking import LinkedProgram, link, touched_words
from chip.spec import ChipSpec
from interconnect.wiring import wire
from programs.artifact import Artifact, Bindings
from programs.decoder import Host, ends_prompt, pick_token
from programs.faults import FaultSetting, ModelledFaults, UnrecoverableError
from programs.running.feeding import Feeding, text_feedings
from programs.running.saturation import Saturations, saturations_of
from programs.running.stepping import (
    BARRIER,
    LOOKAHEAD,
    Alone,
    Peers,
    step_lookahead,
    step_windows,
    window_cycles,
)
from programs.sram import image_bytes, image_digest

#: Share of SRAM that a memory image fills for the chip to count as dense.
DENSE_RATIO = 0.25


@dataclass(frozen=True)
class Generation:
    """What to generate: token ids of the prompt, how many new ones, how to choose them.

    temperature 0 is greedy; otherwise tokens are drawn with a counter-based stream keyed by
    (seed, step).  stop: token ids that end the generation early.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[int, ...] = ()
    sync: str = LOOKAHEAD


@dataclass
class RunResult:
    """What a runner hands back about its own chips.

    entries: the entry point of each launch; decode: the launches that gave a token;
    retired[chip]: the cycle at which each launch ended; sums[chip]: digest sums over all launches.
    io_seconds: of host transfers; decode_io_seconds: those of the launches
    that took a token through all stages and gave one.
    faults: what ``programs.faults.modelled`` counted, empty without a plan.  saturations: of its
    chips.  begun: positions that the chips had been fed before the first launch.
    """

    tokens: list[int]
    entries: list[str]
    decode: list[int]
    retired: dict[int, list[int]]
    sums: dict[int, tuple[int, int]]
    io_seconds: float
    faults: dict[str, int] = field(default_factory=dict)
    saturations: Saturations = field(default_factory=dict)
    decode_io_seconds: float = 0.0
    begun: int = 0

    def cut(self, position: int) -> RunResult:
        """The same chips to go on with another prompt that begins alike up to ``position``.

        They may have gone further: a launch writes its own position over, and sees no later one.
        Launches, tokens and host seconds begin anew.
        """
        return RunResult([], [], [], {chip: [] for chip in self.retired}, {}, 0.0, begun=position)


class Runner:
    """The chips ``numbers`` of an artifact, loaded and wired, with their host side."""

    def __init__(
        self,
        artifact: Artifact,
        numbers: Sequence[int],
        rings: Rings,
        peers: Peers,
        host: Host | None = None,
        threads: int = 1,
        faults: FaultSetting | None = None,
    ) -> None:
        """``host``: needed to generate, not to launch an entry point as it is.

        threads: how many step the chips in lookahead mode; the result is the same.  faults: what
        befalls the modelled machine.
        """
        self._faults = None if faults is None else ModelledFaults(faults, artifact)
        self._launched = 0
        self.artifact = artifact
        self._host = host
        self._threads = threads
        self.rings = rings
        self.peers = peers
        self._linked: dict[tuple[str, int], LinkedProgram] = {}
        #: A program that somebody linked already, by entry point and number; None: link it here.
        self.stored: Callable[[str, int, ChipSpec], LinkedProgram | None] = lambda *_: None
        self._touched: dict[int, NDArray[np.int64]] = {}
        self._touched_programs: dict[int, int] = {}
        self.chips = [self._new_chip(number) for number in numbers]
        own = {number: artifact.memory[number] for number in numbers}
        self.images = {number: image_digest(image) for number, image in own.items()}
        self.image_bytes = {number: image_bytes(image) for number, image in own.items()}

    @classmethod
    def alone(
        cls,
        artifact: Artifact,
        host: Host | None = None,
        *,
        on_token: Callable[[int], None] | None = None,
        threads: int = 1,
        faults: FaultSetting | None = None,
    ) -> Runner:
        """All chips of an artifact in this process.

        on_token: called with every new token.  The others are those of ``Runner``.
        """
        rings = Rings.allocate(max(1, 2 * len(artifact.cables)), ring_vectors(artifact.spec))
        peers = Alone(on_token)
        return cls(artifact, range(artifact.chips), rings, peers, host, threads, faults)

    def _new_chip(self, number: int) -> Chip:
        """A wired chip with its memory image."""
        image, spec = self.artifact.memory[number], self.artifact.spec
        chip = Chip(spec, number, dense=image_bytes(image) > DENSE_RATIO * spec.sram_bytes)
        wire(chip, self.artifact.cables)
        for place, address, rows in image:
            chip.write_words(place, address, rows)
        return chip

    def reload(self, rings: Rings, peers: Peers) -> None:
        """New chips and a host as before the first launch, in other rings among other peers."""
        self.rings, self.peers = rings, peers
        self._launched = 0
        self._new_chips()

    def rejoin(self, rings: Rings, peers: Peers) -> None:
        """The same chips, between two launches, in other rings among other peers."""
        self.rings, self.peers = rings, peers
        self._launched = 0

    def _new_chips(self) -> None:
        """Chips and a host as before the first launch."""
        if self._host is not None:
            self._host.begin()
        numbers = [chip.chip_id for chip in self.chips]
        self.chips.clear()
        self.chips += [self._new_chip(number) for number in numbers]

    def touched(self, chip: Chip) -> NDArray[np.int64]:
        """Rows of SRAM that may differ from the chip's image: what programs and host wrote."""
        number = self.artifact.program_of_chip[chip.chip_id]
        keys = [key for key in self._linked if key[1] == number]
        if len(keys) != self._touched_programs.get(number):
            words = self.artifact.spec.words_per_slice
            parts = [touched_words(self._linked[key]) for key in keys]
            for places in Bindings.of(self.artifact).inputs.values():
                parts += [slice_ * words + first + np.arange(n) for slice_, first, n in places]
            rows = np.concatenate([np.zeros(0, np.int64), *parts])
            self._touched[number] = np.unique(rows.astype(np.int64))
            self._touched_programs[number] = len(keys)
        return self._touched[number]

    def linked(self, entry: str, chip: int) -> LinkedProgram:
        """The executable form of a chip's program, made once for chips that share it."""
        key = (entry, self.artifact.program_of_chip[chip])
        if key not in self._linked:
            spec = self.artifact.spec
            try:
                stored = self.stored(*key, spec)
                self._linked[key] = stored or link(self.artifact.program(entry, chip), spec)
            except ProgramFault as fault:  # linking knows no chip
                raise ProgramFault(
                    fault.code, fault.cycle, fault.queue, fault.message, chip=chip
                ) from None
        return self._linked[key]

    @property
    def host(self) -> Host:
        """The host side; a runner made without one cannot generate."""
        if self._host is None:
            raise ValueError("this runner was made without a host side")
        return self._host

    def launch(
        self,
        entry: str,
        number: int,
        sync: str,
        counts: dict[str, int] | None = None,
        from_first: Callable[[], int] | None = None,
        resting: Sequence[int] = (),
        entry_of: Callable[[int], str] | None = None,
    ) -> dict[int, int]:
        """Run one launch of all own chips; the cycle at which each retired.

        counts: of faults, is added to.  from_first: see ``ModelledFaults``; new chips by default.
        resting: chips that work on nothing of a text, so what they saturate is not counted.
        entry_of: a chip's entry point where not all have ``entry``, without faults only (ValueError
        otherwise); all such entry points exchange the same vectors.
        """
        if self._faults is None:
            return self._launch(entry, number, sync, resting, entry_of)
        if entry_of is not None:
            raise ValueError("chips with an entry point each are launched without faults only")

        def again() -> int:
            charged = 0.0 if self._host is None else self._host.virtual_io_seconds
            self._new_chips()
            if self._host is not None:
                self._host.virtual_io_seconds = charged
            return 0

        for chip in self.chips:
            self.linked(entry, chip.chip_id)
        return self._faults.launch(
            self.chips,
            number,
            entry,
            {} if counts is None else counts,
            lambda: self._launch(entry, number, sync, resting),
            self.touched,
            from_first or again,
        )

    def _launch(
        self,
        entry: str,
        number: int,
        sync: str,
        resting: Sequence[int] = (),
        entry_of: Callable[[int], str] | None = None,
    ) -> dict[int, int]:
        for chip in self.chips:
            own = entry if entry_of is None else entry_of(chip.chip_id)
            chip.begin(self.linked(own, chip.chip_id), number)
        before = {c.chip_id: c.saturated.copy() for c in self.chips if c.chip_id in resting}
        if sync == BARRIER:
            # Marks ascend although a launch that failed runs again under its number.
            window = window_cycles(self.artifact.spec)
            step_windows(self.chips, self.rings, self.peers, window, self._launched)
        else:
            step_lookahead(self.chips, self.rings, self.peers, self._threads)
        self._launched += 1
        for chip in self.chips:
            if chip.chip_id in before:
                chip.saturated = before[chip.chip_id]
        return {chip.chip_id: chip.retired_cycles for chip in self.chips}

    def prepare(self, feeding: Feeding, tokens: Sequence[int] | Mapping[int, int]) -> list[int]:
        """Write the inputs of a launch; the chips that work on nothing of the text.

        tokens: by position.
        """
        resting = []
        for chip in self.chips:
            stage = self.host.stage_of(chip.chip_id)
            if stage in feeding.resting:
                resting.append(chip.chip_id)
            first = feeding.positions[stage]
            own = [0] * feeding.tokens
            if stage not in feeding.resting:
                own = [tokens[first + number] for number in range(feeding.tokens)]
            self.host.prepare_chunk(chip, own, first)
        return resting

    def _repeat(self, tokens: Sequence[int], feedings: Sequence[Feeding], sync: str) -> int:
        """On new chips all launches again but the last, whose inputs are prepared; their cycles."""
        before = [chip.digest_sums.copy() for chip in self.chips]
        io_seconds = self.host.virtual_io_seconds
        self._new_chips()
        cycles = 0
        for number, feeding in enumerate(feedings[:-1]):
            resting = self.prepare(feeding, tokens)
            self._launch(feeding.entry, number, sync, resting)
            cycles += self.artifact.predicted_cycles[feeding.entry]
        for chip, sums in zip(self.chips, before, strict=True):
            if (chip.digest_sums != sums).any():
                raise UnrecoverableError(f"chip {chip.chip_id} computed other things on the spare")
        self.prepare(feedings[-1], tokens)
        self.host.virtual_io_seconds = io_seconds
        return cycles

    def generate(
        self,
        job: Generation,
        resume: RunResult | None = None,
        between: Callable[[RunResult], None] = lambda _: None,
    ) -> RunResult:
        """Feed the prompt, then pick tokens until ``max_new_tokens`` or the stop token.

        resume: what the launches so far gave, the chips being as they were after them.  between:
        called before every launch with the result so far; ``len(entries)`` is the launch's number.
        """
        result = resume or RunResult([], [], [], {c.chip_id: [] for c in self.chips}, {}, 0.0)
        if self._faults is not None and not result.faults:
            result.faults.update(self._faults.new_counts())
        io_before = self.host.virtual_io_seconds
        if resume is not None:
            self.host.virtual_io_seconds, io_before = resume.io_seconds, 0.0
        reached = sum(map(max, zip(*result.retired.values(), strict=True)))
        prompt = len(job.prompt)
        feedings = text_feedings(self.artifact, result.begun, prompt, job.max_new_tokens)
        for before in feedings[: len(result.entries)][-1:]:
            for chip in self.chips:
                first = before.positions[self.host.stage_of(chip.chip_id)]
                self.host.took_over(chip, first, before.tokens)
        for number in range(len(result.entries), len(feedings)):
            between(result)
            feeding, tokens = feedings[number], [*job.prompt, *result.tokens]
            launch_io_before = self.host.virtual_io_seconds
            resting = self.prepare(feeding, tokens)
            retired = self.launch(
                feeding.entry,
                number,
                job.sync,
                result.faults,
                partial(self._repeat, tokens, feedings[: number + 1], job.sync),
                resting,
            )
            for chip_id, cycle in retired.items():
                result.retired[chip_id].append(cycle)
            result.entries.append(feeding.entry)
            reached += max(retired.values())
            if feeding.logits:
                result.decode.append(number)
                result.tokens.append(self._pick(job, len(result.decode)))
                if not ends_prompt(feeding.entry):
                    result.decode_io_seconds += self.host.virtual_io_seconds - launch_io_before
            result.io_seconds = self.host.virtual_io_seconds - io_before
            self.peers.report(reached, result.tokens)
            if result.tokens and result.tokens[-1] in job.stop:
                break
        for chip in self.chips:
            low, high = (int(value) for value in chip.digest_sums)
            result.sums[chip.chip_id] = (low, high)
        result.saturations = self.saturations
        return result

    @property
    def saturations(self) -> Saturations:
        """What own chips' conversions lost in all launches so far, by layer and kind."""
        return saturations_of(self.artifact, self.chips)

    def _pick(self, job: Generation, step: int) -> int:
        own = {chip.chip_id: self.host.read_logits(chip) for chip in self.chips}
        logits = np.concatenate(self.peers.exchange(step, own))
        return int(pick_token(logits, job.temperature, job.seed, step))


def generate(
    artifact: Artifact,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    sync: str = LOOKAHEAD,
    on_token: Callable[[int], None] | None = None,
) -> RunResult:
    """Greedy generation with all chips in this thread."""
    runner = Runner.alone(artifact, Host(artifact), on_token=on_token)
    return runner.generate(Generation(tuple(prompt), max_new_tokens, sync=sync))
