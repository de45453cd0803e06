"""COCO from an empty disk to the results table, one command of distcap after the other."""

from functools import partial
from pathlib import Path

from distcap import lightning_cli
from distcap.shipped import configs_folder
from distcap.steps import check_ended, resuming
from distcap.types import UserError
from distcap.walk import Stride, claim, walk

STAGES = {
    "mle": (("mle.yaml", "experiments/paper_mle.yaml"), "teacher forcing, and its test"),
    "discriminator": (("discriminator.yaml", "experiments/paper_discriminator.yaml"), "human or machine?"),
    "paper": (("rl.yaml", "experiments/paper_rl.yaml"), "RL by the paper's recipe, and its test"),
    "distcap": (("rl.yaml",), "RL by distcap's recipe, and its test"),
}
"""Run -> its shipped configs, and what it is for people. Those that train a captioner test it when they end."""


def run_reproduction(
    run: str, root: Path, archives: str | None, images: str | None, seed: int, overlays: dict[str, str]
) -> None:
    """Prepare, train, test and report. A step that is done is not done again; half of one is resumed.

    Args:
        run: everything but the data set is written to runs/RUN.
        root: the folder of the data set.
        archives: see `distcap.data.prepare.prepare_coco`.
        images: likewise.
        seed: of all training.
        overlays: run -> a config of one's own that is laid over its configs; "" -> one for every run.
    """
    if strangers := set(overlays) - {"", *STAGES}:
        raise UserError(f"there is no run {min(strangers)} to lay a config over; there are {', '.join(STAGES)}")
    for file in overlays.values():
        if not Path(file).is_file():
            raise UserError(f"there is no config {file} to lay over a run")
    folder = Path("runs") / run
    laid_over = {name: Path(file).read_text() for name, file in overlays.items()}
    claim(folder, {"seed": seed, "root": str(root), "overlays": laid_over}, "reproduction")
    strides = [Stride("prepare", "COCO with Karpathy's split", partial(_prepare, root, archives, images))]
    for name, (configs, what) in STAGES.items():
        shipped = [str(configs_folder() / config) for config in configs]  # not the user's of the same name
        laid = [overlays[key] for key in ("", name) if key in overlays]
        strides.append(Stride(name, what, partial(_fit, f"{run}/{name}", [*shipped, *laid], root, seed)))
    walk(strides, folder / "seconds.json")
    _report(folder)


def _prepare(root: Path, archives: str | None, images: str | None) -> None:
    from distcap.data.prepare import prepare_coco

    prepare_coco(root, archives, images)


def _fit(run: str, configs: list[str], root: Path, seed: int) -> None:
    """One `distcap fit`, as the user would run it; interrupted, it goes on from its last checkpoint."""
    command = ["fit", *(part for config in configs for part in ("--config", config)), "--run", run]
    command += ["--seed_everything", str(seed)]
    command += [f"--data.annotations={root / 'dataset_coco.json'}", f"--data.images={root}"]
    command += resuming(Path("runs") / run)
    print("  distcap", *command, flush=True)
    lightning_cli.run(command)
    check_ended(Path("runs") / run)


def _report(folder: Path) -> None:
    """Anew each time: it is quick, and the runs may have been tested again."""
    from distcap.report import report

    print(f"\nOpen {report(folder).resolve().as_uri()}")
