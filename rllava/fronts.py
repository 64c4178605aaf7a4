"""Points of several objectives, larger is better in all: fronts, ranks, crowding, hypervolume.

Shape legend: N points, D objectives; leading axes are passed through.
"""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def non_dominated(points_ND: FloatArray) -> npt.NDArray[np.bool_]:
    """Marks the points that no other point dominates (as good in all coordinates and better in one).

    Args:
        points_ND: sets of points [..., N, D]; a point with a NaN neither is on the front nor dominates.

    Returns:
        [..., N]; equal points are on the front together.
    """
    better_NN = np.all(points_ND[..., :, None, :] >= points_ND[..., None, :, :], axis=-1)
    strictly_NN = np.any(points_ND[..., :, None, :] > points_ND[..., None, :, :], axis=-1)
    dominated_N = np.any(better_NN & strictly_NN, axis=-2)
    return np.asarray(~dominated_N & np.isfinite(points_ND).all(axis=-1))


def ranks(points_ND: FloatArray) -> npt.NDArray[np.int64]:
    """Non-dominated rank of each point: 0 on the front, 1 on the front of the rest, and so on.

    Returns:
        [N]; points with a NaN come after all others.
    """
    found_N = np.full(len(points_ND), len(points_ND), dtype=np.int64)
    left = np.flatnonzero(np.isfinite(points_ND).all(axis=1))
    rank = 0
    while len(left):
        on_front = non_dominated(points_ND[left])
        found_N[left[on_front]] = rank
        left, rank = left[~on_front], rank + 1
    return found_N


def crowding(points_ND: FloatArray) -> FloatArray:
    """Crowding distance within one rank (Deb et al. 2002, NSGA-II): how lonely a point is among its neighbours.

    Returns:
        [N]; infinite at both ends of an objective.
    """
    distance_N = np.zeros(len(points_ND))
    for values_N in points_ND.T:
        order = np.argsort(values_N, kind="stable")
        spread = values_N[order[-1]] - values_N[order[0]]
        distance_N[order[[0, -1]]] = np.inf
        if spread > 0 and len(order) > 2:
            distance_N[order[1:-1]] += (values_N[order[2:]] - values_N[order[:-2]]) / spread
    return distance_N


def best_first(points_ND: FloatArray) -> list[int]:
    """Orders points by non-dominated rank; within a rank the lonelier first, then in their own order."""
    rank_N = ranks(points_ND)
    lonely_N = np.zeros(len(points_ND))
    for rank in np.unique(rank_N):
        own = np.flatnonzero(rank_N == rank)
        if np.isfinite(points_ND[own]).all():
            lonely_N[own] = crowding(points_ND[own])
    return sorted(range(len(points_ND)), key=lambda n: (rank_N[n], -lonely_N[n], n))


def hypervolume(points_ND: FloatArray, reference_D: FloatArray) -> float:
    """Volume that is dominated by some points and dominates a reference point, by slices along the last objective.

    Args:
        points_ND: those with a NaN, or not better than the reference in every objective, count nothing.
    """
    with np.errstate(invalid="ignore"):
        counted = np.all(points_ND > reference_D, axis=1)
    gains_ND = points_ND[counted] - reference_D
    return _volume(gains_ND[non_dominated(gains_ND)]) if len(gains_ND) else 0.0


def _volume(gains_ND: FloatArray) -> float:
    """Of the union of the boxes from the origin to each point."""
    if gains_ND.shape[1] == 1:
        return float(gains_ND.max())
    order = np.argsort(-gains_ND[:, -1], kind="stable")
    volume = 0.0
    for place, n in enumerate(order):
        below = gains_ND[order[place + 1], -1] if place + 1 < len(order) else 0.0
        if gains_ND[n, -1] > below:
            volume += (gains_ND[n, -1] - below) * _volume(gains_ND[order[: place + 1], :-1])
    return volume
