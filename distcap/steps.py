"""Steps of an experiment on the embedded benchmark: which shipped configs make which run, and of what seed."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, Literal

from distcap.run_folder import RunFolder
from distcap.shipped import configs_folder, find_configs
from distcap.types import UserError

CHANCE = {"judge": 1000, "second": 2000, "sharp": 2000}
"""Added to the seed for the training of CLIPs that are to differ from the first, not for their pictures."""


@dataclass(frozen=True)
class Step:
    """One command.

    Args:
        name: of the run.
        configs: shipped ones, the later of which override the earlier.
        what: the run is, for people.
        command: of `distcap`.
        more: arguments of its own.
    """

    name: str
    configs: tuple[str, ...]
    what: str
    command: Literal["fit", "test"] = "fit"
    more: tuple[str, ...] = ()

    def arguments(self, family: str, seed: int) -> list[str]:
        """Of `distcap`, for a run in runs/FAMILY; that of a step that was interrupted goes on from its checkpoint."""
        configs = [part for config in self.configs for part in ("--config", config)]
        data = "data/scenes" if seed == 0 else f"data/scenes-{seed}"
        chance = ["--seed_everything", str(seed + CHANCE.get(self.name, 0))]
        found = [self.command, *configs, "--run", f"{family}/{self.name}", *chance]
        found += [f"--data.root={data}", f"--data.seed={seed}", *self.more]
        return found + (resuming(Path("runs") / family / self.name) if self.command == "fit" else [])

    @property
    def texts(self) -> list[str]:
        """The configs as they are shipped."""
        return [Path(find_configs(["--config", config])[1]).read_text() for config in self.configs]

    @property
    def head(self) -> list[str]:
        """The comments of the config that makes it what it is: that of an experiment, or else the last."""
        ours = [number for number, config in enumerate(self.configs) if config.startswith("experiments/")] or [-1]
        return [line.lstrip("# ").strip() for line in self.texts[ours[0]].splitlines() if line.startswith("#")]

    @cached_property
    def config(self) -> dict[str, Any]:
        """What the configs say together, as the command line merges them."""
        import yaml

        return reduce(_overlay, map(yaml.safe_load, self.texts))

    @property
    def foundations(self) -> tuple["Step", ...]:
        """The steps whose runs its configs name ("@mle"), and those that these build on, in the order to run them.

        A CLIP that stands ready and that no reward reads is none of them.
        """
        settings = dict(self.config["model"]["init_args"])
        if not self.config["model"]["class_path"].endswith(".RL"):
            settings.pop("rewards", None)  # those of the config that it is laid over
        read = {reward.get("init_args", {}).get("clip") for reward in settings.get("rewards", {}).values()}
        clips = [clip for name, clip in settings.get("clips", {}).items() if name in read]
        by_name = {step.name: step for step in MODELS}
        text = json.dumps([settings | {"clips": clips}, self.config["trainer"]])
        named = {by_name[name] for name in re.findall(r'"@(\w+)"', text)}
        found = named.union(*(step.foundations for step in named))
        return tuple(step for step in by_name.values() if step in found)


def resuming(run: Path) -> list[str]:
    """Arguments of `distcap fit` that go on with what was begun in a run's folder, if anything was."""
    folder = RunFolder(run)
    return [] if folder.last is None else ["--ckpt_path", "last"]


def check_ended(run: Path) -> None:
    """Raises UserError if a training returned and left nothing, as one does that is ended from outside."""
    if RunFolder(run).product is None:
        raise UserError(f"{run} was ended from outside before its training was done; the same command goes on with it")


MLE = Step("mle", ("demo/mle.yaml",), "teacher forcing")
MODELS = (
    Step("clip", ("demo/clip.yaml",), "the reward CLIP"),
    Step("second", ("demo/clip.yaml", "demo/second.yaml"), "a second reward CLIP"),
    Step("sharp", ("demo/clip.yaml", "demo/sharp.yaml"), "the reward CLIP, having learnt on"),
    Step("judge", ("demo/clip.yaml", "demo/judge.yaml"), "the held-out judge"),
    MLE,
    Step("discriminator", ("demo/discriminator.yaml",), "human or machine?"),
    Step("grammar", ("demo/grammar.yaml",), "intact or corrupted?"),
)
"""What systems start from: all of them from clip, judge and mle, some from the others."""


def experiment(name: str) -> Step:
    """The step of configs/experiments/NAME.yaml: what does not learn by RL is tested as it is.

    What a system needs on the benchmark alone, if anything, is in configs/demo/experiments/NAME.yaml.
    """
    own = f"demo/experiments/{name}.yaml"
    configs = ("demo/rl.yaml", f"experiments/{name}.yaml", *([own] if (configs_folder() / own).is_file() else []))
    step = Step(name, configs, what="")
    model = step.config["model"]
    # A CLIP that learnt from the benchmark's texts never read a prompt.
    more = ("--model.clip.prompt", "") if model["init_args"]["clip"]["init_args"].get("prompt") else ()
    return Step(name, configs, step.head[0], "fit" if model["class_path"] == "distcap.stages.RL" else "test", more)


def digest(steps: Sequence[Step]) -> str:
    """Changes with what the configs of any of them say together: not with a comment, nor with what is overridden."""
    return hashlib.sha256(json.dumps([step.config for step in steps], sort_keys=True).encode()).hexdigest()[:16]


def _overlay(config: Any, later: Any) -> Any:
    """Two configs as the command line merges them: a dict argument of a stage is replaced, anything else merged."""
    if not isinstance(config, dict) or not isinstance(later, dict):
        return later
    replaced = {key: later[key] for key in ("rewards", "objective", "clips") if key in later}
    return {**config, **{key: _overlay(config.get(key), value) for key, value in later.items()}, **replaced}
