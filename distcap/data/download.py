"""Files from the network: a transfer goes on where it broke off, and only what is whole gets its name."""

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import requests
from tqdm import tqdm

from distcap.types import UserError

PAUSE = 1.0
"""Seconds before the second attempt; doubled before each further one, up to LONGEST_PAUSE."""
LONGEST_PAUSE = 30.0
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""
CHUNK = 1 << 16


class Absent(UserError):
    """The server answers, and says that it will not give the file."""


def download(
    url: str,
    file: Path,
    *,
    sha256: str | None = None,
    check: Callable[[Path], None] | None = None,
    attempts: int = 8,
    quiet: bool = False,
) -> Path:
    """Fetch a file, unless it is there, and return it.

    What has arrived is in FILE.part until it is whole. Where the checksum is known, an interrupted transfer goes on
    from there, within the call and in the next one. Where it is not, it begins anew, for nothing would tell the halves
    of two different files; then the file is held against the length that the server states, and against `check`.

    Args:
        url: Of http or https.
        file: Where it goes; missing folders are made.
        sha256: Of the whole file, in hexadecimal.
        check: Raises a UserError if the arrived file, given its path, is not what it should be.
        attempts: How often a broken connection or a busy server is tried, with growing pauses.
        quiet: No progress bar.

    Raises:
        Absent: The server does not have the file.
        UserError: It cannot be fetched, or is not what it should be: then it is put aside as FILE.bad.
    """
    if file.exists():
        return file
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url} is no http address, and nothing else is fetched")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    with tqdm(desc=f"fetching {file.name}", unit="B", unit_scale=True, disable=quiet) as bar:
        for attempt in range(attempts):
            if sha256 is None:
                part.unlink(missing_ok=True)
            try:
                _transfer(url, part, bar)
                break
            except requests.RequestException as error:
                if attempt + 1 == attempts:
                    raise UserError(
                        f"{url} cannot be fetched ({' '.join(str(error).split())[:200]}); "
                        "give the same command again, and it goes on from here"
                    ) from error
                time.sleep(min(PAUSE * 2**attempt, LONGEST_PAUSE))
    bad = file.with_name(f"{file.name}.bad")
    try:
        if sha256 is not None:
            require_sha256(part, sha256)
        if check is not None:
            check(part)
    except UserError as error:
        part.replace(bad)
        raise UserError(f"{url}: {error}; it is put aside as {bad}, and the same command fetches it anew") from error
    bad.unlink(missing_ok=True)
    return part.replace(file)


def require_sha256(file: Path, sha256: str) -> None:
    """Read the whole file, and raise a UserError if it has another checksum."""
    digest = hashlib.sha256()
    size = file.stat().st_size
    with (
        file.open("rb") as source,
        tqdm(desc=f"checking {file.name}", total=size, unit="B", unit_scale=True, leave=False) as bar,
    ):
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != sha256:
        raise UserError(
            f"{file} is not the file that it should be: its SHA-256 is {digest.hexdigest()}, expected {sha256}"
        )


def _transfer(url: str, part: Path, bar: tqdm) -> None:
    """Bring what is missing, or all of it if the server knows no ranges."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # There is nothing beyond what is there: its checksum tells whether that is the file.
        busy = (requests.codes.request_timeout, requests.codes.too_many_requests)
        if 400 <= answer.status_code < 500 and answer.status_code not in busy:
            raise Absent(f"{url} cannot be fetched: the server answers {answer.status_code} {answer.reason}")
        answer.raise_for_status()
        stated = answer.headers.get("Content-Length", "")
        length = int(stated) if stated.isdecimal() else 0
        if length > (free := shutil.disk_usage(part.parent).free):
            raise UserError(f"{url} needs {length:,} bytes, and {part.parent} has only {free:,} left; make room")
        resumes = answer.status_code == requests.codes.partial_content
        bar.n = bar.initial = have if resumes else 0
        bar.total = bar.n + length if length else None
        with part.open("ab" if resumes else "wb") as out:
            for chunk in answer.iter_content(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
