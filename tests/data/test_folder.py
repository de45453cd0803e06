"""A folder of one's own images: what it yields with captions and without, and what stays the same when it grows."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from distcap.data import ImageFolder
from distcap.data.given import given_images
from distcap.types import UserError


def paint(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (grey,) * 3).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """b.png, a/z.JPG and a/c.png, among files that are no images of one's own; a grey is the length of its name."""
    for name in ("b.png", "a/z.JPG", "a/c.png", ".hidden.png", ".cache/d.png"):
        paint(tmp_path / "photos" / name, len(name))
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    return tmp_path / "photos"


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Two hundred photos of one grey."""
    first = paint(tmp_path / "album" / "0.png").read_bytes()
    for number in range(1, 200):
        (tmp_path / "album" / f"{number}.png").write_bytes(first)
    return tmp_path / "album"


CAPTIONS = """
{"file_name": "b.png", "text": "a  dog", "split": "train"}
{"file_name": "a/z.JPG", "caption": "a cat", "split": "validation", "licence": "none of our business"}
{"file_name": "a/c.png", "captions": ["a heart", " ", "a red heart"], "split": "test"}
{"file_name": "b.png", "text": "two dogs", "split": "train"}
"""


@pytest.fixture
def captioned(photos: Path) -> Path:
    """The same with CAPTIONS."""
    (photos / "captions.jsonl").write_text(CAPTIONS)
    return photos


def build(folder: Path, **arguments) -> ImageFolder:
    return ImageFolder(str(folder), **{"image_size": 8, "num_workers": 0, "batch_size": 1, **arguments})


def complaint(call: Callable, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(data: ImageFolder, split: str) -> list[str]:
    return [entry.file.as_posix() for entry in data.entries(split)]


def test_predict_takes_every_image_in_the_order_of_its_relative_path(photos):
    assert files(build(photos), "predict") == ["a/c.png", "a/z.JPG", "b.png"]


def test_predict_fit_and_caption_agree_on_the_images_behind_links(photos, tmp_path):
    """Each once, though loops lead back and a second name leads to one of them."""
    paint(tmp_path / "far" / "away.png")
    (photos / "more").symlink_to(tmp_path / "far")
    (photos / "a" / "loop").symlink_to("..")
    (photos / "again.png").symlink_to("b.png")
    expected = ["a/c.png", "a/z.JPG", "b.png", "more/away.png"]
    data = build(photos, val=0.0, test=0.0)
    with pytest.warns(UserWarning, match="2 second names of what is listed already, the first: ") as told:
        assert files(data, "predict") == expected
    assert files(data, "train") == expected
    assert [path.relative_to(photos).as_posix() for path in given_images([str(photos)])[0]] == expected
    assert len(told) == 1
    assert "1 files of other kinds (.txt 1), the first: " in str(told[0].message)


def test_a_captions_file_is_no_file_of_another_kind(captioned):
    (captioned / "notes.txt").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(files(build(captioned), "predict")) == 3


def test_an_image_keeps_its_id_when_others_come_and_when_captions_do(photos):
    before = {entry.file: entry.image_id for entry in build(photos).entries("predict")}
    paint(photos / "a" / "a.png")
    after = {entry.file: entry.image_id for entry in build(photos).entries("predict")}
    assert after.items() > before.items()
    (photos / "captions.jsonl").write_text(CAPTIONS)
    with pytest.warns(UserWarning, match="left out"):
        assert build(photos).entries("train")[0].image_id == before[Path("b.png")]
    assert len(set(after.values())) == 4
    assert max(after.values()) < 2**53  # a number of JSON that every reader keeps whole


def test_two_images_of_one_hash_are_refused(photos, monkeypatch):
    monkeypatch.setattr("distcap.data.folder._image_id", lambda file: 7)
    assert "a/c.png and a/z.JPG have one hash, by chance; rename one" in complaint(build(photos).entries, "predict")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_hold_pixels_and_no_captions(photos, num_workers):
    data = build(photos, num_workers=num_workers, batch_size=3)
    [batch] = data.predict_dataloader()
    assert batch.image_ids == [entry.image_id for entry in data.entries("predict")]
    assert batch.captions == [[], [], []]
    assert batch.images.shape == (3, 3, 8, 8)
    assert torch.equal(batch.images[:, 0, 0, 0], torch.tensor([7.0, 7.0, 5.0]) / 255)


def test_captions_of_an_image_are_rows_or_a_list(captioned):
    data = build(captioned)
    assert list(data.references("train").values()) == [["a dog", "two dogs"]]
    assert list(data.references("test").values()) == [["a heart", "a red heart"]]
    [batch] = data.test_dataloader()
    assert batch.captions == [["a heart", "a red heart"]]


def test_splits_are_those_of_the_captions_file(captioned):
    data = build(captioned)
    assert [files(data, split) for split in ("train", "val", "test")] == [["b.png"], ["a/z.JPG"], ["a/c.png"]]


def test_predict_takes_every_image_captions_or_not(captioned):
    paint(captioned / "new.png")
    assert files(build(captioned), "predict") == ["a/c.png", "a/z.JPG", "b.png", "new.png"]


def test_images_of_which_the_captions_file_says_nothing_are_left_out_and_counted(captioned):
    paint(captioned / "new.png")
    with pytest.warns(UserWarning, match=r"captions.jsonl says nothing of 1 images, the first: new.png"):
        assert files(build(captioned), "train") == ["b.png"]


@pytest.mark.parametrize("name", ["metadata.jsonl", "captions.csv", "elsewhere.csv"])
def test_the_captions_file_is_found_or_named(photos, tmp_path, name):
    row = '{"file_name": "b.png", "text": "a dog"}' if name.endswith("jsonl") else "file_name,text\nb.png,a dog"
    where = tmp_path if name == "elsewhere.csv" else photos
    (where / name).write_text(row)
    data = build(photos, captions=str(where / name) if name == "elsewhere.csv" else None, val=0.0, test=0.0)
    with pytest.warns(UserWarning, match="says nothing of 2 images"):
        assert list(data.references("train").values()) == [["a dog"]]


def test_two_captions_files_are_refused_unless_one_is_named(captioned):
    (captioned / "captions.csv").write_text("file_name\nb.png\n")
    assert "captions.jsonl and captions.csv; name the one" in complaint(build(captioned).entries, "train")
    assert len(build(captioned, captions=str(captioned / "captions.jsonl")).references("train")) == 1


def test_splits_are_shares_of_the_folder_that_no_new_image_changes(album):
    """Of 200 images, 40 and 60 on average, with standard deviations of 6 and 7; the hash has no chance in it."""

    def splits() -> dict[str, str]:
        data = build(album, val=0.2, test=0.3)
        return {file: split for split in ("train", "val", "test") for file in files(data, split)}

    before = splits()
    assert len(before) == 200
    assert 25 < list(before.values()).count("val") < 55
    assert 40 < list(before.values()).count("test") < 80
    for number in range(50):
        paint(album / "more" / f"{number}.png")
    assert splits().items() > before.items()


def test_another_seed_makes_other_splits(album):
    first, second = (files(build(album, seed=seed), "test") for seed in (0, 1))
    assert first
    assert second
    assert set(first) != set(second)


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.2, 0.9)])
def test_shares_that_leave_nothing_to_train_on_are_refused(tmp_path, val, test):
    assert f"--data.val is {val} and --data.test {test}" in complaint(lambda: build(tmp_path, val=val, test=test))


def test_a_split_without_images_says_what_to_do(photos):
    message = complaint(build(photos, val=0.0).setup, "fit")
    assert "no images of split val" in message
    assert '"split"' in message


def test_a_folder_without_captions_has_splits_and_empty_references(album):
    data = build(album, batch_size=8)
    data.setup("fit")
    assert set(map(tuple, data.references("train").values())) == {()}
    assert all(batch.captions == [[]] * 8 for batch in data.train_dataloader())


def test_a_captions_file_may_tell_splits_and_no_captions(photos):
    rows = "".join(f"{name},{split}\n" for name, split in (("b.png", "train"), ("a/z.JPG", "val"), ("a/c.png", "test")))
    (photos / "captions.csv").write_text("file_name,split\n" + rows)
    assert [list(build(photos).references(split).values()) for split in ("train", "val")] == [[[]], [[]]]


def test_an_image_without_captions_among_others_that_have_some_is_named_with_its_line(captioned):
    paint(captioned / "new.png")
    (captioned / "captions.jsonl").write_text(CAPTIONS + '{"file_name": "new.png", "text": " ", "split": "train"}')
    message = complaint(build(captioned).setup, "fit")
    assert f"1 of 2 images of train have no captions, the first: {captioned}/captions.jsonl, line 6, " in message
    with pytest.warns(UserWarning, match="have no captions"):
        assert files(build(captioned, on_error="skip"), "train") == ["b.png"]


def test_an_absent_image_is_named_with_its_line(captioned):
    (captioned / "b.png").unlink()
    message = complaint(build(captioned).setup, "fit")
    assert f"1 of 1 images of train are not there, the first: {captioned}/captions.jsonl, line 2, " in message
    assert str(captioned / "b.png") in message


def test_absent_and_corrupt_images_are_left_out_and_counted_on_request(album):
    data = build(album, val=0.0, test=0.0, batch_size=8, on_error="skip")
    (album / "captions.csv").write_text("file_name\n" + "".join(f"{number}.png\n" for number in range(200)))
    (album / "3.png").unlink()
    (album / "5.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="images of train") as told:
        data.dataset("train")
    assert ["1 of 200 images of train are not there" in str(w.message) for w in told] == [True, False]
    assert "1 of 199 images of train cannot be read, the first: " in str(told[1].message)
    assert "captions.csv, line 7, " in str(told[1].message)
    assert {"3.png", "5.png"}.isdisjoint(files(data, "train"))


def test_an_image_of_two_splits_is_refused(captioned):
    (captioned / "captions.jsonl").write_text(CAPTIONS + '{"file_name": "b.png", "text": "a dog", "split": "test"}')
    message = complaint(build(captioned).entries, "train")
    assert "captions.jsonl, line 6: b.png belongs to test here, and to train in " in message


def test_an_image_without_a_split_among_others_that_have_one_is_refused(captioned):
    (captioned / "captions.jsonl").write_text(CAPTIONS + '{"file_name": "b.png", "text": "a dog"}')
    assert 'captions.jsonl, line 6: no "split"' in complaint(build(captioned).entries, "train")


def test_a_captions_file_without_rows_is_refused(photos):
    (photos / "captions.csv").write_text("file_name,text\n")
    assert "captions.csv has no rows" in complaint(build(photos).entries, "train")


def test_absent_folder_is_named(tmp_path):
    assert f"there is no folder {tmp_path / 'nowhere'}" in complaint(build(tmp_path / "nowhere").setup, "predict")


def test_folder_without_images_says_what_was_looked_for(tmp_path):
    assert ".jpg" in complaint(build(tmp_path).setup, "predict")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_image_is_named(photos, num_workers):
    (photos / "a" / "z.JPG").write_bytes(b"no image")
    message = complaint(lambda: list(build(photos, num_workers=num_workers).predict_dataloader()))
    assert f"cannot read the image {photos / 'a' / 'z.JPG'}" in message


def test_corrupt_image_is_not_captioned_and_counted_on_request(photos):
    (photos / "a" / "z.JPG").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="1 of 3 images of predict cannot be read"):
        assert len(list(build(photos, on_error="skip").predict_dataloader())) == 2


def test_look_alikes_fill_batches(album):
    data = build(album, val=0.0, test=0.0, batch_size=8, group_size=2)
    ids = [entry.image_id for entry in data.entries("train")]
    pairs = torch.tensor([[ids[row ^ 1]] * data.neighbours_needed for row in range(len(ids))])
    data.group_by(pairs)
    partner = dict(zip(ids, pairs[:, 0].tolist(), strict=True))
    for batch in data.train_dataloader():
        assert [partner[image] for image in batch.image_ids[::2]] == batch.image_ids[1::2]


def test_embeddings_are_kept_in_the_folder_and_are_no_images_of_it(photos):
    data = build(photos)
    assert data.cache_dir == photos / ".distcap"
    paint(data.cache_dir / "x.png")
    assert len(data.entries("predict")) == 3
