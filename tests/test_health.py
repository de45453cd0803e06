"""What is told of an RL step: numbers by hand on the captioner of four words; nobody pays for what he does not ask."""

from typing import Any

import pytest
import torch
from fakes import END, GREEDY, SAMPLED, SHOWN, WORDS, FakeCaptioner, make_batch, make_experience
from torch import Tensor

from distcap.experience import Experience
from distcap.health import health
from distcap.models import Sampler
from distcap.ngrams import CiderD
from distcap.rewards import ClipSimilarity, Reward
from distcap.types import Rollout

BATCH = make_batch(0, 2)
"""Of "red dog" and "blue dog"."""
LOGPROBS = [[-1.0, -2.0, 0.0], [-1.0, -3.0, -5.0], [-2.0, 0.0, 0.0], [-1.0, -1.0, -1.0]]


class Table(Reward):
    """Rewards by caption; zero for one that is not listed."""

    def __init__(self, weight: float = 1.0, **scores: float) -> None:
        super().__init__(weight)
        self.scores = {name.replace("_", " "): score for name, score in scores.items()}

    def forward(self, rollout: Rollout, experience: Experience) -> Tensor:
        return torch.tensor([self.scores.get(caption, 0.0) for caption in rollout.captions])


def rollout(captions: list[str], image_index: list[int], unfinished: int = 0) -> Rollout:
    """Captions of the fakes' words; the last `unfinished` of them have lost their end token."""
    tokens, mask = FakeCaptioner().tokenize(captions)
    for row in range(len(captions) - unfinished, len(captions)):
        mask[row, int(mask[row].sum()) - 1] = False
    return Rollout(captions, tokens, mask, torch.zeros(mask.shape), torch.tensor(image_index))


def experience_of(samples: list[str], greedy: tuple[str, str] = SHOWN[:2], **kwargs: Any) -> Experience:
    """Two images with two samples each, and their greedy and human captions."""
    unfinished = kwargs.pop("unfinished", 0)
    experience = make_experience(kwargs.pop("batch", BATCH), **kwargs)
    experience.__dict__["sampled"] = rollout(samples, [0, 0, 1, 1], unfinished)
    experience.__dict__["greedy"] = rollout(list(greedy), [0, 1])
    return experience


SCORES = Table(red=1.0, red_dog=2.0, blue=3.0, blue_dog=4.0, dog=0.5)
SAMPLES = ["red", "red dog", "blue", "blue"]


def test_the_advantages_are_summed_up_by_their_mean_their_spread_and_the_share_that_is_positive():
    values = health(experience_of(SAMPLES, rewards={"table": SCORES}), torch.tensor([1.0, -1.0, 3.0, 0.0]))
    assert values["reward/advantage"] == 0.75
    assert values["advantage/positive"] == 0.5  # zero is not
    # Deviations from 0.75: 0.25, -1.75, 2.25, -0.75; their squares' mean is 8.75 / 4.
    torch.testing.assert_close(values["advantage/std"], torch.tensor((8.75 / 4) ** 0.5))


def test_an_image_whose_samples_all_score_alike_has_no_spread():
    values = health(experience_of(SAMPLES, rewards={"table": SCORES}), torch.zeros(4))
    assert values["reward/zero_std"] == 0.5  # "red" and "red dog" differ, "blue" and "blue" do not


def test_a_single_sample_of_an_image_has_no_spread_to_tell():
    experience = make_experience(sampler=Sampler(max_tokens=4), rewards={"clip": ClipSimilarity()})
    assert "reward/zero_std" not in health(experience, torch.zeros(4), costly=True)


def test_entropy_is_the_surprise_of_a_samples_own_tokens():
    experience = experience_of(SAMPLES, rewards={"table": SCORES})
    experience.sampled.logprobs = torch.tensor(LOGPROBS)
    # Masks of 2, 3, 2, 2 tokens: (1.5 + 3 + 1 + 1) / 4.
    assert health(experience, torch.zeros(4))["policy/entropy"] == 1.625


def test_length_counts_tokens_with_the_end_and_without_padding():
    assert health(experience_of(SAMPLES, rewards={"table": SCORES}), torch.zeros(4))["policy/length"] == 2.25


def test_the_gap_is_how_far_samples_score_below_greedy_captions_by_the_weighted_total():
    experience = experience_of(
        SAMPLES, rewards={"table": Table(0.5, **{k.replace(" ", "_"): v for k, v in SCORES.scores.items()})}
    )
    # Samples: (1 + 2 + 3 + 3) / 4, greedy: (2 + 4) / 2, halved by the weight.
    assert health(experience, torch.zeros(4), costly=True)["reward/gap"] == (2.25 - 3) / 2


def test_the_mean_of_each_reward_is_told_of_every_source_whose_reward_was_computed():
    experience = experience_of(SAMPLES, rewards={"table": SCORES})
    values = health(experience, torch.zeros(4))
    assert values["reward/sampled/table"] == 2.25
    assert {key for key in values if key.startswith("reward/")} == {
        "reward/advantage",
        "reward/zero_std",
        "reward/sampled/table",
    }
    _ = experience.greedy_reward, experience.ground_truth_reward
    values = health(experience, torch.zeros(4))
    assert values["reward/greedy/table"] == values["reward/ground_truth/table"] == 3


def test_a_greedy_reward_that_a_baseline_has_read_tells_the_gap_at_every_step():
    experience = experience_of(SAMPLES, rewards={"table": SCORES})
    _ = experience.greedy_reward
    assert health(experience, torch.zeros(4))["reward/gap"] == 2.25 - 3


def test_kl_is_told_when_asked_for_or_when_a_term_has_computed_it():
    experience = experience_of(SAMPLES, rewards={"table": SCORES}, reference=FakeCaptioner(seed=1))
    experience.sampled.logprobs = torch.tensor(LOGPROBS)
    assert "policy/kl" not in health(experience, torch.zeros(4))
    assert "reference_logprobs" not in experience.__dict__
    # The ratio is 1 / 2 at each token: 1/2 - 1 + log 2.
    experience.__dict__["reference_logprobs"] = torch.tensor(LOGPROBS) - torch.tensor(2.0).log()
    for costly in (False, True):
        kl = health(experience, torch.zeros(4), costly=costly)["policy/kl"]
        torch.testing.assert_close(kl, torch.tensor(2.0).log() - 0.5)


def test_repetition_and_vocabulary_are_counted_on_the_samples():
    samples = ["red dog red dog", "red", "blue", "dog"]
    values = health(experience_of(samples, rewards={"table": SCORES}), torch.zeros(4), costly=True)
    assert values["policy/repetition"] == pytest.approx(1 / 3 / 4)  # of "red dog", "dog red", "red dog" one returns
    assert values["policy/vocabulary"] == 3


def test_bad_endings_are_the_share_of_samples_that_break_off():
    experience = experience_of(SAMPLES, rewards={"table": SCORES})
    experience.sampled.captions = ["a dog on a", "a dog", "a dog with", "dog"]
    assert health(experience, torch.zeros(4), costly=True)["policy/bad_endings"] == 0.5


def test_human_captions_are_measured_alike_all_of_each_image():
    batch = make_batch(0, 2)
    batch.captions = [["red dog", "dog"], ["red dog red dog"]]
    values = health(experience_of(SAMPLES, batch=batch, rewards={"table": SCORES}), torch.zeros(4), costly=True)
    assert values["human/length"] == pytest.approx((3 + 2 + 5) / 3)
    assert values["human/repetition"] == pytest.approx(1 / 3 / 3)
    assert values["human/bad_endings"] == 0


def test_cider_compares_each_sample_with_the_human_captions_of_its_own_image():
    references = {10: ["red dog"], 11: ["blue dog"], 12: ["red cat"]}
    cider = CiderD(references)
    own = health(
        experience_of(["red dog"] * 2 + ["blue dog"] * 2, rewards={"table": SCORES}),
        torch.zeros(4),
        costly=True,
        cider=cider,
    )
    other = health(
        experience_of(["blue dog"] * 2 + ["red dog"] * 2, rewards={"table": SCORES}),
        torch.zeros(4),
        costly=True,
        cider=cider,
    )
    assert own["policy/cider"] == pytest.approx(5)  # perfect in words and pairs; there are no triples
    assert other["policy/cider"] < 1


def test_greedy_captions_are_compared_with_those_of_the_captioner_before_rl_on_the_same_images():
    cider = CiderD({10: ["red dog"], 11: ["blue dog"], 12: ["red cat"]})
    experience = experience_of(
        ["dog"] * 4, greedy=("red dog", "blue dog"), rewards={"table": SCORES}, reference=FakeCaptioner(seed=1)
    )
    values = health(experience, torch.zeros(4), costly=True, cider=cider, decoder=GREEDY)
    assert values["policy/greedy_cider"] == pytest.approx(5)
    reference = FakeCaptioner(seed=1)
    tokens, mask, _ = reference.generate(reference.encode(BATCH.images), GREEDY)
    expected = cider(reference.detokenize(tokens, mask), BATCH.image_ids).mean()
    assert values["reference/cider"] == pytest.approx(expected)
    assert 0 < expected < 5


def test_a_sample_without_its_end_token_is_unfinished():
    experience = experience_of(SAMPLES, rewards={"table": SCORES}, unfinished=1)
    assert experience.sampled.tokens[3, 0] == WORDS.index("blue") != END
    assert health(experience, torch.zeros(4), costly=True)["policy/unfinished"] == 0.25


def test_truncations_are_a_share_of_what_clip_has_read():
    experience = experience_of(SAMPLES, rewards={"table": SCORES})
    assert "policy/truncated" not in health(experience, torch.zeros(4))
    assert health(experience, torch.zeros(4), truncated=3)["policy/truncated"] == 3 / 6
    del experience.__dict__["greedy"]
    assert health(experience, torch.zeros(4), truncated=3)["policy/truncated"] == 3 / 4


def test_truncations_are_not_diluted_by_the_greedy_captions_of_a_look():
    experience = make_experience(rewards={"clip": ClipSimilarity()})
    assert health(experience, torch.zeros(8), costly=True, truncated=4)["policy/truncated"] == 4 / 8


def test_the_discriminators_accuracy_is_how_often_it_tells_the_human_caption_of_a_pair():
    # Samples score 0.1, 0.3, 0.2, 0.2 and the human captions 0.3 and 0.25: 3 pairs and a tie, and 3 pairs, of eight.
    rewards = {"human": Table(red=0.1, red_dog=0.3, blue=0.2, blue_dog=0.25)}
    experience = experience_of(SAMPLES, rewards=rewards)
    assert "discriminator/accuracy" not in health(experience, torch.zeros(4), discriminator="human")
    _ = experience.ground_truth_reward
    assert health(experience, torch.zeros(4), discriminator="human")["discriminator/accuracy"] == 6.5 / 8
    assert "discriminator/accuracy" not in health(experience, torch.zeros(4))


def test_a_cheap_look_computes_nothing_that_the_step_had_not():
    captioner, reference = FakeCaptioner(), FakeCaptioner(seed=1)
    experience = make_experience(captioner=captioner, reference=reference, rewards={"clip": ClipSimilarity()})
    advantages = experience.sampled_reward
    known, calls = set(experience.__dict__), list(captioner.calls)
    health(experience, advantages)
    assert set(experience.__dict__) == known
    assert captioner.calls == calls
    assert reference.calls == []


def test_no_value_has_a_gradient():
    experience = make_experience(reference=FakeCaptioner(seed=1), rewards={"clip": ClipSimilarity()})
    values = health(experience, experience.sampled.logprobs.sum(1), costly=True)
    assert experience.sampled.logprobs.requires_grad
    assert len(values) >= 14
    assert not any(value.requires_grad for value in values.values() if isinstance(value, Tensor))


def test_a_look_leaves_the_greedy_captions_without_gradient_and_the_memory_with_it():
    experience = make_experience(sampler=SAMPLED, rewards={"clip": ClipSimilarity()})
    health(experience, torch.zeros(8), costly=True)
    assert experience.memory.requires_grad
    assert not experience.greedy.logprobs.requires_grad
