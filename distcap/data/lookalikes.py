"""Batches of look-alikes: an epoch's order in which similar images stand together."""

import random

import numpy as np
import torch
from torch import Tensor


def lookalike_order(order: Tensor, neighbours: Tensor, size: int, seed: int) -> Tensor:
    """Rearrange a shuffled epoch into groups: an image, and its nearest that are in no group yet.

    Position p belongs to group p // size, so that a batch of a multiple of `size` holds whole groups. Images are drawn
    in the given order. One that has fewer than size - 1 neighbours left is no group's first, and what is in no group in
    the end goes together as it comes. Groups are then shuffled, for the first ones are the most alike; only the images
    that do not fill a group stay at the end.

    Args:
        order: (N,) a permutation of the N images, shuffled.
        neighbours: (N, K) the nearest images of each, nearest first.
        size: images in a group.
        seed: of the order of the groups.

    Returns:
        (N,) a permutation of the N images, the same for the same arguments. Takes time in proportion to N K at most.
    """
    drawn, nearest = order.numpy(), neighbours.numpy()
    free = np.ones(len(drawn), bool)
    groups: list[np.ndarray] = []
    for image in drawn:
        if not free[image]:
            continue
        others = nearest[image]
        group = np.append(image, others[free[others]][: size - 1])
        if len(group) == size:
            free[group] = False
            groups.append(group)
    rest = drawn[free[drawn]]
    whole = len(rest) // size * size
    groups.extend(rest[:whole].reshape(-1, size))
    random.Random(seed).shuffle(groups)
    return torch.from_numpy(np.concatenate([*groups, rest[whole:]]))
