"""What somebody's folder must not do when it is loaded, and what of it must be there."""

import builtins
import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import open_clips
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from distcap.models import ChatVLM, ClipCap, Discriminator, FrozenClip, Lora, Sampler
from distcap.models.hugging_face import HuggingFaceCaptioner
from distcap.models.loading import square
from distcap.types import UserError

FAMILIES = list(families.WRITERS)
OWNED = """from pathlib import Path
Path({marker!r}).touch()
from transformers import {base}
class Evil({base}):
    pass
"""
"""A module that leaves a file behind when it is executed."""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(family: str, shelf: Path, tmp_path: Path) -> Path:
    """A captioner of the family that a test may damage."""
    return shutil.copytree(shelf / family, tmp_path / family)


@pytest.fixture
def a_user_who_says_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers asks at a terminal whether it may run a folder's code."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def first(folder: Path, part: str) -> str:
    return next(name for name in weights(folder) if part in name and name.endswith("weight"))


# --- Code


def plant(folder: Path, marker: Path, base: str = "PreTrainedTokenizerFast") -> None:
    (folder / "evil.py").write_text(OWNED.format(marker=str(marker), base=base))


@pytest.mark.usefixtures("a_user_who_says_yes")
def test_no_code_of_a_captioners_folder_is_run(family: str, folder: Path, tmp_path: Path) -> None:
    """Neither for its tokenizer or its processor, nor for the configs of the network and of its parts."""
    marker = tmp_path / "owned"
    plant(folder, marker)
    autos = ("AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoConfig", "AutoModel", "AutoModelForCausalLM")
    autos += ("AutoModelForImageTextToText",)
    auto_map: dict[str, Any] = dict.fromkeys(autos, "evil.Evil")

    def poison(config: Any) -> Any:
        """Wherever a part of the network has a config of its own."""
        if not isinstance(config, dict):
            return config
        config = {key: poison(value) for key, value in config.items()}
        return {**config, "auto_map": auto_map} if "model_type" in config else config

    for file in folder.glob("*config.json"):
        config = json.loads(file.read_text())
        config = poison(config) if file.name == "config.json" else {**config, "auto_map": auto_map}
        for kind in ("tokenizer_class", "processor_class", "image_processor_type"):
            if kind in config:
                config[kind] = "Evil"
        file.write_text(json.dumps(config))
    with contextlib.suppress(UserError):  # what needs no code of it may be loaded
        families.load(family, folder)
    assert not marker.exists()


def evil_processor(folder: Path, marker: Path) -> None:
    plant(folder, marker, "ProcessorMixin")
    change(folder / "processor_config.json", processor_class="Evil", auto_map={"AutoProcessor": "evil.Evil"})


@pytest.mark.usefixtures("a_user_who_says_yes")
@pytest.mark.parametrize("option", ["trust_remote_code", "code_revision", "revision", "cache_dir", "auto_map"])
def test_a_chat_vlm_passes_on_no_option_that_could_run_code(option: str, shelf: Path, tmp_path: Path) -> None:
    folder, marker = shutil.copytree(shelf / "smolvlm", tmp_path / "smolvlm"), tmp_path / "owned"
    evil_processor(folder, marker)
    with pytest.raises(UserError, match=f"processor has no option '{option}' that may be set"):
        ChatVLM(str(folder), "describe", 32, {option: True})
    assert not marker.exists()


@pytest.mark.usefixtures("a_user_who_says_yes")
@pytest.mark.parametrize("options", [{"trust_remote_code": True}, {}], ids=["trusted by itself", "asking"])
def test_no_code_of_a_clips_folder_is_run(options: dict[str, Any], tmp_path: Path) -> None:
    folder, marker = open_clips.write(tmp_path / "clip", "SigLIP"), tmp_path / "owned"
    plant(folder, marker)
    change(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": [None, "evil.Evil"]})
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = options
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"CLIP .*clip cannot be loaded: .*(trust_remote_code|custom code)"):
        _ = FrozenClip(str(folder)).tokenizer
    assert not marker.exists()


def test_a_clips_image_encoder_comes_from_no_address(tmp_path: Path) -> None:
    folder = open_clips.write(tmp_path / "clip", "ConvNeXt")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "hf-hub:somebody/something"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="the timm_model_name 'hf-hub:somebody/something', which is not the name"):
        _ = FrozenClip(str(folder)).net


def test_a_kernel_from_elsewhere_is_refused(family: str, folder: Path) -> None:
    change(folder / "config.json", attn_implementation="somebody/kernel")
    with pytest.raises(UserError, match="asks for a kernel, attn_implementation: somebody/kernel, which is code"):
        families.load(family, folder)


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_no_pickle_of_a_captioners_folder_is_run(family: str, folder: Path, tmp_path: Path) -> None:
    torch.save({**weights(folder), "evil": Evil(tmp_path / "owned")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"captioner .* cannot be loaded"):
        families.load(family, folder)
    assert not (tmp_path / "owned").exists()


# --- Damage


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 4000)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def other_shape(folder: Path) -> None:
    write(folder, {name: torch.zeros(3, 5) if value.ndim == 2 else value for name, value in weights(folder).items()})


def absent_shard(folder: Path) -> None:
    names = list(weights(folder))
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def config_of_nothing(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def cut_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


DAMAGES = [cut, empty, garbage, no_weights, other_shape, absent_shard, no_tokenizer, config_of_nothing, cut_config]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_folder_is_one_line(family: str, folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(UserError, match=r"^captioner \S+ cannot be loaded: .+") as error:
        families.load(family, folder)
    assert "\n" not in str(error.value)


def test_absent_weights_are_counted_and_the_first_is_named(family: str, folder: Path) -> None:
    """Transformers would draw them at random, and the captioner would say anything."""
    names = sorted(weights(folder))
    words = [
        name for name in names if name.startswith(("decoder.", "text_decoder.", "language_model.", "git.encoder."))
    ]
    words = words or [name for name in names if "text_model" in name or "model.layers" in name or "language" in name]
    write(folder, {name: value for name, value in weights(folder).items() if name not in words})
    with pytest.raises(UserError, match=r"\d+ of its \d+ tensors are absent, the first \S+; copy the folder again"):
        families.load(family, folder)


def test_a_single_absent_weight_is_refused(family: str, folder: Path) -> None:
    name = next(name for name in weights(folder) if name.endswith(("q_proj.weight", "c_attn.weight", "query.weight")))
    write(folder, {key: value for key, value in weights(folder).items() if key != name})
    with pytest.raises(UserError, match=r"1 of its \d+ tensors are absent"):
        families.load(family, folder)


def test_the_pooler_that_no_one_reads_may_be_absent(shelf: Path, tmp_path: Path) -> None:
    """The published vit-gpt2-image-captioning has none."""
    folder = shutil.copytree(shelf / "vision_encoder_decoder", tmp_path / "ved")
    kept = {name: value for name, value in weights(folder).items() if "pooler" not in name}
    assert len(kept) == len(weights(folder)) - 2
    write(folder, kept)
    families.load("vision_encoder_decoder", folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(family: str, folder: Path, value: float) -> None:
    tensors = weights(folder)
    name = next(name for name in tensors if name.endswith("weight") and tensors[name].ndim == 2)
    tensors[name].view(-1)[-1] = value
    write(folder, tensors)
    with pytest.raises(UserError, match=r"1 of its tensors hold numbers that are infinite or NaN, the first \S+"):
        families.load(family, folder)


def test_a_tokenizer_with_more_tokens_than_the_network_is_refused(family: str, folder: Path) -> None:
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(folder, trust_remote_code=False) if family != "clipcap" else None
    if other is None:
        from transformers import PreTrainedTokenizerFast

        other = PreTrainedTokenizerFast.from_pretrained(folder)
    other.add_tokens([f"word{number}" for number in range(300)])
    other.save_pretrained(folder)
    with pytest.raises(UserError, match=r"its tokenizer has a token number \d+, and its network has embeddings of \d+"):
        families.load(family, folder)


@pytest.mark.parametrize("damage", [cut, empty, garbage, no_weights], ids=lambda damage: damage.__name__)
def test_a_damaged_clip_is_one_line(damage: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tiny.write_clip(tmp_path / "run") / "clip"
    (folder / "open_clip_model.safetensors").rename(folder / "model.safetensors")
    damage(folder)
    if (folder / "model.safetensors").exists():
        (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"^CLIP local-dir:\S+ cannot be loaded: .+") as error:
        _ = FrozenClip(str(tmp_path / "run")).net
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_cfg": 3}', '{"model_cfg": {"embed_dim": "x"}}', "\x00"])
def test_a_clips_config_of_something_else_is_one_line(text: str, tmp_path: Path) -> None:
    folder = tiny.write_clip(tmp_path / "run") / "clip"
    (folder / "open_clip_config.json").write_text(text)
    with pytest.raises(UserError, match=r"^CLIP local-dir:\S+ cannot be loaded: .+"):
        _ = FrozenClip(str(tmp_path / "run")).net


def test_a_clip_with_weights_that_are_no_numbers_is_refused(tmp_path: Path) -> None:
    file = tiny.write_clip(tmp_path / "run") / "clip" / "open_clip_model.safetensors"
    tensors = load_file(file)
    tensors["visual.proj"][0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"1 of its tensors hold numbers .* the first visual\.proj"):
        _ = FrozenClip(str(tmp_path / "run")).net


@pytest.mark.parametrize(
    "config",
    ["", "[]", '{"width": 4}', '{"width": 4, "hidden": [3], "trust": 1}', '{"width": 4, "hidden": [-3]}', '"x"'],
)
def test_a_discriminators_config_of_something_else_is_one_line(config: str, tmp_path: Path) -> None:
    Discriminator(4).save(tmp_path / "discriminator")
    (tmp_path / "discriminator" / "config.json").write_text(config)
    with pytest.raises(UserError):
        Discriminator.load(str(tmp_path))


@pytest.mark.parametrize("damage", DAMAGES[:4], ids=lambda damage: damage.__name__)
def test_a_damaged_discriminator_is_one_line(damage: Callable[[Path], None], tmp_path: Path) -> None:
    Discriminator(4).save(tmp_path / "discriminator")
    damage(tmp_path / "discriminator")
    with pytest.raises(UserError, match=r"^discriminator \S+ cannot be loaded: "):
        Discriminator.load(str(tmp_path))


# --- Sizes


@pytest.mark.parametrize("side", [32, 64])
def test_a_captioner_knows_the_side_of_its_images(family: str, side: int, tmp_path: Path) -> None:
    """Nobody says it: Hugging Face's config does, or the processor."""
    families.WRITERS[family](tmp_path / family, side)
    options = {key: value for key, value in families.OPTIONS.get(family, {}).items() if key != "image_size"}
    captioner = families.ADAPTERS[family](init_from=str(tmp_path / family), **options)
    own = 128 if family == "qwen_vl" else side  # of any size, up to the 128 x 128 pixels that its processor leaves
    assert captioner.image_size == own
    captioner.encode(torch.rand(1, 3, own, own))


def test_an_untrained_captioner_knows_the_side_of_its_images_before_it_is_built() -> None:
    captioner = tiny.VisionEncoderDecoder(None, {**tiny.CONVOLUTIONAL, "image_size": 96}, tiny.DECODER)
    assert captioner.model is None
    assert captioner.image_size == 96


@pytest.mark.parametrize("size", [[32, 64], [], None, 0, "32", 1.5])
def test_images_that_are_no_squares_are_refused(size: Any) -> None:
    with pytest.raises(UserError, match="must see square ones"):
        square(size)


def test_a_pair_of_one_number_is_a_square() -> None:
    assert square([384, 384]) == square(384) == 384


@pytest.mark.parametrize("family", ["blip", "git", "vision_encoder_decoder"])
def test_a_network_of_oblong_images_is_one_line(family: str, shelf: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shelf / family, tmp_path / family)
    config = json.loads((folder / "config.json").read_text())
    config["encoder" if "encoder" in config else "vision_config"]["image_size"] = [32, 64]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        families.load(family, folder)


# --- Lengths


def spoken(captioner: HuggingFaceCaptioner, tokens: int) -> None:
    """A caption of so many tokens is drawn and scored."""
    memory = captioner.encode(torch.rand(2, 3, captioner.image_size, captioner.image_size))
    captioner.generate(memory, Sampler(method="greedy", max_tokens=min(tokens, 3)))
    words = torch.full((2, tokens), 7)
    captioner.score(memory, words, torch.ones_like(words, dtype=torch.bool), torch.arange(2))


def test_the_longest_caption_fits_and_one_more_token_does_not(family: str, shelf: Path) -> None:
    captioner = families.load(family, shelf / family)
    longest = captioner.longest
    if family in ("smolvlm", "qwen_vl"):
        assert longest is None  # their places are rotations
        captioner.allow("--model.decoder.max_tokens", 10**6)
        return
    spoken(captioner, longest)
    with pytest.raises((IndexError, RuntimeError)):
        spoken(captioner, longest + 1)
    with pytest.raises(UserError, match=f"max_tokens is {longest + 1}, but this captioner has positions"):
        captioner.allow("--model.decoder.max_tokens", longest + 1)
    with pytest.raises(UserError, match="max_tokens of a sampler or decoder is"):
        captioner.generate(captioner.encode(torch.rand(1, 3, 32, 32)), Sampler(max_tokens=longest + 1))


# --- Arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"temperature": 0.0}, "temperature .* is 0.0; it takes more than 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature .* is nan; it takes a finite number"),
        ({"temperature": float("inf")}, "temperature"),
        ({"max_tokens": 0}, "max_tokens of a sampler or decoder is 0; it takes 1 or more"),
        ({"max_tokens": -3}, "max_tokens"),
        ({"top_k": -1}, "top_k .* is -1; it takes 0 or more"),
        ({"top_p": 0.0}, r"top_p .* is 0.0; it takes a number from 0 \(not included\) to 1"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"beams": 0}, "beams"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram"),
        ({"samples": 0}, "samples of a sampler or decoder is 0; it takes 1 or more"),
        ({"samples": 2, "method": "greedy"}, "2 samples of each image by greedy"),
        ({"samples": 2, "method": "beam"}, "2 samples of each image by beam"),
        ({"guidance": float("nan"), "method": "greedy"}, "guidance .* finite"),
    ],
)
def test_a_sampler_out_of_range_is_one_line(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Sampler(**arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"targets": []}, r"lora\.targets"),
        ({"targets": [""]}, r"lora\.targets"),
        ({"r": 0}, r"lora\.r is 0; it takes 1 or more"),
        ({"r": -2}, r"lora\.r"),
        ({"alpha": 0.0}, r"lora\.alpha is 0\.0; it takes more than 0"),
        ({"alpha": float("nan")}, r"lora\.alpha"),
        ({"dropout": 1.0}, r"lora\.dropout is 1\.0; it takes a number from 0 to 1 \(not included\)"),
        ({"dropout": -0.1}, r"lora\.dropout"),
    ],
)
def test_adapters_out_of_range_are_one_line(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Lora(**{"targets": ["c_attn"], **arguments})


@pytest.mark.parametrize("tokens", [0, -5])
def test_ground_truth_of_no_tokens_is_one_line(family: str, tokens: int, shelf: Path) -> None:
    with pytest.raises(UserError, match=rf"--model\.captioner\.max_tokens is {tokens}; it takes 1 or more"):
        families.load(family, shelf / family, max_tokens=tokens)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FrozenClip(batch_size=0), "batch_size of a CLIP is 0"),
        (lambda: Discriminator(4, (-1,)), "hidden of a discriminator is -1"),
        (lambda: Discriminator(4, (3, 0)), "hidden of a discriminator is 0"),
        (lambda: Discriminator(0), "width of a discriminator is 0"),
        (lambda: ClipCap(prefix=0), r"--model\.captioner\.prefix is 0"),
        (lambda: ChatVLM(image_size=0), r"--model\.captioner\.image_size is 0"),
    ],
)
def test_sizes_out_of_range_are_one_line(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_a_discriminator_may_be_a_logistic_regression() -> None:
    assert Discriminator(4, ())(torch.rand(3, 4), torch.rand(3, 4)).shape == (3,)
