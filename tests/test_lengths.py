"""Numbers of how captions are drawn, through the command line: one line, before a step."""

import json
from pathlib import Path

import families
import pytest
import tiny

from distcap.types import UserError

CAPTIONER = {"class_path": "distcap.models.VisionEncoderDecoder", "init_args": {"init_from": "captioner"}}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner of 64 places, in captioner/, a CLIP in clip/, and photos/ with captions."""
    folder = tmp_path_factory.mktemp("desk")
    families.vision_encoder_decoder(folder / "captioner")
    tiny.write_clip(folder / "run")
    (folder / "photos").mkdir()
    rows = []
    for number, split in enumerate(("train", "train", "val", "test")):
        from PIL import Image

        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(folder / "photos" / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "captions": ["a dog"], "split": split})
    (folder / "photos" / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def refused(desk: Path, capsys: pytest.CaptureFixture[str], config: str, *args: str, command: str = "fit") -> str:
    capsys.readouterr()
    data = ["--data=data/folder.yaml", "--data.folder=photos", "--data.batch_size=2", "--data.num_workers=0"]
    quiet = ["--trainer.callbacks=[]", "--trainer.logger=false", "--trainer.accelerator=cpu", "--run=refused"]
    quiet += ["--trainer.max_steps=1", "--trainer.precision=32-true", f"--model.captioner={json.dumps(CAPTIONER)}"]
    with pytest.raises(SystemExit) as end:
        tiny.run(desk, command, f"--config={config}", *data, *quiet, *args)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("samples=0", "samples of a sampler or decoder is 0; it takes 1 or more"),
        ("temperature=0", "temperature of a sampler or decoder is 0.0; it takes more than 0"),
        ("temperature=.nan", "temperature of a sampler or decoder is nan; it takes a finite number"),
        ("top_p=2", "top_p of a sampler or decoder is 2.0; it takes a number from 0 (not included) to 1"),
        ("max_tokens=0", "max_tokens of a sampler or decoder is 0; it takes 1 or more"),
    ],
)
def test_a_sampler_out_of_range_is_one_line_of_its_own(
    argument: str, said: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not all that jsonargparse has to say of a union of types."""
    assert refused(desk, capsys, "rl.yaml", f"--model.sampler.{argument}") == f"distcap: {said}"


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_decoder_of_more_tokens_than_there_are_places_is_one_line(
    command: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(desk, capsys, "mle.yaml", "--model.decoder.max_tokens=200", command=command)
    expected = "--model.decoder.max_tokens is 200, but this captioner has positions for captions of 64 tokens; lower it"
    assert line == f"distcap: {expected}"


def test_a_sampler_of_more_tokens_than_there_are_places_is_one_line(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = {"class_path": "distcap.models.FrozenClip", "init_args": {"model": "run"}}
    args = [f"--model.clip={json.dumps(clip)}", "--model.sampler.max_tokens=65"]
    assert "--model.sampler.max_tokens is 65" in refused(desk, capsys, "rl.yaml", *args)
    assert "--model.sampler.max_tokens is 65" in refused(desk, capsys, "discriminator.yaml", *args)


def test_ground_truth_of_more_tokens_than_there_are_places_is_one_line(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(desk, capsys, "mle.yaml", "--model.captioner.max_tokens=65")
    assert "--model.captioner.max_tokens is 65, but this captioner has positions for captions of 64 tokens" in line


@pytest.mark.parametrize("tokens", [0, -5])
def test_ground_truth_of_no_tokens_is_one_line(tokens: int, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(desk, capsys, "mle.yaml", f"--model.captioner.max_tokens={tokens}")
    assert line == f"distcap: --model.captioner.max_tokens is {tokens}; it takes 1 or more"


def test_an_untrained_captioner_of_few_places_is_one_line() -> None:
    captioner = tiny.VisionEncoderDecoder(None, tiny.ENCODER, {**tiny.DECODER, "n_positions": 8})
    captioner.prepare(tiny.CAPTIONS)
    assert captioner.longest == 8
    with pytest.raises(UserError, match="x is 9, but this captioner has positions for captions of 8 tokens"):
        captioner.allow("x", 9)
