"""Best-of-n by CLIP: the rival that needs no training."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from fakes import SHOWN, FakeCaptioner, FakeClip, embed, make_batch
from torch import Tensor

from distcap.models import Sampler
from distcap.stages import Rerank
from distcap.types import UserError

SAMPLES = Sampler(samples=20, max_tokens=3)


class Pictures:
    """The stored embeddings of images 10 to 13: the words that they show."""

    def __getitem__(self, image_ids: list[int]) -> Tensor:
        return embed(*(SHOWN[i - 10] for i in image_ids))


class Scripted(FakeCaptioner):
    """Draws what it is told, in any order of the images."""

    def __init__(self, captions: list[str], index: list[int]) -> None:
        super().__init__()
        self.script = captions, torch.tensor(index)

    def generate(self, memory: Tensor, sampler: Any) -> tuple[Tensor, Tensor, Tensor]:
        return *self.tokenize(self.script[0]), self.script[1]


def make_stage(captioner: Any = None, decoder: Sampler = SAMPLES) -> Rerank:
    stage = Rerank(captioner or FakeCaptioner(), FakeClip(), decoder)  # type: ignore[arg-type]
    stage._images = Pictures()  # type: ignore[assignment]
    return stage


def test_each_image_keeps_its_own_most_similar_sample() -> None:
    """Image 10 shows a red dog, image 11 a blue dog. Similarities: "red" 0.71, "cat" 0, "red dog" 1, "blue cat" 0.5.

    "red dog" is the best of all for image 10, but was said of image 11, where it has 0.5 and "dog" 0.71.
    """
    stage = make_stage(Scripted(["cat", "red dog", "red", "blue cat", "cat", "dog"], [0, 1, 0, 1, 0, 1]))
    assert stage.caption(make_batch(0, 2)) == ["red", "dog"]


def test_the_slow_reference_chooses_the_same() -> None:
    """One image at a time, over the same twenty samples of each."""
    stage, drawn = make_stage(), []
    decode = stage.decode
    stage.decode = lambda batch: drawn.append(decode(batch)) or drawn[0]  # type: ignore[method-assign, func-returns-value]
    found = stage.caption(make_batch())
    captions, index = drawn[0]
    for image, shown in enumerate(SHOWN):
        own = [caption for caption, row in zip(captions, index.tolist(), strict=True) if row == image]
        assert len(own) == 20
        assert found[image] == max(own, key=lambda caption: float(embed(caption) @ embed(shown).T))


def test_samples_of_an_image_do_not_depend_on_what_was_captioned_before() -> None:
    stage = make_stage()
    first = stage.caption(make_batch(2, 4))
    stage.caption(make_batch(0, 2))
    torch.rand(5)
    assert stage.caption(make_batch(2, 4)) == first


def test_another_seed_of_the_run_and_another_batch_draw_other_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 drawn tokens, all would agree by chance with odds below one in a million."""
    stage, drawn = make_stage(decoder=Sampler(samples=12, max_tokens=3)), []
    decode = stage.decode
    stage.decode = lambda batch: drawn.append(decode(batch)) or drawn[-1]  # type: ignore[method-assign, func-returns-value]
    batch = make_batch(0, 2)
    for seed, ids in (("0", [10, 11]), ("1", [10, 11]), ("0", [12, 13])):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        batch.image_ids = ids
        stage.caption(batch)
    captions = [captions for captions, _ in drawn]
    assert captions[0] != captions[1]
    assert captions[0] != captions[2]


def test_each_distinct_caption_is_embedded_once() -> None:
    stage = make_stage(Scripted(["red", "dog", "red", "cat", "dog", "red"], [0, 0, 0, 1, 1, 1]))
    stage.caption(make_batch(0, 2))
    assert stage.clip.embedded == [["red", "dog", "cat"]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("decoder", [Sampler(), Sampler(method="greedy")], ids=["one sample", "greedy"])
def test_a_decoder_that_leaves_no_choice_is_one_error(decoder: Sampler) -> None:
    with pytest.raises(UserError, match=r"draws 1 by .*; set decoder: \{method: multinomial, samples: 10\}"):
        make_stage(decoder=decoder)


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test"), ("predict", "predict")])
def test_the_images_of_the_split_that_is_captioned_are_read_from_the_store(
    command: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, asked = make_stage(), []
    clip = SimpleNamespace(to=asked.append, image_store=lambda *args: asked.append(args) or "the store")
    stage.clip = clip  # type: ignore[assignment]
    stage.captioner = FakeCaptioner()  # type: ignore[assignment]
    stage.captioner.trained = True  # type: ignore[misc]
    stage.captioner.prepare = list  # type: ignore[method-assign, assignment]
    monkeypatch.setattr(stage, "files", lambda split: {1: Path(split)})
    data = SimpleNamespace(cache_dir=tmp_path, references=lambda split: {1: ["a dog"]})
    stage._trainer = SimpleNamespace(datamodule=data, strategy=SimpleNamespace(root_device="cpu"))
    stage.setup(command)
    assert asked == ["cpu", ({1: Path(split)}, tmp_path)]
    assert stage._images == "the store"


def arguments(run: str) -> list[str]:
    """Of the command line: the tiny MLE captioner, chosen by the tiny CLIP."""
    clip = {"class_path": "distcap.models.FrozenClip", "init_args": {"model": "runs/demo/clip"}}
    captioner = {"class_path": "distcap.models.VisionEncoderDecoder", "init_args": {"init_from": "runs/demo/mle"}}
    init_args = {"captioner": captioner, "clip": clip, "decoder": {"samples": 3, "max_tokens": 8}}
    model = {"class_path": "distcap.stages.Rerank", "init_args": init_args}
    trainer = ["--trainer.accelerator=cpu", "--trainer.logger=false"]
    trainer.append(f"--trainer.callbacks={json.dumps([tiny.EVALUATION])}")
    return ["--data=scenes.yaml", f"--run={run}", f"--model={json.dumps(model)}", *trainer]


def test_testing_and_predicting_twice_gives_the_same_captions(workshop: Path) -> None:
    said = []
    for run in ("rerank-a", "rerank-b"):
        tiny.run(workshop, "test", *arguments(run))
        rows = json.loads((workshop / "runs" / run / "captions_test.json").read_text())
        said.append([row["caption"] for row in rows])
    tiny.run(workshop, "predict", *arguments("rerank-a"))
    rows = json.loads((workshop / "runs" / "rerank-a" / "predictions.json").read_text())
    said.append([row["caption"] for row in rows])
    assert said[0] == said[1] == said[2]
    assert len(said[0]) == 8


def test_fitting_it_is_one_line_that_names_the_command(workshop: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        tiny.run(workshop, "fit", *arguments("rerank-fit"))
    assert "distcap: Rerank has nothing to train: distcap test" in capsys.readouterr().err
    assert not (workshop / "runs" / "rerank-fit" / "captioner").exists()
