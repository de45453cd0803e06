"""An exported captioner says the same where distcap is not installed; its card says how it was made and measured."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from distcap import models
from distcap.cli import main
from distcap.data.images import decode
from distcap.export.card import write_card
from distcap.export.trained import TrainedRun
from distcap.metrics.signature import decoder_line, signature
from distcap.models import Sampler, VisionEncoderDecoder
from distcap.types import UserError

SIZES = ((32, 32), (90, 40), (33, 71), (200, 150))
OTHERS: dict[str, dict[str, Any]] = {
    "blip": {},
    "git": {},
    "blip2": {},
    "smolvlm": {"image_size": 64},
    "qwen_vl": {"image_size": 64},
    "clipcap": {},
}
"""And what they are to be told of 64-pixel images."""
ENCODERS = {"vit": tiny.ENCODER, "convolutional": tiny.CONVOLUTIONAL}


def photos(folder: Path) -> None:
    """Noise of several sizes, a photo that was taken sideways, one in grey, one with a palette."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number, (width, height) in enumerate(SIZES):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        image = Image.fromarray(pixels.numpy())
        image.save(folder / f"{number}.png")
    image.convert("L").save(folder / "grey.png")
    image.convert("P").save(folder / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    image.save(folder / "sideways.jpg", exif=exif)


@pytest.fixture(scope="module")
def runs(workshop: Path) -> dict[str, Path]:
    """Runs, exported, of captioners with opinions: they learnt from one step at rate zero."""
    photos(workshop / "photos")
    found = {}
    for name, encoder in ENCODERS.items():
        source = workshop / f"captioner-{name}"
        tiny.make_captioner(encoder=encoder).save_pretrained(source)
        run = f"demo/strong-{name}"
        stage = ("--config", "demo/mle.yaml", f"--run={run}", "--model.decoder.max_tokens=12")
        learn = ("--trainer.max_steps=1", "--trainer.limit_train_batches=1", "--trainer.check_val_every_n_epoch=1")
        learn = (*learn, "--model.learning_rate=0", f"--model.captioner.init_from={source}")
        evaluation = f"--trainer.callbacks={json.dumps([tiny.EVALUATION])}"
        scenes = ("--data=scenes.yaml", "--data.image_size=32")
        tiny.run(workshop, "fit", *stage, *scenes, *learn, evaluation)
        folder = ("--data=ImageFolder", "--data.folder=photos", "--data.num_workers=0", "--data.image_size=32")
        trained = f"--model.captioner.init_from=runs/{run}"
        tiny.run(workshop, "predict", *stage, *folder, trained, "--trainer.callbacks=[]")
        tiny.run(workshop, "export", f"runs/{run}", "--license=mit")
        found[name] = workshop / "runs" / run
    return found


def test_other_families_say_the_same_in_plain_transformers(workshop: Path, runs: Any, tmp_path: Path) -> None:
    files = sorted(str(file) for file in (workshop / "photos").iterdir())
    images = torch.stack([decode(file, 64) for file in files]) / 255
    code, expected = f"import json\nfiles = {files!r}\n", []
    for name, told in OTHERS.items():
        families.WRITERS[name](tmp_path / name, side=64)
        captioner = families.load(name, tmp_path / name, **told)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in captioner.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.4)
        decoder = Sampler(method="beam", beams=3, max_tokens=9)
        folder = tmp_path / f"{name}-exported"
        usage = captioner.export(folder, decoder)
        tokens, mask, _ = captioner.generate(captioner.encode(images), decoder)
        expected.append(captioner.detokenize(tokens, mask))
        code += f"folder = {str(folder)!r}\n{usage}\nprint(json.dumps(captions))\n"
    assert [json.loads(line) for line in printed(code, tmp_path)] == expected
    assert all(len(set(captions)) > 1 for captions in expected)


def test_what_transformers_alone_cannot_do_is_refused(tmp_path: Path) -> None:
    families.WRITERS["blip2"](tmp_path / "blip2", side=64)
    with pytest.raises(UserError, match="go on from a prompt"):
        models.Blip2(str(tmp_path / "blip2"), prompt="a").export(tmp_path / "exported", Sampler(method="greedy"))


@pytest.fixture(params=ENCODERS)
def run(request: pytest.FixtureRequest, runs: dict[str, Path]) -> Path:
    return runs[request.param]


def snippet(export: Path, files: list[str]) -> str:
    """The card's Python code, on these files."""
    [code] = re.findall(r"```python\n(.*?)```", (export / "README.md").read_text(), re.DOTALL)
    assert '["photo.jpg"]' in code
    return code.replace('["photo.jpg"]', repr(files))


def printed(code: str, folder: Path) -> list[str]:
    """The lines that Python code prints in a process that has no distcap and no network."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", f"import sys; sys.modules['distcap'] = None\n{code}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_plain_transformers_gives_the_runs_captions_where_distcap_is_not_installed(
    runs: dict[str, Path], workshop: Path, tmp_path: Path
) -> None:
    code, expected = "import json, os\n", []
    for run in runs.values():
        rows = json.loads((run / "captions_test.json").read_text()) + json.loads((run / "predictions.json").read_text())
        card = snippet(run / "export", [str(workshop / row["file"]) for row in rows])
        code += f"os.chdir({str(run)!r})\n{card}\nprint(json.dumps(captions))\n"
        expected.append([row["caption"] for row in rows])
    assert [json.loads(line) for line in printed(code, tmp_path)[1::2]] == expected
    for captions in expected:
        assert len(captions) == 8 + len(SIZES) + 3
        assert len(set(captions)) > 2  # a captioner that says one thing of everything would prove nothing


def test_the_decoding_rules_are_the_runs_and_no_others(run: Path) -> None:
    rules = json.loads((run / "export" / "generation_config.json").read_text())
    del rules["transformers_version"]
    tokens = {"bos_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    one = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "no_repeat_ngram_size": 0}
    assert rules == {**tokens, **one, "max_new_tokens": 12, "use_cache": True}


def test_code_is_shipped_only_with_a_model_that_transformers_lacks(run: Path) -> None:
    convolutional = run.name.endswith("convolutional")
    assert bool(list((run / "export").glob("*.py"))) == convolutional
    assert ("trust_remote_code=True" in (run / "export" / "README.md").read_text()) == convolutional


def test_an_exported_captioner_can_be_trained_on(run: Path) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, again = (VisionEncoderDecoder(str(folder)).eval() for folder in (run, run / "export"))
    tokens, mask = first.tokenize(tiny.CAPTIONS[:2])
    index = torch.arange(2)
    with torch.no_grad():
        scores = [one.score(one.encode(images), tokens, mask, index) for one in (first, again)]
    torch.testing.assert_close(scores[0], scores[1], atol=0, rtol=0)


def test_the_card_carries_the_measured_metrics_where_the_hub_looks_for_them(run: Path) -> None:
    measured = json.loads((run / "metrics.json").read_text())
    card = ModelCard.load(run / "export" / "README.md")
    results = {one.metric_type: one for one in card.data.eval_results}
    assert {name: one.metric_value for name, one in results.items()} == measured["test"]
    assert {(one.dataset_type, one.dataset_split) for one in results.values()} == {("Scenes", "test")}
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-to-text", "transformers")
    assert card.data.license == "mit"
    assert f"| cider | {measured['val']['cider']:.4g} | {measured['test']['cider']:.4g} |" in card.text


def test_the_card_says_how_the_metrics_were_computed(run: Path) -> None:
    text = (run / "export" / "README.md").read_text()
    how = json.loads((run / "scores_test.json").read_text())["signature"]
    assert (how["images"], how["references"]) == ("8", "40")
    for key, value in how.items():
        assert f"{key}: {value}" in text
    assert "cider: CIDEr-D, n=4, sigma=6, document frequencies of these references" in text
    assert "meteor: not measured | spice: not measured" in text
    assert "runs/demo/judge" in text
    assert "NOT decoded" not in text


def test_the_config_lies_beside_the_card(run: Path) -> None:
    assert (run / "export" / "config.yaml").read_text() == (run / "config.yaml").read_text()


def said(capsys: pytest.CaptureFixture[str], folder: Path, *args: str) -> str:
    """The one line of an export that fails."""
    capsys.readouterr()
    with contextlib.chdir(folder), pytest.raises(SystemExit) as stop:
        main(["export", *args])
    line = capsys.readouterr().err.splitlines()[-1]  # transformers shows a bar when it loads
    assert stop.value.code == 2
    assert line.startswith("distcap: ")
    return line


def copied(workshop: Path, to: Path, *leave_out: str) -> Path:
    """A run without some of what it left."""
    source = workshop / "runs" / "demo" / "mle"
    for file in (path for path in source.rglob("*") if path.is_file()):
        relative = file.relative_to(source)
        if relative.parts[0] not in (*leave_out, "checkpoints"):
            (to / relative).parent.mkdir(parents=True, exist_ok=True)
            (to / relative).write_bytes(file.read_bytes())
    return to


def test_a_run_that_was_not_measured_is_exported_with_a_warning_and_a_card_that_says_so(
    workshop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied(workshop, tmp_path / "run", "metrics.json")
    main(["export", str(run), "--output", str(tmp_path / "shared" / "mine")])
    assert "no metrics.json" in caplog.text
    card = ModelCard.load(tmp_path / "shared" / "mine" / "README.md")
    assert card.data.eval_results is None
    assert card.data.license is None
    assert "Nothing: this captioner was not evaluated" in card.text
    assert 'folder, files = "mine", ["photo.jpg"]' in card.text


@pytest.mark.parametrize(
    ("leave_out", "problem"),
    [("config.yaml", "no run there"), ("captioner", "holds no captioner, its stage is MLE")],
)
def test_a_run_that_was_not_trained_to_the_end_is_one_line(
    leave_out: str, problem: str, workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(workshop, tmp_path / "run", leave_out)
    assert problem in said(capsys, workshop, str(run))


def test_a_run_without_a_captioner_is_one_line(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "its stage is TrainDiscriminator" in said(capsys, workshop, "runs/demo/discriminator")


def test_a_folder_in_use_is_left_alone(workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert "is there already" in said(capsys, workshop, "runs/demo/mle", "--output", str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_rules_that_transformers_lacks_are_one_line_and_leave_no_folder(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(workshop, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["decoder"]["guidance"] = 1.5
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "guidance 1.5" in said(capsys, workshop, str(run))
    assert not (run / "export").exists()


def test_metrics_of_captions_that_were_decoded_otherwise_are_told_apart(
    workshop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied(workshop, tmp_path / "run")
    how = signature("Scenes", "test", {1: ["a dog"]}, Sampler(method="beam"))
    (run / "metrics.json").write_text(json.dumps({"test": {"cider": 1.0}}))
    (run / "scores_test.json").write_text(json.dumps({"image_ids": [1], "scores": {}, "signature": how}))
    main(["export", str(run)])
    assert "decoded otherwise" in caplog.text
    assert "NOT decoded as in this folder: method=greedy" in (run / "export" / "README.md").read_text()


def part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"distcap.{name}", "init_args": arguments}


def rl(folder: Path, **captioner: Any) -> TrainedRun:
    """A run of the rl stage that was measured by an older distcap and warned of."""
    stage = {
        "captioner": part("models.VisionEncoderDecoder", **captioner),
        "rewards": {"likeness": part("rewards.ClipSimilarity", weight=0.25)},
        "objective": {"wtf": part("objectives.WeightedTeacherForcing", weight=0.5)},
        "baseline": part("baselines.Greedy"),
        "sampler": {"method": "multinomial", "samples": 4},
        "learning_rate": 0.125,
    }
    config = {"model": part("stages.RL", **stage), "data": part("data.Scenes", root="x"), "trainer": {"max_steps": 7}}
    return TrainedRun(folder, config, {"test": {"cider": 1.5, "meteor": 0.25}}, {}, ["Step 3: it repeats itself."])


def test_the_card_states_the_recipe_and_what_was_warned_of(tmp_path: Path) -> None:
    write_card(tmp_path, rl(tmp_path, init_from=None), Sampler(method="greedy"), "captions = []", "image-to-text", None)
    text = (tmp_path / "README.md").read_text()
    for line in (
        "stage: RL, learning_rate=0.125",
        "reward `likeness`: ClipSimilarity(weight=0.25)",
        "objective `wtf`: WeightedTeacherForcing(weight=0.5)",
        "baseline: Greedy()",
        "sampled captions: method=multinomial, samples=4",
        "trainer: max_steps=7",
        "- Step 3: it repeats itself.",
        "test: not recorded",
    ):
        assert line in text


def test_the_card_names_the_model_that_training_began_with_through_all_runs(tmp_path: Path) -> None:
    first = tmp_path / "mle"
    first.mkdir()
    captioner = part("models.VisionEncoderDecoder", init_from="nlpconnect/vit-gpt2-image-captioning")
    (first / "config.yaml").write_text(yaml.safe_dump({"model": part("stages.MLE", captioner=captioner)}))
    assert rl(tmp_path, init_from=str(first)).base_model() == "nlpconnect/vit-gpt2-image-captioning"
    for unknown in (None, "runs/gone", str(tmp_path / "gone")):
        assert rl(tmp_path, init_from=unknown).base_model() is None


def test_two_signatures_are_one_if_and_only_if_the_scores_can_be_compared() -> None:
    truth = {1: ["a dog", "a cat"], 2: ["a fish"]}
    first = signature("Scenes", "test", truth, Sampler(method="greedy"))
    assert first == signature("Scenes", "test", dict(reversed(truth.items())), Sampler(method="greedy"))
    assert (first["images"], first["references"]) == ("2", "3")
    assert first["decoder"] == decoder_line(Sampler(method="greedy"))
    for other in ({1: ["a dog", "a cat"], 2: ["a bird"]}, {1: ["a dog", "a cat"]}):
        found = signature("Scenes", "test", other, Sampler(method="greedy"))
        assert found["references_sha256"] != first["references_sha256"]
