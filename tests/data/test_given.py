"""Which images a command line names."""

import os
from collections import Counter
from pathlib import Path

import pytest

from distcap.data.given import given_images
from distcap.types import UserError

FILES = (
    "b/photo.JPG",
    "a/photo.jpg",
    "a/deep/er.png",
    "a/.hidden.png",
    "a/.git/x.png",
    "a/notes.txt",
    "a/raw.heic",
    "c",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*sources: str) -> list[str]:
    return [str(path) for path in given_images(sources)[0]]


def test_of_a_folder_the_images_are_taken_in_the_order_of_their_paths() -> None:
    assert names("a") == ["a/deep/er.png", "a/photo.jpg"]


def test_files_of_other_kinds_are_passed_over_and_counted_and_hidden_ones_are_not_there() -> None:
    passed_over = given_images(["."])[1]
    assert passed_over.kinds == Counter({".heic": 1, ".txt": 1, "no extension": 1})
    assert str(passed_over).startswith("3 files of other kinds (")
    assert str(passed_over).endswith("), the first: c")


def test_files_of_one_name_in_two_folders_are_two() -> None:
    assert names("b", "a/photo.jpg") == ["b/photo.JPG", "a/photo.jpg"]


def test_a_file_that_is_named_twice_is_taken_once() -> None:
    assert names("a/photo.jpg", "./a/../a/photo.jpg", "a", os.path.abspath("a")) == ["a/photo.jpg", "a/deep/er.png"]


def test_a_file_that_is_named_itself_is_taken_whatever_it_is_called() -> None:
    assert names("c", "a/raw.heic", "a/.hidden.png") == ["c", "a/raw.heic", "a/.hidden.png"]


def test_patterns_are_matched_and_two_stars_match_folders() -> None:
    assert names("*/photo.*") == ["a/photo.jpg", "b/photo.JPG"]
    assert names("**/*.png") == ["a/deep/er.png"]


def test_a_file_that_is_called_like_a_pattern_is_that_file(here: Path) -> None:
    (here / "[c]").touch()
    assert names("[c]") == ["[c]"]


def test_folders_behind_links_are_read_and_loops_end(here: Path) -> None:
    """Two links in a folder, each back to it, would double what is found with every step."""
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "far.png").touch()
    (here / "a" / "more").symlink_to(here / "elsewhere")
    for loop in ("again", "and_again"):
        (here / "a" / loop).symlink_to(here / "a")
        (here / "elsewhere" / loop).symlink_to("..")
    assert names("a") == [
        "a/deep/er.png",
        "a/more/again/b/photo.JPG",
        "a/more/far.png",
        "a/photo.jpg",
    ]
    assert names("a/**/*.png") == ["a/deep/er.png", "a/more/far.png"]


def test_of_two_names_of_an_image_one_counts_and_the_other_is_named(here: Path) -> None:
    (here / "a" / "first.jpg").symlink_to("photo.jpg")
    (here / "a" / "twin").symlink_to("deep")
    images, passed_over = given_images(["a", "b/photo.JPG"])
    assert list(map(str, images)) == ["a/deep/er.png", "a/photo.jpg", "b/photo.JPG"]
    assert "2 second names of what is listed already, the first: a/twin of a/deep" in str(passed_over)
    (here / "c.jpg").symlink_to("b/photo.JPG")
    assert names("c.jpg", "b") == ["c.jpg"]


def test_a_folder_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(path: Path) -> object:  # the superuser, who may run this test, reads everything
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "1 folders that cannot be read, the first: a/deep (Permission denied)" in str(given_images(["a"])[1])


def test_a_link_that_leads_nowhere_is_kept_to_be_reported_later(here: Path) -> None:
    (here / "b" / "lost.png").symlink_to("nowhere")
    assert names("b") == ["b/lost.png", "b/photo.JPG"]


@pytest.mark.parametrize("source", ["nowhere", "nothing*.png", "a/photo.jpeg"])
def test_a_source_that_leads_nowhere_is_named(source: str) -> None:
    with pytest.raises(UserError, match="there is no such file or folder, nor anything that matches it"):
        given_images(["a", source])


def test_a_folder_without_images_says_what_was_looked_for_and_found(here: Path) -> None:
    (here / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images in empty; looked for \.avif, "):
        given_images(["empty"])
    (here / "empty" / "x.heic").touch()
    with pytest.raises(UserError, match=r"passed over 1 files of other kinds \(\.heic 1\)"):
        given_images(["empty"])
