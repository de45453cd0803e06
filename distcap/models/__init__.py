"""Networks: captioners, frozen dual encoders and what they have seen, the discriminator."""

from distcap.models.blip import Blip
from distcap.models.blip2 import Blip2
from distcap.models.captioner import Captioner, Sampler
from distcap.models.chat_vlm import ChatVLM
from distcap.models.clip import FrozenClip
from distcap.models.clip_cap import ClipCap
from distcap.models.discriminator import Discriminator
from distcap.models.embeddings import EmbeddingStore
from distcap.models.git import Git
from distcap.models.lora import Lora
from distcap.models.neighbours import Neighbours
from distcap.models.sight import Sight
from distcap.models.vision_encoder_decoder import VisionEncoderDecoder

__all__ = [
    "Blip",
    "Blip2",
    "Captioner",
    "ChatVLM",
    "ClipCap",
    "Discriminator",
    "EmbeddingStore",
    "FrozenClip",
    "Git",
    "Lora",
    "Neighbours",
    "Sampler",
    "Sight",
    "VisionEncoderDecoder",
]
