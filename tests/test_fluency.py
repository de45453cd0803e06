"""Penalties for unfluent captions, by hand."""

from collections.abc import Sequence

import pytest
import torch
from fakes import make_experience

from distcap.rewards import BadEnding, Length, Repetition, Reward
from distcap.types import Rollout, UserError

REFERENCES = {10: ["a dog", "a red dog on a porch"], 11: ["a cat asleep , at night"]}
"""2, 6 and, without the comma, 5 tokens: 13 / 3 on average, and 4.5 an image."""


def rewards(reward: Reward, captions: Sequence[str]) -> list[float]:
    tokens = torch.zeros(len(captions), 1, dtype=torch.long)
    rollout = Rollout(captions, tokens, tokens == 0, tokens.float(), torch.zeros(len(captions), dtype=torch.long))
    found = reward(rollout, make_experience())
    assert found.dtype == torch.float32
    return found.tolist()


def test_length_charges_the_tokens_beyond_the_target_as_a_share_of_it() -> None:
    found = rewards(
        Length(target=4), ["a dog", "a dog , a cat", "a dog and a cat", "a dog and a cat at night on grass"]
    )
    assert found == [0, 0, -0.25, -1.25]


def test_the_target_is_the_mean_length_of_the_training_captions_unless_given() -> None:
    found, given = Length(), Length(target=4)
    for reward in (found, given):
        reward.prepare(REFERENCES)
    assert found.target == pytest.approx(13 / 3)
    assert given.target == 4


@pytest.mark.parametrize("target", [0, -3])
def test_a_target_that_leaves_no_room_is_refused(target: float) -> None:
    with pytest.raises(UserError, match=f"target: {target} tokens .*must be more than 0, or null"):
        Length(target=target)


def test_repetition_charges_the_share_of_word_pairs_said_before_in_the_same_caption() -> None:
    found = rewards(Repetition(), ["a red dog", "a red dog", "a red dog and a red dog", "dog"])
    assert found == pytest.approx([0, 0, -2 / 6, 0])


def test_repetition_counts_n_grams_of_other_lengths_on_request() -> None:
    assert rewards(Repetition(n=1), ["a red dog and a red dog"]) == pytest.approx([-3 / 7])


def test_a_bad_ending_costs_one() -> None:
    assert rewards(BadEnding(), ["a dog on a", "a dog on a porch", "a dog and"]) == [-1, 0, -1]


@pytest.mark.parametrize("reward", [Length(target=4), Repetition(), BadEnding()], ids=lambda r: type(r).__name__)
def test_an_empty_caption_pays_nothing(reward: Reward) -> None:
    assert rewards(reward, [""]) == [0]


@pytest.mark.parametrize("kind", [Length, Repetition, BadEnding])
def test_a_penalty_has_a_weight(kind: type[Reward]) -> None:
    assert kind().weight == 1
    assert kind(weight=0.2).weight == 0.2
