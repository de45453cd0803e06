"""`distcap caption`: captions of any images, and which of the images each caption finds."""

from distcap.caption.command import caption_images

__all__ = ["caption_images"]
