"""The training text: Python source files of the running interpreter's standard library.

The files are found through ``sysconfig`` at run time, read in sorted order, and split into a
training and a held-out set by a hash of their relative names, so the split does not depend on
the machine.  The text is covered by the PSF-2.0 licence.
"""

import hashlib
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0

EXCLUDED_DIRECTORIES = frozenset(
    {
        "__pycache__",
        "site-packages",
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "encodings",
        "ensurepip",
        "turtledemo",
    }
)
HELD_OUT_PERCENT = 2


@dataclass(frozen=True)
class SourceFile:
    """One source file: its name relative to the library root and its UTF-8 text."""

    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether the hash of the name puts the file in the held-out set."""
        digest = hashlib.sha256(self.name.encode("utf-8")).digest()
        return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


def library_root() -> Path:
    """Return the directory of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def library_files() -> list[SourceFile]:
    """Return the usable ``*.py`` files of the standard library, sorted by relative name."""
    root = library_root()
    files = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        folders = relative.parts[:-1]
        if EXCLUDED_DIRECTORIES.intersection(folders):
            continue
        if any(folder.startswith("config-") for folder in folders):
            continue
        if relative.name.startswith("_sysconfigdata"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            files.append(SourceFile(relative.as_posix(), text))
    return sorted(files, key=lambda file: file.name)


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer with ``vocab`` entries, ``<|endoftext|>`` being id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Iterable[str]) -> NDArray[np.int64]:
    """Return one token stream [N] in which ``<|endoftext|>`` precedes every text."""
    stream: list[int] = []
    for text in texts:
        stream.append(END_OF_TEXT_ID)
        stream.extend(tokenizer.encode(text).ids)
    return np.asarray(stream, dtype=np.int64)


class Windows:
    """Endless shuffled training windows over a token stream.

    Every pass cuts the stream into blocks of ``block`` tokens from a fresh random phase and
    visits each block once in random order.
    """

    def __init__(self, stream: NDArray[np.int64], block: int, seed: int) -> None:
        self.stream = stream
        self.block = block
        self.rng = np.random.default_rng(seed)
        self.starts: list[int] = []

    def _next_start(self) -> int:
        """Return where the next block begins, opening a new pass when one is used up."""
        if not self.starts:
            phase = int(self.rng.integers(self.block))
            starts = np.arange(phase, len(self.stream) - self.block, self.block)
            self.starts = self.rng.permutation(starts).tolist()
        return self.starts.pop()

    def batch(self, tokens: int, context: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return inputs and next tokens, each [tokens / context, context].

        ``tokens`` must be a multiple of the block, and the block a multiple of ``context``.
        """
        starts = [self._next_start() for _ in range(tokens // self.block)]
        rows = np.stack([self.stream[start : start + self.block + 1] for start in starts])
        return rows[:, :-1].reshape(-1, context), rows[:, 1:].reshape(-1, context)
