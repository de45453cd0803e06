"""Batches of look-alikes: who is put with whom, and that it is an epoch like any other."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from distcap.data import Scenes
from distcap.data.coco import CocoCaptions
from distcap.data.lookalikes import lookalike_order
from distcap.types import UserError

TRAIN = list(range(100, 114))


def ring(images: int, count: int) -> Tensor:
    """(images, count) neighbours on a ring: 0 has 1, -1, 2, -2, ..."""
    steps = torch.tensor([(1 + step // 2) * (-1) ** step for step in range(count)])
    return (torch.arange(images)[:, None] + steps) % images


def cliques(images: int, size: int) -> Tensor:
    """(images, size - 1) neighbours: images come in groups of `size`, everyone's neighbours are its group."""
    others = [[j for j in range(i - i % size, i - i % size + size) if j != i] for i in range(images)]
    return torch.tensor(others)


def shuffled(images: int, seed: int = 0) -> Tensor:
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed))


def groups(order: Tensor, size: int) -> list[list[int]]:
    return [part.tolist() for part in order.split(size)]


def test_an_image_comes_with_its_nearest_that_are_still_free() -> None:
    """0 takes 1 and 7; 2 takes 3 and, as 1 is taken, 4; 5 and 6 are left."""
    order = lookalike_order(torch.arange(8), ring(8, 4), 3, seed=0)
    first, second, rest = groups(order, 3)
    assert sorted([first, second]) == [[0, 1, 7], [2, 3, 4]]
    assert rest == [5, 6]


def test_every_clique_is_a_group() -> None:
    found = groups(lookalike_order(shuffled(40), cliques(40, 4), 4, seed=0), 4)
    assert sorted(sorted(group) for group in found) == torch.arange(40).view(-1, 4).tolist()


@pytest.mark.parametrize("size", [2, 3, 4, 8])
@pytest.mark.parametrize("images", [64, 67])
def test_every_image_comes_once(images: int, size: int) -> None:
    order = lookalike_order(shuffled(images), ring(images, 7), size, seed=0)
    assert sorted(order.tolist()) == list(range(images))


def test_images_that_find_no_group_leave_the_others_whole() -> None:
    """Nine images next to cliques of four know only clique members, of whom none is left when all cliques are drawn."""
    lonely = torch.tensor([[0, 1, 2]] * 9)
    neighbours = torch.cat([cliques(20, 4), lonely])
    found = groups(lookalike_order(torch.arange(29), neighbours, 4, seed=0), 4)
    assert sum(sorted(group) in torch.arange(20).view(-1, 4).tolist() for group in found) == 5
    assert len(found[-1]) == 1  # what fills no group is last, where a short batch is dropped


def test_groups_come_in_no_order() -> None:
    """The first drawn are the most alike, the last ones must not be the epoch's end: in order by chance, 1 in 10!"""
    order = lookalike_order(torch.arange(40), cliques(40, 4), 4, seed=0)
    assert order.tolist() != list(range(40))


def test_the_same_arguments_give_the_same_order() -> None:
    one, again, other = (lookalike_order(shuffled(64), ring(64, 7), 4, seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)  # alike by chance: 1 in 16!


@pytest.fixture
def coco(tmp_path: Path, write_json: Callable, karpathy: dict) -> Callable[..., CocoCaptions]:
    """Builds a CocoCaptions of 14 training images on a ring, with groups of two."""

    def build(neighbours: bool = True, **arguments) -> CocoCaptions:
        defaults = {"image_size": 8, "batch_size": 4, "num_workers": 0, "group_size": 2}
        data = CocoCaptions(write_json("tiny.json", karpathy), str(tmp_path / "images"), **{**defaults, **arguments})
        if neighbours:
            data.group_by(100 + ring(14, 13))
        return data

    return build


def batches(data: CocoCaptions, epoch: int = 0) -> list[list[int]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [batch.image_ids for batch in loader]


def flat(rows: list[list[int]]) -> list[int]:
    return [image for row in rows for image in row]


def test_batches_hold_whole_groups(coco) -> None:
    """Images 100 and 101, 102 and 103, ... are each other's nearest: each comes with its partner, in every batch."""
    data = coco(neighbours=False)
    data.group_by(torch.tensor([[i ^ 1, *(j for j in TRAIN if j not in (i, i ^ 1))] for i in TRAIN]))
    for epoch in range(3):
        assert all(image ^ 1 in batch for batch in batches(data, epoch) for image in batch)


def test_neighbours_are_told_by_image_id_in_any_order_of_the_file(coco, karpathy) -> None:
    karpathy["images"].reverse()
    data = coco(neighbours=False)
    ids = [entry.image_id for entry in data.entries("train")]
    assert ids == TRAIN[::-1]
    data.group_by((100 + ring(14, 13)).flip(0))
    loader = data.train_dataloader()
    assert torch.equal(loader.sampler.neighbours, 13 - ring(14, 13).flip(0))  # type: ignore[attr-defined]


def test_an_epoch_of_groups_is_every_image_at_most_once(coco) -> None:
    seen = flat(batches(coco()))
    assert len(seen) == len(set(seen)) == 12  # of 14, in batches of 4


def test_without_groups_images_are_shuffled_as_torch_does(coco) -> None:
    """Also if a stage has told of neighbours."""
    data = coco(group_size=1, seed=3)
    plain = DistributedSampler(data.dataset("train"), 1, 0, shuffle=True, seed=3 * 1_000_003, drop_last=True)
    for epoch in range(3):
        plain.set_epoch(epoch)
        assert flat(batches(data, epoch)) == [TRAIN[row] for row in plain][:12]


@pytest.mark.parametrize("group_size", [2, 4])  # a group of four is larger than the batch of one process
def test_two_processes_together_see_the_groups_of_one(coco, group_size: int) -> None:
    alone, shares = coco(batch_size=4, group_size=group_size), [coco(batch_size=2, group_size=group_size) for _ in "01"]
    for rank, data in enumerate(shares):
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, training=False)
    for epoch in range(3):
        left, right = (batches(data, epoch) for data in shares)
        together = [sorted(one + other) for one, other in zip(left, right, strict=True)]
        assert together == [sorted(batch) for batch in batches(alone, epoch)]


def test_every_process_gets_as_many_batches(coco) -> None:
    """Fourteen images for four processes are three each; one with a fourth would wait for the others for ever."""
    for rank in range(4):
        data = coco(batch_size=1)
        data.trainer = SimpleNamespace(world_size=4, global_rank=rank, training=False)
        assert len(batches(data)) == 3


def test_groups_depend_on_seed_and_epoch_alone(coco) -> None:
    def pairs(seed: int, epoch: int) -> frozenset:
        sampler = coco(seed=seed).train_dataloader().sampler
        sampler.set_epoch(epoch)
        return frozenset(frozenset(group) for group in groups(torch.tensor(list(sampler)), 2))

    found = {(seed, epoch): pairs(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    torch.manual_seed(1234)
    assert pairs(0, 1) == found[0, 1]
    assert len(set(found.values())) > 2  # other groups, not the same in another order


class Recorder(LightningModule):
    """Knows the ring from its setup on, and notes which images each epoch trained on, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: dict[int, list[int]] = {}

    def setup(self, stage: str) -> None:
        self.trainer.datamodule.group_by(100 + ring(14, 13))  # type: ignore[attr-defined]

    def training_step(self, batch, _):
        self.epochs.setdefault(self.current_epoch, []).extend(batch.image_ids)
        return self.weight * batch.images.mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_resumed_run_sees_the_groups_that_an_uninterrupted_one_would(coco, tmp_path: Path) -> None:
    """From the checkpoint that is written at the end of an epoch, as the configs do it."""

    def fit(model: Recorder, epochs: int, **arguments) -> None:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        trainer = Trainer(max_epochs=epochs, callbacks=[saving], default_root_dir=tmp_path, **quiet)
        trainer.fit(model, coco(neighbours=False), **arguments)

    fit(Recorder(), 1)
    resumed = Recorder()
    fit(resumed, 3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert resumed.epochs == {epoch: flat(batches(coco(), epoch)) for epoch in (1, 2)}


def test_neighbours_needed_are_sixteen_for_each_other_place_or_all(coco) -> None:
    assert coco(group_size=1).neighbours_needed == 0
    assert coco(group_size=2).neighbours_needed == 13  # of 14 images


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_that_groups_do_not_fill_are_refused(coco, processes: int) -> None:
    data = coco(batch_size=3, group_size=4)
    data.trainer = SimpleNamespace(world_size=processes, global_rank=0, training=False)
    with pytest.raises(UserError, match=rf"batches of 3 images in each of {processes} process\(es\) do not divide"):
        data.train_dataloader()


def test_stage_without_a_clip_is_one_line(coco) -> None:
    with pytest.raises(UserError, match="this stage has no CLIP to find look-alikes with") as caught:
        coco(neighbours=False).train_dataloader()
    assert "\n" not in str(caught.value)


def test_groups_of_nothing_are_refused(coco) -> None:
    with pytest.raises(UserError, match=r"--data.group_size is 0"):
        coco(neighbours=False, group_size=0)


@pytest.mark.parametrize(
    ("neighbours", "complaint"),
    [
        (100 + ring(14, 13)[1:], r"\(13, 13\) for 14 training images"),
        (100 + ring(14, 12), "need 13 each"),
        (101 + ring(14, 13), "image id 114 is a neighbour, but no training image"),
        (99 + ring(14, 13), "image id 99 is a neighbour, but no training image"),
    ],
)
def test_neighbours_that_do_not_fit_the_training_images_are_refused(coco, neighbours: Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        coco(neighbours=False).group_by(neighbours)


def test_the_benchmark_takes_groups_too(tmp_path: Path) -> None:
    data = Scenes(str(tmp_path), train=16, val=2, test=2, image_size=16, batch_size=8, group_size=4)
    data.prepare_data()
    data.setup("fit")
    assert data.neighbours_needed == 15
    others = [[j for j in range(16) if j != i] for i in range(16)]
    data.group_by(torch.tensor([sorted(row, key=lambda j, i=i: j // 4 != i // 4) for i, row in enumerate(others)]))
    for batch in data.train_dataloader():
        assert [len({image // 4 for image in batch.image_ids[start : start + 4]}) for start in (0, 4)] == [1, 1]
