"""Trained runs in use: a run's captioner, the CLIP that ranks its captions, and what it was trained from.

A config.yaml may be anybody's. It is read as data, and the only classes that it can name are those of distcap.models,
unless the user trusts it.
"""

import os
from dataclasses import is_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, get_args

from distcap.models import Captioner, FrozenClip
from distcap.models.loading import one_line
from distcap.run_files import read_yaml
from distcap.types import UserError

IMAGE_SIZE = 224
"""Of the pixels that a captioner sees, where neither it nor a config tells."""


def load_captioner(source: str, *, family: str = "VisionEncoderDecoder", trust: bool = False) -> Captioner:
    """A trained captioner, frozen and in eval mode.

    Args:
        source: a run folder, a folder in the Hugging Face format, or a name on its hub.
        family: the captioner's class in distcap.models, where it is not a run whose config.yaml tells it.
        trust: let the config name classes from outside distcap.models, which executes their code.

    Raises:
        UserError: there is no such captioner, or its config names what it must not.
    """
    node: dict[str, Any] = {"class_path": f"distcap.models.{family}"}
    if is_run(source):
        if not (Path(source) / "captioner").is_dir():
            raise UserError(f"{source}: no captioner there; its training has not ended, or it trained something else")
        node = _captioner(source)
    found = _build({**node, "init_args": {**(node.get("init_args") or {}), "init_from": source}}, trust)
    if not isinstance(found, Captioner):
        raise UserError(f"{source}: {node['class_path']} is no captioner")
    return found.requires_grad_(False).eval()


def reward_clip(run: str, *, trust: bool = False) -> FrozenClip | None:
    """The CLIP that rewarded a run's captioner; of a run without rewards, the one that evaluates it. None if none did.

    Raises:
        UserError: the run's config names what it must not.
    """
    if not is_run(run):
        return None
    config = read_config(run)
    callbacks = _at(config, "trainer", "callbacks")
    evaluations = [one for one in callbacks if isinstance(one, dict)] if isinstance(callbacks, list) else []
    nodes = [_at(one, "init_args", "clip") for one in [_at(config, "model"), *evaluations]]
    node = next((node for node in nodes if isinstance(node, dict)), None)
    if node is None:
        return None
    found = _build(_from_here(run, config, node), trust)
    if not isinstance(found, FrozenClip):
        raise UserError(f"{run}: {node.get('class_path')} is no CLIP")
    return found


def trained_from(run: str) -> str | None:
    """Where a run's captioner came from, as a source of `load_captioner`; None if it was untrained."""
    init_from = _at(_captioner(run), "init_args", "init_from")
    return None if init_from is None else str(init_from)


def image_size(captioner: Captioner, source: str) -> int:
    """Height and width of the pixels that a source's captioner sees: by itself, or else by the data it learnt from."""
    if captioner.image_size is not None:
        return captioner.image_size
    found = _at(read_config(source), "data", "init_args", "image_size") if is_run(source) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else IMAGE_SIZE


def is_run(source: str) -> bool:
    """Whether a source is a run folder of `distcap fit`; an exported captioner, with its run's config, is none."""
    return (Path(source) / "config.yaml").is_file() and not (Path(source) / "config.json").is_file()


def read_config(run: str) -> dict[str, Any]:
    """A run's config.yaml, as data. Raises UserError if it is none."""
    file = Path(run) / "config.yaml"
    try:
        return read_yaml(file)
    except FileNotFoundError as error:
        raise UserError(f"{run} is no run folder: there is no {file}; `distcap fit` leaves one in runs/") from error


def _captioner(run: str) -> dict[str, Any]:
    config = read_config(run)
    node = _at(config, "model", "init_args", "captioner")
    if not isinstance(node, dict):
        raise UserError(f"{run}: its config.yaml names no captioner (model.init_args.captioner); name an mle or RL run")
    return _from_here(run, config, node)


def _at(config: Any, *keys: str) -> Any:
    """What stands at a path of keys; None where there is nothing."""
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _from_here(run: str, config: dict[str, Any], value: Any) -> Any:
    """A value of the config with the paths that were relative to where `distcap fit` ran relative to the run.

    So that a family of runs can be used from another folder, or moved.
    """
    if isinstance(value, list):
        return [_from_here(run, config, one) for one in value]
    if isinstance(value, dict):
        return {key: _from_here(run, config, one) for key, one in value.items()}
    if not isinstance(value, str) or not value or os.path.isabs(value):
        return value
    there = os.path.normpath(os.path.join(run, os.path.relpath(value, os.path.join("runs", str(config.get("run"))))))
    return there if os.path.exists(there) else value


def _build(node: Any, trust: bool) -> Any:
    """The object that a class_path and its init_args describe; any other value as it is."""
    if isinstance(node, list):
        return [_build(one, trust) for one in node]
    if not isinstance(node, dict):
        return node
    if "class_path" not in node:
        return {key: _build(value, trust) for key, value in node.items()}
    made = _class(str(node["class_path"]), trust)
    args = _build(node.get("init_args") or {}, trust)
    if not isinstance(args, dict):
        raise UserError(f"the config gives {node['class_path']} init_args that are a {type(args).__name__}")
    try:
        kinds = _kinds(made)
        return made(**{name: _typed(kinds.get(name), value) for name, value in args.items()})
    except UserError:
        raise
    except Exception as error:  # values of any kind stand in a config that was not written here
        raise UserError(f"{node['class_path']} cannot be made of its init_args: {one_line(error)}") from error


def _kinds(made: type) -> dict[str, Any]:
    """The types of a class's arguments, and of those that it hands on to its bases as keywords."""
    ours = [base for base in reversed(made.__mro__) if base.__module__.startswith("distcap.")]
    bases = [base for base in ours if "__init__" in vars(base)]
    signatures = [signature(one, eval_str=True).parameters for one in (*bases, made)]
    return {name: one.annotation for parameters in signatures for name, one in parameters.items()}


def _typed(kind: Any, value: Any) -> Any:
    """A dict that stands for a dataclass, for the command line writes those without their class_path."""
    dataclasses = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and is_dataclass(one)]
    return dataclasses[0](**value) if dataclasses and isinstance(value, dict) else value


def _class(path: str, trust: bool) -> type:
    module, _, name = path.rpartition(".")
    refused = UserError(
        f"the config names {path!r}, which is no class of distcap.models; "
        "if you trust its author and want that code to run, say --trust true"
    )
    if not trust and module.split(".")[:2] != ["distcap", "models"]:
        raise refused
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"the config names {path!r}, and there is no such class ({error})") from error
    # A module of distcap.models also holds what it imports, which is not ours to call.
    if not trust and not (isinstance(found, type) and found.__module__.startswith("distcap.models.")):
        raise refused
    return found
