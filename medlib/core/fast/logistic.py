"""Logistic regressions, for many strengths of the penalty and many resamples at once."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

GAP = 3e-8  # where a regression stops: the estimated gap to its optimum, relative to the objective
ITERATIONS = 5000  # at most, in float32 and again in float64
PATIENCE = 10  # float32 stops after this many iterations without a smaller gap: it only rounds
TRIALS = 10  # step lengths tried at most
MEMORY = 10  # steps that L-BFGS remembers
REFRESH = 5  # an approximation of the Hessian is used for this many iterations
ROUGH = 1e-5  # where a regression on a resample stops: only the spread over resamples is wanted
AT_ONCE = 1 << 24  # resamples are solved in blocks of about this many logits


def logistic_regression(x: Tensor, y: Tensor, c: Sequence[float]) -> tuple[Tensor, Tensor]:
    """L2-regularised logistic regressions on one training set, for every value of C at once.

    ``x`` (n, d) standardised embeddings, ``y`` (n,) labels 0 … K-1, all of which occur. The
    objective is the mean cross-entropy + ``|W|² / (2 C)``, without a penalty on the bias. So C
    means the same for every number of images (scikit-learn's C, which weighs the sum, is C / n).
    Returns weights (len(c), K, d) and biases (len(c), K) in float64. For two classes there is one
    row instead of K: the log-odds of the second class.

    In the eigenbasis of the embeddings' Gram matrix the penalty is unchanged and the Hessian nearly
    diagonal over features; there L-BFGS (Nocedal & Wright 2006, algorithm 7.4) solves all problems
    at once, first in float32, then in float64, each until its estimated gap is below :data:`GAP` of
    its objective. A RuntimeWarning names the values of C that do not get there. Raises ValueError
    where there is only one class.
    """
    z, hot, penalty, basis = _problems(x, y, c)
    even = z.new_full((1, 1, len(z)), 1 / len(z), dtype=torch.float64)
    rough, _ = _minimise(z, hot, penalty.to(z), even.to(z), patience=PATIENCE)
    problems = z.double(), hot.double(), penalty, even
    best, gap = _minimise(*problems, start=rough.double(), patience=ITERATIONS)
    if missed := [f"{c[i]:g} (gap {gap[i]:.1g})" for i in (~(gap <= GAP)).nonzero().flatten()]:
        words = (
            f"Logistic regression has not converged for C = {', '.join(missed)}; relative to the "
            f"objective, the gap should be below {GAP:g}. Drop these values, or the result is that "
            "of a somewhat smaller C."
        )
        warnings.warn(words, RuntimeWarning, stacklevel=2)
    return best[:, :, :-1] @ basis.T.double(), best[:, :, -1]


def resampled(x: Tensor, y: Tensor, c: Sequence[float], counts: Tensor) -> tuple[Tensor, Tensor]:
    """Solve the same regressions on resamples of the images, in float32.

    ``counts`` (R, n) says how often each image is drawn. Every class must be drawn in each
    resample. Each regression starts from the solution of the images themselves, and stops when its
    estimated gap is below :data:`ROUGH`. Returns weights (R, len(c), K, d) and biases
    (R, len(c), K).
    """
    z, hot, penalty, basis = _problems(x, y, c)
    penalty, parts = penalty.to(z), []
    even = z.new_full((1, 1, len(z)), 1 / len(z))
    start, _ = _minimise(z, hot, penalty, even, patience=PATIENCE, enough=ROUGH)
    for some in counts.to(z).split(max(1, AT_ONCE // (start[:, :, :1].numel() * len(z)))):
        share = (some / some.sum(1, keepdim=True)).repeat_interleave(len(c), 0)[:, None]
        penalties, starts = (part.repeat(len(some), 1, 1) for part in (penalty, start))
        problems = z, hot, penalties, share, starts
        # Longer than PATIENCE: some come no closer for a while, although their optimum is far.
        parts.append(_minimise(*problems, patience=3 * PATIENCE, enough=ROUGH)[0])
    best = torch.cat(parts).unflatten(0, (len(counts), len(c)))
    return best[..., :-1] @ basis.T, best[..., -1]


def _problems(x: Tensor, y: Tensor, c: Sequence[float]) -> tuple[Tensor, ...]:
    """Features (n, r), labels (k, n), penalties (len(c), 1, r), and the basis (d, r - 1).

    The features are the coordinates of ``x`` in the basis, and a constant 1 for the bias.
    """
    n_classes = int(y.max()) + 1
    if n_classes < 2:
        raise ValueError("Logistic regression needs training images of at least two classes.")
    basis = _eigenbasis(x)
    # The bias is one more weight, of a feature that is 1 everywhere, without a penalty.
    z = torch.cat([x @ basis, x.new_ones(len(x), 1)], 1)
    hot = y[None] if n_classes == 2 else nn.functional.one_hot(y, n_classes).T
    penalty = (1 / torch.tensor(c, dtype=torch.float64, device=x.device))[:, None, None]
    penalty = penalty.repeat(1, 1, z.shape[1])
    penalty[:, :, -1] = 0
    return z, hot.to(z), penalty, basis


def _eigenbasis(x: Tensor) -> Tensor:
    """Orthonormal columns (d, min(n, d)) that span the rows of x and diagonalise its Gram matrix.

    Rounding is harmless: it changes the objective at the optimum in second order only.
    """
    if len(x) >= x.shape[1]:
        return torch.linalg.eigh(x.T @ x)[1]
    q, r = torch.linalg.qr(x.T)
    return q @ torch.linalg.eigh(r @ r.T)[1]


def _minimise(
    z: Tensor,
    hot: Tensor,
    penalty: Tensor,
    share: Tensor,
    start: Tensor | None = None,
    *,
    patience: int,
    enough: float = GAP,
) -> tuple[Tensor, Tensor]:
    """The weights that minimise P objectives, and their estimated relative gaps (P,).

    ``z`` (n, r) features; ``hot`` (k, n) labels; ``penalty`` (P, 1, r); ``share`` (1 or P, 1, n)
    the weight of each image in the mean; ``start`` (P, k, r) the first weights, 0 if left out. A
    problem leaves the batch when its gap is at most ``enough``, or when it has come no closer for
    ``patience`` iterations. The gap is gᵀH⁻¹g / 2, by the larger of two estimates of H⁻¹.
    """
    squares, eps = z.square(), torch.finfo(z.dtype).eps
    start = z.new_zeros(len(penalty), len(hot), z.shape[1]) if start is None else start
    best, gaps = start.clone(), penalty.new_full((len(start),), torch.inf)
    live, weights, history = torch.arange(len(start), device=z.device), start, []
    stale = torch.zeros_like(live)
    logits = weights @ z.T
    proba = probabilities(logits)
    residual = proba - hot
    gradient = (residual * share) @ z + penalty * weights
    for iteration in range(ITERATIONS + 1):
        if iteration % REFRESH == 0:
            turn, curvature = _hessian(proba, proba * share, squares, penalty)
        direction = _lbfgs(gradient, turn, curvature, history)
        slope = _dot(gradient, direction)
        # -log p of the own class, computed from 1 - p: exact where p is nearly 1.
        losses = -torch.log1p(-residual.abs().amax(1).clamp(max=1 - eps))
        objective = (losses * share[:, 0]).sum(1) + _dot(penalty * weights, weights) / 2
        decrement = _dot(gradient, _solve(gradient, turn, curvature))
        gap = torch.maximum(-slope, decrement) / 2 / objective
        better = gap < gaps[live]
        best[live[better]], gaps[live[better]] = weights[better], gap[better]
        stale = torch.where(better, 0, stale + 1)
        open_ = (gap > enough) & gap.isfinite() & (stale < patience)
        if iteration == ITERATIONS or not open_.any():
            break
        if not open_.all():
            live, stale, weights, penalty, logits, proba = (
                part[open_] for part in (live, stale, weights, penalty, logits, proba)
            )
            gradient, direction, slope, turn, curvature = (
                part[open_] for part in (gradient, direction, slope, turn, curvature)
            )
            history = [tuple(part[open_] for part in pair) for pair in history]
            share = share if len(share) == 1 else share[open_]
        of_penalty = _dot(penalty * weights, direction), _dot(penalty * direction, direction)
        line = direction @ z.T, proba, hot, share, slope, of_penalty
        length, logits, proba, residual = _line_search(logits, *line)
        step = length[:, None, None] * direction
        weights, before = weights + step, gradient
        gradient = (residual * share) @ z + penalty * weights
        history = [*history, _pair(step, gradient - before)][-MEMORY:]
    return best, gaps


def probabilities(logits: Tensor, dim: int = 1) -> Tensor:
    """Softmax over ``dim``; the sigmoid if there is one row, the log-odds of the second class."""
    return logits.sigmoid() if logits.shape[dim] == 1 else logits.softmax(dim)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (P,) of tensors (P, …)."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def _variance(proba: Tensor, values: Tensor, share: Tensor) -> Tensor:
    """Means (P,) over images of the variance over classes of ``values`` (P, k, n).

    Centred first: where p is nearly 0 or 1, Σ p v² - (Σ p v)² would be rounding.
    """
    if proba.shape[1] == 1:
        return _dot((proba - proba.square()) * share, values.square())
    centred = values - (proba * values).sum(1, keepdim=True)
    return _dot(proba * share, centred.square())


def _hessian(
    proba: Tensor, shared: Tensor, squares: Tensor, penalty: Tensor
) -> tuple[Tensor, Tensor]:
    """A Kronecker approximation of the Hessian (classes × features), exact if all p are the same.

    The mean over images of diag(p) - ppᵀ couples the classes; the features, uncoupled by the
    eigenbasis, are scaled by their squares (n, r), weighted by each image's Σ p (1 - p). ``shared``
    is p times the weight of the image in the mean. Returns the eigenvectors over classes (P, k, k)
    and the eigenvalues (P, k, r).
    """
    spread = (shared * (1 - proba)).sum(1)
    features = spread @ squares / spread.sum(1, keepdim=True)
    classes = -shared @ proba.transpose(1, 2)
    classes.diagonal(dim1=1, dim2=2).add_(shared.sum(2))
    scale, turn = torch.linalg.eigh(classes)
    # One logit more for every class changes nothing: that direction has no curvature to divide by.
    scale = scale.clamp(min=1e-6 * scale.amax(1, keepdim=True))
    return turn, scale[:, :, None] * features[:, None] + penalty


def _solve(vector: Tensor, turn: Tensor, curvature: Tensor) -> Tensor:
    """The inverse of that Hessian, applied to (P, k, r)."""
    return turn @ (turn.transpose(1, 2) @ vector / curvature)


def _lbfgs(gradient: Tensor, turn: Tensor, curvature: Tensor, history: list[tuple]) -> Tensor:
    """The descent direction (P, k, r): the two-loop recursion over what :func:`_pair` remembers."""
    direction, shares = -gradient, []
    for step, change, inverse in reversed(history):
        shares.append(inverse * _dot(step, direction)[:, None, None])
        direction = direction - shares[-1] * change
    direction = _solve(direction, turn, curvature)
    for (step, change, inverse), share in zip(history, reversed(shares), strict=True):
        direction = direction + (share - inverse * _dot(change, direction)[:, None, None]) * step
    return direction


def _pair(step: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A step, the gradient's change along it, and the inverse (P, 1, 1) of their product: 0, which
    drops the step, where rounding has left no curvature."""
    product = _dot(step, change)
    return step, change, torch.where(product > 0, 1 / product, 0)[:, None, None]


def _line_search(
    logits: Tensor,
    change: Tensor,
    proba: Tensor,
    hot: Tensor,
    share: Tensor,
    slope: Tensor,
    of_penalty: tuple,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Step lengths (P,) that at least halve the slope; logits, probabilities and residuals there.

    ``change`` is what a step of 1 adds to the logits (P, k, n); ``of_penalty`` are the penalty's
    two derivatives along it. Newton's method in a bracket: along a line the objective is convex.
    """
    linear, quadratic = of_penalty
    length = -slope / (_variance(proba, change, share) + quadratic)
    low, high = torch.zeros_like(length), torch.full_like(length, torch.inf)
    for trial in range(TRIALS):
        moved = torch.addcmul(logits, length[:, None, None], change)
        proba = probabilities(moved)
        residual = proba - hot
        there = _dot(residual * share, change) + linear + length * quadratic
        steep = there.abs() > slope.abs() / 2
        if trial == TRIALS - 1 or not steep.any():
            break
        low, high = torch.where(there < 0, length, low), torch.where(there > 0, length, high)
        better = length - there / (_variance(proba, change, share) + quadratic)
        middle = torch.where(high.isinf(), 4 * length, (low + high) / 2)
        better = torch.where((better > low) & (better < high), better, middle)
        length = torch.where(steep, better, length)
    return length, moved, proba, residual
