"""Roundings to int8 that compensate each other, after GPTQ (Frantar et al., 2022).

The weights of a column are rounded one after another; what each loses is moved to those that are
still to come, so that the column's product with typical activations changes least.  The result is
in the form that the loader of int8 weights has: integers of -127 to 127 and one scale for a column
of a chip's slice.  The greatest weight of each stays where it is, at 127 steps, so that rounding
the written weights to nearest finds the same scale and the same integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Compensation", "nearest", "round_columns", "weighted_error"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Index = NDArray[np.int64]

STEPS = 127.0
#: Elements of a column between two updates of all that follow.
BLOCK = 96
#: Columns that are rounded at once.
COLUMNS = 8192


@dataclass(frozen=True)
class Compensation:
    """Where the error of each of K elements goes.

    order: elements in the order of rounding, those of the greatest activations first.  factor:
    float32 [K, K], upper triangular in that order: the Cholesky factor of the inverse of the
    activations' second moments.
    """

    order: Index
    factor: F32

    @classmethod
    def of(cls, moments: F64, damping: float) -> Compensation:
        """From the sums of products of activations, float64 [K, K].

        ``damping`` of the mean square is added to each one's own: the less, the closer the
        roundings follow the calibration text.
        """
        squares = np.diag(moments)
        mean = float(squares.mean())
        order = np.argsort(-squares, kind="stable")
        damped = moments[np.ix_(order, order)] + np.eye(len(order)) * (damping * mean or 1.0)
        inverse = np.linalg.inv(damped)
        lower = np.linalg.cholesky((inverse + inverse.T) / 2)
        return cls(order, lower.T.astype(np.float32))


def nearest(weights: F32, slices: Sequence[Index]) -> F32:
    """Each weight of [N, K] rounded to its nearest step; ``slices`` of K have scales of their own.

    It is what the loader does (docs/numerics.md, "Matrices").
    """
    rounded = np.zeros_like(weights)
    for own in slices:
        part = weights[:, own].astype(np.float64)
        steps = _steps(np.abs(part).max(axis=1, keepdims=True))
        rounded[:, own] = np.rint(part / steps) * steps
    return rounded


def round_columns(weights: F32, by: Compensation, slices: Sequence[Index]) -> F32:
    """Round float32 [N, K] to int8 steps, float32 values; ``slices`` of K have their own scales.

    Every element of K is in one slice.
    """
    places = [weights[first : first + COLUMNS] for first in range(0, len(weights), COLUMNS)]
    return np.concatenate([_rounded(place, by, slices) for place in places])


def weighted_error(weights: F32, rounded: F32, moments: F64) -> float:
    """Sum of squares of what the roundings change in the product with the activations."""
    apart = (weights - rounded).astype(np.float64)
    return float(np.sum((apart @ moments) * apart))


def _steps(peak: F64) -> F64:
    return np.where(peak > 0, peak / STEPS, 1.0)


def _rounded(weights: F32, by: Compensation, slices: Sequence[Index]) -> F32:
    """``round_columns`` of a few columns; inside, elements come first and in their order."""
    slice_of = np.zeros(weights.shape[1], np.int64)
    steps, greatest = [], []
    for number, own in enumerate(slices):
        size = np.abs(weights[:, own])
        slice_of[own] = number
        steps.append(_steps(size.max(axis=1).astype(np.float64)))
        greatest.append(own[size.argmax(axis=1)])
    exact = weights.T[by.order]
    left, result = exact.copy(), np.empty_like(exact)
    for first in range(0, len(left), BLOCK):
        last = min(first + BLOCK, len(left))
        errors = np.empty_like(left[first:last])
        for at in range(first, last):
            element = by.order[at]
            step = steps[slice_of[element]]
            whole = np.clip(np.rint(left[at] / step), -STEPS, STEPS)
            kept = (greatest[slice_of[element]] == element) & (exact[at] != 0)
            whole[kept] = np.copysign(STEPS, exact[at][kept])
            result[at] = whole * step
            errors[at - first] = (left[at] - result[at]) / by.factor[at, at]
            left[at + 1 : last] -= by.factor[at, at + 1 : last, None] * errors[at - first]
        left[last:] -= by.factor[first:last, last:].T @ errors
    rounded = np.empty_like(weights)
    rounded[:, by.order] = result.T
    return rounded
