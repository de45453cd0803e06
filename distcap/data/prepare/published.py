"""Files that the authors of a data set offer for download."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from distcap.data.download import Absent, download, require_sha256
from distcap.types import UserError

CHECKSUMS = "SHA256SUMS"
"""What `sha256sum *` writes. Where a mirror has one, its archives are held against that, and not the published sums."""


@dataclass(frozen=True)
class Published:
    """A file, where it is, and how to know it."""

    url: str
    sha256: str | None
    """None where nobody has published one: then the length that the server states must do, and the file's syntax."""

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]

    def obtain(self, folder: Path, mirror: str | None = None) -> Path:
        """The file, certainly whole.

        Args:
            folder: Where it goes if it must be downloaded.
            mirror: A folder that holds it, where it stays, or the address of one; by default the authors'.

        Raises:
            UserError: It is not there, cannot be fetched, or has the wrong checksum.
        """
        if mirror is None:
            return self._fetched(self.url, folder, self.sha256)
        if mirror.startswith(("http://", "https://")):
            address = mirror.rstrip("/")
            with TemporaryDirectory() as place:
                try:
                    listed = read_checksums(download(f"{address}/{CHECKSUMS}", Path(place, CHECKSUMS), quiet=True))
                except Absent:
                    listed = {}
            return self._fetched(f"{address}/{self.name}", folder, listed.get(self.name, self.sha256))
        file = Path(mirror, self.name)
        if not file.is_file():
            raise UserError(f"there is no {file}; it is at {self.url}")
        sums = Path(mirror, CHECKSUMS)
        _require(file, read_checksums(sums).get(self.name, self.sha256) if sums.is_file() else self.sha256)
        return file

    def _fetched(self, url: str, folder: Path, sha256: str | None) -> Path:
        file = folder / self.name
        if file.exists():
            _require(file, sha256)
            return file
        return download(url, file, sha256=sha256)


def read_checksums(file: Path) -> dict[str, str]:
    """File name -> SHA-256, of what `sha256sum` wrote."""
    lines = [line.split(maxsplit=1) for line in file.read_text(errors="replace").splitlines() if line.strip()]
    if any(len(words) != 2 or len(words[0]) != 64 for words in lines):
        raise UserError(f"{file.name} should have lines of a SHA-256 and a file name, as sha256sum writes them")
    return {name.lstrip("*"): digest.lower() for digest, name in lines}


def _require(file: Path, sha256: str | None) -> None:
    if sha256 is not None:
        try:
            require_sha256(file, sha256)
        except UserError as error:
            raise UserError(
                f"{error}; remove it, and the same command fetches it anew (a mirror of your own archives has a "
                f"{CHECKSUMS} beside them)"
            ) from error
