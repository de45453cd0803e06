"""Damage, as disks, downloads, editors and enemies do it: bytes, and what JSON, YAML, tar, PNG, JPEG and TIFF mean."""

import json
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

Mutation = Callable[[Random, bytes], bytes]

NUMBERS = (0, -1, 1, 2, 255, 2**31, -(2**31), 2**63, 2**64, 10**400, 1e308, 0.5, -0.0, float("nan"), float("inf"))
TEXTS = (
    "", " ", "\0", "\n", "nan", "null", "-1", "0", "..", "../../evil", "/evil", "~", "a" * 5000, "\ud800", "\u202e",
    "红", "<script>", "{}", "[", "${HOME}", "%s%n", "C:\\x", "@mle", "runs/nowhere", "hf-hub:x/y", "os.system",
    "file:///etc/passwd",
)  # fmt: skip
INTEGERS = (0, 1, 2, 7, 255, 256, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def flip(rng: Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if found:
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def scramble(rng: Random, data: bytes) -> bytes:
    start, size = rng.randrange(len(data) + 1), rng.choice((1, 4, 16, 256))
    return data[:start] + rng.randbytes(size) + data[start + size :]


def cut(rng: Random, data: bytes) -> bytes:
    return data[: rng.choice((0, 1, len(data) // 2, max(len(data) - 1, 0), rng.randrange(len(data) + 1)))]


def behead(rng: Random, data: bytes) -> bytes:
    return data[rng.randrange(min(len(data), 64) + 1) :]


def splice(rng: Random, data: bytes) -> bytes:
    """A piece of it once more, or instead of another."""
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.choice((1, 8, 64, 1024))]
    place = rng.randrange(len(data) + 1)
    return data[:place] + piece + data[place + rng.choice((0, len(piece))) :]


def blank(rng: Random, data: bytes) -> bytes:
    start, size = rng.randrange(len(data) + 1), rng.choice((1, 8, 512, 10**6))
    size = min(size, len(data) - start)
    return data[:start] + rng.choice((b"\0", b"\xff", b" ")) * size + data[start + size :]


def double(rng: Random, data: bytes) -> bytes:
    return data + data


def integer(rng: Random, data: bytes) -> bytes:
    """Some field becomes extreme."""
    form = rng.choice(("<I", ">I", "<H", ">H", "<Q", "<i"))
    size = struct.calcsize(form)
    start = rng.randrange(max(min(len(data), rng.choice((64, 10**9))) - size, 0) + 1)
    value = rng.choice(INTEGERS) & (2 ** (8 * size - 1) - 1)
    return data[:start] + struct.pack(form, value) + data[start + size :]


BYTES: tuple[Mutation, ...] = (flip, scramble, cut, behead, splice, blank, double, integer)


def value(rng: Random, old: Any) -> Any:
    """Something else where a value was: of another type, too large, too deep, half a character."""
    kind = rng.randrange(12)
    if kind == 0:
        return None
    if kind == 1:
        return rng.choice((True, False))
    if kind <= 4:
        return rng.choice(NUMBERS)
    if kind <= 7:
        return rng.choice(TEXTS)
    if kind == 8:
        return rng.choice(([], {}, [None], {"": None}, [[]], [old], {"a": old}, [old] * 50))
    if kind == 9:
        return str(old)
    if kind == 10 and isinstance(old, int | float) and not isinstance(old, bool):
        return rng.choice((-old, old + 1, old * 10**9, old / 3, [old], str(old)))
    if kind == 11 and isinstance(old, str) and old:
        start = rng.randrange(len(old))
        return old[:start] + rng.choice(TEXTS) + old[start + 1 :]
    deep: Any = old
    for _ in range(rng.choice((5, 200))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


def _places(tree: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        found.append((tree, key))
        _places(tree[key], found)
    return found


def tree(rng: Random, root: Any) -> Any:
    """JSON or YAML with one to three changes: a value, a key, something missing or twice."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(root, [])
        if not places or rng.random() < 0.03:
            root = value(rng, root)
            continue
        holder, key = rng.choice(places)
        action = rng.randrange(6)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = holder.pop(key)
        elif action == 1:
            holder.append(holder[key])
        elif action == 2:
            other, another = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[another])) if another in _keys(other) else None
        else:
            holder[key] = value(rng, holder[key])
    return root


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def _encoded(rng: Random, text: str) -> bytes:
    kind = rng.randrange(25)
    if kind == 0:
        return text.encode("utf-8-sig", "surrogatepass")
    if kind == 1:
        return text.encode("utf-16", "surrogatepass")
    return text.encode("utf-8", "surrogatepass")


def as_json(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.02:
        return rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"1" * 10**5, b'"\\ud800"', b"NaN"))
    found = tree(rng, json.loads(data))
    return _encoded(rng, json.dumps(found, ensure_ascii=rng.random() < 0.5))


def as_lines(rng: Random, data: bytes) -> bytes:
    """JSON lines, of which one or two change, or come twice, or go."""
    lines = data.splitlines()
    for _ in range(rng.choice((1, 2))):
        row = rng.randrange(len(lines))
        change = rng.randrange(6)
        if change == 0:
            lines.insert(row, lines[row])
        elif change == 1 and len(lines) > 1:
            del lines[row]
        elif change == 2:
            lines[row] = rng.choice(BYTES)(rng, lines[row])
        else:
            try:
                lines[row] = as_json(rng, lines[row])
            except ValueError:  # the first change was to its bytes
                lines[row] = b""
    return rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\n\n")).join(lines) + rng.choice((b"\n", b""))


BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n".encode()
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
TRICKS = (
    BOMB, b"&a [*a]\n", b"&a {b: *a}\n", b"a: &a\n  b: *a\n", b"!!python/object/apply:os.system [id]\n", b"\t\n",
    b"a: [\n", b"? [a]\n: b\n", b"--- a\n--- b\n", b"a: 0x" + b"f" * 5000 + b"\n", b"[" * 3000,
    b"a: 1:" + b"9:" * 3000 + b"9\n",
    b"<<: *x\n", b"%TAG ! x\n", b"2001-99-99\n", b"a: 9999-99-99\n", b"{? a, ? a}\n", b"=\n", b"!!binary x\n",
    b"!!set x\n",
)  # fmt: skip


def as_yaml(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.08:
        trick = rng.choice(TRICKS)
        return trick if rng.random() < 0.5 else data + trick
    found = tree(rng, yaml.safe_load(data))
    try:
        return _encoded(rng, yaml.safe_dump(found, allow_unicode=True))
    except (yaml.YAMLError, RecursionError):
        return json.dumps(found).encode()


def as_csv(rng: Random, data: bytes) -> bytes:
    cells = re.split(rb"([,\n])", data)
    for _ in range(rng.choice((1, 2, 5))):
        strange = rng.choice((*TEXTS, '"', '"a', 'a"b', "1e999", "\r", '"""', "=1+1", ";" * 10))
        cells[rng.randrange(len(cells))] = strange.encode("utf-8", "surrogatepass")
    return b"".join(cells)


SIZES = (b"77777777777\0", b"00000000000\0", b"\x80" + bytes(3) + b"\xff" * 8, b"\xff" * 12, b"-0000000001\0")
PAX = (b"size=1099511627776\n", b"size=-1\n", b"path=../../evil.jpg\n", b"GNU.sparse.map=1,2\n", b"x\n")


def as_tar(rng: Random, data: bytes) -> bytes:
    """A header says something else, and its checksum agrees; or pieces come twice, or none."""
    found = bytearray(data)
    headers = [at for at in range(0, len(found) - 511, 512) if found[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return flip(rng, data)
    at = rng.choice(headers)
    kind = rng.randrange(8)
    if kind == 0:
        size = rng.choice(
            (b"77777777777\0", b"00000000000\0", b"\x80" + bytes(3) + b"\xff" * 8, b"\xff" * 12, b"-0000000001\0")
        )
        found[at + 124 : at + 136] = size
    elif kind == 1:
        found[at + 156] = rng.choice(b"0123457LKxgSVMDX\0")
    elif kind == 2:
        name = rng.choice(TEXTS).encode("utf-8", "surrogatepass")[:100]
        found[at : at + 100] = name.ljust(100, b"\0")
    elif kind == 3:
        row = rng.choice(
            (b"size=1099511627776\n", b"size=-1\n", b"path=../../evil.jpg\n", b"GNU.sparse.map=1,2\n", b"x\n")
        )
        pax = b"%d %s" % (rng.choice((len(row) + 3, len(row) + 4, 10**9, 0)), row)
        member = tarfile.TarInfo("pax")
        member.type, member.size = rng.choice((b"x", b"g")), rng.choice((len(pax), 2**40))
        header = member.tobuf(tarfile.GNU_FORMAT)
        found[at:at] = header + pax.ljust(512, b"\0")
        return bytes(found)
    elif kind == 4:
        block = rng.choice(headers)
        found[at:at] = found[block : block + 1024]
        return bytes(found)
    elif kind == 5:
        found[at + 100 + rng.randrange(56)] = rng.randrange(256)
    elif kind == 6:
        found[at + rng.randrange(512)] = rng.randrange(256)
    else:
        del found[at : at + rng.choice((512, 1024, 100))]
        return bytes(found)
    block = found[at : at + 512]
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    found[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(found)


def as_png(rng: Random, data: bytes) -> bytes:
    """A chunk says something else, and its checksum agrees."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return flip(rng, data)
    place = rng.randrange(len(chunks))
    name, body = chunks[place]
    if name == b"IHDR" and rng.random() < 0.5:
        body = struct.pack(">II", rng.choice(INTEGERS), rng.choice(INTEGERS)) + body[8:]
    else:
        name = rng.choice((name, name, name, b"eXIf", b"tRNS", b"zTXt", b"iCCP", b"acTL"))
        body = rng.choice(BYTES)(rng, body)
    chunks[place] = (name, body)
    if rng.random() < 0.2:
        chunks.insert(place, rng.choice(chunks))
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def as_jpeg(rng: Random, data: bytes) -> bytes:
    """A segment has another length or content."""
    places = [found.start() for found in re.finditer(rb"\xff[\xc0-\xfe]", data[:2000])]
    if not places:
        return flip(rng, data)
    at = rng.choice(places) + rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 9))
    return data[:at] + rng.randbytes(1) + data[at + 1 :]


def as_tiff(rng: Random, data: bytes) -> bytes:
    """Among its tags, which stand wherever the header says."""
    order = "<" if data[:2] == b"II" else ">"
    directory = struct.unpack(f"{order}I", data[4:8])[0] if len(data) >= 8 else 0
    at = directory + rng.randrange(min(200, max(len(data) - directory, 1)))
    return data[:at] + rng.choice((rng.randbytes(1), b"\xff\xff", bytes(2))) + data[at + 1 :]


def as_safetensors(rng: Random, data: bytes) -> bytes:
    """The header says something else, and its length agrees; or values are no numbers."""
    size = int.from_bytes(data[:8], "little")
    kind = rng.randrange(4)
    if kind == 0:
        return struct.pack("<Q", rng.choice((0, size - 1, size + 1, 2**40, 2**63))) + data[8:]
    if kind == 1:
        start = rng.randrange(8 + size, len(data) - 4)
        return data[:start] + b"\xff" * (4 * (len(data) - start >> 3)) + data[start + 4 * (len(data) - start >> 3) :]
    header = json.dumps(tree(rng, json.loads(data[8 : 8 + size]))).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def as_zip(rng: Random, data: bytes) -> bytes:
    """A field of the directory at the end, or of a member's header."""
    places = [found.start() for found in re.finditer(rb"PK[\x01\x03\x05]", data)]
    at = rng.choice(places) + rng.randrange(4, 46)
    return data[:at] + rng.choice((rng.randbytes(1), b"\xff\xff\xff\xff", bytes(4))) + data[at + 1 :]


def as_text(rng: Random, data: bytes) -> bytes:
    """Other words for a value."""
    strange = rng.choice((*TEXTS, *map(str, NUMBERS))).encode("utf-8", "surrogatepass")
    start = rng.randrange(len(data) + 1)
    return data[:start] + strange + data[start + rng.choice((0, 1, 10)) :]


MEANING: dict[str, Mutation] = {
    ".json": as_json, ".jsonl": as_lines, ".yaml": as_yaml, ".csv": as_csv, ".tar": as_tar, ".png": as_png,
    ".jpg": as_jpeg, ".tif": as_tiff, ".safetensors": as_safetensors, ".zip": as_zip, ".txt": as_text,
}  # fmt: skip


def damage(rng: Random, data: bytes, suffix: str) -> bytes:
    """Change what a file holds, by its meaning in two cases of three where that is known."""
    if (meaning := MEANING.get(suffix)) and rng.random() < 2 / 3:
        try:
            return meaning(rng, data)
        except (ValueError, RecursionError, IndexError):  # it is not what its name says
            pass
    return rng.choice(BYTES)(rng, data)


def misplace(rng: Random, file: Path) -> None:
    """Something else where a file was: nothing, a folder, a link that leads nowhere or to itself, a pipe."""
    file.unlink()
    kind = rng.randrange(6)
    if kind == 1:
        file.mkdir()
    elif kind == 2:
        file.symlink_to("nowhere")
    elif kind == 3:
        file.symlink_to(file.name)
    elif kind == 4:
        os.mkfifo(file)
    elif kind == 5:
        file.symlink_to("/dev/full")
