"""The record of one RL step: it pays only for what is read, and the pool is that of all processes."""

import gc
import threading
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import (
    END,
    GREEDY,
    SHOWN,
    FakeCaptioner,
    FakeClip,
    FakeStore,
    Pictures,
    embed,
    make_batch,
    make_experience,
    make_sight,
)
from torch import Tensor

from distcap.experience import Experience
from distcap.models import Sampler
from distcap.rewards import ClipSimilarity, Contrastive, Reward
from distcap.stages import RL
from distcap.types import Batch, UserError


def test_nothing_is_computed_before_it_is_read():
    captioner, clip = FakeCaptioner(), FakeClip()
    make_experience(captioner=captioner, clips={None: make_sight(clip)}, rewards={"clip": ClipSimilarity()})
    assert captioner.calls == []
    assert clip.embedded == []


def test_greedy_captions_are_not_decoded_unless_read():
    captioner = FakeCaptioner()
    experience = make_experience(captioner=captioner, rewards={"both": Contrastive()})
    _ = experience.sampled_reward, experience.ground_truth_reward
    assert "generate greedy" not in captioner.calls
    _ = experience.greedy_reward
    assert captioner.calls.count("generate greedy") == 1


def test_ground_truth_of_an_image_that_has_none_is_one_error():
    batch = make_batch()
    batch.captions[2] = []
    with pytest.raises(UserError, match="image id 12 has no human caption"):
        _ = make_experience(batch).ground_truth


def test_an_image_is_encoded_once_for_samples_greedy_and_ground_truth():
    captioner = FakeCaptioner()
    experience = make_experience(captioner=captioner)
    for _ in range(2):
        _ = experience.sampled, experience.greedy, experience.ground_truth
    assert captioner.calls.count("encode") == 1
    assert captioner.calls.count("score") == 3


def test_each_caption_is_embedded_once_however_many_rewards_read_it():
    clip, store = FakeClip(), FakeStore()
    experience = make_experience(
        clips={None: make_sight(clip, captions=store)},
        rewards={"one": ClipSimilarity(), "two": Contrastive(greedy=True)},
    )
    for _ in range(2):
        _ = experience.sampled_reward, experience.ground_truth_reward, experience.greedy_reward
    assert clip.embedded == [experience.sampled.captions, experience.greedy.captions]
    assert store.read == [experience.ground_truth.captions]


def test_human_captions_come_from_the_store_and_samples_never_do():
    clip, store = FakeClip(), FakeStore()
    experience = make_experience(clips={None: make_sight(clip, captions=store)})
    assert torch.equal(experience.caption_embeddings(experience.ground_truth), embed(*SHOWN))
    assert clip.embedded == []
    experience.caption_embeddings(experience.sampled)
    assert store.read == [list(SHOWN)]


def test_the_reference_is_not_called_unless_read_and_then_without_gradient():
    reference = FakeCaptioner(seed=1)
    experience = make_experience(reference=reference)
    _ = experience.sampled, experience.ground_truth
    assert reference.calls == []
    assert not experience.reference_logprobs.requires_grad
    assert reference.calls == ["encode", "score"]


def test_the_reference_scores_the_samples_own_tokens():
    captioner = FakeCaptioner()
    experience = make_experience(captioner=captioner, reference=captioner)
    assert torch.equal(experience.reference_logprobs, experience.sampled.logprobs)


def test_the_samples_carry_a_gradient_even_when_greedy_is_read_first():
    captioner = FakeCaptioner()
    experience = make_experience(captioner=captioner)
    assert not experience.greedy.logprobs.requires_grad
    experience.sampled.logprobs.sum().backward()
    assert captioner.look.grad is not None  # the encoder's, through the memory
    assert captioner.look.grad.abs().sum() > 0


def test_rewards_come_without_gradient():
    learning = torch.nn.Parameter(torch.ones(()))

    class Learning(ClipSimilarity):
        def forward(self, rollout: Any, experience: Experience) -> Tensor:
            return learning * super().forward(rollout, experience)

    assert not make_experience(rewards={"learning": Learning()}).sampled_reward.requires_grad


def test_the_total_is_the_weighted_sum():
    rewards = {"one": ClipSimilarity(weight=2.0), "two": ClipSimilarity(weight=0.5, scale=10)}
    experience = make_experience(rewards=rewards)
    parts = experience.rewards_of(experience.sampled)
    torch.testing.assert_close(experience.sampled_reward, 2 * parts["one"] + 0.5 * parts["two"])


def test_as_many_human_captions_of_each_image_and_with_replacement_where_it_has_fewer():
    batch = Batch(make_batch(0, 2).images, [["red", "dog", "red dog"], ["blue"]], [10, 11])
    truth = make_experience(batch, ground_truth_per_image=2).ground_truth
    assert truth.image_index.tolist() == [0, 0, 1, 1]
    assert len(set(truth.captions[:2])) == 2
    assert truth.captions[2:] == ["blue", "blue"]


def test_a_reward_that_needs_clip_says_so_where_there_is_none():
    experience = make_experience(clips={}, rewards={"clip": ClipSimilarity()})
    with pytest.raises(ValueError, match="no clip"):
        _ = experience.sampled_reward


# Several CLIPs.


class Backwards(FakeClip):
    """Takes red for blue and dogs for cats, and the other way round."""

    tau = 0.5

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        return super().embed_captions(captions).flip(-1)


def test_a_reward_reads_the_clip_that_it_names_and_each_sees_a_batch_once():
    mine, other, store = FakeClip(), Backwards(), FakeStore()
    images = Pictures(embed("cat", "dog", "blue", "red"))
    rewards = {
        "mine": ClipSimilarity(),
        "other": ClipSimilarity(clip="other"),
        "contrastive": Contrastive(clip="other"),
    }
    clips = {None: make_sight(mine, captions=store), "other": make_sight(other, images)}
    experience = make_experience(clips=clips, rewards=rewards)
    for _ in range(2):
        found = experience.rewards_of(experience.sampled)
    alone = make_experience(clips={None: make_sight(Backwards(), images)}, rewards={})
    alone.__dict__.update(sampled=experience.sampled, ground_truth=experience.ground_truth)
    assert torch.equal(found["mine"], ClipSimilarity()(experience.sampled, experience))
    assert torch.equal(found["other"], ClipSimilarity()(experience.sampled, alone))
    assert torch.equal(found["contrastive"], Contrastive()(experience.sampled, alone))
    assert not torch.allclose(found["mine"], found["other"])
    # The pool of the other one holds human captions, of which it has no store; nobody asked the first for them.
    assert mine.embedded == [experience.sampled.captions]
    assert other.embedded == [experience.sampled.captions, experience.ground_truth.captions]
    assert store.read == []


def test_a_clip_that_no_reward_reads_sees_nothing():
    other = FakeClip()
    experience = make_experience(
        clips={None: make_sight(), "other": make_sight(other)}, rewards={"clip": ClipSimilarity()}
    )
    _ = experience.sampled_reward
    assert other.embedded == []


def test_a_step_is_forgotten_as_soon_as_nobody_holds_it():
    """Its graph is most of a GPU's memory: it must not wait for Python to look for circles."""
    experience = make_experience(rewards={"both": Contrastive()})
    _ = experience.sampled_reward
    gone = weakref.ref(experience)
    gc.disable()
    try:
        del experience
        assert gone() is None
    finally:
        gc.enable()


def test_a_missing_reference_is_an_error():
    with pytest.raises(UserError, match=r"no reference was kept.*needs_reference = True"):
        _ = make_experience().reference_logprobs


def test_a_rollout_knows_its_source_and_one_made_elsewhere_has_none():
    experience, other = make_experience(), make_experience()
    for source in ("sampled", "greedy", "ground_truth"):
        assert experience.source(getattr(experience, source)) == source
    assert experience.source(other.sampled) is None


# Several processes (trap 11). Greedy "samples", because they do not depend on which process draws them.

REWARDS = {"all": Contrastive(greedy=True, tau=0.1), "samples": Contrastive(ground_truth=False)}
POOLED: dict[str, Any] = {"sampler": GREEDY, "rewards": REWARDS}


def rewards_of(experience: Experience) -> Tensor:
    """(3, B) of samples, ground truth and greedy captions."""
    # Not the cached properties: Python 3.11 locks those for all threads, and the threads below wait for each other.
    return torch.stack([experience.total(getattr(experience, name)) for name in ("sampled", "ground_truth", "greedy")])


class Meeting:
    """Threads that gather like processes."""

    def __init__(self, size: int) -> None:
        self.parts: list[Tensor] = [torch.empty(0)] * size
        self.barrier = threading.Barrier(size, timeout=20)

    def all_gather(self, rank: int, values: Tensor) -> Tensor:
        """(M, ...) -> (processes, M, ...), as Lightning gives it."""
        self.parts[rank] = values
        self.barrier.wait()
        everything = torch.stack(self.parts)
        self.barrier.wait()
        return everything


def test_two_processes_give_the_rewards_of_one_with_the_whole_batch():
    meeting, found = Meeting(2), {}

    def work(rank: int) -> None:
        stage: Any = SimpleNamespace(
            trainer=SimpleNamespace(world_size=2),
            global_rank=rank,
            all_gather=lambda values: meeting.all_gather(rank, values),
        )
        half = make_batch(2 * rank, 2 * rank + 2)
        found[rank] = rewards_of(make_experience(half, gather=lambda values: RL._gather(stage, values), **POOLED))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat([found[0], found[1]], 1), rewards_of(make_experience(**POOLED)))


def test_half_a_pool_gives_other_rewards():
    half = rewards_of(make_experience(make_batch(0, 2), **POOLED))
    assert not torch.allclose(half, rewards_of(make_experience(**POOLED))[:, :2])


def test_samples_are_scored_at_the_temperature_they_were_drawn_with_and_human_captions_are_not():
    hot = Sampler(samples=2, max_tokens=4, temperature=0.5)
    experience = make_experience(sampler=hot, reference=FakeCaptioner(seed=1))
    for rollout, temperature in ((experience.sampled, 0.5), (experience.ground_truth, 1.0), (experience.greedy, 1.0)):
        parts = rollout.tokens, rollout.mask, rollout.image_index
        expected = experience.captioner.score(experience.memory, *parts, temperature)
        assert torch.equal(rollout.logprobs, expected)
        assert not torch.allclose(expected, experience.captioner.score(experience.memory, *parts, 2.0))
    sampled, reference = experience.sampled, experience.reference
    memory = reference.encode(experience.batch.images)
    expected = reference.score(memory, sampled.tokens, sampled.mask, sampled.image_index, 0.5)
    assert torch.equal(experience.reference_logprobs, expected)
    before = sampled.logprobs.clone()
    experience.rescore()
    assert torch.equal(sampled.logprobs, before)


class Coarse(Reward):
    """Of few bits, as what mixed precision computes is."""

    def forward(self, rollout, experience):
        return torch.linspace(0, 1, len(rollout)).bfloat16()


@pytest.mark.parametrize("normalise", ["none", "batch", "group"])
def test_rewards_are_float32_whoever_wrote_them(normalise):
    experience = make_experience(rewards={"coarse": Coarse()}, normalise=normalise)
    assert experience.rewards_of(experience.sampled)["coarse"].dtype == torch.float32
    assert experience.sampled_reward.dtype == torch.float32


def test_a_caption_that_was_cut_has_not_ended():
    experience = make_experience(sampler=Sampler(samples=50, max_tokens=2))
    sampled = experience.sampled
    expected = [bool((row == END).any()) for row in sampled.tokens]
    assert experience.ended(sampled).tolist() == expected
    assert set(expected) == {True, False}
    assert experience.ended(experience.ground_truth).all()
