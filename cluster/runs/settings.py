"""What the runs can be asked for: settings objects, the same from Python and from ``lpu``.

Plain data; an object that exists makes sense, or making it raised InputError or CompileError.  The
options of the command line are in the annotations, see ``cluster.commands.settings``.
"""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from cluster import option_types
from cluster.errors import InputError
from cluster.option_checks import (
    CHIPS,
    check_at_least,
    check_at_most,
    check_batch,
    check_choice,
    check_chunk,
    check_node,
    check_text,
)
from cluster.whole_files import check_writable

DTYPES = ("int8", "fp16")
SYNC = ("lookahead", "barrier")
DEFAULT_PROMPT = "def "
#: Positions that a chat is compiled for where nobody says how many, if the model has so many.
CHAT_CONTEXT = 1024
#: Largest tensor: what comes of it stays far inside 64 bits.
MOST_BYTES = 1 << 40
#: Why a collective without data refuses what is about its run.
ONLY_WITH_RUN = "--dtype, --sync, --in-process, --chips-per-actor and --faults: only with --run"

Wiring = Annotated[
    str,
    typer.Option(
        "--chips", help="Chips of a known wiring, chain-N, lpx, or a cable list (TOML, JSON)."
    ),
]
WiringChip = Annotated[
    str | None,
    typer.Option("--chip", help="Chip preset or TOML file.", show_default="the wiring's"),
]
Operation = Annotated[
    str,
    typer.Option(
        "--op",
        help="all-reduce, reduce-scatter, all-gather, broadcast, all-to-all or point-to-point.",
    ),
]
ChipsPerActor = Annotated[
    str, typer.Option(help="Chips per process; auto: so many that each process has a core.")
]
Sync = Annotated[str, typer.Option(help="lookahead or barrier.")]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join, or auto.", show_default="a private local Ray"),
]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]
StoredModel = Annotated[
    Path | None,
    typer.Option(help="Run this .lpu file instead of compiling the model.", show_default="none"),
]
InProcess = Annotated[
    bool, typer.Option("--in-process", help="All chips in this process, without Ray.")
]
ComparedGpu = Annotated[
    str | None, typer.Option(help="Compare with as many GPUs: h100, b200 ... (an estimate).")
]


@dataclass(frozen=True, kw_only=True)
class TextMachineSettings:
    """How a text is drawn, and the machine that computes it: what one text and a chat share.

    chips, tp, pp: None for what the others leave.  address: of a Ray to join, None for a private
    one.  context: positions to compile for, None for as many as the text can take.  chunk: tokens
    of a prompt that go through the chips together.
    """

    chips: option_types.Chips = None
    tp: option_types.Tp = None
    pp: option_types.Pp = None
    chips_per_actor: ChipsPerActor = "auto"
    sync: Sync = "lookahead"
    dtype: option_types.Dtype = "int8"
    address: Address = None
    temperature: Temperature = 0.0
    seed: Seed = 0
    context: option_types.Context = None
    chunk: option_types.Chunk = 1
    chip: option_types.ChipType = option_types.DEFAULT_CHIP
    artifact: StoredModel = None
    in_process: InProcess = False

    def _check_actors(self) -> None:
        """Refuse options of actors where there are none."""
        if self.in_process and (self.chips_per_actor != "auto" or self.address is not None):
            raise InputError(
                "--in-process: there are no actors; leave --chips-per-actor and --address out"
            )


@dataclass(frozen=True)
class GenerateSettings(TextMachineSettings):
    """A generation, from a prompt to its continuation.

    model: as ``programs.models.open_model`` takes it, None for ``target`` or the artifact's own.
    chat: the prompt is what a user says, and the checkpoint's chat template makes the model's
    prompt of it.
    """

    model: option_types.Model = None
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = DEFAULT_PROMPT
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 32
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after an end-of-text token.")
    ] = False
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a message; use the chat template.")
    ] = False

    def __post_init__(self) -> None:
        """Refuse what cannot be, naming the option."""
        _ = self.split
        check_text("--prompt", self.prompt)
        check_choice("--dtype", self.dtype, DTYPES)
        check_choice("--sync", self.sync, SYNC)
        check_at_least("--max-new-tokens", self.max_new_tokens, 1)
        check_at_least("--context", self.context, 1)
        check_chunk(self.chunk)
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise InputError(f"--temperature {self.temperature}: use a finite number, 0 or more")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed}: use an integer from 0 to 2^63 - 1")
        _ = self.packing
        self._check_actors()

    @property
    def split(self) -> tuple[int, int]:
        """Chips that share every matrix, and stages of so many."""
        from programs.decoder import check_parallelism

        return check_parallelism(self.chips, self.tp, self.pp)

    @property
    def packing(self) -> int | None:
        """Chips per process; None for as many as fit."""
        text = self.chips_per_actor
        if text == "auto":
            return None
        if text.isascii() and text.isdigit() and int(text) in CHIPS:
            return int(text)
        raise InputError(f"--chips-per-actor {text}: use 1, 2, 4, 8 or auto")


@dataclass(frozen=True)
class ChatSettings(TextMachineSettings):
    """A conversation with a model that has a chat template.

    system: what the model is told before anybody speaks, None for what its template says.
    max_new_tokens: of one answer.  context: positions that the whole conversation can take, None
    for 1,024 or as many as the model has.  The others are those of ``GenerateSettings``.
    """

    model: option_types.Model = None
    system: Annotated[
        str | None,
        typer.Option(help="What the model is told first.", show_default="the template's"),
    ] = None
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 256
    _: KW_ONLY
    context: Annotated[
        int | None,
        typer.Option(help="Positions to compile for.", show_default="1024, or the model's"),
    ] = None

    def __post_init__(self) -> None:
        """Refuse what cannot be, naming the option."""
        check_text("--system", self.system)
        _ = self.generation

    @property
    def generation(self) -> GenerateSettings:
        """The same options for one text of it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "system"}
        return GenerateSettings(chat=True, **own)


@dataclass(frozen=True)
class CollectiveSettings:
    """A collective, scheduled and simulated; with ``run`` also executed with data.

    chips: the wiring, by its number of chips or a file.  nbytes: of one chip's tensor.  algorithm:
    None for the fastest.  gpu: to estimate the same on.  What follows ``run`` is only for it.
    """

    operation: Operation = "all-reduce"
    chips: Wiring = "8"
    nbytes: Annotated[int, typer.Option("--bytes", help="Bytes of one chip's tensor.")] = 1 << 20
    chip: WiringChip = None
    algorithm: Annotated[
        str | None,
        typer.Option(help="hierarchical, one-shot or direct.", show_default="the fastest"),
    ] = None
    gpu: ComparedGpu = None
    run: Annotated[bool, typer.Option("--run", help="Also run it with data on emulated chips.")] = (
        False
    )
    dtype: Annotated[str, typer.Option(help="With --run: int32 or fp32.")] = "int32"
    chips_per_actor: Annotated[
        int | None, typer.Option(help="With --run: chips per process.", show_default="as fits")
    ] = None
    in_process: Annotated[
        bool, typer.Option(help="With --run: no actors; every core steps chips in a thread.")
    ] = False
    sync: Annotated[str, typer.Option(help="With --run: lookahead or barrier.")] = "lookahead"

    def __post_init__(self) -> None:
        """Refuse what cannot be, naming the option."""
        from interconnect.collectives import ALGORITHMS, OPERATIONS

        check_choice("--op", self.operation, OPERATIONS)
        check_choice("--dtype", self.dtype, ("int32", "fp32"))
        check_choice("--sync", self.sync, SYNC)
        check_at_least("--bytes", self.nbytes, 1)
        check_at_most("--bytes", self.nbytes, MOST_BYTES)
        check_at_least("--chips-per-actor", self.chips_per_actor, 1)
        if self.algorithm is not None:
            check_choice("--algorithm", self.algorithm, ALGORITHMS)
        asked = self.dtype != "int32" or self.sync != "lookahead" or self.in_process
        if (asked or self.chips_per_actor is not None) and not self.run:
            raise InputError(ONLY_WITH_RUN)
        if self.in_process and self.chips_per_actor is not None:
            raise InputError("--in-process: there are no actors; leave --chips-per-actor out")


@dataclass(frozen=True)
class BeltSettings:
    """Several prompts at once on a conveyor belt of ``pp`` stages of ``tp`` chips.

    model: see ``programs.models.open_model``, None for ``target``.  prompt: None for four of them.
    batch: sequences that a stage works on at a time.
    """

    model: option_types.Model = None
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Text to continue; once for each sequence.", show_default="four of them"),
    ] = None
    max_new_tokens: Annotated[int, typer.Option(help="Tokens for each prompt.")] = 16
    tp: Annotated[int, typer.Option(help="Chips that share every matrix.")] = 8
    pp: Annotated[int, typer.Option(help="Pipeline stages of tp chips each.")] = 2
    batch: Annotated[
        int,
        typer.Option(help="Sequences that a stage takes at a time, sharing installs of weights."),
    ] = 1
    dtype: option_types.Dtype = "int8"
    context: option_types.Context = None
    chip: option_types.ChipType = "groq-lpu-1"

    def __post_init__(self) -> None:
        """Refuse what cannot be, naming the option."""
        from programs.decoder import check_parallelism

        check_batch(self.batch)

        check_parallelism(None, self.tp, self.pp)
        for text in self.prompt or ():
            check_text("--prompt", text)
        check_choice("--dtype", self.dtype, DTYPES)
        check_at_least("--max-new-tokens", self.max_new_tokens, 1)
        check_at_least("--context", self.context, 1)


@dataclass(frozen=True)
class WorkloadSettings:
    """What is done with a workload of random data besides compiling and checking it.

    run: it is run and compared with its golden model.  output: an .lpu file to write.
    """

    run: Annotated[
        bool, typer.Option("--run", help="Run it and compare with the golden model.")
    ] = False
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write an .lpu file.", show_default="none"),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the random data.")] = 0
    chip: option_types.ChipType = "groq-lpu-1"

    def __post_init__(self) -> None:
        """Refuse what cannot be, naming the option."""
        check_at_least("--seed", self.seed, 0)
        if self.output is not None:
            check_writable(self.output)

    @property
    def with_data(self) -> bool:
        """Whether the data are needed: timing and legality hang on the shape alone."""
        return self.run or self.output is not None


#: Most products of one sweep.
MOST_SWEPT = 10_000


@dataclass(frozen=True)
class MatmulSettings:
    """A product [m x k] times [k x n]; ``sweep`` instead of ``n``: one for each of its columns."""

    m: Annotated[int, typer.Option(help="Rows of A.")] = 2304
    k: Annotated[int, typer.Option(help="Columns of A, rows of B.")] = 4096
    n: Annotated[int, typer.Option(help="Columns of B.")] = 1376
    dtype: option_types.Dtype = "fp16"
    chips: Annotated[
        int, typer.Option(help="Chips: 1, 2, 4 or 8, or rows times columns of --split.")
    ] = 1
    split: Annotated[
        str,
        typer.Option(
            help="How chips share B: columns, rows (sums are then added), or both over nodes: "
            "rows:13,columns:8."
        ),
    ] = "columns"
    sweep: Annotated[
        str | None, typer.Option(help="N from:to:step instead of --n.", show_default="none")
    ] = None

    def __post_init__(self) -> None:
        """Refuse what cannot be, naming the option."""
        check_choice("--dtype", self.dtype, DTYPES)
        grid = self.grid
        if grid is None:
            check_node(self.chips)
        elif self.chips != grid[0] * grid[1]:
            raise InputError(
                f"--split {self.split} --chips {self.chips}: use --chips {grid[0] * grid[1]}"
            )
        for option, value in (("--m", self.m), ("--k", self.k), ("--n", self.n)):
            check_at_least(option, value, 1)
        _ = self.columns

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of chips, where ``split`` names both."""
        if self.split in ("columns", "rows"):
            return None
        found = re.fullmatch(r"rows:([1-9][0-9]{0,3}),columns:([1-9][0-9]{0,3})", self.split)
        if found is None:
            raise InputError(
                f"--split {self.split[:60]}: use columns or rows, or both, for instance "
                "rows:13,columns:8"
            )
        return int(found[1]), int(found[2])

    @property
    def columns(self) -> range:
        """The numbers of columns of B: those of the sweep, or ``n``."""
        if self.sweep is None:
            return range(self.n, self.n + 1)
        parts = self.sweep.split(":")
        if len(parts) != 3 or not all(is_size(part) for part in parts):
            raise InputError(
                f"--sweep {self.sweep[:60]}: use from:to:step, for instance 1376:3500:118"
            )
        first, last, step = (int(part) for part in parts)
        values = range(first, last + 1, step)
        if not 1 <= len(values) <= MOST_SWEPT:
            raise InputError(f"--sweep {self.sweep}: {len(values)} products; use 1 to {MOST_SWEPT}")
        return values


def is_size(text: str) -> bool:
    """Whether ``text`` is a number from 1 to a million, more than any chip takes."""
    return text.isascii() and text.isdecimal() and len(text) < 8 and 1 <= int(text) <= 1_000_000
