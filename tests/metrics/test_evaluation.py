"""What Evaluation leaves in a run's folder, of three images and a judge to whom they all look alike."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import FakeClip, embed

from distcap.callbacks import Evaluation, evaluation
from distcap.data.annotations import Entry
from distcap.metrics.java import JavaScore, Texts
from distcap.metrics.ngram import ngram_scores
from distcap.models import Sampler

TRUTHS = {2: ["red dog"], 5: ["blue cat"], 9: ["dog"]}
CAPTIONS = {5: "blue cat", 2: "red dog dog", 9: "dog"}


class Clip(FakeClip):
    """Sees of an image its ground truth, or of all images a dog."""

    truncated = 0

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind

    def image_store(self, files: dict[int, Path], folder: Path) -> "Store":
        return Store(self.blind)


class Store:
    """Of such embeddings."""

    def __init__(self, blind: bool) -> None:
        self.blind = blind

    def __getitem__(self, ids: list[int]) -> torch.Tensor:
        return embed(*("dog" if self.blind else TRUTHS[i][0] for i in ids))


Left = tuple[dict[str, float], dict[str, Any], dict[str, float]]


def evaluate(
    folder: Path,
    truths: dict[int, list[str]],
    domains: dict[int, str] | None = None,
    java: bool = False,
    judge: Any = None,
) -> Left:
    """metrics.json and scores_test.json of a run with a judge (one that sees dogs only), and what was logged."""
    entries = [Entry(i, Path("x"), tuple(TRUTHS[i]), "test", (domains or {}).get(i)) for i in TRUTHS]
    data = SimpleNamespace(
        entries=lambda split: entries, path=lambda e: Path("x"), references=lambda split: truths, cache_dir=folder
    )
    trainer = SimpleNamespace(
        world_size=1, datamodule=data, is_global_zero=True, fast_dev_run=0, default_root_dir=folder, loggers=[]
    )
    logged: dict[str, float] = {}
    stage = SimpleNamespace(
        device="cpu", decoder=Sampler(method="greedy"), log_dict=lambda values, **_: logged.update(values)
    )
    evaluation = Evaluation(Clip(), judge or Clip(blind=True), java=java)
    evaluation._captions = dict(CAPTIONS)
    evaluation.on_test_epoch_end(trainer, stage)
    return (
        json.loads((folder / "metrics.json").read_text())["test"],
        json.loads((folder / "scores_test.json").read_text()),
        logged,
    )


@pytest.fixture
def left(tmp_path: Path) -> tuple[dict[str, float], dict[str, Any], dict[str, float]]:
    """What an evaluation leaves where there are human captions."""
    return evaluate(tmp_path, TRUTHS)


def test_without_human_captions_nothing_is_compared_with_them_and_all_else_is_measured_alike(
    left: Any, tmp_path: Path
) -> None:
    metrics, table, logged = evaluate(tmp_path, {image: [] for image in TRUTHS})
    compared = {"cider", "rouge_l", *(f"bleu@{n}" for n in range(1, 5))}
    assert metrics == {name: value for name, value in left[0].items() if name not in compared}
    assert table["scores"].keys() == left[1]["scores"].keys() - {"cider", "rouge_l", "bleu_counts"}
    assert logged.keys() == {f"test/{name}" for name in metrics}
    assert [row["ground_truth"] for row in json.loads((tmp_path / "captions_test.json").read_text())] == [[], [], []]


def test_every_image_has_a_value_of_each_metric_in_the_order_of_ids(left: Any) -> None:
    _, table, _ = left
    assert table["image_ids"] == [2, 5, 9]
    recalls = {f"{who}{way}_recall@{k}" for who in ("", "judge_") for way in ("t2i", "i2t") for k in (1, 5, 10)}
    texts = {"cider", "rouge_l", "length", "repetition", "bad_endings", "bleu_counts"}
    assert set(table["scores"]) == recalls | texts
    assert {len(values) for values in table["scores"].values()} == {3}
    assert table["scores"]["length"] == [3, 2, 1]


def test_the_values_of_the_images_have_the_metrics_as_their_mean(left: Any) -> None:
    metrics, table, _ = left
    for name, values in table["scores"].items():
        if name != "bleu_counts":
            assert sum(values) / 3 == pytest.approx(metrics[name]), name


def test_prediction_waits_for_no_clip() -> None:
    asked = []
    data = SimpleNamespace(cache_dir=None)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device="cpu"), datamodule=data)
    evaluation = Evaluation(SimpleNamespace(to=asked.append))  # type: ignore[arg-type]
    evaluation.setup(trainer, SimpleNamespace(), "predict")  # type: ignore[arg-type]
    assert not asked
    evaluation.setup(trainer, SimpleNamespace(), "test")  # type: ignore[arg-type]
    assert asked == ["cpu"]


def test_the_gap_between_reward_clip_and_judge_is_measured_and_logged(left: Any) -> None:
    metrics, table, logged = left
    # <"red dog dog", "dog"> = 2 / sqrt(5) is less than <.., "red dog"> = 3 / sqrt(10): all three find their image. The
    # judge sees three like images: each is found one time in three.
    assert table["scores"]["t2i_recall@1"] == [100, 100, 100]
    assert table["scores"]["judge_t2i_recall@1"] == pytest.approx([100 / 3] * 3)
    assert metrics["judge_gap"] == logged["test/judge_gap"] == pytest.approx(200 / 3)


DOMAINS = {2: "in-domain", 5: "out-domain", 9: "in-domain"}


def test_each_domain_has_the_metrics_of_its_images_beside_those_of_all(left: Any, tmp_path: Path) -> None:
    alone, _, _ = left
    metrics, _, logged = evaluate(tmp_path / "domains", TRUTHS, DOMAINS)
    overall = {name: value for name, value in metrics.items() if "/" not in name}
    assert overall == alone
    counted_once = {"truncated", "judge_truncated"}
    assert metrics.keys() - overall.keys() == {
        f"{domain}/{name}" for domain in ("in_domain", "out_domain") for name in overall.keys() - counted_once
    }
    assert logged["test/in_domain/cider"] == metrics["in_domain/cider"]
    # "red dog dog" and "dog"; "blue cat".
    assert (metrics["in_domain/length"], metrics["out_domain/length"]) == (2, 2)
    assert (metrics["in_domain/vocabulary"], metrics["out_domain/vocabulary"]) == (2, 2)


def test_the_n_gram_metrics_of_a_domain_are_those_of_a_collection_of_its_own(tmp_path: Path) -> None:
    metrics, _, _ = evaluate(tmp_path, TRUTHS, DOMAINS)
    expected = ngram_scores({2: CAPTIONS[2], 9: CAPTIONS[9]}, {2: TRUTHS[2], 9: TRUTHS[9]}, java=False)
    assert {name: metrics[f"in_domain/{name}"] for name in expected} == expected


def test_the_images_of_a_domain_are_looked_for_among_all(tmp_path: Path) -> None:
    metrics, _, _ = evaluate(tmp_path, TRUTHS, DOMAINS)
    # To the judge all three images are alike: each is found one time in three, though its domain has but one image.
    assert metrics["out_domain/judge_t2i_recall@1"] == pytest.approx(100 / 3)
    assert metrics["out_domain/judge_gap"] == pytest.approx(200 / 3)


def test_an_image_without_a_domain_counts_among_all_alone(tmp_path: Path) -> None:
    metrics, _, _ = evaluate(tmp_path, TRUTHS, {5: "out-domain"})
    assert {name.split("/")[0] for name in metrics if "/" in name} == {"out_domain"}


def test_a_domain_has_the_metrics_that_run_on_java_where_there_is_java(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[list[int]] = []

    def spice(texts: Texts) -> dict[str, JavaScore]:
        scored.append(list(texts.captions))
        return {"spice": JavaScore(0.1 * len(texts.captions), [0.1] * len(texts.captions))}

    monkeypatch.setattr("distcap.metrics.ngram.java_scores", spice)
    metrics, _, logged = evaluate(tmp_path, TRUTHS, DOMAINS, java=True)
    assert scored == [[2, 5, 9], [2, 9], [5]]
    assert [metrics[name] for name in ("spice", "in_domain/spice", "out_domain/spice")] == pytest.approx(
        [0.3, 0.2, 0.1]
    )
    assert not [name for name in logged if "spice" in name]  # one process has them, and logging waits for all


def test_without_java_no_domain_asks_for_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Texts] = []

    def none(texts: Texts) -> dict[str, JavaScore]:
        asked.append(texts)
        return {}

    monkeypatch.setattr("distcap.metrics.ngram.java_scores", none)
    evaluate(tmp_path, TRUTHS, DOMAINS, java=True)
    assert len(asked) == 1


def test_several_judges_have_metrics_of_their_own_names(left: Any, tmp_path: Path) -> None:
    metrics, _, logged = evaluate(tmp_path / "several", TRUTHS, judge={"judge": Clip(blind=True), "siglip": Clip()})
    one = left[0]
    assert {name: value for name, value in metrics.items() if not name.startswith("siglip_")} == one
    judged = {name for name in one if name.startswith("judge_")}
    assert {name for name in metrics if name.startswith("siglip_")} == {n.replace("judge_", "siglip_") for n in judged}
    assert metrics["siglip_t2i_recall@1"] == 100
    assert metrics["siglip_gap"] == logged["test/siglip_gap"] == 0


def test_captions_of_all_processes_count_and_a_repeated_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A distributed sampler repeats an image where the processes' shares would be uneven."""

    def gather(parts: list[Any], own: dict[int, str]) -> None:
        parts[:] = [own, {2: "a moon", 0: "a dog"}]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert evaluation._gather({0: "a dog", 1: "a cat"}, 2) == {0: "a dog", 1: "a cat", 2: "a moon"}
