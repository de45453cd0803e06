"""A slice of the fuzz, which is `python tests/fuzz.py`; and that it would notice what it is for."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fuzz import BAD, Fuzz, table
from subjects import FOLDERS, LINES, READERS, SUBJECTS, Subject

from distcap.types import UserError

SLICE = {READERS: 100, LINES: 6, FOLDERS: 6}
"""Cases of each group."""


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Fuzz:
    return Fuzz(tmp_path_factory.mktemp("fuzz"), seed=1, limit=30)


def test_a_hundred_damaged_inputs_end_well_or_in_one_line(fuzz: Fuzz) -> None:
    outcomes, number, count = [], 0, Counter[str]()
    while count != SLICE:
        group = fuzz.subject(number).group
        if count[group] < SLICE[group]:
            count[group] += 1
            outcomes.append(fuzz.case(number))
        number += 1
    assert not [one for one in outcomes if one.kind in BAD], table(outcomes, seed=1)


@pytest.mark.parametrize("subject", [one for one in SUBJECTS if one.targets], ids=lambda one: one.name)
def test_what_is_not_damaged_ends_well(subject: Subject, fuzz: Fuzz) -> None:
    """Else all its cases would be refused for one and the same reason."""
    outcome = fuzz.case(0, healthy=subject)
    assert (outcome.kind, outcome.why) == ("ok", "")


def lay_file(desk: Path) -> None:
    (desk / "file.txt").write_text("some words\n")


def refuse(rng: Random) -> None:
    raise UserError("this is no image")


class AtLength(UserError):
    """Does without what keeps an error on one line."""

    def __str__(self) -> str:
        return "this is\nno image"


def refuse_at_length(rng: Random) -> None:
    raise AtLength


def crash(rng: Random) -> None:
    raise ValueError("this is no image")


def spin(rng: Random) -> None:
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


def escape(rng: Random) -> None:
    Path("../evil").touch()


def spoil(rng: Random) -> None:
    Path("../desk/file.txt").write_text("other")


def exhaust(rng: Random) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (lambda rng: None, "ok"),
        (refuse, "refused"),
        (refuse_at_length, "lines"),
        (crash, "traceback"),
        (spin, "hang"),
        (escape, "outside"),
        (spoil, "outside"),
        (exhaust, "memory"),
    ],
)
def test_the_fuzz_tells_how_a_case_ended(work: Callable[[Random], None], kind: str, tmp_path: Path) -> None:
    subject = Subject("files", READERS, 1, ("file.txt",), ("file.txt",), work)
    fuzz = Fuzz(tmp_path, 0, 0.3, [subject], lay_file)
    outcome = fuzz.case(0)
    assert outcome.kind == kind
    assert outcome.damage.startswith("file.txt")
    assert (f"1 x {kind}" in table([outcome], 0)) == (kind in BAD)


def test_a_case_is_the_same_whenever_it_is_made_again(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def look(rng: Random) -> None:
        seen.append(Path("file.txt").read_bytes() if Path("file.txt").is_file() else b"")

    subject = Subject("files", READERS, 1, ("file.txt",), ("file.txt",), look)
    for root in (tmp_path / "one", tmp_path / "two"):
        root.mkdir()
        fuzz = Fuzz(root, 0, 1, [subject], lay_file)
        for number in range(20):
            fuzz.case(number)
    assert seen[:20] == seen[20:]
    assert len(set(seen)) > 10
