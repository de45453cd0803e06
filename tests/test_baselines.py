"""Baselines by hand, and what they cost."""

import pytest
import torch
from fakes import GREEDY, FakeCaptioner, make_experience

from distcap.baselines import Greedy, LeaveOneOut, Zero
from distcap.experience import Experience


def with_rewards(captioner: FakeCaptioner | None = None, **rewards: list[float]) -> Experience:
    """An experience of four images with two samples each, whose rewards are given."""
    experience = make_experience(captioner=captioner or FakeCaptioner())
    for name, values in rewards.items():
        experience.__dict__[name] = torch.tensor(values)
    return experience


SAMPLED = [1.0, 3.0, 0.0, 10.0, 5.0, 5.0, -1.0, 1.0]
"""Images 0, 0, 1, 1, 2, 2, 3, 3."""


def test_zero_is_nothing():
    assert Zero()(with_rewards(sampled_reward=SAMPLED)).tolist() == [0] * 8


def test_greedy_is_the_reward_of_the_images_greedy_caption():
    found = Greedy()(with_rewards(greedy_reward=[1.0, 2.0, 3.0, 4.0]))
    assert found.tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


def test_leave_one_out_is_the_reward_of_the_images_other_sample():
    found = LeaveOneOut()(with_rewards(sampled_reward=SAMPLED))
    assert found.tolist() == [3, 1, 10, 0, 5, 5, 1, -1]


def test_leave_one_out_of_one_sample_an_image_says_what_to_raise():
    experience = make_experience(sampler=GREEDY)
    experience.__dict__["sampled_reward"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"sampler\.samples"):
        LeaveOneOut()(experience)


@pytest.mark.parametrize("baseline", [Zero(), LeaveOneOut()])
def test_a_baseline_that_does_not_read_greedy_does_not_pay_for_it(baseline):
    captioner = FakeCaptioner()
    baseline(with_rewards(captioner, sampled_reward=SAMPLED))
    assert "generate greedy" not in captioner.calls
