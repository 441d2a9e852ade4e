"""The exact softmax head of T tasks and its implicit gradient: one launch, one program per task.

The minimiser W = center + A'X of (1/N) sum_i CE(W x_i, y_i) + lambda/2 |W - center|^2 is found by
Newton's method on its dual coefficients A (N, C), in float64. Features enter through the Gram
matrix K = X X' and the scores X center' alone, so after one pass over them a task is a handful of
N x N and N x C tiles in registers and shared memory, whatever D is. Every task stops by itself when
it has converged; the host reads nothing.

A Newton step solves (S K + lambda) D = -R, S the curvature of the softmax sample by sample. That
matrix is self-adjoint in the inner product <u, K v>, in which conjugate gradients run; each vector
is carried along with its image K v.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.reference import softmax_head as reference
from metasparse_ext.triton.operands import operands

#: A task's Gram matrix is held by one program.
MAX_SAMPLES = 64
MAX_CLASSES = 64

CONVERGED = tl.constexpr(reference.CONVERGED)
ITERATIONS = tl.constexpr(reference.ITERATIONS)
NOT_FINITE = tl.constexpr(reference.NOT_FINITE)
MAX_HALVINGS = tl.constexpr(40)
ARMIJO = tl.constexpr(1e-4)
ROUNDING = tl.constexpr(2.0**-50)


@triton.jit
def product(a, b, acc):
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=tl.float64)


@triton.jit
def inner(a, b):
    return tl.sum(tl.sum(a * b, 1), 0)


@triton.jit
def load_rows(X, rows, count, d, D):
    """Rows (r,) of a (count, D) matrix at columns (d,), in float64."""
    inside = (rows < count)[:, None] & (d < D)[None, :]
    at = rows.to(tl.int64)[:, None] * D + d[None, :]
    return tl.load(X + at, mask=inside, other=0.0).to(tl.float64)


@triton.jit
def evaluate(scores, hot, inside, N: tl.constexpr):
    """Probabilities (n, c), and their mean cross-entropy."""
    top = tl.max(tl.where(inside, scores, -float("inf")), 1)
    # Rows beyond the samples hold no score at all.
    top = tl.where(top == -float("inf"), 0.0, top)
    e = tl.where(inside, tl.exp(scores - top[:, None]), 0.0)
    total = tl.sum(e, 1)
    total = tl.where(total == 0, 1.0, total)
    loss = tl.log(total) + top - tl.sum(hot * scores, 1)
    return e / total[:, None], tl.sum(loss, 0) / N


@triton.jit
def curve(probabilities, u, N: tl.constexpr):
    """S u: the curvature of the softmax, sample by sample."""
    mean = tl.sum(probabilities * u, 1)
    return probabilities * (u - mean[:, None]) / N


@triton.jit
def solve_curvature(
    gram, probabilities, lam, rhs, rhs_image, tolerance, LIMIT: tl.constexpr, N: tl.constexpr
):
    """Conjugate gradients on (S K + lambda) d = rhs to a relative residual: d and K d."""
    zero = tl.zeros(rhs.shape, tl.float64)
    d, d_image, r, r_image, p, p_image = zero, zero, rhs, rhs_image, rhs, rhs_image
    squared = inner(r, r_image)
    goal = tolerance * tolerance * squared
    step = tl.zeros((), tl.int32)
    while (squared > goal) & (step < LIMIT):
        q = curve(probabilities, p_image, N) + lam * p
        curvature = inner(q, p_image)
        positive = curvature > 0
        alpha = tl.where(positive, squared / curvature, 0.0)
        d += alpha * p
        d_image += alpha * p_image
        r -= alpha * q
        r_image = product(gram, r, zero)
        previous = squared
        squared = inner(r, r_image)
        p = r + squared / previous * p
        p_image = r_image + squared / previous * p_image
        step = tl.where(positive, step + 1, LIMIT)
    return d, d_image


@triton.jit
def softmax_head_kernel(
    FEATURES, LABELS, CENTER, LAM, WEIGHT, STEPS, RESIDUAL, STATUS,
    features_stride, labels_stride, center_stride, lam_stride, max_iterations,
    N: tl.constexpr, C: tl.constexpr, D: tl.constexpr, TOLERANCE: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One task, from features to weight."""
    t = tl.program_id(0).to(tl.int64)
    FEATURES += t * features_stride
    CENTER += t * center_stride
    n, c = tl.arange(0, BN), tl.arange(0, BC)
    inside = (n < N)[:, None] & (c < C)[None, :]
    label = tl.load(LABELS + t * labels_stride + n, mask=n < N, other=-1)
    hot = tl.where(inside & (label[:, None] == c[None, :]), 1.0, 0.0).to(tl.float64)
    lam = tl.load(LAM + t * lam_stride).to(tl.float64)

    gram, start = tl.zeros((BN, BN), tl.float64), tl.zeros((BN, BC), tl.float64)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        x = load_rows(FEATURES, n, N, d, D)
        gram = product(x, tl.trans(x), gram)
        start = product(x, tl.trans(load_rows(CENTER, c, C, d, D)), start)
    squares = tl.sum(tl.where(n[:, None] == n[None, :], gram, 0.0), 1)
    scale = tl.sqrt(tl.sum(squares, 0) / N)

    zero = tl.zeros((BN, BC), tl.float64)
    dual, image = zero, zero
    probabilities, value = evaluate(start, hot, inside, N)
    taken, status = tl.zeros((), tl.int32), tl.full((), -1, tl.int32)
    residual = tl.zeros((), tl.float64)
    while status < 0:
        gradient = tl.where(inside, (probabilities - hot) / N + lam * dual, 0.0)
        gradient_image = product(gram, gradient, zero)
        squared = inner(gradient, gradient_image)
        norm = tl.where(squared < 0, 0.0, tl.sqrt(squared))
        residual = tl.where(norm == 0, 0.0, norm / scale)
        finite = (residual - residual == 0) & (value - value == 0)
        status = tl.where(taken >= max_iterations, ITERATIONS, -1)
        # The terms that scores are sums of: their rounding is as far as the residual can fall.
        scores = tl.where(inside, start + image, 0.0)
        weighted = inner(squares[:, None] * dual, dual)
        rounding = ROUNDING * tl.sqrt(inner(scores, scores) / N + scale * scale * weighted)
        goal = tl.where(rounding > TOLERANCE, rounding, TOLERANCE)
        status = tl.where(residual <= goal, CONVERGED, status)
        status = tl.where(finite, status, NOT_FINITE)
        if status < 0:
            # The forcing term of Eisenstat and Walker that keeps Newton's quadratic convergence.
            step, step_image = solve_curvature(
                gram, probabilities, lam, -gradient, -gradient_image,
                tl.minimum(residual, 0.1), 2 * BN * BC, N,
            )  # fmt: skip
            slope = inner(gradient, step_image)
            length = tl.full((), 2.0, tl.float64)
            found, halvings = tl.zeros((), tl.int32), tl.zeros((), tl.int32)
            trial_value = value
            while (found == 0) & (halvings < MAX_HALVINGS):
                length = length / 2
                trial_image = image + length * step_image
                trial, loss = evaluate(start + trial_image, hot, inside, N)
                trial_value = loss + lam / 2 * inner(dual + length * step, trial_image)
                bound = value + ARMIJO * length * slope + ROUNDING * (1 + tl.abs(value))
                found = (trial_value <= bound).to(tl.int32)
                halvings += 1
                probabilities = trial
            dual += length * step
            image += length * step_image
            value = trial_value
            taken += found
            # Where rounding hides any fall, this is as far as the search goes.
            status = tl.where(found == 1, -1, ITERATIONS)
    tl.store(STEPS + t, taken.to(tl.int64))
    tl.store(RESIDUAL + t, residual)
    tl.store(STATUS + t, status.to(tl.int64))

    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        w = product(tl.trans(dual), load_rows(FEATURES, n, N, d, D), load_rows(CENTER, c, C, d, D))
        at = t * C * D + c[:, None] * D + d[None, :]
        keep = (c < C)[:, None] & (d < D)[None, :]
        tl.store(WEIGHT + at, w.to(WEIGHT.dtype.element_ty), mask=keep)


@triton.jit
def softmax_head_grad_kernel(
    GRAD, WEIGHT, FEATURES, LABELS, CENTER, LAM, FEATURES_GRAD, CENTER_GRAD, LAM_GRAD,
    grad_stride, weight_stride, features_stride, labels_stride, center_stride, lam_stride,
    N: tl.constexpr, C: tl.constexpr, D: tl.constexpr, TOLERANCE: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One task: s = (H + lambda)^-1 grad = (grad - E'X) / lambda, (S K + lambda) E = S X grad'.

    center gets lambda s, lambda gets -<s, weight - center>, features minus the derivative of
    <gradient of the loss, s>.
    """
    t = tl.program_id(0).to(tl.int64)
    GRAD += t * grad_stride
    WEIGHT += t * weight_stride
    FEATURES += t * features_stride
    CENTER += t * center_stride
    n, c = tl.arange(0, BN), tl.arange(0, BC)
    inside = (n < N)[:, None] & (c < C)[None, :]
    label = tl.load(LABELS + t * labels_stride + n, mask=n < N, other=-1)
    hot = tl.where(inside & (label[:, None] == c[None, :]), 1.0, 0.0).to(tl.float64)
    lam = tl.load(LAM + t * lam_stride).to(tl.float64)

    zero = tl.zeros((BN, BC), tl.float64)
    gram, scores, direction = tl.zeros((BN, BN), tl.float64), zero, zero
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        x = load_rows(FEATURES, n, N, d, D)
        gram = product(x, tl.trans(x), gram)
        scores = product(x, tl.trans(load_rows(WEIGHT, c, C, d, D)), scores)
        direction = product(x, tl.trans(load_rows(GRAD, c, C, d, D)), direction)
    probabilities, _ = evaluate(scores, hot, inside, N)
    rhs = curve(probabilities, direction, N)
    e, e_image = solve_curvature(
        gram, probabilities, lam, rhs, product(gram, rhs, zero), TOLERANCE, 2 * BN * BC, N
    )
    misfit = tl.where(inside, (probabilities - hot) / N, 0.0)
    curved = curve(probabilities, (direction - e_image) / lam, N)

    lam_grad = tl.zeros((), tl.float64)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        x, w = load_rows(FEATURES, n, N, d, D), load_rows(WEIGHT, c, C, d, D)
        by_center = load_rows(GRAD, c, C, d, D) - product(
            tl.trans(e), x, tl.zeros((BC, BD), tl.float64)
        )
        s = by_center / lam
        lam_grad -= inner(s, w - load_rows(CENTER, c, C, d, D))
        by_features = product(misfit, s, tl.zeros((BN, BD), tl.float64))
        by_features = -product(curved, w, by_features)
        tl.store(
            CENTER_GRAD + t * C * D + c[:, None] * D + d[None, :],
            by_center.to(CENTER_GRAD.dtype.element_ty),
            mask=(c < C)[:, None] & (d < D)[None, :],
        )
        tl.store(
            FEATURES_GRAD + t * N * D + n[:, None] * D + d[None, :],
            by_features.to(FEATURES_GRAD.dtype.element_ty),
            mask=(n < N)[:, None] & (d < D)[None, :],
        )
    tl.store(LAM_GRAD + t, lam_grad.to(LAM_GRAD.dtype.element_ty))


# ---- launchers -----------------------------------------------------------------------------------


def _blocks(samples: int, classes: int, columns: int) -> tuple[int, int, int]:
    """Sides of the tiles: samples and classes padded to what a matrix product takes."""
    sides = (max(16, triton.next_power_of_2(size)) for size in (samples, classes))
    return (*sides, columns)


def softmax_head(
    features: Tensor,
    labels: Tensor,
    center: Tensor,
    lam: Tensor,
    tolerance: float,
    max_iterations: int,
    *,
    columns: int = 32,
    warps: int = 4,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The minimisers, as :func:`metasparse_ext.reference.softmax_head.softmax_head`.

    Args:
        features: (T, N, D) float32 or float64, N <= ``MAX_SAMPLES``.
        labels: (T, N) int64 in [0, C).
        center: (T, C, D), C <= ``MAX_CLASSES``.
        lam: (T,) > 0.
        tolerance: On the norm of the objective's gradient over the root mean square of |x_i|.
        max_iterations: Newton steps at most.
        columns: Columns of features a program has in hand at a time.
        warps: Warps of a program.

    Returns:
        weight (T, C, D), iterations (T,), residual (T,) float64, status (T,).
    """
    tasks, samples, size = features.shape
    classes = center.shape[1]
    weight = center.new_empty(center.shape)
    iterations, status = labels.new_empty(tasks), labels.new_empty(tasks)
    residual = features.new_empty(tasks, dtype=torch.float64)
    pointers, strides = operands(features, labels, center, lam)
    softmax_head_kernel[(tasks,)](
        *pointers, weight, iterations, residual, status, *strides, max_iterations,
        samples, classes, size, tolerance, *_blocks(samples, classes, columns), num_warps=warps,
    )  # fmt: skip
    return weight, iterations, residual, status


def softmax_head_grad(
    grad: Tensor,
    weight: Tensor,
    features: Tensor,
    labels: Tensor,
    center: Tensor,
    lam: Tensor,
    *,
    columns: int = 32,
    warps: int = 4,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pulls the gradient in the minimiser back to features, center and lambda.

    Arguments as for :func:`softmax_head`, grad and weight like center. Returns gradients of the
    shapes of features, center and lam.
    """
    tasks, samples, size = features.shape
    classes = center.shape[1]
    outputs = [t.new_empty(t.shape) for t in (features, center, lam)]
    pointers, strides = operands(grad, weight, features, labels, center, lam)
    # In float32 the products above are the limit, and a tighter solve would be wasted.
    tolerance = 1e-9 if features.dtype == torch.float32 else 1e-14
    softmax_head_grad_kernel[(tasks,)](
        *pointers, *outputs, *strides, samples, classes, size, tolerance,
        *_blocks(samples, classes, columns), num_warps=warps,
    )  # fmt: skip
    return tuple(outputs)
