"""Networks: captioners, frozen dual encoders and what they have seen, the discriminator."""

from distcap.models.captioner import Captioner, Sampler
from distcap.models.clip import FrozenClip
from distcap.models.discriminator import Discriminator
from distcap.models.embeddings import EmbeddingStore
from distcap.models.neighbours import Neighbours
from distcap.models.sight import Sight
from distcap.models.vision_encoder_decoder import VisionEncoderDecoder

__all__ = [
    "Captioner",
    "Discriminator",
    "EmbeddingStore",
    "FrozenClip",
    "Neighbours",
    "Sampler",
    "Sight",
    "VisionEncoderDecoder",
]
