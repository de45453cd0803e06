"""distcap on the embedded benchmark, one shipped config after the other."""

import json
import time
from functools import partial
from pathlib import Path

from distcap import lightning_cli
from distcap.files import write_whole
from distcap.shipped import find_configs
from distcap.steps import Step, check_ended
from distcap.types import UserError
from distcap.walk import Stride, claim, walk

CAPTIONERS = ("mle", "clip_only", "distcap")
"""The runs that are compared."""

RUNS = (
    Step("clip_only", ("demo/rl.yaml", "experiments/clip_only.yaml"), "RL on the CLIP similarity alone"),
    Step("distcap", ("demo/rl.yaml",), "RL by distcap's recipe"),
)
"""What is trained by RL, and compared with what it starts from."""

KEYS = (
    *(f"{judge}{way}_recall@{k}" for judge in ("", "judge_") for way in ("t2i", "i2t") for k in (1, 5, 10)),
    *(f"bleu@{n}" for n in (1, 2, 3, 4)),
    *("rouge_l", "cider", "length"),
)
"""What the summary tells of a run, on the test split; METEOR and SPICE join where Java is installed."""


def steps() -> list[Step]:
    """What the runs start from, and they."""
    return [*dict.fromkeys(step for run in RUNS for step in run.foundations), *RUNS]


def run_quickstart(run: str, seed: int, size: float) -> None:
    """Paint, train, evaluate and report in runs/RUN. A step that is done is not done again; half of one is resumed."""
    if size <= 0 or seed < 0:
        raise UserError(f"a demo of seed {seed} and size {size}: a seed is 0 or more, a size more than 0")
    folder = Path("runs") / run
    claim(folder, {"seed": seed, "size": size}, "demo")
    strides = [Stride(step.name, step.what, partial(_fit, step, run, seed, size)) for step in steps()]
    _report(folder, walk(strides, folder / "seconds.json"))


def _fit(step: Step, run: str, seed: int, size: float) -> None:
    """One `distcap fit`, as the user would run it."""
    command = step.arguments(run, seed)
    if size != 1:
        command.append(f"--trainer.max_steps={max(1, round(size * step.config['trainer']['max_steps']))}")
    print("  distcap", *command, flush=True)
    lightning_cli.run(find_configs(command))
    check_ended(Path("runs") / run / step.name)


def _report(folder: Path, seconds: dict[str, float]) -> None:
    from distcap.report import report
    from distcap.report.runs import read_metrics

    runs = {}
    for name in CAPTIONERS:
        scores = read_metrics(folder / name / "metrics.json").get("test", {})
        runs[name] = {key: scores[key] for key in (*KEYS, "meteor", "spice") if key in scores}
    begin = time.perf_counter()
    page = report(folder)
    took = {**seconds, "report": round(time.perf_counter() - begin, 1)}
    write_whole(folder / "summary.json", json.dumps({"runs": runs, "seconds": took}, indent=2))
    print(f"\n{sum(took.values()):.0f} s of training, evaluation and report. The figures: {folder / 'summary.json'}")
    print(f"Open {page.resolve().as_uri()}")
