"""A folder of images to be captioned."""

from pathlib import Path

import pytest
from PIL import Image

from distcap.data.folder import ImageFolder
from distcap.types import UserError


@pytest.fixture
def photos(tmp_path):
    """b.png, a/z.JPG and a/c.png, among files that are no images of one's own."""
    for name in ("b.png", "a/z.JPG", "a/c.png", ".hidden.png", ".cache/d.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (len(name), 0, 0)).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    return tmp_path / "photos"


def build(folder: Path, **arguments) -> ImageFolder:
    return ImageFolder(str(folder), **{"image_size": 8, "num_workers": 0, **arguments})


def complaint(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_are_numbered_by_relative_path(photos):
    entries = build(photos).entries()
    assert [(entry.image_id, entry.file.as_posix()) for entry in entries] == [
        (0, "a/c.png"),
        (1, "a/z.JPG"),
        (2, "b.png"),
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_hold_pixels_and_no_captions(photos, num_workers):
    [batch] = build(photos, num_workers=num_workers).predict_dataloader()
    assert batch.image_ids == [0, 1, 2]
    assert batch.captions == [[], [], []]
    assert batch.images.shape == (3, 3, 8, 8)
    assert batch.images[2, :, 0, 0].tolist() == pytest.approx([len("b.png") / 255, 0, 0])


def test_absent_folder_is_named(tmp_path):
    assert f"there is no folder {tmp_path / 'nowhere'}" in complaint(build(tmp_path / "nowhere").setup, "predict")


def test_folder_without_images_says_what_was_looked_for(tmp_path):
    assert ".jpg" in complaint(build(tmp_path).setup, "predict")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_image_is_named(photos, num_workers):
    (photos / "a" / "z.JPG").write_bytes(b"no image")
    message = complaint(lambda: list(build(photos, num_workers=num_workers).predict_dataloader()))
    assert f"image id 1: cannot read the image {photos / 'a' / 'z.JPG'}" in message


def test_corrupt_image_is_left_out_and_counted_on_request(photos):
    (photos / "a" / "z.JPG").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="skipped 1 unreadable"):
        [batch] = build(photos, on_error="skip").predict_dataloader()
    assert batch.image_ids == [0, 2]


def test_training_on_a_folder_is_refused_with_the_command_that_works(photos):
    assert "use `distcap predict`" in complaint(build(photos).setup, "fit")
