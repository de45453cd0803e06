"""The grammar stage through the command line, in miniature, and the reward that reads its head."""

from pathlib import Path

import pytest
import tiny
import torch
from fakes import FakeClip, FakeStore, embed, make_experience
from safetensors.torch import load_file

from distcap.models import Discriminator, FrozenClip, Sight
from distcap.rewards import DiscriminatorReward
from distcap.stages import TrainGrammar
from distcap.types import Batch, UserError

TRUTH = {1: ["a red heart", "a heart at night"], 2: ["a dog on a porch"]}


def fit(folder: Path, run: str, *args: str) -> None:
    steps = ["--trainer.max_steps=4", "--trainer.check_val_every_n_epoch=1", "--trainer.log_every_n_steps=1"]
    tiny.run(folder, "fit", "--config", "demo/grammar.yaml", "--data=scenes.yaml", f"--run={run}", *steps, *args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the stage, with a CLIP and without a captioner."""
    folder = tmp_path_factory.mktemp("grammar")
    (folder / "scenes.yaml").write_text(tiny.SCENES % (folder / "data", "annotators"))
    # Loaded before any run, for loading draws random numbers, and later runs of this process find it loaded.
    _ = FrozenClip(str(tiny.write_clip(folder / "runs" / "demo" / "clip"))).net
    fit(folder, "demo/whole")
    return folder


def head(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "runs" / run / "discriminator" / "model.safetensors")


def test_the_stage_hands_over_a_head_that_reads_captions_alone(folder: Path) -> None:
    assert Discriminator.load(str(folder / "runs" / "demo" / "whole")).images is False


def test_no_image_is_embedded_for_it(folder: Path) -> None:
    assert {store.parent.name.rpartition("-")[2] for store in (folder / "data").rglob("index.jsonl")} == {"captions"}


def test_its_curves_have_the_accuracy_of_both_splits(folder: Path) -> None:
    columns = (folder / "runs" / "demo" / "whole" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/accuracy", "train/loss", "val/accuracy", "val/loss"} <= set(columns)


def test_a_run_interrupted_between_epochs_and_resumed_draws_the_same_corruptions(folder: Path) -> None:
    interrupt = "--trainer.callbacks=[{class_path: tiny.Interrupt, init_args: {epoch: 1}}]"
    with pytest.raises(RuntimeError, match="the power is gone"):
        fit(folder, "demo/resumed", interrupt)
    fit(folder, "demo/resumed", "--ckpt_path=last", "--trainer.callbacks=[]")
    whole, resumed = head(folder, "demo/whole"), head(folder, "demo/resumed")
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key


class Words(FrozenClip):
    """Remembers what it was asked."""

    def embed_captions(self, captions):
        self.asked = list(captions)
        return embed(*captions)


def test_all_human_captions_of_a_batch_are_told_from_one_corruption_of_each() -> None:
    clip = Words()
    stage = TrainGrammar(clip)
    stage.vocabulary = ["cat"]
    stage.captions = FakeStore()
    images, captions, human = stage.examples(Batch(torch.zeros(2, 3, 1, 1), list(TRUTH.values()), list(TRUTH)))
    intact = [caption for row in TRUTH.values() for caption in row]
    assert images is None
    assert stage.captions.read == [intact]
    assert len(clip.asked) == 3
    assert not set(clip.asked) & set(intact)
    assert human.tolist() == [False] * 3 + [True] * 3
    assert torch.equal(captions, embed(*clip.asked, *intact))


def test_the_reward_of_a_grammar_head_is_the_probability_of_an_intact_caption(tmp_path: Path) -> None:
    Discriminator(4, hidden=(8,), images=False).save(tmp_path / "discriminator")
    reward = DiscriminatorReward(str(tmp_path), learning=False)
    experience = make_experience(clips={None: Sight(FakeClip(), images=None)})  # it needs none
    with torch.no_grad():
        found = reward(experience.ground_truth, experience)
        logits = Discriminator.load(str(tmp_path))(None, embed(*experience.ground_truth.captions))
    torch.testing.assert_close(found, 1 / (1 + (-logits).exp()))


def test_a_grammar_head_that_should_learn_from_samples_is_refused(tmp_path: Path) -> None:
    Discriminator(4, images=False).save(tmp_path / "discriminator")
    with pytest.raises(UserError, match=r"holds a grammar head.*say learning: false"):
        DiscriminatorReward(str(tmp_path))
