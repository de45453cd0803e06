"""CIDEr-D against pycocoevalcap and by hand; the tokenizer; the signs of reward hacking."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import CiderScorer

from distcap.ngrams import END, CiderD, DocumentFrequency, bad_ending, distinct, repetition, tokenize
from distcap.types import UserError

WORDS = ["a", "the", "dog", "cat", "street", "red", "on", "near", "and", "runs", "man's", "isn't,", "two."]


def random_captions(seed: int, images: int = 40) -> tuple[list[str], dict[int, list[str]]]:
    """A caption for each image, and one to five references; from no word to twelve."""
    rng = random.Random(seed)

    def caption() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(0, 12)))

    return [caption() for _ in range(images)], {i: [caption() for _ in range(rng.randint(1, 5))] for i in range(images)}


def joined(caption: str, end: str = "") -> str:
    """A caption as pycocoevalcap takes it: tokens between spaces."""
    return f"{' '.join(tokenize(caption))} {end}".strip()


def theirs(captions: list[str], references: dict[int, list[str]], end: str = "") -> np.ndarray:
    truths = {i: [joined(reference, end) for reference in references[i]] for i in references}
    _, scores = Cider().compute_score(truths, {i: [joined(captions[i], end)] for i in references})
    return scores


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("一只狗，在门廊。", "一 只 狗 在 门 廊"),  # noqa: RUF001
        ("2只狗 on a ポーチ", "2 只 狗 on a ポ ー チ"),
        ("が「犬」", "が 犬"),
        ("か\u3099犬", "か\u3099 犬"),
        ("สุนัขที่บ้าน", "สุ นั ข ที่ บ้ า น"),
        ("강아지 두 마리", "강아지 두 마리"),
        ("L'été, un chien dort.", "l'été un chien dort"),
        ("كلب على الشرفة", "كلب على الشرفة"),
        ("Ein Hündchen (klein)", "ein hündchen -lrb- klein -rrb-"),
        ("a dog（red）", "a dog（red）"),  # noqa: RUF001
    ],
)
def test_each_character_of_a_script_without_spaces_is_a_token_and_nothing_else_changes(text, tokens):
    assert tokenize(text) == tokens.split()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("end_token", [False, True])
def test_cider_equals_pycocoevalcap_on_random_captions(seed, end_token):
    captions, references = random_captions(seed)
    ours = CiderD(references, end_token=end_token)(captions, list(references))
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs(captions, references, END if end_token else ""), rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_cider_with_a_given_document_frequency_table_equals_pycocoevalcap_with_that_table(seed):
    captions, references = random_captions(seed)
    _, training = random_captions(seed + 100, images=90)
    ours = CiderD(references, DocumentFrequency.of(training))(captions, list(references))

    counter = CiderScorer()
    for texts in training.values():
        counter += ("", [joined(text) for text in texts])
    counter.compute_doc_freq()
    scorer = CiderScorer()
    for i, texts in references.items():
        scorer += (joined(captions[i]), [joined(text) for text in texts])
    scorer.document_frequency = counter.document_frequency
    # compute_cider sets ref_len, the logarithm of the number of images, from its own images: give it the training's.
    scorer.crefs += [[]] * (len(training) - len(references))
    np.testing.assert_allclose(ours, scorer.compute_cider(), rtol=0, atol=1e-9)


def test_cider_of_a_caption_worked_out_by_hand():
    # Two images, so idf = log 2 for words of one image and 0 for "a", which is in both. Caption and reference of image
    # 0 share one of the two words that count, "dog", and no longer n-gram that counts: cosine of the unigrams 1/2, of
    # the bigrams ("a dog", "dog runs" and "a dog", "dog sits") 1/2, of the trigram 0, of the absent 4-grams 0. Equal
    # lengths: no penalty.
    cider = CiderD({0: ["a dog sits"], 1: ["a cat"]})
    assert cider(["a dog runs"], [0]) == pytest.approx(10 * (1 / 2 + 1 / 2 + 0 + 0) / 4)


def test_cider_penalises_a_difference_in_length():
    # As above, plus two words. Unigrams dog, runs, very, fast against dog, sits: 1 / sqrt(4 * 2); bigrams likewise;
    # five words against three: exp(-2^2 / (2 * 6^2)).
    cider = CiderD({0: ["a dog sits"], 1: ["a cat"]})
    expected = 10 * (2 / math.sqrt(8)) / 4 * math.exp(-4 / 72)
    assert cider(["a dog runs very fast"], [0]) == pytest.approx(expected)


def test_the_score_of_a_caption_does_not_depend_on_the_rest_of_its_batch():
    captions, references = random_captions(0)
    table = DocumentFrequency.of(random_captions(7)[1])
    together = CiderD(references, table)(captions, list(references))
    alone = [CiderD({i: references[i]}, table)([captions[i]], [i])[0] for i in references]
    assert together.max() > 0
    assert together.tolist() == alone


def test_the_document_frequency_table_counts_images_and_not_captions():
    table = DocumentFrequency.of({0: ["a dog", "a dog"], 1: ["a dog runs"], 2: ["a cat"]})
    assert table.images == 3
    assert table.counts == {("a",): 3, ("dog",): 2, ("a", "dog"): 2}


def test_the_end_token_makes_an_ending_count():
    references = {0: ["a dog on a porch"], 1: ["a cat"]}
    broken, whole = "a dog on a", "a dog porch"
    without = CiderD(references)([broken, whole], [0, 0])
    with_end = CiderD(references, end_token=True)([broken, whole], [0, 0])
    assert without[0] > without[1]
    assert with_end[0] < without[0]
    # "porch </s>" is a bigram of the reference, "a </s>" is not.
    assert with_end[1] / with_end[0] > without[1] / without[0]


def test_a_table_counted_without_end_tokens_is_refused_by_a_score_with_them():
    references = {0: ["a dog"], 1: ["a cat"]}
    with pytest.raises(ValueError, match="end_token=False"):
        CiderD(references, DocumentFrequency.of(references), end_token=True)


def test_reference_vectors_dropped_from_the_cache_come_back_the_same():
    captions, references = random_captions(3)
    ids = list(references)
    small, large = CiderD(references, cached_images=2), CiderD(references)
    assert small(captions * 2, ids * 2).tolist() == large(captions * 2, ids * 2).tolist()
    assert len(small._cache) == 2


def test_references_are_turned_into_vectors_once(monkeypatch):
    cider = CiderD({0: ["a dog sits", "a dog"], 1: ["a cat"]})
    weighed: Counter[str] = Counter()
    weigh = cider._weigh
    monkeypatch.setattr(cider, "_weigh", lambda caption, *ended: (weighed.update([caption]), weigh(caption))[1])
    cider(["a bus"], [0])
    cider(["a bus"], [0])
    assert weighed == {"a bus": 2, "a dog sits": 1, "a dog": 1}


def test_an_image_without_references_is_named():
    with pytest.raises(UserError, match="image 7 has no ground-truth captions"):
        CiderD({0: ["a dog"]})(["a dog"], [7])


def test_captions_and_image_ids_of_different_number_are_refused():
    with pytest.raises(ValueError, match="2 captions for 1 image ids"):
        CiderD({0: ["a dog"]})(["a dog", "a cat"], [0])


@pytest.mark.parametrize(
    ("caption", "tokens"),
    # The right-hand sides are what Stanford's tokenizer, through pycocoevalcap, makes of the left-hand ones.
    [
        ("A dog on a porch.", "a dog on a porch"),
        ("", ""),
        ("...", ""),
        (
            "A man's dog isn't \"happy\" (very) on a t-shirt, e.g. St. John's... 3.5 o'clock.",
            "a man 's dog is n't happy -lrb- very -rrb- on a t-shirt e.g. st. john 's 3.5 o'clock",
        ),
        ("The end! can't cannot; 'quoted' dogs' he'll", "the end ca n't can not quoted dogs he 'll"),
        ("it's the girls' room; gonna go, wanna play", "it 's the girls room gon na go wan na play"),
        ("A red/blue kite - flying high-up -- over the beach", "a red/blue kite flying high-up over the beach"),
        ("U.S. flag on a bus. A cat, 2 dogs", "u.s. flag on a bus a cat 2 dogs"),
        ("a dog that cannot swim", "a dog that can not swim"),
        ("a statue of Martin Luther King Jr.", "a statue of martin luther king jr."),
        ("in front of St. Paul's.", "in front of st. paul 's"),
        ("Café \N{EM DASH} it\N{RIGHT SINGLE QUOTATION MARK}s\N{HORIZONTAL ELLIPSIS}", "café it 's"),
        ("a cat & $5, semi...colon", "a cat & $ 5 semi colon"),
    ],
)
def test_captions_are_tokenized_as_stanfords_tokenizer_does(caption, tokens):
    assert tokenize(caption) == tokens.split()


def test_a_token_list_may_be_changed_without_changing_the_next():
    tokenize("a dog").clear()
    assert tokenize("a dog") == ["a", "dog"]


def test_distinct_counts_over_all_captions():
    captions = ["a dog", "a dog runs"]
    assert distinct(captions, 1) == 3 / 5  # a, dog, runs of a, dog, a, dog, runs
    assert distinct(captions, 2) == 2 / 3  # a dog, dog runs of a dog, a dog, dog runs
    assert distinct(["dog"], 2) == 0


def test_repetition_counts_within_a_caption_only():
    assert repetition(["a dog", "a dog"]) == 0
    assert repetition(["a red dog and a red dog"]) == pytest.approx(2 / 6)
    assert repetition(["a red dog and a red dog", "a cat"]) == pytest.approx(1 / 6)
    assert repetition(["dog dog dog", ""], n=1) == pytest.approx((2 / 3 + 0) / 2)
    assert repetition([]) == 0


@pytest.mark.parametrize("caption", ["a dog on a", "a dog on", "A dog and.", "the man with his", "the man's"])
def test_a_caption_that_breaks_off_ends_badly(caption):
    assert bad_ending(caption)


@pytest.mark.parametrize("caption", ["a dog on a porch", "a star at night.", "a dog lying down", ""])
def test_a_finished_or_empty_caption_does_not_end_badly(caption):
    assert not bad_ending(caption)
