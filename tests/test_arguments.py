"""What an argument cannot be is one line that names it, before the first step."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from distcap import lightning_cli
from distcap.baselines import LeaveOneOut, Zero
from distcap.data import CocoCaptions, ImageFolder, Scenes, Shards
from distcap.models import Sampler
from distcap.objectives import PolicyGradient, Preference
from distcap.rewards import Cider, Contrastive
from distcap.stages import MLE, RL
from distcap.types import UserError

NAN = float("nan")


def rl(**kwargs: Any) -> RL:
    parts: dict[str, Any] = {"rewards": {"cider": Cider()}, "objective": {"policy_gradient": PolicyGradient()}}
    return RL(tiny.make_captioner(), **{**parts, "baseline": Zero(), **kwargs})


def mle(**kwargs: Any) -> MLE:
    return MLE(tiny.make_captioner(), **kwargs)


def coco(**kwargs: Any) -> CocoCaptions:
    return CocoCaptions("k.json", "images", **kwargs)


def folder(**kwargs: Any) -> ImageFolder:
    return ImageFolder("images", **kwargs)


def shards(**kwargs: Any) -> Shards:
    return Shards("a.tar", coco(), **kwargs)


MAKERS: dict[Callable[..., Any], dict[str, list[Any]]] = {
    mle: {
        "learning_rate": [-1, NAN],
        "weight_decay": [-1, NAN],
        "warmup_steps": [-1],
        "clip_gradient": [-1, NAN],
        "captions_per_image": [-1],
        "drop_image": [-1, 1.5, NAN],
    },
    rl: {
        "learning_rate": [-1],
        "ground_truth_per_image": [0, -1],
        "health_every": [-1],
        "updates_per_rollout": [0],
    },
    coco: {
        "batch_size": [0, -1],
        "eval_batch_size": [0, -1],
        "num_workers": [-1],
        "image_size": [0, -1],
        "limit": [0, -1],
        "seed": [-1],
        "group_size": [0, -1],
    },
    folder: {"batch_size": [0], "num_workers": [-1], "limit": [-1], "val": [-0.1, NAN], "test": [1.5, NAN]},
    Scenes: {"batch_size": [0], "train": [-1], "lookalikes": [-1, 2, NAN], "seed": [-1]},
    shards: {"batch_size": [0, -1], "num_workers": [-1], "image_size": [0], "buffer": [0, -1], "seed": [-1]},
}
CASES = [(make, name, value) for make, names in MAKERS.items() for name, values in names.items() for value in values]


@pytest.mark.parametrize(("make", "name", "value"), CASES, ids=lambda one: getattr(one, "__name__", str(one)))
def test_a_number_out_of_range_is_refused_by_its_name(make: Callable[..., Any], name: str, value: Any) -> None:
    prefix = "model" if make in (mle, rl) else "data"
    with pytest.raises(UserError, match=rf"^--{prefix}\.{name} is {value}; it takes "):
        make(**{name: value})


@pytest.mark.parametrize("make", [mle, rl])
def test_a_decoder_that_draws_several_captions_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"--model\.decoder draws 2 captions of each image, and one is evaluated"):
        make(decoder=Sampler(samples=2))


@pytest.mark.parametrize("what", ["rewards", "objective"])
def test_nothing_to_learn_from_is_refused(what: str) -> None:
    with pytest.raises(UserError, match=rf"model\.{what} is empty"):
        rl(**{what: {}})


@pytest.mark.parametrize("part", [{"baseline": LeaveOneOut()}, {"objective": {"dico": Preference()}}], ids=str)
def test_what_compares_samples_needs_several(part: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"compares an image's samples, 2 or more, and model\.sampler\.samples is 1"):
        rl(sampler=Sampler(samples=1), **part)
    rl(sampler=Sampler(samples=2), **part)


@pytest.mark.parametrize("name", ["tau", "clamp"])
@pytest.mark.parametrize("value", [0, -1, NAN])
def test_a_contrastive_reward_has_positive_numbers(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{name} of a contrastive reward is {value}; it takes"):
        Contrastive(**{name: value})


@pytest.mark.parametrize(
    ("reward", "batch", "fits"),
    [
        (Contrastive(), (1, 2, 1), False),
        (Contrastive(), (2, 1, 1), True),
        (Contrastive(neighbours=(4, 5)), (1, 1, 1), True),
        (Contrastive(direction="image_to_text"), (1, 1, 1), True),
        (Contrastive(direction="image_to_text", ground_truth=False), (1, 1, 1), False),
        (Contrastive(direction="image_to_text", ground_truth=False), (1, 2, 1), True),
        (Contrastive(direction="image_to_text", ground_truth=False, greedy=True), (1, 1, 1), True),
        (Contrastive(direction="text_to_image"), (1, 9, 9), False),
    ],
)
def test_a_contrastive_reward_needs_a_rival_in_the_step(
    reward: Contrastive, batch: tuple[int, int, int], fits: bool
) -> None:
    if fits:
        reward.check_batch(*batch)
    else:
        with pytest.raises(UserError, match="there is one in a step"):
            reward.check_batch(*batch)


def test_the_images_of_all_processes_are_rivals() -> None:
    """Two processes with one image each are enough; setup() asks for nothing after that here."""
    stage = rl(rewards={"contrastive": Contrastive()})
    for processes, message in ((1, "there is one in a step"), (2, "set it to 1")):
        data = SimpleNamespace(batch_size=1, references=lambda split: 1 / 0, entries=lambda split: [])
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        stage._trainer = SimpleNamespace(  # type: ignore[assignment]
            datamodule=data,
            world_size=processes,
            accumulate_grad_batches=1,
            strategy=strategy,
            gradient_clip_val=None,
            gradient_clip_algorithm=None,
            precision="32-true",
        )
        stage.captioner.prepare = lambda captions: None  # type: ignore[method-assign]
        error: type[Exception] = UserError if processes == 1 else ZeroDivisionError
        with pytest.raises(error, match=message if processes == 1 else "division"):
            stage.setup("fit")


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that the command line ends with."""
    capsys.readouterr()
    config = ["--config", "demo/mle.yaml", "--data=scenes.yaml", "--run=demo/refused", "--trainer.callbacks=[]"]
    with pytest.raises(SystemExit) as stop:
        tiny.run(folder, "fit", *config, "--trainer.max_steps=1", "--test_after_fit=false", *args)
    assert stop.value.code == 2
    assert not list((folder / "runs" / "demo" / "refused").glob("checkpoints/*"))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("distcap: ")
    return line


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--trainer.accelerator=cuda"], "CUDA"),
        (["--trainer.accelerator=gpu"], "gpu"),
        (["--trainer.enable_checkpointing=false"], "enable_checkpointing"),
        (["--trainer.max_steps=-1"], "the schedule cosine falls until the last step, and there is none"),
        (["--trainer.max_steps=-1", "--model.schedule=constant"], "the training has no end"),
        (["--trainer.max_steps=-1", "--trainer.max_time=00:00:00:01"], "the schedule cosine falls until the last"),
        (["--trainer.devices=0"], "devices"),
        (["--trainer.strategy=nonsense"], "strategy"),
        (["--trainer.devices=-1"], "devices"),
        (["--trainer.num_nodes=0"], "num_nodes"),
        (["--trainer.accumulate_grad_batches=0"], "--trainer.accumulate_grad_batches is 0; it takes 1 or more"),
        (["--trainer.check_val_every_n_epoch=0"], "--trainer.check_val_every_n_epoch is 0; it takes 1 or more"),
        (["--trainer.val_check_interval=0"], "--trainer.val_check_interval is 0; it takes more than 0"),
        (["--trainer.val_check_interval=1000"], "--trainer.val_check_interval: "),
        (["--trainer.limit_train_batches=0"], "--trainer.limit_train_batches is 0; it takes more than 0"),
        (["--seed_everything=-1"], "--seed_everything: -1 is not in bounds"),
    ],
    ids=str,
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_trainer_that_cannot_be_is_one_line(
    args: list[str], said: str, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(workshop, capsys, *args)


def test_a_constant_schedule_needs_no_end_but_a_time(workshop: Path) -> None:
    args = ["--config", "demo/mle.yaml", "--data=scenes.yaml", "--run=demo/timed", "--trainer.callbacks=[]"]
    args += ["--trainer.max_steps=-1", "--trainer.max_time=00:00:00:01", "--model.schedule=constant"]
    cli = tiny.run(workshop, "fit", *args, "--test_after_fit=false")
    assert cli.trainer.global_step >= 1
    assert (workshop / "runs" / "demo" / "timed" / "captioner").is_dir()


@pytest.fixture
def fresh_wandb() -> Iterator[None]:
    """W&B keeps what it has read of the environment; those who come later have another one."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


def test_a_lack_of_an_account_is_said_before_anything_is_read(
    workshop: Path,
    capsys: pytest.CaptureFixture[str],
    fresh_wandb: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "distcap"}}
    line = refused(workshop, capsys, f"--trainer.logger={json.dumps(logger)}", "--data.root=nowhere")
    assert "WANDB_MODE=offline" in line
    assert "--config logger/csv.yaml" in line
    assert not (workshop / "nowhere").exists()


def test_what_weights_and_biases_says_is_one_line() -> None:
    from wandb.errors import CommError

    line = lightning_cli.of_the_user(CommError("Run initialization has timed out\nafter 90.0 sec."))
    assert line is not None
    assert line.startswith("Weights & Biases: Run initialization has timed out after 90.0 sec.; set WANDB_MODE=offline")


def test_a_bug_stays_a_bug() -> None:
    assert lightning_cli.of_the_user(ValueError("no")) is None
    assert lightning_cli.of_the_user(RuntimeError("no")) is None


def test_a_folder_that_cannot_be_written_to_is_known_before_training(
    workshop: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A file is in the place of the folder, because permissions do not bind every user."""
    (tmp_path / "cache").write_text("")
    files = {"annotations": str(workshop / "data" / "annotators.json"), "images": str(workshop / "data" / "images")}
    data = {"image_size": 64, "batch_size": 8, "num_workers": 0, "cache_dir": str(tmp_path / "cache"), **files}
    source = json.dumps({"class_path": "distcap.data.CocoCaptions", "init_args": data})
    callbacks = f"--trainer.callbacks={json.dumps([tiny.EVALUATION])}"
    line = refused(workshop, capsys, f"--data={source}", callbacks)
    assert "cannot be written" in line
    assert "--data.cache_dir" in line
