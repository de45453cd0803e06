"""Stage 3: reinforcement learning on the captioner's own and on human captions."""

import copy
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distcap.baselines import Baseline
from distcap.checks import at_least
from distcap.corpus import Corpus
from distcap.data import ImageData
from distcap.experience import Experience
from distcap.functional import Normalisation
from distcap.health import health
from distcap.models import Captioner, FrozenClip, Neighbours, Sampler, Sight
from distcap.ngrams import CiderD
from distcap.objectives import Term
from distcap.rewards import DiscriminatorReward, Reward
from distcap.stages.base import CaptionerStage, one_caption
from distcap.types import Batch, UserError


def frozen_copy(captioner: Captioner) -> Captioner:
    """The captioner as it is now. What is frozen already, a LoRA captioner's base above all, it shares."""
    shared: dict[int, Any] = {id(p): p for p in captioner.parameters() if not p.requires_grad}
    return copy.deepcopy(captioner, shared).requires_grad_(False).eval()


class RL(CaptionerStage):
    """SCST-style RL: sample, reward, subtract a baseline, and follow the gradient.

    By subtraction from PPO: no critic, and one update a batch of samples unless `updates_per_rollout` says otherwise,
    hence no ratio and no clipping but in ClippedPolicyGradient.

    Args:
        captioner: the policy, from the mle stage.
        rewards: by name; their weighted sum is the reward.
        baseline: what a sample's reward is compared with.
        objective: terms by name; their weighted sum is the loss.
        clip: the dual encoder that the rewards read, if any does, and that finds look-alikes for the data's batches.
        clips: further ones by name, for the rewards that name one as their own `clip`; the others are not loaded.
        corpus: another data set, whose human captions with their images a learning discriminator learns from: for
            images without captions. By default it learns from those of the images themselves.
        sampler: how rollouts are drawn.
        decoder: how captions are decoded for evaluation, and for the greedy baseline.
        ground_truth_per_image: human captions of each image in a step; of one that has fewer, some come more than once,
            and compete with their copies.
        normalise: each reward by itself, before its weight: not at all, by the samples of the whole batch, or by those
            of the image.
        updates_per_rollout: optimizer steps on the same captions; the trainer counts them as one.
        health_every: steps between two thorough looks at the policy's health; see `distcap.health`. 0 for none, which
            saves the copy of the captioner before RL where no term or reward reads it.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up from zero, of the captioner; a reward that learns keeps its learning rate.
        schedule: after the warm-up, of the captioner.
        clip_gradient: largest norm of each parameter group's gradient; 0 for any.
    """

    def __init__(
        self,
        captioner: Captioner,
        rewards: dict[str, Reward],
        baseline: Baseline,
        objective: dict[str, Term],
        clip: FrozenClip | None = None,
        clips: dict[str, FrozenClip] | None = None,
        corpus: ImageData | None = None,
        sampler: Sampler = Sampler(),  # noqa: B008 - a value, never changed
        decoder: Sampler = Sampler(method="greedy"),  # noqa: B008
        ground_truth_per_image: int = 1,
        normalise: Normalisation = "none",
        updates_per_rollout: int = 1,
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
        self.clips = clips or {}
        self.corpus = corpus
        self._corpora: dict[str | None, Corpus] = {}
        self._reference: list[Captioner] = []
        self._sights: dict[str | None, Sight] = {}
        self.sampler = sampler
        self.ground_truth_per_image = ground_truth_per_image
        self.normalise: Normalisation = normalise
        self.updates_per_rollout = updates_per_rollout
        self.health_every = health_every
        self._update = 0
        self._cider: CiderD | None = None
        self._learning_discriminator = next(
            (name for name, one in rewards.items() if isinstance(one, DiscriminatorReward) and one.learning_rate), None
        )
        if corpus is not None and not any(reward.learning_rate for reward in rewards.values()):
            raise UserError("model.corpus is for a reward that learns from human captions, and none of these does")
        for name, one in rewards.items():
            if one.clip is not None and one.clip not in self.clips:
                raise UserError(
                    f"the reward {name} reads the CLIP {one.clip!r}, but model.clips has {list(self.clips)}; add it"
                )
        if normalise == "group" and sampler.samples < 2:
            raise UserError("normalise: group compares an image's samples; raise sampler.samples above 1")
        if shared := sorted(set(rewards) & set(objective)):
            raise UserError(f"a reward and a term are both called {shared[0]!r}: their losses need names of their own")
        if sampler.guidance != 1:
            raise UserError("a guided sampler draws from another policy than the one that learns; set guidance: 1")
        at_least("--model.updates_per_rollout", updates_per_rollout, 1)
        at_least("--model.ground_truth_per_image", ground_truth_per_image, 1)
        at_least("--model.health_every", health_every, 0)
        one_caption(decoder)
        for what, parts in (("rewards", rewards), ("objective", objective)):
            if not parts:
                raise UserError(f"model.{what} is empty, so that there is nothing to learn; name one at least")
        readers: tuple[Baseline | Term, ...] = (baseline, *objective.values())
        for part in readers:
            if sampler.samples < part.least_samples:
                raise UserError(
                    f"{type(part).__name__} compares an image's samples, {part.least_samples} or more, and "
                    f"model.sampler.samples is {sampler.samples}; raise it"
                )

    def lengths(self) -> dict[str, int]:
        return {**super().lengths(), "--model.sampler.max_tokens": self.sampler.max_tokens}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        if self.updates_per_rollout > 1 and self.trainer.accumulate_grad_batches > 1:
            raise UserError("several updates on a rollout need it whole: set trainer.accumulate_grad_batches to 1")
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if (images := getattr(data, "batch_size", None)) is not None:
            for reward in self.rewards.values():
                reward.check_batch(images * self.trainer.world_size, self.sampler.samples, self.ground_truth_per_image)
        references = data.references("train")
        if any(references.values()):
            self._cider = CiderD(references)
        else:
            self._do_without_captions(data)
        for reward in self.rewards.values():
            reward.prepare(references)
        readers = (*self.objective.values(), *self.rewards.values())
        if self.health_every or any(reader.needs_reference for reader in readers):
            # In a list, because a module would go into checkpoints.
            self._reference = [frozen_copy(self.captioner)]
        files = self.files("train")
        truth = [caption for row in references.values() for caption in row]
        self._sights = {
            name: Sight(
                clip.to(self.trainer.strategy.root_device),
                clip.image_store(files, data.cache_dir),
                clip.caption_store(truth, data.cache_dir),
            )
            for name, clip in self._named_clips().items()
        }
        if self.corpus is not None:
            learning = {reward.clip for reward in self.rewards.values() if reward.learning_rate}
            sights = {name: sight for name, sight in self._sights.items() if name in learning}
            self._corpora = {name: Corpus(self.corpus, "train", sight.clip) for name, sight in sights.items()}
        self._mine(data)

    def _do_without_captions(self, data: Any) -> None:
        """Raises UserError if anything in the mix reads human captions of these images, which have none."""
        parts = {f"reward {name}": reward.needs_captions for name, reward in self.rewards.items()}
        parts |= {f"term {name}": term.needs_captions for name, term in self.objective.items()}
        if self._learning_discriminator and self.corpus is None:
            parts[f"reward {self._learning_discriminator}"] = (
                "name a captioned data set with --model.corpus, or set its learning to false"
            )
        needs = {name: remedy for name, remedy in parts.items() if remedy}
        if needs:
            raise UserError(
                f"{data.name} has no human captions of its train images, and these need some: "
                f"{'; '.join(f'{name} ({remedy})' for name, remedy in needs.items())}. "
                f"`--config captionless.yaml` is a mix that needs none; or {data.captions_hint}"
            )

    def on_train_start(self) -> None:
        self.captioner.eval()  # adapters are put in in training mode

    def on_fit_start(self) -> None:
        for reference in self._reference:
            reference.to(self.device)

    def _named_clips(self) -> dict[str | None, FrozenClip]:
        """Those that are read: looking at all images with one that no reward names would take its time for nothing."""
        named: dict[str | None, FrozenClip] = {} if self.clip is None else {None: self.clip}
        read = {reward.clip for reward in self.rewards.values()}
        return named | {name: clip for name, clip in self.clips.items() if name in read}

    def _mine(self, data: Any) -> None:
        """Find the look-alikes that a reward or the data's batches ask for, each CLIP its own, once."""
        counts: dict[str | None, int] = {None: data.neighbours_needed}
        for reward in self.rewards.values():
            counts[reward.clip] = max(reward.neighbours, counts.get(reward.clip, 0))
        for name, count in counts.items():
            if count == 0:
                continue
            if name not in self._sights:
                raise UserError("look-alikes are mined with a CLIP, and the stage has none: set model.clip")
            sight, ids = self._sights[name], [entry.image_id for entry in data.entries("train")]
            mined = Neighbours.mine(sight.images[ids], ids, count, self.device)
            # Two devices may round a tie differently, and batches of look-alikes must be dealt from one table.
            sight.mined = self.trainer.strategy.broadcast(mined)
            if name is None and data.neighbours_needed:
                data.group_by(sight.mined.of(ids, 1, count))

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        yield {"params": [p for p in self.captioner.parameters() if p.requires_grad]}
        for reward in self.rewards.values():
            if reward.learning_rate is not None:
                own = {"lr": reward.learning_rate, "weight_decay": 0.0, "steady": True}
                yield {"params": list(reward.parameters()), **own}

    def experience(self, batch: Batch) -> Experience:
        """What this step knows of the batch."""
        return Experience(
            batch,
            self.captioner,
            sampler=self.sampler,
            greedy=self.decoder,
            rewards=self.rewards,
            clips=self._sights,
            ground_truth_per_image=self.ground_truth_per_image,
            corpora=self._corpora,
            reference=next(iter(self._reference), None),
            normalise=self.normalise,
            gather=self._gather,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Dropout would make the samples another policy's than the one that is updated (trap 7).
        self.captioner.eval()
        clips = list(self._named_clips().values())
        before = [clip.truncated for clip in clips]
        if self._update == 0:
            self._experience = self.experience(batch)
        else:
            self._experience.rescore()
        experience = self._experience
        advantages = experience.sampled_reward - self.baseline(experience)
        losses = {name: term(experience, advantages) for name, term in self.objective.items()}
        loss = torch.stack([self.objective[name].weight * value for name, value in losses.items()]).sum()
        if self._update:
            return loss
        # A reward that learns does so once a rollout.
        learning = {
            name: value for name, reward in self.rewards.items() if (value := reward.loss(experience)) is not None
        }
        self.log_train({"train/loss": loss, "reward/total": experience.sampled_reward.mean()}, prog_bar=True)
        self.log_train({f"loss/{name}": value for name, value in {**losses, **learning}.items()})
        self.log_train(
            health(
                experience,
                advantages,
                # The last of them: a logger that writes as often then writes values of the same step.
                costly=bool(self.health_every) and (batch_idx + 1) % self.health_every == 0,
                cider=self._cider,
                decoder=self.decoder,
                discriminator=self._learning_discriminator,
                truncated=max((c.truncated - b for c, b in zip(clips, before, strict=True)), default=None),
            )
        )
        return loss + sum(learning.values())

    @property
    def between_updates(self) -> bool:  # type: ignore[override]
        return self._update == 0

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Lightning's closure is training_step with its gradient: called again, it is the rollout's next update."""
        for update in range(self.updates_per_rollout):
            self._update = update
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._update = 0

    def _gather(self, values: Tensor) -> tuple[Tensor, int]:
        if self.trainer.world_size == 1:
            return values, 0
        return self.all_gather(values).flatten(0, 1), self.global_rank * len(values)  # type: ignore[union-attr]
