"""The experiment in speculative decoding as a function of one settings object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.experiments.speculative.publish import DraftWatch
from cluster.experiments.speculative.settings import SpeculativeSettings
from cluster.experiments.speculative.study import run
from programs.models import open_model

if TYPE_CHECKING:
    from cluster.metrics import Board


@dataclass(frozen=True)
class SpeculativeResult:
    """What ``speculative`` found.

    report: plain data, times in seconds: what ``lpu experiment speculative --json`` prints.
    prompts: the texts that were continued; ``report["text"]`` has what came after each.
    """

    settings: SpeculativeSettings
    report: dict[str, Any]
    prompts: tuple[str, ...]


def speculative(
    settings: SpeculativeSettings,
    texts: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
    open_board: Callable[[], Board | None] = lambda: None,
) -> SpeculativeResult:
    """Speculative decoding, drafts on LPUs and verification on GPUs, against either alone.

    texts: prompts in place of those that the settings name.  tell: what goes on, in words.
    open_board: called when the settings are known to make sense; on the board that it gives, if
    any, the figures are published, step by step.
    The report's ``lossless`` is False where a text is not the target's own: a defect.
    Raises InputError for settings, files and models that cannot be.
    """
    prompts = tuple(texts)
    if not prompts:
        prompts = (settings.prompt,) if settings.prompts is None else _lines(settings.prompts)
    board = open_board()
    tokenizer = open_model("target").tokenizer
    report = run(
        [tokenizer.encode(text).ids for text in prompts],
        settings,
        lambda text: tell(f"{text} ..."),
        None if board is None else DraftWatch(board),
    )
    report["text"] = [tokenizer.decode(tokens) for tokens in report["texts"]]
    return SpeculativeResult(settings, report, prompts)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"--prompts {path}: cannot be read: {reason}") from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise InputError(f"--prompts {path}: has no prompt; put one on each line")
    return tuple(lines)
