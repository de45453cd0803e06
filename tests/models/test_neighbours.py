"""Mined neighbours: which images are nearest, and how they are looked up."""

import pytest
import torch
from torch import Tensor

from distcap.models import Neighbours, neighbours
from distcap.types import UserError

CLOCK = torch.tensor([0.0, 10.0, 30.0, 70.0, 150.0]).deg2rad()
"""Five directions, each farther from the one before: nobody has two neighbours at one distance."""
HANDS = torch.stack([CLOCK.cos(), CLOCK.sin()], 1)
IDS = [50, 40, 30, 20, 10]


def slowly(embeddings: Tensor, image_ids: list[int], count: int) -> list[list[int]]:
    """One pair at a time, by torch's own cosine."""
    found = []
    for one, image in zip(embeddings, image_ids, strict=True):
        others = [
            (-float(torch.cosine_similarity(one, other, dim=0)), image_id)
            for other, image_id in zip(embeddings, image_ids, strict=True)
            if image_id != image
        ]
        found.append([image_id for _, image_id in sorted(others)[:count]])
    return found


def test_nearest_images_come_first() -> None:
    mined = Neighbours.mine(HANDS, IDS, 2)
    assert mined.of(IDS, 1, 2).tolist() == [[40, 30], [50, 30], [40, 50], [30, 40], [20, 30]]


@pytest.mark.parametrize("at_once", [1, 150, 10**9])
def test_slices_of_any_size_find_what_a_slow_search_finds(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "AT_ONCE", at_once)  # 1, 3 or all 50 rows in a slice
    embeddings = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = list(range(1000, 1050))
    assert Neighbours.mine(embeddings, ids, 7).of(ids, 1, 7).tolist() == slowly(embeddings, ids, 7)


def test_length_of_an_embedding_does_not_matter() -> None:
    longer = HANDS * torch.tensor([1.0, 2.0, 0.5, 100.0, 3.0])[:, None]
    assert torch.equal(Neighbours.mine(longer, IDS, 3).of(IDS, 1, 3), Neighbours.mine(HANDS, IDS, 3).of(IDS, 1, 3))


def test_duplicates_are_neighbours_of_each_other_and_nobody_of_itself() -> None:
    embeddings = torch.cat([HANDS[:1]] * 3 + [HANDS[3:]])
    mined = Neighbours.mine(embeddings, IDS, 4)
    assert [sorted(row) for row in mined.of(IDS, 1, 4).tolist()] == [sorted({*IDS} - {image}) for image in IDS]
    assert [set(row) for row in mined.of(IDS[:3], 1, 2).tolist()] == [{40, 30}, {50, 30}, {50, 40}]


def test_ranks_are_counted_from_one() -> None:
    mined = Neighbours.mine(HANDS, IDS, 4)
    assert mined.of([50, 10], 3, 4).tolist() == [[20, 10], [40, 50]]
    assert mined.of([50], 1, 1).tolist() == [[40]]


def test_rows_come_in_the_order_asked_for_however_often() -> None:
    assert Neighbours.mine(HANDS, IDS, 1).of([10, 50, 10], 1, 1).tolist() == [[20], [40], [20]]


@pytest.mark.parametrize(("first", "last"), [(0, 1), (2, 1), (2, 4)])
def test_ranks_that_are_not_known_are_refused(first: int, last: int) -> None:
    with pytest.raises(ValueError, match=f"neighbours {first} to {last} are asked for, numbers 1 to 3 are known"):
        Neighbours.mine(HANDS, IDS, 3).of(IDS, first, last)


def test_more_neighbours_than_other_images_are_one_line_to_the_user() -> None:
    Neighbours.mine(HANDS, IDS, 4)
    with pytest.raises(UserError, match="each of 5 images has 4 others to look like, but 5 neighbours"):
        Neighbours.mine(HANDS, IDS, 5)


@pytest.mark.parametrize("image_ids", [[50, 40, 30, 20], [50, 40, 30, 20, 50]])
def test_ids_that_do_not_fit_the_embeddings_are_refused(image_ids: list[int]) -> None:
    with pytest.raises(ValueError, match="4 of them different, for 5 rows"):
        Neighbours.mine(HANDS, image_ids, 1)
