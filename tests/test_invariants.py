"""What every reward, baseline and term promises, and every new one has to.

A class that distcap.rewards, distcap.baselines or distcap.objectives exports and that has no case here fails a test.
"""

import inspect
import random
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from words import SEEN, TRUTH, WIDTH, WORDS, Clip, Data, Policy, Stage, make_batch, make_rollout, make_trainer, say

from distcap import baselines, objectives, rewards
from distcap.baselines import Baseline, Greedy, LeaveOneOut, Zero
from distcap.experience import Experience
from distcap.models import Discriminator, Neighbours, Sampler, Sight
from distcap.objectives import (
    ClippedPolicyGradient,
    KLToReference,
    PolicyGradient,
    Preference,
    TeacherForcing,
    Term,
    WeightedTeacherForcing,
)
from distcap.rewards import (
    BadEnding,
    Cider,
    ClipSimilarity,
    Contrastive,
    DiscriminatorReward,
    GroupSimilarity,
    Length,
    RefClipS,
    Repetition,
    Reward,
)
from distcap.types import Rollout, UserError


def discriminator(weight: float = 1.0) -> DiscriminatorReward:
    return DiscriminatorReward(RUN["discriminator"], weight)


RUN: dict[str, str] = {}
"""Where the fixture below has left a discriminator."""

REWARDS: dict[type[Reward], Callable[..., Reward]] = {
    BadEnding: BadEnding,
    Cider: Cider,
    ClipSimilarity: ClipSimilarity,
    Contrastive: lambda weight=1.0: Contrastive(weight, greedy=True, neighbours=(1, 3)),
    DiscriminatorReward: discriminator,
    GroupSimilarity: GroupSimilarity,
    Length: lambda weight=1.0: Length(weight, target=3),
    RefClipS: RefClipS,
    Repetition: lambda weight=1.0: Repetition(weight, n=1),
}
BASELINES: dict[type[Baseline], Callable[[], Baseline]] = {kind: kind for kind in (Greedy, LeaveOneOut, Zero)}
TERMS: dict[type[Term], Callable[..., Term]] = {
    kind: kind
    for kind in (
        ClippedPolicyGradient,
        KLToReference,
        PolicyGradient,
        Preference,
        TeacherForcing,
        WeightedTeacherForcing,
    )
}


def name(case: Any) -> str:
    return case.__name__


every_reward = pytest.mark.parametrize("kind", REWARDS, ids=name)
every_baseline = pytest.mark.parametrize("kind", BASELINES, ids=name)
every_term = pytest.mark.parametrize("kind", TERMS, ids=name)


def exported(module: ModuleType, base: type) -> set[type]:
    """What can be named in a YAML."""
    return {
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, base) and not inspect.isabstract(kind)
    }


@pytest.mark.parametrize(
    ("module", "base", "cases"),
    [(rewards, Reward, REWARDS), (baselines, Baseline, BASELINES), (objectives, Term, TERMS)],
    ids=["rewards", "baselines", "objectives"],
)
def test_every_exported_class_is_tested_here(module: ModuleType, base: type, cases: Any) -> None:
    assert exported(module, base) == set(cases)


@pytest.fixture(scope="module", autouse=True)
def run(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    Discriminator(WIDTH, hidden=(8,)).save(folder / "discriminator")
    RUN["discriminator"] = str(folder)


SAMPLES = 3
NEIGHBOURS = Neighbours.mine(SEEN, list(TRUTH), 5)


def make_reward(kind: type[Reward], weight: float = 1.0) -> Reward:
    """Prepared, and in double precision as all else."""
    reward = REWARDS[kind](weight=weight)
    reward.prepare(TRUTH)
    return reward.double()


def make_experience(
    image_ids: Sequence[int], kinds: Sequence[type[Reward]], say: Callable[..., str] = say, **kwargs: Any
) -> Experience:
    """Three samples, a greedy and a human caption of each image; captions depend on the image alone."""
    experience = Experience(
        make_batch(image_ids),
        Policy().double(),
        sampler=Sampler(samples=2),
        greedy=Sampler(method="greedy"),
        rewards={name(kind): make_reward(kind) for kind in kinds},
        clips={None: Sight(Clip(), SEEN, mined=NEIGHBOURS)},  # type: ignore[arg-type]
        reference=Policy(seed=1).double(),
        **kwargs,
    )
    for source, count in (("sampled", SAMPLES), ("greedy", 1), ("ground_truth", 1)):
        captions = [say(source, image_id, which) for image_id in image_ids for which in range(count)]
        index = torch.arange(len(image_ids)).repeat_interleave(count)
        experience.__dict__[source] = make_rollout(experience.captioner, experience.memory, captions, index)
    return experience


def advantages_of(experience: Experience) -> Tensor:
    """Any, but always the same for a caption."""
    return torch.tensor([random.Random(caption).uniform(-1, 1) for caption in experience.sampled.captions]).double()


# The order of a batch.

IDS = (0, 1, 2, 3, 4)
ORDER = (3, 0, 4, 2, 1)


def shuffled(kinds: Sequence[type[Reward]], **kwargs: Any) -> tuple[Experience, Tensor]:
    """The images in another order and their samples in any, and where each sample was."""
    experience = make_experience([IDS[i] for i in ORDER], kinds, **kwargs)
    place = torch.tensor([SAMPLES * i + which for i in ORDER for which in range(SAMPLES)])
    mixed = torch.randperm(len(place), generator=torch.Generator().manual_seed(0))
    sampled = experience.sampled
    experience.__dict__["sampled"] = Rollout(
        [sampled.captions[i] for i in mixed],
        *(tensor[mixed] for tensor in (sampled.tokens, sampled.mask, sampled.logprobs, sampled.image_index)),
    )
    return experience, place[mixed]


@pytest.mark.parametrize("normalise", ["none", "batch", "group"])
@every_reward
def test_permuting_the_batch_permutes_the_rewards(kind: type[Reward], normalise: Any) -> None:
    first = make_experience(IDS, [kind], normalise=normalise)
    second, place = shuffled([kind], normalise=normalise)
    torch.testing.assert_close(second.sampled_reward, first.sampled_reward[place])
    torch.testing.assert_close(second.greedy_reward, first.greedy_reward[list(ORDER)])
    torch.testing.assert_close(second.ground_truth_reward, first.ground_truth_reward[list(ORDER)])
    assert first.sampled_reward.unique().numel() > 1


@every_baseline
def test_permuting_the_batch_permutes_the_baseline(kind: type[Baseline]) -> None:
    second, place = shuffled([ClipSimilarity])
    torch.testing.assert_close(kind()(second), kind()(make_experience(IDS, [ClipSimilarity]))[place])


@every_term
def test_permuting_the_batch_leaves_the_loss(kind: type[Term]) -> None:
    first, (second, _) = make_experience(IDS, [ClipSimilarity]), shuffled([ClipSimilarity])
    losses = [TERMS[kind]()(experience, advantages_of(experience)) for experience in (first, second)]
    assert losses[0] != 0
    torch.testing.assert_close(*losses)


@every_reward
def test_permuting_the_batch_leaves_the_loss_of_a_reward_that_learns(kind: type[Reward]) -> None:
    first, (second, _) = make_experience(IDS, [kind]), shuffled([kind])
    losses = [experience.rewards[name(kind)].loss(experience) for experience in (first, second)]  # type: ignore
    assert (losses[0] is None) == (losses[1] is None)
    if losses[0] is not None:
        torch.testing.assert_close(*losses)


# Captions that nobody hopes for.

LONG = " ".join(WORDS[i % len(WORDS)] for i in range(45))
ODD = ("", "dog", LONG, "dog dog dog dog")


def say_odd(source: str, image_id: int, which: int) -> str:
    """The first image's samples and greedy captions are all empty; elsewhere there is one of each kind."""
    if source == "ground_truth":
        return TRUTH[image_id][0]
    return "" if image_id == 0 else ODD[(image_id + which) % len(ODD)]


def odd(kinds: Sequence[type[Reward]], **kwargs: Any) -> Experience:
    """Empty, one-word, long and repetitive captions, the long ones cut before their end token."""
    experience = make_experience(IDS, kinds, say=say_odd, **kwargs)
    for source in ("sampled", "greedy"):
        rollout = getattr(experience, source)
        width = 40
        experience.__dict__[source] = Rollout(
            experience.captioner.detokenize(rollout.tokens[:, :width], rollout.mask[:, :width]),
            *(tensor[:, :width] for tensor in (rollout.tokens, rollout.mask, rollout.logprobs)),
            rollout.image_index,
        )
    assert max(len(caption.split()) for caption in experience.sampled.captions) == 40
    return experience


@pytest.mark.parametrize("normalise", ["none", "batch", "group"])
@every_reward
def test_rewards_of_odd_captions_are_finite(kind: type[Reward], normalise: Any) -> None:
    experience = odd([kind], normalise=normalise)
    for source in ("sampled", "greedy", "ground_truth"):
        reward = experience.total(getattr(experience, source))
        assert reward.shape == (len(getattr(experience, source)),)
        assert reward.isfinite().all(), source


def gradients(loss: Tensor, network: Any) -> list[Tensor]:
    return [
        grad for grad in torch.autograd.grad(loss, list(network.parameters()), allow_unused=True) if grad is not None
    ]


@every_reward
def test_learning_from_odd_captions_is_finite(kind: type[Reward]) -> None:
    experience = odd([kind])
    reward: Any = experience.rewards[name(kind)]
    if (loss := reward.loss(experience)) is not None:
        assert all(grad.isfinite().all() for grad in [loss, *gradients(loss, reward)])


@every_baseline
def test_baselines_of_odd_captions_are_finite(kind: type[Baseline]) -> None:
    assert kind()(odd([ClipSimilarity])).isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@every_term
def test_losses_on_odd_captions_are_finite_and_so_are_their_gradients(kind: type[Term], reduction: Any) -> None:
    experience = odd([ClipSimilarity])
    loss = TERMS[kind](reduction=reduction)(experience, advantages_of(experience))
    found = gradients(loss, experience.captioner)
    assert found
    assert all(value.isfinite().all() for value in [loss, *found])


# Weights.


def trainer() -> Any:
    """As much of one as a step asks for."""
    return make_trainer(Data())


def loss_of(reward: Reward, term: Term) -> float:
    """One step's loss on eight images, without that of a reward that learns."""
    sampler = Sampler(samples=SAMPLES)
    stage = Stage({"reward": reward}, Zero(), {"term": term}, sampler=sampler, decoder=Sampler(method="greedy"))
    stage._trainer = trainer()
    stage.setup("fit")
    stage._reference = [Policy(seed=1).double()]  # type: ignore[list-item]
    loss = stage.training_step(make_batch(range(8)), 1)
    return (loss - stage.logged.get("loss/reward", 0)).item()


@every_reward
def test_the_weight_of_a_reward_moves_the_loss(kind: type[Reward]) -> None:
    none, one, two = (loss_of(REWARDS[kind](weight=weight), PolicyGradient()) for weight in (0.0, 1.0, 2.0))
    assert none == pytest.approx(0)
    assert abs(one) > 1e-4
    assert two == pytest.approx(2 * one)


@every_term
def test_the_weight_of_a_term_moves_the_loss(kind: type[Term]) -> None:
    none, one, two = (loss_of(ClipSimilarity(), TERMS[kind](weight=weight)) for weight in (0.0, 1.0, 2.0))
    assert none == 0
    assert abs(one) > 1e-4
    assert two == pytest.approx(2 * one)


@every_reward
def test_a_reward_weighs_one_unless_told(kind: type[Reward]) -> None:
    assert inspect.signature(kind).parameters["weight"].default == 1.0
    assert REWARDS[kind](weight=0.3).weight == 0.3


@every_term
def test_a_term_weighs_one_unless_told(kind: type[Term]) -> None:
    assert TERMS[kind]().weight == 1.0
    assert TERMS[kind](weight=0.3).weight == 0.3


# Gradients.


@pytest.mark.parametrize("normalise", ["none", "batch", "group"])
@every_reward
def test_no_gradient_comes_from_a_reward(kind: type[Reward], normalise: Any) -> None:
    experience = make_experience(IDS, [kind], normalise=normalise)
    experience.image_embeddings.requires_grad_()
    for source in ("sampled", "greedy", "ground_truth"):
        rollout = getattr(experience, source)
        assert not experience.rewards_of(rollout)[name(kind)].requires_grad
        assert not experience.total(rollout).requires_grad


@every_term
def test_a_term_teaches_the_policy_and_nothing_that_rewards_it(kind: type[Term]) -> None:
    experience = make_experience(IDS, [DiscriminatorReward])
    loss = TERMS[kind]()(experience, experience.sampled_reward)
    assert gradients(loss, experience.captioner)
    assert not gradients(loss, experience.rewards[name(DiscriminatorReward)])


# Batches of one image, accumulated: the same step as one whole batch, unless something compares images.


class Descent(Stage):
    """Moves by the gradient itself."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameter_groups(), lr=1.0)


def moved(
    batch_size: int, rewards: dict[str, Any], baseline: Any, term: Any, kind: Any = Descent, **kwargs: Any
) -> Any:
    """The parameters after one step on eight images, in batches of some size, by Lightning's trainer."""
    stage = kind(rewards, baseline, {"term": term}, **{**PLAIN, **kwargs})
    Trainer(accumulate_grad_batches=8 // batch_size, max_epochs=1, **QUIET).fit(stage, datamodule=Data(8, batch_size))
    assert stage.global_step == 1
    return nn.utils.parameters_to_vector(stage.parameters()).detach()


PLAIN: dict[str, Any] = {
    "sampler": Sampler(samples=SAMPLES),
    "decoder": Sampler(method="greedy"),
    "clip_gradient": 0.0,
}
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.mark.parametrize(
    ("baseline", "term"),
    [
        (Zero(), TeacherForcing()),
        (Greedy(), PolicyGradient()),
        (LeaveOneOut(), PolicyGradient()),
        (LeaveOneOut(), ClippedPolicyGradient()),
        (Zero(), WeightedTeacherForcing(weighting="raw")),
    ],
    ids=lambda module: type(module).__name__,
)
def test_batches_of_one_accumulated_are_one_batch(baseline: Baseline, term: Term) -> None:
    alone, together = (moved(size, {"clip": ClipSimilarity()}, baseline, term) for size in (1, 8))
    start = nn.utils.parameters_to_vector(Policy().double().parameters())
    assert (together - start).abs().max() > 1e-3
    torch.testing.assert_close(alone, together)


@pytest.mark.parametrize("kind", [kind for kind in REWARDS if kind is not Contrastive], ids=name)
def test_a_reward_of_the_caption_and_its_own_image_knows_no_batch(kind: type[Reward]) -> None:
    alone, together = (moved(size, {"r": REWARDS[kind]()}, LeaveOneOut(), PolicyGradient()) for size in (1, 8))
    # The step of a discriminator that learns is in this, too.
    torch.testing.assert_close(alone, together)


@pytest.mark.parametrize(
    ("reward", "term", "normalise"),
    [
        (Contrastive(direction="image_to_text"), PolicyGradient(), "none"),
        (ClipSimilarity(), WeightedTeacherForcing(weighting="minmax"), "none"),
        (ClipSimilarity(), PolicyGradient(), "batch"),
    ],
    ids=["pool", "minmax", "normalise"],
)
def test_what_compares_images_needs_its_batch_whole(reward: Reward, term: Term, normalise: Any) -> None:
    alone, together = (moved(size, {"reward": reward}, Zero(), term, normalise=normalise) for size in (1, 8))
    assert (alone - together).abs().max() > 1e-3


def test_a_batch_of_one_leaves_a_contrastive_reward_nothing_to_compare_with() -> None:
    with pytest.raises(UserError, match=r"compares an image with others.*--data\.batch_size"):
        moved(1, {"contrastive": Contrastive()}, Zero(), PolicyGradient())
