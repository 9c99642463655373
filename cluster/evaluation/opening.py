"""What both kinds of evaluation begin with: files read, a model opened, its two forwards made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from chip.spec import load_chip_spec
from cluster.errors import InputError
from cluster.evaluation.settings import CHIPS, EvaluateSettings
from cluster.processes import load_kernels
from programs.decoder import partition_model
from programs.evaluation import ChipsForward, Float32Forward, GoldenForward
from programs.models import Checkpoint, open_model


def read_text(option: str, path: Path) -> str:
    """The UTF-8 text in ``path``; InputError names ``option``."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(
            f"{option} {path} is no text to evaluate ({reason}); name a UTF-8 file"
        ) from None


def both_forwards(
    settings: EvaluateSettings,
    checkpoint: Checkpoint,
    context: int,
    tell: Callable[[str], None],
) -> tuple[Float32Forward, GoldenForward | ChipsForward]:
    """The float32 forward of a model, and the emulated one for texts of ``context`` tokens."""
    spec = load_chip_spec(settings.chip)
    reference = Float32Forward(_reference(settings, checkpoint, context))
    if settings.on == CHIPS:
        load_kernels(tell)
    tell("compiling ..." if settings.on == CHIPS else "laying the model out ...")
    model = partition_model(checkpoint, settings.node, settings.dtype)
    if settings.on == CHIPS:
        return reference, ChipsForward(model, context, spec)
    return reference, GoldenForward(model, context)


def _reference(settings: EvaluateSettings, checkpoint: Checkpoint, context: int) -> Checkpoint:
    """The model that float32 computes; InputError where it has other tokens or is too short."""
    if settings.reference is None:
        return checkpoint
    found = open_model(settings.reference)
    ours, others = checkpoint.config.vocab, found.config.vocab
    if ours != others:
        raise InputError(
            f"--reference {settings.reference}: has {others:,} tokens, the model {ours:,}; name "
            "the model that it was made of"
        )
    most = found.config.max_position
    if context > most:
        raise InputError(
            f"--reference {settings.reference}: was made for {most:,} positions, the evaluation "
            f"has {context:,}; use a smaller --context, or shorter prompts"
        )
    return found
