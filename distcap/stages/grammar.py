"""Stage 2, for the rival of Cho et al. 2022: tell human captions from the same ones with their wording spoilt."""

import random

import torch

from distcap.corruptions import corrupt
from distcap.models import FrozenClip
from distcap.stages.discriminator import DiscriminatorStage, Examples
from distcap.types import Batch


class TrainGrammar(DiscriminatorStage):
    """Human (ground truth) captions vs. corrupted ones, by the caption's embedding alone: a grammar head.

    J. Cho et al. 2022, "Fine-grained Image Captioning with CLIP Reward" (arXiv 2205.13115). No captioner is needed.
    Theirs reads the text feature before CLIP's projection and fine-tunes the text encoder along with the head; here,
    CLIP stays frozen and the head reads e(c), so that one embedding of a caption serves all rewards.

    Args:
        clip: whose embeddings it reads: the reward CLIP, with the same prompt.
        hidden: widths of the MLP.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
    """

    def __init__(
        self,
        clip: FrozenClip,
        hidden: tuple[int, ...] = (512,),
        learning_rate: float = 5e-4,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(clip, hidden, images=False, learning_rate=learning_rate, weight_decay=weight_decay)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        references = self.references("train")
        # Sorted, for the order of a set changes from one process to the next.
        self.vocabulary = sorted({word for row in references.values() for caption in row for word in caption.split()})

    @torch.no_grad()
    def examples(self, batch: Batch) -> Examples:
        """Every human caption of the batch, and each of them corrupted."""
        intact = [caption for captions in batch.captions for caption in captions]
        rng = random.Random(random.getrandbits(63))  # of this step's seed, see Stage.on_train_batch_start
        corrupted = [corrupt(caption, rng, self.vocabulary) for caption in intact]
        captions = torch.cat([self.clip.embed_captions(corrupted), self.captions[intact].to(self.device)])
        return None, captions, torch.arange(len(captions), device=captions.device) >= len(corrupted)
