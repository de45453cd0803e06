"""A stranger's run folder, in every command that takes one: none of its code is run unless the user trusts it."""

import builtins
import json
from collections.abc import Sequence
from pathlib import Path

import families
import pytest
import tiny
import yaml
from PIL import Image

from distcap.cli import main

EVIL = """from pathlib import Path
from transformers import ProcessorMixin
Path({marker!r}).touch()
class Evil(ProcessorMixin):
    pass
"""
COMMANDS = {
    "caption": ["caption", "photos", "--run", "runs/rl", "--clip", "none", "--num_workers=0"],
    "caption, trusted": ["caption", "photos", "--run", "runs/rl", "--clip", "none", "--num_workers=0", "--trust=true"],
    "export": ["export", "runs/rl"],
    "export, trusted": ["export", "runs/rl", "--trust=true"],
    "demo": ["demo", "runs/rl", "--mle", "runs/rl"],
}


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smolvlm")
    families.smolvlm(folder / "captioner")
    tiny.write_clip(folder)
    return folder


@pytest.fixture
def marker(captioner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the code of runs/rl leaves behind. Its config says that it is trusted, and a user at a terminal says yes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "photos" / "a.png")
    run, marker = tmp_path / "runs" / "rl", tmp_path / "owned"
    run.mkdir(parents=True)
    for file in (captioner / "captioner").rglob("*"):
        (run / "captioner" / file.name).parent.mkdir(exist_ok=True)
        (run / "captioner" / file.name).write_bytes(file.read_bytes())
    (run / "captioner" / "evil.py").write_text(EVIL.format(marker=str(marker)))
    processor = run / "captioner" / "processor_config.json"
    evil = {"processor_class": "Evil", "auto_map": {"AutoProcessor": "evil.Evil"}}
    processor.write_text(json.dumps({**json.loads(processor.read_text()), **evil}))
    arguments = {"prompt": "describe", "image_size": 32, "processor": {"trust_remote_code": True}}
    model = {
        "captioner": {"class_path": "distcap.models.ChatVLM", "init_args": arguments},
        "clip": {"class_path": "distcap.models.FrozenClip", "init_args": {"model": str(captioner)}},
        "decoder": {"method": "greedy"},
    }
    config = {"run": "rl", "model": {"class_path": "distcap.stages.RL", "init_args": model}, "trainer": {}, "data": {}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return marker


def refused(args: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(list(args))
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("args", COMMANDS.values(), ids=COMMANDS)
def test_a_config_cannot_say_that_its_processor_is_trusted(
    args: list[str], marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does --trust: it is of the config's classes, and of nothing else."""
    pytest.importorskip("gradio") if args[0] == "demo" else None
    assert "processor has no option 'trust_remote_code' that may be set" in refused(args, capsys)
    assert not marker.exists()


@pytest.mark.parametrize("args", COMMANDS.values(), ids=COMMANDS)
def test_a_processor_that_is_not_trusted_is_refused_and_nobody_is_asked(
    args: list[str], marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio") if args[0] == "demo" else None
    config = Path("runs/rl/config.yaml")
    config.write_text(config.read_text().replace("trust_remote_code: true", "do_image_splitting: false"))
    assert refused(args, capsys).startswith("distcap: captioner runs/rl/captioner cannot be loaded: ")
    assert not marker.exists()


def test_a_stage_that_starts_from_such_a_folder_runs_none_of_its_code(
    marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captioner = {"class_path": "distcap.models.ChatVLM", "init_args": {"init_from": "runs/rl", "image_size": 32}}
    args = ["predict", "--config=mle.yaml", "--data=data/folder.yaml", "--data.folder=photos", "--trainer.logger=false"]
    args += [f"--model.captioner={json.dumps(captioner)}", "--trainer.callbacks=[]", "--trainer.accelerator=cpu"]
    assert "captioner runs/rl/captioner cannot be loaded: " in refused(args, capsys)
    assert not marker.exists()
