"""What a caption says, compared with what people said: BLEU, ROUGE-L, CIDEr-D, METEOR, SPICE, and signs of hacking."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from distcap.metrics.java import Texts, java_scores
from distcap.ngrams import CiderD, bad_ending, distinct, repetition, tokenize, warn_of_unsplit
from distcap.types import UserError


def ngram_scores(
    captions: Mapping[int, str], references: Mapping[int, Sequence[str]], java: bool = True
) -> dict[str, float]:
    """Score one caption an image against the ground truth: image id -> caption, image id -> its references.

    - "bleu@1" to "bleu@4", "rouge_l", "meteor", "spice": shares of one, from pycocoevalcap. METEOR and SPICE need Java
      and are left out, with a warning, where it is missing, or where `java` is False.
    - "cider": CIDEr-D with document frequencies from these references, as papers report it; 0 to 10.
    - "length": tokens a caption. "distinct@1", "distinct@2", "repetition", "bad_endings": see distcap.ngrams.
    - "vocabulary": different words in all captions.

    Raises UserError if the two do not hold the same images, or an image has no reference.
    """
    return split_scores(captions, references, java)[0]


def split_scores(
    captions: Mapping[int, str], references: Mapping[int, Sequence[str]], java: bool = True
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """The metrics of a split, see `ngram_scores`, and the values of each caption that they are made of, in its order.

    A caption's "bleu_counts" are the row that `bleu` wants the sum of. Its "meteor" is that of a collection which holds
    nothing else; all others are such that their mean is the split's. What is counted over all captions at once, the
    vocabulary and distinct-n, has no value of a caption.
    """
    _check(captions, references)
    warn_of_unsplit(references.values())
    written, written_each = writing_scores(captions)
    texts = list(captions.values())
    tokenized = Texts.of(captions, references)
    each: dict[str, list[Any]] = {
        "bleu_counts": _bleu_counts(tokenized),
        "rouge_l": _rouge_l(tokenized),
        "cider": CiderD(references)(texts, list(captions)).tolist(),
        **written_each,
    }
    in_java = java_scores(tokenized) if java else {}
    scores = {f"bleu@{n}": float(score) for n, score in enumerate(bleu(np.sum(each["bleu_counts"], axis=0)), start=1)}
    scores |= {name: fmean(each[name]) for name in ("rouge_l", "cider")}
    scores |= {name: score.corpus for name, score in in_java.items()}
    return scores | written, each | {name: score.each for name, score in in_java.items()}


def writing_scores(captions: Mapping[int, str]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Those of `split_scores` that compare with nobody: length, distinct-n, vocabulary, repetition, bad endings."""
    texts = list(captions.values())
    each: dict[str, list[float]] = {
        "length": [len(tokenize(text)) for text in texts],
        "repetition": [repetition([text]) for text in texts],
        "bad_endings": [float(bad_ending(text)) for text in texts],
    }
    scores = {
        "length": fmean(each["length"]),
        "distinct@1": distinct(texts, 1),
        "distinct@2": distinct(texts, 2),
        "vocabulary": float(len({token for text in texts for token in tokenize(text)})),
        "repetition": fmean(each["repetition"]),
        "bad_endings": fmean(each["bad_endings"]),
    }
    return scores, each


def bleu(counts: np.ndarray) -> np.ndarray:
    """(..., 10) counts of a collection -> (..., 4) its BLEU-1 to BLEU-4 (Papineni et al. 2002), shares of one.

    The counts are sums over captions of correct n-grams, n = 1 to 4, of n-grams said, of words, and of words in the
    reference of the closest length. The small numbers are those by which pycocoevalcap avoids dividing by zero.
    """
    correct, said = counts[..., :4], counts[..., 4:8]
    words, expected = counts[..., 8:9], counts[..., 9:10]
    precision = np.cumprod((correct + 1e-15) / (said + 1e-9), axis=-1) ** (1 / np.arange(1, 5))
    ratio = (words + 1e-15) / (expected + 1e-9)
    return precision * np.exp(np.minimum(1 - 1 / ratio, 0))


def _bleu_counts(texts: Texts) -> list[list[int]]:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for image, caption in texts.captions.items():
        scorer += (caption, texts.references[image])
    return [
        [
            *row["correct"],
            *row["guess"],
            row["testlen"],
            scorer._single_reflen(row["reflen"], "closest", row["testlen"]),
        ]
        for row in scorer.ctest
    ]


def _rouge_l(texts: Texts) -> list[float]:
    from pycocoevalcap.rouge.rouge import Rouge

    rouge = Rouge()
    return [float(rouge.calc_score([caption], texts.references[i])) for i, caption in texts.captions.items()]


def _check(captions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> None:
    if not captions:
        raise UserError("there are no captions to score; is the split empty?")
    for what, ids in (
        ("captions but no references", captions.keys() - references.keys()),
        ("references but no caption", references.keys() - captions.keys()),
        ("an empty list of references", {i for i, texts in references.items() if not texts}),
    ):
        if ids:
            images = "1 image has" if len(ids) == 1 else f"{len(ids)} images have"
            shown = ", ".join(map(str, sorted(ids)[:5])) + (", ..." if len(ids) > 5 else "")
            raise UserError(f"{images} {what} (ids {shown}); give one caption and some references for the same images")
