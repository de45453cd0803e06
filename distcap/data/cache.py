"""The folder in which a data set keeps what is found out about it once for all runs."""

import tempfile
from pathlib import Path

from distcap.types import UserError


def usable(folder: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        UserError: nothing can be written to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UserError(
            f"embeddings of the images are kept in {folder}, and nothing can be written there ({error.strerror}); "
            "name another folder with --data.cache_dir"
        ) from error
