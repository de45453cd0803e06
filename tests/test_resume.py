"""An interruption within an epoch changes nothing: the resumed run sees the rest of the epoch, and ends the same."""

import contextlib
import json
import random
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn

from distcap.data import CocoCaptions, ImageFolder, Shards
from distcap.stages.base import Stage
from distcap.types import Batch, UserError

IMAGES = 24
SIDE = 4


class Line(Stage):
    """Learns the number of an image's captions from its pixels, with noise; remembers which images it saw."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(learning_rate=0.1, **kwargs)
        torch.manual_seed(0)
        self.line = nn.Linear(3 * SIDE * SIDE, 1)
        self.seen: list[list[int]] = []
        self.logged: list[int] = []
        """The step that a logger is told, of each batch."""
        self.validated: dict[int, int] = {}
        """Steps -> images of the last validation after them."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append(batch.image_ids)
        self.logged.append(self.trainer.fit_loop.epoch_loop._batches_that_stepped)
        noise = torch.randn(len(batch), 1) * random.random()
        return (self.line(batch.images.flatten(1)) + noise).square().mean()

    def on_validation_epoch_start(self) -> None:
        self.validated[self.global_step] = 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        torch.rand(batch_idx + 3)  # what is drawn for it is nobody's business
        self.validated[self.global_step] += len(batch)

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters()])


class Gone(Exception):
    """The power."""


class Fail(Callback):
    """Raises at a step, in the hook of that name."""

    def __init__(self, hook: str, step: int, error: BaseException | None = None) -> None:
        self.step, self.error = step, error or Gone()
        setattr(self, hook, self._fail)

    def _fail(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            raise self.error


class Stop(Callback):
    """Tells the trainer to stop after a step, as its time limit does."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            trainer.should_stop = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four training images and four others, in files and in shards."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    rows, told = [], []
    for i in range(IMAGES + 4):
        pixels = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(i)).mul(255).byte()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / "images" / f"{i:02}.png")
        split = "train" if i < IMAGES else "val"
        rows.append({"cocoid": i, "filename": f"{i:02}.png", "split": split, "sentences": [{"raw": f"number {i}"}]})
        told.append({"file_name": f"{i:02}.png", "text": f"number {i}", "split": split})
    (folder / "dataset.json").write_text(json.dumps({"images": rows}))
    (folder / "images" / "captions.jsonl").write_text("\n".join(map(json.dumps, told)))
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in range(shard, IMAGES, 3):
                for name, data in (
                    (f"s{i:02}.png", (folder / "images" / f"{i:02}.png").read_bytes()),
                    (f"s{i:02}.txt", b"a number"),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))
    return folder


def coco(folder: Path, **kwargs: Any) -> CocoCaptions:
    args = {"image_size": SIDE, "batch_size": 4, "num_workers": 0} | kwargs
    return CocoCaptions(str(folder / "dataset.json"), str(folder / "images"), **args)


def own(folder: Path, **kwargs: Any) -> ImageFolder:
    return ImageFolder(str(folder / "images"), **{"image_size": SIDE, "batch_size": 4, "num_workers": 0} | kwargs)


def cached(folder: Path, **kwargs: Any) -> CocoCaptions:
    return coco(folder, cache=True, **kwargs)


def grouped(folder: Path, **kwargs: Any) -> CocoCaptions:
    data = coco(folder, group_size=2, **kwargs)
    ids = torch.arange(IMAGES)
    data.group_by(torch.stack([(ids + i) % IMAGES for i in range(1, 17)], 1))
    return data


def shards(folder: Path, **kwargs: Any) -> Shards:
    args: dict[str, Any] = {"image_size": SIDE, "batch_size": 4, "num_workers": 0, "buffer": 5} | kwargs
    return Shards([str(folder / f"{i}.tar") for i in range(3)], coco(folder), **args)


DATA: dict[str, Callable[..., LightningDataModule]] = {
    "coco": coco,
    "folder": own,
    "cached": cached,
    "groups": grouped,
    "shards": shards,
}


def fit(
    data: LightningDataModule,
    run: Path,
    *callbacks: Callback,
    steps: int = 18,
    ckpt_path: Path | None = None,
    schedule: Any = "linear",
    **kwargs: Any,
) -> Line:
    """Three epochs of six batches, unless it says otherwise."""
    stage = Line(schedule=schedule)
    save = {"save_last": True, "save_on_exception": True, "save_on_train_epoch_end": True}
    checkpoints = ModelCheckpoint(run, enable_version_counter=False, **save)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options |= {
        "accelerator": "cpu",
        "max_steps": steps,
        "max_epochs": -1,
        "default_root_dir": run,
        "num_sanity_val_steps": 0,
    } | kwargs
    trainer = Trainer(callbacks=[checkpoints, *callbacks], **options)
    with contextlib.suppress(Gone):
        trainer.fit(stage, data, ckpt_path=ckpt_path)
    return stage


def assert_same(whole: Line, cut: Line, resumed: Line, begun_again: int = 0) -> None:
    """The cut run and its resumption did what the whole run did, in its order, and ended where it did."""
    done = len(whole.seen) - len(resumed.seen)
    assert cut.seen[:done] == whole.seen[:done]
    assert 0 <= len(cut.seen) - done <= begun_again
    assert resumed.seen == whole.seen[done:]
    assert resumed.logged == whole.logged[done:]
    # One that is told to stop also validates where it does.
    assert (cut.validated | resumed.validated).items() >= whole.validated.items()
    assert torch.equal(resumed.weights, whole.weights)


HOOKS = ["on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end"]


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_within_an_epoch_changes_no_image_and_no_weight(
    kind: str, workers: int, folder: Path, tmp_path: Path
) -> None:
    make = DATA[kind]
    whole = fit(make(folder, num_workers=workers), tmp_path / "whole")
    cut = fit(make(folder, num_workers=workers), tmp_path / "cut", Fail("on_train_batch_start", 8))
    assert len(cut.seen) == 8
    resumed = fit(make(folder, num_workers=workers), tmp_path / "cut", ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert_same(whole, cut, resumed)
    assert {i for batch in whole.seen[6:12] for i in batch} == {i for batch in whole.seen[:6] for i in batch}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("step", [3, 6, 7, 11])
@pytest.mark.parametrize("more", [{}, {"val_check_interval": 2}, {"max_epochs": 3, "steps": -1}], ids=str)
def test_wherever_in_a_step_it_happens(
    hook: str, step: int, more: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    whole = fit(coco(folder), tmp_path / "whole", **more)
    cut = fit(coco(folder), tmp_path / "cut", Fail(hook, step), **more)
    resumed = fit(coco(folder), tmp_path / "cut", ckpt_path=tmp_path / "cut" / "last.ckpt", **more)
    assert len(resumed.seen) == len(whole.seen) - step
    assert_same(whole, cut, resumed, begun_again=1)


@pytest.mark.parametrize("batch", [1, 2, 5, 6, 7, 8, 9, 11])
def test_of_accumulated_batches_those_without_a_step_are_begun_again(batch: int, folder: Path, tmp_path: Path) -> None:
    class Cut(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            if trainer.fit_loop.total_batch_idx == batch:
                raise Gone

    more = {"accumulate_grad_batches": 4, "steps": 6}  # four batches and two, in an epoch
    whole = fit(coco(folder), tmp_path / "whole", **more)
    cut = fit(coco(folder), tmp_path / "cut", Cut(), **more)
    last = tmp_path / "cut" / "last.ckpt"
    resumed = fit(coco(folder), tmp_path / "cut", ckpt_path=last if last.exists() else None, **more)
    assert_same(whole, cut, resumed, begun_again=3)


@pytest.mark.parametrize("when", ["steps", "time", "time, epochs"])
@pytest.mark.parametrize("batch", [4, 6, 9])
def test_a_run_that_was_told_to_stop_within_an_epoch_goes_on_with_the_rest_of_it(
    when: str, batch: int, folder: Path, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"schedule": "constant"}
    if when == "time, epochs":
        more |= {"max_epochs": 3, "steps": -1}
    whole = fit(coco(folder), tmp_path / "whole", **more)
    cut = fit(
        coco(folder),
        tmp_path / "cut",
        *([] if when == "steps" else [Stop(batch)]),
        **more | ({"steps": batch} if when == "steps" else {}),
    )
    assert len(cut.seen) == batch
    resumed = fit(coco(folder), tmp_path / "cut", ckpt_path=tmp_path / "cut" / "last.ckpt", **more)
    assert_same(whole, cut, resumed)


def test_a_run_that_is_interrupted_again_and_again_ends_as_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    more = {"val_check_interval": 2}
    whole = fit(coco(folder), tmp_path / "whole", **more)
    seen: list[list[int]] = []
    last = None
    for step, hook in ((2, HOOKS[0]), (4, HOOKS[3]), (6, HOOKS[0]), (8, HOOKS[2]), (9, HOOKS[3]), (17, HOOKS[0])):
        cut = fit(coco(folder), tmp_path / "cut", Fail(hook, step), ckpt_path=last, **more)
        last = tmp_path / "cut" / "last.ckpt"
        done = torch.load(last, weights_only=True)["global_step"]
        seen += cut.seen[: done - len(seen)]
    resumed = fit(coco(folder), tmp_path / "cut", ckpt_path=last, **more)
    assert seen + resumed.seen == whole.seen
    assert torch.equal(resumed.weights, whole.weights)


@pytest.mark.parametrize("interval", [2, 6])
@pytest.mark.parametrize("step", [4, 6, 12])
def test_an_exception_within_validation(interval: int, step: int, folder: Path, tmp_path: Path) -> None:
    more = {"val_check_interval": interval}
    if interval == 6 and step == 4:
        pytest.skip("no validation there")
    whole = fit(coco(folder), tmp_path / "whole", **more)
    cut = fit(coco(folder), tmp_path / "cut", Fail("on_validation_batch_start", step), **more)
    resumed = fit(coco(folder), tmp_path / "cut", ckpt_path=tmp_path / "cut" / "last.ckpt", **more)
    assert len(resumed.seen) == len(whole.seen) - step
    assert_same(whole, cut, resumed)


def test_a_checkpoint_written_every_few_steps(folder: Path, tmp_path: Path) -> None:
    often = {"every_n_train_steps": 4, "save_top_k": -1, "enable_version_counter": False}
    whole = fit(coco(folder), tmp_path / "whole", ModelCheckpoint(tmp_path / "often", "{step}", **often))
    for step in (4, 8, 12, 16):
        resumed = fit(coco(folder), tmp_path / "cut", ckpt_path=tmp_path / "often" / f"step={step}.ckpt")
        assert resumed.seen == whole.seen[step:], step
        assert torch.equal(resumed.weights, whole.weights), step


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"batch_size": 8}, "data.batch_size"),
        ({"seed": 1}, "data.seed"),
        ({"limit": 20}, "training images"),
        ({"restval": "drop", "group_size": 1}, ""),
    ],
)
def test_within_an_epoch_a_run_goes_on_with_the_same_batches_only(
    more: dict[str, Any], word: str, folder: Path, tmp_path: Path
) -> None:
    cut = fit(coco(folder), tmp_path / "cut", Fail("on_train_batch_start", 8))
    last = tmp_path / "cut" / "last.ckpt"
    if not word:
        assert len(fit(coco(folder, **more), tmp_path / "cut", ckpt_path=last).seen) == 18 - len(cut.seen)
        return
    with pytest.raises(UserError, match=word):
        fit(coco(folder, **more), tmp_path / "cut", ckpt_path=last)


def test_between_epochs_it_goes_on_with_any(folder: Path, tmp_path: Path) -> None:
    fit(coco(folder), tmp_path / "cut", Fail("on_train_batch_start", 12))
    resumed = fit(coco(folder, batch_size=8), tmp_path / "cut", ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert [len(batch) for batch in resumed.seen] == [8] * 6
