"""The table of writing quality: its keys, its numbers, and what happens without Java."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from distcap.metrics import java
from distcap.metrics.evaluated import score_runs
from distcap.metrics.ngram import bleu, ngram_scores, split_scores
from distcap.metrics.signature import signature
from distcap.models import Sampler
from distcap.ngrams import CiderD
from distcap.types import UserError

CAPTIONS = {4: "a dog on a porch", 2: "two cats sleep"}
REFERENCES = {2: ["two cats sleep", "cats"], 4: ["a brown dog lies on a porch", "a dog on a porch", "a dog"]}
TEXT_KEYS = {"bleu@1", "bleu@2", "bleu@3", "bleu@4", "rouge_l", "cider", "length", "repetition", "bad_endings"} | {
    "distinct@1",
    "distinct@2",
    "vocabulary",
}

needs_java = pytest.mark.skipif(java.missing("meteor") is not None, reason=str(java.missing("meteor")))
needs_spice = pytest.mark.skipif(java.missing("spice") is not None, reason=str(java.missing("spice")))


def fake_program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


DOGS = {0: "一只红色的狗坐在门廊", 1: "一只黑色的狗坐在门廊", 2: "一只白色的猫睡在雪里"}
ON_A_PORCH = {0: ["一只红色的狗坐在门廊上"], 1: ["一只黑色的狗坐在门廊上。"], 2: ["一只白色的猫睡在雪里"]}


def test_chinese_is_scored_by_its_characters_as_if_they_were_words_between_spaces():
    def apart(text: str) -> str:
        return " ".join(text.replace("。", ""))

    scores = ngram_scores(DOGS, ON_A_PORCH, java=False)
    words = {i: apart(text) for i, text in DOGS.items()}
    assert scores == ngram_scores(words, {i: list(map(apart, row)) for i, row in ON_A_PORCH.items()}, java=False)
    assert scores["length"] == 10
    assert scores["cider"] > 1
    assert scores["bleu@4"] > 0.5


def test_a_language_that_is_not_split_is_warned_of_once():
    unsplit = {0: ["anunbrokensentence"], 1: ["anotherunbrokenone"]}
    with pytest.warns(UserWarning, match="2 of 2 captions are a single token, the first: 'anunbrokensentence'") as told:
        ngram_scores({0: "anunbroken", 1: "another"}, unsplit, java=False)
    assert len(told) == 1


@pytest.mark.parametrize("references", [ON_A_PORCH, REFERENCES, {0: ["dog"], 1: ["cat"]}])
def test_languages_that_are_split_and_short_captions_are_not_warned_of(references):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ngram_scores({image: row[0] for image, row in references.items()}, references, java=False)
    assert not told


def test_the_signature_says_how_it_split_what_has_no_spaces_and_is_as_before_where_there_is_none_of_it():
    def line(references: dict) -> str:
        return signature("CocoCaptions", "test", references, Sampler(method="greedy"))["tokenizer"]

    assert (
        line(ON_A_PORCH)
        == line(REFERENCES) + ", each character of Chinese, Japanese, Thai, Lao, Khmer and Burmese a token"
    )
    assert line(REFERENCES).endswith("lower case, no punctuation")


def test_without_java_the_table_has_the_text_metrics_alone():
    assert ngram_scores(CAPTIONS, REFERENCES, java=False).keys() == TEXT_KEYS


def test_captions_that_copy_a_reference_score_one():
    scores = ngram_scores({0: "A small dog sits there."}, {0: ["a small dog sits there", "a cat"]}, java=False)
    for key in ("bleu@1", "bleu@4", "rouge_l"):
        assert scores[key] == pytest.approx(1)


def test_bleu_and_rouge_worked_out_by_hand():
    # Three of four words and one of three bigrams ("a dog") are the reference's; equal lengths, no brevity penalty.
    scores = ngram_scores({0: "a dog runs fast"}, {0: ["a dog fast sits"]}, java=False)
    assert scores["bleu@1"] == pytest.approx(3 / 4)
    assert scores["bleu@2"] == pytest.approx((3 / 4 * 1 / 3) ** 0.5)
    # Longest common subsequence "a dog fast": precision and recall 3/4.
    assert scores["rouge_l"] == pytest.approx(3 / 4)


def test_cider_and_the_signs_of_hacking_are_means_over_captions():
    scores = ngram_scores({0: "a dog on a", 1: "red bus"}, {0: ["a dog on a porch"], 1: ["a red bus"]}, java=False)
    expected = CiderD({0: ["a dog on a porch"], 1: ["a red bus"]})(["a dog on a", "red bus"], [0, 1]).mean()
    assert scores["cider"] == pytest.approx(expected)
    assert scores["length"] == 3
    assert scores["bad_endings"] == 0.5
    assert scores["repetition"] == 0
    assert scores["distinct@1"] == 5 / 6
    assert scores["distinct@2"] == 1


def test_empty_captions_score_nothing_and_crash_nothing():
    scores = ngram_scores({0: "", 1: "..."}, {0: ["a dog"], 1: ["a cat"]}, java=False)
    assert scores == pytest.approx(dict.fromkeys(TEXT_KEYS, 0), abs=1e-9)


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        ({}, {}, "no captions to score"),
        ({0: "a dog", 5: "a cat"}, {0: ["a dog"]}, r"1 image has captions but no references \(ids 5\)"),
        ({0: "a dog"}, {0: ["a dog"], 8: ["a"], 9: ["a"]}, r"2 images have references but no caption \(ids 8, 9\)"),
        ({0: "a dog"}, {0: []}, r"1 image has an empty list of references \(ids 0\)"),
    ],
)
def test_images_that_do_not_match_are_named(captions, references, message):
    with pytest.raises(UserError, match=message):
        ngram_scores(captions, references)


def test_missing_java_is_a_warning_for_each_skipped_metric(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="is left out: there is no `java` on the PATH") as warned:
        assert ngram_scores(CAPTIONS, REFERENCES).keys() == TEXT_KEYS
    assert [str(warning.message).split()[0] for warning in warned] == ["METEOR", "SPICE"]


def test_missing_archives_are_a_warning_with_the_command_that_mends_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: program)
    monkeypatch.setattr(java, "SPICE_JARS", ("some.group:absent:1.0:jar:models",))
    assert (
        java.missing("spice")
        == "1 of its archives are not installed (absent-1.0-models.jar); run `distcap prepare spice`"
    )
    assert java.missing("meteor") is None


@pytest.mark.parametrize("metric", ["meteor", "spice"])
def test_java_that_fails_is_a_clear_error(metric, monkeypatch, tmp_path):
    fake_program(tmp_path, "java", "echo 'Error: no room for the heap' >&2; exit 1")
    monkeypatch.setattr(java, "SPICE_JARS", ())
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(UserError, match="Java failed: Error: no room for the heap"):
        getattr(java, metric)([java.Texts(CAPTIONS, REFERENCES)])


@pytest.mark.parametrize("metric", ["meteor", "spice"])
def test_java_that_hangs_is_stopped_at_the_limit(metric, monkeypatch, tmp_path):
    fake_program(tmp_path, "java", "exec sleep 60")
    monkeypatch.setattr(java, "SPICE_JARS", ())
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"did not end within 0\.3 s"):
        getattr(java, metric)([java.Texts(CAPTIONS, REFERENCES)], limit=0.3)
    assert time.monotonic() - start < 30


def test_a_fetched_archive_lands_in_pycocoevalcaps_folder(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(java, "_folder", lambda metric: tmp_path)
    monkeypatch.setattr(java, "SPICE_JARS", ("some.group:fetched:1.0:jar",))
    fake_program(tmp_path, "mvn", "echo archive > fetched-1.0.jar")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert java.install_spice() == tmp_path / "lib"
    assert [path.name for path in (tmp_path / "lib").iterdir()] == ["fetched-1.0.jar"]


def test_maven_that_fails_is_a_clear_error_and_leaves_nothing(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(java, "_folder", lambda metric: tmp_path)
    monkeypatch.setattr(java, "SPICE_JARS", ("some.group:refused:1.0:jar",))
    fake_program(tmp_path, "mvn", "echo half > refused-1.0.jar; echo '[ERROR] unreachable'; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(UserError, match=r"could not fetch some\.group:refused:1\.0:jar: \[ERROR\] unreachable"):
        java.install_spice()
    assert not list((tmp_path / "lib").iterdir())


def test_the_table_is_imported_without_its_heavy_libraries():
    program = "import sys, distcap.metrics.ngram; print([m for m in sys.modules if m in ('nltk', 'pycocoevalcap')])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


CORPUS = {0: "a dog on a", 1: "red bus", 2: "", 3: "a cat sleeps on a red sofa near the dog", 4: "a dog on a porch"}
TRUTHS = {
    0: ["a dog on a porch", "dog"],
    1: ["a red bus", "the bus is red and long"],
    2: ["two cats"],
    3: ["a cat sleeps on a sofa", "the dog looks at a cat on a red sofa"],
    4: ["a dog on a porch"],
}


def test_bleu_of_the_summed_counts_is_pycocoevalcaps_of_the_corpus():
    from pycocoevalcap.bleu.bleu import Bleu

    expected, _ = Bleu(4).compute_score(TRUTHS, {i: [caption] for i, caption in CORPUS.items()}, verbose=0)
    scores = ngram_scores(CORPUS, TRUTHS, java=False)
    assert [scores[f"bleu@{n}"] for n in (1, 2, 3, 4)] == pytest.approx(expected, rel=1e-12)


def test_the_counts_of_bleu_by_hand():
    # "a dog runs fast" shares a, dog, fast and "a dog"; it has 4, 3, 2, 1 n-grams; the reference of 5 words is closer
    # to its 4 than the one of 2.
    _, each = split_scores({0: "a dog runs fast"}, {0: ["a dog fast sits down", "a dog"]}, java=False)
    assert each["bleu_counts"] == [[3, 1, 0, 0, 4, 3, 2, 1, 4, 5]]


def test_bleu_of_several_collections_is_that_of_each():
    _, each = split_scores(CORPUS, TRUTHS, java=False)
    counts = np.array(each["bleu_counts"])
    stacked = bleu(np.stack([counts[:2].sum(0), counts[3:].sum(0)]))
    assert stacked.shape == (2, 4)
    assert stacked[1] == pytest.approx(bleu(counts[3:].sum(0)))


def test_the_values_of_the_captions_have_the_splits_as_their_mean():
    scores, each = split_scores(CORPUS, TRUTHS, java=False)
    assert each.keys() == {"bleu_counts", "rouge_l", "cider", "length", "repetition", "bad_endings"}
    for name in each.keys() - {"bleu_counts"}:
        assert len(each[name]) == 5
        assert np.mean(each[name]) == pytest.approx(scores[name])


def test_the_values_of_the_captions_are_in_the_captions_order():
    _, each = split_scores({7: "a red dog and a red dog", 3: "a dog on a"}, {3: ["a"], 7: ["a"]}, java=False)
    assert each["length"] == [7, 4]
    assert each["repetition"] == pytest.approx([2 / 6, 0])
    assert each["bad_endings"] == [0, 1]


def test_the_vocabulary_counts_each_word_once_over_all_captions():
    # a, dog, on, porch, cat
    scores = ngram_scores({0: "A dog on a porch.", 1: "a cat on a dog"}, {0: ["a"], 1: ["a"]}, java=False)
    assert scores["vocabulary"] == 5


@pytest.fixture
def fake_java(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """METEOR and SPICE that give a caption its number of words; the calls, as (metric, systems)."""
    calls: list[tuple[str, int]] = []

    def metric(name: str):
        def score(systems: Sequence[java.Texts]) -> list[java.JavaScore]:
            calls.append((name, len(systems)))
            each = [[float(len(caption.split())) for caption in texts.captions.values()] for texts in systems]
            return [java.JavaScore(sum(values) / len(values), values) for values in each]

        return score

    monkeypatch.setattr(java, "METRICS", {name: metric(name) for name in ("meteor", "spice")})
    return calls


def write_run(folder: Path, *captions: str, **scores: list[float]) -> Path:
    folder.mkdir()
    rows = [{"image_id": i, "caption": caption, "ground_truth": ["A dog."]} for i, caption in enumerate(captions)]
    (folder / "captions_test.json").write_text(json.dumps(rows))
    metrics = {name: sum(values) / len(values) for name, values in scores.items()}
    (folder / "metrics.json").write_text(json.dumps({"val": {"cider": 3.0}, "test": {"cider": 1.0, **metrics}}))
    table = {"image_ids": list(range(len(captions))), "scores": {"cider": [1.0] * len(captions), **scores}}
    (folder / "scores_test.json").write_text(json.dumps(table))
    return folder / "scores_test.json"


def test_many_runs_are_scored_by_one_call_of_each_java_metric(tmp_path, fake_java):
    runs = [write_run(tmp_path / "a", "A dog.", "a"), write_run(tmp_path / "b", "two cats sleep", "a")]
    score_runs(runs)
    assert fake_java == [("meteor", 2), ("spice", 2)]
    for run, each in zip(runs, ([2, 1], [3, 1]), strict=True):
        scores = json.loads(run.read_text())["scores"]
        assert scores == {"cider": [1, 1], "meteor": each, "spice": each}
        metrics = json.loads(run.with_name("metrics.json").read_text())
        assert metrics["val"] == {"cider": 3}
        assert metrics["test"] == {"cider": 1, "meteor": sum(each) / 2, "spice": sum(each) / 2}


def test_a_run_that_has_a_java_metric_is_not_scored_again(tmp_path, fake_java):
    done = write_run(tmp_path / "done", "a dog", meteor=[0.5], spice=[0.25])
    half = write_run(tmp_path / "half", "a dog", meteor=[0.5])
    before = done.with_name("metrics.json").read_text()
    score_runs([done, half])
    assert fake_java == [("spice", 1)]
    assert done.with_name("metrics.json").read_text() == before
    assert json.loads(half.with_name("metrics.json").read_text())["test"] == {"cider": 1, "meteor": 0.5, "spice": 2}


def test_without_java_many_runs_cost_one_warning_and_stay_as_they_are(monkeypatch, tmp_path):
    runs = [write_run(tmp_path / name, "a dog") for name in ("a", "b", "c")]
    before = [run.with_name("metrics.json").read_text() for run in runs]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match=r"METEOR is left out: there is no `java`.*; SPICE is left out") as warned:
        score_runs(runs)
    assert len(warned) == 1
    assert [run.with_name("metrics.json").read_text() for run in runs] == before


@needs_java
def test_meteor_equals_pycocoevalcaps_and_takes_any_caption():
    captions = {4: "a dog on a porch", 2: "", 7: "a café", 1: "a dog ||| a cat"}
    references = {4: ["a brown dog lies on a porch", "a dog"], 2: ["two cats"], 7: ["people in a café"], 1: ["a cat"]}
    # What pycocoevalcap.meteor.meteor.Meteor answers to these; asking it here as well would double the time.
    score, other = java.meteor([java.Texts(captions, references), java.Texts({4: "a dog"}, references)])
    assert score.corpus == pytest.approx(0.31067945497387023)
    assert len(score.each) == 4
    assert score.each[1] == 0  # nothing said
    assert other.each == [pytest.approx(other.corpus)]


@needs_spice
def test_spice_compares_scene_graphs_and_takes_any_caption(tmp_path):
    # Image 1: the caption's tuples are dog, porch, dog-brown, dog-on-porch; of the references' seven (the parser takes
    # "resting" for the brown thing) it shares dog and porch: F = 2 * 2 / (4 + 7). Image 2 says nothing and gets
    # nothing, image 3 repeats its reference and gets 1.
    captions = {1: "a brown dog on a porch", 2: "", 3: "a cat on a red sofa"}
    references = {1: ["a dog lies on a wooden porch", "brown dog resting"], 2: ["a cat"], 3: ["a cat on a red sofa"]}
    # A second system has images in another order, one with the caption that the first gave to another.
    others = {3: "a cat on a red sofa", 1: "a cat on a red sofa"}
    score, other = java.spice([java.Texts(captions, references), java.Texts(others, references)], cache=tmp_path)
    assert score.each == pytest.approx([4 / 11, 0, 1], abs=1e-3)
    assert score.corpus == pytest.approx(sum(score.each) / 3)
    assert other.each == [1, 0]
