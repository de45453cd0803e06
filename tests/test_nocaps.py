"""A captioner that was trained elsewhere is tested on nocaps, which has no training split, by domain."""

import json
from pathlib import Path

import pytest
import tiny
from miniature import write_nocaps

from distcap.data.prepare import prepare_nocaps


def test_a_trained_captioner_is_tested_by_domain(workshop: Path) -> None:
    write_nocaps(workshop / "nocaps", "http://127.0.0.1:9", images=6)
    prepare_nocaps(workshop / "data" / "nocaps", str(workshop / "nocaps"), str(workshop / "nocaps" / "val"))
    command = "test --config mle.yaml --data data/nocaps.yaml --run demo/of-nocaps --model.captioner.init_from @mle"
    small = ("--data.image_size=64", "--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.precision=32-true")
    tiny.run(workshop, *command.split(), *small, f"--trainer.callbacks={json.dumps([tiny.EVALUATION])}")
    metrics = json.loads((workshop / "runs" / "demo" / "of-nocaps" / "metrics.json").read_text())["test"]
    found = {name.partition("/")[0]: metrics[name] for name in metrics if name.endswith("/judge_t2i_recall@5")}
    assert set(found) == {"in_domain", "near_domain", "out_domain"}
    # Two images in each of the three domains.
    assert sum(found.values()) / 3 == pytest.approx(metrics["judge_t2i_recall@5"])
    assert {"in_domain/cider", "near_domain/bleu@4", "out_domain/judge_gap"} <= metrics.keys()
