"""Traces from CSV files: what is read, and one line for everything that is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.experiments.serving import PS, read_trace
from cluster.experiments.serving.arrivals import AZURE, MAX_SECONDS, PLAIN
from tests import examples

HEAD = ",".join(AZURE)
AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
2024-05-10 02:00:00.009930+02:00,76,0
"""


def written(directory: Path, text: str | bytes) -> Path:
    path = directory / "trace.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_published_columns_are_read_exactly(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, AZURE_2023))
    assert trace.arrival_ps.tolist() == [0, 4_314_579_000_000, 4_541_877_000_000]
    assert trace.prompt_tokens.tolist() == [374, 396, 879]
    assert trace.output_tokens.tolist() == [44, 109, 55]
    assert len(read_trace(tmp_path / "trace.csv", limit=2)) == 2


def test_zones_are_heeded_and_no_tokens_count_as_one(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, AZURE_2024))
    assert trace.arrival_ps.tolist() == [0, 0, 7_405_000_000]
    assert trace.prompt_tokens.tolist() == [2162, 76, 2399]
    assert trace.output_tokens.tolist() == [5, 1, 6]


def test_plain_columns_in_any_order_with_others(tmp_path: Path) -> None:
    text = "\ufeffuser, output_tokens,arrival_s,prompt_tokens\nme,3,2.5,10\n\nyou,4,1.0,20\r\n"
    trace = read_trace(written(tmp_path, text))
    assert trace.arrival_ps.tolist() == [0, 3 * PS // 2]
    assert trace.prompt_tokens.tolist() == [20, 10]
    assert trace.output_tokens.tolist() == [4, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column"),
        ("a,b,c\n1,2,3\n", "no column TIMESTAMP or arrival_s"),
        ("TIMESTAMP,ContextTokens\n", "no column GeneratedTokens"),
        ("arrival_s,prompt_tokens\n0,1\n", "no column output_tokens"),
        (HEAD + "\n", "no requests"),
        (HEAD + "\nyesterday,1,2\n", "line 2: TIMESTAMP is 'yesterday'"),
        (HEAD + "\n2023-13-01 00:00:00,1,2\n", "line 2: TIMESTAMP"),
        (HEAD + "\n2023-11-16 18:15:46,-1,2\n", "ContextTokens is -1"),
        (HEAD + "\n2023-11-16 18:15:46,1,2.5\n", "GeneratedTokens is '2.5'"),
        (HEAD + "\n2023-11-16 18:15:46,1,99999999999999999999999\n", "GeneratedTokens is '9999"),
        (HEAD + "\n2023-11-16 18:15:46,1,99999999\n", "GeneratedTokens is 99999999"),
        (HEAD + "\n2023-11-16 18:15:46,1\n", "line 2: 2 values"),
        (HEAD + "\n1990-01-01 00:00:00,1,1\n2023-01-01 00:00:00,1,1\n", "spans more than"),
        (",".join(PLAIN) + "\nnan,1,1\n", "arrival_s is 'nan'"),
        (",".join(PLAIN) + "\n-1,1,1\n", "arrival_s is '-1'"),
        (",".join(PLAIN) + f"\n{MAX_SECONDS + 1},1,1\n", "arrival_s"),
        (",".join(PLAIN) + "\n1e400,1,1\n", "arrival_s"),
        (b"\xff\xfe\x00", "UTF-8"),
        (HEAD + "\n" + "x" * 200_000, "CSV"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_trace(written(tmp_path, text))
    assert words in str(caught.value) and "trace.csv" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_files_that_are_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.csv", Path("/dev/zero")):
        with pytest.raises(InputError, match="no such file"):
            read_trace(path)


cells = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
    st.integers(-5, 10**9).map(str),
    st.floats().map(str),
    st.datetimes().map(str),
)


@settings(max_examples=examples(300), deadline=None)
@given(
    st.sampled_from([AZURE, PLAIN, AZURE[:2], ("arrival_s", "TIMESTAMP")]),
    st.lists(st.lists(cells, max_size=4).map(",".join), max_size=4).map("\n".join),
)
def test_any_rows_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, columns: tuple[str, ...], rows: str
) -> None:
    path = written(tmp_path_factory.mktemp("trace"), ",".join(columns) + "\n" + rows)
    try:
        trace = read_trace(path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert len(trace) >= 1 and trace.arrival_ps[0] == 0
    assert (trace.prompt_tokens >= 1).all() and (trace.output_tokens >= 1).all()


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = written(tmp_path_factory.mktemp("trace"), raw)
    with pytest.raises(InputError):
        read_trace(path)
