"""A watch over RL: says in plain words when the numbers look like reward hacking or like collapse."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from distcap.files import write_whole

log = logging.getLogger(__name__)

REWARDS = "reward/sampled/"


@dataclass(frozen=True)
class Symptom:
    """What is seen, what it means, and what to try."""

    key: str
    """log key; a window's mean of it is judged"""
    limit: Literal["share", "times", "above", "absolute"]
    """how the threshold limits it: "share" is a lower bound, the others are upper ones"""
    against: str | None
    """log key that it is compared with, on the same images; None for its own beginning"""
    seen: str
    meaning: str
    advice: str


HUMAN_CAPTIONS = "add weighted teacher forcing to the objective or a discriminator to the rewards"
SYMPTOMS = {
    "likeness": Symptom(
        "policy/greedy_cider",
        "share",
        "reference/cider",
        "the likeness of greedy captions to human ones (CIDEr)",
        "the captioner says what pleases the reward rather than what is there",
        f"{HUMAN_CAPTIONS}, or lower the learning rate",
    ),
    "repetition": Symptom(
        "policy/repetition",
        "above",
        "human/repetition",
        "the share of phrases that a sample says again",
        "repeating itself pays, a classical hack of CLIP rewards",
        f"{HUMAN_CAPTIONS}, or lower the learning rate",
    ),
    "bad_endings": Symptom(
        "policy/bad_endings",
        "above",
        "human/bad_endings",
        'the share of samples that break off, as in "a dog on a",',
        "nothing in the reward asks for whole sentences",
        HUMAN_CAPTIONS,
    ),
    "length": Symptom(
        "policy/length",
        "times",
        "human/length",
        "the samples' mean length in tokens",
        "more words pay, a classical hack of CLIP rewards",
        f"{HUMAN_CAPTIONS}, or lower the learning rate",
    ),
    "entropy": Symptom(
        "policy/entropy",
        "share",
        None,
        "the policy's entropy in nats a token",
        "it is about to say the same few things of every image, and tries nothing new",
        "lower the learning rate, or add teacher forcing or a KL term to the objective",
    ),
    "vocabulary": Symptom(
        "policy/vocabulary",
        "share",
        None,
        "the number of different words in a step's samples",
        "words are being lost, and with them differences between images",
        "lower the learning rate, or add teacher forcing or a KL term to the objective",
    ),
    "zero_spread": Symptom(
        "reward/zero_std",
        "absolute",
        None,
        "the share of images whose samples all score alike",
        "these images teach nothing any more",
        "end the run, lower the learning rate, or draw more samples of each image",
    ),
    "unfinished": Symptom(
        "policy/unfinished",
        "absolute",
        None,
        "the share of samples without an end",
        "the captioner is forgetting how to stop",
        "lower the learning rate, add teacher forcing to the objective, or raise the sampler's max_tokens",
    ),
}
WATCHED = {key for symptom in SYMPTOMS.values() for key in (symptom.key, symptom.against) if key is not None}
WHERE = {"reference": "of the captioner before RL", "human": "in human captions"}
"""What a key's first part is called in a sentence."""


class HackingWatch(Callback):
    """Warns in one sentence, once a symptom, when what an RL stage logs says reward hacking or collapse.

    The mean of the last `window` steps is compared with the run's own first `beginning` steps, or, on the same images,
    with human captions or the captioner before RL; greedy captions of a validation with those of the run's first.
    Warnings are logged and written to RUN/health.json, a list of {step, symptom, sentence}. It is there, empty, if
    nothing was found: no file means that nobody watched. What is not logged is not watched. A resumed run does not
    repeat itself.

    Measured on the embedded benchmark, three seeds, any window of 240 steps of the whole method against RL on the CLIP
    similarity alone by step 160: likeness 0.85 or more against 0.71 or less, entropy 0.85 or more against 0.45 or less,
    vocabulary 0.91 or more against 0.74 or less.

    Args:
        window: steps whose mean is judged; several times the stage's `health_every`.
        beginning: steps that it is compared with.
        likeness: warn where CIDEr of greedy captions is below this share of that of the captioner before RL, or, on
            validation images, of the first validation. Samples tell it later: they gain from a mere loss of entropy.
        repetition: warn where the share of repeated phrases is above the humans' by this much.
        bad_endings: likewise of captions that break off.
        length: warn where samples are this many times as long as human captions.
        entropy: warn where it falls below this share of the beginning's.
        vocabulary: likewise of the different words in a step's samples.
        zero_spread: warn where the samples of this share of the images all score alike.
        unfinished: warn where this share of the samples has no end.
        judge_gap: warn where validation R@1 by the reward CLIP has gained this many points on R@1 by the judge.
        stop: end the training once something was found. Resuming the run goes on despite it.
    """

    def __init__(
        self,
        window: int = 50,
        beginning: int = 10,
        likeness: float = 0.75,
        repetition: float = 0.1,
        bad_endings: float = 0.1,
        length: float = 2.0,
        entropy: float = 0.6,
        vocabulary: float = 0.75,
        zero_spread: float = 0.5,
        unfinished: float = 0.1,
        judge_gap: float = 15.0,
        stop: bool = False,
    ) -> None:
        self.window = window
        self.beginning = beginning
        self.thresholds = {
            "likeness": likeness,
            "repetition": repetition,
            "bad_endings": bad_endings,
            "length": length,
            "entropy": entropy,
            "vocabulary": vocabulary,
            "zero_spread": zero_spread,
            "unfinished": unfinished,
            "judge_gap": judge_gap,
        }
        self.stop = stop
        self.found: list[dict[str, Any]] = []
        """{step, symptom, sentence} of each warning so far."""
        self._first: dict[str, list[float]] = {}
        self._last: dict[str, list[float]] = {}
        self._first_validation: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"found": self.found, "first": self._first, "last": self._last, "validation": self._first_validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.found, self._first, self._last = state_dict["found"], state_dict["first"], state_dict["last"]
        self._first_validation = state_dict["validation"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the run is watched, and an earlier one's warnings are no longer true."""
        self._write(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        # A costly value stands until the next one replaces it: a window's mean weighs it as one that lasted.
        for key, value in _finite(trainer.callback_metrics).items():
            if key in WATCHED or key.startswith(REWARDS):
                if len(first := self._first.setdefault(key, [])) < self.beginning:
                    first.append(value)
                else:
                    self._last[key] = [*self._last.get(key, []), value][-self.window :]
        self._warn(trainer, self._of_training())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            now = {key: value for key, value in _finite(trainer.callback_metrics).items() if key.startswith("val/")}
            self._first_validation = {**now, **self._first_validation}
            self._warn(trainer, self._of_validation(now))

    def _means(self, key: str) -> tuple[float, float] | None:
        """Mean of the last window and of the beginning; None before there is a whole window."""
        first, last = self._first.get(key, []), self._last.get(key, [])
        return (sum(last) / len(last), sum(first) / len(first)) if len(last) == self.window else None

    def _of_training(self) -> Iterator[tuple[str, str]]:
        """(symptom, sentence) of all that is seen in the samples."""
        for name, symptom in SYMPTOMS.items():
            threshold = self.thresholds[name]
            other, where = symptom.against, "at the beginning"
            means, others = self._means(symptom.key), self._means(other or symptom.key)
            if means is None or others is None:
                continue
            now, then = means[0], others[1]
            if other is not None:
                then, where = others[0], WHERE[other.split("/")[0]]
            bad = {
                "share": now < threshold * then,
                "times": now > threshold * then,
                "above": now > threshold + then,
                "absolute": now > threshold,
            }
            if bad[symptom.limit]:
                despite = self._despite_rewards() if name == "likeness" else ""
                seen = f"{symptom.seen} is {now:.3g}, against {then:.3g} {where}{despite}"
                yield name, f"{seen}: {symptom.meaning}; {symptom.advice}"

    def _despite_rewards(self) -> str:
        """Which rewards rose meanwhile. The total does not tell: normalised, it is zero on average at every step."""
        means = {key.removeprefix(REWARDS): self._means(key) for key in self._first if key.startswith(REWARDS)}
        rose = [f"{name} rose from {m[1]:.3g} to {m[0]:.3g}" for name, m in means.items() if m and m[0] > m[1]]
        return f", while the reward {' and '.join(rose)}" if rose else ""

    def _of_validation(self, now: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """(symptom, sentence) of all that is seen in the greedy captions of the validation images."""
        first = self._first_validation
        if "val/cider" in now and now["val/cider"] < self.thresholds["likeness"] * first["val/cider"]:
            likeness = SYMPTOMS["likeness"]
            yield (
                "val_likeness",
                f"CIDEr of the validation captions is {now['val/cider']:.3g}, against {first['val/cider']:.3g} at the "
                f"first validation: {likeness.meaning}; {likeness.advice}",
            )
        clip, judge = "val/t2i_recall@1", "val/judge_t2i_recall@1"
        if {clip, judge} <= now.keys() & first.keys():
            gap, before = now[clip] - now[judge], first[clip] - first[judge]
            if gap > before + self.thresholds["judge_gap"]:
                yield (
                    "judge_gap",
                    f"R@1 by the reward CLIP is {gap:.3g} points above R@1 by the judge, against {before:.3g} at the "
                    "first validation: the captions suit that one CLIP and not the images; believe the judge, and "
                    "lower the learning rate or add weighted teacher forcing to the objective",
                )

    def _warn(self, trainer: Trainer, symptoms: Iterator[tuple[str, str]]) -> None:
        known = {row["symptom"] for row in self.found}
        # Each process sees its own share of the samples; one of them speaks.
        new = [(name, text) for name, text in symptoms if name not in known] if trainer.is_global_zero else []
        for name, text in new:
            sentence = f"Step {trainer.global_step}: {text}{'; the training stops here' if self.stop else ''}."
            self.found.append({"step": trainer.global_step, "symptom": name, "sentence": sentence})
            log.warning("%s", sentence)
        if new:
            self._write(trainer)
        if self.stop and trainer.strategy.reduce_boolean_decision(bool(new), all=False):
            trainer.should_stop = True

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_whole(Path(trainer.default_root_dir) / "health.json", json.dumps(self.found, indent=1))


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, tensor in metrics.items() if math.isfinite(value := float(tensor))}
