"""The three claims of the paper and our own, as paired comparisons of systems, and what the runs say to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distcap.report.runs import BASELINE
from distcap.report.statistics import Estimate
from distcap.report.systems import Ablation

Wish = Literal["higher", "not lower", ""]
"""What a claim wants of a difference: "" reports it alone."""

MARGIN = 0.02
"""Share of teacher forcing's mean by which a metric may fall and still count as not lower."""

RULES = (
    "Differences are paired: the same images of the same seeds. Higher: the 95 % interval of the difference lies above "
    f"zero. Not lower: it lies above −{100 * MARGIN:g} % of the mean of {BASELINE}. "  # noqa: RUF001
    "The contrary is shown where the whole interval lies below that bound; an interval across it shows neither. A "
    "claim holds if all that it needs is shown, fails if the contrary of anything it needs is shown, and is not shown "
    "otherwise. p is two-sided, of no difference at all. With three seeds it is "
    "optimistic: equal systems differ by it one time in ten where seeds spread as much as images make them, and one "
    "time in four where seeds are all that matters."
)
"""The definition of a verdict, as printed."""


@dataclass(frozen=True)
class Comparison:
    """One system against another on one metric."""

    system: str
    base: str
    key: str
    wish: Wish
    estimate: Estimate | None
    """of the difference; None where a run is missing"""
    bound: float | None
    """above which the interval must lie"""

    @property
    def verdict(self) -> str:
        """What became of the wish: "yes", "no", "unclear", "missing"; "" without one."""
        if self.estimate is None or self.bound is None:
            return "missing"
        if not self.wish:
            return ""
        return "yes" if self.estimate.low > self.bound else "no" if self.estimate.high < self.bound else "unclear"


@dataclass(frozen=True)
class Claim:
    """A claim, and the comparisons that decide it."""

    letter: str
    statement: str
    reading: str
    """What the statement is taken to mean here."""
    comparisons: tuple[Comparison, ...]

    @property
    def verdict(self) -> str:
        """ "holds", "fails" or "not shown", by RULES."""
        found = {comparison.verdict for comparison in self.comparisons if comparison.wish}
        return "fails" if "no" in found else "holds" if found == {"yes"} else "not shown"


CIDER, RETRIEVAL = "cider", "retrieval"

OURS = "d"
"""The claim that is not the paper's."""

_CLAIMS: Sequence[tuple[str, str, str, Sequence[tuple[str, str, str, Wish]]]] = (
    (
        "a",
        "The discriminator raises retrieval without degrading writing.",
        "With the discriminator in its reward, RL finds more images than teacher forcing at no lower CIDEr, and has a "
        "higher CIDEr than the same RL without it.",
        (
            ("contrastive_discriminator", BASELINE, RETRIEVAL, "higher"),
            ("contrastive_discriminator", BASELINE, CIDER, "not lower"),
            ("contrastive_discriminator", "contrastive", CIDER, "higher"),
            ("contrastive_discriminator", "contrastive", RETRIEVAL, ""),
        ),
    ),
    (
        "b",
        "RL on human captions alone raises retrieval at no loss of writing quality, and regularises RL better.",
        "Weighted teacher forcing alone finds more images than teacher forcing at no lower CIDEr. Added to RL, it "
        "gives a higher CIDEr than RL alone and finds more images than with plain teacher forcing, at no lower CIDEr.",
        (
            ("wtf_only", BASELINE, RETRIEVAL, "higher"),
            ("wtf_only", BASELINE, CIDER, "not lower"),
            ("contrastive_wtf", "contrastive", CIDER, "higher"),
            ("contrastive_wtf", "contrastive", RETRIEVAL, ""),
            ("contrastive_wtf", "contrastive_teacher_forcing", RETRIEVAL, "higher"),
            ("contrastive_wtf", "contrastive_teacher_forcing", CIDER, "not lower"),
        ),
    ),
    (
        "c",
        "A reward in one direction, image to text, gives clearly lower text-to-image retrieval than both directions.",
        "RL on both directions finds more images than RL on the one. The CIDEr of both is compared, too, for retrieval "
        "can be bought with writing.",
        (
            ("contrastive", "contrastive_i2t", RETRIEVAL, "higher"),
            ("contrastive", "contrastive_i2t", CIDER, ""),
        ),
    ),
    (
        OURS,
        "Beyond the paper: distcap's own recipe finds clearly more images than the whole method, and writes as well.",
        "It finds more images than the whole method at no lower CIDEr, and so it does with a reward CLIP seeing more; "
        "what that adds is told, too, and what a second CLIP does.",
        (
            ("distcap", "full", RETRIEVAL, "higher"),
            ("distcap", "full", CIDER, "not lower"),
            ("sharp_clip", "full", RETRIEVAL, "higher"),
            ("sharp_clip", "full", CIDER, "not lower"),
            ("sharp_clip", "distcap", RETRIEVAL, ""),
            ("sharp_clip", "distcap", CIDER, ""),
            ("two_clips", "distcap", RETRIEVAL, ""),
            ("two_clips", "distcap", CIDER, ""),
        ),
    ),
)


def judge_claims(ablation: Ablation, retrieval: str) -> list[Claim]:
    """The claims with their verdicts; `retrieval` is the key of the recall that counts."""
    baseline = ablation[BASELINE]
    claims = []
    for letter, statement, reading, wanted in _CLAIMS:
        comparisons = []
        for system, base, metric, wish in wanted:
            key = retrieval if metric == RETRIEVAL else metric
            level = baseline.value(key) if baseline else None
            bound = 0.0 if wish != "not lower" else None if level is None else -MARGIN * level
            comparisons.append(Comparison(system, base, key, wish, ablation.difference(system, base, key), bound))
        claims.append(Claim(letter, statement, reading, tuple(comparisons)))
    return claims
