"""The watch over RL: streams of metrics as a stage would log them, and what is said of them."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from distcap.callbacks import HackingWatch

HEALTHY = {
    "policy/greedy_cider": 1.3,
    "reference/cider": 1.3,
    "policy/entropy": 0.8,
    "policy/vocabulary": 58.0,
    "policy/length": 13.0,
    "human/length": 10.0,
    "policy/repetition": 0.04,
    "human/repetition": 0.01,
    "policy/bad_endings": 0.01,
    "human/bad_endings": 0.0,
    "policy/unfinished": 0.01,
    "reward/zero_std": 0.05,
    "reward/sampled/clip": 0.7,
    "reward/total": 0.7,
}
SICK = {
    "likeness": {"policy/greedy_cider": 0.9},
    "repetition": {"policy/repetition": 0.2},
    "bad_endings": {"policy/bad_endings": 0.3},
    "length": {"policy/length": 25.0},
    "entropy": {"policy/entropy": 0.3},
    "vocabulary": {"policy/vocabulary": 35.0},
    "zero_spread": {"reward/zero_std": 0.8},
    "unfinished": {"policy/unfinished": 0.4},
}
"""What makes each symptom."""


class Stream(LightningModule):
    """Logs the rows it is given, one a step, and has a parameter to train."""

    def __init__(self, rows: list[dict[str, float]], validation: list[dict[str, float]] | None = None) -> None:
        super().__init__()
        self.rows, self.validation = rows, validation or []
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log_dict(self.rows[self.global_step], on_step=True, on_epoch=False)
        return self.weight**2

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        row = {"cider": 9.0} if self.trainer.sanity_checking else self.validation[self.current_epoch]
        self.log_dict({f"val/{key}": value for key, value in row.items()})

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(
    folder: Path,
    watch: HackingWatch,
    rows: list[dict[str, float]],
    validation: list[dict[str, float]] | None = None,
    ckpt_path: Path | None = None,
) -> Trainer:
    """A run of one step a row; with validation, an epoch of ten steps a row of it."""
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=len(rows),
        accelerator="cpu",
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        limit_val_batches=1 if validation else 0,
    )
    loader = DataLoader(torch.zeros(10 if validation else len(rows), 1))
    stage = Stream(rows, validation)
    trainer.fit(stage, loader, DataLoader(torch.zeros(1, 1)), ckpt_path=ckpt_path and str(ckpt_path))
    return trainer


def small(**kwargs: Any) -> HackingWatch:
    return HackingWatch(**{"window": 6, "beginning": 4, **kwargs})


def rows_of(*values: float, key: str) -> list[dict[str, float]]:
    return [{**HEALTHY, key: value} for value in values]


def read(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "health.json").read_text())


@pytest.mark.parametrize("name", SICK)
def test_each_symptom_is_told_once_and_alone(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [HEALTHY] * 10 + [{**HEALTHY, **SICK[name]}] * 20
    with caplog.at_level(logging.WARNING, "distcap"):
        fit(tmp_path, small(), rows)
    assert [row["symptom"] for row in read(tmp_path)] == [name]
    assert [record.getMessage() for record in caplog.records if record.name.startswith("distcap")] == [
        row["sentence"] for row in read(tmp_path)
    ]


def test_every_threshold_is_felt(tmp_path: Path):
    lenient = {"likeness": 0.1, "entropy": 0.1, "vocabulary": 0.1, "length": 9.0}
    lenient |= dict.fromkeys(("repetition", "bad_endings", "zero_spread", "unfinished"), 0.99)
    everything = {key: value for row in SICK.values() for key, value in row.items()}
    for name in SICK:
        others = {other: value for other, value in lenient.items() if other != name}
        fit(tmp_path, small(**others), [HEALTHY] * 4 + [{**HEALTHY, **everything}] * 6)
        assert [row["symptom"] for row in read(tmp_path)] == [name]


def test_a_warning_is_one_sentence_with_both_numbers_what_it_means_and_what_to_try(tmp_path: Path):
    hacked = {**HEALTHY, "policy/greedy_cider": 0.9, "reward/sampled/clip": 0.8}
    fit(tmp_path, small(), [HEALTHY] * 4 + [hacked] * 6)
    assert read(tmp_path) == [
        {
            "step": 10,
            "symptom": "likeness",
            "sentence": "Step 10: the likeness of greedy captions to human ones (CIDEr) is 0.9, against 1.3 of the "
            "captioner before RL, while the reward clip rose from 0.7 to 0.8: the captioner says what pleases the "
            "reward rather than what is there; add weighted teacher forcing to the objective or a discriminator to "
            "the rewards, or lower the learning rate.",
        }
    ]


def test_a_likeness_that_falls_with_every_reward_does_not_blame_a_reward(tmp_path: Path):
    worse = {**HEALTHY, "policy/greedy_cider": 0.9, "reward/sampled/clip": 0.6}
    fit(tmp_path, small(), [HEALTHY] * 4 + [worse] * 6)
    assert "while the reward" not in read(tmp_path)[0]["sentence"]


def test_the_watch_is_silent_on_noise(tmp_path: Path):
    # Each value is off by up to a quarter of itself, evenly: a window's mean of 50 has a standard deviation of 0.02 of
    # it, and the beginning's of 10 one of 0.045. The nearest limit, a vocabulary of 0.75, is five of these away: 240
    # steps see it by chance less than once in ten thousand seeds.
    draw = random.Random(0)
    noisy = [{key: value * draw.uniform(0.75, 1.25) for key, value in HEALTHY.items()} for _ in range(240)]
    fit(tmp_path, HackingWatch(), noisy)
    assert read(tmp_path) == []


def test_one_bad_step_is_no_symptom(tmp_path: Path):
    everything = {key: value for row in SICK.values() for key, value in row.items()}
    rows = [HEALTHY] * 80
    rows[60] = {**HEALTHY, **everything}
    fit(tmp_path, HackingWatch(), rows)
    assert read(tmp_path) == []


def test_nothing_is_judged_before_there_is_a_whole_window(tmp_path: Path):
    fit(tmp_path, small(), rows_of(*[0.8] * 4, *[0.1] * 5, key="policy/entropy"))
    assert read(tmp_path) == []
    fit(tmp_path, small(), rows_of(*[0.8] * 4, *[0.1] * 6, key="policy/entropy"))
    assert [row["step"] for row in read(tmp_path)] == [10]


def test_a_collapse_is_measured_against_the_runs_own_beginning(tmp_path: Path):
    fit(tmp_path, small(), rows_of(*[0.3] * 20, key="policy/entropy"))
    assert read(tmp_path) == []


def test_a_spread_that_was_never_there_is_told_all_the_same(tmp_path: Path):
    fit(tmp_path, small(), rows_of(*[0.8] * 20, key="reward/zero_std"))
    assert [row["symptom"] for row in read(tmp_path)] == ["zero_spread"]


def test_samples_are_compared_with_the_human_captions_of_the_same_steps(tmp_path: Path):
    long = {**HEALTHY, "policy/length": 25.0, "human/length": 20.0}  # of images that take more words
    fit(tmp_path, small(), [HEALTHY] * 4 + [long] * 10)
    assert read(tmp_path) == []


def test_what_is_not_a_number_is_passed_over(tmp_path: Path):
    fit(tmp_path, small(), rows_of(*[0.8] * 4, *[0.1] * 3, float("nan"), *[0.1] * 3, key="policy/entropy"))
    assert [row["symptom"] for row in read(tmp_path)] == ["entropy"]


def test_what_is_not_logged_is_not_watched(tmp_path: Path):
    rows = [{key: value for key, value in HEALTHY.items() if not key.startswith(("human/", "reference/"))}] * 20
    fit(tmp_path, small(likeness=2.0, length=0.1, repetition=-1.0, bad_endings=-1.0), rows)
    assert read(tmp_path) == []


def test_a_value_that_is_logged_at_some_steps_only_stands_in_between(tmp_path: Path):
    costly = {"policy/greedy_cider", "reference/cider"}
    rows: list[dict[str, float]] = []
    for step in range(20):
        row = HEALTHY if step < 10 else {**HEALTHY, "policy/greedy_cider": 0.9}
        rows.append(row if step % 5 == 0 else {key: value for key, value in row.items() if key not in costly})
    fit(tmp_path, small(), rows)
    # The look of step index 10 is the first bad one. 0.75 of 1.3 is 0.975: five bad steps of a window of six will do.
    assert [(row["step"], row["symptom"]) for row in read(tmp_path)] == [(15, "likeness")]


def test_a_healthy_run_leaves_an_empty_list_for_nobody_watched_leaves_no_file(tmp_path: Path):
    fit(tmp_path, small(), [HEALTHY] * 3)
    assert read(tmp_path) == []


def test_a_new_run_in_the_folder_does_not_inherit_warnings(tmp_path: Path):
    (tmp_path / "health.json").write_text('[{"step": 1, "symptom": "entropy", "sentence": "old"}]')
    fit(tmp_path, small(), [HEALTHY] * 3)
    assert read(tmp_path) == []


def test_stop_ends_the_training_at_the_first_warning_and_says_so(tmp_path: Path):
    rows = rows_of(*[0.8] * 4, *[0.1] * 30, key="policy/entropy")
    trainer = fit(tmp_path, small(stop=True), rows)
    assert trainer.global_step == read(tmp_path)[0]["step"] < 15
    assert read(tmp_path)[0]["sentence"].endswith("; the training stops here.")


def test_without_stop_a_warning_changes_nothing(tmp_path: Path):
    trainer = fit(tmp_path, small(), rows_of(*[0.8] * 4, *[0.1] * 30, key="policy/entropy"))
    assert len(read(tmp_path)) == 1
    assert trainer.global_step == 34


def test_a_resumed_run_remembers_its_beginning_and_does_not_repeat_itself(tmp_path: Path):
    values = [0.8] * 4 + [0.1] * 16
    rows = [
        {**row, "policy/vocabulary": 30.0 if i > 9 else 58.0}
        for i, row in enumerate(rows_of(*values, key="policy/entropy"))
    ]
    trainer = fit(tmp_path, small(), rows[:11])
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert [row["symptom"] for row in read(tmp_path)] == ["entropy"]
    fit(tmp_path, small(), rows, ckpt_path=tmp_path / "half.ckpt")
    whole = tmp_path / "whole"
    fit(whole, small(), rows)
    assert [row["symptom"] for row in read(tmp_path)] == ["entropy", "vocabulary"]
    assert read(tmp_path) == read(whole)


def test_greedy_captions_of_validation_are_compared_with_the_first_validation(tmp_path: Path):
    fit(tmp_path, small(), [HEALTHY] * 30, [{"cider": 1.4}, {"cider": 1.3}, {"cider": 0.9}])
    [row] = read(tmp_path)
    assert (row["symptom"], row["step"]) == ("val_likeness", 30)
    assert "is 0.9, against 1.4 at the first validation" in row["sentence"]


def test_a_resumed_run_remembers_its_first_validation(tmp_path: Path):
    validation = [{"cider": 1.4}, *[{"cider": 1.0}] * 3]
    trainer = fit(tmp_path, small(), [HEALTHY] * 10, validation)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    fit(tmp_path, small(), [HEALTHY] * 30, validation, ckpt_path=tmp_path / "half.ckpt")
    [row] = read(tmp_path)
    assert "is 1, against 1.4 at the first validation" in row["sentence"]


def test_a_validation_by_itself_is_no_part_of_the_run(tmp_path: Path):
    trainer = fit(tmp_path, small(), [HEALTHY] * 10, [{"cider": 1.4}])
    trainer.validate(Stream([], [{}, {"cider": 0.1}]), DataLoader(torch.zeros(1, 1)), verbose=False)
    assert read(tmp_path) == []


def test_a_trial_run_of_a_step_leaves_no_file(tmp_path: Path):
    trainer = Trainer(default_root_dir=tmp_path, fast_dev_run=True, callbacks=[small()], enable_progress_bar=False)
    trainer.fit(Stream([HEALTHY]), DataLoader(torch.zeros(1, 1)))
    assert not (tmp_path / "health.json").exists()


def test_a_reward_clip_that_leaves_the_judge_behind_is_told(tmp_path: Path):
    recalls = [(40.0, 38.0), (60.0, 50.0), (80.0, 55.0)]
    validation = [{"t2i_recall@1": clip, "judge_t2i_recall@1": judge} for clip, judge in recalls]
    fit(tmp_path, small(), [HEALTHY] * 30, validation)
    [row] = read(tmp_path)
    assert (row["symptom"], row["step"]) == ("judge_gap", 30)
    assert "is 25 points above R@1 by the judge, against 2 at the first validation" in row["sentence"]
