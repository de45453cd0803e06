"""Networks: captioners, frozen dual encoders and their store, the discriminator."""

from distcap.models.captioner import Captioner, Sampler
from distcap.models.clip import FrozenClip
from distcap.models.discriminator import Discriminator
from distcap.models.embeddings import EmbeddingStore
from distcap.models.neighbours import Neighbours
from distcap.models.vision_encoder_decoder import VisionEncoderDecoder

__all__ = [
    "Captioner",
    "Discriminator",
    "EmbeddingStore",
    "FrozenClip",
    "Neighbours",
    "Sampler",
    "VisionEncoderDecoder",
]
