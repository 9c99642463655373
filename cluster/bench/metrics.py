"""What watching costs: decoding with metrics published and scraped, against decoding without.

Measured in wall time and in CPU time of the process with all its threads, the best of alternating
runs.  All chips run in one thread, so the two agree on an idle machine; on a busy one even the best
wall times may differ by more than what is measured.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter, process_time
from typing import TYPE_CHECKING

from chip.spec import ChipSpec
from cluster.bench.row import Row
from cluster.listening import Listener
from cluster.processes import Placement
from cluster.runs import run_generation
from programs.decoder import compile_decoder, partition_model
from programs.models import load_checkpoint, shipped_model
from programs.running import Generation

if TYPE_CHECKING:
    from cluster.metrics import Board

CHIPS, CONTEXT = 8, 128
PROMPT = (1, 2)
#: Alternating runs with and without, after a first pair that is thrown away.
PAIRS = 24
#: Five times as often as the shipped Prometheus configuration asks.
SCRAPE_SECONDS = 1.0


def metrics_overhead() -> list[Row]:
    """Decoding with metrics on against off, alternating in one process."""
    from cluster.metrics import Board, RunWatch

    model = partition_model(load_checkpoint(shipped_model()), CHIPS, "int8")
    artifact = compile_decoder(model, ChipSpec(), CONTEXT)
    job, placement = Generation(PROMPT, CONTEXT - len(PROMPT)), Placement(CHIPS, in_process=True)
    wall: dict[bool, list[float]] = {True: [], False: []}
    cpu: dict[bool, list[float]] = {True: [], False: []}

    def run(watch: RunWatch | None) -> tuple[float, float]:
        began, worked = perf_counter(), process_time()
        run_generation(artifact, job, placement, Listener(), perf_counter(), watch=watch)
        return perf_counter() - began, process_time() - worked

    for pair in range(PAIRS + 1):
        for on in (pair % 2 == 0, pair % 2 == 1):
            if on:
                board = Board()
                with _scraped(board):
                    took = run(RunWatch(board, "bench", ("generate", "lpu")))
            else:
                took = run(None)
            if pair:  # the first pair links programs and touches memory
                wall[on].append(took[0])
                cpu[on].append(took[1])
    without = (
        "the same without metrics; the best of alternating runs of the shipped model on eight "
        "chips in one process, scraped once a second"
    )
    tokens = f"for {job.max_new_tokens} tokens"
    return [
        Row("metrics_overhead", min(wall[True]), f"s {tokens}", min(wall[False]), without),
        Row("metrics_overhead_cpu", min(cpu[True]), f"CPU s {tokens}", min(cpu[False]), without),
    ]


@contextmanager
def _scraped(board: Board) -> Iterator[None]:
    """Render the board once a second, as a scrape would."""
    from prometheus_client import generate_latest

    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(SCRAPE_SECONDS):
            generate_latest(board.registry)

    scraper = threading.Thread(target=scrape, daemon=True)
    scraper.start()
    try:
        yield
    finally:
        stop.set()
        scraper.join()
