"""What several captioners say of the same images, and which of the images each caption finds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from distcap.data.images import decode
from distcap.finding import Finding, find
from distcap.models import Captioner, FrozenClip, Sampler
from distcap.trained import image_size, load_captioner, reward_clip, trained_from
from distcap.types import UserError

GREEDY = Sampler(method="greedy")


@dataclass(frozen=True)
class Speaker:
    """A captioner that is compared.

    Args:
        name: for people.
        captioner: trained.
        image_size: of the pixels that it sees.
    """

    name: str
    captioner: Captioner
    image_size: int


@dataclass(frozen=True)
class Telling:
    """What a speaker says of all images.

    Args:
        name: of the speaker.
        captions: one of each image.
        findings: which image each caption finds.
    """

    name: str
    captions: list[str]
    findings: list[Finding]

    @property
    def found(self) -> float:
        """How many captions find their image; one that ties counts as the chance that it does."""
        return sum(finding.hit for finding in self.findings)


class Comparison:
    """Captions the same images by every speaker, and lets a CLIP look for each caption's image among them.

    Args:
        speakers: the captioners.
        clip: reads their captions.
    """

    def __init__(self, speakers: Sequence[Speaker], clip: FrozenClip) -> None:
        self.speakers = speakers
        self.clip = clip

    @classmethod
    def of_runs(cls, run: str, mle: str | None = None, *, trust: bool = False) -> "Comparison":
        """A run beside the captioner that it started from, judged by its reward CLIP.

        Args:
            run: a run folder of the RL stage.
            mle: what is compared with it; by default what it was trained from.
            trust: let a config name classes from outside distcap.models, which executes their code.

        Raises:
            UserError: there is nothing to compare it with, or no CLIP to judge by.
        """
        before = mle or trained_from(run)
        if before is None:
            raise UserError(f"{run} was not trained from another captioner; name one to compare it with: --mle RUN")
        clip = reward_clip(run, trust=trust)
        if clip is None:
            raise UserError(f"{run}: its config.yaml names no CLIP that could tell which image a caption finds")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        speakers = []
        for what, source in (("MLE", before), ("Distinctive", run)):
            captioner = load_captioner(source, trust=trust).to(device)
            speakers.append(Speaker(f"{what} ({Path(source).name})", captioner, image_size(captioner, source)))
        return cls(speakers, clip.to(device))

    @torch.no_grad()
    def __call__(self, files: Sequence[Path]) -> list[Telling]:
        """The images of files that can be read -> what each speaker says of them."""
        images = torch.cat([self.clip.embed_images([file]) for file in files]).cpu()
        tellings = []
        for speaker in self.speakers:
            pixels = torch.stack([decode(file, speaker.image_size) for file in files]).float().div_(255)
            device = next(speaker.captioner.parameters()).device
            memory = speaker.captioner.encode(pixels.to(device))
            captions = speaker.captioner.detokenize(*speaker.captioner.generate(memory, GREEDY)[:2])
            read = self.clip.embed_captions(captions).cpu()
            tellings.append(Telling(speaker.name, captions, find(read, images, torch.arange(len(files)))))
        return tellings
