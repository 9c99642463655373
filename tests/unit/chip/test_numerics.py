"""Rounding, special values and exactness of ``chip.numerics``."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from chip import numerics, verify_numerics

U32 = st.integers(0, 2**32 - 1)
U16 = st.integers(0, 2**16 - 1)

relaxed = settings(deadline=None)  # the first call of a kernel may compile it

needs_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than double"
)


def f32(bits: int) -> np.float32:
    return np.uint32(bits).view(np.float32)


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def bits(x: np.ndarray) -> list[int]:
    return x.view(np.uint32).tolist()


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def f32_of_fraction(value: Fraction) -> np.float32:
    """A fraction rounded once to fp32 (nearest even, no overflow), independent of NumPy."""
    if value == 0:
        return np.float32(0)
    exponent = max(math.frexp(float(abs(value)))[1] - 24, -149)
    while abs(value) / Fraction(2) ** exponent >= 1 << 24:
        exponent += 1
    while exponent > -149 and abs(value) / Fraction(2) ** exponent < 1 << 23:
        exponent -= 1
    return np.float32(math.ldexp(round(value / Fraction(2) ** exponent), exponent))


# --- exp, tanh, rsqrt -----------------------------------------------------------------------


def test_exp_special_values() -> None:
    nan = f32(0xFF812345)
    x = array(0.0, -0.0, np.inf, -np.inf, nan, 88.72283, 88.72284, -103.97207, -103.97209, -200)
    y = numerics.exp(x)
    assert bits(y[:2]) == [0x3F800000] * 2
    assert y[2] == np.inf and bits(y[3:5]) == [0, 0x7FC00000]
    assert np.isfinite(y[5]) and y[6] == np.inf
    assert bits(y[7:]) == [1, 0, 0]


def test_tanh_special_values() -> None:
    x = array(0.0, -0.0, np.inf, -np.inf, f32(0x7F800001), 1e-45, -1e-45, 9.0, 9.02, -9.02)
    assert bits(numerics.tanh(x)) == [
        0,
        0x80000000,
        0x3F800000,
        0xBF800000,
        0x7FC00000,
        1,
        0x80000001,
        0x3F7FFFFF,
        0x3F800000,
        0xBF800000,
    ]


def test_rsqrt_special_values() -> None:
    x = array(0.0, -0.0, np.inf, -np.inf, np.nan, -1.0, -1e-45, 4.0, 2.0**-148)
    assert bits(numerics.rsqrt(x)) == [
        0x7F800000,
        0xFF800000,
        0,
        0x7FC00000,
        0x7FC00000,
        0x7FC00000,
        0x7FC00000,
        0x3F000000,
        int(np.float32(2.0**74).view(np.uint32)),
    ]


@pytest.mark.long
def test_rsqrt_is_exact_on_every_mantissa() -> None:
    """Two binades cover all mantissas and both parities of the exponent."""
    wrong, _ = verify_numerics.verify_chunk("rsqrt", 0x3F800000, 0x40000000)
    assert wrong.size == 0
    wrong, _ = verify_numerics.verify_chunk("rsqrt", 0x40000000, 0x40800000)
    assert wrong.size == 0


def test_the_rsqrt_criterion_rejects_neighbours() -> None:
    x = np.random.default_rng(1).integers(1, 0x7F800000, 10_000, np.uint32).view(np.float32)
    x[:200] = np.float32(2.0) ** np.arange(-100, 100).astype(np.float32)
    y = numerics.rsqrt(x)
    assert verify_numerics.rsqrt_is_right(x, y).all()
    for step in (-1, 1):
        neighbour = (y.view(np.int32) + np.int32(step)).view(np.float32)
        assert not verify_numerics.rsqrt_is_right(x, neighbour).any()


@needs_long_double
@pytest.mark.parametrize(("name", "low", "high"), [("exp", 1e-9, 110.0), ("tanh", 1e-6, 10.0)])
def test_against_long_double(name: str, low: float, high: float) -> None:
    rng = np.random.default_rng(2)
    size = np.exp(rng.uniform(np.log(low), np.log(high), 1_000_000))
    x = np.concatenate([size, -size]).astype(np.float32)
    x = np.concatenate([x, rng.integers(0, 1 << 32, 200_000, np.uint32).view(np.float32)])
    x = x[~np.isnan(x)]
    with np.errstate(all="ignore"):
        expected, _ = getattr(verify_numerics, f"expected_{name}")(x)
    assert same(getattr(numerics, name)(x), expected)


@relaxed
@given(st.floats(-87, 88.5, width=32))
def test_exp_against_decimal(x: float) -> None:
    assert numerics.exp(array(x))[0] == verify_numerics.decimal_exp(x)


@relaxed
@given(st.floats(2.0**-20, 10, width=32), st.sampled_from([-1, 1]))
def test_tanh_against_decimal(x: float, sign: int) -> None:
    assert numerics.tanh(array(sign * x))[0] == verify_numerics.decimal_tanh(sign * x)


# All inputs whose result lies within 2**-50 of a rounding boundary, found by enumeration.
HARD_EXP = [
    0x377EFF81,
    0x4001B249,
    0x40315B33,
    0xB3000000,
    0xBAE0E25C,
    0xBBF0EDF1,
    0xC16912CD,
]
HARD_TANH = [0x3AC37DE2, 0xBAC37DE2]


@pytest.mark.parametrize("pattern", HARD_EXP)
def test_hardest_exp(pattern: int) -> None:
    x = f32(pattern)
    assert numerics.exp(array(x))[0] == verify_numerics.decimal_exp(float(x))


@pytest.mark.parametrize("pattern", HARD_TANH)
def test_hardest_tanh(pattern: int) -> None:
    x = f32(pattern)
    assert numerics.tanh(array(x))[0] == verify_numerics.decimal_tanh(float(x))


@needs_long_double
@pytest.mark.parametrize("name", ["exp", "tanh", "rsqrt"])
@relaxed
@given(pattern=U32)
def test_any_pattern(name: str, pattern: int) -> None:
    wrong, _ = verify_numerics.verify_chunk(name, pattern, pattern + 1)
    assert wrong.size == 0


@pytest.mark.parametrize("name", ["exp", "tanh", "rsqrt"])
def test_scalar_and_array_forms_agree(name: str) -> None:
    patterns = np.random.default_rng(3).integers(0, 1 << 32, 500, np.uint32)
    x = patterns.view(np.float32)
    scalar = getattr(numerics, f"{name}_f32")
    assert same(getattr(numerics, name)(x), np.array([scalar(v) for v in x], np.float32))


def test_verification_command(capsys: pytest.CaptureFixture[str]) -> None:
    if np.finfo(np.longdouble).nmant < 63:
        assert verify_numerics.main(["exp", "--stop", "1"]) == 2
        return
    part = ["--start", "0x3f000000", "--stop", "0x3f003000", "--chunk", "0x1000"]
    assert verify_numerics.main(["tanh", *part]) == 0
    assert capsys.readouterr().out.startswith("tanh: 12288 inputs, 0 wrong")


@needs_long_double
def test_verification_reports_a_wrong_function(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = numerics.exp
    monkeypatch.setattr(numerics, "exp", lambda x: np.nextafter(right(x), np.float32(9)))
    assert verify_numerics.main(["exp", "--start", "0x3f000000", "--stop", "0x3f000100"]) == 1
    assert "wrong: exp(0x3f000000)" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["exp", "tanh", "rsqrt"])
def test_all_inputs(name: str) -> None:
    assert verify_numerics.main([name]) == 0


def test_round_decimal() -> None:
    values = [1.0, 1.5, -3.25, 2.0**-149, 3 * 2.0**-140, 1 + 2.0**-24, 1 + 3 * 2.0**-24, 2.0**100]
    for value in values:
        expected = f32_of_fraction(Fraction(value))
        assert verify_numerics.round_decimal(verify_numerics.Decimal(value)) == expected


# --- conversions, MAX, MIN ------------------------------------------------------------------


def test_from_f16_bits_exhaustive() -> None:
    h = np.arange(1 << 16, dtype=np.uint16)
    expected = h.view(np.float16).astype(np.float32)
    expected[np.isnan(expected)] = f32(0x7FC00000)
    assert same(numerics.from_f16_bits(h), expected)


def expected_f16(x: np.ndarray) -> np.ndarray:
    clipped = np.clip(x.astype(np.float64), -65504, 65504)
    result = clipped.astype(np.float16).view(np.uint16)
    result[np.isnan(x)] = 0x7E00
    return result


def test_to_f16_bits_at_every_boundary() -> None:
    """Every fp16 value, every midpoint of two, and the fp32 numbers around them."""
    h = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    points = np.concatenate([h, (h[1:] + h[:-1]) / 2, [65520.0, 65536.0, 1e30]]).astype(np.float32)
    points = np.concatenate(
        [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(0))]
    )
    points = np.concatenate([points, -points])
    assert same(numerics.to_f16_bits(points), expected_f16(points))


def test_to_f16_bits_random_and_special() -> None:
    x = np.random.default_rng(4).integers(0, 1 << 32, 2_000_000, np.uint32)
    x[:4] = [0x7F800000, 0xFF800000, 0x7F800001, 0xFFC00000]
    with np.errstate(invalid="ignore"):  # signalling NaNs
        assert same(numerics.to_f16_bits(x.view(np.float32)), expected_f16(x.view(np.float32)))


def test_f16_round_trip() -> None:
    h = np.arange(1 << 16, dtype=np.uint16)
    expected = h.copy()
    expected[(h & 0x7FFF) > 0x7C00] = 0x7E00
    expected[h == 0x7C00] = 0x7BFF
    expected[h == 0xFC00] = 0xFBFF
    assert same(numerics.to_f16_bits(numerics.from_f16_bits(h)), expected)


def test_to_i32() -> None:
    x = array(
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        -2.5,
        2147483520,
        2147483648,
        -2147483648,
        -3e9,
        np.inf,
        -np.inf,
        np.nan,
        -0.0,
        8388607.5,
        1e-45,
    )
    assert numerics.to_i32(x).tolist() == [
        0,
        2,
        2,
        0,
        -2,
        -2,
        2147483520,
        2147483647,
        -2147483648,
        -2147483648,
        2147483647,
        -2147483648,
        0,
        0,
        8388608,
        0,
    ]


@relaxed
@given(U32)
def test_to_i32_any_pattern(pattern: int) -> None:
    x = f32(pattern)
    expected = 0
    if np.isinf(x):
        expected = 2**31 - 1 if x > 0 else -(2**31)
    elif not np.isnan(x):
        expected = min(max(round(Fraction(float(x))), -(2**31)), 2**31 - 1)
    assert numerics.to_i32(np.array([x]))[0] == expected


SPECIAL = [0, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFF800001]


@relaxed
@given(st.one_of(U32, st.sampled_from(SPECIAL)), st.one_of(U32, st.sampled_from(SPECIAL)))
def test_max_and_min(p: int, q: int) -> None:
    a, b = f32(p), f32(q)
    if np.isnan(a) and np.isnan(b):
        greater = lesser = 0x7FC00000
    elif np.isnan(a) or np.isnan(b):
        greater = lesser = p if np.isnan(b) else q
    else:
        # Among equal values (the two zeros) the sign decides.
        lesser, greater = sorted((p, q), key=lambda u: (float(f32(u)), -(u >> 31)))
    assert numerics.f32_bits(numerics.max_f32(a, b)) == greater
    assert numerics.f32_bits(numerics.min_f32(a, b)) == lesser


@relaxed
@given(U32)
def test_bit_casts_and_canonical(pattern: int) -> None:
    x = f32(pattern)
    assert numerics.f32_bits(x) == pattern
    expected = 0x7FC00000 if np.isnan(x) else pattern
    assert numerics.f32_bits(numerics.canonical(x)) == expected
    assert bits(numerics.canonical_nan(np.array([x]))) == [expected]
    if not np.isnan(x):
        assert numerics.f32_bits(numerics.bits_f32(np.uint32(pattern))) == pattern


def test_array_forms_keep_shape_and_take_any_layout() -> None:
    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)
    y = numerics.exp(x.transpose(2, 0, 1)[::2])
    assert y.shape == (2, 2, 3)
    assert same(y, np.ascontiguousarray(numerics.exp(x).transpose(2, 0, 1)[::2]))
    assert numerics.tanh(np.float32(0.5).reshape(())).shape == ()
    assert numerics.exp(np.zeros((0, 3), np.float32)).shape == (0, 3)
    assert numerics.to_f16_bits(x).dtype == np.uint16
    assert numerics.to_i32(x).dtype == np.int32


def test_array_forms_refuse_other_types() -> None:
    with pytest.raises(TypeError, match="expected float32, got float64"):
        numerics.exp(np.zeros(3))  # type: ignore[arg-type]


# --- exact fp16 dot products ----------------------------------------------------------------


def exact_dot(weights: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """dot_f16_exact by fractions."""
    result = np.empty(weights.shape[0], np.float32)
    a = [float(v) for v in activation.view(np.float16)]
    for n, row in enumerate(weights.view(np.float16)):
        w = [float(v) for v in row]
        if not all(map(math.isfinite, w + a)):
            result[n] = f32(0x7FC00000)
            continue
        total = sum((Fraction(x) * Fraction(y) for x, y in zip(w, a, strict=True)), Fraction(0))
        result[n] = f32_of_fraction(total)
    return result


def check_dot(weights: np.ndarray, activation: np.ndarray) -> None:
    result = numerics.dot_f16_exact(weights, activation)
    assert same(result, exact_dot(weights, activation))
    two = numerics.dot_f16_exact(weights, np.stack([activation, activation[::-1]]))
    assert two.shape == (2, weights.shape[0])
    assert same(two[0], result)
    assert same(two[1], numerics.dot_f16_exact(weights, np.ascontiguousarray(activation[::-1])))


def finite(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Uniform finite fp16 bit patterns: all exponents alike, both signs."""
    h = rng.integers(0, 0x7C00, shape, np.uint16)
    return h | (rng.integers(0, 2, shape, np.uint16) << np.uint16(15))


def test_dot_all_exponents() -> None:
    rng = np.random.default_rng(5)
    check_dot(finite(rng, 24, 320), finite(rng, 320))


def test_dot_gaussian() -> None:
    rng = np.random.default_rng(6)
    w = rng.normal(size=(24, 320)).astype(np.float16).view(np.uint16)
    check_dot(w, rng.normal(size=320).astype(np.float16).view(np.uint16))


def test_dot_cancelling() -> None:
    """Huge terms cancel in pairs; what is left is tiny, or nothing."""
    rng = np.random.default_rng(7)
    w = finite(rng, 16, 320)
    w[:, 160:318] = w[:, 2:160] ^ np.uint16(0x8000)
    w[::4, :2] = w[::4, 318:] = 0
    w[1::4, 318:] = rng.integers(0, 4, (4, 2), np.uint16)
    a = finite(rng, 320)
    a[160:318] = a[2:160]
    a[318:] = rng.integers(0, 4, 2, np.uint16)
    check_dot(w, a)
    assert bits(numerics.dot_f16_exact(w[::4], a)) == [0] * 4


def test_dot_subnormal_and_extreme() -> None:
    rng = np.random.default_rng(8)
    w = rng.integers(0, 0x400, (8, 320), np.uint16)
    check_dot(w, rng.integers(0x8000, 0x8400, 320, np.uint16))
    extreme = np.full((4, 320), 0x7BFF, np.uint16)
    extreme[1] |= 0x8000
    extreme[2, ::2] |= np.uint16(0x8000)
    extreme[3, :] = 1
    for activation in (0x7BFF, 0xFBFF, 1, 0x8001, 0, 0x8000):
        check_dot(extreme, np.full(320, activation, np.uint16))


def test_dot_ties_decided_far_below() -> None:
    """A sum on a midpoint of two fp32 numbers, and the smallest product moves it either way."""
    one, tiny, minus_tiny = 0x3C00, 0x0001, 0x8001
    rows = []
    for units in (1, 3):  # 2**13 + units * 2**-11: halfway for fp32, 2**13 has unit 2**-10
        for last in (0, tiny, minus_tiny):
            half = np.float16(units * 2.0**-11).view(np.uint16)
            big = np.float16(2.0**13).view(np.uint16)
            rows.append([big, half, last])
    activation = np.array([one, one, tiny], np.uint16)
    check_dot(np.array(rows, np.uint16), activation)
    result = numerics.dot_f16_exact(np.array(rows, np.uint16), activation)
    units = (result - np.float32(2**13)) * np.float32(2**10)
    assert units.tolist() == [0, 1, 0, 2, 2, 1]


def test_dot_not_finite() -> None:
    rng = np.random.default_rng(9)
    w, a = finite(rng, 6, 40), finite(rng, 40)
    w[1, 3], w[2, 39], w[3, 0] = 0x7C00, 0xFC00, 0x7E01
    result = numerics.dot_f16_exact(w, a)
    assert np.isnan(result).tolist() == [False, True, True, True, False, False]
    check_dot(w, a)
    a[7] = 0x7C00
    assert bits(numerics.dot_f16_exact(w, a)) == [0x7FC00000] * 6
    check_dot(w, a)


@relaxed
@given(
    hnp.arrays(np.uint16, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=U16),
    st.data(),
)
def test_dot_any_bits(weights: np.ndarray, data: st.DataObject) -> None:
    activation = data.draw(hnp.arrays(np.uint16, weights.shape[1], elements=U16))
    check_dot(weights, activation)


def test_dot_with_cached_weights() -> None:
    rng = np.random.default_rng(10)
    w, a = finite(rng, 7, 64), finite(rng, 5, 64)
    cached = numerics.split_f16(w)
    value = cached.h * 2.0**20 + cached.l
    assert same(value * 2.0**-24, w.view(np.float16).astype(np.float64) + 0.0)
    expected = numerics.dot_f16_exact(w, a)
    assert same(numerics.dot_f16_split(cached, numerics.split_f16(a)), expected)


def test_dot_refuses_what_is_not_exact() -> None:
    long = np.zeros((1, numerics.MAX_DOT_TERMS + 1), np.uint16)
    with pytest.raises(ValueError, match="4097 terms; exact up to 4096"):
        numerics.dot_f16_exact(long, long[0])


def test_verification_takes_every_pattern_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In chunks; of what is wrong it shows the first twenty, of what is hard everything."""
    chunks: list[tuple[int, int]] = []

    def checked(name: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        chunks.append((first, last))
        begins = np.arange(first, first + 15, dtype=np.uint32)
        return begins[: 15 * (len(chunks) < 3)], begins[: len(chunks) < 4]

    monkeypatch.setattr(verify_numerics, "verify_chunk", checked)
    assert verify_numerics.main(["exp"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert chunks == [(n << 18, n + 1 << 18) for n in range(1 << 14)]
    wrong = [*range(15), *range(1 << 18, (1 << 18) + 5)]
    assert [x for x in lines if x[0] == "w"] == [f"wrong: exp(0x{n:08x})" for n in wrong]
    assert [x for x in lines if x[0] == "h"] == [f"hard: exp(0x{n << 18:08x})" for n in range(3)]
    assert lines[-1].startswith("exp: 4294967296 inputs, 30 wrong, 3 decided by 60-digit")
    chunks.clear()
    part = ["--start", "10", "--stop", "0x20", "--chunk", "9"]
    assert verify_numerics.main(["tanh", *part]) == 1
    assert chunks == [(10, 19), (19, 28), (28, 32)]


@pytest.mark.parametrize("name", ["exp", "tanh", "rsqrt"])
def test_verification_wants_the_one_nan_for_nan_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan, right = 0x7FC00001, getattr(numerics, name)
    other = f32(nan)
    assert verify_numerics.verify_chunk(name, nan, nan + 2)[0].size == 0
    for wrong in (lambda x: np.full_like(x, other), np.ones_like):
        monkeypatch.setattr(numerics, name, wrong)
        assert verify_numerics.verify_chunk(name, nan, nan + 2)[0].tolist() == [nan, nan + 1]
    standard = np.uint32(0x7FC00000).view(np.float32)
    monkeypatch.setattr(numerics, name, lambda x: np.where(x == 3, standard, right(x)))
    three = int(np.float32(3).view(np.uint32))
    assert verify_numerics.verify_chunk(name, three - 1, three + 2)[0].tolist() == [three]


def test_roots_of_what_is_no_number_above_zero() -> None:
    x = array(0.0, -0.0, np.inf, -np.inf, -2.0, 1e-42, 4.0)
    y = array(np.inf, -np.inf, 0.0, np.nan, np.nan, numerics.rsqrt(array(1e-42))[0], 0.5)
    assert not verify_numerics.wrong_rsqrt(x, y).any()
    wrong = array(-np.inf, np.inf, -0.0, 1.0, 0.5, 1.0, -0.5)
    assert verify_numerics.wrong_rsqrt(x, wrong).all()


@needs_long_double
def test_hard_cases_are_decided_by_decimal_arithmetic() -> None:
    """Near a rounding border the reference does not trust the long double."""
    for name, patterns in (("exp", HARD_EXP), ("tanh", HARD_TANH)):
        x = np.array(patterns, np.uint32).view(np.float32)
        expected, hard = getattr(verify_numerics, f"expected_{name}")(x)
        exact = getattr(verify_numerics, f"decimal_{name}")
        assert hard.all() and expected.tolist() == [exact(float(v)) for v in x]
        easy = (x.view(np.uint32) + np.uint32(5)).view(np.float32)
        assert not getattr(verify_numerics, f"expected_{name}")(easy)[1].any()


def test_borders_beyond_which_nothing_is_computed() -> None:
    """On both sides of them the references are the decimal ones."""
    edges = array(2.0**-26, -(2.0**-26), 88.5, 88.8, 89.0, -87.0, -103.5, -104.0)
    for edge in edges:
        for x in (edge, np.nextafter(edge, np.float32(0)), np.nextafter(edge, 2 * edge)):
            with np.errstate(all="ignore"):
                expected = verify_numerics.expected_exp(array(x))[0][0]
                exact = numerics.exp(array(x))[0]
            assert expected == exact, x
    for edge in array(2.0**-13, 9.5, -(2.0**-13), -9.5):
        for x in (edge, np.nextafter(edge, np.float32(0)), np.nextafter(edge, 2 * edge)):
            expected = verify_numerics.expected_tanh(array(x))[0][0]
            assert expected == verify_numerics.decimal_tanh(float(x)), x
