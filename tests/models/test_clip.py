"""The frozen dual encoder, on a tiny open_clip model in a local folder."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import open_clip
import pytest
import torch
from PIL import Image
from tiny import CAPTIONS, CLIP_CONFIG, write_clip

from distcap.models import FrozenClip
from distcap.types import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("runs") / "clip")


@pytest.fixture
def clip(folder: Path) -> FrozenClip:
    return FrozenClip(str(folder))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    files = [tmp_path_factory.mktemp("pictures") / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        Image.linear_gradient("L").rotate(90 * i).resize((40, 30)).convert("RGB").save(file)
    return files


def test_embeddings_have_length_one(clip: FrozenClip, pictures: list[Path]) -> None:
    for embeddings in (clip.embed_captions(CAPTIONS), clip.embed_images(pictures)):
        assert embeddings.shape[1] == 16
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)))


def test_images_are_seen_as_open_clip_sees_them(clip: FrozenClip, folder: Path, pictures: list[Path]) -> None:
    net, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder / 'clip'}")
    with torch.no_grad():
        expected = net.eval().encode_image(torch.stack([preprocess(Image.open(file)) for file in pictures]))
    torch.testing.assert_close(clip.embed_images(pictures), torch.nn.functional.normalize(expected, dim=-1))


def test_a_model_is_loaded_once_and_quietly_however_many_images_ask_for_it(
    folder: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, tmp_path / "fresh")  # a path that was not loaded before
    with patch.object(open_clip, "create_model_from_pretrained", wraps=open_clip.create_model_from_pretrained) as load:
        FrozenClip(str(tmp_path / "fresh")).embed_images(pictures * 10)
    assert load.call_count == 1
    print("still here")
    assert capsys.readouterr().out == "still here\n"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


def test_loading_it_leaves_chance_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "fresh")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert FrozenClip(str(tmp_path / "fresh")).tau > 0
    assert torch.equal(torch.rand(3), expected)


def test_captions_are_read_as_open_clip_reads_them(clip: FrozenClip, folder: Path) -> None:
    """The independent reference; one caption is longer than the context."""
    captions = [*CAPTIONS, "dog " * 50]
    net, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder / 'clip'}")
    with torch.no_grad():
        expected = net.eval().encode_text(open_clip.get_tokenizer(f"local-dir:{folder / 'clip'}")(captions))
    torch.testing.assert_close(clip.embed_captions(captions), torch.nn.functional.normalize(expected, dim=-1))


@pytest.mark.parametrize(("words", "truncated"), [(30, 0), (31, 1)])
def test_a_caption_is_truncated_when_it_and_its_two_marks_exceed_the_context(
    clip: FrozenClip, words: int, truncated: int
) -> None:
    """A context of 32 holds a start mark, 30 words and an end mark (trap 13)."""
    clip.embed_captions(["dog " * words, "a dog"])
    assert clip.truncated == truncated


def test_truncations_add_up(clip: FrozenClip) -> None:
    clip.embed_captions(["dog " * 40, "a dog", "cat " * 40])
    clip.embed_captions(["dog " * 31])
    assert clip.truncated == 3


def test_the_prompt_stands_before_every_caption(folder: Path, clip: FrozenClip) -> None:
    prompted = FrozenClip(str(folder), prompt="A photo depicts ")
    assert torch.equal(prompted.embed_captions(["a dog"]), clip.embed_captions(["A photo depicts a dog"]))


def test_many_captions_are_embedded_like_a_few(folder: Path, clip: FrozenClip) -> None:
    in_parts = FrozenClip(str(folder), batch_size=2).embed_captions(CAPTIONS)
    torch.testing.assert_close(in_parts, clip.embed_captions(CAPTIONS))


def test_tau_is_the_temperature_that_the_model_learnt(clip: FrozenClip) -> None:
    assert clip.tau == pytest.approx(0.07)  # open_clip starts from 1 / 0.07


def test_two_instances_of_a_model_share_its_weights(folder: Path, clip: FrozenClip) -> None:
    assert FrozenClip(str(folder / "clip"), prompt="an image of ").net is clip.net


def test_nothing_in_it_is_trained(clip: FrozenClip) -> None:
    assert not any(p.requires_grad for p in clip.net.parameters())
    assert not clip.net.training
    assert not clip.embed_captions(["a dog"]).requires_grad


def test_the_fingerprint_tells_weights_and_prompts_apart(folder: Path, clip: FrozenClip, tmp_path: Path) -> None:
    others = [FrozenClip(str(folder), prompt="a "), FrozenClip(str(write_clip(tmp_path / "other", seed=1)))]
    assert len({clip.fingerprint, *(other.fingerprint for other in others)}) == 3
    shutil.copytree(folder, tmp_path / "copy")
    assert FrozenClip(str(tmp_path / "copy")).fingerprint == clip.fingerprint


def test_an_image_is_seen_once_and_a_changed_one_again(
    clip: FrozenClip, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    embed = clip.embed_images
    monkeypatch.setattr(clip, "embed_images", lambda files: seen.extend(files) or embed(files))
    files = {i: Path(shutil.copy(file, tmp_path / file.name)) for i, file in enumerate(pictures)}
    before = clip.image_store(files, tmp_path / "store")[[1]]
    clip.image_store(files, tmp_path / "store")
    assert seen == list(files.values())
    Image.new("RGB", (50, 50), "red").save(files[1])
    after = clip.image_store(files, tmp_path / "store")[[1]]
    assert seen == [*files.values(), files[1]]
    assert not torch.equal(before, after)
    assert torch.equal(after, embed([files[1]]))


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model name of open_clip's, as ViT-B-32-quickgelu is one."""
    file = tmp_path_factory.mktemp("configs") / "tiny-quickgelu.json"
    file.write_text(json.dumps({**CLIP_CONFIG["model_cfg"], "quick_gelu": True}))
    open_clip.add_model_config(file)
    return file.stem


def fine_tuned(seed: int) -> torch.nn.Module:
    """The network that a checkpoint is of."""
    torch.manual_seed(seed)
    return open_clip.model.CLIP(**CLIP_CONFIG["model_cfg"], quick_gelu=True).eval()


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("archived", [False, True], ids=["PAC-S", "from OpenAI's archive"])
def test_a_checkpoint_with_openai_names_embeds_as_the_network_that_it_is_of(
    named: str, tmp_path: Path, pictures: list[Path], half: bool, archived: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """PAC-S's file is a dict of the training's state, with the weights under "state_dict"."""
    net = fine_tuned(seed=5)
    if half:
        net = net.half().float()  # what is left of the weights
    weights = {name: value.half() if half else value for name, value in net.state_dict().items()}
    names = {"positional_embedding", "text_projection", "logit_scale", "visual.class_embedding", "visual.proj"}
    assert {*names, "visual.conv1.weight", "transformer.resblocks.0.attn.in_proj_weight"} <= weights.keys()  # OpenAI's
    if archived:
        weights |= {"input_resolution": torch.tensor(32), "context_length": torch.tensor(32)}
        weights["vocab_size"] = torch.tensor(49408)
    optimizer = torch.optim.Adam(net.parameters()).state_dict()
    file = tmp_path / "clip_tiny.pth"
    torch.save({"epoch": 3, "optimizer": optimizer, "state_dict": weights, "best_loss": torch.tensor(0.5)}, file)
    clip = FrozenClip(named, str(file))
    tokens = open_clip.get_tokenizer(named)(CAPTIONS)
    with torch.no_grad():
        texts, pixels = net.encode_text(tokens), torch.stack([clip.preprocess(Image.open(f)) for f in pictures])
        images = net.encode_image(pixels)
    torch.testing.assert_close(clip.embed_captions(CAPTIONS), torch.nn.functional.normalize(texts, dim=-1))
    torch.testing.assert_close(clip.embed_images(pictures), torch.nn.functional.normalize(images, dim=-1))
    assert {p.dtype for p in clip.net.parameters()} == {torch.float32}
    assert pixels[0].shape == (3, 32, 32)
    assert [record.message for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


def test_a_missing_file_of_weights_is_one_error_that_names_it(named: str) -> None:
    with pytest.raises(UserError, match=r"checkpoints/clip_tiny\.pth: no such file of weights for CLIP tiny-quickgelu"):
        FrozenClip(named, "checkpoints/clip_tiny.pth").to("cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no weights, or code"),
        (b"<!doctype html><title>Google Drive - Quota exceeded</title>", "holds no weights, or code"),
        (Path, "holds no weights, or code"),
        (torch.zeros(3), "no named weights, but a Tensor"),
        ({}, "no named weights, but a dict"),
        ({"state_dict": {"logit_scale": torch.tensor(1.0)}}, r"Missing key\(s\) in state_dict: .*positional_embedding"),
    ],
    ids=["empty", "web page", "code", "tensor", "nothing", "another network's"],
)
def test_a_wrong_file_of_weights_is_one_error(named: str, tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "clip_tiny.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(Trap(tmp_path / "sprung") if content is Path else content, file)
    with pytest.raises(UserError, match=message) as error:
        FrozenClip(named, str(file)).to("cpu")
    assert str(error.value).startswith(f"CLIP {named} ({file}) cannot be loaded: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["runs/nothing", "./nothing"])
def test_a_missing_run_is_one_error_that_tells_how_to_train_it(name: str) -> None:
    with pytest.raises(UserError, match=r"no CLIP there .* train it with `distcap fit --config clip\.yaml`"):
        FrozenClip(name).to("cpu")


def test_an_unknown_model_name_is_one_error() -> None:
    with pytest.raises(UserError, match="no-such-model"):
        FrozenClip("no-such-model").to("cpu")


def test_an_image_that_is_none_is_one_error_that_names_it(clip: FrozenClip, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot read the image .*broken\.png .*; replace the file"):
        clip.embed_images([tmp_path / "broken.png"])


class Trap:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_weights_that_carry_code_are_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    """A pickled checkpoint may run anything when it is loaded (trap 14)."""
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "clip" / "open_clip_model.safetensors").unlink()
    file = tmp_path / "run" / "clip" / "open_clip_pytorch_model.bin"
    torch.save({"state_dict": Trap(tmp_path / "sprung")}, file)
    with pytest.raises(UserError, match="cannot be loaded"):
        FrozenClip(str(tmp_path / "run")).to("cpu")
    assert not (tmp_path / "sprung").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "sprung").exists()  # it would have been
