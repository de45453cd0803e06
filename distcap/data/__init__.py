"""Data modules: every one yields `distcap.types.Batch`."""

from distcap.data.base import ImageData
from distcap.data.coco import CocoCaptions
from distcap.data.folder import ImageFolder
from distcap.data.scenes import Scenes
from distcap.data.shards import Shards

__all__ = ["CocoCaptions", "ImageData", "ImageFolder", "Scenes", "Shards"]
