"""Recall@k of captions and images among each other."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from distcap.functional import ranks, recall


class RetrievalRecall(Metric):
    """Recall@k in percent: t2i, does the caption find its image; i2t, does the image find its caption.

    Ties are ranked by the expectation over random tie-breaking (trap 3). What a distributed sampler repeats is
    dropped by image id.

    Args:
        top_k: the ks.
    """

    full_state_update = False
    captions: list[Tensor]
    images: list[Tensor]
    image_ids: list[Tensor]

    def __init__(self, top_k: Sequence[int] = (1, 5, 10)) -> None:
        super().__init__()
        self.top_k = tuple(top_k)
        for name in ("captions", "images", "image_ids"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, captions: Tensor, images: Tensor, image_ids: Tensor) -> None:
        """(B, D) normalised caption embeddings, (B, D) image embeddings, (B,) ids."""
        self.captions.append(captions)
        self.images.append(images)
        self.image_ids.append(image_ids)

    def compute(self) -> dict[str, Tensor]:
        """{t2i_recall@k, i2t_recall@k} in percent, over one caption an image."""
        return {name: hits.mean() for name, hits in self.hits().items()}

    def hits(self) -> dict[str, Tensor]:
        """{t2i_recall@k, i2t_recall@k} of each image alone, (N,) float64 in the order of ids: 100 if found, else 0.

        In between where a tie decides: the chance of being found.
        """
        similarity = self.similarity()
        own = torch.arange(len(similarity), device=similarity.device)
        hits = {}
        for prefix, matrix in (("t2i", similarity), ("i2t", similarity.T)):
            better, ties = ranks(matrix, own)
            for k in self.top_k:
                hits[f"{prefix}_recall@{k}"] = torch.vmap(partial(recall, k=k))(better, ties)
        return hits

    def similarity(self) -> Tensor:
        """(N, N) captions x images in the order of ids, float64.

        Like captions are compared once: two columns that should tie must not differ by a rounding error.
        """
        captions, images, ids = map(dim_zero_cat, (self.captions, self.images, self.image_ids))
        keep = _first_of_each(ids)
        captions, images = captions[keep].double(), images[keep].double()
        unique, where = torch.unique(captions, dim=0, return_inverse=True)
        return (unique @ images.T)[where]


def _first_of_each(ids: Tensor) -> Tensor:
    """(M,) ids -> (N,) rows, the first of each id, by ascending id."""
    order = torch.argsort(ids, stable=True)
    ordered = ids[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]
