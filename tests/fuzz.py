"""Thousands of damaged inputs: files of every kind, command lines, and run folders. None may end in a traceback.

    python tests/fuzz.py                    ten thousand cases, a table, exit code 1 if any case ended badly
    python tests/fuzz.py --only 1234        one case again, with all that it prints

What is right is that the input does no harm, or that one line says what is wrong with it. What is wrong is a traceback,
an error of several lines, no end, and a file that was written outside of the case's own folder.
"""

import argparse
import contextlib
import faulthandler
import gc
import io
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", TOKENIZERS_PARALLELISM="false")

import mutations
from subjects import SUBJECTS, Subject, lay_desk

from distcap.types import UserError

BAD = ("traceback", "lines", "hang", "outside", "memory")
MEMORY = 4 * 2**30
"""Bytes that a case may take more than what is in use before the first."""


class TooLong(BaseException):
    """No `except Exception` may take it for something else."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Args:
        number: of the case.
        subject: what was damaged.
        kind: ok, refused (in one line), or one of BAD.
        why: for people; cases with the same kind and why have one cause.
        damage: what was done to the input.
        seconds: that the work took.
    """

    number: int
    subject: Subject
    kind: str
    why: str
    damage: str
    seconds: float


class Fuzz:
    """A desk with all that is healthy, and the cases made of it.

    Args:
        root: an empty folder. Nothing but a case's own folder in it may change.
        seed: of all cases.
        limit: seconds of a case.
        subjects: what is damaged.
        lay: puts what they need into a folder.
    """

    def __init__(
        self,
        root: Path,
        seed: int,
        limit: float,
        subjects: Sequence[Subject] = SUBJECTS,
        lay: Callable[[Path], None] = lay_desk,
    ) -> None:
        self.root, self.seed, self.limit, self.subjects = root, seed, limit, subjects
        self.desk = root / "desk"
        self.desk.mkdir()
        (root / "tmp").mkdir()
        with quiet():
            lay(self.desk)

    def subject(self, number: int) -> Subject:
        shares = [one.share for one in self.subjects]
        return random.Random(f"{self.seed} subject {number}").choices(self.subjects, shares)[0]

    def case(self, number: int, healthy: Subject | None = None) -> Outcome:
        """Make a case, and see what becomes of it; with a subject of which nothing is damaged, if one is named."""
        subject = healthy or self.subject(number)
        rng = random.Random(f"{self.seed} case {number}")
        folder = self.root / f"case-{number}"
        damage = self._lay(subject, folder, None if healthy else rng)
        before = self._state(folder)
        words, begin = io.StringIO(), time.monotonic()
        kind, why = "ok", ""
        try:
            with contextlib.chdir(folder), temporary(self.root / "tmp"), quiet(words), alarm(self.limit):
                subject.work(rng)
        except TooLong as error:
            kind, why = "hang", _cause(error)
        except UserError as error:
            kind, why = ("lines", _line(error)) if "\n" in str(error) else ("refused", str(error))
        except SystemExit as error:
            said = [line for line in words.getvalue().splitlines() if line.startswith("distcap: ")]
            kind, why = (
                ("refused", "") if error.code == 2 and said else ("ok", "") if not error.code else ("lines", "exit")
            )
        except MemoryError as error:
            kind, why = "memory", _cause(error)
        except BaseException as error:
            kind, why = "traceback", _cause(error)
        seconds = time.monotonic() - begin
        if strange := before ^ self._state(folder):
            kind, why = "outside", ", ".join(sorted({name for name, *_ in strange})[:3])
        said = words.getvalue().splitlines()
        damage = damage or next((line for line in said if line.startswith("distcap '")), "")
        self._clear(subject, folder)
        return Outcome(number, subject, kind, why, damage, seconds)

    def _lay(self, subject: Subject, folder: Path, rng: random.Random | None) -> str:
        """Copy what the case needs, link the CLIPs, and damage a file, if there is chance to choose one by."""
        folder.mkdir()
        for pattern in subject.needs:
            for source in self.desk.glob(pattern):
                target = folder / source.relative_to(self.desk)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        (folder / "runs" / "demo").mkdir(parents=True, exist_ok=True)
        for clip in ("clip", "judge"):
            if not (folder / "runs" / "demo" / clip).exists():
                (folder / "runs" / "demo" / clip).symlink_to(self.desk / "runs" / "demo" / clip)
        if subject.targets == ("pictures/*",):
            pictures = sorted((self.desk / "pictures").iterdir())
            (folder / "pictures").mkdir()
            shutil.copy(rng.choice(pictures) if rng else pictures[-1], folder / "pictures")
        if not subject.targets or rng is None:
            return ""
        pattern = rng.choice(subject.targets)
        file = rng.choice(sorted(found for found in folder.glob(pattern) if found.is_file()))
        name = file.relative_to(folder)
        if rng.random() < 0.02:
            mutations.misplace(rng, file)
            return f"{name} is no file"
        healthy = file.read_bytes()
        if rng.random() < 0.05:
            others = sorted(one for one in self.desk.rglob("*") if one.is_file() and one.stat().st_size < 10**6)
            other = rng.choice(others)
            file.write_bytes(other.read_bytes())
            return f"{name} is {other.relative_to(self.desk)}"
        file.write_bytes(mutations.damage(rng, healthy, file.suffix.lower()))
        return str(name)

    @staticmethod
    def _ended(code: object, said: str) -> tuple[str, str]:
        """A command that ended by itself: well, or with one line of its own, the last."""
        if not code:
            return "ok", ""
        lines = said.splitlines()
        if code == 2 and sum(line.startswith("distcap: ") for line in lines) == 1 and lines[-1].startswith("distcap: "):
            return "refused", lines[-1]
        return "lines", f"exit code {code}: {lines[-1] if lines else 'nothing'}"[:120]

    def _state(self, case: Path) -> set[tuple[str, int, int]]:
        """All files but the case's and the temporary ones, and what is where a path without a folder would lead."""
        found: set[tuple[str, int, int]] = {("/evil", 0, 0)} if os.path.lexists("/evil") else set()
        folders = [self.root]
        while folders:
            for entry in os.scandir(folders.pop()):
                if entry.path in (str(case), str(self.root / "tmp")):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                    found.add((entry.path, 0, 0))
                else:
                    stat = entry.stat(follow_symlinks=False)
                    found.add((entry.path, stat.st_size, stat.st_mtime_ns))
        return found

    def _clear(self, subject: Subject, folder: Path) -> None:
        from distcap.models import weights

        if "runs/demo/clip" in subject.needs:  # else thousands of damaged CLIPs are remembered
            for one in vars(weights).values():
                getattr(one, "cache_clear", lambda: None)()
        shutil.rmtree(folder, ignore_errors=True)
        for left in (self.root / "tmp").iterdir():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _cause(error: BaseException) -> str:
    """The exception, and where in distcap it came through last."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/distcap/" in frame.filename]
    where = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    at = f"{where.filename.rpartition('/distcap/')[2]}:{where.lineno} {where.name}"
    return f"{type(error).__name__} at {at}"


def _line(error: BaseException) -> str:
    return f"several lines, {_cause(error)}"


@contextlib.contextmanager
def quiet(into: io.StringIO | None = None) -> Iterator[None]:
    """Nothing on the terminal, no warnings."""
    out = io.StringIO() if into is None else into
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@contextlib.contextmanager
def temporary(folder: Path) -> Iterator[None]:
    """Whoever needs a temporary file makes it in the folder."""
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        os.environ.pop("TMPDIR") if variable is None else os.environ.update(TMPDIR=variable)


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises TooLong; of what hangs where Python does not get a turn, nothing remains but a stack on the terminal."""

    def ring(number: int, frame: FrameType | None) -> NoReturn:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    faulthandler.dump_traceback_later(10 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def bounded(more: int) -> Iterator[None]:
    """No more memory than now and so much."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def table(outcomes: list[Outcome], seed: int) -> str:
    """Cases by subject and kind, then every cause of a bad end with its first case."""
    kinds = ("ok", "refused", *BAD)
    rows = [f"{'':32}{'cases':>8}" + "".join(f"{kind:>11}" for kind in kinds) + f"{'seconds':>11}"]
    for group in dict.fromkeys(one.group for one in SUBJECTS):
        of_group = [one for one in outcomes if one.subject.group == group]
        names = dict.fromkeys(one.name for one in SUBJECTS if one.group == group)
        for title, some in [
            (group.upper(), of_group),
            *((f"  {name}", [one for one in of_group if one.subject.name == name]) for name in names),
        ]:
            count = Counter(one.kind for one in some)
            numbers = "".join(f"{count[kind] or '-':>11}" for kind in kinds)
            rows.append(f"{title:32}{len(some):>8}{numbers}{sum(one.seconds for one in some):>11.0f}")
    causes = Counter((one.kind, one.why) for one in outcomes if one.kind in BAD)
    for (kind, why), number in causes.most_common():
        first = next(one for one in outcomes if (one.kind, one.why) == (kind, why))
        rows.append(f"{number:>5} x {kind}: {why}; {first.subject.name}: {first.damage[:300]!r}")
        rows.append(f"        again by: python tests/fuzz.py --seed {seed} --only {first.number}")
    return "\n".join(rows)


def run(cases: int, seed: int, limit: float, first: int = 0) -> list[Outcome]:
    """Cases from `first` on."""
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        fuzz = Fuzz(Path(root), seed, limit)
        begin = shown = time.monotonic()
        with bounded(MEMORY):
            for number in range(first, first + cases):
                outcomes.append(fuzz.case(number))
                if number % 100 == 0:
                    gc.collect()
                if sys.stderr is sys.__stderr__ and time.monotonic() - shown > 30:
                    shown = time.monotonic()
                    bad = sum(one.kind in BAD for one in outcomes)
                    print(f"{len(outcomes)} cases, {bad} bad, {shown - begin:.0f} s", file=sys.stderr, flush=True)
    return outcomes


def again(number: int, seed: int, limit: float) -> None:
    """One case, with its files left where they are and its traceback."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    fuzz = Fuzz(root, seed, limit)
    subject, rng, folder = fuzz.subject(number), random.Random(f"{seed} case {number}"), root / f"case-{number}"
    print(f"{subject.group}, {subject.name}: {fuzz._lay(subject, folder, rng)}\nin {folder}")
    with contextlib.chdir(folder), alarm(limit):
        subject.work(rng)


def script() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=20, help="seconds of a case")
    parser.add_argument("--only", type=int, help="number of the one case to be made again")
    args = parser.parse_args()
    if args.only is not None:
        again(args.only, args.seed, args.limit)
        return
    begin = time.monotonic()
    outcomes = run(args.cases, args.seed, args.limit, args.first)
    print(table(outcomes, args.seed))
    print(f"{len(outcomes)} cases in {time.monotonic() - begin:.0f} s")
    sys.exit(any(one.kind in BAD for one in outcomes))


if __name__ == "__main__":
    script()
