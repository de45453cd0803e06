"""A frozen dual encoder: the judge of what a caption says of an image."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from distcap.models.embeddings import EmbeddingStore
from distcap.types import UserError


class FrozenClip:
    """An open_clip model with its own preprocessing, without gradients.

    Not an nn.Module: it is no part of what is trained, so neither checkpoints nor distributed wrappers should see it.
    Two instances of one model share its weights.

    Args:
        model: an open_clip model name, a run folder of the clip stage, or a folder with `open_clip_config.json`.
        pretrained: for a model name, open_clip's tag, or a file of weights: a checkpoint of one's own, or one with
            OpenAI's parameter names, as PAC-S's `clip_ViT-B-32.pth` for the default model (Sarto et al. 2023, arXiv
            2303.12112; their score is 2 relu(similarity), with the prompt "A photo depicts ").
        prompt: put before each caption, e.g. "A photo depicts " for CLIP-S.
        batch_size: images or captions in one forward pass.

    Raises:
        UserError: at first use, if there is no such model or its weights cannot be read.
    """

    def __init__(
        self, model: str = "ViT-B-32-quickgelu", pretrained: str = "openai", prompt: str = "", batch_size: int = 256
    ) -> None:
        self.prompt = prompt
        self.batch_size = batch_size
        self.truncated = 0
        """Captions cut at the context length so far: CLIP does so silently."""
        self.model, self.pretrained = model, pretrained

    @property
    def net(self) -> Any:
        """The network; loaded when first asked for, so that naming a CLIP costs nothing."""
        return _load(_source(self.model), self.pretrained)[0]

    @property
    def preprocess(self) -> Any:
        """PIL image -> (3, H, W) as the network wants it."""
        return _load(_source(self.model), self.pretrained)[1]

    @property
    def tokenizer(self) -> Any:
        """Strings -> tokens."""
        return _load(_source(self.model), self.pretrained)[2]

    @property
    def config(self) -> dict[str, Any]:
        """What open_clip keeps in `open_clip_config.json`: model_cfg and preprocess_cfg."""
        import open_clip

        preprocess = open_clip.get_model_preprocess_cfg(self.net)
        return {"model_cfg": open_clip.get_model_config(_source(self.model)), "preprocess_cfg": preprocess}

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
        """Changes whenever an embedding would: with the weights, the preprocessing or the prompt."""
        digest = hashlib.sha256(f"{self.preprocess} {self.prompt}".encode())
        for name, value in sorted(self.net.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def embed_images(self, files: Sequence[Path]) -> Tensor:
        """F files -> (F, D) normalised embeddings."""
        preprocess = self.preprocess  # loads the model, which is not for many threads to do at once
        with ThreadPoolExecutor() as pool:
            pixels = torch.stack(list(pool.map(lambda file: _open(file, preprocess), files)))
        return self.net.encode_image(pixels.to(self.device), normalize=True).float()

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """N strings -> (N, D) normalised embeddings."""
        tokens = self._tokenize([self.prompt + caption for caption in captions]).to(self.device)
        parts = [self.net.encode_text(part, normalize=True) for part in tokens.split(self.batch_size)]
        return torch.cat(parts).float()

    def image_store(self, files: Mapping[int, Path], folder: Path) -> EmbeddingStore:
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
        """One column more than the context tells which captions are too long for it."""
        length = self.net.context_length
        tokens = self.tokenizer(list(captions), context_length=length + 1)
        padding = self.tokenizer([""], context_length=length + 1)[0, -1]
        too_long = tokens[:, -1] != padding
        self.truncated += int(too_long.sum())
        tokens[too_long, length - 1] = tokens[too_long, length]
        return tokens[:, :length]


def _open(path: Path, preprocess: Any) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return preprocess(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error}); mend it or take it out of the data set") from error


def _source(model: str) -> str:
    for folder in (Path(model) / "clip", Path(model)):
        if (folder / "open_clip_config.json").is_file():
            return f"local-dir:{folder.resolve()}"
    if Path(model).exists() or model.startswith(("runs/", ".", "/")):
        raise UserError(
            f"{model}: no CLIP there (no clip/open_clip_config.json); train it with `distcap fit --config clip.yaml`"
        )
    return model


OTHER_FORMATS = {".safetensors", ".npz", ".npy"}
"""Of files that are no pickles: open_clip's own affair."""
ARCHIVED = {"input_resolution", "context_length", "vocab_size"}
"""Numbers that OpenAI's archives keep among the weights; open_clip has them in its configs."""


@contextlib.contextmanager
def _weights(pretrained: str | None) -> Iterator[str | None]:
    """What open_clip is to load: a tag as it is, and a file without what it would stumble over.

    Raises:
        ValueError: the file holds no named weights, or it holds code.
    """
    if pretrained is None or not Path(pretrained).is_file() or Path(pretrained).suffix in OTHER_FORMATS:
        yield pretrained
        return
    try:
        found = torch.load(pretrained, map_location="cpu", weights_only=True)
    except (EOFError, UnpicklingError) as error:
        raise ValueError("the file holds no weights, or code among them") from error
    weights = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"the file holds no named weights, but a {type(weights).__name__}")
    if not ARCHIVED & weights.keys():
        yield pretrained
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        torch.save({name: value for name, value in weights.items() if name not in ARCHIVED}, file)
        yield str(file)


@lru_cache(maxsize=4)
def _load(source: str, pretrained: str) -> tuple[Any, Any, Any]:
    import open_clip

    tag = None if source.startswith("local-dir:") else pretrained
    if tag and ("/" in tag or Path(tag).suffix) and not Path(tag).is_file():
        raise UserError(f"{tag}: no such file of weights for CLIP {source}; name one, or a tag of open_clip's")
    try:
        # Weights are drawn before they are read: chance must not depend on who was the first to load a CLIP.
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(None), _weights(tag) as weights:
            net, preprocess = open_clip.create_model_from_pretrained(source, pretrained=weights, weights_only=True)
            tokenizer = open_clip.get_tokenizer(source)
    except (RuntimeError, ValueError, OSError, UnpicklingError) as error:
        line = " ".join(str(error).split())[:300]
        raise UserError(f"CLIP {source} ({pretrained}) cannot be loaded: {line}") from error
    assert isinstance(net, nn.Module)
    return net.requires_grad_(False).eval(), preprocess, tokenizer
