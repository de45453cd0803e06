"""All systems on the embedded benchmark, with several seeds: trained side by side, resumed, and put into one table."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from distcap.files import read_json, write_whole
from distcap.records import MARKER, pack, unpack
from distcap.shipped import configs_folder
from distcap.steps import MLE, Step, digest, experiment
from distcap.types import UserError

FAMILIES = {
    "no RL": ("best_of_n", "guidance"),
    "rival": (
        *("scst", "clip_s", "clip_only", "penalties", "ref_clip_s", "clip_s_cider", "clip_s_grammar", "group", "dico"),
    ),
    "part of the method": (
        *("contrastive", "contrastive_i2t", "contrastive_t2i", "kl", "wtf_only"),
        *("contrastive_teacher_forcing", "contrastive_wtf", "contrastive_discriminator"),
    ),
    "the method": ("full", "paper", "leave_one_out", "ppo"),
    "beyond": ("distcap", "two_clips", "sharp_clip"),
}
"""Of configs/experiments, in the order of the table; teacher forcing comes first, for all of them start there."""

SYSTEMS = tuple(name for names in FAMILIES.values() for name in names)


@dataclass
class Task:
    """One step of one seed."""

    step: Step
    seed: int
    folder: Path
    state: str = "waiting"
    """waiting, running, done or failed"""

    @property
    def run(self) -> Path:
        return self.folder / f"seed-{self.seed}" / self.step.name

    @property
    def made_by(self) -> str:
        return digest([*self.step.foundations, self.step])

    def is_done(self) -> bool:
        """Whether the run is there. Raises UserError where another config than today's has made it."""
        if not (told := self._told()):
            return False
        if told["made_by"] != self.made_by:
            raise UserError(f"{self.run} was made by other configs than today's; delete it, or name another folder")
        return True

    @property
    def has_weights(self) -> bool:
        """Whether others can build on the run; on one that was kept in the records alone they can't."""
        return (self.run / "checkpoints").is_dir()

    @property
    def began_from(self) -> str:
        """What the captioner of teacher forcing says, in short: changes whenever another one has been trained."""
        captions = self.folder / f"seed-{self.seed}" / MLE.name / "captions_test.json"
        if self.step == MLE or MLE not in self.step.foundations or not captions.exists():
            return ""
        rows = read_json(captions, lambda found: isinstance(found, list) and all("caption" in row for row in found))
        if rows is None:
            raise UserError(f"{captions} is damaged; delete {captions.parent}, and the same command makes it again")
        said = [row["caption"] for row in rows]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]

    @property
    def is_stale(self) -> bool:
        """Whether the run is there but began from another captioner than today's: another machine may train another."""
        told = self._told()
        return bool(told) and told["began_from"] != self.began_from

    def _has_ended(self) -> bool:
        """Whether the run left what it is for: a model for others, or a captioner's metrics."""
        models = [self.run / name for name in ("clip", "discriminator")]
        metrics = self.run / "metrics.json"
        return any(map(Path.is_dir, models)) or bool(
            read_json(metrics, lambda found: isinstance(found, dict) and "test" in found)
        )

    def _told(self) -> dict[str, str]:
        """Empty of a run that is not done, or whose file is damaged: it is gone on with."""
        told = read_json(self.run / MARKER, lambda found: isinstance(found, dict) and "made_by" in found)
        return {"began_from": "", **told} if told else {}

    def work(self, threads: int) -> None:
        """Run the command; what it prints goes to RUN/log.txt. Raises UserError where it fails."""
        family = str((self.folder / f"seed-{self.seed}").relative_to("runs"))
        command = [sys.executable, "-m", "distcap.cli", *self.step.arguments(family, self.seed), *QUIET]
        if any("Evaluation" in text for text in self.step.texts):
            command += NO_JAVA
        self.run.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        with (self.run / "log.txt").open("a") as log:
            print("$", *command, file=log, flush=True)
            environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
        if code:
            raise UserError(f"{self.run} failed with exit code {code}; see {self.run / 'log.txt'}")
        if not self._has_ended():  # Lightning ends well when it is told to terminate
            raise UserError(f"{self.run} was ended from outside; the same command goes on with it")
        train = round(time.perf_counter() - begin, 1)
        told = {"train": train, "made_by": self.made_by, "began_from": self.began_from}
        write_whole(self.run / MARKER, json.dumps(told))


QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
NO_JAVA = ("--trainer.callbacks.init_args.java=false",)
"""METEOR and SPICE are computed for all systems at once, when all are done: Java's start takes longer than its work."""


@dataclass
class Plan:
    """Tasks, and who may work on which."""

    tasks: list[Task]
    lock: threading.Condition = field(default_factory=threading.Condition)

    def take(self) -> Iterator[Task]:
        """The tasks for one worker: always the first that has what it needs."""
        while True:
            with self.lock:
                while not (ready := [task for task in self.tasks if self._ready(task)]):
                    if all(task.state not in ("waiting", "running") for task in self.tasks):
                        return
                    self.lock.wait(1.0)
                ready[0].state = "running"
            yield ready[0]

    def _ready(self, task: Task) -> bool:
        if task.state != "waiting":
            return False
        needed = {step.name for step in task.step.foundations}
        states = {other.state for other in self.tasks if other.seed == task.seed and other.step.name in needed}
        if "failed" in states:
            task.state = "failed"
        return states <= {"done"}

    def stop(self) -> None:
        """Nothing that waits is begun."""
        with self.lock:
            for task in self.tasks:
                task.state = "failed" if task.state == "waiting" else task.state

    def finish(self, task: Task, state: str) -> list[str]:
        """Returns the runs that have to be made again, for they began from another captioner than the one just made."""
        with self.lock:
            task.state = state
            again = [other for other in self.tasks if task.step == MLE and other.seed == task.seed and other.is_stale]
            needed = {step for other in again for step in other.step.foundations}
            for other in self.tasks:
                missing = other.seed == task.seed and other.step in needed and not other.has_weights
                if other in again:
                    shutil.rmtree(other.run)
                if other in again or (missing and other.state == "done"):
                    other.state = "waiting"
            self.lock.notify_all()
        return [str(other.run) for other in again]


def plan(folder: Path, systems: Sequence[str], seeds: Sequence[int]) -> Plan:
    """What there is to do, in order, those that are done marked as such.

    What other systems build on is made again where they wait for it and the records alone know it, and is left out
    where nobody waits for it.
    """
    asked = [MLE, *map(experiment, systems)]
    steps = dict.fromkeys(step for one in asked for step in (*one.foundations, one))
    tasks = [Task(step, seed, folder) for seed in seeds for step in steps]
    for task in reversed(tasks):  # those that build on others come first
        waiting = [
            other for other in tasks if other.seed == task.seed and other.state == "waiting" and other is not task
        ]
        needed = any(task.step in other.step.foundations for other in waiting)
        done = task.is_done() and (task.has_weights or not needed)
        task.state = "done" if done or not (needed or task.step in asked) else "waiting"
    return Plan(tasks)


def run_ablation(run: str, seeds: Sequence[int], systems: Sequence[str], workers: int, docs: str | None) -> None:
    """Train what is not trained yet, evaluate, and write the tables."""
    known = sorted(path.stem for path in (configs_folder() / "experiments").glob("*.yaml"))
    if strangers := sorted(set(systems) - set(known)):
        raise UserError(f"no such system: {', '.join(strangers)}; there are {', '.join(known)}")
    if workers < 1 or not seeds or min(seeds) < 0:
        raise UserError(f"{workers} workers, seeds {list(seeds)}: one worker and one seed of 0 or more are the least")
    folder = Path("runs") / run
    folder.mkdir(parents=True, exist_ok=True)
    records = {seed: Path(docs) / "ablation" / f"seed-{seed}.tar.xz" for seed in seeds} if docs else {}
    for seed, archive in records.items():
        if archive.exists():
            unpack(archive, folder / f"seed-{seed}")
    try:
        _train(folder, seeds, systems, workers, docs)
    finally:
        for seed, archive in records.items():
            pack(folder / f"seed-{seed}", archive)


def _train(folder: Path, seeds: Sequence[int], systems: Sequence[str], workers: int, docs: str | None) -> None:
    todo = plan(folder, systems, seeds)
    threads = max(1, (os.cpu_count() or 1) // workers)
    done = sum(task.state == "done" for task in todo.tasks)
    errors: list[str] = []
    with tqdm(total=len(todo.tasks), initial=done, unit="run", smoothing=0) as bar:

        def work() -> None:
            for task in todo.take():
                running = [f"{other.step.name} {other.seed}" for other in todo.tasks if other.state == "running"]
                bar.set_description_str(", ".join(running))
                try:
                    task.work(threads)
                except Exception as error:  # one run's failure is not the others'
                    todo.finish(task, "failed")
                    errors.append(str(error))
                    bar.write(str(error), file=sys.stderr)
                else:
                    again = todo.finish(task, "done")
                    bar.update(1 - len(again))
                    if again:
                        bar.write(
                            f"begun from another captioner, hence made again: {', '.join(again)}", file=sys.stderr
                        )

        with ThreadPoolExecutor(workers) as pool:
            try:
                for future in [pool.submit(work) for _ in range(workers)]:
                    future.result()
            except KeyboardInterrupt:
                todo.stop()
                raise
    systems_json = [_row(step) for step in (MLE, *map(experiment, systems))]
    write_whole(folder / "systems.json", json.dumps(systems_json, indent=1))
    _write(folder, docs)
    if errors:
        raise UserError(f"{len(errors)} runs failed, the first: {errors[0]}; the same command tries them again")


def _row(step: Step) -> dict[str, str]:
    """What the table says of a system: from the head of its config."""
    paper = next((line.removeprefix("Paper: ") for line in step.head if line.startswith("Paper: ")), "")
    command = " ".join(("distcap", step.command, *(part for config in step.configs for part in ("--config", config))))
    family = next((family for family, names in FAMILIES.items() if step.name in names), "")
    command += f" --run demo/{step.name}"
    return {"name": step.name, "title": step.what, "paper": paper, "command": command, "family": family}


def _write(folder: Path, docs: str | None) -> None:
    from distcap.metrics.evaluated import score_runs
    from distcap.report.ablation import ablation_report

    score_runs(sorted(folder.glob("seed-*/*/scores_test.json")))
    page = ablation_report(folder, docs=Path(docs) if docs else None)
    print(f"Open {page.resolve().as_uri()}")
