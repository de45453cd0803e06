"""ClipCap: what a CLIP sees becomes the prefix of a language model."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from distcap.checks import at_least
from distcap.models.clip import FrozenClip
from distcap.models.loading import SAFE, as_data, check_config, network, square
from distcap.models.prefix import PrefixCaptioner
from distcap.types import UserError


class ClipCap(PrefixCaptioner):
    """The image encoder of a CLIP, a mapping network, any causal language model (Mokady et al. 2021, arXiv 2111.09734).

    Their MLP variant. The image encoder is frozen by default, as theirs; with `lora` the mapping network learns, too.
    There is no such class in transformers: what is exported brings its code along, which needs open_clip.

    Args:
        init_from: a run folder of the mle or rl stage, or a folder that was saved before. None puts `clip`, an
            untrained mapping network and `language_model` together.
        clip: with nothing to start from, whose image encoder it is.
        language_model: with nothing to start from, a name on the Hugging Face hub or a folder in that format.
        prefix: with nothing to start from, embeddings an image, P.
        freeze_encoder: train all but the image encoder.
        kwargs: see HuggingFaceCaptioner.
    """

    families = ("clipcap",)

    def __init__(
        self,
        init_from: str | None = None,
        clip: FrozenClip | None = None,
        language_model: str = "openai-community/gpt2",
        prefix: int = 10,
        freeze_encoder: bool = True,
        **kwargs: Any,
    ) -> None:
        at_least("--model.captioner.prefix", prefix, 1)
        super().__init__(init_from, freeze_encoder=freeze_encoder, **kwargs)
        self._trained = init_from is not None
        if init_from is None:
            if clip is None:
                raise UserError("a ClipCap with init_from: null needs a CLIP to see with; set clip")
            self._adopt(self._compose(clip, language_model, prefix))

    @property
    def trained(self) -> bool:
        return self._trained

    def _compose(self, clip: FrozenClip, name: str, prefix: int) -> Any:
        """Of a trained encoder, a trained language model, and a mapping network that is not."""
        from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

        from distcap.models.clip_cap_model import ClipCapConfig, ClipCapModel

        with as_data(f"language model {name}"):
            check_config(PreTrainedConfig.get_config_dict(name, **SAFE)[0])
            self.tokenizer = AutoTokenizer.from_pretrained(name, **SAFE)
            language_model = network(AutoModelForCausalLM, name, self.dtype)
        language = language_model.config.to_diff_dict()
        # A folder of this machine, perhaps, and the precision of the file, which is not that of the whole network.
        language = {key: value for key, value in language.items() if key not in ("_name_or_path", "dtype")}
        config = ClipCapConfig(clip.config, language, prefix)
        vision = copy.deepcopy(clip.net.visual).requires_grad_(True).to(self.dtype)
        return ClipCapModel(config, vision, language_model)

    def read(self, name: str) -> Any:
        from transformers import AutoTokenizer

        from distcap.models.clip_cap_model import ClipCapConfig, ClipCapModel

        self.tokenizer = AutoTokenizer.from_pretrained(name, config=ClipCapConfig.from_pretrained(name, **SAFE), **SAFE)
        with torch.random.fork_rng(devices=[]):  # weights are drawn before they are read
            return network(ClipCapModel, name, self.dtype)

    def _adopt(self, model: Any) -> None:
        preprocess = model.config.clip["preprocess_cfg"]
        self.image_processor = SimpleNamespace(image_mean=preprocess["mean"], image_std=preprocess["std"])
        self.processor = self.tokenizer
        super()._adopt(model)
        model.mapping.requires_grad_(True)

    @property
    def encoder(self) -> Any:
        return self.model.vision

    @property
    def language_model(self) -> Any:
        return self.model.language_model

    decoder = language_model

    def side(self) -> int:
        return square(self.model.config.clip["preprocess_cfg"]["size"])

    @property
    def taken(self) -> int:
        return self.model.config.prefix - 1

    def special_tokens(self) -> tuple[None, int]:
        # Captions are padded after their end, where a causal decoder cannot see it: no mask is needed, nor a warning.
        self.language_model.config.pad_token_id = None
        return None, self.tokenizer.eos_token_id

    def see(self, images: Tensor) -> Tensor:
        return self.model(self.normalise(images))

    def prefix(self, memory: Tensor) -> Tensor:
        return memory

    def usage(self, folder: Path) -> str:
        from distcap.models import clip_cap_model

        shutil.copy(clip_cap_model.__file__, folder)
        config = copy.copy(self.model.config)
        classes = {"AutoConfig": "ClipCapConfig", "AutoModelForImageTextToText": "ClipCapModel"}
        config.auto_map = {auto: f"clip_cap_model.{name}" for auto, name in classes.items()}
        config.save_pretrained(folder)
        return f"# pip install open_clip_torch: it sees with an image encoder of open_clip's\n{super().usage(folder)}"
