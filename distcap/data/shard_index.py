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
from tqdm import tqdm

from distcap.types import UserError

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")
"""Extensions of a sample's members; all others are passed over unread."""
LARGEST = {"image": 2**26, "text": 2**20}
"""Bytes of a member: 64 MiB of pixels, 1 MiB of captions. More is a mistake, or meant to fill the memory."""

TABLES = """
create table if not exists shards (name text primary key, version text, samples integer);
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
            KEY.txt (one caption a line) or KEY.json ({"caption": "..."} or {"captions": [...]}).
        file: where the index is.
    """

    def __init__(self, shards: Sequence[str], file: Path) -> None:
        self.shards = list(shards)
        self.file = file

    def _ask(self, question: str, *values: Any) -> list[tuple]:
        with closing(sqlite3.connect(self.file)) as database:
            return database.execute(question, values).fetchall()

    def build(self) -> None:
        """Read the headers of the shards that are not indexed yet; interrupted, it goes on at its shard.

        One that changed is read again, if its file system tells: a disk does, a web server does not.

        Raises:
            UserError: a shard cannot be read, is compressed, has a member too large, or shares a key with another.
        """
        import fsspec

        self.file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.file}.lock"), closing(sqlite3.connect(self.file)) as database:
            database.executescript(TABLES)
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
                        samples = list(_samples(shard, file, system.size(path)))
                except (OSError, ValueError, ImportError, tarfile.TarError) as error:
                    line = " ".join(str(error).split())[:200]
                    raise UserError(f"cannot read the shard {shard} ({line}); it should be a plain tar file") from error
                with database:  # a shard is in it whole or not at all
                    _forget(database, shard)
                    self._add(database, shard, version, samples)

    def _add(self, database: sqlite3.Connection, shard: str, version: str, samples: Sequence[Sample]) -> None:
        for number, member, captions in samples:
            found = database.execute("select shard, key from samples where id = ?", (number,)).fetchone()
            if found:
                raise UserError(
                    f"the key {member.key} of {shard} is that of a sample of {found[0]} ({found[1]}) too; "
                    "give every sample a key of its own"
                )
            row = (number, member.key, shard, member.start, member.size, json.dumps(captions))
            database.execute("insert into samples values (?, ?, ?, ?, ?, ?)", row)
        database.execute("insert into shards values (?, ?, ?)", (shard, version, len(samples)))

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


def _samples(shard: str, file: BinaryIO, length: int | None) -> Iterator[Sample]:
    """The complete samples of a shard: nothing is unpacked, and of images nothing is read."""
    images: dict[str, Member] = {}
    texts: dict[str, list[str]] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            key, extension = _split(member.name)
            kind = "image" if extension in IMAGES else "text" if extension in TEXTS else None
            if kind is None or not member.isreg() or member.issparse():
                continue
            if member.size > LARGEST[kind]:
                raise UserError(f"{shard}: {member.name} has {member.size:,} bytes, more than {kind}s may have")
            if length is not None and member.offset_data + member.size > length:
                raise UserError(f"{shard} ends within {member.name}; fetch it again")
            if key in (images if kind == "image" else texts):
                raise UserError(f"{shard}: there are two {kind}s of the key {key}; give every sample a key of its own")
            if kind == "image":
                images[key] = Member(shard, member.offset_data, member.size, key)
            else:
                texts[key] = _captions(tar.extractfile(member).read(), extension, f"{shard}: {member.name}")  # type: ignore[union-attr]
            tar.members = []  # type: ignore[attr-defined]  # else it remembers every header
    for key, place in images.items():
        if texts.get(key):
            yield Sample(image_id(key), place, texts[key])


def _split(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the file name."""
    match = re.fullmatch(r"((?:.*/)?[^./][^.]*)\.([^/]*)", name)
    return (match[1], match[2].lower()) if match else (name, "")


def _captions(data: bytes, extension: str, at: str) -> list[str]:
    try:
        text = data.decode()
        found = json.loads(text) if extension == "json" else text.splitlines()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{at} is not {'JSON in ' if extension == 'json' else ''}UTF-8 text; mend it") from error
    if isinstance(found, dict):
        found = found.get("captions", found.get("caption", []))
    if isinstance(found, str):
        found = [found]
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise UserError(f'{at}: expected {{"caption": "..."}} or {{"captions": ["...", "..."]}}, found {text[:40]!r}')
    return [" ".join(one.split()) for one in found if one.strip()]
