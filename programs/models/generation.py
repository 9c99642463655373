"""What a checkpoint directory says about texts: which tokens end one, and how a chat is written.

The files beside the weights, read as ``transformers`` reads them: ``generation_config.json`` over
``config.json``; ``chat_template.jinja`` over the ``chat_template`` of ``tokenizer_config.json``.
All of them may be missing.  Every problem is a `CheckpointError` of one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from programs.models.tensors import CheckpointError, read_json

__all__ = ["chat_template_of", "end_tokens_of", "special_tokens_of"]

MOST_TEMPLATE_BYTES = 1 << 20
"""Longest chat template that is read; published ones have some kilobytes."""


def end_tokens_of(directory: Path) -> tuple[int, ...]:
    """Token ids that end a text: those of generation_config.json, else of config.json.

    Each may be a number or a list of numbers.  Without any, a text ends at its length only.
    """
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        value = read_json(file).get("eos_token_id") if file.is_file() else None
        if value is None or value == []:
            continue
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            raise CheckpointError(
                f"{file}: eos_token_id is {str(value)[:60]}; use a token's number or a list of them"
            )
        return tuple(dict.fromkeys(values))
    return ()


def chat_template_of(directory: Path) -> str | None:
    """The Jinja text that turns messages into a prompt; None where the directory has none.

    Of several named templates the one called ``default``.
    """
    file = directory / "chat_template.jinja"
    if file.is_file():
        return _bounded(file, _text(file))
    file = directory / "tokenizer_config.json"
    value = read_json(file).get("chat_template") if file.is_file() else None
    if isinstance(value, list):  # [{"name": "default", "template": "..."}, ...]
        named = {
            str(entry["name"]): entry.get("template")
            for entry in value
            if isinstance(entry, dict) and "name" in entry
        }
        value = named
    if isinstance(value, dict):
        if "default" not in value:
            names = ", ".join(sorted(map(str, value)))[:80] or "none"
            raise CheckpointError(
                f"{file}: no chat template is called default (there are: {names}); rename one"
            )
        value = value["default"]
    if value is None:
        return None
    if not isinstance(value, str):
        raise CheckpointError(
            f"{file}: chat_template is neither text nor a list of named texts; fetch the file again"
        )
    return _bounded(file, value)


def special_tokens_of(directory: Path) -> dict[str, str]:
    """The tokens that templates know by name, for instance ``bos_token``, with their texts."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = directory / name
        entries: dict[str, Any] = read_json(file) if file.is_file() else {}
        for key, value in entries.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(MOST_TEMPLATE_BYTES + 1).decode("utf-8-sig")
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read ({error.strerror}); correct its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not UTF-8; fetch the file again") from error


def _bounded(file: Path, text: str) -> str:
    if len(text) > MOST_TEMPLATE_BYTES:
        raise CheckpointError(
            f"{file}: the chat template has more than {MOST_TEMPLATE_BYTES:,} characters; "
            "fetch the file again"
        )
    return text
