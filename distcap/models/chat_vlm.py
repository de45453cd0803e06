"""Captioners that are asked for a caption: vision-language models with a chat template."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distcap.checks import at_least
from distcap.models.loading import SAFE, network
from distcap.models.prefix import PrefixCaptioner
from distcap.types import UserError

MARK = "CAPTION"
"""Stands for the answer while the chat template is taken apart."""
ANY_SIZE = 448
"""Side of the images of a model that takes any: its features are few enough to train on, and show details."""

OPTIONS = ("do_image_splitting", "do_resize", "image_seq_len", "max_image_size", "max_pixels", "min_pixels", "size")
"""Of a processor. No others: a run folder from elsewhere names them, and some of Hugging Face's allow code to run."""

USAGE = """\
from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

model = AutoModelForImageTextToText.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder)
rules = GenerationConfig.from_pretrained(folder)

images = [ImageOps.exif_transpose(Image.open(file)).convert("RGB") for file in files]
images = [image.resize(({side}, {side}), Image.Resampling.BICUBIC) for image in images]
question = [{{"type": "image"}}, {{"type": "text", "text": {prompt!r}}}]
chat = processor.apply_chat_template([{{"role": "user", "content": question}}], add_generation_prompt=True)
inputs = processor(text=[chat] * len(images), images=[[image] for image in images], return_tensors="pt")
tokens = model.generate(**inputs, generation_config=rules)[:, inputs.input_ids.shape[1] :]
captions = [caption.strip() for caption in processor.batch_decode(tokens, skip_special_tokens=True)]
"""


class ChatVLM(PrefixCaptioner):
    """A vision-language model of Hugging Face's image-text-to-text class, e.g. SmolVLM, Idefics3 or Qwen2.5-VL.

    The prefix of a caption is the chat of one question, image first, up to where the model answers, as the model's own
    processor writes it; the image's features replace its placeholders. The caption ends with the token that ends an
    answer in the chat template.

    Args:
        init_from: a name on the Hugging Face hub, a folder in that format, or a run folder of the mle or rl stage.
        prompt: the question.
        image_size: side of the square images, one that the processor does not change (Qwen2.5-VL: multiples of 28). By
            default the model's own, where it has one (SmolVLM 512), or else about 448.
        processor: options of the processor. Images are not split (SmolVLM, Idefics3) unless do_image_splitting is true.
        kwargs: see HuggingFaceCaptioner.

    Raises:
        UserError: there is no such model, or its processor would change images of this size.
    """

    task = "image-text-to-text"
    words: Tensor
    places: Tensor

    def __init__(
        self,
        init_from: str = "HuggingFaceTB/SmolVLM-256M-Instruct",
        prompt: str = "Describe this image in one sentence.",
        image_size: int | None = None,
        processor: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.prompt = prompt
        self.options = dict(processor or {})
        if unknown := sorted(self.options.keys() - OPTIONS):
            raise UserError(f"processor has no option {unknown[0]!r} that may be set; there are {', '.join(OPTIONS)}")
        if image_size is not None:
            at_least("--model.captioner.image_size", image_size, 1)
        self._image_size = image_size
        super().__init__(init_from, **kwargs)

    def read(self, name: str) -> Any:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(name, **{"do_image_splitting": False, **self.options}, **SAFE)
        self.tokenizer, self.image_processor = self.processor.tokenizer, self.processor.image_processor
        if self._image_size is None:
            self._image_size = _own_size(self.image_processor)
        return network(AutoModelForImageTextToText, name, self.dtype)

    def special_tokens(self) -> tuple[None, int]:
        """Also takes the chat template apart: what stands before a caption, and what after."""
        question = [{"type": "image"}, {"type": "text", "text": self.prompt}]
        chat: list[dict[str, Any]] = [{"role": "user", "content": question}]
        before = self.processor.apply_chat_template(chat, add_generation_prompt=True)
        answer = {"role": "assistant", "content": [{"type": "text", "text": MARK}]}
        whole = self.processor.apply_chat_template([*chat, answer])
        if not whole.startswith(before) or MARK not in whole[len(before) :]:
            raise UserError(f"the chat template of {type(self.model).__name__} has no place for an answer; use another")
        self.lead, after = whole[len(before) :].split(MARK)
        self._write_prefix(before)
        return None, self.tokenizer(after, add_special_tokens=False).input_ids[0]

    def _write_prefix(self, text: str) -> None:
        """Tokens, places of the image and positions of the prefix, of which all images have the same."""
        side = self.image_size
        blank = torch.zeros(3, side, side, dtype=torch.uint8)
        inputs = self.processor(text=[text], images=[[blank]], return_tensors="pt")
        pixels = inputs.pop("pixel_values")
        grid = inputs.get("image_grid_thw")
        found = pixels.shape[-1] if grid is None else int(grid[0, 1]) * self.image_processor.patch_size
        if found != side or (pixels.ndim == 5 and pixels.shape[1] > 1):
            count = pixels.shape[1] if pixels.ndim == 5 else 1
            raise UserError(
                f"of an image of {side} pixels the processor makes {count} of {found}; set image_size: {found} (and "
                "processor: {do_image_splitting: false} where images are split)"
            )
        words = inputs.input_ids
        kwargs = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        # How generate() asks any model for its positions: of some, an image's tokens have places in a plane.
        places = self.model._prepare_position_ids_for_generation(words, kwargs)
        self.register_buffer("words", words, persistent=False)
        self.register_buffer("places", places, persistent=False)

    @property
    def encoder(self) -> Any:
        return self.model.get_encoder(modality="image")

    @property
    def language_model(self) -> Any:
        return self.model.get_decoder()

    @property
    def decoder(self) -> Any:
        return self.model

    def side(self) -> int:
        assert self._image_size is not None  # read() sees to it
        return self._image_size

    @property
    def taken(self) -> int:
        return self.words.shape[1] - 1

    def see(self, images: Tensor) -> Tensor:
        # Whole 255ths, as in an image file: some processors resize, and round to them.
        pixels = (255 * images).round().to(torch.uint8)
        inputs = self.image_processor(images=[[image] for image in pixels], return_tensors="pt")
        inputs = {name: value.to(images.device) for name, value in inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.precision)
        return torch.stack(tuple(self.model.get_image_features(**inputs, return_dict=True).pooler_output))

    def prefix(self, memory: Tensor) -> Tensor:
        embeddings = self.decoder.get_input_embeddings()(self.words).expand(len(memory), -1, -1)
        image = (self.words == self.model.config.image_token_id)[..., None]
        return embeddings.masked_scatter(image, memory.to(embeddings.dtype))

    def positions(self, rows: int, length: int) -> dict[str, Tensor]:
        more = torch.arange(1, length - self.words.shape[1] + 1, device=self.words.device)
        places = torch.cat([self.places, self.places[..., -1:] + more], -1)
        return {"position_ids": places.expand(*places.shape[:-2], rows, -1)}

    def usage(self, folder: Path) -> str:
        return USAGE.format(side=self.image_size, prompt=self.prompt)

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return super().tokenize([self.lead + caption for caption in captions])


def _own_size(image_processor: Any) -> int:
    """Side of the squares that the image processor makes; about 448 if it takes any, and leaves them as they are."""
    if own := getattr(image_processor, "max_image_size", None):
        return dict(own)["longest_edge"]
    unit = image_processor.patch_size * getattr(image_processor, "merge_size", 1)
    most = dict(image_processor.size).get("longest_edge") or ANY_SIZE**2  # of pixels
    return min(ANY_SIZE, math.isqrt(most)) // unit * unit
