"""Every setting acts, or is refused: nothing that a config or a command line says is accepted and ignored.

A setting that a class exports and that has no case here fails a test.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import test_invariants
import torch
import words
from lightning import Trainer
from test_invariants import RUN, advantages_of, make_experience
from tiny import run
from torch import Tensor

import distcap
from distcap import baselines, callbacks, data, models, objectives, rewards, stages
from distcap.baselines import LeaveOneOut, Zero
from distcap.experience import Experience
from distcap.models import Discriminator, Sampler
from distcap.objectives import KLToReference, PolicyGradient, WeightedTeacherForcing
from distcap.rewards import ClipSimilarity, Contrastive, Reward
from distcap.stages import MLE
from distcap.types import Batch

IDS = (0, 1, 2, 3, 4)
discriminator = test_invariants.run  # a fixture: leaves a discriminator in RUN


def parameters(kind: type) -> list[str]:
    """What a YAML can set of a class."""
    if inspect.signature(kind).parameters.keys() <= {"args", "kwargs"}:
        return []
    found = [name for name, one in inspect.signature(kind).parameters.items() if one.kind != one.VAR_KEYWORD]
    if len(found) == len(inspect.signature(kind).parameters):
        return found
    ours = [base for base in kind.__mro__[1:] if base.__module__.startswith("distcap.")]
    inherited = [parameters(base) for base in ours if "__init__" in vars(base)]
    return list(dict.fromkeys([*found, *(inherited[0] if inherited else [])]))


# Terms and rewards, by what they compute.

TERMS: dict[str, dict[str, Any]] = {
    "ClippedPolicyGradient": {"weight": 2.0, "clip": 0.001, "reduction": "sum"},
    "KLToReference": {"weight": 2.0, "reduction": "sum"},
    "PolicyGradient": {"weight": 2.0, "reduction": "sum"},
    "Preference": {"weight": 2.0, "beta": 0.4, "temperature": 0.2, "reduction": "mean"},
    "TeacherForcing": {"weight": 2.0, "reduction": "sum"},
    "WeightedTeacherForcing": {"weight": 2.0, "weighting": "softmax", "temperature": 0.5, "reduction": "sum"},
}
REWARDS: dict[str, dict[str, Any]] = {
    "BadEnding": {"weight": 2.0},
    "Cider": {"weight": 2.0},
    "ClipSimilarity": {"weight": 2.0, "scale": 2.0, "rectified": True, "clip": "second"},
    "Contrastive": {
        "weight": 2.0,
        "direction": "image_to_text",
        "ground_truth": False,
        "greedy": True,
        "neighbours": (1, 3),
        "tau": 0.5,
        "clamp": 0.1,
        "clip": "second",
    },
    "DiscriminatorReward": {
        "init_from": None,
        "weight": 2.0,
        "learning": False,
        "learning_rate": 1.0,
        "clip": "second",
    },
    "GroupSimilarity": {"weight": 2.0, "group": (2, 3), "clip": "second"},
    "Length": {"weight": 2.0, "target": 2.0},
    "RefClipS": {"weight": 2.0, "scale": 1.0, "clip": "second"},
    "Repetition": {"weight": 2.0, "n": 1},
}


def cases(table: dict[str, dict[str, Any]]) -> Any:
    return [
        pytest.param(kind, name, value, id=f"{kind}-{name}") for kind in table for name, value in table[kind].items()
    ]


@pytest.mark.parametrize(("module", "table"), [(objectives, TERMS), (rewards, REWARDS)], ids=["terms", "rewards"])
def test_every_setting_of_every_term_and_reward_has_a_case(module: Any, table: dict[str, dict[str, Any]]) -> None:
    base = objectives.Term if module is objectives else Reward
    for kind in test_invariants.exported(module, base):
        assert sorted(parameters(kind)) == sorted(table[kind.__name__]), kind


def whole(kinds: Any, other_samples: bool = False) -> Experience:
    """An experience whose policy has moved since it drew, and that two CLIPs have seen."""
    experience = make_experience(IDS, kinds)
    sight = experience._views[None]._sight
    second = models.Sight(words.Clip(words.LENS), words.SEEN @ words.LENS, mined=test_invariants.NEIGHBOURS)  # type: ignore[arg-type]
    experience._views["second"] = type(experience._views[None])(experience, second)
    assert sight.mined is not None
    experience.__dict__["drawn_logprobs"] = experience.sampled.logprobs.detach() - 0.1
    return experience


def moved(term: Any) -> list[Tensor]:
    """The weighted loss of a term, and its gradient."""
    experience = whole([Contrastive])
    loss = term.weight * term(experience, advantages_of(experience))
    gradient = torch.autograd.grad(loss, list(experience.captioner.parameters()), allow_unused=True)
    return [loss.detach(), *(g for g in gradient if g is not None)]


def differ(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) != len(other) or any(not torch.allclose(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("kind", "setting", "value"), cases(TERMS))
def test_a_setting_of_a_term_changes_its_loss(kind: str, setting: str, value: Any, discriminator: None) -> None:
    # A temperature belongs to a weighting that has one.
    given = {"weighting": "softmax"} if (kind, setting) == ("WeightedTeacherForcing", "temperature") else {}
    make = getattr(objectives, kind)
    assert differ(moved(make(**given)), moved(make(**given, **{setting: value})))


def opinions(reward: Reward) -> list[Tensor]:
    """Of samples, human and greedy captions, in the total; and the loss of one that learns, with its rate."""
    reward.prepare(words.TRUTH)
    experience = whole([])
    experience.rewards = {"reward": reward.double()}
    found = [experience.total(getattr(experience, source)) for source in ("sampled", "ground_truth", "greedy")]
    found.append(torch.tensor(reward.learning_rate or 0.0))
    return found if (loss := reward.loss(experience)) is None else [*found, loss.detach()]


@pytest.mark.parametrize(("kind", "setting", "value"), cases(REWARDS))
def test_a_setting_of_a_reward_changes_what_it_says(
    kind: str, setting: str, value: Any, discriminator: None, tmp_path: Path
) -> None:
    make = getattr(rewards, kind)
    given: dict[str, Any] = {"init_from": RUN["discriminator"]} if kind == "DiscriminatorReward" else {}
    if setting == "init_from":
        Discriminator(words.WIDTH, hidden=(4,)).save(tmp_path / "discriminator")
        value = str(tmp_path)
    assert differ(opinions(make(**given)), opinions(make(**{**given, setting: value})))


# The stages that train a captioner, by what training leaves behind.

STAGE = {
    "learning_rate": 0.02,
    "weight_decay": 0.5,
    "warmup_steps": 2,
    "schedule": "linear",
    "clip_gradient": 1e-3,
}
RL_SETTINGS: dict[str, Any] = {
    **STAGE,
    "captioner": None,
    "rewards": {"similarity": ClipSimilarity(scale=3.0)},
    "baseline": Zero(),
    "objective": {"term": PolicyGradient(reduction="sum")},
    "clip": words.Clip(words.LENS),
    "clips": None,
    "corpus": None,
    "sampler": Sampler(samples=3),
    "decoder": Sampler(method="beam"),
    "ground_truth_per_image": 2,
    "normalise": "batch",
    "updates_per_rollout": 2,
    "health_every": 1,
}
"""None for what is tested elsewhere: test_several_clips, test_captionless."""
MLE_SETTINGS: dict[str, Any] = {
    **STAGE,
    "schedule": "constant",
    "captioner": None,
    "decoder": None,
    "captions_per_image": 1,
    "drop_image": 1.0,
}


class Dropping(words.Policy):
    def unknown(self, memory: Tensor) -> Tensor:
        return torch.zeros_like(memory)

    def generate(self, memory: Tensor, sampler: Sampler) -> Any:
        if sampler.method == "beam":
            sampler = Sampler(method="greedy")
            memory = memory.flip(0)
        return super().generate(memory, sampler)


class LoggedMLE(MLE):
    logged: dict[str, Any]

    def log(self, name: str, value: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.logged[name] = value.detach()


class Ragged(words.Data):
    """Images with one to three captions, for what is asked of each."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        plain: Callable[[Any], Batch] = loader.collate_fn  # type: ignore[assignment]

        def collate(ids: list[int]) -> Batch:
            batch = plain(ids)
            return Batch(batch.images, [[*row, "a dog"] for row in batch.captions], batch.image_ids)

        loader.collate_fn = collate  # type: ignore[assignment]
        return loader


def trained(stage: Any) -> list[Tensor]:
    """Weights after three steps, and all that was logged at the last one."""
    stage.logged = {}
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(accelerator="cpu", max_steps=3, **dict.fromkeys(quiet, False))
    trainer.fit(stage, datamodule=Ragged(12, 4))
    values = [torch.as_tensor(stage.logged[name], dtype=torch.double) for name in sorted(stage.logged)]
    return [*(p.detach() for p in stage.captioner.parameters()), torch.tensor(sorted(map(hash, stage.logged))), *values]


def rl(**settings: Any) -> Any:
    plain: dict[str, Any] = {
        "rewards": {"similarity": ClipSimilarity()},
        "baseline": LeaveOneOut(),
        "objective": {"term": PolicyGradient(), "human": WeightedTeacherForcing(), "kl": KLToReference()},
        "sampler": Sampler(samples=2),
        "decoder": Sampler(method="greedy"),
        "learning_rate": 0.01,
    }
    return words.Stage(**{**plain, **settings})


def mle(**settings: Any) -> Any:
    stage = LoggedMLE(**{"captioner": Dropping(), "learning_rate": 0.01, "schedule": "cosine", **settings})
    return stage.double()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "setting", "value"),
    [
        pytest.param(make, name, value, id=f"{make.__name__}-{name}")
        for make, table in ((rl, RL_SETTINGS), (mle, MLE_SETTINGS))
        for name, value in table.items()
        if value is not None
    ],
)
def test_a_setting_of_a_stage_changes_what_training_leaves(make: Any, setting: str, value: Any) -> None:
    # How greedy captions are decoded matters to who reads them.
    base = {"baseline": baselines.Greedy()} if setting == "decoder" else {}
    assert differ(trained(make(**base)), trained(make(**{**base, setting: value})))


def test_every_setting_of_the_stages_that_train_a_captioner_has_a_case() -> None:
    assert sorted(parameters(stages.RL)) == sorted(RL_SETTINGS)
    assert sorted(parameters(MLE)) == sorted(MLE_SETTINGS)


# All other classes, by their source: what is kept and never read cannot act.

READ_ELSEWHERE = (stages, models, data, callbacks)


@cache
def loads() -> set[str]:
    """Every attribute that some line of distcap reads, but for lines that keep a setting under its own name."""
    found: set[str] = set()
    for file in Path(distcap.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
    return found


def used_in_init(kind: type) -> set[str]:
    """Parameters that a constructor does more with than keep them or pass them on to that of its base."""
    found: set[str] = set()
    for init in (vars(base)["__init__"] for base in kind.__mro__[:-1] if "__init__" in vars(base)):
        if not init.__module__.startswith("distcap."):
            continue
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(init)))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) != "super().__init__":
                given = (*node.args, *(key.value for key in node.keywords))
                found |= {one.id for one in given if isinstance(one, ast.Name)}
            elif isinstance(node, ast.Compare | ast.BoolOp | ast.IfExp | ast.Subscript | ast.Attribute | ast.Dict):
                found |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    return found


def settings() -> Iterator[Any]:
    for module in READ_ELSEWHERE:
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__.startswith("distcap.") and not issubclass(kind, Exception):
                for parameter in parameters(kind):
                    yield pytest.param(kind, parameter, id=f"{name}-{parameter}")


@pytest.mark.parametrize(("kind", "parameter"), settings())
def test_a_setting_is_read_somewhere(kind: type, parameter: str) -> None:
    if is_dataclass(kind) or parameter not in used_in_init(kind):
        assert {parameter, f"_{parameter}"} & loads()


# What the command line offers beyond distcap's own classes.


@pytest.mark.parametrize(
    ("flag", "remedy"),
    [
        (["--trainer.gradient_clip_val=0.5"], r"--model\.clip_gradient"),
        (["--trainer.gradient_clip_algorithm=value"], r"--model\.clip_gradient"),
        (["--optimizer=torch.optim.SGD", "--optimizer.lr=0.1"], r"--model\.learning_rate"),
        (["--lr_scheduler=torch.optim.lr_scheduler.ConstantLR"], r"--model\.schedule"),
        (["--trainer.precision=bf16-true"], "bf16-mixed"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_flag_that_would_be_ignored_is_refused(
    flag: list[str], remedy: str, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ["--data=scenes.yaml", "--trainer.max_steps=1", "--test_after_fit=false", "--run=demo/refused"]
    with pytest.raises(SystemExit, match="2"):
        run(workshop, "fit", "--config", "demo/mle.yaml", *steps, *flag)
    assert re.search(remedy, capsys.readouterr().err)
    assert not (workshop / "runs" / "demo" / "refused" / "captioner").exists()
