"""Captioners of every family: tiny networks of the real classes, with their real processors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from distcap.models import Blip, Blip2, ChatVLM, ClipCap, FrozenClip, Git, Lora, VisionEncoderDecoder

PATCHES: dict[str, Any] = {"patch_size": 8, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MARKS = ("<pad>", "<start>", "<end>", "<unk>", "<image>", "<fake_token_around_image>", "<global-img>", "<row_1_col_1>")
QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "<start>{% for message in messages %}{{ message.role }} :{% for part in message.content %}"
    "{% if part.type == 'text' %} {{ part.text }}{% else %} IMAGE{% endif %}{% endfor %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
"""As SmolVLM's: an answer begins after a colon, with a space that belongs to it."""


def tokenizer(**special: Any) -> Any:
    """One token a word of the captions, and marks."""
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for caption in tiny.CAPTIONS for word in caption.split()} | {"user", "assistant", "describe"})
    vocabulary = {word: number for number, word in enumerate((*MARKS, *QWEN, *words, ":"))}
    net = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    net.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=net, **{**marks, "extra_special_tokens": [*MARKS[4:], *QWEN], **special}
    )


TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZE = len(tokenizer())


def spread(model: nn.Module, seed: int = 0) -> Any:
    """Strong opinions, for tests to compare."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def blip(folder: Path, side: int = 32) -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    text = {**WORDS, **TOKENS, "sep_token_id": 2, "eos_token_id": 3, "vocab_size": SIZE, "encoder_hidden_size": 16}
    config = BlipConfig(text_config=text, vision_config={**PATCHES, "hidden_size": 16, "image_size": side})
    spread(BlipForConditionalGeneration(config)).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": side, "width": side})
    BlipProcessor(images, tokenizer()).save_pretrained(folder)


def git(folder: Path, side: int = 32) -> None:
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    vision = {**PATCHES, "hidden_size": 24, "image_size": side}
    spread(GitForCausalLM(GitConfig(vision_config=vision, vocab_size=SIZE, **WORDS, **TOKENS))).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    GitProcessor(images, tokenizer()).save_pretrained(folder)


def clip_cap(folder: Path, side: int = 32) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    language = folder.parent / f"{folder.name}-language"
    config = GPT2Config(vocab_size=SIZE, n_embd=16, n_layer=2, n_head=2, n_positions=64, **TOKENS)
    spread(GPT2LMHeadModel(config)).save_pretrained(language)
    tokenizer().save_pretrained(language)
    clip = tiny.write_clip(folder.parent / f"{folder.name}-clip", side=side)
    captioner = ClipCap(clip=FrozenClip(str(clip)), language_model=str(language), prefix=4)
    spread(captioner.model.mapping)
    captioner.save_pretrained(folder)


def blip2(folder: Path, side: int = 32) -> None:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor, OPTConfig

    words = tokenizer(image_token="<image>")
    text = OPTConfig(
        vocab_size=SIZE, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, dropout=0.0, **TOKENS,
    )  # fmt: skip
    config = Blip2Config(
        vision_config={**PATCHES, "hidden_size": 16, "image_size": side},
        qformer_config={**WORDS, "vocab_size": SIZE, "encoder_hidden_size": 16},
        text_config=text.to_dict(),
        num_query_tokens=3,
        image_token_index=4,
    )
    spread(Blip2ForConditionalGeneration(config)).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": side, "width": side})
    Blip2Processor(images, words, num_query_tokens=3).save_pretrained(folder)


def smolvlm(folder: Path, side: int = 32) -> None:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor, SmolVLMProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    config = SmolVLMConfig(
        vision_config={**PATCHES, "hidden_size": 16, "image_size": side},
        text_config={
            **WORDS, **TOKENS, "model_type": "llama", "vocab_size": SIZE, "num_key_value_heads": 2, "head_dim": 8
        },
        scale_factor=2,
        image_token_id=4,
        pad_token_id=0,
    )  # fmt: skip
    spread(SmolVLMForConditionalGeneration(config)).save_pretrained(folder)
    sizes = {"size": {"longest_edge": 4 * side}, "max_image_size": {"longest_edge": side}}
    marks = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    }
    SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes),
        tokenizer(**marks),
        SmolVLMVideoProcessor(),
        image_seq_len=(side // 16) ** 2,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)


def qwen_vl(folder: Path, side: int = 32) -> None:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    vision = {
        "depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "patch_size": 8, "out_hidden_size": 16,
        "fullatt_block_indexes": [1], "window_size": 32,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 100.0}
    text = {**WORDS, **TOKENS, "vocab_size": SIZE, "num_key_value_heads": 2, "rope_parameters": rope}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=10, video_token_id=11)
    spread(Qwen2_5_VLForConditionalGeneration(config)).save_pretrained(folder)
    sizes = {"patch_size": 8, "size": {"shortest_edge": 16 * 16, "longest_edge": 128 * 128}}
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**sizes),
        tokenizer(),
        Qwen2VLVideoProcessor(patch_size=8),
        chat_template=TEMPLATE.replace("IMAGE", "<|vision_start|> <|image_pad|> <|vision_end|>").replace(":'", ": '"),
    ).save_pretrained(folder)


def vision_encoder_decoder(folder: Path, side: int = 32) -> None:
    tiny.make_captioner(encoder={**tiny.ENCODER, "image_size": side}).save_pretrained(folder)


WRITERS: dict[str, Callable[..., None]] = {
    "vision_encoder_decoder": vision_encoder_decoder,
    "blip": blip,
    "git": git,
    "clipcap": clip_cap,
    "blip2": blip2,
    "smolvlm": smolvlm,
    "qwen_vl": qwen_vl,
}
ADAPTERS: dict[str, type] = {
    "vision_encoder_decoder": VisionEncoderDecoder,
    "blip": Blip,
    "git": Git,
    "clipcap": ClipCap,
    "blip2": Blip2,
    "smolvlm": ChatVLM,
    "qwen_vl": ChatVLM,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "smolvlm": {"image_size": 32, "prompt": "describe", "processor": {"do_image_splitting": False}},
    "qwen_vl": {"image_size": 32, "prompt": "describe"},
    "clipcap": {"freeze_encoder": False},
}
TARGETS = {
    "vision_encoder_decoder": ["c_attn"],
    "blip": ["query", "value"],
    "git": ["query", "value"],
    "clipcap": ["c_attn"],
    "blip2": ["q_proj", "v_proj"],
    "smolvlm": ["q_proj", "v_proj"],
    "qwen_vl": ["q_proj", "v_proj"],
}


def load(family: str, folder: Path, **kwargs: Any) -> Any:
    """The captioner of a folder, as a user would have it, in eval mode."""
    return ADAPTERS[family](init_from=str(folder), **{**OPTIONS.get(family, {}), **kwargs}).eval()


def lora(family: str, **kwargs: Any) -> Lora:
    return Lora(TARGETS[family], r=2, **kwargs)
