"""ZIP archives from anywhere: looked through before anything is written, then unpacked file by file."""

import errno
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from distcap.files import require_regular
from distcap.types import UserError

LARGEST_RATIO = 100
"""How many times its own size an archive may unpack to: JPEG files hardly shrink, and JSON by a factor of ten."""


def unpack(archive: Path, folder: Path, wanted: Iterable[str]) -> None:
    """Take files out of a ZIP archive. What is in the folder already, with the right size, stays as it is.

    A file gets its name when it is whole and agrees with its checksum in the archive, so an interrupted call can be
    given again.

    Args:
        archive: The ZIP file.
        folder: Where the files go, by the names that they have in the archive.
        wanted: Those names. Nothing else is unpacked.

    Raises:
        UserError: The archive lacks a file, is damaged, would write outside the folder, holds links or encrypted files,
            unpacks to far more than its size, or to more than the disk has room for.
    """
    require_regular(archive)
    try:
        with zipfile.ZipFile(archive) as opened:
            _require_harmless(archive, opened.infolist())
            members = {info.filename: info for info in opened.infolist()}
            names = list(wanted)
            if lacking := [name for name in names if name not in members]:
                raise UserError(
                    f"{archive} lacks {len(lacking):,} of the {len(names):,} files that are needed, the first: "
                    f"{lacking[0]}; is it the right archive?"
                )
            new = [members[name] for name in names if not _is_there(folder / name, members[name].file_size)]
            folder.mkdir(parents=True, exist_ok=True)
            size, free = sum(info.file_size for info in new), shutil.disk_usage(folder).free
            if size > free:
                raise UserError(f"{archive} unpacks to {size:,} bytes, and {folder} has only {free:,} left; make room")
            with tqdm(desc=f"unpacking {archive.name}", total=len(names), unit="file") as bar:
                bar.update(len(names) - len(new))
                for info in new:
                    _take(opened, info, folder)
                    bar.update()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # what a place before the file's beginning gives
            raise
        raise UserError(f"{archive} is damaged, or cut short ({error}); download it again") from error


def _require_harmless(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    for info in members:
        parts = re.split(r"[\\/]", info.filename)
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise UserError(f"{archive} would write outside its folder, to {info.filename!r}: it is not unpacked")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"{archive} holds a link, {info.filename!r}, which no data set needs: it is not unpacked")
        if info.flag_bits & 1:
            raise UserError(f"{archive} is encrypted; unpack it yourself, and name the folder with --images")
    size = sum(info.file_size for info in members)
    if size > LARGEST_RATIO * archive.stat().st_size:
        raise UserError(
            f"{archive} would unpack to {size:,} bytes, more than {LARGEST_RATIO} times its size: it is not unpacked"
        )


def _is_there(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _take(opened: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path) -> None:
    target = folder / info.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with opened.open(info) as source, part.open("wb") as out:
        shutil.copyfileobj(source, out)  # no more than the stated size, and its CRC is compared at the end
    part.replace(target)
