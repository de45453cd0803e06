"""The page: what it compares, what it shows, and, where there is a browser, that it can be played with."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fakes import FakeClip, embed
from PIL import Image
from torch import Tensor

from distcap.cli import main
from distcap.demo import open_page
from distcap.demo.comparison import Comparison, Speaker, Telling
from distcap.demo.results import MOST, render, respond
from distcap.finding import find
from distcap.models import FrozenClip
from distcap.types import UserError

CLIP = {"class_path": "distcap.models.FrozenClip", "init_args": {"model": "runs/demo/clip"}}
SHOWN = ("red dog", "red cat", "blue cat")
COLOURS = ("red", "green", "blue", "white")


class Eyes(FakeClip):
    """Sees in an image the words that its file is called."""

    def embed_images(self, files: list[Path]) -> Tensor:
        return embed(*(file.stem for file in files))


class Parrot(torch.nn.Module):
    """Says of the images what it was told, in their order."""

    def __init__(self, *captions: str) -> None:
        super().__init__()
        self.captions = list(captions)
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def encode(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (3, 8, 8)
        assert 0 <= images.min() <= images.max() <= 1
        return images

    def generate(self, memory: Tensor, sampler: Any) -> tuple[Tensor, Tensor, Tensor]:
        assert sampler.method == "greedy"
        return torch.arange(len(memory)), memory, memory

    def detokenize(self, tokens: Tensor, mask: Tensor) -> list[str]:
        return [self.captions[row] for row in tokens.tolist()]


def make_comparison(*captions: str) -> Comparison:
    return Comparison([Speaker("MLE", Parrot("red", "red", "red"), 8), Speaker("RL", Parrot(*captions), 8)], Eyes())  # type: ignore[arg-type]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for words in SHOWN:
        Image.new("RGB", (20, 10), words.split()[0]).save(tmp_path / f"{words}.png")
    return [tmp_path / f"{words}.png" for words in SHOWN]


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_every_speaker_captions_every_image_and_clip_looks_for_it_among_them(files: list[Path]) -> None:
    """ "red" fits both red images, image 2 not at all; "blue cat" said of image 0 finds image 2."""
    mle, rl = make_comparison("blue cat", "red cat", "blue cat")(files)
    assert (mle.name, mle.captions) == ("MLE", ["red"] * 3)
    assert [(one.rank, one.ties) for one in mle.findings] == [(1, 1), (1, 1), (3, 0)]
    assert [(one.rank, one.ties) for one in rl.findings] == [(3, 0), (1, 0), (1, 0)]
    assert rl.findings[0].rival == 2
    assert (mle.found, rl.found) == (1.0, 2.0)


def test_the_page_says_of_each_caption_which_image_it_finds(files: list[Path]) -> None:
    html = respond(make_comparison("blue cat", "red cat", "blue cat"), list(map(str, files)))
    words = text(html)
    assert "RL 2 of 3 captions find their image" in words
    assert "RL blue cat ✗ finds blue cat.png: this image has rank 3 of 3" in words
    assert "RL red cat ✓ finds this image: rank 1 of 3" in words
    assert "MLE red ≈ fits 1 other just as well, red cat.png among them" in words
    outcomes = re.findall(r'class="telling (\w+)"', html)
    assert outcomes == ["tied", "lost", "tied", "found", "lost", "found"]
    assert re.findall(r'class="retrieved" .* alt="finds (.*)\.png"', html)[1::2] == ["blue cat", "red cat", "blue cat"]


def test_what_a_caption_or_a_file_says_is_escaped(tmp_path: Path) -> None:
    file = tmp_path / "<img src=x onerror=alert(1)>.png"
    Image.new("RGB", (4, 4)).save(file)
    evil = "<script>alert('dog')</script>"
    findings = find(embed("red"), embed("red"), torch.tensor([0]))
    html = render([file], [Telling("<b>MLE</b>", [evil], findings)], ["<i>no</i>"])
    assert not re.search(r"<script|<img src=x|<b>|<i>no", html)
    assert "&lt;script&gt;" in html


def test_a_bad_upload_is_named_and_the_others_are_captioned(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    uploads = [str(files[0]), str(tmp_path / "notes.txt"), str(files[1])]
    html = respond(make_comparison("red dog", "red cat"), uploads)
    assert "notes.txt could not be read as an image, and is left out." in text(html)
    assert html.count("<article") == 2
    assert "RL 2 of 2 captions" in text(html)


@pytest.mark.parametrize("uploads", [None, []])
def test_nothing_to_caption_is_a_hint_and_no_error(uploads: list[str] | None) -> None:
    assert "drop some images first" in text(respond(make_comparison(), uploads))


def test_a_single_image_is_captioned_with_a_hint(files: list[Path]) -> None:
    words = text(respond(make_comparison("red dog"), [str(files[0])]))
    assert "A single image is found by any caption" in words
    assert "red dog ✓ finds this image: rank 1 of 1" in words


def test_too_many_images_are_cut_and_said_to_be(files: list[Path]) -> None:
    asked: list[int] = []

    def compare(files: list[Path]) -> list[Telling]:
        asked.append(len(files))
        return []

    words = text(respond(compare, [str(files[0])] * (MOST + 2)))  # type: ignore[arg-type]
    assert f"{MOST + 2} images are too many; the first {MOST} are compared." in words
    assert asked == [MOST]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/demo/{mle,rl,clip}, untrained, of different captioners."""
    folder = tmp_path_factory.mktemp("family")
    runs = folder / "runs" / "demo"
    tiny.write_run(runs / "rl", clip=CLIP, seed=1)
    tiny.write_run(runs / "mle", {"class_path": tiny.VED, "init_args": {"init_from": None}})
    tiny.write_clip(runs / "clip")
    for place, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 30), colour).save(folder / f"{place}-{colour}.png")
    return folder


def test_a_run_is_compared_with_the_one_that_it_started_from(family: Path) -> None:
    comparison = Comparison.of_runs(str(family / "runs" / "demo" / "rl"))
    assert [speaker.name for speaker in comparison.speakers] == ["MLE (mle)", "Distinctive (rl)"]
    first, second = (speaker.captioner.state_dict() for speaker in comparison.speakers)
    torch.testing.assert_close(first, tiny.make_captioner(seed=0).state_dict())
    torch.testing.assert_close(second, tiny.make_captioner(seed=1).state_dict())
    assert isinstance(comparison.clip, FrozenClip)
    assert comparison.clip.model == str(family / "runs" / "demo" / "clip")


def test_a_run_that_started_from_nothing_needs_another_to_be_named(family: Path) -> None:
    mle, rl = (str(family / "runs" / "demo" / name) for name in ("mle", "rl"))
    with pytest.raises(UserError, match="name one to compare it with: --mle RUN"):
        Comparison.of_runs(mle)
    with pytest.raises(UserError, match="names no CLIP"):
        Comparison.of_runs(mle, rl)


def test_without_gradio_one_line_says_how_to_get_it(
    family: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stop:
        main(["demo", str(family / "runs" / "demo" / "rl")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "distcap: the page needs gradio, which is not installed: pip install 'distcap[demo]'\n"
    )


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A page of a headless Chromium with a fresh profile; `requests` are the addresses that it asked for."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium to look at the page with")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, headless=True, args=list(FLAGS)
        )
        page = context.pages[0]
        page.addresses = []
        page.on("request", lambda request: page.addresses.append(request.url))
        yield page
        context.close()


def test_one_drops_images_and_sees_what_each_caption_finds(family: Path, browser: Any, tmp_path: Path) -> None:
    page = open_page(str(family / "runs" / "demo" / "rl"))
    try:
        browser.goto(page.local_url)
        pictures = sorted(family.glob("*.png"))
        (tmp_path / "notes.txt").write_text("no image")
        browser.get_by_role("button", name="Caption them").wait_for()
        browser.set_input_files("input[type=file]", [*pictures, tmp_path / "notes.txt"])
        browser.get_by_text("notes").first.wait_for()  # gradio shows a name and its extension apart
        browser.get_by_role("button", name="Caption them").click()
        browser.locator("article").nth(3).wait_for()
        tellings = Comparison.of_runs(str(family / "runs" / "demo" / "rl"))(pictures)
        for place, picture in enumerate(pictures):
            card = browser.locator("article").nth(place)
            assert card.locator("figcaption").inner_text() == picture.name
            assert card.locator(".caption").all_inner_texts() == [one.captions[place] for one in tellings]
            found = [one.findings[place] for one in tellings]
            names = [pictures[place if one.found else one.rival].name for one in found]
            assert [image.get_attribute("alt") for image in card.locator(".retrieved").all()] == [
                f"finds {name}" for name in names
            ]
        assert "notes.txt could not be read as an image" in browser.get_by_role("alert").inner_text()
        assert page.local_url.startswith("http://127.0.0.1:")
        strangers = [url for url in browser.addresses if not url.startswith((page.local_url, "data:", "blob:"))]
        assert not strangers
    finally:
        page.close()
