"""Pure string maths: the tokenizer of all n-gram metrics, CIDEr-D, and what gives a reward-hacked caption away.

BLEU, ROUGE-L, METEOR and SPICE are pycocoevalcap's (distcap.metrics.ngram). CIDEr-D is also a reward, scored at every
training step, so it has its own code here: equal to pycocoevalcap's, but with the references' vectors computed once
and one fixed document-frequency table.
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from typing import Any
from unicodedata import category

import numpy as np

from distcap.types import UserError

Ngram = tuple[str, ...]

END = "</s>"
"""The end token as an n-gram sees it. The tokenizer splits at "<", so no caption contains it."""

# pycocoevalcap.tokenizer.ptbtokenizer.PUNCTUATIONS. It also lists "-LRB-" and the like, but compares them to
# lower-cased tokens, so brackets survive as "-lrb-" in every published score; they do here too.
_PUNCTUATION = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
_STRAIGHT_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})  # noqa: RUF001
_DASH_OR_ELLIPSIS = re.compile(r"--+|[–—…]|\.\.+")  # noqa: RUF001
_OPENING_QUOTE = re.compile(r"(?<!\S)'(?=\w)(?!\d|em\b|til\b|tis\b|twas\b|n\b)")
_FULL_STOP = re.compile(r"(\S+)\.(?=[\"')\]}]*(?:\s|$))")
_ABBREVIATION = re.compile(r"[\"'(\[{]*(?:mr|mrs|ms|dr|st|mt|jr|sr|vs|etc|ave|blvd|\w(?:\.\w)+)")
# Nothing for the Treebank rules to split. Most captions are like this, and splitting at spaces is ten times faster.
_PLAIN = re.compile(r"(?!.*\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b)[a-z0-9\s]*")

# Scripts that put no spaces between words. A character with the marks on it counts as a word.
_UNSPACED = {
    "Thai": "\u0e01-\u0e5b",
    "Lao": "\u0e81-\u0edf",
    "Burmese": "\u1000-\u109f\uaa60-\uaa7f",
    "Khmer": "\u1780-\u17ff",
    "kana": "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "Bopomofo": "\u3105-\u312f",
    "Han": "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
}
_SCRIPT = "".join(_UNSPACED.values())
_MARKS = "".join(
    sign
    for sign in map(chr, (*range(0x0E00, 0x10A0), *range(0x1780, 0x1800), 0x3099, 0x309A, *range(0xAA60, 0xAA80)))
    if category(sign) in ("Mn", "Mc")
)
_CHARACTER = re.compile(f"[{_SCRIPT}][{_MARKS}\ufe00-\ufe0f\U000e0100-\U000e01ef]*")
_THEIR_PUNCTUATION = re.compile(
    "[\u3001-\u3003\u3008-\u3011\u3014-\u301f\u30fb\uff01\uff08\uff09\uff0c\uff0e\uff1a\uff1b\uff1f\uff61-\uff65\u104a\u104b\u17d4\u17d5]"
)
_LONG = 12
"""Letters of what is hardly one word."""

_ARTICLES = {"a", "an", "the", "this", "that", "these", "those", "some", "every", "each"}
_CONJUNCTIONS = {"and", "or", "but", "nor", "while", "as", "because", "than", "which", "who", "whose"}
_PREPOSITIONS = {"of", "in", "on", "at", "to", "for", "from", "with", "without", "into", "onto", "by", "near"}
_POSSESSIVES = {"my", "your", "his", "her", "its", "our", "their", "'s"}
_VERBS = {"is", "are", "was", "were", "be", "has", "have"}
_BAD_ENDINGS = _ARTICLES | _CONJUNCTIONS | _PREPOSITIONS | _POSSESSIVES | _VERBS


@cache
def _treebank() -> Any:
    from nltk.tokenize import TreebankWordTokenizer  # slow to import, and regular expressions only: no nltk data

    return TreebankWordTokenizer()


def spaced(text: str) -> str:
    """A text with spaces around each character of a script that has none between words, and no punctuation of theirs.

    Any other text is left as it is.
    """
    if text.isascii() or not _CHARACTER.search(text):
        return text
    return _CHARACTER.sub(r" \g<0> ", _THEIR_PUNCTUATION.sub(" ", text))


def warn_of_unsplit(references: Iterable[Sequence[str]]) -> None:
    """Warn where most captions are one token although they are long: what counts words would mean nothing then.

    Args:
        references: the captions of each image; the first thousand images are looked at.
    """
    texts = [text for of_image in islice(references, 1000) for text in of_image]
    unsplit = [text for text in texts if len(text) >= _LONG and len(_tokens(text)) == 1]
    if 2 * len(unsplit) > len(texts):
        warnings.warn(
            f"{len(unsplit)} of {len(texts)} captions are a single token, the first: {unsplit[0][:40]!r}; CIDEr, BLEU, "
            "ROUGE-L and whatever counts words mean nothing unless there are spaces between words",
            stacklevel=3,
        )


@lru_cache(maxsize=2**16)
def _tokens(caption: str) -> tuple[str, ...]:
    text = _DASH_OR_ELLIPSIS.sub(" ", spaced(caption.lower().translate(_STRAIGHT_QUOTES)))
    text = _FULL_STOP.sub(lambda m: m[0] if _ABBREVIATION.fullmatch(m[1]) else f"{m[1]} ", text)
    text = _OPENING_QUOTE.sub(" ", text)
    if _PLAIN.fullmatch(text):
        return tuple(text.split())
    # nltk splits the last full stop off whatever it follows; this one keeps it from taking an abbreviation's.
    tokens = _treebank().tokenize(f"{text} .", convert_parentheses=True)
    return tuple(token for token in map(str.lower, tokens) if token not in _PUNCTUATION)


def tokenize(caption: str) -> list[str]:
    """Penn Treebank tokens, lower-cased, without punctuation, as COCO's metrics count them.

    Follows pycocoevalcap's PTBTokenizer (Stanford CoreNLP) without Java, on nltk's Treebank rules. Of scripts without
    spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character is a token.

    >>> tokenize("A man's dog isn't happy.")
    ['a', 'man', "'s", 'dog', 'is', "n't", 'happy']
    """
    return list(_tokens(caption))


def _ngrams(tokens: Sequence[str], n: int) -> Iterator[Ngram]:
    return zip(*(tokens[i:] for i in range(n)), strict=False)


def _count(caption: str, n: int, end_token: bool) -> Counter[Ngram]:
    """How often each n-gram of one to `n` tokens occurs in a caption."""
    tokens = (*_tokens(caption), END) if end_token else _tokens(caption)
    return Counter(ngram for order in range(1, n + 1) for ngram in _ngrams(tokens, order))


@dataclass(frozen=True)
class DocumentFrequency:
    """In the references of how many images each n-gram occurs: the inverse-document-frequency weights of CIDEr."""

    counts: Mapping[Ngram, int]
    """Images per n-gram. An n-gram that is not listed counts as occurring in one image."""
    images: int
    """Images in the whole collection."""
    n: int = 4
    """Longest n-gram counted."""
    end_token: bool = False
    """Whether an end token was appended to every caption before counting."""

    @classmethod
    def of(cls, references: Mapping[int, Sequence[str]], n: int = 4, end_token: bool = False) -> "DocumentFrequency":
        """Count over a collection: image id -> captions. About 30 s for COCO's 113,287 training images."""
        counts: Counter[Ngram] = Counter()
        for captions in references.values():
            counts.update(set().union(*(_count(caption, n, end_token) for caption in captions)))
        # CIDEr counts an unseen n-gram as seen in one image, so the entries of 1, three quarters of all, say nothing.
        return cls({ngram: count for ngram, count in counts.items() if count > 1}, len(references), n, end_token)


@dataclass(frozen=True)
class _References:
    """The R references of one image, as tf-idf vectors turned round: from an n-gram to the references that have it."""

    weights: Mapping[Ngram, Sequence[tuple[int, float]]]
    """For each n-gram, (reference, tf-idf weight) of the references in which it occurs."""
    norms: np.ndarray
    """(n, R) length of each reference's vector, by n-gram order."""
    lengths: np.ndarray
    """(R,) tokens in each reference."""


class CiderD:
    """CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726, section 6): consensus with the references, weighted by tf-idf.

    Equals `pycocoevalcap.cider.Cider` on the same tokens: times 10, clipped counts, and a Gaussian penalty on the
    difference in length. A caption's score depends on its image's references and on
    the document-frequency table, never on the other captions of the call.

    With one image in the table every weight is log(1) = 0, and so is every score.
    """

    def __init__(
        self,
        references: Mapping[int, Sequence[str]],
        document_frequency: DocumentFrequency | None = None,
        n: int = 4,
        sigma: float = 6.0,
        end_token: bool = False,
        cached_images: int = 8192,
    ) -> None:
        """
        Args:
            references: image id -> ground-truth captions.
            document_frequency: None counts over `references`, as papers do on a test split. A reward wants the table
                of the training ground truth, the same at every step.
            n: longest n-gram.
            sigma: width of the length penalty.
            end_token: append an end token to captions and references, so that endings count ("a dog on a").
            cached_images: how many images' reference vectors to keep, some 40 kB each.
        """
        if document_frequency is None:
            document_frequency = DocumentFrequency.of(references, n, end_token)
        if (document_frequency.n, document_frequency.end_token) != (n, end_token):
            raise ValueError(
                f"CIDEr-D with n={n}, end_token={end_token} got a document-frequency table with "
                f"n={document_frequency.n}, end_token={document_frequency.end_token}; build it with the same two"
            )
        self.references = references
        self.document_frequency = document_frequency
        self.n = n
        self.sigma = sigma
        self.end_token = end_token
        self._log_images = math.log(max(document_frequency.images, 1))
        self._cache: dict[int, _References] = {}
        self._cached_images = cached_images

    def __call__(
        self, captions: Sequence[str], image_ids: Sequence[int], ended: Sequence[bool] | None = None
    ) -> np.ndarray:
        """N captions, the images they describe -> (N,) float64 in [0, 10]; papers print 100 times a tenth of its mean.

        Args:
            captions: N captions.
            image_ids: the image of each.
            ended: where `end_token` is set, whether each caption has one: a sample that was cut has none. None says
                that all do.

        Raises:
            UserError: an image has no references.
        """
        if len(captions) != len(image_ids):
            raise ValueError(f"{len(captions)} captions for {len(image_ids)} image ids; CIDEr-D wants one id a caption")
        rows = zip(captions, image_ids, [True] * len(captions) if ended is None else ended, strict=True)
        return np.array(
            [self._score(caption, self._vectors(image_id), end) for caption, image_id, end in rows], np.float64
        )

    def _weigh(self, caption: str, ended: bool = True) -> tuple[dict[Ngram, float], np.ndarray, int]:
        """A caption -> its tf-idf weights, (n,) their norms by n-gram order, its number of tokens."""
        counts = _count(caption, self.n, self.end_token and ended)
        seen = self.document_frequency.counts
        weights = {ngram: count * (self._log_images - math.log(seen.get(ngram, 1))) for ngram, count in counts.items()}
        squares = [0.0] * self.n
        length = 0
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight * weight
            if len(ngram) == 1:
                length += counts[ngram]
        return weights, np.sqrt(squares), length

    def _vectors(self, image_id: int) -> _References:
        if image_id in self._cache:
            return self._cache[image_id]
        captions = self.references.get(image_id)
        if not captions:
            raise UserError(f"image {image_id} has no ground-truth captions, so CIDEr-D cannot score a caption of it")
        weights: dict[Ngram, list[tuple[int, float]]] = {}
        norms = np.zeros((self.n, len(captions)))
        lengths = np.zeros(len(captions))
        for i, caption in enumerate(captions):
            vector, norms[:, i], lengths[i] = self._weigh(caption)
            for ngram, weight in vector.items():
                weights.setdefault(ngram, []).append((i, weight))
        if len(self._cache) >= self._cached_images:
            self._cache.pop(next(iter(self._cache)))  # the oldest: a training epoch comes back to it last
        self._cache[image_id] = _References(weights, norms, lengths)
        return self._cache[image_id]

    def _score(self, caption: str, references: _References, ended: bool) -> float:
        vector, norms, length = self._weigh(caption, ended)
        dots = [[0.0] * len(references.lengths) for _ in range(self.n)]
        for ngram, weight in vector.items():
            row = dots[len(ngram) - 1]
            for i, reference_weight in references.weights.get(ngram, ()):
                row[i] += min(weight, reference_weight) * reference_weight
        products = norms[:, None] * references.norms  # (n, R)
        # A zero norm has zero dot products: there is nothing to divide.
        cosines = np.array(dots) / np.where(products == 0, 1, products)
        penalty = np.exp(-((length - references.lengths) ** 2) / (2 * self.sigma**2))
        return 10 * float((cosines * penalty).mean())


def distinct(captions: Sequence[str], n: int) -> float:
    """Distinct-n (Li et al. 2016): different n-grams divided by all n-grams, over all captions; 0 without any.

    It falls as captions are added, so compare equal numbers of them only.
    """
    ngrams = [ngram for caption in captions for ngram in _ngrams(_tokens(caption), n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def repetition(captions: Sequence[str], n: int = 2) -> float:
    """Share of a caption's n-grams that it has said before (seq-rep-n, Welleck et al. 2020), averaged over captions.

    "a red dog and a red dog": of its six bigrams, "a red" and "red dog" return, 2/6. Too short to have any: 0.
    """
    shares = []
    for caption in captions:
        ngrams = list(_ngrams(_tokens(caption), n))
        shares.append(1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0)
    return sum(shares) / len(shares) if shares else 0.0


def bad_ending(caption: str) -> bool:
    """Whether a caption breaks off: its last word is an article, preposition, conjunction, possessive ("a dog on a").

    What CIDEr without an end token teaches (Rennie et al. 2017). Rare honest endings ("with the lights on") count too:
    compare with the share among ground-truth captions. An empty caption has no ending.
    """
    tokens = _tokens(caption)
    return bool(tokens) and tokens[-1] in _BAD_ENDINGS
