"""What is in a collection's shards, and where: read once, kept on disk, never whole in memory."""

import hashlib
import json
import re
import sqlite3
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple

from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_warn
from tqdm import tqdm

from distcap.data.annotations import decoded, texts
from distcap.data.left_out import LeftOut
from distcap.data.listing import EXTENSIONS
from distcap.types import UserError

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")
"""Extensions of a sample's members; all others are passed over unread."""
LARGEST = {"image": 2**26, "text": 2**20}
"""Bytes of a member: 64 MiB of pixels, 1 MiB of captions. More is a mistake, or meant to fill the memory."""
EXTENDED = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, b"L", b"K"}
"""Types of headers behind which more is said of the next member."""

LAYOUT = 2
"""Of the index. One of another layout is made again."""

TABLES = """
create table if not exists shards (name text primary key, version text, samples integer, left_out text);
create table if not exists samples (
    id integer primary key, key text, shard text, start integer, size integer, captions text
);
create index if not exists places on samples (shard, start);
"""


@dataclass(frozen=True)
class Member:
    """An image inside a shard; read like a file."""

    shard: str
    start: int
    size: int
    key: str

    def __str__(self) -> str:
        return f"{self.shard}/{self.key}"

    def stat(self) -> Any:
        """What tells it from another one: its size, and in place of its time where it is."""
        return SimpleNamespace(st_size=self.size, st_mtime_ns=self.start)

    def open(self, mode: str = "rb") -> BinaryIO:
        import fsspec

        with fsspec.open(self.shard, mode) as file:
            return BytesIO(self.read(file))

    def read(self, shard: BinaryIO) -> bytes:
        """Its bytes, of its shard which is open already."""
        shard.seek(self.start)
        data = shard.read(self.size)
        if len(data) != self.size:
            raise UserError(f"{self.shard} ends within {self.key}; it changed since it was indexed: fetch it again")
        return data


class Sample(NamedTuple):
    """An image of a collection."""

    image_id: int
    member: Member
    captions: list[str]


def image_id(key: str) -> int:
    """WebDataset's key -> 63 bits of its hash: the same in any collection, and no other data set's number."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1


class ShardIndex:
    """Keys, places and captions of all samples, in an SQLite file.

    Any process may hold one: the file is opened for each question.

    Args:
        shards: paths or URLs of plain tar files, in WebDataset's layout: members KEY.jpg (or jpeg, png, webp) and
            KEY.txt (one caption a line) or KEY.json ({"caption": "..."} or {"captions": [...]}). Where there are both,
            the captions are in the .txt, and the .json holds other things, as img2dataset writes them.
        file: where the index is.
    """

    def __init__(self, shards: Sequence[str], file: Path) -> None:
        self.shards = list(shards)
        self.file = file

    def _ask(self, question: str, *values: Any) -> list[tuple]:
        try:
            with closing(sqlite3.connect(self.file)) as database:
                return database.execute(question, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from error

    def _unusable(self, why: object) -> UserError:
        return UserError(f"the index {self.file} cannot be used ({why}); delete the file, and it is made again")

    def build(self) -> None:
        """Read the headers of the shards that are not indexed yet; interrupted, it goes on at its shard.

        One that changed is read again, if its file system tells: a disk does, a web server does not. An index that is
        damaged is made again. Samples without an image or a caption, images of other kinds, and second ones of a key in
        a shard are left out; how many there are is said at each call.

        Raises:
            UserError: a shard cannot be read, is compressed, has a member too large, or shares a key with another.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.file}.lock"):
            if self.file.exists() and self.file.stat().st_size and not self._sound():
                self.file.unlink()
                rank_zero_warn(f"the index {self.file} is damaged, or of another version: it is made again")
            try:
                with closing(sqlite3.connect(self.file)) as database:
                    self._update(database)
            except sqlite3.DatabaseError as error:
                raise self._unusable(error) from error
        self._left_out().warn(self.shards[0] if len(self.shards) == 1 else f"{len(self.shards)} shards")

    def _sound(self) -> bool:
        try:
            with closing(sqlite3.connect(self.file)) as database:
                layout = database.execute("pragma user_version").fetchone()[0]
                return layout == LAYOUT and database.execute("pragma quick_check(1)").fetchone() == ("ok",)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                return False
            raise self._unusable(error) from error

    def _left_out(self) -> LeftOut:
        """Of all shards."""
        total = LeftOut()
        found = dict(self._ask("select name, left_out from shards"))
        for shard in self.shards:
            for reason, (count, first) in json.loads(found[shard]).items():
                total.add(reason, first, count)
        return total

    def _update(self, database: sqlite3.Connection) -> None:
        import fsspec

        database.executescript(TABLES)
        database.execute(f"pragma user_version = {LAYOUT}")
        known = dict(database.execute("select name, version from shards"))
        with database:
            for gone in known.keys() - set(self.shards):
                _forget(database, gone)
        for shard in tqdm(self.shards, desc="reading the shards' headers", unit="shard", delay=2, leave=False):
            try:
                system, path = fsspec.core.url_to_fs(shard)
                version = str(system.ukey(path))
                if known.get(shard) == version:
                    continue
                with system.open(path, "rb") as file:
                    samples, left_out = _samples(shard, file, system.size(path))
            except Exception as error:  # tarfile raises nearly anything on what is no tar file, or a damaged one
                line = " ".join(str(error).split())[:200] or type(error).__name__
                if isinstance(error, UserError) and shard in line:
                    raise
                raise UserError(f"cannot read the shard {shard} ({line}); it should be a plain tar file") from error
            with database:  # a shard is in it whole or not at all
                _forget(database, shard)
                self._add(database, shard, version, samples, left_out)

    def _add(
        self,
        database: sqlite3.Connection,
        shard: str,
        version: str,
        samples: Sequence[Sample],
        left_out: LeftOut,
    ) -> None:
        for number, member, captions in samples:
            found = database.execute("select shard, key from samples where id = ?", (number,)).fetchone()
            if found:
                raise UserError(
                    f"the key {member.key} of {shard} is that of a sample of {found[0]} ({found[1]}) too; "
                    "give every sample a key of its own"
                )
            place = (number, member.key, shard, member.start, member.size, json.dumps(captions))
            database.execute("insert into samples values (?, ?, ?, ?, ?, ?)", place)
        told = {reason: [count, left_out.first[reason]] for reason, count in left_out.counts.items()}
        row = (shard, version, len(samples), json.dumps(told))
        database.execute("insert into shards values (?, ?, ?, ?)", row)

    def counts(self) -> dict[str, int]:
        """Shard -> its samples, in the order that the shards were given in."""
        found = dict(self._ask("select name, samples from shards"))
        return {shard: found[shard] for shard in self.shards}

    def slice(self, shard: str, first: int, count: int) -> list[Sample]:
        """Some samples of a shard, as they follow each other in it."""
        rows = self._ask(
            "select id, shard, start, size, key, captions from samples where shard = ? order by start limit ? offset ?",
            *(shard, count, first),
        )
        return [Sample(number, Member(*place), json.loads(captions)) for number, *place, captions in rows]

    def __iter__(self) -> Iterator[Sample]:
        """All samples, shard by shard."""
        for shard, count in self.counts().items():
            yield from self.slice(shard, 0, count)

    def known(self, ids: Sequence[int]) -> list[int]:
        """Those of the ids that are a sample's."""
        return [i for i in ids if self._ask("select 1 from samples where id = ?", i)]

    def member(self, number: int) -> Member:
        """Where an image is. Raises KeyError for one that is not in the collection."""
        rows = self._ask("select shard, start, size, key from samples where id = ?", number)
        if not rows:
            raise KeyError(number)
        return Member(*rows[0])

    def captions(self, number: int) -> list[str]:
        """The captions of an image. Raises KeyError for one that is not in the collection."""
        rows = self._ask("select captions from samples where id = ?", number)
        if not rows:
            raise KeyError(number)
        return json.loads(rows[0][0])


class References(Mapping[int, list[str]]):
    """Image id -> its captions, read from the index when asked for."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index

    def __getitem__(self, number: int) -> list[str]:
        return self.index.captions(number)

    def __iter__(self) -> Iterator[int]:
        return (sample.image_id for sample in self.index)

    def __len__(self) -> int:
        return sum(self.index.counts().values())

    def values(self) -> Any:
        """One after the other, in a single pass."""
        return (sample.captions for sample in self.index)

    def items(self) -> Any:
        """Likewise."""
        return ((sample.image_id, sample.captions) for sample in self.index)


def _forget(database: sqlite3.Connection, shard: str) -> None:
    database.execute("delete from samples where shard = ?", (shard,))
    database.execute("delete from shards where name = ?", (shard,))


class Header(tarfile.TarInfo):
    """A header of a tar file; one that states an impossible size is refused before tarfile believes it."""

    @classmethod
    def frombuf(cls, *args: Any, **kwargs: Any) -> "Header":
        found = super().frombuf(*args, **kwargs)
        # What such a header stands before tarfile would read into memory at once, or go back to for ever.
        if found.size < 0 or (found.type in EXTENDED and found.size > LARGEST["text"]):
            raise UserError(f"a header states a size of {found.size:,} bytes")
        return found


def _members(file: BinaryIO) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a tar file, which certainly ends where it says."""
    if file.read(2) == b"\x1f\x8b":
        raise UserError("it is compressed with gzip")
    file.seek(0)
    end = 0
    with tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as tar:
        while member := tar.next():
            if member.size < 0 or member.offset_data < end:  # a size may be stated outside the header, too
                raise UserError(f"{member.name} states a size of {member.size:,} bytes")
            end = member.offset_data
            yield tar, member
            tar.members = []  # type: ignore[attr-defined]  # else it remembers every header
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a header that it cannot read for the end
            raise UserError(f"the header at byte {tar.offset:,} is damaged")


class _Contents:
    """What is in a shard, by key: nothing is unpacked, and of images nothing is read."""

    def __init__(self, shard: str) -> None:
        self.shard = shard
        self.left_out = LeftOut()
        self._images: dict[str, Member] = {}
        self._others: set[str] = set()
        """Keys of images of other kinds."""
        self._texts: dict[str, dict[str, tuple[str, ...] | UserError]] = {extension: {} for extension in TEXTS}

    def read(self, file: BinaryIO, length: int | None) -> None:
        for tar, member in _members(file):
            key, extension = _split(member.name)
            kind = "image" if extension in IMAGES else "text" if extension in TEXTS else None
            if f".{extension}" in EXTENSIONS and kind is None:
                self._others.add(key)
                self.left_out.add(f"images of other kinds than {', '.join(IMAGES)}", f"{self.shard}: {member.name}")
            if kind is None or not member.isreg() or member.issparse():
                continue
            if member.size > LARGEST[kind]:
                raise UserError(f"{self.shard}: {member.name} has {member.size:,} bytes, more than {kind}s may have")
            if length is not None and member.offset_data + member.size > length:
                raise UserError(f"{self.shard} ends within {member.name}; fetch it again")
            if key in (self._images if kind == "image" else self._texts[extension]):
                self.left_out.add(f"second {kind}s of a key", f"{self.shard}: {member.name}")
            elif kind == "image":
                self._images[key] = Member(self.shard, member.offset_data, member.size, key)
            else:
                self._texts[extension][key] = self._captions(tar, member, extension)

    def _captions(self, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> tuple[str, ...] | UserError:
        """Or what is wrong: beside a text, what the JSON holds does not matter."""
        data = tar.extractfile(member).read()  # type: ignore[union-attr]
        try:
            return _captions(data, extension, f"{self.shard}: {member.name}", self.left_out)
        except UserError as error:
            return error

    def samples(self) -> list[Sample]:
        """Those with an image and a caption; all others are counted."""
        captions_of: dict[str, tuple[str, ...]] = {}
        for key, found in {**self._texts["json"], **self._texts["txt"]}.items():
            if isinstance(found, UserError):
                raise found
            captions_of[key] = found
            if key not in self._images and key not in self._others:
                self.left_out.add("captions without an image", f"{self.shard}/{key}")
        made = []
        for key, place in self._images.items():
            if captions := captions_of.get(key):
                made.append(Sample(image_id(key), place, list(captions)))
            else:
                self.left_out.add("images without a caption", place)
        return made


def _samples(shard: str, file: BinaryIO, length: int | None) -> tuple[list[Sample], LeftOut]:
    """The complete samples of a shard, and what is left out."""
    contents = _Contents(shard)
    contents.read(file, length)
    return contents.samples(), contents.left_out


def _split(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the file name."""
    match = re.fullmatch(r"((?:.*/)?[^./][^.]*)\.([^/]*)", name)
    return (match[1], match[2].lower()) if match else (name, "")


def _captions(data: bytes, extension: str, at: str, left_out: LeftOut) -> tuple[str, ...]:
    try:
        text = decoded(data)
        found = json.loads(text) if extension == "json" else [line for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{at} is not {'JSON in ' if extension == 'json' else ''}UTF-8 text; mend it") from error
    if isinstance(found, dict):
        found = found.get("captions", found.get("caption"))
    if isinstance(found, str):
        found = [found] if found.strip() else []
    if found is None:
        found = []
    if not isinstance(found, list) or not all(isinstance(one, str | None) for one in found):
        raise UserError(f'{at}: expected {{"caption": "..."}} or {{"captions": ["...", "..."]}}, found {text[:40]!r}')
    return texts(found, at, left_out)
