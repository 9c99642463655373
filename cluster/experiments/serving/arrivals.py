"""When requests come and how long they are: open-loop processes and traces from files.

Open loop: arrivals do not wait for answers.  Times are integers of picoseconds, so that a sum of
many steps is exact and every event has its place.  This module knows nothing of who serves.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError

I64 = NDArray[np.int64]

PS = 10**12
"""Picoseconds per second."""
MAX_SECONDS = 4_000_000
"""Longest span of a trace: 46 days, half of what int64 picoseconds can hold."""
MAX_VIRTUAL_SECONDS = 6_000_000
"""Longest a simulation may go on; what is then still under way fits int64 picoseconds too."""
MAX_REQUESTS = 2_000_000
MAX_TOKENS = 10_000_000
"""Tokens of one prompt or one answer; far above any model's context."""
MAX_FILE_BYTES = 256 * 2**20
"""Longest file that is read to its end."""
MAX_LINE = 1 << 20
"""Characters of a line."""

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
"""Columns of the Azure LLM inference traces 2023 and 2024 (github.com/Azure/AzurePublicDataset)."""
PLAIN = ("arrival_s", "prompt_tokens", "output_tokens")

_STAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,12})\d{0,8})?(Z|[+-]\d\d:\d\d)?", re.ASCII
)
_WHOLE = re.compile(r"[+-]?\d{1,18}(?:\.0{1,18})?", re.ASCII)


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in the order of their arrival; all arrays int64 [requests].

    arrival_ps: ascending, the first request of a file at 0.  prompt_tokens, output_tokens: 1 or
    more each.  source: where they come from, for the report.
    """

    arrival_ps: I64
    prompt_tokens: I64
    output_tokens: I64
    source: str

    def __len__(self) -> int:
        return len(self.arrival_ps)


@dataclass(frozen=True)
class Lengths:
    """Log-normal token counts: medians, ``spread`` (sigma of the logarithm) and upper limits.

    Defaults are small enough for the shipped models.  Measured medians of a production service
    are 1,020 prompt and 129 answer tokens for conversation (Splitwise, ISCA 2024).
    """

    prompt_median: int = 64
    output_median: int = 32
    spread: float = 0.6
    prompt_most: int = MAX_TOKENS
    output_most: int = MAX_TOKENS

    def __post_init__(self) -> None:
        for name in ("prompt_median", "output_median", "prompt_most", "output_most"):
            if not 1 <= getattr(self, name) <= MAX_TOKENS:
                raise InputError(f"{name} {getattr(self, name)}: use 1 to {MAX_TOKENS:,} tokens")
        if not 0 <= self.spread <= 3:
            raise InputError(f"spread {self.spread}: use a number from 0 to 3")

    def draw(self, random: np.random.Generator, requests: int) -> tuple[I64, I64]:
        """Prompt and answer lengths, int64 [requests] each."""
        drawn = []
        for median, most in (
            (self.prompt_median, self.prompt_most),
            (self.output_median, self.output_most),
        ):
            values = median * np.exp(self.spread * random.standard_normal(requests))
            drawn.append(np.clip(np.rint(values), 1, most).astype(np.int64))
        return drawn[0], drawn[1]


def poisson(rate_per_s: float, requests: int, lengths: Lengths, seed: int) -> Trace:
    """``requests`` arrivals of a Poisson process of ``rate_per_s``."""
    _check(rate_per_s, requests, seed)
    random = _stream(seed, 0)
    times = np.cumsum(random.exponential(1.0 / rate_per_s, requests))
    return _trace(times, lengths, seed, f"Poisson, {rate_per_s:g} requests/s")


def bursts(rate_per_s: float, requests: int, lengths: Lengths, seed: int, burst: int = 16) -> Trace:
    """Groups of ``burst`` requests that arrive at once; the groups are a Poisson process.

    The mean rate is ``rate_per_s`` requests/s, so groups come at ``rate_per_s / burst``.
    """
    _check(rate_per_s, requests, seed)
    if not 1 <= burst <= MAX_REQUESTS:
        raise InputError(f"burst {burst}: use 1 to {MAX_REQUESTS:,} requests")
    groups = -(-requests // burst)
    starts = np.cumsum(_stream(seed, 0).exponential(burst / rate_per_s, groups))
    times = np.repeat(starts, burst)[:requests]
    return _trace(times, lengths, seed, f"bursts of {burst}, {rate_per_s:g} requests/s")


def _check(rate_per_s: float, requests: int, seed: int) -> None:
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        raise InputError(f"rate {rate_per_s}: use a finite number of requests/s above 0")
    if not 1 <= requests <= MAX_REQUESTS:
        raise InputError(f"requests {requests}: use 1 to {MAX_REQUESTS:,}")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed {seed}: use an integer from 0 to 2^63 - 1")


def _stream(seed: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose], np.uint64)))


def _trace(seconds: NDArray[np.float64], lengths: Lengths, seed: int, source: str) -> Trace:
    if seconds[-1] > MAX_SECONDS:
        raise InputError(
            f"the last request would come after {seconds[-1]:.3g} s, more than {MAX_SECONDS:,} s; "
            "ask for fewer requests or a higher rate"
        )
    prompt, output = lengths.draw(_stream(seed, 1), len(seconds))
    return Trace(np.rint(seconds * PS).astype(np.int64), prompt, output, source)


def check_time(seconds: float) -> None:
    """Refuse a simulation that goes on beyond ``MAX_VIRTUAL_SECONDS``, or to no finite time."""
    if not seconds <= MAX_VIRTUAL_SECONDS:
        raise InputError(
            f"serving all requests takes more than {MAX_VIRTUAL_SECONDS:,} s of virtual time; ask "
            "for fewer requests, more or faster machines, or a faster link"
        )


def read_trace(path: Path, limit: int | None = None) -> Trace:
    """The requests of a CSV file with a header line, the first ``limit`` rows of it if given.

    Columns are those of the Azure LLM inference trace (`AZURE`; time stamps to the picosecond,
    with or without a zone) or the plain ones (`PLAIN`, seconds); others are ignored.  The earliest
    arrival becomes 0; rows are sorted by time, equal times keep the file's order.  A count of 0
    tokens, which the published traces contain, counts as 1: a prefill gives one token.  Of a file
    with a limit only what is needed is read, however long it is.  Raises InputError of one line for
    anything else.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: there is no such file; name a CSV file of requests")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES and limit is None:
            raise InputError(
                f"{path}: {size:,} bytes; a trace has at most {MAX_FILE_BYTES:,}; --limit N reads "
                "the first N requests of a longer one"
            )
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _parse(_lines(file, str(path)), str(path), limit)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no UTF-8 text; a trace is a CSV file") from None
    except csv.Error as error:
        raise InputError(f"{path}: is no CSV file: {error}") from None


def _lines(file: TextIO, name: str) -> Iterator[str]:
    """The lines of a file, none of which may fill the memory."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise InputError(f"{name}: a line of {MAX_LINE:,} characters or more; is it a trace?")
        yield line


def _parse(lines: Iterator[str], name: str, limit: int | None) -> Trace:
    rows = csv.reader(lines)
    header = [cell.strip() for cell in next(rows, [])]
    columns = next((names for names in (AZURE, PLAIN) if names[0] in header), None)
    if columns is None:
        raise InputError(
            f"{name}: no column {AZURE[0]} or {PLAIN[0]}; the first line must name "
            f"{', '.join(AZURE)} or {', '.join(PLAIN)}"
        )
    if missing := [column for column in columns if column not in header]:
        raise InputError(f"{name}: no column {missing[0]}; needed are {', '.join(columns)}")
    parse_time = _stamp_ps if columns is AZURE else _seconds_ps
    places = [header.index(column) for column in columns]
    most = MAX_REQUESTS if limit is None else min(limit, MAX_REQUESTS)
    found: list[tuple[int, int, int]] = []
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if len(found) == most:
            raise InputError(f"{name}: more than {MAX_REQUESTS:,} requests; cut the file")
        where = f"{name}: line {rows.line_num}"
        if len(row) <= max(places):
            raise InputError(f"{where}: {len(row)} values where the header has {len(header)}")
        time, prompt, output = (row[place].strip() for place in places)
        found.append(
            (
                _at(parse_time, time, f"{where}: {columns[0]}"),
                _tokens(prompt, f"{where}: {columns[1]}"),
                _tokens(output, f"{where}: {columns[2]}"),
            )
        )
        if limit is not None and len(found) == most:
            break
    if not found:
        raise InputError(f"{name}: no requests; one line each is needed below the header")
    first, last = min(row[0] for row in found), max(row[0] for row in found)
    if last - first > MAX_SECONDS * PS:
        raise InputError(f"{name}: spans more than {MAX_SECONDS:,} s; cut the file or --limit it")
    values = np.array([(at - first, p, o) for at, p, o in found], np.int64)
    values = values[np.argsort(values[:, 0], kind="stable")]
    arrival, prompts, outputs = (np.ascontiguousarray(column) for column in values.T)
    return Trace(arrival, prompts, outputs, name)


def _at(parse: Callable[[str], int | None], text: str, where: str) -> int:
    value = parse(text)
    if value is None:
        raise InputError(f"{where} is {_show(text)}; use a time such as {_EXAMPLE[parse]}")
    return value


def _seconds_ps(text: str) -> int | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return round(seconds * PS) if 0 <= seconds <= MAX_SECONDS else None


def _stamp_ps(text: str) -> int | None:
    match = _STAMP.fullmatch(text)
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{'' if zone in (None, 'Z') else zone}")
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * PS + int((fraction or "0").ljust(12, "0"))


_EXAMPLE: dict[Callable[[str], int | None], str] = {
    _stamp_ps: "2023-11-16 18:15:46.680590",
    _seconds_ps: f"12.5 (seconds, 0 to {MAX_SECONDS:,})",
}


def _tokens(text: str, where: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise InputError(f"{where} is {_show(text)}; use a whole number of tokens")
    value = int(text.split(".")[0])
    if not 0 <= value <= MAX_TOKENS:
        raise InputError(f"{where} is {value}; use 0 to {MAX_TOKENS:,} tokens")
    return max(value, 1)


def _show(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
