"""From a run to a folder that Hugging Face's transformers can use, with a model card."""

from distcap.export.folder import export_run

__all__ = ["export_run"]
