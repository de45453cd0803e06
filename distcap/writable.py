"""Whether something can be written, found out before the work that it is to hold."""

import os
import tempfile
from pathlib import Path

from distcap.types import UserError

SUFFIX = ".part.new"
"""The longest of what is put behind a name while it is being written."""


def require_writable(path: Path, remedy: str = "name another with --output") -> None:
    """Raise a UserError unless a file or a folder can be made at a path; makes nothing.

    Args:
        path: of the file or the folder.
        remedy: what to do if it cannot.
    """
    absolute = path.absolute()
    try:
        os.lstat(f"{absolute}{SUFFIX}")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name that is too long, or holds what none may
        raise UserError(f"{str(path)[:100]!r} cannot be written ({error}); {remedy}".replace("\n", " ")) from error
    folder = next(folder for folder in absolute.parents if os.path.lexists(folder))
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise UserError(f"{path} cannot be written ({folder}: {error.strerror}); {remedy}") from error
