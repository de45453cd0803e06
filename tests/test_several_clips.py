"""Several reward CLIPs and several judges, through the command line."""

import csv
import json
from pathlib import Path

import tiny


def named(model: str) -> dict:
    return {"class_path": "distcap.models.FrozenClip", "init_args": {"model": model}}


def contrastive(**kwargs: object) -> dict:
    return {"class_path": "distcap.rewards.Contrastive", "init_args": kwargs}


def test_two_clips_reward_and_two_judge(workshop: Path) -> None:
    """A reward that names none reads the stage's own, and each judge has metrics of its own name."""
    rewards = {"first": contrastive(), "second": contrastive(clip="other", weight=0.5, neighbours=[1, 2])}
    judges = {"judge": named("@judge"), "again": named("@clip")}
    evaluation = {
        "class_path": "distcap.callbacks.Evaluation",
        "init_args": {"clip": named("@clip"), "judge": judges, "java": False},
    }
    tiny.run(
        workshop,
        *("fit", "--config", "demo/rl.yaml", "--run=demo/two", "--data=scenes.yaml"),
        *("--trainer.max_steps=2", "--trainer.log_every_n_steps=1", f"--trainer.callbacks={json.dumps([evaluation])}"),
        f"--model.clips={json.dumps({'other': named('@judge')})}",
        f"--model.rewards={json.dumps(rewards)}",
    )
    run = workshop / "runs" / "demo" / "two"
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["reward/sampled/first"]]
    assert len(rows) == 2
    assert all(float(row["reward/sampled/first"]) != float(row["reward/sampled/second"]) for row in rows)
    found = json.loads((run / "metrics.json").read_text())["test"]
    assert found["again_t2i_recall@1"] == found["t2i_recall@1"]
    assert {"judge_gap", "again_gap", "judge_i2t_recall@10", "again_truncated"} <= found.keys()
    assert found["again_gap"] == 0
