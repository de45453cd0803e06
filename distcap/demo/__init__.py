"""`distcap demo`: a page to play with a trained captioner."""

from distcap.demo.page import open_page, serve

__all__ = ["open_page", "serve"]
