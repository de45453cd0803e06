"""Getting real data sets ready: fetched, or found on disk, unpacked, and every image looked for."""

from distcap.data.prepare.coco import prepare_coco
from distcap.data.prepare.flickr30k import prepare_flickr30k
from distcap.data.prepare.nocaps import prepare_nocaps

__all__ = ["prepare_coco", "prepare_flickr30k", "prepare_nocaps"]
