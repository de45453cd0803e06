"""The terms of the objective: whose log-probabilities each one moves, and that every weight is felt."""

import math
from typing import Any

import pytest
import torch
from fakes import GREEDY, SAMPLED, FakeCaptioner, make_batch, make_experience
from torch import Tensor

from distcap.baselines import Zero
from distcap.experience import Experience
from distcap.functional import reinforce
from distcap.objectives import KLToReference, PolicyGradient, TeacherForcing, Term, WeightedTeacherForcing
from distcap.rewards import ClipSimilarity, Contrastive
from distcap.stages import RL
from distcap.types import UserError


def with_leaves(ground_truth_reward: list[float] | None = None) -> Experience:
    """An experience whose log-probabilities are leaves, so that one sees where a gradient goes."""
    experience = make_experience(reference=FakeCaptioner(seed=1))
    for rollout in (experience.sampled, experience.ground_truth):
        rollout.logprobs = rollout.logprobs.detach().requires_grad_()
    if ground_truth_reward is not None:
        experience.__dict__["ground_truth_reward"] = torch.tensor(ground_truth_reward)
    return experience


ADVANTAGES = torch.linspace(-1, 2, 8)
TRUTH_REWARD = [-0.5, 0.1, 0.2, 0.3]


@pytest.mark.parametrize("weighting", ["raw", "minmax", "softmax", "clamp"])
def test_weighted_teacher_forcing_reaches_human_captions_and_no_sample(weighting: Any):
    # Trap 1: a "WTF loss" that repeats the policy term reaches the samples and no human caption.
    experience = with_leaves(TRUTH_REWARD)
    WeightedTeacherForcing(weighting=weighting)(experience, ADVANTAGES).backward()
    assert experience.ground_truth.logprobs.grad.abs().sum() > 0
    assert experience.sampled.logprobs.grad is None


@pytest.mark.parametrize("term", [PolicyGradient(), KLToReference()])
def test_the_terms_on_samples_reach_samples_and_no_human_caption(term: Term):
    experience = with_leaves()
    term(experience, ADVANTAGES).backward()
    assert experience.sampled.logprobs.grad.abs().sum() > 0
    assert experience.ground_truth.logprobs.grad is None


def test_the_policy_gradient_raises_what_is_better_than_the_baseline_and_lowers_what_is_worse():
    experience = with_leaves()
    PolicyGradient()(experience, ADVANTAGES).backward()
    step = -experience.sampled.logprobs.grad  # of gradient descent
    mask = experience.sampled.mask
    assert (step[mask].sign() == ADVANTAGES.sign()[:, None].expand_as(mask)[mask]).all()
    assert (step[~mask] == 0).all()


@pytest.mark.parametrize("weighting", ["raw", "minmax", "softmax", "clamp"])
def test_two_processes_weigh_human_captions_as_one_with_the_whole_batch_does(weighting: Any):
    def loss(start: int, stop: int) -> Tensor:
        experience = make_experience(make_batch(start, stop), gather=lambda values: (torch.tensor(TRUTH_REWARD), start))
        experience.__dict__["ground_truth_reward"] = torch.tensor(TRUTH_REWARD[start:stop])
        return WeightedTeacherForcing(weighting=weighting)(experience, ADVANTAGES)

    torch.testing.assert_close((loss(0, 2) + loss(2, 4)) / 2, loss(0, 4))


def test_the_lower_the_temperature_the_more_the_best_human_caption_is_learnt():
    shares = []
    for temperature in (1.0, 0.05):
        experience = with_leaves(TRUTH_REWARD)
        term = WeightedTeacherForcing(weighting="softmax", temperature=temperature)
        term(experience, ADVANTAGES).backward()
        step = -experience.ground_truth.logprobs.grad[:, 0]
        shares.append(step / step.sum())
    lengths = experience.ground_truth.mask.sum(1)
    expected = (torch.tensor(TRUTH_REWARD) / 0.05).exp() / lengths  # each token has its share of its caption's weight
    torch.testing.assert_close(shares[1], expected / expected.sum())
    assert shares[1][3] > 2 * shares[0][3]


@pytest.mark.parametrize(("weighting", "temperature"), [("softmax", 0.0), ("softmax", -1.0), ("minmax", 0.1)])
def test_a_temperature_that_means_nothing_is_one_error(weighting: Any, temperature: float):
    with pytest.raises(UserError, match="a temperature is of softmax"):
        WeightedTeacherForcing(weighting=weighting, temperature=temperature)


def test_raw_weights_unlearn_a_human_caption_that_loses_and_minmax_does_not():
    # Trap 4. The first human caption has the reward -0.5.
    steps = {}
    for weighting in ("raw", "minmax"):
        experience = with_leaves(TRUTH_REWARD)
        WeightedTeacherForcing(weighting=weighting)(experience, ADVANTAGES).backward()
        steps[weighting] = -experience.ground_truth.logprobs.grad[:, 0]
    assert (steps["raw"] < 0).tolist() == [True, False, False, False]
    assert (steps["minmax"] >= 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_teacher_forcing_is_reinforce_with_advantage_one(reduction: Any):
    experience = make_experience()
    truth = experience.ground_truth
    expected = reinforce(truth.logprobs, truth.mask, torch.ones(4), reduction)
    assert torch.equal(TeacherForcing(reduction=reduction)(experience, ADVANTAGES), expected)


def test_teacher_forcing_is_weighted_teacher_forcing_of_equal_rewards():
    experience = with_leaves([-0.3] * 4)
    found = WeightedTeacherForcing()(experience, ADVANTAGES)
    assert torch.equal(found, TeacherForcing()(experience, ADVANTAGES))


@pytest.mark.parametrize("term", [PolicyGradient, TeacherForcing, WeightedTeacherForcing])
def test_the_reduction_is_felt(term: type[Term]):
    experience = with_leaves(TRUTH_REWARD)
    assert term(reduction="sum")(experience, ADVANTAGES) != term(reduction="mean")(experience, ADVANTAGES)


def test_kl_to_the_captioner_itself_is_zero():
    captioner = FakeCaptioner()
    experience = make_experience(captioner=captioner, reference=captioner)
    assert KLToReference()(experience, ADVANTAGES).item() == 0


class Stage(RL):
    """The RL stage on fakes, without a trainer."""

    def experience(self, batch: Any) -> Experience:
        torch.manual_seed(0)
        return make_experience(
            batch, captioner=self.captioner, sampler=self.sampler, rewards=self.rewards, reference=FakeCaptioner(seed=1)
        )

    def log(self, *args: Any, **kwargs: Any) -> None: ...

    def log_train(self, values: Any, prog_bar: bool = False) -> None:
        self.logged = values


def loss(**weights: float) -> float:
    """One step's loss with two rewards and four terms, all of weight 1 but those given."""
    rewards = {"clip": ClipSimilarity(), "contrastive": Contrastive()}
    objective: dict[str, Term] = {
        "policy_gradient": PolicyGradient(),
        "teacher_forcing": TeacherForcing(),
        "weighted_teacher_forcing": WeightedTeacherForcing(),
        "kl": KLToReference(),
    }
    for name, weight in weights.items():
        {**rewards, **objective}[name].weight = weight
    stage = Stage(FakeCaptioner(), rewards, Zero(), objective, sampler=SAMPLED, decoder=GREEDY)  # type: ignore[arg-type]
    return stage.training_step(make_batch(), 0).item()


@pytest.mark.parametrize(
    "name", ["clip", "contrastive", "policy_gradient", "teacher_forcing", "weighted_teacher_forcing", "kl"]
)
def test_every_weight_changes_the_loss(name: str):
    # Trap 2: a weight that is parsed and read nowhere.
    found = [loss(**{name: weight}) for weight in (0.0, 1.0, 2.0)]
    assert len({round(value, 6) for value in found}) == 3


def test_the_loss_is_linear_in_the_weight_of_a_term():
    none, one, two = (loss(kl=weight) for weight in (0.0, 1.0, 2.0))
    assert math.isclose(two - one, one - none, rel_tol=1e-4)
