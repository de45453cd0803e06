"""The metrics of each domain of a split, for data sets that tell which image belongs to which."""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from distcap.metrics.ngram import split_scores


def domain_scores(
    captions: Mapping[int, str],
    references: Mapping[int, Sequence[str]],
    each: Mapping[str, Sequence[Any]],
    domains: Mapping[int, str],
    java: bool,
) -> dict[str, float]:
    """The metrics of each domain's images alone, named "in_domain/cider" and so on; none where there are no domains.

    A caption's image is looked for among all of the split, whatever their domain, so that domains can be compared. The
    n-gram metrics are those of a collection that holds nothing else: CIDEr-D's document frequencies, too.

    Args:
        captions: image id -> caption, of the whole split.
        references: image id -> ground truth.
        each: the values of each image in the order of `captions`, of which recalls are averaged.
        domains: image id -> domain, of the images that have one.
        java: METEOR and SPICE, too.
    """
    scores: dict[str, float] = {}
    for domain in sorted(set(domains.values())):
        ids = [image for image in captions if domains.get(image) == domain]
        rows = [row for row, image in enumerate(captions) if domains.get(image) == domain]
        if not ids:
            continue
        found = {name: fmean(values[row] for row in rows) for name, values in each.items() if "_recall@" in name}
        if {"t2i_recall@1", "judge_t2i_recall@1"} <= found.keys():
            found["judge_gap"] = found["t2i_recall@1"] - found["judge_t2i_recall@1"]
        found |= split_scores({i: captions[i] for i in ids}, {i: references[i] for i in ids}, java)[0]
        scores |= {f"{re.sub(r'[^0-9a-zA-Z]+', '_', domain)}/{name}": value for name, value in found.items()}
    return scores
