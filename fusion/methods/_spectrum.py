"""Singular values and vectors for the methods that work on matrices.

A full SVD is mostly work that no method needs: `leading` finds the first triples, `polar` the factor U Vᵀ. Both take
the eigenvectors of the Gram matrix MᵀM of the short side, and of these only what its rounding leaves exact: singular
values within STRONG of the largest. The rest of M, which the other eigenvectors span, starts anew with a largest
singular value of its own, so that small singular values are as exact as a full SVD has them.

On a GPU, which waits for every decision of the host, matrices of one shape are solved together and without one: by
the Gram matrix in float64 (`_exact`), with zeros in place of the triples that are rounding.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial, wraps
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from fusion.device import compiles
from fusion.parallel import workers

log = logging.getLogger(__name__)

STRONG = 0.1  # of the largest singular value: a Gram matrix loses the square of that in precision
SMALL = 64  # rows or columns up to which a full SVD is as fast
BLOCK = 192  # columns of a Gram matrix computed at a time

Given = ParamSpec("Given")
Found = TypeVar("Found")


def single_threaded(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """The function, computed by one thread: matrix products round differently with every number of threads."""

    @wraps(function)
    def alone(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        count = torch.get_num_threads()
        if count == 1:
            return function(*args, **kwargs)
        torch.set_num_threads(1)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(count)

    return alone


class Triples(NamedTuple):
    """Singular triples, the largest first; U diag(σ) Vᵀ is the part of the matrix (m, n) that they make up.

    On a GPU, of several matrices: (..., m, n).
    """

    u: Tensor  # (m, k)
    s: Tensor  # (k,)
    v: Tensor  # (n, k)

    def first(self, count: int) -> "Triples":
        """At most `count` of them."""
        return Triples(self.u[:, :count], self.s[:count], self.v[:, :count])

    def only(self, real: Tensor) -> "Triples":
        """Those that are real, (..., k) bool; on a GPU zeros stand in place of the others."""
        if compiles(self.s.device):
            return Triples(self.u[:, real], self.s[real], self.v[:, real])
        u, v = (torch.where(real[..., None, :], part, 0) for part in (self.u, self.v))
        return Triples(u, torch.where(real, self.s, 0), v)

    def counted(self) -> "Triples":
        """Without those that are zero; the host waits for their number."""
        return self if compiles(self.s.device) else self.first(int((self.s > 0).sum()))


@single_threaded
def svd(matrix: Tensor) -> Triples:
    """All triples of non-zero σ of a matrix (m, n).

    σ below 4 √max(m, n) · ε · σ_1 is rounding and left out. Falls back to float64 if float32 does not converge.
    Raises ValueError where σ overflows.
    """
    if not compiles(matrix.device):
        return _exact(matrix, min(matrix.shape[-2:]))
    try:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    except RuntimeError:  # torch.linalg.LinAlgError is one
        log.warning("SVD of a %s matrix did not converge in %s; again in float64", tuple(matrix.shape), matrix.dtype)
        u, s, vh = (part.to(matrix.dtype) for part in torch.linalg.svd(matrix.double(), full_matrices=False))
    _require_finite(s, matrix)
    rank = int((s > rounding(matrix) * s[:1]).sum())
    return Triples(u[:, :rank], s[:rank], vh[:rank].T)


@single_threaded
def leading(matrix: Tensor, count: int) -> Triples:
    """The at most `count` leading triples of those that `svd` finds, one or more asked for."""
    if not compiles(matrix.device):
        return _exact(matrix, count)
    if matrix.shape[0] < matrix.shape[1]:
        u, s, v = leading(matrix.T, count)
        return Triples(v, s, u)
    scale = _largest(matrix)
    found = _fast(lambda unit: _triples(unit, count), matrix, scale)
    if found is None:
        return svd(matrix).first(count)
    return found._replace(s=_require_finite(scale * found.s, matrix))


def each_leading(matrices: Iterable[Tensor], count: int, like: Tensor) -> Iterator[Triples]:
    """`leading` of matrices of one shape (m, n), by a thread a core, or all at once on a GPU: where `like` is."""
    if compiles(like.device):
        with workers(like.device) as each:
            yield from each(partial(leading, count=count), matrices)
    else:
        yield from map(Triples, *_exact(torch.stack(list(matrices)), count))


def each_svd(matrices: Tensor) -> Iterator[Triples]:
    """`svd` of each matrix of (T, m, n), on a GPU of all at once."""
    if compiles(matrices.device):
        return map(svd, matrices)
    return map(Triples, *_exact(matrices, min(matrices.shape[-2:])))


@single_threaded
def polar(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (rows if it is wide), PQᵀ of the SVD P D Qᵀ: (m, k) -> (m, k)."""
    if not compiles(matrix.device):
        u, _, v = _exact(matrix, min(matrix.shape[-2:]))
        return u @ v.mT
    if matrix.shape[0] < matrix.shape[1]:
        return polar(matrix.T).T
    found = _fast(_polar, matrix, _largest(matrix))
    if found is None:
        u, _, v = svd(matrix)
        return u @ v.T
    return found


def rounding(matrix: Tensor) -> float:
    """The part of σ_1 up to which a singular value is rounding.

    Entries with rounding errors ε of their size have a norm of about √n ε; a few of those, not n ε as is usual for
    a safe rank, which one random square matrix of 768 rows in ten has a real singular value below.
    """
    return 4 * max(matrix.shape[-2:]) ** 0.5 * torch.finfo(matrix.dtype).eps


def _exact(matrices: Tensor, count: int) -> Triples:
    """The `count` leading triples of every matrix (..., m, n), zeros where they are rounding; nothing is decided.

    In float64 the Gram matrix knows σ from 1e-8 of σ_1 on, more than float32 does of a task vector.
    """
    if matrices.shape[-2] < matrices.shape[-1]:
        u, s, v = _exact(matrices.mT, count)
        return Triples(v, s, u)
    wide = matrices.double()
    vectors = torch.linalg.eigh(wide.mT @ wide).eigenvectors
    v = vectors[..., -count:].flip(-1) if count else vectors[..., :0]
    u = wide @ v
    s = torch.linalg.vector_norm(u, dim=-2)
    real = s > max(rounding(matrices), 1e-7) * s[..., :1]
    found = Triples(torch.where(real[..., None, :], u / s[..., None, :], 0), torch.where(real, s, 0), v)
    _require_finite(found.s.to(matrices.dtype), matrices)
    found = found._replace(v=torch.where(real[..., None, :], v, 0))
    return Triples(*(part.to(matrices.dtype) for part in found))


def _fast(find: Callable[[Tensor], Found], matrix: Tensor, scale: Tensor) -> Found | None:
    """find(matrix / scale), or None where a full SVD is better: the matrix is small, or the result inexact."""
    if min(matrix.shape) <= SMALL:
        return None
    try:
        return find(matrix if scale == 1 else matrix / scale)
    except RuntimeError as error:  # torch.linalg.LinAlgError is one
        log.warning("singular vectors of a %s matrix by a full SVD, for %s", tuple(matrix.shape), error)
        return None


def _polar(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(_gram(matrix))
    if values[0] > STRONG**2 * values[-1]:
        return _require_orthonormal(matrix @ ((vectors / values.sqrt()) @ vectors.T))  # M (MᵀM)^(-1/2)
    u, _, v = _triples(matrix, matrix.shape[1], values, vectors)
    return u @ v.T


def _triples(matrix: Tensor, count: int, *first: Tensor) -> Triples:
    """The leading triples of a matrix (m, n), m ≥ n; first: the eigenvalues and eigenvectors of MᵀM where known."""
    runs = list(_runs(matrix, count, *(first or torch.linalg.eigh(_gram(matrix)))))
    found = runs[0] if len(runs) == 1 else Triples(*(torch.cat(parts, dim=-1) for parts in zip(*runs, strict=True)))
    _require_orthonormal(found.u)
    return found


def _runs(matrix: Tensor, count: int, values: Tensor, vectors: Tensor) -> Iterator[Triples]:
    """The leading triples in runs; the values of each are within STRONG of its first."""
    rest, basis, floor = matrix, None, torch.zeros(())
    while True:
        strong = min(count, int((values >= STRONG**2 * values[-1]).sum()))
        weak, chosen = vectors.split([len(values) - strong, strong], dim=1)
        v = chosen.flip(1)
        u = rest @ v
        s = torch.linalg.vector_norm(u, dim=0)
        floor = floor if basis is not None else rounding(matrix) * s[0]
        real = s > floor
        if not real.all():
            u, s, v = u[:, real], s[real], v[:, real]
        u /= s
        yield Triples(u, s, v if basis is None else basis @ v)
        count -= strong
        if count == 0 or weak.shape[1] == 0 or not real.all():
            return
        rest = rest @ weak
        rest = rest - u @ (u.T @ rest)
        if torch.linalg.vector_norm(rest) <= floor:
            return
        basis = weak if basis is None else basis @ weak
        values, vectors = torch.linalg.eigh(_gram(rest))


def _gram(matrix: Tensor) -> Tensor:
    """The lower triangle of MᵀM, all that eigh reads: (m, n) -> (n, n)."""
    found = matrix.new_zeros(matrix.shape[1], matrix.shape[1])
    for i in range(0, len(found), BLOCK):
        found[i:, i : i + BLOCK] = matrix[:, i:].T @ matrix[:, i : i + BLOCK]
    return found


def _require_orthonormal(matrix: Tensor) -> Tensor:
    """The matrix (m, k); RuntimeError where MᵀM x is not x for one vector x of no special direction."""
    x = torch.arange(1, matrix.shape[1] + 1, dtype=matrix.dtype, device=matrix.device).mul(0.7).sin()
    error = torch.linalg.vector_norm(matrix.T @ (matrix @ x) - x)
    if not error <= 1e-3 * torch.linalg.vector_norm(x):
        raise RuntimeError("they are not orthonormal")
    return matrix


def _largest(matrix: Tensor) -> Tensor:
    """What to divide a matrix by so that no square overflows or vanishes: its largest magnitude, mostly 1."""
    if matrix.numel() == 0:
        return matrix.new_ones(())
    scale = _require_finite(matrix.abs().amax(), matrix)
    return torch.where((scale == 0) | (scale > 1e-12) & (scale < 1e12), 1, scale)


def _require_finite(values: Tensor, matrix: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise ValueError(
            f"the singular values of a {tuple(matrix.shape)} matrix overflow {matrix.dtype}; "
            "expected task vectors of ordinary size: check the checkpoints"
        )
    return values
