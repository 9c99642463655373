"""The names of a compiled decoder's entry points: which program a launch runs."""

from __future__ import annotations

from programs.artifact import Artifact

__all__ = ["belt_entry", "entry_at", "token_entry"]


def token_entry(context: int, prefill: bool) -> str:
    """The program of a token among ``context`` positions; a prefill ends without logits."""
    return f"{'prefill' if prefill else 'decode'}-{context}"


def belt_entry(context: int, number: int) -> str:
    """The program of beats of ``number`` modulo the belt's sequences."""
    return f"belt-{context}-{number}"


def entry_at(artifact: Artifact, position: int, prefill: bool) -> str:
    """The entry point for a token at ``position``; raises ValueError beyond the context."""
    for bucket in artifact.bindings["buckets"]:
        if position < bucket:
            return token_entry(bucket, prefill)
    context = artifact.bindings["context"]
    raise ValueError(
        f"position {position}: the artifact was compiled for {context} positions; "
        "compile with a longer --context"
    )
