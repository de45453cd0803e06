"""Each reward by hand, on captions of four words."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import GREEDY, FakeClip, embed, make_batch, make_experience
from torch import Tensor

from distcap.experience import Experience
from distcap.functional import contrastive
from distcap.models import Discriminator
from distcap.ngrams import CiderD
from distcap.rewards import Cider, ClipSimilarity, Contrastive, DiscriminatorReward, Reward
from distcap.types import Batch, Rollout


def say(experience: Experience, *captions: str, source: str = "sampled") -> Rollout:
    """Make the experience's own captions these, one an image."""
    tokens, mask = experience.captioner.tokenize(captions)
    index = torch.arange(len(captions))
    rollout = Rollout(captions, tokens, mask, torch.zeros(mask.shape), index)
    experience.__dict__[source] = rollout
    return rollout


# CLIP similarity.


def test_clip_similarity_is_the_cosine_with_the_captions_own_image():
    # Images: red dog, blue dog, red cat, blue cat. One word of two, both words, no word, both of three words.
    experience = make_experience()
    found = ClipSimilarity()(say(experience, "red", "blue dog", "blue dog", "red blue cat"), experience)
    assert found.tolist() == pytest.approx([1 / math.sqrt(2), 1, 0, 2 / math.sqrt(6)])


def test_clip_s_is_scaled_and_cut_at_zero():
    opposite = make_experience(image_embeddings=-embed("red", "red", "red", "red"))
    rollout = say(opposite, "red", "red", "red", "blue")
    assert ClipSimilarity(scale=2.5)(rollout, opposite).tolist() == [-2.5, -2.5, -2.5, 0]
    assert ClipSimilarity(scale=2.5, rectified=True)(rollout, opposite).tolist() == [0] * 4


# The contrastive reward.


def two_images(**kwargs: Any) -> tuple[Experience, Rollout]:
    """Images "red" and "dog", perfectly described by samples, with the human captions "red dog" and "red dog"."""
    batch = Batch(make_batch(0, 2).images, [["red dog"], ["red dog"]], [10, 11])
    experience = make_experience(batch, image_embeddings=embed("red", "dog"), **kwargs)
    return experience, say(experience, "red", "dog")


def test_contrastive_by_hand_without_human_captions():
    experience, rollout = two_images()
    # Own similarity 1, the one competitor's 0: tau log exp(0) = 0.
    assert Contrastive(ground_truth=False)(rollout, experience).tolist() == [1, 1]


def test_human_captions_in_the_pool_are_strong_competitors():
    experience, rollout = two_images()
    found = Contrastive(direction="image_to_text", tau=1.0)(rollout, experience)
    # Three captions compete for the image: the other sample, 0, and two human ones, 1 / sqrt(2) each.
    assert found.tolist() == pytest.approx([1 - math.log(1 + 2 * math.exp(1 / math.sqrt(2)))] * 2)


def test_greedy_captions_join_the_pool_on_request():
    experience, rollout = two_images()
    say(experience, "red", "dog", source="greedy")
    found = Contrastive(direction="image_to_text", tau=1.0, ground_truth=False, greedy=True)(rollout, experience)
    # The other sample 0, the other greedy caption 0, and its own greedy caption 1: it competes, like all but itself.
    assert found.tolist() == pytest.approx([1 - math.log(2 + math.e)] * 2)


def test_the_pool_of_captions_is_no_matter_to_text_to_image():
    experience, rollout = two_images()
    with_truth, without = (
        Contrastive(direction="text_to_image", ground_truth=truth)(rollout, experience) for truth in (True, False)
    )
    assert torch.equal(with_truth, without)


def test_both_directions_are_the_mean_of_the_two():
    experience = make_experience()
    rollout = say(experience, "red", "blue dog", "dog", "red blue cat")
    to_text, to_image, both = (
        Contrastive(direction=direction)(rollout, experience)
        for direction in ("image_to_text", "text_to_image", "both")
    )
    assert not torch.allclose(to_text, to_image)
    torch.testing.assert_close((to_text + to_image) / 2, both)


def test_each_source_stands_at_its_own_place_in_the_pool():
    experience = make_experience()
    say(experience, "red", "blue dog", "dog", "red blue cat")
    say(experience, "blue", "red dog", "cat dog", "cat", source="greedy")
    own = torch.arange(4)
    rollouts = [experience.sampled, experience.ground_truth, experience.greedy]
    pool = torch.cat([embed(*rollout.captions) for rollout in rollouts])
    images = experience.image_embeddings
    for place, rollout in enumerate(rollouts):
        expected = contrastive(embed(*rollout.captions), images, pool, images, own + 4 * place, own, tau=0.1)
        torch.testing.assert_close(Contrastive(greedy=True)(rollout, experience), expected)


def test_a_human_caption_that_is_not_in_the_pool_competes_with_every_sample():
    experience, _ = two_images()
    found = Contrastive(direction="image_to_text", tau=1.0, ground_truth=False)(experience.ground_truth, experience)
    # Own similarity 1 / sqrt(2); the samples have 1 and 0.
    assert found.tolist() == pytest.approx([1 / math.sqrt(2) - math.log(math.e + 1)] * 2)


def test_tau_is_the_clips_own_unless_given():
    experience, rollout = two_images()
    assert FakeClip.tau == 0.1
    assert torch.equal(Contrastive()(rollout, experience), Contrastive(tau=0.1)(rollout, experience))
    assert not torch.equal(Contrastive()(rollout, experience), Contrastive(tau=1.0)(rollout, experience))


def test_the_released_codes_clamp_is_an_option():
    experience, rollout = two_images()
    found = Contrastive(ground_truth=False, tau=0.05, clamp=16)(rollout, experience)
    assert found.tolist() == pytest.approx([0.8, 0.8])


# CIDEr-D.

REFERENCES = {10: ["red dog"], 11: ["blue dog"], 12: ["red cat"], 13: ["blue cat"]}


def cider(references: dict[int, list[str]] = REFERENCES) -> Cider:
    reward = Cider()
    reward.prepare(references)
    return reward


def test_cider_of_a_copied_reference_is_ten_times_the_share_of_n_gram_orders_it_has():
    # With its end token "red dog" has n-grams of orders 1, 2 and 3, of the four: cosines 1, 1, 1, 0.
    experience = make_experience()
    found = cider()(say(experience, "red dog", "blue dog", "red cat", "blue cat"), experience)
    assert found.tolist() == pytest.approx([7.5] * 4)


def test_a_sample_that_was_cut_gets_no_credit_for_an_end_token():
    experience = make_experience()
    rollout = say(experience, "red dog", "blue dog", "red cat", "blue cat")
    rollout.mask[0, -1] = rollout.mask[2, -1] = False  # their end tokens
    # Without it "red dog" has two bigrams less a caption: cosines of unigrams and bigrams with those of "red dog END".
    alone = CiderD(REFERENCES, end_token=True)(rollout.captions, list(REFERENCES), [False, True, False, True])
    found = cider()(rollout, experience)
    assert found.tolist() == pytest.approx(alone.tolist())
    assert found[1::2].tolist() == pytest.approx([7.5] * 2)
    assert (found[::2] < 6).all()


def test_cider_compares_with_the_references_of_the_captions_own_image():
    experience = make_experience()
    found = cider()(say(experience, "red dog", "red cat", "red cat", "blue cat"), experience)
    assert found[1] == 0  # of image 11, a blue dog
    assert (found[[0, 2, 3]] == 7.5).all()


def test_cider_of_a_caption_is_the_same_in_any_batch():
    # Trap 9: one document-frequency table, of the training ground truth. In a batch of one every weight would be 0.
    reward = cider()
    alone, together = make_experience(make_batch(1, 2)), make_experience()
    one = reward(say(alone, "blue cat"), alone)
    four = reward(say(together, "red", "blue cat", "dog", "cat"), together)
    assert one[0] == four[1] > 0


def test_cider_counts_documents_in_the_whole_training_set():
    # Images that are not in the batch make "red" and "dog" common, and what is left of "blue" and "cat" distinctive.
    experience = make_experience()
    rollout = say(experience, "red", "blue", "red", "blue")
    more = {**REFERENCES, **{100 + i: ["red dog"] for i in range(20)}}
    few, many = cider()(rollout, experience), cider(more)(rollout, experience)
    assert few[0] == pytest.approx(few[1])
    assert many[0] < many[1]


def test_cider_scores_the_end_token():
    # Trap 10: "blue dog" is no "red dog", but it ends like one, and the end is worth a bigram.
    experience = make_experience()
    rollout = say(experience, "blue dog", "blue dog", "red cat", "blue cat")
    found = cider()(rollout, experience)
    scores = [CiderD(REFERENCES, end_token=end)(rollout.captions, [10, 11, 12, 13]) for end in (True, False)]
    assert found.tolist() == pytest.approx(scores[0].tolist())
    assert scores[0][0] > scores[1][0]


# The discriminator.


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run of the discriminator stage."""
    torch.manual_seed(0)
    Discriminator(4, hidden=(8,)).save(tmp_path / "discriminator")
    return str(tmp_path)


def test_the_discriminators_reward_is_the_probability_that_a_human_wrote_it(run: str):
    reward, experience = DiscriminatorReward(run), make_experience()
    captions = ("red", "blue dog", "dog", "red blue cat")
    with torch.no_grad():
        found = reward(say(experience, *captions), experience)
        logits = Discriminator.load(run)(experience.image_embeddings, embed(*captions))
    torch.testing.assert_close(found, 1 / (1 + (-logits).exp()))


def test_the_learning_discriminators_loss_calls_samples_generated_and_human_captions_human(run: str):
    reward, experience = DiscriminatorReward(run), make_experience(sampler=GREEDY)
    loss = reward.loss(experience)
    assert loss is not None
    with torch.no_grad():
        generated, human = reward(experience.sampled, experience), reward(experience.ground_truth, experience)
    expected = -torch.cat([(1 - generated).log(), human.log()]).mean()
    torch.testing.assert_close(loss.detach(), expected)


def test_the_discriminators_loss_sends_no_gradient_to_the_captioner_nor_the_embeddings(run: str):
    images = embed("red dog", "blue dog", "red cat", "blue cat").requires_grad_()
    experience = make_experience(image_embeddings=images)
    reward = DiscriminatorReward(run)
    loss = reward.loss(experience)
    assert loss is not None
    loss.backward()
    assert images.grad is None
    assert all(parameter.grad is None for parameter in experience.captioner.parameters())  # type: ignore[attr-defined]
    assert all(parameter.grad is not None for parameter in reward.discriminator.parameters())


def test_the_discriminators_reward_is_that_before_its_update(run: str):
    reward = DiscriminatorReward(run)
    experience = make_experience(rewards={"discriminator": reward})
    before = DiscriminatorReward(run)(experience.sampled, experience).detach()
    optimizer = torch.optim.Adam(reward.parameters(), lr=0.1)
    _ = experience.sampled_reward
    loss = reward.loss(experience)
    assert loss is not None
    loss.backward()
    optimizer.step()
    assert torch.equal(experience.total(experience.sampled), before)
    assert not torch.allclose(reward(experience.sampled, experience), before)


def test_a_frozen_discriminator_has_no_loss_and_nothing_to_learn(run: str):
    reward = DiscriminatorReward(run, learning=False)
    assert reward.loss(make_experience()) is None
    assert reward.learning_rate is None
    assert not any(parameter.requires_grad for parameter in reward.parameters())


def test_a_learning_discriminator_learns_at_its_own_rate(run: str):
    assert DiscriminatorReward(run, learning_rate=3e-4).learning_rate == 3e-4
    assert all(parameter.requires_grad for parameter in DiscriminatorReward(run).parameters())


# All of them.


def every_reward(run: str) -> dict[str, Reward]:
    return {
        "clip": ClipSimilarity(),
        "contrastive": Contrastive(),
        "cider": cider(),
        "discriminator": DiscriminatorReward(run),
    }


def test_every_reward_gives_one_finite_number_a_caption_and_no_gradient(run: str):
    experience = make_experience(rewards=every_reward(run))
    for rollout in (experience.sampled, experience.ground_truth, experience.greedy):
        for name, reward in experience.rewards_of(rollout).items():
            assert reward.shape == (len(rollout),), name
            assert reward.dtype == torch.float32, name
            assert reward.isfinite().all(), name
            assert not reward.requires_grad, name


def test_only_a_reward_that_learns_has_a_loss(run: str):
    experience = make_experience()
    losses: dict[str, Tensor | None] = {name: reward.loss(experience) for name, reward in every_reward(run).items()}
    assert [name for name, loss in losses.items() if loss is not None] == ["discriminator"]


def test_every_reward_has_a_weight_of_one_unless_given(run: str):
    assert {reward.weight for reward in every_reward(run).values()} == {1.0}
    assert DiscriminatorReward(run, weight=0.06).weight == 0.06
