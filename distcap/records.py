"""What is kept of an ablation beside its table: what every run said and how it was scored, but no weights.

With it the table can be made again, and a system compared with all others, without training them anew.
"""

import io
import tarfile
from pathlib import Path

from distcap.types import UserError

MARKER = "seconds.json"
"""Of a run that is done."""
KEPT = (MARKER, "metrics.json", "scores_test.json", "captions_test.json", "health.json")


def pack(folder: Path, archive: Path) -> None:
    """Put what is kept of the finished runs in a folder into one .tar.xz, the same bytes for the same runs.

    All runs describe the same images, so that together they take little more room than one.
    """
    # What has no captions is no captioner's run.
    runs = sorted(file.parent for file in folder.glob("*/scores_test.json") if (file.parent / MARKER).exists())
    if not runs:
        return
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:xz") as tar:
        for run in runs:
            for name in KEPT:
                if (run / name).exists():
                    content = (run / name).read_bytes()
                    member = tarfile.TarInfo(f"{run.name}/{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def unpack(archive: Path, folder: Path) -> None:
    """The reverse, for runs that the folder does not have. Raises UserError where the archive holds anything else."""
    try:
        with tarfile.open(archive, "r:xz") as tar:
            present = {file.parent.name for file in folder.glob(f"*/{MARKER}")}
            for member in tar:
                run, _, name = member.name.partition("/")
                if not member.isfile() or name not in KEPT or run in ("", ".", ".."):
                    raise UserError(f"{archive} holds {member.name}, which is no part of a run; take it away")
                if run not in present:
                    tar.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} is no archive of runs ({error}); delete it, or get it again") from error
