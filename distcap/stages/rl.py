"""Stage 3: reinforcement learning on the captioner's own and on human captions."""

import copy
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distcap.baselines import Baseline
from distcap.experience import Experience
from distcap.functional import group_mean, kl, masked_mean
from distcap.models import Captioner, FrozenClip, Sampler
from distcap.ngrams import repetition
from distcap.objectives import Term
from distcap.rewards import Reward
from distcap.stages.base import CaptionerStage
from distcap.types import Batch


class RL(CaptionerStage):
    """SCST-style RL: sample, reward, subtract a baseline, and follow the gradient.

    By subtraction from PPO: one update a batch of samples, hence no ratio, no clipping, no critic, no replay.

    Args:
        captioner: the policy, from the mle stage.
        rewards: by name; their weighted sum is the reward.
        baseline: what a sample's reward is compared with.
        objective: terms by name; their weighted sum is the loss.
        clip: the dual encoder that the rewards read, if any does.
        sampler: how rollouts are drawn.
        decoder: how captions are decoded for evaluation, and for the greedy baseline.
        ground_truth_per_image: human captions of each image in a step.
        health_every: steps between two looks at repetition, vocabulary and the KL to the captioner of the start.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up from zero.
        schedule: after the warm-up.
        clip_gradient: largest norm of each parameter group's gradient; 0 for any.
    """

    def __init__(
        self,
        captioner: Captioner,
        rewards: dict[str, Reward],
        baseline: Baseline,
        objective: dict[str, Term],
        clip: FrozenClip | None = None,
        sampler: Sampler = Sampler(),  # noqa: B008 - a value, never changed
        decoder: Sampler = Sampler(method="greedy"),  # noqa: B008
        ground_truth_per_image: int = 1,
        health_every: int = 10,
        learning_rate: float = 1e-5,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        clip_gradient: float = 1.0,
    ) -> None:
        super().__init__(
            captioner,
            decoder,
            learning_rate,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            schedule=schedule,
            clip_gradient=clip_gradient,
        )
        self.rewards: Any = nn.ModuleDict(rewards)
        self.baseline = baseline
        self.objective: Any = nn.ModuleDict(objective)
        self.clip = clip
        self.sampler = sampler
        self.ground_truth_per_image = ground_truth_per_image
        self.health_every = health_every

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        references = data.references("train")
        for reward in self.rewards.values():
            reward.prepare(references)
        # In a list, for a module would go into checkpoints.
        self._reference = [copy.deepcopy(self.captioner).requires_grad_(False).eval()]
        if self.clip is not None:
            self.clip.to(self.trainer.strategy.root_device)
            self._images = self.clip.image_store(self.files("train"), data.cache_dir)
            truth = [caption for row in references.values() for caption in row]
            self._captions = self.clip.caption_store(truth, data.cache_dir)

    def on_fit_start(self) -> None:
        self._reference[0].to(self.device)

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        yield {"params": [p for p in self.captioner.parameters() if p.requires_grad]}
        for reward in self.rewards.values():
            if reward.learning_rate is not None:
                yield {"params": list(reward.parameters()), "lr": reward.learning_rate, "weight_decay": 0.0}

    def experience(self, batch: Batch) -> Experience:
        """What this step knows of the batch."""
        return Experience(
            batch,
            self.captioner,
            sampler=self.sampler,
            greedy=self.decoder,
            rewards=self.rewards,
            clip=self.clip,
            image_embeddings=None if self.clip is None else self._images[batch.image_ids].to(self.device),
            caption_store=None if self.clip is None else self._captions,
            ground_truth_per_image=self.ground_truth_per_image,
            reference=self._reference[0],
            gather=self._gather,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Dropout would make the samples another policy's than the one that is updated (trap 7).
        self.captioner.eval()
        experience = self.experience(batch)
        advantages = experience.sampled_reward - self.baseline(experience)
        losses = {name: term(experience, advantages) for name, term in self.objective.items()}
        loss = torch.stack([self.objective[name].weight * value for name, value in losses.items()]).sum()
        learning = {
            name: value for name, reward in self.rewards.items() if (value := reward.loss(experience)) is not None
        }
        self.log("train/loss", loss, prog_bar=True)
        self.log("reward/total", experience.sampled_reward.mean(), prog_bar=True)
        self.log_train({f"loss/{name}": value for name, value in {**losses, **learning}.items()})
        self._log_health(experience, advantages, batch_idx)
        return loss + sum(learning.values())

    def _gather(self, values: Tensor) -> tuple[Tensor, int]:
        if self.trainer.world_size == 1:
            return values, 0
        return self.all_gather(values).flatten(0, 1), self.global_rank * len(values)  # type: ignore[union-attr]

    @torch.no_grad()
    def _log_health(self, experience: Experience, advantages: Tensor, batch_idx: int) -> None:
        sampled = experience.sampled
        values: dict[str, Tensor | float] = {"reward/advantage": advantages.mean()}
        for source in ("sampled", "greedy", "ground_truth"):
            if (rollout := experience.__dict__.get(source)) is not None and (
                source == "sampled" or f"{source}_reward" in experience.__dict__
            ):
                for name, reward in experience.rewards_of(rollout).items():
                    values[f"reward/{source}/{name}"] = reward.mean()
        if self.sampler.samples > 1:
            mean = group_mean(experience.sampled_reward, sampled.image_index, len(experience.batch))
            spread = group_mean(
                (experience.sampled_reward - mean[sampled.image_index]).abs(),
                sampled.image_index,
                len(experience.batch),
            )
            values["reward/zero_std"] = (spread < 1e-6).float().mean()
        # The mean surprise of a sample's own tokens is an unbiased estimate of the policy's entropy.
        values["policy/entropy"] = -masked_mean(sampled.logprobs, sampled.mask).mean()
        values["policy/length"] = sampled.mask.sum(1).float().mean()
        if batch_idx % self.health_every == 0:
            values["policy/kl"] = kl(sampled.logprobs, experience.reference_logprobs, sampled.mask).mean()
            values["policy/repetition"] = float(repetition(sampled.captions))
            values["policy/vocabulary"] = float(len({word for caption in sampled.captions for word in caption.split()}))
        self.log_train(values)
