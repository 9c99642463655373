"""A compiled model as one object: made once, saved, loaded, and run as often as one likes.

It knows no kernels and no processes: ``cluster.runs`` compiles and runs, as for the commands.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.errors import InputError
from cluster.option_checks import DEFAULT_CONTEXT, check_at_least, check_choice, check_chunk
from cluster.processes import carrying, open_carried
from cluster.runs import (
    DEFAULT_PROMPT,
    DTYPES,
    Generated,
    GenerateSettings,
    generate,
)
from programs.artifact import Artifact, decoder_of, load, save
from programs.decoder import adopt, check_parallelism, compile_model
from programs.models import open_model


@dataclass(frozen=True, eq=False)
class CompiledModel:
    """A model compiled for so many chips; ``artifact`` is all of it, as in an ``.lpu`` file."""

    artifact: Artifact

    @property
    def chips(self) -> int:
        """Chips of the machine."""
        return self.artifact.chips

    @property
    def context(self) -> int:
        """Positions of prompt and text together, at most."""
        return decoder_of(self.artifact).context

    @property
    def predicted_cycles(self) -> dict[str, int]:
        """Cycles of every entry point, as the compiler scheduled them."""
        return dict(self.artifact.predicted_cycles)

    def generate(
        self,
        prompt: str = DEFAULT_PROMPT,
        max_new_tokens: int = 32,
        *,
        actors: bool = False,
        chips_per_actor: int | None = None,
        address: str | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        sync: str = "lookahead",
        ignore_eos: bool = False,
    ) -> Generated:
        """Continue ``prompt``, every chip from its memory image as before the first launch.

        All chips run in this process, or with ``actors`` in Ray actors of ``chips_per_actor`` chips
        (None: as many as fit; a number asks for actors by itself), in the Ray at ``address`` or a
        private one.  The rest is as for ``lpu generate``; tokens, cycles and digest are the same
        either way.  Raises InputError for what cannot be asked, RunError for a run that found a
        problem.
        """
        if address is not None and not (actors or chips_per_actor):
            raise InputError("an address is where actors run: say actors=True as well")
        settings = GenerateSettings(
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            chips_per_actor="auto" if chips_per_actor is None else str(chips_per_actor),
            sync=sync,
            address=address,
            temperature=temperature,
            seed=seed,
            in_process=not actors and chips_per_actor is None,
            ignore_eos=ignore_eos,
        )
        return generate(settings, compiled=self.artifact)

    def save(self, path: str | Path) -> None:
        """Write an ``.lpu`` file; an old one stays until the new one is whole."""
        checkpoint = open_carried(self.artifact)[1]
        save(carrying(self.artifact, checkpoint), path)


def compile_named(
    model: str | Path = "target",
    *,
    chips: int | None = None,
    tp: int | None = None,
    pp: int | None = None,
    dtype: str = "int8",
    context: int | None = None,
    chip: str = "groq-lpu-1",
    chunk: int = 1,
) -> CompiledModel:
    """Compile a model, as ``lpu compile`` does.

    model: ``target`` or ``draft`` (shipped), or a checkpoint directory.  chips: a node of 1, 2, 4
    or 8, or tp (chips that share every matrix) times pp (stages).  context: positions at most,
    None for 256, or the model's limit where that is less.  chip: a preset or a TOML file.
    chunk: tokens of a prompt that share each install of weights.
    Raises an LpuError, one line, for what cannot be.
    """
    width, stages = check_parallelism(chips, tp, pp)
    check_choice("--dtype", dtype, DTYPES)
    check_at_least("--context", context, 1)
    check_chunk(chunk)
    checkpoint = open_model(model)
    positions = context or min(DEFAULT_CONTEXT, checkpoint.config.max_position)
    artifact = compile_model(
        checkpoint, tp=width, pp=stages, dtype=dtype, context=positions, chip=chip, chunk=chunk
    )
    return CompiledModel(artifact)


def load_compiled(path: str | Path, model: str | Path | None = None) -> CompiledModel:
    """The model in an ``.lpu`` file that ``save`` or ``lpu compile`` wrote.

    model: whose embeddings and tokenizer to use instead of those that the file carries.  Raises
    ArtifactError for a file that is none, InputError for one that holds no decoder or another's.
    """
    artifact, checkpoint = open_carried(load(Path(path)), model)
    return CompiledModel(adopt(artifact, checkpoint, 1))
