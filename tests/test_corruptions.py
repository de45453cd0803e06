"""The five corruptions: each changes what it says, and a corrupted caption is never the caption itself."""

from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from distcap.corruptions import CORRUPTIONS, Corruption, corrupt, insert, remove, repeat, shuffle, swap
from distcap.types import UserError

CAPTION = "a red dog on the small porch"
WORDS = CAPTION.split()
VOCABULARY = ("cat", "dog", "red", "the")


def draws() -> Iterator[Random]:
    """300 sources of chance, the same in every test."""
    return map(Random, range(300))


def by_name(corruption: Corruption) -> str:
    return corruption.__name__


def added(spoilt: list[str]) -> Counter[str]:
    """The words that a corruption put in; fails if it took one out."""
    assert not Counter(WORDS) - Counter(spoilt)
    return Counter(spoilt) - Counter(WORDS)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=by_name)
def test_a_corruption_changes_a_caption_and_leaves_its_argument_alone(corruption: Corruption) -> None:
    words = list(WORDS)
    assert all(corruption(words, rng, VOCABULARY) != WORDS for rng in draws())
    assert words == WORDS


def test_repeat_says_up_to_three_words_again_up_to_three_times() -> None:
    """Lengths 1, 2 and 3 times as often; none is missed by 300 draws: each has 1/9 or more, (8/9)^300 is 1e-15."""
    sizes = {sum(added(repeat(WORDS, rng)).values()) for rng in draws()}
    assert sizes == {1, 2, 3, 4, 6, 9}


def test_repeat_says_neighbours_again_together_and_in_order() -> None:
    """Where three words came back once: three neighbours of the caption, without which it is as it was."""
    once = [spoilt for spoilt in (repeat(WORDS, rng) for rng in draws()) if sorted(added(spoilt).values()) == [1, 1, 1]]
    assert once
    for spoilt in once:
        cuts = [(spoilt[i : i + 3], spoilt[:i] + spoilt[i + 3 :]) for i in range(len(WORDS) + 1)]
        assert any(rest == WORDS and cut in [WORDS[j : j + 3] for j in range(5)] for cut, rest in cuts)


def test_remove_leaves_out_up_to_three_neighbours() -> None:
    gaps = set()
    for rng in draws():
        spoilt = remove(WORDS, rng)
        gap = len(WORDS) - len(spoilt)
        gaps.add(gap)
        assert any(spoilt == WORDS[:i] + WORDS[i + gap :] for i in range(len(spoilt) + 1))
    assert gaps == {1, 2, 3}


@pytest.mark.parametrize("words", [["dogs", "asleep"], ["two", "dogs", "asleep"]], ids=len)
def test_remove_leaves_a_word(words: list[str]) -> None:
    assert min(len(remove(words, rng)) for rng in draws()) == 1


def test_insert_adds_up_to_three_words_of_the_vocabulary() -> None:
    news = [added(insert(WORDS, rng, VOCABULARY)) for rng in draws()]
    assert {sum(new.values()) for new in news} == {1, 2, 3}
    assert set().union(*news) == set(VOCABULARY)


def test_insert_reaches_both_ends_of_the_caption() -> None:
    """Either end is missed by 300 draws with a chance below (7/8)^300, 1e-17."""
    found = [insert(WORDS, rng, ["new"]) for rng in draws()]
    assert any(spoilt[0] == "new" for spoilt in found)
    assert any(spoilt[-1] == "new" for spoilt in found)


def test_swap_puts_words_of_the_vocabulary_in_the_place_of_up_to_three_others() -> None:
    changes = set()
    for rng in draws():
        pairs = [(old, new) for old, new in zip(WORDS, swap(WORDS, rng, VOCABULARY), strict=True) if old != new]
        changes.add(len(pairs))
        assert {new for _, new in pairs} <= set(VOCABULARY)
    assert changes == {1, 2, 3}


def test_shuffle_keeps_the_words_and_never_their_order() -> None:
    for rng in draws():
        assert sorted(shuffle(WORDS, rng)) == sorted(WORDS)
        assert shuffle(["red", "dog"], rng) == ["dog", "red"]


@pytest.mark.parametrize(
    ("corruption", "words", "vocabulary"),
    [
        (repeat, [], ["cat"]),
        (remove, ["dog"], ["cat"]),
        (insert, ["dog"], []),
        (swap, ["dog"], ["dog"]),
        (shuffle, ["dog", "dog"], ["cat"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_what_a_corruption_cannot_change_stays(corruption: Corruption, words: list[str], vocabulary: list[str]) -> None:
    assert corruption(words, Random(0), vocabulary) == words


@pytest.mark.parametrize("caption", [CAPTION, "red dog", "dog dog", "dog", ""])
def test_a_corrupted_caption_is_never_the_caption(caption: str) -> None:
    assert all(corrupt(caption, rng, VOCABULARY) != caption for rng in draws())


def test_each_corruption_is_drawn_as_often_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,500 draws 300 each, 15.5 standard deviation: a false alarm, 5 of them off, once in 350,000 seeds."""
    named = tuple(lambda words, rng, vocabulary, name=kind.__name__: [name] for kind in CORRUPTIONS)
    monkeypatch.setattr("distcap.corruptions.CORRUPTIONS", named)
    rng = Random(0)
    counts = Counter(corrupt(CAPTION, rng, VOCABULARY) for _ in range(1500))
    assert counts.keys() == {"repeat", "remove", "insert", "swap", "shuffle"}
    assert all(abs(count - 300) < 78 for count in counts.values())


def test_the_same_seed_corrupts_alike() -> None:
    first, second = ([corrupt(CAPTION, rng, VOCABULARY) for _ in range(20)] for rng in (Random(1), Random(1)))
    assert first == second


def test_white_space_is_no_corruption() -> None:
    assert all("  " not in corrupt("a  red\tdog ", rng, VOCABULARY) for rng in draws())
    assert all(corrupt("a  red\tdog ", rng, VOCABULARY) != "a red dog" for rng in draws())


def test_nothing_to_corrupt_with_is_said() -> None:
    with pytest.raises(UserError, match="an empty caption and an empty vocabulary"):
        corrupt(" ", Random(0), [])
