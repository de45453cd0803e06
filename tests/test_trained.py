"""What is read of a run to use it, and what is refused."""

import contextlib
import shutil
import sys
from pathlib import Path

import families
import pytest
import tiny
import torch

from distcap.models import Lora, Sampler, VisionEncoderDecoder
from distcap.trained import image_size, load_captioner, reward_clip, trained_from
from distcap.types import UserError

CLIP = {"class_path": "distcap.models.FrozenClip", "init_args": {"model": "runs/demo/clip", "prompt": "A photo of "}}


MINE = """from distcap.models import Sampler, VisionEncoderDecoder
class Mine(VisionEncoderDecoder):
    def __init__(self, init_from: str, sampler: Sampler | None = None) -> None:
        super().__init__(init_from)
        self.sampler = sampler
"""


def test_the_captioner_of_a_run_is_its_last_frozen(tmp_path: Path) -> None:
    captioner = load_captioner(tiny.write_run(tmp_path))
    torch.testing.assert_close(captioner.state_dict(), tiny.make_captioner().state_dict())
    assert isinstance(captioner, VisionEncoderDecoder)
    assert not captioner.training
    assert not any(parameter.requires_grad for parameter in captioner.parameters())


def test_a_run_of_the_command_line_is_read_as_it_was_written(workshop: Path) -> None:
    with contextlib.chdir(workshop):
        captioner = load_captioner("runs/demo/mle")
        assert isinstance(captioner, VisionEncoderDecoder)
        assert image_size(captioner, "runs/demo/mle") == 64
        assert reward_clip("runs/demo/mle").model == "runs/demo/clip"  # that of its evaluation
        assert trained_from("runs/demo/mle") is None


def test_a_folder_in_the_hugging_face_format_needs_no_config(tmp_path: Path) -> None:
    tiny.make_captioner().save_pretrained(tmp_path)
    assert isinstance(load_captioner(str(tmp_path)), VisionEncoderDecoder)
    assert reward_clip(str(tmp_path)) is None


def test_the_reward_clip_has_the_configs_prompt(tmp_path: Path) -> None:
    clip = reward_clip(tiny.write_run(tmp_path, clip=CLIP))
    assert (clip.model, clip.prompt) == ("runs/demo/clip", "A photo of ")


def test_neighbouring_runs_are_found_wherever_the_family_was_moved(tmp_path: Path) -> None:
    run = tmp_path / "kept" / "rl"
    tiny.write_run(run, clip=CLIP)
    for name in ("mle", "clip"):
        (tmp_path / "kept" / name).mkdir()
    assert trained_from(str(run)) == str(tmp_path / "kept" / "mle")
    assert reward_clip(str(run)).model == str(tmp_path / "kept" / "clip")


def test_a_name_on_the_hub_stays_a_name(tmp_path: Path) -> None:
    captioner = {"class_path": tiny.VED, "init_args": {"init_from": "nlpconnect/vit-gpt2-image-captioning"}}
    assert trained_from(tiny.write_run(tmp_path, captioner)) == "nlpconnect/vit-gpt2-image-captioning"


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "subprocess.Popen",
        "distcap.metrics.java.install_spice",
        "distcap.models_of_mine.Captioner",
        "distcap.models.clip.TemporaryDirectory",
        "distcap.models.clip.contextlib.suppress",
        "distcap.models.vision_encoder_decoder.partial",
        "distcap.models.clip._load",
        "VisionEncoderDecoder",
        "",
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_nothing_but_a_class_of_ours_is_made_of_a_config(path: str, nested: bool, tmp_path: Path) -> None:
    captioner: dict = {"class_path": path, "init_args": {}}
    if nested:
        captioner = {"class_path": tiny.VED, "init_args": {"encoder": [captioner]}}
    with pytest.raises(UserError, match="the config names '"):
        load_captioner(tiny.write_run(tmp_path, captioner))


def test_a_class_of_ours_that_is_no_captioner_is_refused(tmp_path: Path) -> None:
    run = tiny.write_run(tmp_path, {"class_path": "distcap.models.Sampler", "init_args": {}})
    with pytest.raises(UserError, match=r"Sampler cannot be made of its init_args|is no captioner"):
        load_captioner(run)
    with pytest.raises(UserError, match=r"Sampler is no CLIP"):
        reward_clip(tiny.write_run(tmp_path, clip={"class_path": "distcap.models.Sampler"}))


def test_a_tag_in_the_config_executes_nothing(tmp_path: Path) -> None:
    run = tiny.write_run(tmp_path)
    (tmp_path / "config.yaml").write_text(f"run: !!python/object/apply:os.mkdir [{tmp_path / 'owned'}]")
    with pytest.raises(UserError, match=r"config\.yaml: not a run's config"):
        load_captioner(run)
    assert not (tmp_path / "owned").exists()


def test_a_class_of_ones_own_is_made_with_its_dataclasses_where_its_author_is_trusted(
    tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "my_captioner.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    run = tiny.write_run(tmp_path / "run", {"class_path": "my_captioner.Mine", "init_args": {"sampler": {"beams": 3}}})
    with pytest.raises(UserError, match=r"'my_captioner\.Mine'.* say --trust true"):
        load_captioner(run)
    assert "my_captioner" not in sys.modules  # importing it would have run it
    assert load_captioner(run, trust=True).sampler == Sampler(beams=3)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[1, 2]", "it holds a list"),
        ("model: [", "not a run's config"),
        ("\x00", "not a run's config"),
        ("model: {init_args: {clip: {}}}", "its config.yaml names no captioner"),
    ],
)
def test_a_config_of_something_else_is_one_line(config: str, said: str, tmp_path: Path) -> None:
    run = tiny.write_run(tmp_path)
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(UserError, match=said):
        load_captioner(run)


def test_a_run_that_has_not_ended_is_said_so(tmp_path: Path) -> None:
    run = tiny.write_run(tmp_path)
    shutil.rmtree(tmp_path / "captioner")
    with pytest.raises(UserError, match="no captioner there; its training has not ended"):
        load_captioner(run)


def test_a_run_without_any_clip_has_none(tmp_path: Path) -> None:
    assert reward_clip(tiny.write_run(tmp_path, trainer={"callbacks": None})) is None
    assert reward_clip(tiny.write_run(tmp_path, trainer={"callbacks": ["odd", {"init_args": {}}]})) is None


@pytest.mark.parametrize("family", families.WRITERS)
def test_the_captioner_of_a_run_with_adapters_says_what_was_trained(family: str, shelf: Path, tmp_path: Path) -> None:
    """Its config gives `lora` as a plain mapping, and most families hand it on to their base as a keyword."""
    lora = {"targets": families.TARGETS[family], "r": 2, "base": "bfloat16"}
    trained = families.load(family, shelf / family, lora=Lora(**lora))
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 3e-3)
    trained.save_pretrained(tmp_path / "captioner")
    kind = families.ADAPTERS[family]
    node = {
        "class_path": f"distcap.models.{kind.__name__}",
        "init_args": {"init_from": str(shelf / family), "lora": lora},
    }
    node["init_args"] |= families.OPTIONS.get(family, {})
    found = load_captioner(tiny.write_run(tmp_path, node))
    tokens, mask = trained.tokenize(tiny.CAPTIONS[:2])
    images = torch.rand(2, 3, 32, 32)
    scores = [one.score(one.encode(images), tokens, mask, torch.arange(2)) for one in (found, trained)]
    assert torch.equal(*scores)


def test_an_exported_captioner_is_no_run(tmp_path: Path) -> None:
    run = tiny.write_run(tmp_path / "run")
    load_captioner(run).export(tmp_path / "exported", Sampler(method="greedy"))
    shutil.copy(Path(run) / "config.yaml", tmp_path / "exported" / "config.yaml")
    assert load_captioner(str(tmp_path / "exported")).trained
