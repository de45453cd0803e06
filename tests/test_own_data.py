"""docs/own-data.md does what it says: its files are read, and its commands run in miniature."""

import contextlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from test_cli import fails
from test_readme import fenced

from distcap.cli import main
from distcap.data import ImageFolder

DOCUMENT = (Path(__file__).parents[1] / "docs" / "own-data.md").read_text()
FOLDER = (*("--data=ImageFolder", "--data.folder=photos"), *("--data.batch_size=8", "--data.num_workers=0"))


def block(text: str, part: str) -> list[str]:
    """The commands of a part in their order, those of a list's item included."""
    return [
        line.strip() for line in text.split(f"## {part}\n")[1].split("\n## ")[0].splitlines() if "distcap " in line[:10]
    ]


def miniature(command: str) -> list[str]:
    """The command with tiny networks in the place of downloads, small images, and two steps."""
    args = shlex.split(command.replace("nlpconnect/vit-gpt2-image-captioning", "runs/demo/mle"))[1:]
    if args[0] == "report":
        return args
    args += ["--data.image_size=64", "--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    if args[0] == "predict":
        return args
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": ".", "version": ""}}
    args += ["--data.batch_size=4", "--trainer.max_steps=2", "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"]
    args.append(f"--trainer.logger={json.dumps(logger)}")
    args.append(
        "--model.captioner.init_from=runs/demo/mle" if "mle.yaml" in args else "--model.clip.model=runs/demo/clip"
    )
    watch = [{"class_path": "distcap.callbacks.HackingWatch"}] if "rl.yaml" in args else []
    if "discriminator.yaml" not in args:
        args.append(f"--trainer.callbacks={json.dumps([*watch, tiny.EVALUATION])}")
    return args


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, workshop: Path) -> Any:
    """Makes a folder with photos/, forty scenes in two folders, and with the workshop's CLIPs and captioner."""

    def make(name: str, captions: bool) -> Path:
        folder = tmp_path_factory.mktemp(name)
        (folder / "runs" / "demo").mkdir(parents=True)
        for run in ("clip", "judge", "mle"):
            (folder / "runs" / "demo" / run).symlink_to(workshop / "runs" / "demo" / run)
        rows = []
        for image in json.loads((workshop / "data" / "annotators.json").read_text())["images"]:
            file = f"{image['cocoid'] % 2}/{image['filename']}"
            (folder / "photos" / file).parent.mkdir(parents=True, exist_ok=True)
            picture = workshop / "data" / "images" / image["filepath"] / image["filename"]
            (folder / "photos" / file).write_bytes(picture.read_bytes())
            rows.append(
                {"file_name": file, "captions": [s["raw"] for s in image["sentences"]], "split": image["split"]}
            )
        if captions:
            (folder / "photos" / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        # A path comes before a shipped config: this is the document's COCO.
        (folder / "data").mkdir()
        (folder / "data" / "coco.yaml").write_text((workshop / "scenes.yaml").read_text())
        return folder

    return make


@pytest.fixture(scope="module")
def captioned(desk: Any) -> Path:
    """All commands of the part with captions, and of the last."""
    folder = desk("captioned", captions=True)
    for command in [*block(DOCUMENT, "With captions"), *block(DOCUMENT, "Captions")]:
        tiny.run(folder, *miniature(command))
    return folder


@pytest.fixture(scope="module")
def captionless(desk: Any) -> Path:
    """All commands of the part without captions, and of the last."""
    folder = desk("captionless", captions=False)
    for command in [*block(DOCUMENT, "Without captions"), *block(DOCUMENT, "Captions")]:
        tiny.run(folder, *miniature(command))
    return folder


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_the_blocks_hold_all_commands_of_the_document() -> None:
    parts = [block(DOCUMENT, part) for part in ("With captions", "Without captions", "Captions")]
    assert [len(part) for part in parts] == [3, 3, 1]
    found = {line.strip() for line in DOCUMENT.splitlines() if line.strip().startswith("distcap ")}
    assert {command for part in parts for command in part} == found


@pytest.mark.parametrize(("language", "name"), [("json", "captions.jsonl"), ("csv", "captions.csv")])
def test_the_documents_captions_files_say_the_same(tmp_path: Path, language: str, name: str) -> None:
    for file in ("porch.jpg", "2023/harbour.jpg", "2023/harbour-at-night.jpg"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 4)).save(tmp_path / file)
    [text] = fenced(DOCUMENT, language)
    (tmp_path / name).write_text(text)
    data = ImageFolder(str(tmp_path))
    assert list(data.references("train").values()) == [
        ["a dog on a porch", "an old dog asleep in the sun"],
        ["three fishing boats, one of them red"],
    ]
    assert list(data.references("test").values()) == [["a harbour at night"]]


def test_with_captions_every_stage_leaves_what_the_next_one_needs(captioned: Path) -> None:
    runs = captioned / "runs" / "mine"
    for left in ("mle/captioner", "rl/captioner", "rl/health.json", "report.html"):
        assert (runs / left).exists(), left
    for run in ("mle", "rl"):
        assert {"t2i_recall@1", "judge_t2i_recall@1", "cider", "bleu@4"} <= read(runs / run / "metrics.json")[
            "test"
        ].keys()
    assert len(read(runs / "rl" / "captions_test.json")) == 8


def test_without_captions_rl_measures_what_needs_none(captionless: Path) -> None:
    runs = captionless / "runs" / "mine"
    for run in ("rl", "kl"):
        assert (runs / run / "captioner").is_dir()
        assert read(runs / run / "health.json") == []
        for metrics in read(runs / run / "metrics.json").values():
            assert {"t2i_recall@1", "judge_t2i_recall@1", "length", "repetition", "vocabulary"} <= metrics.keys()
            assert not {"cider", "bleu@1", "rouge_l"} & metrics.keys()
    columns = (runs / "rl" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"loss/discriminator", "discriminator/accuracy", "loss/kl", "reward/sampled/contrastive"} <= set(columns)
    assert not [column for column in columns if "human" in column or "cider" in column or "ground_truth" in column]


def test_without_captions_the_discriminator_starts_where_its_stage_left_it_and_goes_on(captionless: Path) -> None:
    from safetensors.torch import load_file

    runs = captionless / "runs" / "mine"
    before = load_file(runs / "discriminator" / "discriminator" / "model.safetensors")
    after = torch.load(runs / "rl" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    moved = [
        float((after[f"rewards.discriminator.discriminator.{name}"] - was).abs().max()) for name, was in before.items()
    ]
    assert all(0 < distance < 2e-4 for distance in moved)  # two steps of AdamW at 7e-5


@pytest.mark.parametrize("folder", ["captioned", "captionless"])
def test_every_image_is_captioned_in_the_order_of_its_path(folder: str, request: pytest.FixtureRequest) -> None:
    desk = request.getfixturevalue(folder)
    rows = read(desk / "runs" / "mine" / "captions" / "predictions.json")
    assert [row["file"] for row in rows] == sorted(str(file.relative_to(desk)) for file in desk.glob("photos/*/*.png"))
    assert len(rows) == 40


def test_images_are_embedded_once_for_all_runs_in_the_folder(captionless: Path) -> None:
    stores = list((captionless / "photos" / ".distcap").glob("*-images/index.jsonl"))
    assert len(stores) == 2  # the reward CLIP's and the judge's
    for store in stores:
        keys = [key for line in store.read_text().splitlines() for key in json.loads(line)["versions"]]
        assert len(keys) == len(set(keys))


def test_batches_of_look_alikes_are_made_of_a_folder(captionless: Path) -> None:
    [*_, command] = block(DOCUMENT, "Without captions")
    args = ["--run=mine/groups", "--data.group_size=2", "--test_after_fit=false"]
    cli = tiny.run(captionless, *miniature(command), *args)
    assert cli.trainer.global_step == 2


def test_a_broken_image_is_left_out_of_training_on_request(desk: Any) -> None:
    folder = desk("broken", captions=False)
    bad = next(file for file in sorted(folder.glob("photos/*/*.png")))
    bad.write_bytes(bad.read_bytes()[:100])
    data = ImageFolder(str(folder / "photos"), on_error="skip")
    split = next(one for one in ("train", "val", "test") if bad.name in str(data._of(one)))
    [*_, command] = block(DOCUMENT, "Without captions")
    args = ["--data.on_error=skip", "--trainer.max_steps=6", "--test_after_fit=false"]
    with pytest.warns(UserWarning, match=f"images of {split} cannot be read, the first: .*{bad.name}"):
        cli = tiny.run(folder, *miniature(command), *args)
    assert cli.trainer.global_step == 6


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("mle", "teacher forcing learns from human captions, and photos has no human captions of its train images"),
        ("clip", "a CLIP learns from pairs of images and texts, and photos has no human captions"),
        ("grammar", "a discriminator learns what human captions are, and photos has no human captions"),
        ("rl", "reward contrastive (set its ground_truth to false)"),
    ],
)
def test_a_stage_that_needs_captions_says_so_in_one_line(
    captionless: Path, config: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["fit", "--config", f"demo/{config}.yaml", "--run=demo/refused", *FOLDER, "--data.image_size=64"]
    args += ["--trainer.callbacks=[]", "--trainer.enable_progress_bar=false"]
    if config == "rl":
        rewards = {"contrastive": {"class_path": "distcap.rewards.Contrastive"}}
        args.append(f"--model.rewards={json.dumps(rewards)}")
    capsys.readouterr()
    with contextlib.chdir(captionless), pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert said in last
    assert "write them to captions.jsonl" in last


def test_a_wrong_corpus_is_told_before_anything_is_loaded(
    captionless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--data=ImageFolder", "--data.folder=photos", "--model.corpus=ImageFolder", "--model.corpus.folder=nowhere")
    assert "there is no folder nowhere" in fails(capsys, captionless, "fit", "--config", "discriminator.yaml", *args)
