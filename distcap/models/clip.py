"""A frozen dual encoder: the judge of what a caption says of an image."""

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distcap import pictures
from distcap.checks import at_least
from distcap.models.embeddings import EmbeddingStore
from distcap.models.weights import load_open_clip, source_of
from distcap.pictures import Picture, open_picture
from distcap.types import UserError

PROBE = (string.printable, "It's 2 cafés; a Dog's <porch>!", "one dog more " * 200)
"""What tokenizers of one vocabulary read differently: case, punctuation, accents, and more words than fit."""


class FrozenClip:
    """An open_clip model with its own preprocessing, without gradients.

    Not an nn.Module: it is no part of what is trained, so neither checkpoints nor distributed wrappers should see it.
    Two instances of one model share its weights. Embeddings are computed in the weights' own precision, mixed precision
    around them or not: those of a step must be those that were stored.

    Any model of open_clip's will do, each with its own preprocessing and tokenizer. A SigLIP's probability that image
    and caption belong together is sigmoid(s / tau + b), with a learnt bias b (Zhai et al. 2023, arXiv 2303.15343). All
    that is computed here are similarities s and the temperature, and neither needs b: it is the same for all pairs, so
    that it moves no rank, and in the contrastive reward both s and the logarithm over the pool move by tau b.

    Args:
        model: an open_clip model name, "hf-hub:" with a name on the Hugging Face hub, a run folder of the clip stage,
            or a folder with `open_clip_config.json`.
        pretrained: for a model name, open_clip's tag, or a file of weights: a checkpoint of one's own, or one with
            OpenAI's parameter names, as PAC-S's `clip_ViT-B-32.pth` for the default model (Sarto et al. 2023, arXiv
            2303.12112; their score is 2 relu(similarity), with the prompt "A photo depicts ").
        prompt: put before each caption, e.g. "A photo depicts " for CLIP-S.
        batch_size: images or captions in one forward pass.

    Raises:
        UserError: batch_size is less than one; or, at first use, there is no such model or its weights cannot be read.
    """

    def __init__(
        self, model: str = "ViT-B-32-quickgelu", pretrained: str = "openai", prompt: str = "", batch_size: int = 256
    ) -> None:
        at_least("batch_size of a CLIP", batch_size, 1)
        self.prompt = prompt
        self.batch_size = batch_size
        self.truncated = 0
        """Captions cut at the context length so far: CLIP does so silently."""
        self.model, self.pretrained = str(model), str(pretrained)

    @property
    def net(self) -> Any:
        """The network; loaded when first asked for, so that naming a CLIP costs nothing."""
        return load_open_clip(self.model, self.pretrained)[0]

    @property
    def preprocess(self) -> Any:
        """PIL image -> (3, H, W) as the network wants it."""
        return load_open_clip(self.model, self.pretrained)[1]

    @property
    def tokenizer(self) -> Any:
        """Strings -> tokens."""
        return load_open_clip(self.model, self.pretrained)[2]

    @property
    def config(self) -> dict[str, Any]:
        """What open_clip keeps in `open_clip_config.json`: model_cfg and preprocess_cfg."""
        import open_clip

        preprocess = open_clip.get_model_preprocess_cfg(self.net)
        return {"model_cfg": open_clip.get_model_config(source_of(self.model)), "preprocess_cfg": preprocess}

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def to(self, device: torch.device | str) -> "FrozenClip":
        self.net.to(device)
        return self

    @property
    def tau(self) -> float:
        """Temperature of the similarities, 1 / exp(logit_scale)."""
        return float(1 / self.net.logit_scale.exp())

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever an embedding would: with weights, tokenizer, prompt, preprocessing, or pictures.VERSION."""
        digest = hashlib.sha256(f"{self.preprocess} {self.prompt}".encode())
        digest.update(f"pictures {pictures.VERSION}".encode())
        digest.update(str(self.tokenizer(list(PROBE)).tolist()).encode())
        digest.update(json.dumps(_vocabulary(self.tokenizer), sort_keys=True).encode())
        for name, value in sorted(self.net.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def embed_images(self, files: Sequence[Picture]) -> Tensor:
        """F files -> (F, D) normalised embeddings."""
        preprocess = self.preprocess  # loads the model, which is not for many threads to do at once
        with ThreadPoolExecutor() as pool:
            pixels = torch.stack(list(pool.map(lambda file: _open(file, preprocess), files)))
        with torch.autocast(self.device.type, enabled=False):
            return self.net.encode_image(pixels.to(self.device), normalize=True).float()

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """N strings -> (N, D) normalised embeddings."""
        tokens = self._tokenize([self.prompt + caption for caption in captions]).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            parts = [self.net.encode_text(part, normalize=True) for part in tokens.split(self.batch_size)]
        return torch.cat(parts).float()

    def image_store(self, files: Mapping[int, Picture], folder: Path) -> EmbeddingStore:
        """Embeddings of images, by image id; computed once for all runs. A changed file is seen again."""
        stats = {image_id: path.stat() for image_id, path in files.items()}
        versions = {str(i): f"{s.st_size}-{s.st_mtime_ns}" for i, s in stats.items()}
        return EmbeddingStore.build(
            folder / f"{self.fingerprint}-images",
            versions,
            lambda keys: self.embed_images([files[int(key)] for key in keys]),
            batch_size=self.batch_size,
            title="CLIP sees the images",
        )

    def caption_store(self, captions: Sequence[str], folder: Path) -> EmbeddingStore:
        """Embeddings of captions that will be read many times, the ground truth's, by the caption itself."""
        return EmbeddingStore.build(
            folder / f"{self.fingerprint}-captions",
            dict.fromkeys(captions, ""),
            self.embed_captions,
            batch_size=self.batch_size,
            title="CLIP reads the ground truth",
        )

    def _tokenize(self, captions: Sequence[str]) -> Tensor:
        """(N, T) as the tokenizer itself cuts them. One that has more tokens where there is room for one was cut.

        So whatever a tokenizer puts before and after the words, and on whichever side it pads.
        """
        tokens = self.tokenizer(list(captions))
        length = tokens.shape[1]
        padding = self.tokenizer([""])[0].mode().values
        # A tokenizer may pad with its end token, or write padding over it: then a full row looks one short of it.
        full = ((tokens != padding).sum(1) >= length - 1).nonzero().flatten()
        if len(full):
            roomier = self.tokenizer([captions[row] for row in full.tolist()], context_length=length + 1)
            longer = (roomier != padding).sum(1) > (tokens[full] != padding).sum(1)
            self.truncated += int(longer.sum())
        return tokens


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    """Token -> id, of either kind of tokenizer that open_clip has."""
    from open_clip.tokenizer import SimpleTokenizer

    return tokenizer.encoder if isinstance(tokenizer, SimpleTokenizer) else tokenizer.tokenizer.get_vocab()


def _open(path: Picture, preprocess: Any) -> Tensor:
    try:
        return preprocess(open_picture(path))
    except UserError as error:
        raise UserError(f"{error}; replace the file, or take it out of the data set") from error
