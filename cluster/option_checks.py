"""What options mean: values are refused in one line that names the option, before any work.

Raised is InputError.  Settings objects check themselves with these when they are made.
"""

from __future__ import annotations

from pathlib import Path

from cluster.errors import InputError
from cluster.whole_files import check_writable

#: Chips of a node.
CHIPS = (1, 2, 4, 8)
#: Positions that a model is compiled for where nobody says how many.
DEFAULT_CONTEXT = 256


def check_node(chips: int | None) -> int:
    """``chips`` if a node has so many."""
    if chips is None or chips not in CHIPS:
        raise InputError(f"--chips {chips}: a node has 1, 2, 4 or 8 chips; use one of these")
    return chips


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> str:
    """``value`` if it is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{option} {value}: use {' or '.join(choices)}")
    return value


def check_text(option: str, value: str | None) -> None:
    """Refuse text that holds bytes which are not UTF-8, as Python keeps those of an argument."""
    if value is None:
        return
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"
        raise InputError(
            f"{option} is not UTF-8 ({what} after {error.start} characters); give it as UTF-8 text"
        ) from None


def check_at_least(option: str, value: int | None, least: int) -> None:
    """Refuse a number below ``least``."""
    if value is not None and value < least:
        raise InputError(f"{option} {value}: use {least} or more")


def check_chunk(tokens: int) -> None:
    """Refuse a chunk of so many tokens that no launch has them."""
    check_at_least("--chunk", tokens, 1)
    if tokens > 1:  # who asks for none waits for no import
        from programs.artifact import MOST_CHUNK

        if tokens > MOST_CHUNK:
            raise InputError(
                f"--chunk {tokens}: a launch takes {MOST_CHUNK} tokens of a prompt at most; use "
                f"1 to {MOST_CHUNK}"
            )


def check_batch(sequences: int) -> None:
    """Refuse a batch of so many sequences that no launch has them."""
    check_at_least("--batch", sequences, 1)
    if sequences > 1:
        from programs.artifact import MOST_CHUNK

        if sequences > MOST_CHUNK:
            raise InputError(
                f"--batch {sequences}: a stage takes {MOST_CHUNK} sequences at a time at most; use "
                f"1 to {MOST_CHUNK}"
            )


def check_plot(path: Path | None) -> None:
    """Refuse a picture that could not be written, before anything is computed for it."""
    if path is None:
        return
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"--plot {path}: use a name that ends in .png or .svg")
    check_writable(path)


def check_at_most(option: str, value: int, most: int) -> None:
    """Refuse a number above ``most``."""
    if value > most:
        raise InputError(f"{option} {value}: use {most} or less")
