"""What Evaluation leaves in a run's folder, of three images and a judge to whom they all look alike."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import FakeClip, embed

from distcap.callbacks import Evaluation

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


@pytest.fixture
def left(tmp_path: Path) -> Left:
    """metrics.json and scores_test.json of a run with a judge that sees dogs only, and what was logged."""
    return evaluate(tmp_path, Clip(blind=True))


def evaluate(tmp_path: Path, judge: Any) -> Left:
    entries = [SimpleNamespace(image_id=i) for i in TRUTHS]
    data = SimpleNamespace(
        entries=lambda split: entries, path=lambda e: Path("x"), references=lambda split: TRUTHS, cache_dir=tmp_path
    )
    trainer = SimpleNamespace(
        world_size=1, datamodule=data, is_global_zero=True, fast_dev_run=0, default_root_dir=tmp_path, loggers=[]
    )
    logged: dict[str, float] = {}
    stage = SimpleNamespace(device="cpu", log_dict=lambda values, **_: logged.update(values))
    evaluation = Evaluation(Clip(), judge, java=False)
    evaluation._captions = dict(CAPTIONS)
    evaluation.on_test_epoch_end(trainer, stage)
    return (
        json.loads((tmp_path / "metrics.json").read_text())["test"],
        json.loads((tmp_path / "scores_test.json").read_text()),
        logged,
    )


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


def test_the_gap_between_reward_clip_and_judge_is_measured_and_logged(left: Any) -> None:
    metrics, table, logged = left
    # <"red dog dog", "dog"> = 2 / sqrt(5) is less than <.., "red dog"> = 3 / sqrt(10): all three find their image. The
    # judge sees three like images: each is found one time in three.
    assert table["scores"]["t2i_recall@1"] == [100, 100, 100]
    assert table["scores"]["judge_t2i_recall@1"] == pytest.approx([100 / 3] * 3)
    assert metrics["judge_gap"] == logged["test/judge_gap"] == pytest.approx(200 / 3)


def test_several_judges_have_metrics_of_their_own_names(left: Any, tmp_path: Path) -> None:
    metrics, _, logged = evaluate(tmp_path / "several", {"judge": Clip(blind=True), "siglip": Clip()})
    one = left[0]
    assert {name: value for name, value in metrics.items() if not name.startswith("siglip_")} == one
    judged = {name for name in one if name.startswith("judge_")}
    assert {name for name in metrics if name.startswith("siglip_")} == {n.replace("judge_", "siglip_") for n in judged}
    assert metrics["siglip_t2i_recall@1"] == 100
    assert metrics["siglip_gap"] == logged["test/siglip_gap"] == 0
