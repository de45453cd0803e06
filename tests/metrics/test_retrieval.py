"""Recall of captions and images among each other, on vectors of two or three numbers."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from distcap.metrics.retrieval import RetrievalRecall


def recall(captions: Tensor, images: Tensor, ids: list[int], top_k: tuple[int, ...] = (1, 2)) -> dict[str, float]:
    metric = RetrievalRecall(top_k)
    metric.update(captions, images, torch.tensor(ids))
    return {name: float(value) for name, value in metric.compute().items()}


def test_recall_by_hand_in_both_directions():
    # Similarities, captions down, images across; the last caption describes the first image, not its own:
    #       i0   i1   i2
    # c0    0.9  0.1  0.3    t2i: first
    # c1    0.1  0.8  0.2    t2i: first
    # c2    1.0  0.0  0.4    t2i: second
    # i2t:  2nd  1st  1st
    captions = torch.tensor([[0.9, 0.1, 0.3], [0.1, 0.8, 0.2], [1.0, 0.0, 0.4]])
    assert recall(captions, torch.eye(3), [1, 2, 3]) == {
        "t2i_recall@1": pytest.approx(200 / 3),
        "t2i_recall@2": 100,
        "i2t_recall@1": pytest.approx(200 / 3),
        "i2t_recall@2": 100,
    }


def test_the_hits_of_the_images_are_in_the_order_of_ids_and_a_tie_shares_its_hit():
    # Captions of images 5 and 2, which come in this order. That of 5 finds it; that of 2 cannot tell the two apart.
    metric = RetrievalRecall((1,))
    metric.update(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.eye(2), torch.tensor([5, 2]))
    hits = metric.hits()
    assert hits["t2i_recall@1"].tolist() == [50, 100]
    assert hits["i2t_recall@1"].tolist() == [100, 100]
    assert float(metric.compute()["t2i_recall@1"]) == 75


def test_the_two_directions_are_not_confused():
    # Both captions find their own image; both images prefer the first caption.
    #       i0   i1
    # c0    0.9  0.8
    # c1    0.1  0.2
    scores = recall(torch.tensor([[0.9, 0.8], [0.1, 0.2]]), torch.eye(2), [1, 2], top_k=(1,))
    assert scores == {"t2i_recall@1": 50 + 50, "i2t_recall@1": 50}


def test_one_caption_for_all_images_has_the_recall_of_chance():
    # Trap 3. 64 numbers in float32: like captions must tie to the bit, in whatever order a matrix product sums.
    images = normalize(torch.randn(50, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    scores = recall(images[:1].expand(50, 64), images, list(range(50)), top_k=(1, 5, 10))
    for k in (1, 5, 10):
        assert scores[f"i2t_recall@{k}"] == pytest.approx(100 * k / 50)
        assert scores[f"t2i_recall@{k}"] == pytest.approx(100 * k / 50)


def test_like_captions_tie_exactly():
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(33, 57, generator=generator), dim=-1)
    captions = normalize(torch.randn(3, 57, generator=generator), dim=-1).repeat(11, 1)
    metric = RetrievalRecall()
    metric.update(captions, images, torch.arange(33))
    similarity = metric.similarity()
    assert all(torch.equal(similarity[row], similarity[row % 3]) for row in range(33))


def test_what_a_distributed_sampler_repeats_counts_once():
    # The third caption is the first one's, and wrong; it is repeated twice.
    captions = torch.eye(3)[[0, 1, 0, 0, 0]]
    images, ids = torch.eye(3)[[0, 1, 2, 2, 2]], [7, 8, 9, 9, 9]
    assert recall(captions, images, ids) == recall(captions[:3], images[:3], ids[:3])
    # Two of three captions find their image, not two of five.
    assert recall(captions, images, ids, top_k=(1,))["t2i_recall@1"] == pytest.approx(200 / 3)


def test_the_order_of_updates_is_no_matter():
    generator = torch.Generator().manual_seed(0)
    captions, images = (normalize(torch.randn(9, 4, generator=generator), dim=-1) for _ in range(2))
    ids = torch.arange(9)
    metric = RetrievalRecall()
    for rows in (torch.tensor([8, 3]), torch.tensor([0, 1, 7, 6]), torch.tensor([2, 4, 5])):
        metric.update(captions[rows], images[rows], ids[rows])
    whole = RetrievalRecall()
    whole.update(captions, images, ids)
    assert metric.compute() == whole.compute()
    torch.testing.assert_close(metric.similarity(), captions.double() @ images.double().T)


def test_reset_forgets():
    metric = RetrievalRecall((1,))
    metric.update(torch.eye(2).flip(0), torch.eye(2), torch.arange(2))
    assert float(metric.compute()["t2i_recall@1"]) == 0
    metric.reset()
    metric.update(torch.eye(2), torch.eye(2), torch.arange(2))
    assert float(metric.compute()["t2i_recall@1"]) == 100
