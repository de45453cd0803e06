"""What the fuzz damages: healthy files and commands, small enough to be used ten thousand times."""

import io
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from random import Random

import photos
import tiny
import torch
import yaml

from distcap.cli import main
from distcap.models import FrozenClip

Work = Callable[[Random], object]

READERS, LINES, FOLDERS = "readers", "command lines", "run folders"


@dataclass(frozen=True)
class Subject:
    """One kind of input.

    Args:
        name: for people.
        group: of the table.
        share: of the cases, in thousandths.
        needs: names in the desk that the case has copies of; the CLIPs are large, and linked unless named here.
        targets: patterns of the files among them of which one is damaged; of none, the work has its own damage.
        work: uses them, in the case's folder.
    """

    name: str
    group: str
    share: int
    needs: tuple[str, ...]
    targets: tuple[str, ...]
    work: Work


SMALL = {
    "max_steps": 1, "max_epochs": -1, "accelerator": "cpu", "precision": "32-true", "log_every_n_steps": 1,
    "enable_progress_bar": False, "enable_model_summary": False, "callbacks": [],
    "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": ".", "version": ""}},
}  # fmt: skip
CLIP = {"class_path": "distcap.models.FrozenClip", "init_args": {"model": "runs/demo/clip"}}
WATCH = {"class_path": "distcap.callbacks.HackingWatch"}
DATA = {
    "class_path": "distcap.data.ImageFolder",
    "init_args": {"folder": "photos", "image_size": 32, "batch_size": 4, "num_workers": 0},
}
DECODER = {"method": "greedy", "max_tokens": 6}
CAPTIONER = {"class_path": tiny.VED, "init_args": {"init_from": "runs/demo/base"}}
MLE = {"class_path": "distcap.stages.MLE", "init_args": {"captioner": CAPTIONER, "decoder": DECODER}}
RL = {
    "class_path": "distcap.stages.RL",
    "init_args": {
        "captioner": {"class_path": tiny.VED, "init_args": {"init_from": "runs/demo/mle"}},
        "clip": CLIP,
        "sampler": {"method": "multinomial", "samples": 2, "max_tokens": 6},
        "decoder": DECODER,
        "ground_truth_per_image": 2,
        "rewards": {"contrastive": {"class_path": "distcap.rewards.Contrastive", "init_args": {"weight": 1.0}}},
        "baseline": {"class_path": "distcap.baselines.LeaveOneOut"},
        "objective": {"policy_gradient": {"class_path": "distcap.objectives.PolicyGradient"}},
    },
}
CONFIGS = {
    "mle": {"trainer": {**SMALL, "callbacks": [tiny.EVALUATION]}, "data": DATA, "model": MLE},
    "rl": {"trainer": {**SMALL, "callbacks": [WATCH, tiny.EVALUATION]}, "data": DATA, "model": RL},
}
IMAGES = 12


def lay_desk(desk: Path) -> None:
    """Everything healthy: CLIPs, a captioner, runs of both stages, photos, annotations, shards, an archive, a store."""
    demo = desk / "runs" / "demo"
    for seed, name in enumerate(("clip", "judge")):
        tiny.write_clip(demo / name, seed)
    tiny.make_captioner().save_pretrained(demo / "base")
    (desk / "photos").mkdir()
    rows, karpathy = [], []
    for number in range(IMAGES):
        file, split = f"{number:02}.jpg", "train" if number < 8 else "val" if number < 10 else "test"
        (desk / "photos" / file).write_bytes(photos.turned(1 + number % 8)(number))
        captions = [tiny.CAPTIONS[number % 5], f"a bar at {number}"]
        rows.append({"file_name": file, "captions": captions, "split": split})
        karpathy.append(
            {"cocoid": number, "filename": file, "split": split, "sentences": [{"raw": text} for text in captions]}
        )
    (desk / "photos" / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    _write_others(desk, rows, karpathy)
    for name, config in CONFIGS.items():
        (desk / f"{name}.yaml").write_text(yaml.safe_dump(config))
        tiny.run(desk, "fit", "--config", f"{name}.yaml", "--run", f"demo/{name}", "--test_after_fit", "true")
    tiny.run(desk, "caption", "photos", "--run", "runs/demo/rl", "--num_workers", "0")
    (desk / "captions.jsonl").unlink()
    _write_stores(desk)


def _write_others(desk: Path, rows: list, karpathy: list) -> None:
    (desk / "rows").mkdir()
    lines = ["file_name,text,split", *(f'{row["file_name"]},"{row["captions"][0]}",{row["split"]}' for row in rows)]
    (desk / "rows" / "captions.csv").write_text("\n".join(lines) + "\n")
    (desk / "annotations").mkdir()
    (desk / "annotations" / "karpathy.json").write_text(json.dumps({"images": karpathy}))
    coco = {
        "images": [{"id": one["cocoid"], "file_name": one["filename"]} for one in karpathy],
        "annotations": [{"image_id": one["cocoid"], "caption": "a bar"} for one in karpathy],
    }
    (desk / "annotations" / "coco.json").write_text(json.dumps(coco))
    (desk / "shards").mkdir()
    with tarfile.open(desk / "shards" / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            for name, content in (
                (f"a/{row['file_name']}", (desk / "photos" / row["file_name"]).read_bytes()),
                (f"a/{row['file_name'][:2]}.txt", row["captions"][0].encode()),
                (f"b/{row['file_name']}", (desk / "photos" / row["file_name"]).read_bytes()),
                (f"b/{row['file_name'][:2]}.json", json.dumps({"captions": row["captions"]}).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (desk / "archive").mkdir()
    with zipfile.ZipFile(desk / "archive" / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for row in rows[:3]:
            packed.write(desk / "photos" / row["file_name"], f"images/{row['file_name']}")
    (desk / "pictures").mkdir()
    for name, write in (photos.READABLE | photos.BROKEN).items():
        (desk / "pictures" / name).write_bytes(write(2))


def _write_stores(desk: Path) -> None:
    from distcap.caption.unfinished import Unfinished
    from distcap.models import Discriminator, EmbeddingStore

    torch.manual_seed(0)
    Discriminator(16, hidden=(8,)).save(desk / "runs" / "demo" / "discriminator" / "discriminator")
    EmbeddingStore.build(desk / "store", _KEYS, _embed, batch_size=2, title="")
    with chdir(desk):
        unfinished = Unfinished(Path("out.part"), {"run": "x", "seed": 0})
        unfinished.add({Path(f"photos/{n:02}.jpg"): ["a bar"] for n in range(6)}, {Path("photos/06.jpg"): "broken"})
    (desk / "steps").mkdir()
    (desk / "steps" / "seconds.json").write_text('{"clip": 1.5, "mle": 2.0}')
    (desk / "steps" / "demo.json").write_text('{"seed": 0, "size": 1.0}')
    from distcap.records import pack

    for name in ("mle", "rl"):
        shutil.copytree(desk / "runs" / "demo" / name, desk / "kept" / name, ignore=shutil.ignore_patterns("*.ckpt"))
        (desk / "kept" / name / "seconds.json").write_text('{"train": 1.0, "made_by": "x", "began_from": ""}')
    pack(desk / "kept", desk / "records" / "seed-0.tar.xz")
    seed = desk / "table" / "seed-0"
    for name in ("mle", "distcap"):
        for file in ("metrics.json", "scores_test.json", "captions_test.json", "health.json", "metrics.csv"):
            (seed / name).mkdir(parents=True, exist_ok=True)
            if (desk / "runs" / "demo" / "rl" / file).exists():
                shutil.copy(desk / "runs" / "demo" / "rl" / file, seed / name / file)
        (seed / name / "seconds.json").write_text('{"train": 1.0, "made_by": "x", "began_from": ""}')
    systems = [{"name": n, "title": n, "family": "the method", "paper": "", "command": ""} for n in ("mle", "distcap")]
    (desk / "table" / "systems.json").write_text(json.dumps(systems))


_KEYS = {f"key {number}": "1" for number in range(6)}


def _embed(keys: list[str]) -> torch.Tensor:
    return torch.ones(len(keys), 4) * torch.tensor([[float(key[-1])] for key in keys])


# Readers: what is in the case's folder is read as distcap's own modules read it.


def see(rng: Random) -> None:
    """The captioner's pixels and CLIP's, of all that is in pictures/."""
    from distcap.data import ImageFolder
    from distcap.types import UserError

    for item in range(len(found := ImageFolder("pictures", image_size=32, on_error="skip").dataset("predict"))):
        found[item]
        try:
            _clip().embed_images([found.paths[item]])
        except UserError as error:
            refused = error
    if "refused" in locals():
        raise refused


_CLIPS: dict[str, FrozenClip] = {}


def _clip() -> FrozenClip:
    return _CLIPS.setdefault("", FrozenClip(str(Path("runs/demo/clip").resolve())))


def read_annotations(rng: Random) -> None:
    from distcap.data import CocoCaptions

    if Path("annotations/karpathy.json").exists():
        CocoCaptions("annotations/karpathy.json", "photos", image_size=32, num_workers=0).setup("fit")
    splits = {"train": "annotations/coco.json", "val": "annotations/coco.json"}
    if Path("annotations/coco.json").exists():
        CocoCaptions(splits, "photos", image_size=32, num_workers=0).setup("fit")


def read_rows(rng: Random) -> None:
    from distcap.data import ImageFolder

    rows = "rows/captions.csv" if Path("rows").exists() else None
    data = ImageFolder("photos", captions=rows, image_size=32, batch_size=4, num_workers=0)
    data.setup("fit")
    data.entries("train")
    data.references("train")


def read_shards(rng: Random) -> None:
    from distcap.data import CocoCaptions, Shards

    evaluation = CocoCaptions("annotations/karpathy.json", "photos", image_size=32, num_workers=0)
    data = Shards("shards/0.tar", evaluation, image_size=32, batch_size=4, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    for _ in data.train_dataloader():
        pass


def unpack_zip(rng: Random) -> None:
    from distcap.data.archives import unpack

    unpack(Path("archive/a.zip"), Path("unpacked"), [f"images/{number:02}.jpg" for number in range(3)])


def unpack_records(rng: Random) -> None:
    from distcap.records import unpack

    unpack(Path("records/seed-0.tar.xz"), Path("unpacked"))


def load_captioner(rng: Random) -> None:
    from distcap.models import Sampler
    from distcap.trained import load_captioner, reward_clip

    captioner = load_captioner("runs/demo/rl")
    captioner.generate(captioner.encode(torch.rand(2, 3, 32, 32)), Sampler(method="greedy", max_tokens=4))
    reward_clip("runs/demo/rl")


def load_clip(rng: Random) -> None:
    clip = FrozenClip("runs/demo/clip")
    clip.embed_captions(["a bar"])
    clip.embed_images([Path("photos/00.jpg")])


def load_discriminator(rng: Random) -> None:
    from distcap.models import Discriminator

    Discriminator.load("runs/demo/discriminator")(torch.rand(2, 16), torch.rand(2, 16))


def read_store(rng: Random) -> None:
    from distcap.models import EmbeddingStore

    EmbeddingStore.build(Path("store"), {**_KEYS, "key 9": "1"}, _embed, batch_size=2, title="")[list(_KEYS)]


def go_on(rng: Random) -> None:
    from distcap.caption.unfinished import Unfinished

    files = [Path(f"photos/{number:02}.jpg") for number in range(7)]
    unfinished = Unfinished(Path("out.part"), {"run": "x", "seed": 0})
    unfinished.add({file: ["a bar"] for file in files if not unfinished.knows([file])}, {})
    unfinished.captions(files), unfinished.broken(files), unfinished.count(files)


def walk_on(rng: Random) -> None:
    from distcap.walk import Stride, claim, walk

    claim(Path("steps"), {"seed": 0, "size": 1.0}, "demo")
    walk([Stride(name, "", lambda: None) for name in ("clip", "mle", "rl")], Path("steps/seconds.json"))


def report_table(rng: Random) -> None:
    from distcap.report.ablation import ablation_report

    ablation_report(Path("table"))


def report_runs(rng: Random) -> None:
    main(["report", "runs/demo", "--images", "3"])


def export(rng: Random) -> None:
    main(["export", "runs/demo/rl"])


def caption(rng: Random) -> None:
    main(["caption", "photos", "--run", "runs/demo/rl", "--num_workers", "0", "--output", "out"])


def measure(rng: Random) -> None:
    """test or fit that goes on, or fit that begins at what was damaged."""
    stage = rng.choice(("mle", "rl"))
    last = f"runs/demo/{stage}/checkpoints/last.ckpt"
    config = rng.choice((f"{stage}.yaml", f"runs/demo/{stage}/config.yaml"))
    _neutral(Path(config))
    line = rng.choice(
        (
            ["test", "--config", config, "--run", f"demo/{stage}", "--ckpt_path", "last"],
            ["fit", "--config", config, "--run", f"demo/{stage}", "--ckpt_path", last, "--trainer.max_steps", "2"],
            ["fit", "--config", config, "--run", f"demo/{stage}", "--ckpt_path", last, "--trainer.max_steps", "2"],
            ["fit", "--config", "rl.yaml", "--run", "demo/new"],
            ["predict", "--config", config, "--run", f"demo/{stage}", "--ckpt_path", last],
        )
    )
    main(line)


def _neutral(config: Path) -> None:
    """One process, whatever a damaged config says: else the fuzz starts hundreds, or itself."""
    import re

    if config.is_file():
        text = config.read_bytes()
        text = re.sub(rb"(num_workers|devices|num_nodes|workers)(['\"]?:)[^\n,}]*", rb"\1\2 0", text)
        text = re.sub(rb"(strategy['\"]?:)[^\n,}]*", rb"\1 auto", text)
        text = re.sub(rb"(devices['\"]?:) 0", rb"\1 1", text)
        text = re.sub(rb"(num_nodes['\"]?:) 0", rb"\1 1", text)
        text = re.sub(rb"(max_steps['\"]?:)[^\n,}]*", rb"\1 1", text)
        config.write_bytes(text)


def configured(rng: Random) -> None:
    """A damaged config on the command line."""
    for file in Path().glob("*.yaml"):
        _neutral(file)
        main(["fit", "--config", str(file), "--run", "new/run"])


# Command lines, of which words are damaged.

VALUES = ("", "0", "-1", "nan", "inf", "1e9", "2.5", "x", "null", "[]", "{}", "true", "[1,", "{a: b}", "'", "é",
          "photos", "photos/00.jpg", "photos/captions.jsonl", "mle.yaml", "runs/demo/mle", "runs/demo/clip", "nowhere",
          "runs/demo/mle/checkpoints/last.ckpt", "a/b/c", "@mle", "@nowhere", "$HOME", "--help", "-1e309",
          "9" * 30)  # fmt: skip
BOUNDED = tuple(value for value in VALUES if value not in ("1e9", "9" * 30, "inf", "null", "-1e309", "--help"))
"""For what may rightly be as large as one likes, and would take as long."""
WHOLE = ("0", "-1", "1", "2", "3", "7", "100", "-9")
FRACTIONS = ("0.0", "-1.0", "nan", "inf", "-inf", "1e-300", "1e30", "0.5", "2.0")
LARGE = {
    "--captions", "--best_of", "--trainer.max_steps", "--trainer.max_epochs", "--num_workers", "--data.num_workers",
    "--model.updates_per_rollout", "--model.sampler.samples", "--size", "--images",
}  # fmt: skip

CAPTION = {
    "--run": "runs/demo/rl", "--output": "o.jsonl", "--format": "csv", "--captions": "2", "--best_of": "3",
    "--sampler": "greedy", "--clip": "runs/demo/clip", "--pretrained": "openai",
    "--captioner": "VisionEncoderDecoder", "--batch_size": "4",
    "--num_workers": "0", "--seed": "0", "--overwrite": "true", "--trust": "false",
}  # fmt: skip
PLAIN: dict[str, tuple[list[str], dict[str, str]]] = {
    "caption": (["caption", "photos", "--num_workers", "0", "--run", "runs/demo/rl"], CAPTION),
    "report": (["report", "runs/demo"], {"--output": "r.html", "--images": "2", "--seed": "0"}),
    "export": (["export", "runs/demo/rl"], {"--output": "e", "--license": "mit", "--trust": "false"}),
    "shards": (
        ["prepare", "shards", "annotations/karpathy.json", "photos"],
        {"--split": "train", "--output": "packed", "--per_shard": "5"},
    ),
    "flickr30k": (["prepare", "flickr30k", "--archives", "archive", "--images", "photos"], {"--root": "data/f"}),
    "nocaps": (["prepare", "nocaps", "--archives", "annotations", "--images", "photos"], {"--root": "data/n"}),
    "configs": (["configs"], {"--x": "y"}),
    "quickstart": (["quickstart", "--size", "-1"], {"--seed": "-1", "--run": "photos"}),
    "reproduce": (
        ["reproduce", "--archives", "archive", "--root", "data/coco", "--images", "photos"],
        {"--seed": "0", "--overlay": "mle.yaml", "--overlays": '{"mle": "mle.yaml"}', "--run": "coco"},
    ),
    "ablation": (
        ["ablation", "--systems", "[nowhere]"],
        {"--seeds": "[0]", "--workers": "1", "--run": "a", "--docs": "d"},
    ),
}  # fmt: skip
ON_ALL = {
    "--data.batch_size": "4", "--data.eval_batch_size": "2", "--data.image_size": "32", "--data.limit": "8",
    "--data.seed": "1",
    "--data.val": "0.2", "--data.test": "0.2", "--data.on_error": "skip", "--data.cache": "true",
    "--data.group_size": "2",
    "--data.captions": "photos/captions.jsonl", "--data.folder": "photos", "--data.cache_dir": "cache",
    "--data": "ImageFolder",
    "--data.num_workers": "0", "--seed_everything": "3", "--trainer.precision": "bf16-mixed",
    "--trainer.accelerator": "cpu",
    "--trainer.max_steps": "1", "--trainer.max_epochs": "1", "--trainer.max_time": "00:00:00:05",
    "--trainer.gradient_clip_val": "1.0", "--trainer.accumulate_grad_batches": "2",
    "--trainer.val_check_interval": "1",
    "--trainer.check_val_every_n_epoch": "1", "--trainer.limit_train_batches": "1", "--trainer.log_every_n_steps": "1",
    "--trainer.limit_val_batches": "1", "--trainer.overfit_batches": "1", "--trainer.logger": "false",
    "--trainer.callbacks": "[]", "--trainer.enable_checkpointing": "false", "--trainer.fast_dev_run": "true",
    "--trainer.default_root_dir": "elsewhere", "--trainer.num_sanity_val_steps": "1", "--trainer.deterministic": "true",
    "--trainer.detect_anomaly": "true", "--trainer.profiler": "simple", "--trainer.benchmark": "false",
    "--ckpt_path": "last", "--run": "demo/again", "--config": "mle.yaml", "--test_after_fit": "true",
    "--checkpoint.every_n_train_steps": "1", "--checkpoint.save_top_k": "1", "--checkpoint.monitor": "train/loss",
    "--checkpoint.filename": "x", "--checkpoint.save_last": "true", "--dashboard.every": "1",
    "--model.learning_rate": "0.001", "--model.warmup_steps": "1", "--model.schedule": "linear",
    "--model.clip_gradient": "1.0", "--model.weight_decay": "0.1", "--model.decoder.method": "greedy",
    "--model.decoder.samples": "1", "--model.decoder.max_tokens": "5", "--model.decoder.beams": "2",
    "--model.decoder.no_repeat_ngram": "2", "--model.decoder.guidance": "1.5", "--model.decoder.temperature": "0.9",
    "--model.captioner.init_from": "runs/demo/base", "--model.captioner.freeze_encoder": "true",
    "--model.captioner.gradient_checkpointing": "true", "--model.captioner": "VisionEncoderDecoder",
    "--model.captioner.lora": "{targets: [c_attn], r: 2}",
}  # fmt: skip
STAGES: dict[str, dict[str, str]] = {
    "mle": {**ON_ALL, "--model.captions_per_image": "1", "--model.drop_image": "0.1"},
    "rl": {
        **ON_ALL, "--model.sampler.samples": "2", "--model.sampler.temperature": "0.9",
        "--model.sampler.max_tokens": "5",
        "--model.sampler.top_k": "3", "--model.sampler.top_p": "0.9", "--model.sampler.method": "multinomial",
        "--model.ground_truth_per_image": "2", "--model.normalise": "batch", "--model.updates_per_rollout": "1",
        "--model.health_every": "1", "--model.clip.model": "runs/demo/clip", "--model.clip.prompt": "x",
        "--model.clips": "{}",
        "--model.rewards": "{}", "--model.objective": "{}", "--model.baseline": "distcap.baselines.LeaveOneOut",
        "--model.clip.batch_size": "4", "--model.corpus": "null",
        "--model.rewards.contrastive.init_args.weight": "0.5",
        "--model.objective.policy_gradient.init_args.reduction": "sum",
    },
}  # fmt: skip


def strange(rng: Random, option: str, usual: str) -> str:
    """A value: often one of the right type that makes no sense, else the parser alone would be tried."""
    kind = rng.randrange(10)
    if kind == 0:
        return usual
    if kind <= 6 and usual.lstrip("-").isdigit():
        return rng.choice(WHOLE)
    if kind <= 6 and usual.replace(".", "").isdigit():
        return rng.choice(FRACTIONS)
    if kind <= 6 and usual in ("true", "false"):
        return rng.choice(("true", "false"))
    return rng.choice(BOUNDED if option in LARGE else VALUES)


def damaged_line(rng: Random, line: list[str], options: dict[str, str]) -> list[str]:
    """One to three options with strange values; sometimes a word lost, twice, or of another place."""
    line = list(line)
    for option in rng.sample(sorted(options), min(len(options), rng.choice((1, 1, 1, 2, 3)))):
        found = strange(rng, option, options[option])
        line += [f"{option}={found}"] if rng.random() < 0.7 else [option, found]
    change = rng.randrange(12)
    if change == 0:
        del line[rng.randrange(1, len(line))]
    elif change == 1:
        line.insert(rng.randrange(1, len(line) + 1), rng.choice((*BOUNDED, "--", "--x", "--x=1", "-h")))
    elif change == 2:
        line.append(line[-1])
    elif change == 3:
        place = rng.randrange(1, len(line))
        line[place] = line[place][:-1]
    return line


def plain_line(rng: Random) -> None:
    name = rng.choice((*PLAIN, *["caption"] * 6, *["report", "export", "shards"] * 2))
    line = damaged_line(rng, *PLAIN[name])
    print("distcap", *map(repr, line), file=sys.stdout)
    main(line)


def stage_line(rng: Random) -> None:
    stage = rng.choice(("mle", "rl"))
    command = rng.choice(("fit", "fit", "fit", "fit", "test", "validate", "predict"))
    last = [] if command == "fit" else ["--ckpt_path", "last"]
    line = [command, "--config", f"{stage}.yaml", "--run", f"demo/{stage if last else 'new'}", *last]
    line = damaged_line(rng, line, STAGES[stage])
    print("distcap", *map(repr, line), file=sys.stdout)
    main(line)


RUNS = ("runs/demo/mle", "runs/demo/rl")
ANNOTATIONS, DISCRIMINATOR = "annotations/karpathy.json", "runs/demo/discriminator"
LEFT = ("metrics.json", "scores_test.json", "captions_test.json", "health.json", "metrics.csv", "config.yaml")
WEIGHTS = ("runs/demo/rl/captioner/*", "runs/demo/rl/captioner/*.safetensors", "runs/demo/rl/captioner/config.json")
SUBJECTS = (
    Subject("images", READERS, 250, (), ("pictures/*",), see),
    Subject("Karpathy's annotations", READERS, 60, ("photos", ANNOTATIONS), ("annotations/*",), read_annotations),
    Subject(
        "COCO's annotations", READERS, 60, ("photos", "annotations/coco.json"), ("annotations/*",), read_annotations
    ),
    Subject("captions in JSONL", READERS, 60, ("photos",), ("photos/captions.jsonl",), read_rows),
    Subject("captions in CSV", READERS, 50, ("photos", "rows"), ("rows/*",), read_rows),
    Subject("shards", READERS, 70, ("photos", ANNOTATIONS, "shards"), ("shards/*",), read_shards),
    Subject("archives", READERS, 30, ("archive",), ("archive/*",), unpack_zip),
    Subject("records", READERS, 10, ("records",), ("records/*",), unpack_records),
    Subject("captioners", READERS, 60, ("runs/demo/rl",), (*WEIGHTS, "runs/demo/rl/config.yaml"), load_captioner),
    Subject("CLIPs", READERS, 30, ("photos/00.jpg", "runs/demo/clip"), ("runs/demo/clip/clip/*",), load_clip),
    Subject("discriminators", READERS, 30, (DISCRIMINATOR,), (f"{DISCRIMINATOR}/*/*",), load_discriminator),
    Subject("stores", READERS, 50, ("store",), ("store/values.f32", "store/index.jsonl"), read_store),
    Subject("unfinished captions", READERS, 45, ("photos", "out.part"), ("out.part/*",), go_on),
    Subject("steps", READERS, 25, ("steps",), ("steps/*",), walk_on),
    Subject("tables", READERS, 20, ("table",), ("table/*.json", "table/*/*/*"), report_table),
    Subject("configs", LINES, 15, ("mle.yaml", "photos", *RUNS, "runs/demo/base"), ("mle.yaml",), configured),
    Subject("plain commands", LINES, 45, ("*.yaml", "photos", *RUNS, "annotations", "archive"), (), plain_line),
    Subject("stages", LINES, 25, ("*.yaml", "photos", *RUNS, "runs/demo/base"), (), stage_line),
    Subject("report", FOLDERS, 20, ("photos", *RUNS), tuple(f"runs/demo/*/{name}" for name in LEFT), report_runs),
    Subject("export", FOLDERS, 15, RUNS, (*WEIGHTS, "runs/demo/rl/*.*"), export),
    Subject("caption", FOLDERS, 15, ("photos", *RUNS), (*WEIGHTS, "runs/demo/rl/config.yaml", "photos/*"), caption),
    Subject("test and resume", FOLDERS, 15, ("*.yaml", "photos", *RUNS, "runs/demo/base"),
            ("runs/demo/*/checkpoints/last.ckpt", "runs/demo/*/*.*", "runs/demo/*/captioner/*"), measure),
)  # fmt: skip
