"""Human captions of another data set, for what learns to tell human captions from generated ones."""

import torch
from torch import Tensor

from distcap.data import ImageData
from distcap.models import FrozenClip
from distcap.types import UserError


class Corpus:
    """Pairs of an image and a human caption of it, as a CLIP embeds them: once for all runs, next to that data set.

    Args:
        data: the data set; its loaders are not used.
        split: which of its images.
        clip: embeds them.

    Raises:
        UserError: it has no human captions.
    """

    def __init__(self, data: ImageData, split: str, clip: FrozenClip) -> None:
        entries = data.entries(split)
        self._truth = [(entry.image_id, entry.captions) for entry in entries if entry.captions]
        if not self._truth:
            raise UserError(
                f"the corpus {data.name} has no human captions of its {split} images; {data.captions_hint}, or name "
                "another data set with --model.corpus"
            )
        self._images = clip.image_store({entry.image_id: data.path(entry) for entry in entries}, data.cache_dir)
        self._captions = clip.caption_store([text for _, texts in self._truth for text in texts], data.cache_dir)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """(count, D) images and (count, D) captions, normalised: any image, and any caption of it."""
        rows = torch.randint(len(self._truth), (count,)).tolist()
        places = torch.rand(count, dtype=torch.float64).tolist()
        drawn = [self._truth[row] for row in rows]
        captions = [texts[int(place * len(texts))] for (_, texts), place in zip(drawn, places, strict=True)]
        return self._images[[image_id for image_id, _ in drawn]], self._captions[captions]
