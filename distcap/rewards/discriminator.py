"""A text discriminator's opinion, the regularisation that keeps captions human."""

from torch import Tensor

from distcap.experience import Experience
from distcap.models import Discriminator
from distcap.rewards.base import Reward
from distcap.types import Rollout, UserError


class DiscriminatorReward(Reward):
    """Probability that a human wrote the caption, by an MLP on CLIP embeddings of image and text.

    From a run of the grammar stage, which reads the text alone: the probability that nobody spoilt its wording, the
    grammar reward of Cho et al. 2022 (arXiv 2205.13115). That one does not learn: its negatives are corrupted human
    captions, not samples.

    It learns from the ground truth, or from the human captions of the stage's corpus if there is one.

    Args:
        init_from: run folder of the discriminator or the grammar stage.
        weight: share in the total reward.
        learning: go on training it against the policy, one update a step; the reward is read before the update.
        learning_rate: of that training (the released code's 7e-5).
        clip: which of the stage's `clips` it reads, the one it was trained on; None for its `clip`.

    Raises:
        UserError: there is no discriminator in init_from, or it is a grammar head and should learn.
    """

    def __init__(
        self,
        init_from: str,
        weight: float = 1.0,
        learning: bool = True,
        learning_rate: float = 7e-5,
        clip: str | None = None,
    ) -> None:
        super().__init__(weight)
        self.discriminator = Discriminator.load(init_from)
        if learning and not self.discriminator.images:
            raise UserError(
                f"{init_from} holds a grammar head, which learnt from corrupted captions and would now be trained on "
                "samples; say learning: false"
            )
        self.learning_rate = learning_rate if learning else None
        self.discriminator.requires_grad_(learning)
        self.clip = clip

    def forward(self, rollout: Rollout, experience: Experience) -> Tensor:
        view = experience.view(self.clip)
        images = view.image_embeddings[rollout.image_index] if self.discriminator.images else None
        return self.discriminator(images, view.caption_embeddings(rollout)).sigmoid()

    def loss(self, experience: Experience) -> Tensor | None:
        if self.learning_rate is None:
            return None
        return self.discriminator.loss(*experience.human_or_sampled(self.clip))
