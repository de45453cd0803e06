"""RL on images of which nobody wrote anything: what it asks for, and where the discriminator's humans come from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import words
from fakes import SHOWN, FakeClip, FakeStore, embed, make_batch, make_experience
from lightning import Trainer
from torch.utils.data import DataLoader
from words import TRUTH, Policy

from distcap import rewards as r
from distcap.baselines import LeaveOneOut
from distcap.corpus import Corpus
from distcap.health import health
from distcap.models import Discriminator, Sampler
from distcap.objectives import KLToReference, PolicyGradient, TeacherForcing, WeightedTeacherForcing
from distcap.stages import RL
from distcap.types import Batch, Rollout, UserError


def corpus_data(truth: dict[int, list[str]]) -> Any:
    """The part of a data module that a corpus reads."""
    entries = [SimpleNamespace(image_id=image, captions=tuple(captions)) for image, captions in truth.items()]
    return SimpleNamespace(
        name="elsewhere",
        captions_hint="write some",
        cache_dir=Path(),
        entries=lambda split: entries,
        path=lambda entry: Path(),
        prepare_data=lambda: None,
    )


class Seen(FakeClip):
    """Sees of image i what SHOWN says of it."""

    def image_store(self, files: dict[int, Path], folder: Path) -> "Images":
        return Images()

    def caption_store(self, captions: list[str], folder: Path) -> FakeStore:
        return FakeStore()


class Images:
    """Embeddings by image id, 0 to 3."""

    def __getitem__(self, ids: list[int]) -> torch.Tensor:
        return embed(*(SHOWN[i] for i in ids))


CORPUS = {0: ["red dog", "dog"], 1: ["blue"], 2: [], 3: ["cat"]}
PAIRS = {("red dog", "red dog"), ("red dog", "dog"), ("blue dog", "blue"), ("blue cat", "cat")}
"""What the corpus shows, and what is said of it."""


def make_corpus() -> Corpus:
    return Corpus(corpus_data(CORPUS), "train", Seen())  # type: ignore[arg-type]


def wordless(batch: Batch) -> Batch:
    return Batch(batch.images, [[] for _ in batch.captions], batch.image_ids)


def discriminator_reward(folder: Path, width: int = 4, **kwargs: Any) -> r.DiscriminatorReward:
    torch.manual_seed(0)
    Discriminator(width, (6,)).save(folder / "discriminator")
    return r.DiscriminatorReward(str(folder), **kwargs)


def test_a_corpus_is_drawn_from_as_pairs_of_an_image_and_a_caption_of_it():
    images, captions = make_corpus().draw(200)  # that one of four pairs is never drawn: 1 in 10^14
    names = {tuple(row.tolist()): text for text in {*SHOWN, "dog", "blue", "cat"} for row in embed(text)}
    pairs = zip(images.tolist(), captions.tolist(), strict=True)
    assert {(names[tuple(image)], names[tuple(caption)]) for image, caption in pairs} == PAIRS


def test_a_corpus_is_drawn_from_by_the_seed():
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(make_corpus().draw(50)[1])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_corpus_without_captions_is_refused():
    with pytest.raises(UserError, match=r"the corpus elsewhere has no human captions of its train images"):
        Corpus(corpus_data({0: []}), "train", Seen())  # type: ignore[arg-type]


def test_the_discriminators_loss_reaches_the_discriminator_alone(tmp_path: Path):
    reward = discriminator_reward(tmp_path)
    experience = make_experience(
        wordless(make_batch()), corpora={None: make_corpus()}, rewards={"discriminator": reward}
    )
    _ = experience.sampled_reward
    loss = reward.loss(experience)
    assert loss is not None
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in reward.parameters())
    assert all(parameter.grad is None for parameter in experience.captioner.parameters())  # type: ignore[attr-defined]


def test_the_discriminator_learns_from_the_corpus_as_from_ground_truth(tmp_path: Path):
    """The corpus says the very pairs that are ground truth, one of each image."""
    reward = discriminator_reward(tmp_path)
    shown = SimpleNamespace(draw=lambda count: (embed(*SHOWN), embed(*SHOWN)) if count == len(SHOWN) else None)
    losses = []
    for batch, corpus in ((make_batch(), None), (wordless(make_batch()), shown)):
        torch.manual_seed(0)
        losses.append(reward.loss(make_experience(batch, corpora={None: corpus} if corpus else None)))
    assert torch.equal(losses[0], losses[1])


@pytest.mark.parametrize("ground_truth", [True, False])
def test_the_corpus_changes_nothing_in_the_policys_pool(ground_truth: bool):
    reward = r.Contrastive(ground_truth=ground_truth)
    found = []
    for corpus in (None, make_corpus()):
        torch.manual_seed(0)
        experience = make_experience(corpora={None: corpus} if corpus else None, rewards={"contrastive": reward})
        _ = experience.sampled, experience.human()
        found.append((experience.sampled_reward, experience.view().pool(reward.sources).captions))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert len(found[1][1]) == (12 if ground_truth else 8)


class Wordless(words.Data):
    """The same images, of which nobody wrote anything."""

    name = "photos"
    captions_hint = "write captions.jsonl"

    def references(self, split: str) -> dict[int, list[str]]:
        return {image: [] for image in TRUTH}

    def train_dataloader(self) -> DataLoader:
        make: Any = lambda ids: wordless(words.make_batch(ids))  # noqa: E731
        return DataLoader(range(self.images), self.batch_size, collate_fn=make)  # type: ignore[arg-type]


class Stage(RL):
    """Keeps what it logs."""

    def __init__(self, rewards: Any, objective: Any, **kwargs: Any) -> None:
        sampling = {"sampler": Sampler(samples=2), "decoder": Sampler(method="greedy"), "health_every": 1}
        super().__init__(Policy(), rewards, LeaveOneOut(), objective, clip=words.Clip(), **sampling, **kwargs)  # type: ignore[arg-type]
        self.double()
        self.logged: dict[str, Any] = {}

    def log_train(self, values: Any, prog_bar: bool = False) -> None:
        self.logged.update(values)


def fit(stage: Stage, **kwargs: Any) -> None:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(accelerator="cpu", max_epochs=1, **quiet, **kwargs).fit(stage, datamodule=Wordless())  # type: ignore[arg-type]


NEEDY = {
    "contrastive": (r.Contrastive, "set its ground_truth to false"),
    "cider": (r.Cider, "leave it out"),
    "ref_clip": (r.RefClipS, "take ClipSimilarity"),
    "length": (r.Length, "set its target"),
}


def test_one_error_names_every_part_that_reads_human_captions_and_what_to_do(tmp_path: Path):
    rewards = {
        **{name: make() for name, (make, _) in NEEDY.items()},
        "discriminator": discriminator_reward(tmp_path, words.WIDTH),
        **{"clip": r.ClipSimilarity(), "repetition": r.Repetition(), "short": r.Length(target=9)},
    }
    terms = {"policy": PolicyGradient(), "forcing": TeacherForcing(), "weighted": WeightedTeacherForcing()}
    with pytest.raises(UserError) as caught:
        fit(Stage(rewards, terms))
    message = str(caught.value)
    assert message.startswith("photos has no human captions of its train images")
    assert all(f"reward {name} ({remedy})" in message for name, (_, remedy) in NEEDY.items())
    assert "reward discriminator (name a captioned data set with --model.corpus" in message
    assert all(f"term {name} (leave it out)" in message for name in ("forcing", "weighted"))
    assert not any(name in message for name in ("reward clip ", "reward repetition", "reward short", "term policy"))
    assert "--config captionless.yaml" in message
    assert "\n" not in message


def test_a_mix_that_reads_none_trains_and_is_compared_with_nobody(tmp_path: Path):
    rewards = {
        "contrastive": r.Contrastive(ground_truth=False),
        "discriminator": discriminator_reward(tmp_path, words.WIDTH, learning_rate=0.1),
    }
    corpus = corpus_data(TRUTH)
    stage = Stage(rewards, {"policy": PolicyGradient(), "kl": KLToReference()}, corpus=corpus, learning_rate=0.1)
    before = [parameter.detach().clone() for parameter in stage.parameters()]
    fit(stage)
    assert all(not torch.equal(*pair) for pair in zip(before, stage.parameters(), strict=True))
    assert 0 <= float(stage.logged["discriminator/accuracy"]) <= 1
    assert float(stage.logged["loss/discriminator"].detach()) > 0
    assert {"policy/length", "policy/repetition", "policy/kl", "reward/gap"} <= stage.logged.keys()
    assert not [key for key in stage.logged if "human" in key or "cider" in key or "ground_truth" in key]


def test_a_discriminator_that_has_done_with_learning_needs_no_corpus(tmp_path: Path):
    stage = Stage(
        {"discriminator": discriminator_reward(tmp_path, words.WIDTH, learning=False)}, {"p": PolicyGradient()}
    )
    fit(stage)
    assert "reward/sampled/discriminator" in stage.logged


def test_a_corpus_that_nothing_would_learn_from_is_refused():
    with pytest.raises(UserError, match=r"model\.corpus is for a reward that learns"):
        Stage({"clip": r.ClipSimilarity()}, {"policy": PolicyGradient()}, corpus=corpus_data(TRUTH))


def test_accuracy_is_that_on_the_corpus_where_there_is_one(tmp_path: Path):
    """A discriminator whose logit is the caption's share of "red": of the humans, one in two says it and wins."""
    reward = discriminator_reward(tmp_path)
    reward.discriminator.layers = torch.nn.Linear(8, 1)
    with torch.no_grad():
        reward.discriminator.layers.weight.zero_()[0, 4] = 1.0
        reward.discriminator.layers.bias.zero_()
    corpus = SimpleNamespace(draw=lambda count: (embed("cat", "cat"), embed("red", "blue")))
    experience = make_experience(wordless(make_batch()), corpora={None: corpus}, rewards={"d": reward})
    experience.__dict__["sampled"] = _saying(experience, ["blue", "dog", "cat", "blue dog"])
    accuracy = health(experience, torch.zeros(4), discriminator="d")["discriminator/accuracy"]
    assert float(accuracy) == 0.75  # "red" wins over all, "blue" ties with all


def _saying(experience: Any, captions: list[str]) -> Any:
    tokens, mask = experience.captioner.tokenize(captions)
    index = torch.arange(len(captions))
    return Rollout(captions, tokens, mask, experience.captioner.score(experience.memory, tokens, mask, index), index)
