"""What a caption says, compared with what people said: BLEU, ROUGE-L, CIDEr-D, METEOR, SPICE, and signs of hacking."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from distcap.metrics.java import java_scores
from distcap.ngrams import CiderD, bad_ending, distinct, repetition, tokenize
from distcap.types import UserError


def ngram_scores(
    captions: Mapping[int, str], references: Mapping[int, Sequence[str]], java: bool = True
) -> dict[str, float]:
    """Score one caption an image against the ground truth: image id -> caption, image id -> its references.

    - "bleu@1" to "bleu@4", "rouge_l", "meteor", "spice": shares of one, from pycocoevalcap. METEOR and SPICE need Java
      and are left out, with a warning, where it is missing, or where `java` is False.
    - "cider": CIDEr-D with document frequencies from these references, as papers report it; 0 to 10.
    - "length": tokens a caption. "distinct@1", "distinct@2", "repetition", "bad_endings": see distcap.ngrams.

    Raises UserError if the two do not hold the same images, or an image has no reference.
    """
    _check(captions, references)
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    texts = list(captions.values())
    candidates = {i: " ".join(tokenize(caption)) for i, caption in captions.items()}
    truths = {i: [" ".join(tokenize(reference)) for reference in references[i]] for i in captions}
    listed = {i: [candidate] for i, candidate in candidates.items()}

    bleu, _ = Bleu(4).compute_score(truths, listed, verbose=0)
    rouge_l, _ = Rouge().compute_score(truths, listed)
    scores = {f"bleu@{n}": float(score) for n, score in enumerate(bleu, start=1)}
    scores["rouge_l"] = float(rouge_l)
    scores["cider"] = float(CiderD(references)(texts, list(captions)).mean())
    if java:
        scores |= java_scores(candidates, truths)
    scores["length"] = fmean(len(tokenize(text)) for text in texts)
    scores["distinct@1"] = distinct(texts, 1)
    scores["distinct@2"] = distinct(texts, 2)
    scores["repetition"] = repetition(texts)
    scores["bad_endings"] = fmean(map(bad_ending, texts))
    return scores


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
