"""The plain commands: typed functions, whose parameters and docstrings are the command line's.

Each imports what it needs when it is called, so that `distcap --help` answers at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from distcap.shipped import configs_folder
from distcap.types import UserError


@contextmanager
def _disk_errors() -> Iterator[None]:
    """A full disk, or a folder that may not be written, is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or 'the disk'}: {error.strerror or error}; what was done is kept") from error


def caption(
    images: list[str],
    run: str = "runs/rl",
    output: str | None = None,
    format: Literal["jsonl", "csv", "txt"] = "jsonl",
    captions: int = 1,
    best_of: int = 0,
    sampler: Literal["greedy", "beam", "multinomial"] | None = None,
    clip: str | None = None,
    pretrained: str = "openai",
    captioner: str = "VisionEncoderDecoder",
    batch_size: int = 32,
    num_workers: int = 4,
    seed: int = 0,
    overwrite: bool = False,
    trust: bool = False,
) -> None:
    """Caption images: files, folders, or patterns. Interrupted, it goes on.

    With a CLIP, each caption has the rank of its image among all that were given, and the image that it is most easily
    taken for: so one sees which are still confusable.

    Args:
        images: files, folders and patterns.
        run: a run folder; or another captioner, a folder in the Hugging Face format or a name on its hub.
        output: the file that is written, captions.FORMAT by default; for txt a folder, by default each image's own.
        format: a row for each caption as JSON lines or CSV, or a text file for each image with a line for each caption.
        captions: of each image; more than one are samples, as they were drawn.
        best_of: draw so many samples of each image, and of the different ones keep those that CLIP likes best; 0 for no
            choice.
        sampler: greedy for one caption and multinomial for several, by default.
        clip: what ranks and chooses, a run of the clip stage or an open_clip model; the run's reward CLIP by default.
            "none" to do without.
        pretrained: open_clip's tag, or a file of weights, for a model of --clip.
        captioner: the class in distcap.models of a captioner that is no run; a run's config tells its own.
        batch_size: images at a time.
        num_workers: processes that decode images.
        seed: of the samples.
        overwrite: what is there already.
        trust: let the run's config name classes from outside distcap, which executes their code.
    """
    from distcap.caption import caption_images

    caption_images(
        images,
        run=run,
        form=format,
        output=output,
        captions=captions,
        best_of=best_of,
        method=sampler,
        clip=clip,
        pretrained=pretrained,
        family=captioner,
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
        overwrite=overwrite,
        trust=trust,
    )


def demo(run: str, mle: str | None = None, port: int | None = None, share: bool = False, trust: bool = False) -> None:
    """A page in the browser: drop images that look alike, and see which of them each caption finds. Ctrl-C ends it.

    Args:
        run: a run folder of the RL stage, e.g. runs/demo/distcap.
        mle: the run that it is compared with; by default the one that it was trained from.
        port: of the page on this machine; by default the first free one from 7860 on.
        share: give the page a public address for three days, through gradio's servers.
        trust: let a run's config name classes from outside distcap, which executes their code.
    """
    from distcap.demo import serve

    serve(run, mle, port, share, trust)


def quickstart(run: str = "demo", seed: int = 0, size: float = 1.0) -> None:
    """All of distcap on the embedded benchmark: paint, train, evaluate, report. Interrupted, it goes on.

    Args:
        run: everything is written to runs/RUN.
        seed: of the pictures and of all training.
        size: factor of the number of training steps, for a quick look.
    """
    from distcap.quickstart import run_quickstart

    with _disk_errors():
        run_quickstart(run, seed, size)


def ablation(
    run: str = "ablation",
    seeds: list[int] = [0, 1, 2],  # noqa: B006 - a value, never changed
    systems: list[str] | None = None,
    workers: int = 2,
    docs: str | None = None,
) -> None:
    """All systems on the embedded benchmark with several seeds, in one table. Interrupted, it goes on.

    Args:
        run: everything is written to runs/RUN.
        seeds: of the pictures and of all training.
        systems: of configs/experiments; by default those of the README's table.
        workers: runs at a time; they share the cores.
        docs: where results.md is written as well, and in ablation/ what every run said and how it was scored; runs that
            are found there are not made again.
    """
    from distcap.ablation import SYSTEMS, run_ablation

    with _disk_errors():
        run_ablation(run, seeds, SYSTEMS if systems is None else systems, workers, docs)


def reproduce(
    run: str = "coco",
    root: str = "data/coco",
    archives: str | None = None,
    images: str | None = None,
    seed: int = 0,
    overlay: str | None = None,
    overlays: dict[str, str] = {},  # noqa: B006 - a value, never changed
) -> None:
    """COCO from an empty disk to the results table: prepare, train, test, report. Interrupted, it goes on.

    Args:
        run: everything but the data set is written to runs/RUN.
        root: the folder of the data set.
        archives: see `distcap prepare coco`.
        images: likewise.
        seed: of all training.
        overlay: a config of your own that is laid over those of every run, e.g. with trainer: {devices: 8}.
        overlays: likewise for single runs, e.g. '{"mle": "mine.yaml"}'; there are mle, discriminator, paper, distcap.
    """
    from distcap.reproduce import run_reproduction

    with _disk_errors():
        run_reproduction(run, Path(root), archives, images, seed, ({"": overlay} if overlay else {}) | overlays)


def scenes(root: str = "data/scenes", seed: int = 0) -> None:
    """Paint the embedded benchmark.

    Args:
        root: the folder to paint it into.
        seed: of the pictures.
    """
    from distcap.data.scenes import paint_benchmark

    with _disk_errors():
        paint_benchmark(Path(root), seed=seed)


def coco(root: str = "data/coco", archives: str | None = None, images: str | None = None) -> None:
    """COCO with Karpathy's split: 20 GB fetched, checked and unpacked, or found on disk. Interrupted, it goes on.

    Args:
        root: the folder of the data set.
        archives: a folder, or an http address, with train2014.zip, val2014.zip and caption_datasets.zip; by default the
            authors' own. If it holds a file SHA256SUMS, they are held against that rather than the published checksums.
        images: a folder that holds train2014/ and val2014/ unpacked; they stay there.
    """
    from distcap.data.prepare import prepare_coco

    with _disk_errors():
        prepare_coco(Path(root), archives, images)


def flickr30k(root: str = "data/flickr30k", archives: str | None = None, images: str | None = None) -> None:
    """Flickr30k with Karpathy's split. Its images are sent on request, and must be on disk.

    Args:
        root: the folder of the data set.
        archives: a folder, or an http address, with caption_datasets.zip; by default Karpathy's own.
        images: the folder with the .jpg files; they stay there.
    """
    from distcap.data.prepare import prepare_flickr30k

    with _disk_errors():
        prepare_flickr30k(Path(root), archives, images)


def nocaps(root: str = "data/nocaps", archives: str | None = None, images: str | None = None) -> None:
    """The validation set of nocaps, 4,500 images fetched one by one, or found on disk. Interrupted, it goes on.

    Args:
        root: the folder of the data set.
        archives: a folder, or an http address, with nocaps_val_4500_captions.json; by default the authors' own.
        images: the folder with the .jpg files; they stay there.
    """
    from distcap.data.prepare import prepare_nocaps

    with _disk_errors():
        prepare_nocaps(Path(root), archives, images)


def shards(
    annotations: str, images: str, split: str = "train", output: str = "data/shards", per_shard: int = 1000
) -> None:
    """Pack images and captions into tar files, as distcap.data.Shards and WebDataset read them.

    Args:
        annotations: a Karpathy split file.
        images: the folder that its files are in.
        split: which of the images go into shards.
        output: the folder of the shards.
        per_shard: images of a shard.
    """
    from distcap.data.coco import CocoCaptions
    from distcap.data.shard_writer import write_shards

    with _disk_errors():
        written = write_shards(CocoCaptions(annotations, images), split, Path(output), per_shard)
    print(f"{len(written)} shards: {output}/{{{written[0].stem}..{written[-1].stem}}}.tar")


def spice() -> None:
    """Install the SPICE metric's Java libraries, by Maven."""
    from distcap.metrics.java import install_spice

    print(f"SPICE is installed in {install_spice()}")


def report(folder: str, output: str | None = None, images: int = 24, seed: int = 0) -> None:
    """One self-contained HTML page that compares the runs of a folder, and the table of runs in the terminal.

    Args:
        folder: a folder of runs, e.g. runs/demo.
        output: the page; by default report.html in that folder.
        images: pictures in the gallery.
        seed: draws them.
    """
    from distcap.report import report as write

    with _disk_errors():
        print(write(Path(folder), output=Path(output) if output else None, images=images, seed=seed))


def export(run: str, output: str | None = None, license: str | None = None, trust: bool = False) -> None:
    """A Hugging Face folder of a run's captioner, with a model card. Plain transformers loads it, without distcap.

    Args:
        run: folder of a run that trained a captioner, e.g. runs/demo/distcap.
        output: the folder to write; by default RUN/export.
        license: for the card, in the hub's words, e.g. mit; left out if nobody says it.
        trust: let the run's config name classes from outside distcap, which executes their code.
    """
    from distcap.export import export_run

    with _disk_errors():
        print(export_run(Path(run), Path(output) if output else None, license, trust=trust))


def configs() -> None:
    """List the shipped configs, each with the first line of its head."""
    root = configs_folder()
    for file in sorted(root.rglob("*.yaml")):
        head = file.read_text().splitlines()[0].lstrip("# ")
        print(f"{file.relative_to(root)!s:34} {head}")


PREPARE: dict[str, Callable[..., Any]] = {
    "coco": coco,
    "flickr30k": flickr30k,
    "nocaps": nocaps,
    "scenes": scenes,
    "shards": shards,
    "spice": spice,
}
COMMANDS: dict[str, Callable[..., Any] | dict[str, Callable[..., Any]]] = {
    "caption": caption,
    "demo": demo,
    "quickstart": quickstart,
    "ablation": ablation,
    "reproduce": reproduce,
    "prepare": PREPARE,
    "report": report,
    "export": export,
    "configs": configs,
}
