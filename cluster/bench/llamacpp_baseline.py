"""The baseline of ``smollm2_vs_llamacpp``: tokens of a GGUF file by llama.cpp, as Q8_0.

Run as a process of its own, ``python -m cluster.bench.llamacpp_baseline FILE POSITION THREADS``:
what the library writes of its own stays away from the table.  Prints seconds per token.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

#: Tokens decoded from the position on; the fastest counts.
TOKENS = 16


def as_q8_0(source: Path, target: Path) -> None:
    """Write ``source`` again with its matrices as Q8_0, by the library's own quantiser."""
    llama_cpp: Any = import_module("llama_cpp")
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    how.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), how):
        raise OSError(f"{target}: llama.cpp wrote no Q8_0 file of {source}")


def token_seconds(file: Path, position: int, threads: int) -> float:
    """Seconds of one greedy token at ``position`` and after: the fastest of some."""
    llama_cpp: Any = import_module("llama_cpp")
    with TemporaryDirectory(prefix="lpu-bench-") as directory:
        narrow = Path(directory) / "q8_0.gguf"
        as_q8_0(file, narrow)
        model = llama_cpp.Llama(
            str(narrow),
            n_ctx=position + TOKENS + 1,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        model.eval(list(range(1, position + 1)))
        best = float("inf")
        for _ in range(TOKENS):
            began = perf_counter()
            model.eval([model.sample(temp=0.0)])
            best = min(best, perf_counter() - began)
        model.close()
    return best


if __name__ == "__main__":
    print(token_seconds(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
