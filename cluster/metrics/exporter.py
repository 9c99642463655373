"""The exporter: a board over HTTP for as long as a command works, and until it was seen after.

A run may be shorter than Prometheus' interval, so the exporter stays after the end until two
scrapes have taken the final values (between them they count as current), at most
``linger_seconds``.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError, one_line

if TYPE_CHECKING:
    from cluster.metrics.board import Board


LAST_SCRAPES = 2


@dataclass(frozen=True)
class Exporter:
    """Where to export: port 0 is nowhere.  linger_seconds: the longest stay after the end."""

    port: int
    host: str
    linger_seconds: float

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise InputError(f"--metrics-port {self.port}: use 1 to 65535, or 0 for none")
        if not 0 <= self.linger_seconds <= 86_400:
            raise InputError(f"--metrics-linger {self.linger_seconds}: use 0 to 86400 seconds")


@contextlib.contextmanager
def exported(exporter: Exporter) -> Iterator[Board | None]:
    """Inside, the board that is being exported; None for port 0.

    Raises InputError where the port cannot be had.
    """
    if exporter.port == 0:
        yield None
        return
    from cluster.metrics.board import Board  # only who exports pays for the client

    board = Board()
    board.set("lpu_run_start_timestamp_seconds", time())
    seen = _Seen()
    server = _serve(board, exporter, seen)
    try:
        yield board
    finally:
        try:
            board.set("lpu_run_end_timestamp_seconds", time())
            _linger(exporter, seen)
        finally:
            server.shutdown()
            server.server_close()


class _Seen:
    """Whether enough scrapes that began after the end have been answered."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.enough = threading.Event()
        self._scrapes = 0
        self._lock = threading.Lock()

    def scraped(self) -> None:
        """One more."""
        with self._lock:
            self._scrapes += 1
            if self._scrapes >= LAST_SCRAPES:
                self.enough.set()


def _serve(board: Board, exporter: Exporter, seen: _Seen) -> Any:
    from prometheus_client import start_http_server

    try:
        server, _ = start_http_server(exporter.port, exporter.host, board.registry)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(
            f"--metrics-port {exporter.port} on {exporter.host}: {reason}; choose another port, or "
            "0 for none"
        ) from None
    server.set_app(_noting(server.get_app(), seen))
    return server


def _noting(app: Any, seen: _Seen) -> Callable[[Any, Any], Iterator[bytes]]:
    """``app``, noting every answer that was begun after the end and is sent."""

    def answer(environ: Any, start_response: Any) -> Iterator[bytes]:
        late = seen.ended.is_set()
        chunks: Iterable[bytes] = app(environ, start_response)
        yield from chunks
        # The server takes the next chunk only when the last one is on its way.
        if late and environ.get("PATH_INFO") in ("/metrics", "/"):
            seen.scraped()

    return answer


def _linger(exporter: Exporter, seen: _Seen) -> None:
    seen.ended.set()
    sys.stdout.flush()  # whoever waits for the result need not wait for the scrape
    if exporter.linger_seconds:
        print(
            f"lpu: the final metrics stay at http://{exporter.host}:{exporter.port}/metrics until "
            f"they were scraped twice, {exporter.linger_seconds:g} s at most (--metrics-linger)",
            file=sys.stderr,
        )
        seen.enough.wait(exporter.linger_seconds)
