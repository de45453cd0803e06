"""Somebody's network, read as data: none of its code is run, and none of its weights may be absent."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distcap.types import UserError

log = logging.getLogger(__name__)

SAFE: dict[str, Any] = {"trust_remote_code": False}
"""For whatever Hugging Face's auto classes read. Without it, they ask at a terminal whether to run a folder's code."""


@contextmanager
def as_data(what: str) -> Iterator[None]:
    """What goes wrong while a network is read is one line, and code that it brings along is refused, never asked about.

    Args:
        what: is read, for the message.

    Raises:
        UserError: it cannot be read.
    """
    from transformers import dynamic_module_utils

    # Of a network's parts, transformers does not hand on that they are not trusted, and would ask. At 0 it refuses.
    seconds, dynamic_module_utils.TIME_OUT_REMOTE_CODE = dynamic_module_utils.TIME_OUT_REMOTE_CODE, 0
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged or foreign folder can make its readers raise nearly anything
        raise UserError(f"{what} cannot be loaded: {one_line(error)}") from error
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def one_line(error: Exception) -> str:
    """What an error says, cut to a length that can be read, and of which kind it is if that is not plain."""
    said = " ".join(str(error).split())[:300]
    plain = isinstance(error, OSError | ValueError | TypeError | ImportError)
    return said if said and plain else f"{type(error).__name__}: {said}"


def network(kind: Any, name: str, dtype: torch.dtype, idle: tuple[str, ...] = ()) -> Any:
    """A network of Hugging Face's, whole.

    Args:
        kind: its class, or an auto class.
        name: of a folder or on the hub.
        dtype: of its weights.
        idle: beginnings of the names of weights that nobody uses, and that may be absent.

    Raises:
        ValueError: weights are absent, or not finite.
    """
    model, found = kind.from_pretrained(name, dtype=dtype, weights_only=True, output_loading_info=True, **SAFE)
    # Buffers that are computed, as the numbers of positions, older files have and newer ones have not.
    needed = {key for key, _ in model.named_parameters(remove_duplicate=False)}
    needed |= {key for key, _ in model.named_buffers() if key.endswith(("running_mean", "running_var"))}
    missing = sorted(key for key in found["missing_keys"] if key in needed and not key.startswith(idle))
    if missing:
        raise ValueError(
            f"{len(missing)} of its {len(needed)} tensors are absent, the first {missing[0]}; copy the folder "
            "again, or name another"
        )
    if extra := sorted(found["unexpected_keys"]):
        log.info("%s: %d tensors are no part of the network and are not used, the first %s", name, len(extra), extra[0])
    check_finite(model)
    return model


def check_finite(model: nn.Module) -> None:
    """Raises ValueError if a weight is infinite or not a number: captions would be empty, or noise."""
    with torch.no_grad():
        bad = [name for name, value in model.named_parameters() if value.numel() and not _is_finite(value)]
    if bad:
        raise ValueError(
            f"{len(bad)} of its tensors hold numbers that are infinite or NaN, the first {bad[0]}: the training that "
            "made it had failed"
        )


def _is_finite(value: Tensor) -> bool:
    """In one pass, and without a copy of the tensor: networks have gigabytes."""
    least, most = value.aminmax()  # NaN if there is any
    return bool(least.isfinite() & most.isfinite())


def check_config(config: Any) -> None:
    """Raises ValueError if a config.json asks for code from elsewhere, which `trust_remote_code` has no say in."""
    if isinstance(config, list):
        for one in config:
            check_config(one)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if key.lstrip("_").startswith(("attn_implementation", "experts_implementation")) and "/" in str(value):
            raise ValueError(f"its config.json asks for a kernel, {key}: {value}, which is code; take that line out")
        check_config(value)


def check_vocabulary(tokenizer: Any, rows: int) -> None:
    """Raises ValueError if the tokenizer has no words, or a token that the network has no embedding of."""
    words = tokenizer.get_vocab()
    # Marks transformers makes up where there is no file of words.
    if not words.keys() - set(tokenizer.all_special_tokens) - tokenizer.get_added_vocab().keys():
        raise ValueError("its tokenizer has no words; copy the folder again, or name another")
    last = max(words.values())
    if last >= rows:
        raise ValueError(
            f"its tokenizer has a token number {last}, and its network has embeddings of {rows} tokens; they do not "
            "belong together"
        )


def square(size: Any) -> int:
    """The side of the images that a network sees, from a number or a pair of numbers.

    Raises:
        UserError: they are not square.
    """
    sides: Sequence[Any] = size if isinstance(size, list | tuple) else [size]
    if not sides or any(side != sides[0] or not isinstance(side, int) or side < 1 for side in sides):
        raise UserError(f"images of {size} pixels: a captioner must see square ones, and their side be a whole number")
    return sides[0]
