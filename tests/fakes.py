"""A captioner and a dual encoder of four words, whose numbers can be checked by eye."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from distcap.experience import Experience
from distcap.models import Sampler, Sight
from distcap.types import Batch

WORDS = ("red", "blue", "dog", "cat")
END = len(WORDS)

SAMPLED = Sampler(method="multinomial", samples=2, max_tokens=4)
GREEDY = Sampler(method="greedy", max_tokens=4)


def embed(*captions: str) -> Tensor:
    """N captions -> (N, 4) normalised word counts: <"red", "red dog"> is 1 / sqrt(2), <"red", "dog"> is 0."""
    counts = [[float(caption.split().count(word)) for word in WORDS] for caption in captions]
    return normalize(torch.tensor(counts), dim=-1)


class FakeClip:
    """Sees word counts. Remembers what it was asked."""

    tau = 0.1

    def __init__(self) -> None:
        self.embedded: list[list[str]] = []

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        self.embedded.append(list(captions))
        return embed(*captions)


class FakeStore:
    """Of the same embeddings. Remembers what it was asked."""

    def __init__(self) -> None:
        self.read: list[list[str]] = []

    def __getitem__(self, captions: Sequence[str]) -> Tensor:
        self.read.append(list(captions))
        return embed(*captions)


class Pictures:
    """Embeddings by image id: (B, 4) of the ids from 10 on, or of those given."""

    def __init__(self, embeddings: Tensor, ids: Sequence[int] | None = None) -> None:
        self.embeddings = embeddings
        self.ids = list(ids or range(10, 10 + len(embeddings)))

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        return self.embeddings[[self.ids.index(i) for i in ids]]


class Bigrams(nn.Module):
    """A policy that scores by a bigram table and a linear look at the image. Remembers what it was asked."""

    words: tuple[str, ...]

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.end = len(self.words)
        self.look = nn.Parameter(torch.randn(width, self.end + 1, generator=generator))
        self.bigrams = nn.Parameter(torch.randn(self.end + 1, self.end + 1, generator=generator))
        self.calls: list[str] = []

    def seen(self, memory: Tensor) -> Tensor:
        """(N, 1, S) -> (N, 1, V) what the image makes likelier."""
        raise NotImplementedError

    def score(
        self, memory: Tensor, tokens: Tensor, mask: Tensor, image_index: Tensor, temperature: float = 1.0
    ) -> Tensor:
        self.calls.append("score")
        last = torch.cat([torch.full_like(tokens[:, :1], self.end), tokens[:, :-1]], 1)
        logprobs = ((self.seen(memory[image_index]) + self.bigrams[last]) / temperature).log_softmax(-1)
        return torch.where(mask, logprobs.gather(-1, tokens[..., None])[..., 0], 0.0)

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = [[*map(self.words.index, caption.split()), self.end] for caption in captions]
        width = max(map(len, rows))
        tokens = torch.tensor([row + [self.end] * (width - len(row)) for row in rows])
        return tokens, torch.arange(width) < torch.tensor([[len(row)] for row in rows])

    def detokenize(self, tokens: Tensor, mask: Tensor) -> list[str]:
        kept = zip(tokens.tolist(), mask.tolist(), strict=True)
        return [" ".join(self.words[t] for t, m in zip(*row, strict=True) if m and t != self.end) for row in kept]


class FakeCaptioner(Bigrams):
    """Looks at the image's first four pixels, once."""

    words = WORDS

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed, len(WORDS))

    def seen(self, memory: Tensor) -> Tensor:
        return memory

    def encode(self, images: Tensor) -> Tensor:
        self.calls.append("encode")
        return (images.flatten(1)[:, : len(WORDS)] @ self.look)[:, None]

    def generate(self, memory: Tensor, sampler: Any) -> tuple[Tensor, Tensor, Tensor]:
        self.calls.append(f"generate {sampler.method}")
        index = torch.arange(len(memory)).repeat_interleave(sampler.samples)
        tokens = torch.full((len(index), 0), END)
        for _ in range(sampler.max_tokens):
            last = tokens[:, -1] if tokens.shape[1] else torch.full_like(index, END)
            odds = (memory[index, 0] + self.bigrams[last]).softmax(-1)
            drawn = odds.argmax(-1) if sampler.method == "greedy" else torch.multinomial(odds, 1)[:, 0]
            tokens = torch.cat([tokens, drawn[:, None]], 1)
        ended = (tokens == END).cumsum(1)
        return tokens, (ended - (tokens == END).long()) == 0, index


SHOWN = ("red dog", "blue dog", "red cat", "blue cat")
"""What the four images of the batch show; their pixels and their embeddings are these words."""


def make_batch(start: int = 0, stop: int = 4) -> Batch:
    """Images 10, 11, 12, 13, or some of them, each with one human caption: what it shows."""
    shown = SHOWN[start:stop]
    pixels = embed(*shown).view(-1, 1, 2, 2) * 3
    return Batch(pixels, [[caption] for caption in shown], list(range(10 + start, 10 + stop)))


def make_sight(clip: Any = None, images: Any = None, captions: Any = None, mined: Any = None) -> Any:
    """What a fake CLIP has seen: the four images, unless other embeddings are given."""
    return Sight(clip or FakeClip(), images or Pictures(embed(*SHOWN)), captions, mined)


def make_experience(batch: Batch | None = None, *, image_embeddings: Tensor | None = None, **kwargs: Any) -> Experience:
    """An experience of the fakes; any argument of Experience can be replaced, or the images' embeddings alone."""
    images = None if image_embeddings is None else Pictures(image_embeddings)
    defaults: dict[str, Any] = {
        "captioner": FakeCaptioner(),
        "sampler": SAMPLED,
        "greedy": GREEDY,
        "rewards": {},
        "clips": {None: make_sight(images=images)},
    }
    return Experience(batch or make_batch(), **{**defaults, **kwargs})
