"""The channels of a feed-forward put into groups of one size, and the positions of a text likewise into clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Groups = NDArray[np.intp]

_ROUNDS = 12


def in_turn(channels: int, experts: int) -> Groups:
    """(experts, channels of each): one after the other, in turn: the same mixture of everything in each."""
    return np.arange(channels).reshape(-1, experts).T.copy()


def by_use(activity: Floats, experts: int, shared: int, *, seed: int) -> Groups:
    """(experts, channels of each), sorted: the `shared` first ones of the channels that are most active at all, the
    most active of them in the first; of the others those in one group that are active on the same positions, by k-means
    of their activity (positions, channels) with clusters of one size."""
    size = activity.shape[1] // experts
    order = np.argsort(-np.square(activity).sum(axis=0), kind="stable")
    found = [np.sort(order[number * size : (number + 1) * size]) for number in range(shared)]
    rest = np.sort(order[shared * size :])
    if experts - shared > 1:
        found += [rest[group] for group in _alike(activity[:, rest], experts - shared, seed)]
    elif len(rest):
        found.append(rest)
    return np.stack(found)


def _alike(activity: Floats, experts: int, seed: int) -> Groups:
    points = activity.T / np.maximum(np.linalg.norm(activity, axis=0), 1e-30)[:, None]
    # What all channels have in common says nothing of which belong together.
    points = points - points.mean(axis=0)
    points /= np.maximum(np.linalg.norm(points, axis=1), 1e-30)[:, None]
    centres = _spread_out(points, experts, seed)
    groups = _even(points @ centres.T)
    for _ in range(_ROUNDS):
        centres = np.stack([points[group].mean(axis=0) for group in groups])
        centres /= np.maximum(np.linalg.norm(centres, axis=1), 1e-30)[:, None]
        found = _even(points @ centres.T)
        if np.array_equal(found, groups):
            break
        groups = found
    return groups


def centres_of(inputs: Floats, experts: int, *, seed: int) -> Floats:
    """(experts, width): directions of the inputs (positions, width) that as many of them are near to."""
    points = inputs / np.maximum(np.linalg.norm(inputs, axis=1), 1e-30)[:, None]
    points = (
        points[: len(points) // experts * experts]
        if len(points) >= experts
        else np.resize(points, (experts, points.shape[1]))
    )
    points = points - points.mean(axis=0)
    centres = _spread_out(points, experts, seed)
    for _ in range(_ROUNDS):
        groups = _even(points @ centres.T)
        centres = np.stack([points[group].mean(axis=0) for group in groups])
        centres /= np.maximum(np.linalg.norm(centres, axis=1), 1e-30)[:, None]
    return centres.astype(np.float32)


def _spread_out(points: Floats, count: int, seed: int) -> Floats:
    """Points far from each other to begin with, as k-means++ chooses them."""
    generator = np.random.default_rng(seed)
    chosen = [int(generator.integers(len(points)))]
    nearest = points @ points[chosen[0]]
    while len(chosen) < count:
        far = np.square(np.clip(1 - nearest, 0, None))
        total = far.sum()
        one = int(generator.choice(len(points), p=far / total)) if total > 0 else int(generator.integers(len(points)))
        chosen.append(one)
        nearest = np.maximum(nearest, points @ points[one])
    return points[chosen].copy()


def _even(likeness: Floats) -> Groups:
    """Each point to the cluster that it is likest to (points, clusters), as long as there is room: those that would
    lose most by another one first."""
    points, clusters = likeness.shape
    size = points // clusters
    order = np.argsort(-likeness, axis=1)
    ranked = np.take_along_axis(likeness, order, axis=1)
    regret = ranked[:, 0] - ranked[:, min(1, clusters - 1)]
    room = [size] * clusters
    groups: list[list[int]] = [[] for _ in range(clusters)]
    for point in np.argsort(-regret, kind="stable").tolist():
        cluster = next(one for one in order[point].tolist() if room[one])
        room[cluster] -= 1
        groups[cluster].append(point)
    return np.array([sorted(group) for group in groups], np.intp)
