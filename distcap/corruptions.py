"""Five ways to spoil a caption's wording: what a grammar head learns to tell from the ground truth.

The negatives of J. Cho et al. 2022, "Fine-grained Image Captioning with CLIP Reward" (arXiv 2205.13115), with the
released code's sizes: at most three words at a time, at most three times. Some of them leave a fine caption, "a red
dog" without "red", or with "blue" in its place: no head reaches an accuracy of 1, whatever it reads.

Every corruption takes words, a source of chance and the vocabulary, and returns other words, or the same where it
cannot change them. It is blind to case and punctuation: a word is what white space separates.
"""

from collections.abc import Callable, Sequence
from random import Random

from distcap.types import UserError

Corruption = Callable[[Sequence[str], Random, Sequence[str]], list[str]]

MOST = 3
"""Longest n-gram that is repeated or removed, and most repetitions, insertions and swaps."""


def _span(words: Sequence[str], longest: int, rng: Random) -> slice:
    """Some one to `longest` neighbours, at most three."""
    length = rng.randint(1, min(MOST, longest))
    start = rng.randint(0, len(words) - length)
    return slice(start, start + length)


def repeat(words: Sequence[str], rng: Random, vocabulary: Sequence[str] = ()) -> list[str]:
    """Say one to three neighbouring words again, one to three times, anywhere. No words: unchanged."""
    spoilt = list(words)
    if not spoilt:
        return spoilt
    again = spoilt[_span(spoilt, len(spoilt), rng)]
    for _ in range(rng.randint(1, MOST)):
        place = rng.randint(0, len(spoilt))
        spoilt[place:place] = again
    return spoilt


def remove(words: Sequence[str], rng: Random, vocabulary: Sequence[str] = ()) -> list[str]:
    """Leave one to three neighbouring words out, but never all. Fewer than two words: unchanged."""
    spoilt = list(words)
    if len(spoilt) > 1:
        del spoilt[_span(spoilt, len(spoilt) - 1, rng)]
    return spoilt


def insert(words: Sequence[str], rng: Random, vocabulary: Sequence[str]) -> list[str]:
    """Put one to three words of the vocabulary anywhere. An empty vocabulary: unchanged."""
    spoilt = list(words)
    for _ in range(rng.randint(1, MOST) if vocabulary else 0):
        spoilt.insert(rng.randint(0, len(spoilt)), rng.choice(vocabulary))
    return spoilt


def swap(words: Sequence[str], rng: Random, vocabulary: Sequence[str]) -> list[str]:
    """Put another word of the vocabulary in the place of one to three. No words, or no other word: unchanged."""
    spoilt = list(words)
    # A word that is drawn and is already there is drawn again, rather than searched for: vocabularies are long.
    swappable = [place for place, word in enumerate(words) if any(other != word for other in vocabulary)]
    for place in rng.sample(swappable, min(rng.randint(1, MOST), len(swappable))):
        while spoilt[place] == words[place]:
            spoilt[place] = rng.choice(vocabulary)
    return spoilt


def shuffle(words: Sequence[str], rng: Random, vocabulary: Sequence[str] = ()) -> list[str]:
    """Put the words into another order. Fewer than two different words: unchanged."""
    spoilt = list(words)
    while len(set(words)) > 1 and spoilt == list(words):
        rng.shuffle(spoilt)
    return spoilt


CORRUPTIONS: tuple[Corruption, ...] = (repeat, remove, insert, swap, shuffle)


def corrupt(caption: str, rng: Random, vocabulary: Sequence[str]) -> str:
    """The caption, spoilt by one of the five, each as likely; never the caption itself.

    Where the one that was drawn cannot change it, another is drawn: one word is repeated, swapped or gets company, and
    an empty caption gets words of the vocabulary.

    Args:
        caption: words between white space, of which one blank remains.
        rng: the only source of chance.
        vocabulary: words to insert and swap in, each as likely.

    Raises:
        UserError: the caption has no words, nor has the vocabulary.
    """
    words = caption.split()
    for corruption in rng.sample(CORRUPTIONS, len(CORRUPTIONS)):
        if (spoilt := corruption(words, rng, vocabulary)) != words:
            return " ".join(spoilt)
    raise UserError(
        "an empty caption and an empty vocabulary leave nothing to corrupt; is the training ground truth empty?"
    )
