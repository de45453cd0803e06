"""A dozen words for every reward to have an opinion on, and a policy that says of an image what it always says.

What is drawn depends on the image alone, so that half a batch and the whole of it see the same captions. All numbers
are of double precision, so that a difference is a mistake and not rounding.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fakes import Bigrams
from lightning import LightningDataModule
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from distcap.experience import Experience
from distcap.models import Sampler
from distcap.stages import RL
from distcap.types import Batch, Rollout

WORDS = ("a", "red", "blue", "dog", "cat", "heart", "on", "and", "porch", "grass", "asleep", "night")
END = len(WORDS)
WIDTH = 8
IMAGES = 20
"""In the training set; batches are some of them."""

_VECTORS = torch.randn(END, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.double)
_NOISE = torch.randn(IMAGES, WIDTH, generator=torch.Generator().manual_seed(1))


def say(*key: object, words: int = 6) -> str:
    """A caption of one to six words, always the same for the same key."""
    draw = random.Random(" ".join(map(str, key)))
    return " ".join(draw.choices(WORDS, k=draw.randint(1, words)))


TRUTH = {image_id: [say("human", image_id, which) for which in range(2)] for image_id in range(IMAGES)}


def embed(captions: Sequence[str]) -> Tensor:
    """N captions -> (N, 8) normalised sums of their words' vectors; an empty one is zero."""
    rows = [torch.tensor([*map(WORDS.index, caption.split())], dtype=torch.long) for caption in captions]
    return normalize(torch.stack([_VECTORS[row].sum(0) for row in rows]), dim=-1)


SEEN = normalize(embed([" ".join(truth) for truth in TRUTH.values()]) + 0.2 * _NOISE, dim=-1)
"""(20, 8) the images, near what humans say of them."""


class Store:
    """Embeddings by key."""

    def __init__(self, table: dict[Any, Tensor]) -> None:
        self.table = table

    def __getitem__(self, keys: Sequence[Any]) -> Tensor:
        return torch.stack([self.table[key] for key in keys])


LENS = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.double)
"""Through which another CLIP sees and reads."""


class Clip:
    """Sees SEEN, reads words; through a lens, if it has one."""

    tau = 0.1
    truncated = 0

    def __init__(self, lens: Tensor | None = None) -> None:
        self.lens = lens

    def _through(self, embeddings: Tensor) -> Tensor:
        return embeddings if self.lens is None else normalize(embeddings @ self.lens, dim=-1)

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        return self._through(embed(captions))

    def to(self, device: Any) -> "Clip":
        return self

    def image_store(self, files: dict[int, Path], folder: Path) -> Store:
        return Store({image_id: self._through(SEEN[image_id]) for image_id in files})

    def caption_store(self, captions: Sequence[str], folder: Path) -> Store:
        return Store(dict(zip(captions, self.embed_captions(captions), strict=True)) if captions else {})


class Policy(Bigrams):
    """Looks at the image whenever it scores."""

    words = WORDS
    trained = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed, WIDTH)

    def seen(self, memory: Tensor) -> Tensor:
        return memory[:, :, 1:] @ self.look

    def prepare(self, captions: Any) -> None: ...

    def save_pretrained(self, folder: Path) -> None: ...

    def encode(self, images: Tensor) -> Tensor:
        return images

    def generate(self, memory: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor, Tensor]:
        self.calls.append(f"generate {sampler.method}")
        ids = memory[:, 0, 0].long().tolist()
        captions = [say(sampler.method, image_id, which) for image_id in ids for which in range(sampler.samples)]
        return *self.tokenize(captions), torch.arange(len(ids)).repeat_interleave(sampler.samples)


def make_batch(image_ids: Sequence[int]) -> Batch:
    """The pixels of an image are its number and what CLIP sees."""
    ids = list(image_ids)
    return Batch(torch.cat([torch.tensor(ids)[:, None], SEEN[ids]], 1)[:, None], [TRUTH[i] for i in ids], ids)


def make_trainer(data: Any, **more: Any) -> Any:
    """The part of a Trainer that a stage's setup and step read: of one process."""
    plain = {
        "datamodule": data,
        "accumulate_grad_batches": 1,
        "world_size": 1,
        "global_rank": 0,
        "precision": "32-true",
        "gradient_clip_val": None,
        "gradient_clip_algorithm": None,
        "strategy": SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda table: table),
    }
    return SimpleNamespace(**{**plain, **more})


class Data(LightningDataModule):
    """The first images in batches, always in this order; all are the training set."""

    neighbours_needed = 0
    cache_dir = Path()

    def __init__(self, images: int = 8, batch_size: int = 8) -> None:
        super().__init__()
        self.images, self.batch_size = images, batch_size

    def references(self, split: str) -> dict[int, list[str]]:
        return TRUTH

    def entries(self, split: str) -> list[Any]:
        return [SimpleNamespace(image_id=image_id) for image_id in TRUTH]

    def path(self, entry: Any) -> Path:
        return Path()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(range(self.images), self.batch_size, collate_fn=make_batch)  # type: ignore[arg-type]


def make_rollout(captioner: Any, memory: Tensor, captions: Sequence[str], index: Tensor | None = None) -> Rollout:
    """One caption an image unless their images are given."""
    index = torch.arange(len(captions)) if index is None else index
    tokens, mask = captioner.tokenize(captions)
    return Rollout(captions, tokens, mask, captioner.score(memory, tokens, mask, index), index)


class Stage(RL):
    """The RL stage with two CLIPs, which keeps what it logs.

    Its ground truth is each image's captions in their order, by no chance.
    """

    def __init__(self, rewards: Any, baseline: Any, objective: Any, **kwargs: Any) -> None:
        kwargs = {"clip": Clip(), "clips": {"second": Clip(LENS)}, **kwargs}
        super().__init__(Policy(), rewards, baseline, objective, **kwargs)  # type: ignore[arg-type]
        self.double()
        self.logged: dict[str, Any] = {}

    def experience(self, batch: Batch) -> Experience:
        experience = super().experience(batch)
        count = self.ground_truth_per_image
        captions = [truth[which % len(truth)] for truth in batch.captions for which in range(count)]
        index = torch.arange(len(batch)).repeat_interleave(count)
        experience.__dict__["ground_truth"] = make_rollout(self.captioner, experience.memory, captions, index)
        return experience

    def log(self, *args: Any, **kwargs: Any) -> None: ...

    def log_train(self, values: Any, prog_bar: bool = False) -> None:
        self.logged.update(values)
