"""One global batch: pool, group baselines and normalisation are those of all processes together.

Two gloo processes with half the batch each are compared with one process that has the whole, for every experiment that
trains, by the RL stage's own setup, step and gather. They are spawned once, for all experiments.
"""

import json
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, multiprocessing
from words import WIDTH, Data, Policy, Stage, make_batch, make_trainer

from distcap.experience import Experience, alone
from distcap.models import Discriminator, Neighbours
from distcap.rewards import Contrastive
from distcap.shipped import configs_folder
from distcap.stages import MLE, RL
from distcap.types import Batch
from distcap.view import Source

HALF = 4
"""Images of each process; those of the whole batch are 0 to 7."""
SOURCES: tuple[Source, ...] = ("sampled", "greedy", "ground_truth")
EXPERIMENTS = {
    file.stem: config["model"]["init_args"]
    for file in sorted((configs_folder() / "experiments").glob("*.yaml"))
    if (config := yaml.safe_load(file.read_text())).get("model", {}).get("class_path") == "distcap.stages.RL"
}
CASES = [
    (name, normalise)
    for name, init_args in EXPERIMENTS.items()
    for normalise in dict.fromkeys([init_args["normalise"], "none", "batch", "group"])
    if normalise != "group" or init_args["sampler"]["samples"] > 1
]
Case = tuple[str, str]
Measures = dict[str, Tensor]


@cache
def parser() -> ArgumentParser:
    """Of what an experiment says of the stage."""
    parser = ArgumentParser()
    parser.add_class_arguments(RL, skip={"captioner", "clip", "clips"}, instantiate=False)
    return parser


def build(case: Case, folder: Path, kind: type[Stage] = Stage) -> Stage:
    """The stage of an experiment's YAML; only captioner and CLIPs are others, and its neighbours' folder."""
    name, normalise = case
    text = json.dumps({key: value for key, value in EXPERIMENTS[name].items() if key != "clip"})
    found = parser().instantiate(parser().parse_object(json.loads(text.replace('"@', f'"{folder}/'))))
    return kind(**{**found.as_dict(), "normalise": normalise})


def measure(case: Case, folder: Path, rank: int, world_size: int, kind: type[Stage] = Stage) -> Measures:
    """What one process finds in a training step, each row being an image's, and its loss."""
    stage = build(case, folder, kind)
    strategy = SimpleNamespace(
        root_device=torch.device("cpu"), all_gather=DDPStrategy().all_gather, broadcast=DDPStrategy().broadcast
    )
    stage._trainer = make_trainer(Data(), world_size=world_size, global_rank=rank, strategy=strategy)
    stage.setup("fit")
    images = 2 * HALF // world_size
    loss = stage.training_step(make_batch(range(rank * images, (rank + 1) * images)), 1).detach()
    experience = stage._experience
    found = {"advantages": experience.sampled_reward - stage.baseline(experience)}
    for source in SOURCES:
        rollout = getattr(experience, source)
        rewards = {**experience.rewards_of(rollout), "total": experience.total(rollout)}
        found |= {f"{source} {name}": reward for name, reward in rewards.items()}
    losses = {key: value.detach() for key, value in stage.logged.items() if key.startswith("loss/")}
    return found | losses | {"loss": loss}


def joined(parts: Sequence[Measures]) -> Measures:
    """Rewards of all processes in a row; losses averaged, as their gradients are."""
    columns = {key: [part[key] for part in parts] for key in parts[0]}
    return {key: torch.stack(values).mean() if "loss" in key else torch.cat(values) for key, values in columns.items()}


class TeacherForced(MLE):
    """Of a policy of a dozen words, on all captions of each image."""

    def __init__(self) -> None:
        super().__init__(Policy())  # type: ignore[arg-type]
        self.double()
        self.logged: list[float] = []

    def log(self, name: str, value: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.logged.append(float(value.detach()))


def teacher_forced(parts: Sequence[Sequence[int]], rank: int, world_size: int) -> Measures:
    """The gradient and the logged losses of a batch in parts, each of which is a list of images."""
    stage = TeacherForced()
    strategy = SimpleNamespace(root_device=torch.device("cpu"), all_gather=DDPStrategy().all_gather)
    stage._trainer = make_trainer(
        Data(), accumulate_grad_batches=len(parts), world_size=world_size, global_rank=rank, strategy=strategy
    )
    for part in parts:
        (stage.training_step(make_batch(part), 0) / len(parts)).backward()
    if world_size > 1:
        for parameter in stage.parameters():
            distributed.all_reduce(parameter.grad)
            parameter.grad.div_(world_size)
    stage.on_before_optimizer_step(None)
    found = {name: parameter.grad for name, parameter in stage.named_parameters()}
    return {**found, "logged": torch.tensor(stage.logged, dtype=torch.double)}


UNEVEN = [[0, 1, 2], [3], [4, 5]]
"""Images of each part; their captions have one to six words."""


def meet(rank: int, folder: Path) -> dict[Case, Measures]:
    """Be one of the two processes."""
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(minutes=5))
    try:
        found = {case: measure(case, folder, rank, 2) for case in CASES}
        mean = TeacherForced()
        mean._trainer = make_trainer(Data(), world_size=2, global_rank=rank)
        logged = mean._means({"both": torch.tensor(2.0 * rank), **({"one": 5.0} if rank else {})})
        found["logged", "means"] = {name: torch.tensor(value) for name, value in logged.items()}
        # Each process has every second part.
        found["mle", "whole"] = teacher_forced([[0, 1, 2], [3, 4, 5]][rank : rank + 1], rank, 2)
        found["mle", "parts"] = teacher_forced([[[0, 1, 2], [4]], [[3], [5]]][rank], rank, 2)
        return found
    finally:
        distributed.destroy_process_group()


def work(spawned: int, folder: Path) -> None:
    """Be the other one."""
    torch.set_num_threads(1)
    torch.save(meet(1 + spawned, folder), folder / "found.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the runs that experiments begin from."""
    folder = tmp_path_factory.mktemp("processes")
    torch.manual_seed(0)
    Discriminator(WIDTH, hidden=(8,)).save(folder / "discriminator" / "discriminator")
    Discriminator(WIDTH, hidden=(8,), images=False).save(folder / "grammar" / "discriminator")
    return folder


def test_two_processes_find_what_one_with_the_whole_batch_does(folder: Path) -> None:
    """For every experiment, by every normalisation; this process is the first.

    One test, for pytest-xdist would give its cases to several workers, and each would spawn.
    """
    other = multiprocessing.spawn(work, (folder,), nprocs=1, join=False)
    first = meet(0, folder)
    while not other.join():
        pass
    second = torch.load(folder / "found.pt", weights_only=True)
    for case in CASES:
        found, expected = joined([first[case], second[case]]), measure(case, folder, 0, 1)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            where = f"{case}, {key}"
            assert value.isfinite().all(), where
            torch.testing.assert_close(
                found[key], value, rtol=1e-6, atol=1e-6, msg=lambda text, where=where: f"{where}: {text}"
            )

    whole = teacher_forced([range(6)], 0, 1)
    for name in ("whole", "parts"):
        for half in (first, second):
            for key in whole.keys() - {"logged"}:
                torch.testing.assert_close(
                    half["mle", name][key], whole[key], msg=lambda text, name=name: f"{name} {text}"
                )
    for half in (first, second):
        assert half["logged", "means"] == {"both": torch.tensor(1.0), "one": torch.tensor(5.0)}
    assert first["mle", "whole"]["logged"].tolist() == pytest.approx(whole["logged"].tolist())


def test_teacher_forcing_on_a_batch_in_uneven_parts_has_the_gradient_of_the_whole() -> None:
    """A mean of the parts' means would weigh the tokens of short captions more: it is off by several per cent."""
    whole, parts = teacher_forced([range(6)], 0, 1), teacher_forced(UNEVEN, 0, 1)
    means = TeacherForced()
    means._trainer = make_trainer(Data())
    for part in UNEVEN:
        (means.training_step(make_batch(part), 0) / len(UNEVEN)).backward()
    for key, naive in means.named_parameters():
        torch.testing.assert_close(parts[key], whole[key])
        assert (naive.grad - whole[key]).norm() > 0.01 * whole[key].norm()


def test_a_last_batch_of_fewer_parts_is_not_smaller() -> None:
    """Lightning divides by the number of parts that a batch usually has."""
    stage = TeacherForced()
    stage._trainer = make_trainer(Data(), accumulate_grad_batches=4)
    for part in UNEVEN:
        (stage.training_step(make_batch(part), 0) / 4).backward()
    stage.on_before_optimizer_step(None)
    whole = teacher_forced([range(6)], 0, 1)
    for key, parameter in stage.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[key])


class Alone(Stage):
    """Forgets the other process."""

    def experience(self, batch: Batch) -> Experience:
        experience = super().experience(batch)
        experience.gather = alone
        return experience


def pools(name: str) -> list[str]:
    """The contrastive rewards of an experiment."""
    rewards = EXPERIMENTS[name]["rewards"].items()
    return [key for key, value in rewards if value["class_path"] == "distcap.rewards.Contrastive"]


@pytest.mark.parametrize("name", filter(pools, EXPERIMENTS))
def test_processes_that_do_not_gather_find_other_contrastive_rewards(name: str, folder: Path) -> None:
    case = (name, "none")
    found = joined([measure(case, folder, rank, 2, Alone) for rank in range(2)])
    expected = measure(case, folder, 0, 1)
    for key in pools(name):
        assert ((found[f"sampled {key}"] - expected[f"sampled {key}"]).abs() > 1e-4).any()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_processes_that_do_not_gather_normalise_otherwise(name: str, folder: Path) -> None:
    case = (name, "batch")
    found = joined([measure(case, folder, rank, 2, Alone) for rank in range(2)])
    assert not torch.allclose(found["sampled total"], measure(case, folder, 0, 1)["sampled total"], atol=1e-3)


def test_neighbours_of_both_halves_are_in_question(folder: Path) -> None:
    """What the comparison above is worth: some are shared by the halves, some are in the other half's batch."""
    stage = build(("paper", "none"), folder)
    (span,) = (reward.span for reward in stage.rewards.values() if isinstance(reward, Contrastive))
    stage._trainer = make_trainer(Data())
    stage.setup("fit")
    neighbours: Neighbours = stage._sights[None].mined
    first, second = (set(neighbours.of(range(half, half + HALF), *span).flatten().tolist()) for half in (0, HALF))
    assert (first & second) - set(range(2 * HALF))
    assert first & set(range(HALF, 2 * HALF)) or second & set(range(HALF))
