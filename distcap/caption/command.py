"""Captions with a trained captioner, chosen and ranked by its reward CLIP."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from distcap.caption.output import Format, Output
from distcap.caption.unfinished import Unfinished, version
from distcap.data.annotations import Entry
from distcap.data.given import given_images
from distcap.data.images import ImageDataset, collate
from distcap.finding import Finding, confusable, find
from distcap.models import Captioner, EmbeddingStore, FrozenClip, Sampler
from distcap.pictures import VERSION
from distcap.signals import Interrupted
from distcap.stages.base import draw_from
from distcap.trained import image_size, load_captioner, reward_clip
from distcap.types import UserError, printable

Method = Literal["greedy", "beam", "multinomial"]
PAIRS = 3
"""Of confusable images that the summary names."""
TOLD = 10
"""Unreadable images that the end tells again."""


def caption_images(
    images: Sequence[str],
    *,
    run: str,
    form: Format,
    output: str | None,
    captions: int,
    best_of: int,
    method: Method | None,
    clip: str | None,
    pretrained: str,
    family: str,
    batch_size: int,
    num_workers: int,
    seed: int,
    overwrite: bool,
    trust: bool,
) -> None:
    """Caption images, rank each caption's image among them, and write both down; see `distcap caption --help`."""
    sampler = make_sampler(method, captions, best_of)
    if best_of and clip == "none":
        raise UserError("--best_of needs a CLIP that chooses; leave --clip none out, or --best_of")
    files, passed_over = given_images(images)
    out = Output(form, output, files, overwrite)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    captioner = load_captioner(run, family=family, trust=trust).to(device)
    chooser = _clip(run, clip, pretrained, trust)
    if chooser is not None:
        chooser.to(device)  # one that cannot be loaded should say so now
    if passed_over:
        _say(f"passed over {passed_over}")
    size = image_size(captioner, run)
    recipe = {"run": run, "weights": _weights(run), "image_size": size, "batch_size": batch_size, "seed": seed}
    unfinished = Unfinished(out.unfinished, {**recipe, "sampler": asdict(sampler), "pictures": VERSION})
    if unfinished.damaged:
        _say(f"{unfinished.folder} is damaged in {unfinished.damaged} lines; their images are captioned again")
    try:
        _caption(captioner, sampler, files, unfinished, size, batch_size, num_workers, seed)
        said = unfinished.captions(files)
        broken = unfinished.broken(files)
        if not said:
            unfinished.remove()
            raise UserError(f"none of the {len(files)} images could be read; the first: {next(iter(broken.values()))}")
        rows, findings = _rank(said, chooser, captions if best_of else None, unfinished.folder)
        out.write(rows)
    except (KeyboardInterrupt, Interrupted):
        done = unfinished.count(files)
        _say(f"Stopped; {unfinished.folder} keeps {done} of {len(files)} images. The same command goes on from here.")
        raise
    unfinished.remove()
    _say(f"{len(rows)} captions of {len(said)} images: {out}")
    if broken:
        others = f" (and {len(broken) - TOLD} more)" if len(broken) > TOLD else ""
        why = "; ".join(islice(broken.values(), TOLD))
        _say(f"left out, for they could not be read: {len(broken)} of {len(files)} images: {why}{others}")
    if findings:
        _say(summary(findings, list(said)))


def make_sampler(method: Method | None, captions: int, best_of: int) -> Sampler:
    """How captions are drawn: the greedy one, or samples where there are to be several.

    Raises:
        UserError: the numbers do not go together.
    """
    if captions < 1 or best_of < 0:
        raise UserError(f"--captions {captions} --best_of {best_of}: captions are one or more, best_of is none or more")
    if best_of and best_of <= captions:
        raise UserError(f"--best_of {best_of} leaves no choice of --captions {captions}; draw more than are kept")
    samples = best_of or captions
    chosen = method or ("greedy" if samples == 1 else "multinomial")
    if samples > 1 and chosen != "multinomial":
        raise UserError(f"--sampler {chosen} has one caption of each image, and {samples} are asked for; leave it out")
    return Sampler(method=chosen, samples=samples)


def _clip(run: str, clip: str | None, pretrained: str, trust: bool) -> FrozenClip | None:
    if clip == "none":
        return None
    found = reward_clip(run, trust=trust) if clip is None else FrozenClip(clip, pretrained)
    if found is None:
        raise UserError(
            f"{run}: no config tells the CLIP that is to rank captions; name one with --clip, or --clip none"
        )
    return found


def _weights(source: str) -> str:
    """Changes when the captioner of a folder does. A name on the hub stands for itself."""
    folder = Path(source) / "captioner" if (Path(source) / "captioner").is_dir() else Path(source)
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    return hashlib.sha256(" ".join(f"{file.name} {version(file)}" for file in files).encode()).hexdigest()[:16]


@torch.no_grad()
def _caption(
    captioner: Captioner,
    sampler: Sampler,
    files: Sequence[Path],
    unfinished: Unfinished,
    size: int,
    batch_size: int,
    num_workers: int,
    seed: int,
) -> None:
    """Caption what was not captioned before.

    Batches are always the same, and each has a seed of its own: interrupted or not, the samples are the same.
    """
    device = next(captioner.parameters()).device
    entries = [Entry(number, file, (), "predict") for number, file in enumerate(files)]
    batches = [list(range(start, min(start + batch_size, len(files)))) for start in range(0, len(files), batch_size)]
    todo = [batch for batch in batches if not unfinished.knows([files[row] for row in batch])]
    loader = DataLoader(
        ImageDataset(entries, files, size, "skip"),
        batch_sampler=todo,
        collate_fn=collate,
        num_workers=min(num_workers, max(len(todo) - 1, 0)),
    )
    done = len(files) - sum(map(len, todo))
    with tqdm(total=len(files), initial=done, desc="captions", unit="image") as bar:
        for rows, (batch, errors) in zip(todo, loader, strict=True):
            said: dict[Path, list[str]] = {}
            if batch is not None:
                draw_from("caption", seed, rows[0])
                tokens, mask, index = captioner.generate(captioner.encode(batch.images.to(device)), sampler)
                drawn = captioner.detokenize(tokens, mask)
                said = {files[image]: [] for image in batch.image_ids}
                for caption, row in zip(drawn, index.tolist(), strict=True):
                    said[files[batch.image_ids[row]]].append(caption)
            for error in errors.values():
                bar.clear()
                _say(f"skipped: {error}")
            unfinished.add(said, {files[image]: error for image, error in errors.items()})
            bar.update(len(rows))


def _rank(
    said: dict[Path, list[str]], clip: FrozenClip | None, best: int | None, folder: Path
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Rows of the output, and what CLIP makes of each; of an image's captions all, or so many of the best."""
    files = list(said)
    captions = [(number, caption) for number, file in enumerate(files) for caption in said[file]]
    if clip is None:
        return [{"file": str(files[number]), "caption": caption} for number, caption in captions], []
    seen = EmbeddingStore.build(
        folder / f"{clip.fingerprint}-images",
        {str(file): version(file) for file in files},
        lambda keys: clip.embed_images([Path(key) for key in keys]),
        batch_size=clip.batch_size,
        title="CLIP sees the images",
    )[files]
    read = EmbeddingStore.build(
        folder / f"{clip.fingerprint}-captions",
        {caption: "" for _, caption in captions},
        clip.embed_captions,
        batch_size=clip.batch_size,
        title="CLIP reads the captions",
    )
    if best is not None:
        captions = [
            (number, caption)
            for number, file in enumerate(files)
            for caption in islice(_by_similarity(list(dict.fromkeys(said[file])), read, seen[number]), best)
        ]
    findings = find(read[[caption for _, caption in captions]], seen, torch.tensor([number for number, _ in captions]))
    rows = [
        {
            "file": str(files[finding.image]),
            "caption": caption,
            "similarity": round(finding.similarity, 4),
            "rank": finding.rank,
            "ties": finding.ties,
            "taken_for": None if finding.rival is None else str(files[finding.rival]),
            "taken_for_similarity": None if finding.rival_similarity is None else round(finding.rival_similarity, 4),
        }
        for (_, caption), finding in zip(captions, findings, strict=True)
    ]
    return rows, findings


def _by_similarity(captions: list[str], read: EmbeddingStore, image: torch.Tensor) -> list[str]:
    """The captions, the most similar to the image first."""
    order = (read[captions] @ image).argsort(descending=True, stable=True)
    return [captions[place] for place in order.tolist()]


def summary(findings: Sequence[Finding], files: Sequence[Path]) -> str:
    """One line: how many captions find their image, and which images are taken for each other."""
    found, count = sum(finding.hit for finding in findings), len(findings)
    pairs = confusable(findings, PAIRS)
    worst = "; ".join(f"{files[one]} and {files[other]}" for one, other in pairs)
    told = f"the most confusable: {worst}" if pairs else "none is taken for another image"
    return f"{found:g} of {count} captions find their image first among the {len(files)}; {told}"


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)
