"""The nearest images of every image: its look-alikes, as a CLIP sees them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from distcap.types import UserError

AT_ONCE = 2**25
"""Similarities in memory at a time, 128 MiB; all of COCO's would be 48 GiB."""


class Neighbours:
    """For every image the ids of its nearest images by cosine, nearest first, itself excluded.

    Built by `mine`. Images whose embeddings are the same are neighbours of each other: an image is told from its
    duplicates by its id.

    Args:
        image_ids: N identifiers, each once.
        rows: (N, K) positions in `image_ids` of the K nearest images of each.

    Raises:
        ValueError: the two do not fit, or an id occurs twice.
    """

    def __init__(self, image_ids: Sequence[int], rows: Tensor) -> None:
        self._row = {image_id: row for row, image_id in enumerate(image_ids)}
        if not len(self._row) == len(image_ids) == len(rows):
            raise ValueError(
                f"{len(image_ids)} image ids, {len(self._row)} of them different, for {len(rows)} rows; "
                "give each row an id of its own"
            )
        self._ids = torch.tensor(list(image_ids))[rows]

    @property
    def count(self) -> int:
        """K, the neighbours known of each image."""
        return self._ids.shape[1]

    def __len__(self) -> int:
        return len(self._row)

    @classmethod
    def mine(
        cls, embeddings: Tensor, image_ids: Sequence[int], count: int, device: torch.device | str = "cpu"
    ) -> "Neighbours":
        """Compare every image with every other, a slice of them at a time; with a progress bar if it takes long.

        Args:
            embeddings: (N, D), of any length.
            image_ids: of the N rows.
            count: neighbours to keep of each, fewer than N.
            device: where to compute; the result is on the CPU.

        Raises:
            UserError: there are not that many other images.
        """
        size = len(embeddings)
        if count >= size:
            raise UserError(
                f"each of {size} images has {max(size - 1, 0)} others to look like, but {count} neighbours of each "
                "are asked for; take more images, or fewer neighbours"
            )
        embeddings = normalize(embeddings.to(device), dim=-1)
        found = []
        step = max(AT_ONCE // size, 1)
        for start in tqdm(range(0, size, step), desc="finding look-alikes", unit="slice", delay=2, leave=False):
            similarity = embeddings[start : start + step] @ embeddings.T
            similarity.diagonal(start).fill_(-torch.inf)
            found.append(similarity.topk(count).indices.cpu())
        return cls(image_ids, torch.cat(found))

    def of(self, image_ids: Sequence[int], first: int, last: int) -> Tensor:
        """B images -> (B, last - first + 1) ids of their neighbours number `first` to `last`; number 1 is the nearest.

        Raises:
            ValueError: so many neighbours are not known.
            KeyError: an image was not there when neighbours were mined.
        """
        if not 1 <= first <= last <= self.count:
            raise ValueError(f"neighbours {first} to {last} are asked for, numbers 1 to {self.count} are known")
        return self._ids[[self._row[image_id] for image_id in image_ids], first - 1 : last]
