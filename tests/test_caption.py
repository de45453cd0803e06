"""`distcap caption` with a tiny run: what is written, what is told, and what becomes of an interruption."""

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

from distcap.cli import main
from distcap.functional import ranks
from distcap.models import FrozenClip, VisionEncoderDecoder

CLIP = {"class_path": "distcap.models.FrozenClip", "init_args": {"model": "runs/demo/clip"}}
NAMES = ("a.png", "b.png", "c.png", "sub/a.png", "sub/d.png")

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/demo/rl and the CLIP that rewarded it; both untrained."""
    folder = tmp_path_factory.mktemp("runs")
    tiny.write_run(folder / "demo" / "rl", clip=CLIP)
    tiny.write_clip(folder / "demo" / "clip")
    return folder


@pytest.fixture
def here(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with five images of noise in photos/."""
    (tmp_path / "runs").symlink_to(runs)
    generator = torch.Generator().manual_seed(0)
    for name in NAMES:
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (4, 4, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).resize((40, 30), Image.Resampling.NEAREST).save(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def caption(*args: str) -> Rows:
    """The rows that a command writes to captions.jsonl."""
    main(["caption", *(args or ("photos",)), "--run", "runs/demo/rl", "--num_workers=0"])
    return [json.loads(line) for line in Path("captions.jsonl").read_text().splitlines()]


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        caption(*args)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_every_image_has_the_captioners_own_caption_and_its_rank_among_them(here: Path) -> None:
    rows = caption()
    files = [Path("photos") / name for name in NAMES]
    assert [row["file"] for row in rows] == list(map(str, files))
    clip = FrozenClip("runs/demo/clip")
    similarity = clip.embed_captions([row["caption"] for row in rows]) @ clip.embed_images(files).T
    better, ties = ranks(similarity, torch.arange(5))
    assert [row["rank"] for row in rows] == (better + 1).tolist()
    assert [row["ties"] for row in rows] == ties.tolist()
    rival = similarity.fill_diagonal_(-2).max(1)
    assert [row["taken_for"] for row in rows] == [str(files[i]) for i in rival.indices.tolist()]
    torch.testing.assert_close([row["taken_for_similarity"] for row in rows], rival.values.tolist(), atol=1e-4, rtol=0)


def test_captions_are_those_of_predict(here: Path) -> None:
    """The command of Lightning's, on the same folder."""
    captioner = f"--model.captioner={json.dumps({'class_path': tiny.VED, 'init_args': {'init_from': 'runs/demo/rl'}})}"
    data = ["--data=ImageFolder", "--data.folder=photos", "--data.image_size=32", "--data.num_workers=0"]
    args = ["--model=distcap.stages.MLE", captioner, *data, "--trainer.logger=false", "--trainer.accelerator=cpu"]
    (here / "out").mkdir()
    shutil.copytree("photos", here / "out" / "photos")
    (here / "out" / "runs" / "demo").mkdir(parents=True)
    (here / "out" / "runs" / "demo" / "rl").symlink_to(here / "runs" / "demo" / "rl")
    tiny.run(here / "out", "predict", "--run=mine", *args)
    predicted = json.loads((here / "out" / "runs" / "mine" / "predictions.json").read_text())
    assert [row["caption"] for row in caption()] == [row["caption"] for row in predicted]


def test_the_end_says_how_many_find_their_image_and_who_is_taken_for_whom(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = caption()
    hits = sum(row["rank"] == 1 for row in rows)
    lines = capsys.readouterr().err.splitlines()
    assert "5 captions of 5 images: captions.jsonl" in lines
    assert lines[-1].startswith(
        f"{hits} of 5 captions find their image first among the 5; the most confusable: photos/"
    )
    worst = max((row for row in rows), key=lambda row: row["taken_for_similarity"] - row["similarity"])
    assert " and ".join(sorted([worst["file"], worst["taken_for"]])) in lines[-1]


def test_csv_has_the_same_rows(here: Path) -> None:
    rows = caption()
    main(["caption", "photos", "--run=runs/demo/rl", "--format=csv", "--output=out/x.csv", "--num_workers=0"])
    with Path("out/x.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]


def test_text_files_lie_beside_their_images_with_a_line_for_each_caption(here: Path) -> None:
    rows = caption("photos", "--captions=2")
    main(["caption", "photos", "--run=runs/demo/rl", "--captions=2", "--format=txt", "--num_workers=0"])
    for name in NAMES:
        said = [row["caption"] for row in rows if row["file"] == f"photos/{name}"]
        assert (here / "photos" / name).with_suffix(".txt").read_text().splitlines() == said
        assert len(said) == 2


def test_text_files_in_a_folder_of_their_own_stand_as_the_images_do(here: Path) -> None:
    args = ["--run=runs/demo/rl", "--format=txt", "--output=texts", "--clip=none", "--num_workers=0"]
    main(["caption", "photos/sub", "photos/a.png", *args])
    found = sorted(str(file.relative_to("texts")) for file in Path("texts").rglob("*") if file.is_file())
    assert found == ["a.txt", "sub/a.txt", "sub/d.txt"]


def test_a_humans_text_file_is_not_overwritten_unless_that_is_asked_for(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    human = here / "photos" / "b.txt"
    human.write_text("what a human wrote")
    (here / "captions.jsonl").touch()
    args = ("photos", "--format=txt", "--clip=none")
    assert "photos/b.txt is there already; name another --output, or say --overwrite true" in fails(capsys, *args)
    assert human.read_text() == "what a human wrote"
    caption(*args, "--overwrite=true")
    assert human.read_text() != "what a human wrote"


def test_two_images_that_would_share_a_text_file_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("photos/a.png", "photos/a.jpg")
    line = fails(capsys, "photos", "--format=txt")
    assert "photos/a.jpg and photos/a.png would share photos/a.txt; use --format jsonl or csv" in line


def test_an_output_that_is_there_is_not_overwritten_unless_that_is_asked_for(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = caption("photos/a.png")
    assert "captions.jsonl is there already" in fails(capsys, "photos/b.png")
    assert [json.loads(line) for line in Path("captions.jsonl").read_text().splitlines()] == rows
    assert caption("photos/b.png", "--overwrite=true") != rows


def test_several_captions_are_samples_of_the_seed(here: Path) -> None:
    """Of five images three captions each; all alike by chance with odds below one in a million."""
    first = caption("photos", "--captions=3")
    assert [row["file"] for row in first] == [f"photos/{name}" for name in NAMES for _ in range(3)]
    assert caption("photos", "--captions=3", "--overwrite=true") == first
    other = caption("photos", "--captions=3", "--overwrite=true", "--seed=1")
    assert [row["caption"] for row in other] != [row["caption"] for row in first]


def test_best_of_n_keeps_those_different_samples_that_clip_likes_best(here: Path) -> None:
    drawn = caption("photos", "--captions=8", "--batch_size=2")
    kept = caption("photos", "--best_of=8", "--captions=2", "--batch_size=2", "--overwrite=true")
    for name in NAMES:
        own = {row["caption"]: row["similarity"] for row in drawn if row["file"] == f"photos/{name}"}
        best = sorted(own, key=lambda one: -own[one])[:2]
        assert [row["caption"] for row in kept if row["file"] == f"photos/{name}"] == best


def test_without_a_clip_there_are_captions_and_no_ranks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = caption("photos", "--clip=none")
    assert all(row.keys() == {"file", "caption"} for row in rows)
    assert "find their image" not in capsys.readouterr().err


def test_another_clip_can_rank(here: Path) -> None:
    tiny.write_clip(here / "other", seed=5)
    before = caption()
    after = caption("photos", "--clip=other", "--overwrite=true")
    assert [row["caption"] for row in after] == [row["caption"] for row in before]
    assert [row["similarity"] for row in after] != [row["similarity"] for row in before]


def test_a_captioner_without_a_config_needs_a_clip_to_be_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(here / "runs" / "demo" / "rl" / "captioner", here / "plain")
    with pytest.raises(SystemExit):
        main(["caption", "photos", "--run=plain"])
    assert "name one with --clip, or --clip none" in capsys.readouterr().err


def test_broken_images_are_told_at_once_and_again_at_the_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "photos" / "b.png").write_bytes(b"no image")
    (here / "photos" / "c.png").write_bytes((here / "photos" / "a.png").read_bytes()[:60])
    (here / "photos" / "lost.png").symlink_to("nowhere")
    rows = caption("photos", "--batch_size=1")
    assert [row["file"] for row in rows] == ["photos/a.png", "photos/sub/a.png", "photos/sub/d.png"]
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert sum("skipped: cannot read the image photos/" in line for line in lines) == 3
    [last] = [line for line in lines if line.startswith("left out, for they could not be read: 3 of ")]
    assert all(f"photos/{name}" in last for name in ("b.png", "c.png", "lost.png"))
    assert lines.index(last) >= len(lines) - 2


def test_where_no_image_can_be_read_it_is_an_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "x.heic").write_bytes(b"no image")
    assert "none of the 1 images could be read; the first: cannot read the image x.heic" in fails(capsys, "x.heic")
    assert not list(here.glob("captions*"))


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Ctrl-C in the n-th batch from now, the first being 0. Returns the sizes of the batches that are captioned."""
    generate = VisionEncoderDecoder.generate

    def plan(batches: int) -> list[int]:
        sizes: list[int] = []

        def interrupted(self: Any, memory: Any, sampler: Any) -> Any:
            if len(sizes) == batches:
                raise KeyboardInterrupt
            sizes.append(len(memory))
            return generate(self, memory, sampler)

        monkeypatch.setattr(VisionEncoderDecoder, "generate", interrupted)
        return sizes

    return plan


SAMPLES = ("photos", "--captions=2", "--batch_size=2")


def test_an_interrupted_command_goes_on_and_writes_what_an_uninterrupted_one_does(
    here: Path, stop: Callable[[int], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = caption(*SAMPLES)
    os.remove("captions.jsonl")
    stop(2)
    with pytest.raises(SystemExit) as end:
        caption(*SAMPLES)
    assert end.value.code == 130
    assert "Stopped; captions.jsonl.part keeps 4 of 5 images. The same command goes on" in capsys.readouterr().err
    assert not Path("captions.jsonl").exists()
    sizes = stop(99)
    assert caption(*SAMPLES) == whole
    assert sizes == [1]
    assert not Path("captions.jsonl.part").exists()


def test_a_batch_that_was_written_by_half_is_captioned_again(here: Path, stop: Callable[[int], list[int]]) -> None:
    whole = caption(*SAMPLES)
    os.remove("captions.jsonl")
    stop(2)
    with pytest.raises(SystemExit):
        caption(*SAMPLES)
    lines = Path("captions.jsonl.part/captions.jsonl")
    lines.write_bytes(lines.read_bytes()[:-5])
    sizes = stop(99)
    assert caption(*SAMPLES) == whole
    assert sizes == [2, 1]


def test_a_damaged_line_of_what_was_begun_is_captioned_again(
    here: Path, stop: Callable[[int], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit, within a caption or not: what was said before is no wrong caption now."""
    whole = caption(*SAMPLES)
    os.remove("captions.jsonl")
    stop(2)
    with pytest.raises(SystemExit):
        caption(*SAMPLES)
    lines = Path("captions.jsonl.part/captions.jsonl")
    data = bytearray(lines.read_bytes())
    data[data.rindex(b'"captions"') + 15] ^= 1
    data[5] = 255
    lines.write_bytes(data)
    sizes = stop(99)
    capsys.readouterr()
    assert caption(*SAMPLES) == whole
    assert "captions.jsonl.part is damaged in 2 lines; their images are captioned again" in capsys.readouterr().err
    assert sizes == [2, 2, 1]


def test_an_image_that_has_changed_since_is_captioned_again(here: Path, stop: Callable[[int], list[int]]) -> None:
    stop(1)
    with pytest.raises(SystemExit):
        caption("photos", "--batch_size=2")
    shutil.copy("photos/sub/d.png", "photos/a.png")
    stop(99)
    rows = caption("photos", "--batch_size=2")
    assert rows[0]["caption"] == rows[-1]["caption"]


def test_ranking_is_interrupted_and_goes_on_without_captioning_again(
    here: Path, stop: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: FrozenClip, captions: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FrozenClip, "embed_captions", interrupted)
        with pytest.raises(SystemExit):
            caption()
    sizes = stop(99)
    monkeypatch.setattr(FrozenClip, "embed_images", None)
    assert len(caption()) == 5
    assert sizes == []


def test_what_was_begun_otherwise_is_not_mixed_with_this(
    here: Path, stop: Callable[[int], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    stop(1)
    with pytest.raises(SystemExit):
        caption("photos", "--captions=2", "--batch_size=2", "--seed=3")
    line = fails(capsys, *SAMPLES)
    assert "captions.jsonl.part was begun otherwise (seed: 3); repeat that command to go on with it, or delete" in line


def test_file_names_may_be_anything(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [b"new\nline.png", b'quote".png', b"latin-\xe9.png", b"[a].png", b"-x.png", b"\x1b[31mred.png"]
    os.mkdir("odd")
    for name in names:
        shutil.copy("photos/a.png", os.path.join(b"odd", name))
    (here / "odd" / "\x1b[2Jbad.png").write_bytes(b"no image")
    rows = caption("odd")
    assert {os.fsencode(row["file"]) for row in rows} == {b"odd/" + name for name in names}
    assert all(row["ties"] == 5 for row in rows)
    assert "\x1b[31m" not in (err := capsys.readouterr().err)
    assert "\x1b[2J" not in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "images"),
        (("empty",), "no images in empty; looked for"),
        (("nowhere",), "nowhere: there is no such file or folder"),
        (("photos", "--captions=0"), "captions are one or more"),
        (("photos", "--best_of=2", "--captions=2"), "--best_of 2 leaves no choice of --captions 2"),
        (("photos", "--sampler=greedy", "--captions=2"), "--sampler greedy has one caption of each image"),
        (("photos", "--format=xml"), "format"),
        (("photos", "--output=photos"), "photos is a folder"),
        (("photos", "--clip=none", "--best_of=3"), "--best_of needs a CLIP that chooses"),
        (("photos", "--run=runs/none"), "runs/none: no captioner there; train it first"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    args: tuple[str, ...], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "empty").mkdir()
    before = sorted(here.iterdir())
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["caption", *args, *([] if "--run" in "".join(args) else ["--run=runs/demo/rl"])])
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert sorted(here.iterdir()) == before


def test_a_clip_that_cannot_be_loaded_is_said_before_anything_is_captioned(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "runs/none: no CLIP there" in fails(capsys, "photos", "--clip=runs/none")
    assert not Path("captions.jsonl.part").exists()


def test_workers_decode_what_the_main_process_does(here: Path) -> None:
    rows = caption("photos", "--batch_size=2")
    with contextlib.suppress(FileNotFoundError):
        os.remove("captions.jsonl")
    main(["caption", "photos", "--batch_size=2", "--run=runs/demo/rl", "--num_workers=2"])
    assert [json.loads(line) for line in Path("captions.jsonl").read_text().splitlines()] == rows
