"""The folder in which a data set keeps what is found out about it once for all runs."""

from pathlib import Path

from distcap.writable import require_writable


def usable(folder: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        UserError: nothing can be written to it.
    """
    remedy = "embeddings of the images are kept there: name another folder with --data.cache_dir"
    require_writable(folder / "embeddings", remedy)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
