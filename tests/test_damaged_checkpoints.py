"""A checkpoint that cannot be gone on from is one line before anything begins, and nothing in it is executed."""

import contextlib
import io
import os
import pickle
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_run_folder import RL, fit, interrupted, refused, step_of

from distcap.checkpoints import WholeCheckpoints, read_checkpoint
from distcap.types import UserError


@pytest.fixture(scope="module")
def run(workshop: Path) -> Path:
    """A training that was interrupted."""
    return interrupted(workshop, "to-damage", 4)


@pytest.fixture
def last(run: Path, tmp_path: Path) -> Iterator[Path]:
    """Its last checkpoint, which is put right again."""
    file = run / "checkpoints" / "last.ckpt"
    shutil.copy(file, tmp_path / "whole.ckpt")
    yield file
    shutil.copy(tmp_path / "whole.ckpt", file)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def flip(file: Path) -> None:
    """A bit within a tensor, which torch reads without a word."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


def with_code(file: Path) -> None:
    torch.save({**torch.load(file, weights_only=True), "extra": Evil()}, file)


def plain_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(Evil()))


def legacy(file: Path) -> None:
    torch.save({"extra": Evil()}, file, _use_new_zipfile_serialization=False)


DAMAGES: dict[str, Any] = {
    "cut": cut,
    "empty": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "text": lambda file: file.write_text("what is this"),
    "flipped": flip,
    "code": with_code,
    "pickle": plain_pickle,
    "legacy": legacy,
    "tensor": lambda file: torch.save(torch.zeros(3), file),
    "state dict": lambda file: torch.save({"weight": torch.zeros(3)}, file),
    "inner": lambda file: torch.save(torch.load(file, weights_only=True) | {"loops": 3}, file),
    "version": lambda file: torch.save(torch.load(file, weights_only=True) | {"pytorch-lightning_version": "x"}, file),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_checkpoint_is_one_line(damage: str, last: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    DAMAGES[damage](last)
    with pytest.raises(UserError, match="name ") as error:
        read_checkpoint(last)
    assert str(error.value).startswith(str(last))
    assert "weights_only" not in str(error.value)
    assert not Path("executed").exists()


@pytest.mark.parametrize(("command", "damage"), [("fit", "code"), ("fit", "cut"), ("test", "state dict")])
def test_a_damaged_checkpoint_is_noticed_before_anything_begins(
    command: str, damage: str, workshop: Path, last: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[damage](last)
    line = refused(capsys, workshop, "to-damage", "--ckpt_path=last", command=command)
    assert "runs/demo/to-damage/checkpoints/last.ckpt" in line


def test_a_checkpoint_of_another_stage_is_refused_with_the_way_to_hand_over(
    workshop: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = (*RL, "--ckpt_path=runs/demo/to-damage/checkpoints/last.ckpt", "--trainer.max_steps=9")
    line = refused(capsys, workshop, "rl-of-mle", *args)
    assert "the checkpoint is of the stage MLE, whose steps RL cannot go on with" in line
    assert "--model.captioner.init_from runs/demo/to-damage" in line


def without_a_name(file: Path) -> None:
    checkpoint = torch.load(file, weights_only=True)
    for key in ("stage", "vocabulary"):
        del checkpoint[key]
    torch.save(checkpoint, file)


def test_the_run_of_an_older_checkpoint_says_of_what_stage_it_is(
    workshop: Path, last: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_a_name(last)
    line = refused(capsys, workshop, "rl-of-old", *RL, "--ckpt_path=runs/demo/to-damage/checkpoints/last.ckpt")
    assert "the checkpoint is of the stage MLE" in line


def test_an_older_checkpoint_is_gone_on_from(workshop: Path) -> None:
    run = interrupted(workshop, "old", 3)
    without_a_name(last := run / "checkpoints" / "last.ckpt")
    fit(workshop, "old", "--ckpt_path=last", steps=4)
    assert step_of(last) == 4


def late(workshop: Path, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The last line of a training that ends when its checkpoint is loaded."""
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        fit(workshop, "to-damage", "--ckpt_path=last", *args)
        pytest.fail("it went on")
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda state, name: state.pop(name), "it lacks captioner."),
        (lambda state, name: state.update(other=torch.zeros(1)), "it has other, which is unknown here"),
        (lambda state, name: state.update({name: state[name][..., :-1].clone()}), "it has captioner."),
        (lambda state, name: state[name].fill_(float("nan")), "it has values in captioner."),
    ],
    ids=["lacks", "unknown", "shape", "nan"],
)
def test_a_checkpoint_of_another_model_is_one_line_before_the_first_step(
    spoil: Any, said: str, workshop: Path, last: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(last, weights_only=True)
    spoil(checkpoint["state_dict"], next(iter(checkpoint["state_dict"])))
    torch.save(checkpoint, last)
    line = late(workshop, capsys)
    assert "distcap: the checkpoint is of another model" in line
    assert said in line
    assert step_of(last) == 4


def test_a_vocabulary_of_other_captions_is_one_line(
    workshop: Path, last: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many words, though: no shape would tell."""
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["vocabulary"] = "another"
    torch.save(checkpoint, last)
    assert "made its vocabulary of other captions" in late(workshop, capsys)


def test_weights_alone_are_not_gone_on_from(workshop: Path, last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["optimizer_states"]
    torch.save(checkpoint, last)
    assert "holds weights alone" in refused(capsys, workshop, "to-damage", "--ckpt_path=last")


def test_a_checkpoint_whose_optimizer_does_not_fit_is_not_overwritten(workshop: Path, last: Path) -> None:
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["optimizer_states"][0]["param_groups"].append(checkpoint["optimizer_states"][0]["param_groups"][0])
    torch.save(checkpoint, last)
    before = last.read_bytes()
    with pytest.raises(ValueError, match="parameter groups"):
        fit(workshop, "to-damage", "--ckpt_path=last")
    assert last.read_bytes() == before


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint_that_there_was(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"step": 1}, file)
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"last\.ckpt cannot be written .*--ckpt_path last"):
            WholeCheckpoints().save_checkpoint({"step": 2, "weight": torch.zeros(1_000_000)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert [left.name for left in file.parent.iterdir()] == ["last.ckpt"]


def test_a_kill_while_a_checkpoint_is_written_keeps_the_one_that_there_was(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"step": 1}, file)

    def killed(checkpoint: Any, path: Path) -> None:
        assert path.parent == file.parent  # not where temporary files are, which may be another disk
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        WholeCheckpoints().save_checkpoint({"step": 2}, file)
    assert torch.load(file, weights_only=True) == {"step": 1}


def test_the_command_line_writes_checkpoints_whole(workshop: Path, monkeypatch: Any) -> None:
    written: list[str] = []
    original = WholeCheckpoints.save_checkpoint

    def save(self: Any, checkpoint: Any, path: Any, **kwargs: Any) -> None:
        written.append(Path(path).name)
        original(self, checkpoint, path, **kwargs)

    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", save)
    fit(workshop, "written-whole", steps=1)
    assert written == ["epoch=0-step=1.ckpt", "last.ckpt"]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    held = {"state_dict": {"w": torch.ones(2)}, "loops": {}, "global_step": 1, "epoch": 0}
    WholeCheckpoints().save_checkpoint({**held, "pytorch-lightning_version": "2.6.0"}, file)
    assert read_checkpoint(file)["state_dict"]["w"].tolist() == [1, 1]
    buffer = io.BytesIO(file.read_bytes())
    assert torch.load(buffer, weights_only=True)["global_step"] == 1
