"""open_clip models by name or folder: their configs, tokenizers and weights read without running code."""

import contextlib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from distcap.models.loading import as_data, check_finite
from distcap.types import UserError


def source_of(model: str) -> str:
    """What open_clip knows a model by: its name, or its folder. Raises UserError where there is none."""
    for folder in (Path(model) / "clip", Path(model)):
        if (folder / "open_clip_config.json").is_file():
            return f"local-dir:{folder.resolve()}"
    if Path(model).exists() or model.startswith(("runs/", ".", "/")):
        raise UserError(
            f"{model}: no CLIP there (no clip/open_clip_config.json); train it with `distcap fit --config clip.yaml`"
        )
    return model


def _check_name(model: str, tag: str) -> None:
    """Raises UserError, with what is close, for a model or a tag that open_clip does not have."""
    import open_clip

    name = model.replace("/", "-")  # as OpenAI writes it
    models = open_clip.list_models()
    if name not in models:
        raise UserError(f"open_clip has no model {model}; {_close(name, models)}")
    if Path(tag).is_file() or open_clip.pretrained.is_pretrained_cfg(name, tag):
        return
    if "/" in tag or Path(tag).suffix:
        raise UserError(f"{tag}: no such file of weights for CLIP {model}; name one, or a tag of open_clip's")
    tags = open_clip.list_pretrained_tags_by_model(name)
    others = [other for other, its in open_clip.list_pretrained() if its == tag]
    elsewhere = f"; models that have it: {', '.join(others[:5])}" if others else ""
    raise UserError(f"CLIP {model} has no weights {tag}; {_close(tag, tags)}{elsewhere}")


def _close(name: str, names: Sequence[str]) -> str:
    """Names that resemble a wrong one, whatever their capitals; or else some that there are."""
    lower = {one.lower(): one for one in names}
    found = [lower[one] for one in get_close_matches(name.lower(), lower, n=5, cutoff=0.5)]
    return f"close to it: {', '.join(found)}" if found else f"there are {', '.join(names[:5]) or 'none'}"


TOKENIZING = {"additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token"}
"""Arguments of a tokenizer that a CLIP's config may name. Others can make Hugging Face's tokenizers run code."""


def _check_config(source: str) -> bool:
    """Whether the tokenizer of a folder, or of a name on the hub, is one of Hugging Face's.

    Raises:
        ValueError: its config asks for what a stranger's must not.
    """
    import open_clip

    config = open_clip.get_model_config(source)
    parts = ("text_cfg", "vision_cfg")
    if not isinstance(config, dict) or not all(isinstance(config.get(part), dict) for part in parts):
        raise ValueError("its open_clip_config.json has no model_cfg with a text_cfg and a vision_cfg")
    options = config["text_cfg"].get("tokenizer_kwargs") or {}
    if unknown := sorted(options.keys() - TOKENIZING):
        raise ValueError(
            f"its open_clip_config.json gives the tokenizer the argument {unknown[0]!r}, which distcap does not allow, "
            "for it could run code; take it out"
        )
    if ":" in (name := str(config["vision_cfg"].get("timm_model_name") or "")):
        raise ValueError(
            f"its open_clip_config.json has the timm_model_name {name!r}, which is not the name of a model"
        )
    return bool(config["text_cfg"].get("hf_tokenizer_name"))


OTHER_FORMATS = {".safetensors", ".npz", ".npy"}
"""Of files that are no pickles: open_clip's own affair."""
ARCHIVED = {"input_resolution", "context_length", "vocab_size"}
"""Numbers that OpenAI's archives keep among the weights; open_clip has them in its configs."""


@contextlib.contextmanager
def _weights(pretrained: str | None) -> Iterator[str | None]:
    """What open_clip is to load: a tag as it is, and a file without what it would stumble over.

    Raises:
        ValueError: the file holds no named weights, or it holds code.
    """
    if pretrained is None or not Path(pretrained).is_file() or Path(pretrained).suffix in OTHER_FORMATS:
        yield pretrained
        return
    try:
        found = torch.load(pretrained, map_location="cpu", weights_only=True)
    except (EOFError, UnpicklingError) as error:
        raise ValueError("the file holds no weights, or code among them") from error
    weights = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"the file holds no named weights, but a {type(weights).__name__}")
    if not ARCHIVED & weights.keys():
        yield pretrained
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        torch.save({name: value for name, value in weights.items() if name not in ARCHIVED}, file)
        yield str(file)


def load_open_clip(model: str, pretrained: str) -> tuple[nn.Module, Any, Any]:
    """The frozen network of an open_clip model, its preprocessing and its tokenizer; one network for all who ask.

    Args:
        model: a name of open_clip's, "hf-hub:" and a name there, a run of the clip stage, or a folder in open_clip's
            format.
        pretrained: of a name of open_clip's, its tag or a file of weights.

    Raises:
        UserError: there is no such model, or its weights cannot be read.
    """
    return _load(source_of(model), pretrained)


@cache  # of all: a reward's CLIPs and the judges, however many, are asked for in every step
def _load(source: str, pretrained: str) -> tuple[nn.Module, Any, Any]:
    import open_clip
    from PIL import Image

    tag = pretrained if ":" not in source else None
    if tag is not None:
        _check_name(source, tag)
    with as_data(f"CLIP {source}" if tag is None else f"CLIP {source} ({pretrained})"):
        # open_clip's own models are not a stranger's, and their tokenizers may be of any kind.
        safe = {"trust_remote_code": False} if tag is None and _check_config(source) else {}
        # Weights are drawn before they are read: chance must not depend on who was the first to load a CLIP.
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(None), _weights(tag) as weights:
            net, preprocess = open_clip.create_model_from_pretrained(source, pretrained=weights, weights_only=True)
            tokenizer = open_clip.get_tokenizer(source, **safe)
        assert isinstance(net, nn.Module)
        check_finite(net)
        preprocess(Image.new("RGB", (2, 2)))  # its folder may say nonsense of that, too
    return net.requires_grad_(False).eval(), preprocess, tokenizer
