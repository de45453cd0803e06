"""The model card of an exported captioner."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distcap import __version__
from distcap.export.trained import TrainedRun
from distcap.metrics.signature import decoder_line
from distcap.models import Sampler

TEMPLATE = Path(__file__).with_name("card.md.jinja")
PARTS = ("captioner", "decoder", "rewards", "objective", "baseline", "clip", "clips", "sampler")
"""Arguments of a stage that the card has a line or a table of their own for."""


def write_card(folder: Path, run: TrainedRun, decoder: Sampler, usage: str, task: str, license: str | None) -> None:
    """Write README.md: metadata as the Hugging Face hub wants them, and what a user should know.

    Args:
        folder: the exported folder; its name, and the code in it, are told.
        run: what was exported.
        decoder: how it decodes.
        usage: Python code that makes `captions` of `files`.
        task: as the hub names it.
        license: as the hub names it, if it is known.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        model_name=run.name,
        base_model=run.base_model(),
        license=license,
        library_name="transformers",
        pipeline_tag=task,
        tags=["image-captioning", "distcap"],
        eval_results=_results(run) or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=run.name,
        folder=folder.name,
        usage=usage.strip(),
        chat=task == "image-text-to-text",
        code=sorted(file.name for file in folder.glob("*.py")),
        base_model=run.base_model(),
        splits=list(run.metrics),
        rows=_rows(run),
        signatures={split: _line(run, split, decoder) for split in run.metrics},
        judges=_judges(run.config),
        stage=run.config["model"]["class_path"].rsplit(".", 1)[-1],
        rewards=_parts(run.stage.get("rewards")),
        objective=_parts(run.stage.get("objective")),
        clips=_parts(_read_clips(run.stage)),
        baseline=_short(run.stage.get("baseline")),
        sampler=_arguments(run.stage.get("sampler")),
        decoder=decoder_line(decoder),
        settings=_arguments({name: value for name, value in run.stage.items() if name not in PARTS}),
        data=_short(run.config.get("data")),
        trainer=_arguments(
            {k: run.config["trainer"].get(k) for k in ("max_epochs", "max_steps", "devices", "precision")}
        ),
        seed=run.config.get("seed_everything"),
        warnings=run.warnings,
        version=__version__,
    )
    card.save(folder / "README.md")


def _results(run: TrainedRun) -> list[Any]:
    """Of the test split if it was measured, in the form of the hub's model-index."""
    from huggingface_hub import EvalResult

    split = "test" if "test" in run.metrics else next(iter(run.metrics), "")
    name = run.signatures.get(split, {}).get("data") or _class(run.config["data"])
    return [
        EvalResult(
            task_type="image-to-text",
            task_name="Image captioning",
            dataset_type=name,
            dataset_name=name,
            dataset_split=split,
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in run.metrics.get(split, {}).items()
    ]


def _rows(run: TrainedRun) -> list[list[str]]:
    """Metric, and its value on each split."""
    names = dict.fromkeys(name for values in run.metrics.values() for name in values)
    return [
        [name, *(f"{values[name]:.4g}" if name in values else "" for values in run.metrics.values())] for name in names
    ]


def _line(run: TrainedRun, split: str, decoder: Sampler) -> str:
    """The signature of a split, and whether it is of captions as this folder decodes them."""
    known = run.signatures.get(split)
    if known is None:
        return "not recorded: an older distcap measured this"
    java = {
        name: f"{version} by pycocoevalcap" if name in run.metrics[split] else "not measured"
        for name, version in (("meteor", "1.5"), ("spice", "1.0"))
    }
    line = " | ".join(f"{key}: {value}" for key, value in {**known, **java}.items())
    same = known["decoder"] == decoder_line(decoder)
    return line if same else f"{line} | NOT decoded as in this folder: {decoder_line(decoder)}"


def _judges(config: Mapping[str, Any]) -> dict[str, str]:
    """Which CLIPs ranked the captions: "clip" and "judge" of the run's evaluation."""
    callbacks = config["trainer"].get("callbacks") or []
    found = [one for one in callbacks if isinstance(one, dict) and one["class_path"].endswith(".Evaluation")]
    clips = {name: found[0]["init_args"].get(name) for name in ("clip", "judge")} if found else {}
    return {name: _short(clip) for name, clip in clips.items() if clip}


def _read_clips(stage: Mapping[str, Any]) -> dict[str, Any]:
    """The reward CLIPs that rewards name; "" is the one of those that name none."""
    named = {(reward.get("init_args") or {}).get("clip") for reward in (stage.get("rewards") or {}).values()}
    clips = {
        "": stage.get("clip"),
        **{name: clip for name, clip in (stage.get("clips") or {}).items() if name in named},
    }
    return {name: clip for name, clip in clips.items() if clip}


def _class(spec: Any) -> str:
    return spec["class_path"].rsplit(".", 1)[-1]


def _short(spec: Any) -> str:
    """{class_path, init_args} -> Class(argument=value, ...)."""
    return f"{_class(spec)}({_arguments(spec.get('init_args'))})" if spec else ""


def _parts(specs: Any) -> dict[str, str]:
    return {name: _short(spec) for name, spec in (specs or {}).items()}


def _arguments(values: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in (values or {}).items() if value is not None)
