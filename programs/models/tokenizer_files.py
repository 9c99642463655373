"""``tokenizer.json`` files: read by the ``tokenizers`` library, once they can do it no harm."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from programs.models.tensors import CheckpointError, read_json


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in ``file``; raises CheckpointError with one line for what is none."""
    value = read_json(file)
    # The library cuts this prefix off the second half of every merge without looking, and may end
    # the process where it is not there; byte-level vocabularies, the only ones here, have none.
    model = value.get("model")
    if isinstance(model, dict) and model.get("continuing_subword_prefix"):
        raise CheckpointError(
            f"{file} gives its model a continuing_subword_prefix, which byte-level tokens do not "
            "have; set it to null"
        )
    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except BaseException as error:  # the library's panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:100]
        raise CheckpointError(
            f"{file} is no readable tokenizer ({reason}); fetch the file again"
        ) from None
