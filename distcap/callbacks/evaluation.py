"""Metrics of a captioner on a whole split, and the table of its captions."""

import json
import logging
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from distcap.callbacks.dashboard import wandb_loggers
from distcap.files import read_json, write_whole
from distcap.functional import ranks
from distcap.metrics.domains import domain_scores
from distcap.metrics.ngram import split_scores, writing_scores
from distcap.metrics.retrieval import RetrievalRecall
from distcap.metrics.signature import signature
from distcap.models import FrozenClip
from distcap.pictures import open_picture
from distcap.types import UserError

log = logging.getLogger(__name__)


class Evaluation(Callback):
    """Recall@k by the reward CLIP and by a held-out judge, n-gram metrics, and what was said of each image.

    Of images without human captions: recall, and of the n-gram metrics those that compare with nobody.

    Logged as val/... and test/...; written to RUN/metrics.json and RUN/captions_SPLIT.json. The values of each image,
    for intervals and paired tests, are in RUN/scores_SPLIT.json, and with them how all was computed. Where images
    belong to domains, as those of nocaps do, each domain has its metrics, too, such as test/in_domain/cider.

    Args:
        clip: the CLIP of the reward.
        judge: another CLIP, which no reward has seen: its metrics are judge_..., and the gap between the two, logged as
            judge_gap, tells hacking from describing. Or several by name: their metrics are NAME_..., and NAME_gap. The
            report goes by the one that is called judge. Ranks and look-alikes of the captions' table are the last's.
        java: METEOR and SPICE at test time, where Java is installed.
        missing_clip: what to do if a CLIP cannot be loaded: stop before training, or say so and measure no recall.
    """

    def __init__(
        self,
        clip: FrozenClip,
        judge: FrozenClip | dict[str, FrozenClip] | None = None,
        java: bool = True,
        missing_clip: Literal["raise", "skip"] = "raise",
    ) -> None:
        judges = judge if isinstance(judge, dict) else {"judge": judge} if judge else {}
        self.clips = {"": clip, **{f"{name}_": one for name, one in judges.items()}}
        self.java = java
        self.missing_clip = missing_clip
        self._captions: dict[int, str] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the CLIPs now rather than find one missing after an epoch."""
        if stage == "predict":  # evaluates nothing
            return
        for prefix, clip in list(self.clips.items()):
            try:
                clip.to(trainer.strategy.root_device)
            except UserError as error:
                if self.missing_clip == "raise":
                    raise
                del self.clips[prefix]
                log.warning("%s: %srecall will not be measured", error, prefix)
        if self.clips:
            _ = trainer.datamodule.cache_dir  # type: ignore[attr-defined]  # one that cannot be used says so now

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._captions = {}

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        self._captions.update(outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate(trainer, pl_module, "test")

    def _evaluate(self, trainer: Trainer, stage: LightningModule, split: str) -> None:
        captions = dict(sorted(_gather(self._captions, trainer.world_size).items()))
        data = trainer.datamodule  # type: ignore[attr-defined]
        entries = [entry for entry in data.entries(split) if entry.image_id in captions]
        files = {entry.image_id: data.path(entry) for entry in entries}
        references = {image: row for image, row in data.references(split).items() if image in captions}
        scores: dict[str, float] = {}
        each: dict[str, list[Any]] = {}
        similarity = images = torch.zeros(len(captions), len(captions))  # nothing is known: all tie
        for prefix, clip in self.clips.items():
            ids = torch.tensor(list(captions))
            images = clip.image_store(files, data.cache_dir)[ids.tolist()].to(stage.device)
            before = clip.truncated
            metric = RetrievalRecall()
            # Each distinct caption is embedded once: what should tie must not differ by a rounding error.
            distinct = {caption: row for row, caption in enumerate(dict.fromkeys(captions.values()))}
            embeddings = clip.embed_captions(list(distinct))[[distinct[captions[i]] for i in ids.tolist()]]
            # The captions are gathered already, so that every process computes the same.
            metric.update(embeddings, images, ids.to(stage.device))
            for name, hits in metric.hits().items():
                scores[f"{prefix}{name}"] = float(hits.mean())
                each[f"{prefix}{name}"] = hits.tolist()
            scores[f"{prefix}truncated"] = float(clip.truncated - before)
            similarity = metric.similarity()
        if "" in self.clips:
            for judge in filter(None, self.clips):
                scores[f"{judge}gap"] = scores["t2i_recall@1"] - scores[f"{judge}t2i_recall@1"]
        java = self.java and split == "test" and trainer.is_global_zero
        human = any(references.values())
        text_scores, text_each = split_scores(captions, references, java) if human else writing_scores(captions)
        scores |= text_scores
        each |= text_each
        domains = {entry.image_id: entry.domain for entry in entries if human and entry.domain is not None}
        in_java = {"meteor", "spice"} & text_scores.keys()
        scores |= domain_scores(captions, references, each, domains, bool(in_java))
        shared = {name: value for name, value in scores.items() if not name.endswith(("meteor", "spice"))}
        stage.log_dict({f"{split}/{name}": value for name, value in shared.items()}, rank_zero_only=True)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(trainer.default_root_dir)
            _update_json(folder / "metrics.json", split, scores)
            how = signature(type(data).__name__, split, references, stage.decoder)
            table = {"image_ids": list(captions), "scores": each, "signature": how}
            write_whole(folder / f"scores_{split}.json", json.dumps(table))
            rows = caption_table(captions, references, files, similarity, images)
            write_whole(folder / f"captions_{split}.json", json.dumps(rows, indent=1))
            _log_table(trainer, split, rows[:64])


def caption_table(
    captions: dict[int, str],
    references: dict[int, list[str]],
    files: dict[int, Path],
    similarity: Tensor,
    images: Tensor,
) -> list[dict[str, Any]]:
    """A row an image: what was said of it, how well that finds it, and the image it is most easily taken for.

    Args:
        captions: image id -> caption.
        references: image id -> ground truth.
        files: image id -> file.
        similarity: (N, N) captions x images by the last CLIP, in ascending order of ids.
        images: (N, D) embeddings of that CLIP.
    """
    ids = sorted(captions)
    better, ties = ranks(similarity, torch.arange(len(ids), device=similarity.device))
    nearest = (images @ images.T).fill_diagonal_(-torch.inf).argmax(1).tolist()
    seen = len(ids) > 1 and bool(images.any())
    rows = []
    for row, image in enumerate(ids):
        other = ids[nearest[row]] if seen else None
        rows.append(
            {
                "image_id": image,
                "file": str(files[image]),
                "caption": captions[image],
                "rank": 1 + int(better[row]) + int(ties[row]) / 2,
                "ground_truth": references[image],
                "lookalike": None if other is None else {"image_id": other, "file": str(files[other])},
            }
        )
    return rows


def _gather(captions: dict[int, str], world_size: int) -> dict[int, str]:
    """All processes' captions; an image that a distributed sampler repeated counts once."""
    if world_size == 1:
        return captions
    parts: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(parts, captions)
    return {image: caption for part in parts for image, caption in part.items()}


def _update_json(file: Path, split: str, scores: dict[str, float]) -> None:
    found = read_json(file, lambda found: isinstance(found, dict))
    if found is None and file.exists():
        log.warning("%s was damaged: what it said of other splits is lost", file)
    write_whole(file, json.dumps({**(found or {}), split: scores}, indent=2))


def _log_table(trainer: Trainer, split: str, rows: list[dict[str, Any]]) -> None:
    for logger in wandb_loggers(trainer):
        import wandb

        data = [
            [wandb.Image(open_picture(r["file"])), next(iter(r["ground_truth"]), ""), r["caption"], r["rank"]]
            for r in rows
        ]
        columns = ["image", "ground truth", "caption", "rank"]
        logger.log_table(f"{split}/captions", columns, data, step=trainer.global_step)
