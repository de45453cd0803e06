"""How n-gram metrics were computed: what makes two CIDEr scores comparable, or not."""

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distcap import __version__
from distcap.ngrams import spaced


def signature(data: str, split: str, references: Mapping[int, Sequence[str]], decoder: Any) -> dict[str, str]:
    """The circumstances of a split's scores, as sacreBLEU states BLEU's (Post 2018, arXiv 1804.08771).

    METEOR and SPICE are no part of it: both are of one version, or were not measured.

    Args:
        data: name of the data's class.
        split: of the data.
        references: image id -> ground truth, of the images that were scored.
        decoder: dataclass of how the captions were decoded.
    """
    texts = sorted((image, tuple(captions)) for image, captions in references.items())
    return {
        "data": data,
        "split": split,
        "images": str(len(texts)),
        "references": str(sum(len(captions) for _, captions in texts)),
        "references_sha256": sha256(repr(texts).encode()).hexdigest()[:12],
        "tokenizer": f"Penn Treebank by nltk {version('nltk')}, lower case, no punctuation{_characters(texts)}",
        "bleu, rouge_l": f"pycocoevalcap {version('pycocoevalcap')}",
        "cider": "CIDEr-D, n=4, sigma=6, document frequencies of these references",
        "decoder": decoder_line(decoder),
        "seed": os.environ.get("PL_GLOBAL_SEED", "none"),
        "distcap": __version__,
        "commit": commit(),
    }


def _characters(texts: Iterable[tuple[int, Sequence[str]]]) -> str:
    """How what has no spaces was split, where there is any."""
    unspaced = any(spaced(caption) != caption for _, captions in texts for caption in captions)
    return ", each character of Chinese, Japanese, Thai, Lao, Khmer and Burmese a token" if unspaced else ""


def decoder_line(decoder: Any) -> str:
    """A dataclass of decoding rules in one line."""
    return ", ".join(f"{name}={value}" for name, value in asdict(decoder).items())


@cache
def commit() -> str:
    """The git commit of the checkout that distcap runs from, "-dirty" if it was changed; "none" for a package."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return "none"
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
