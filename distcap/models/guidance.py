"""Classifier-free guidance: what the next token owes to the image, exaggerated."""

import torch
from torch import Tensor


def guide(tokens: Tensor, scores: Tensor, gamma: float) -> Tensor:
    """(2N, T), (2N, V) -> (2N, V) guided log-probabilities of the next token, of the first half and again.

    A logits processor of Hugging Face's. The first half of the rows knows its images, the second does not. Both get the
    very same numbers, so that greedy search and beam search choose, reorder and end them alike: what either half's
    cache holds is the same caption, or the same beams. (Their own processors either halve the rows, which generate()
    does not expect, or call a model without encoder.)

    Source: Kornblith et al. 2023, arXiv 2307.16686.
    """
    image, none = scores.log_softmax(-1).chunk(2)
    guided = (1 - gamma) * none + gamma * image
    # What another rule forbids, as a repeated n-gram, has -inf in both halves: their difference is not a number.
    guided = guided.masked_fill(image.isneginf(), -torch.inf).log_softmax(-1)
    return guided.repeat(2, 1)
