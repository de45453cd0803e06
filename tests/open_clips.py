"""Tiny networks of every shape that open_clip has, in its folder format, with tiny tokenizers of every class it has."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaConfig

WORDS = ("a", "dog", "cat", "on", "porch", "the", "red", "s", "2", "!")
SPECIAL = ("[PAD]", "[EOS]", "[UNK]", "[BOS]")
CONTEXT = 8

TEXT: dict[str, Any] = {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION: dict[str, Any] = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
SIGLIP = {
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "embed_dim": 64,
}
SIGLIP_TEXT = {
    **TEXT,
    "vocab_size": 16,
    "hf_tokenizer_name": "tiny",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
}
SQUASHED = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}


def write_tokenizer(folder: Path, pad: str = "[PAD]", begin: str = "", end: str = "[EOS]", **kwargs: Any) -> None:
    """A word-level tokenizer in the Hugging Face format."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(mark, vocabulary[mark]) for mark in (begin, end) if mark]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}".strip(), special_tokens=marks)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token=pad,
        eos_token="[EOS]",
        bos_token="[BOS]",
        sep_token="[EOS]",
        cls_token="[BOS]",
        **kwargs,
    ).save_pretrained(folder)


def write(folder: Path, kind: str) -> Path:
    """An untrained model of that kind, where open_clip would read it."""
    folder.mkdir(parents=True)
    model: dict[str, Any] = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
    preprocess: dict[str, Any] = {"size": 32}
    if kind == "CLIP":
        pass
    elif kind == "SigLIP":  # its T5 tokenizer pads with the end token
        model |= SIGLIP | {"text_cfg": SIGLIP_TEXT}
        preprocess |= SQUASHED
        write_tokenizer(folder, pad="[EOS]")
    elif kind == "SigLIP2":
        model |= SIGLIP | {"text_cfg": SIGLIP_TEXT}
        preprocess |= SQUASHED
        write_tokenizer(folder)
    elif kind == "no end token":
        model |= SIGLIP | {"text_cfg": SIGLIP_TEXT}
        write_tokenizer(folder, end="")
    elif kind == "padded left":
        model |= SIGLIP | {"text_cfg": SIGLIP_TEXT}
        write_tokenizer(folder, padding_side="left")
    elif kind == "CLIPA":  # its BERT tokenizer writes padding over the end token
        model["text_cfg"] = {**TEXT, "hf_tokenizer_name": "tiny", "tokenizer_kwargs": {"strip_sep_token": True}}
        model["text_cfg"] |= {"pool_type": "last", "no_causal_mask": True}
        write_tokenizer(folder, begin="[BOS]")
    elif kind == "CLIPS":  # the class token stands behind the padding
        model["text_cfg"] = {**TEXT, "hf_tokenizer_name": "tiny", "tokenizer_mode": "clips", "pool_type": "last"}
        write_tokenizer(folder)
    elif kind == "CoCa":
        model["text_cfg"] = {**TEXT, "embed_cls": True, "output_tokens": True}
        model["vision_cfg"] = {**VISION, "attentional_pool": True, "attn_pooler_queries": 4, "output_tokens": True}
        model["vision_cfg"] |= {"attn_pooler_heads": 2}
        model |= {"multimodal_cfg": {**TEXT, "mlp_ratio": 2}, "custom_text": True}
    elif kind == "RoBERTa":  # whose number of positions is not its tokenizer's context
        config = RobertaConfig(
            vocab_size=16,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=CONTEXT + 6,
            pad_token_id=0,
        )
        config.save_pretrained(folder / "text")
        model["text_cfg"] = {"hf_model_name": str(folder / "text"), "hf_model_pretrained": False}
        model["text_cfg"] |= {"hf_tokenizer_name": "tiny", "context_length": CONTEXT, "hf_proj_type": "mlp"}
        model["text_cfg"] |= {"hf_pooler_type": "mean_pooler"}
        model["custom_text"] = True
        write_tokenizer(folder, begin="[BOS]")
    elif kind == "ConvNeXt":
        model["vision_cfg"] = {"image_size": 32, "timm_model_name": "test_convnext", "timm_pool": ""}
        model["vision_cfg"] |= {"timm_proj": "linear"}
    elif kind == "EVA":
        model["vision_cfg"] = {"timm_model_name": "eva02_tiny_patch14_224"}
        model["vision_cfg"] |= {"timm_pool": "token", "timm_proj": "linear", "image_size": 224}
        preprocess["size"] = 224
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    net = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    save_file({k: v.clone().contiguous() for k, v in net.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder
