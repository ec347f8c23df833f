"""Multistep solvers as numbers: one row of host scalars per (step, predictions remembered).

UniPC (arXiv 2302.04867, B(h) = expm1, data prediction) and DPM-Solver++ multistep (2211.01095) for
flow matching: alpha = 1 - sigma, lambda = log(alpha / sigma). Both move a sample linearly,

    x' = sample * x + sum_j predictions[j] * m_j

with m_j the predictions of the clean latents at this step (j = 0) and at the steps before it,
newest first. Everything is float64, and exact at sigma = 0, where lambda is infinite.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """Weights of one linear move."""

    sample: float
    predictions: tuple[float, ...]


def unipc_order(order: int, step: int, steps: int, remembered: int) -> int:
    """Order of the prediction at `step`: it grows with what is remembered and falls at the end."""
    return min(order, steps - step, remembered + 1)


def unipc_predictor(sigmas: Sequence[float], step: int, order: int) -> Row:
    """From the corrected sample at `step` to the sample at `step + 1`."""
    now, end = sigmas[step], sigmas[step + 1]
    if end == 0.0:
        # h is infinite: the past has no weight, the prediction is the answer
        return Row(0.0, (1.0,))
    h, ratios = _ratios(sigmas, step, end, order)
    # order 2 takes the value that the published solver fixes in place of solving 1 x 1
    weights = [0.5] if order == 2 else _solve(h, ratios, order - 1)
    return _unipc_row(now, end, h, ratios, weights)


def unipc_corrector(sigmas: Sequence[float], step: int, order: int) -> Row:
    """From the corrected sample at `step - 1` to the corrected sample at `step`.

    predictions[0] weighs the new prediction, at `step` itself.
    """
    start, now = sigmas[step - 1], sigmas[step]
    h, ratios = _ratios(sigmas, step - 1, now, order)
    weights = [0.5] if order == 1 else _solve(h, [*ratios, 1.0], order)
    past = _unipc_row(start, now, h, [*ratios, 1.0], weights)
    base, *older, newest = past.predictions
    return Row(past.sample, (newest, base, *older))


def dpm_order(order: int, step: int, steps: int, remembered: int) -> int:
    """Order at `step`: 1 into sigma 0; with few steps it also falls on the way there."""
    if step == steps - 1:
        return 1
    if step == steps - 2 and steps < 15:
        order = min(order, 2)
    return min(order, remembered + 1)


def dpm_row(sigmas: Sequence[float], step: int, order: int) -> Row:
    """From the sample at `step` to the sample at `step + 1`."""
    now, end = sigmas[step], sigmas[step + 1]
    if end == 0.0:
        return Row(0.0, (1.0,))
    h, ratios = _ratios(sigmas, step, end, order)
    alpha, decay = 1 - end, math.expm1(-h)
    plain = -alpha * decay
    if order == 1:
        return Row(end / now, (plain,))
    # first divided differences of m over lambda, in units of h: (m0 - m1) / r
    if order == 2:
        slope = plain / 2 / -ratios[0]
        return Row(end / now, (plain + slope, -slope))
    near, far = -ratios[0], ratios[0] - ratios[1]
    first = alpha * (decay / h + 1)
    second = -alpha * ((decay + h) / h**2 - 0.5)
    # D1 = d0 + near/(near+far) * (d0 - d1), D2 = (d0 - d1) / (near + far)
    bend = (first * near + second) / (near + far)
    newer, older = (first + bend) / near, -bend / far
    return Row(end / now, (plain + newer, older - newer, -older))


def _lambda(sigma: float) -> float:
    assert 0 < sigma < 1, sigma
    return math.log1p(-sigma) - math.log(sigma)


def _ratios(
    sigmas: Sequence[float], step: int, end: float, order: int
) -> tuple[float, list[float]]:
    """Width of the move from `step` in lambda, and where older steps lie in units of it."""
    start = _lambda(sigmas[step])
    h = _lambda(end) - start
    return h, [(_lambda(sigmas[step - i]) - start) / h for i in range(1, order)]


def _solve(h: float, ratios: list[float], order: int) -> list[float]:
    """Weights of the differences at `ratios` that make a move exact for polynomials up to order."""
    if order == 0:
        return []
    matrix = np.array([[ratio**power for ratio in ratios] for power in range(order)])
    scale, phi, factorial = math.expm1(-h), math.expm1(-h) / -h - 1, 1
    targets = []
    for power in range(1, order + 1):
        targets.append(phi * factorial / scale)
        factorial *= power + 1
        phi = phi / -h - 1 / factorial
    return [float(weight) for weight in np.linalg.solve(matrix, np.array(targets))]


def _unipc_row(
    start: float, end: float, h: float, ratios: list[float], weights: list[float]
) -> Row:
    """predictions: at the start of the move, then one per ratio."""
    alpha, decay = 1 - end, math.expm1(-h)
    others = [
        -alpha * decay * weight / ratio for weight, ratio in zip(weights, ratios, strict=True)
    ]
    return Row(end / start, (-alpha * decay - sum(others), *others))
