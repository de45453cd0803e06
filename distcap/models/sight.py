"""What one CLIP has seen and read of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from distcap.models.clip import FrozenClip
from distcap.models.embeddings import EmbeddingStore
from distcap.models.neighbours import Neighbours


@dataclass
class Sight:
    """A CLIP, and what it knows of a data set before the first step: each image and human caption is embedded once."""

    clip: FrozenClip
    images: EmbeddingStore
    """By image id."""
    captions: EmbeddingStore | None = None
    """Of the ground truth, by the caption itself; None to read captions as they come."""
    mined: Neighbours | None = None
    """The look-alikes of each image, if any were asked for."""

    def neighbours(self, image_ids: Sequence[int], first: int, last: int) -> tuple[Tensor, Tensor]:
        """B image ids -> (B, K) ids of their neighbours number first to last, (B, K, D) their embeddings.

        Raises:
            ValueError: none were mined.
        """
        if self.mined is None:
            raise ValueError("a reward asks for mined neighbours, but none were mined")
        ids = self.mined.of(image_ids, first, last)
        return ids, self.images[ids.flatten().tolist()].unflatten(0, ids.shape)
