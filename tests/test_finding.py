"""What a caption finds among images, on similarities that can be read off the vectors."""

import torch
from fakes import embed
from torch.nn.functional import normalize

from distcap.finding import confusable, find

IMAGES = embed("red dog", "red cat", "blue cat")


def test_a_caption_that_fits_its_image_best_has_found_it() -> None:
    """<"red dog", images> is 1, 0.5, 0."""
    [finding] = find(embed("red dog"), IMAGES, torch.tensor([0]))
    assert (finding.rank, finding.ties, finding.rival, finding.found, finding.hit) == (1, 0, 1, True, 1.0)
    torch.testing.assert_close((finding.similarity, finding.rival_similarity), (1.0, 0.5))


def test_a_caption_that_fits_others_better_counts_them_and_names_the_first() -> None:
    """<"blue cat", images> is 0, 0.5, 1: its image 0 is the third, and it is taken for image 2."""
    [finding] = find(embed("blue cat"), IMAGES, torch.tensor([0]))
    assert (finding.rank, finding.rival, finding.found, finding.hit) == (3, 2, False, 0.0)


def test_a_tie_is_neither_a_hit_nor_a_miss() -> None:
    """<"red", images> is 0.71, 0.71, 0."""
    [finding] = find(embed("red"), IMAGES, torch.tensor([0]))
    assert (finding.rank, finding.ties, finding.rival, finding.found, finding.hit) == (1, 1, 1, False, 0.5)


def test_one_thing_said_of_all_images_finds_none_but_by_chance() -> None:
    """Three equal images and one caption: each has a chance of a third."""
    images = embed("red dog", "red dog", "red dog")
    findings = find(embed("red", "red", "red"), images, torch.arange(3))
    assert [finding.rank for finding in findings] == [1, 1, 1]
    torch.testing.assert_close(sum(finding.hit for finding in findings), 1.0)


def test_equal_images_tie_however_many_columns_are_between_them() -> None:
    """Matrix products may round equal columns differently."""
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(203, 67, generator=generator), dim=-1)
    images[202] = images[0]
    findings = find(normalize(torch.randn(203, 67, generator=generator), dim=-1), images, torch.zeros(203).long())
    assert all(finding.ties == 1 for finding in findings)


def test_a_single_image_has_no_rival() -> None:
    [finding] = find(embed("red"), IMAGES[:1], torch.tensor([0]))
    assert (finding.rank, finding.rival, finding.rival_similarity, finding.found) == (1, None, None, True)
    assert confusable([finding], 3) == []


def test_more_captions_than_are_compared_at_a_time_keep_their_order(monkeypatch) -> None:
    whole = find(embed("red dog", "cat", "blue"), IMAGES, torch.tensor([0, 1, 2]))
    monkeypatch.setattr("distcap.finding.CHUNK", 2)
    assert find(embed("red dog", "cat", "blue"), IMAGES, torch.tensor([0, 1, 2])) == whole


def test_confusable_pairs_are_named_once_the_worst_first() -> None:
    """Image 0 is taken for image 2 by 1, image 1 for image 0 by 0.5 and image 0 for image 1 by 0.5; 2 is found."""
    captions = embed("blue cat", "red dog", "red cat", "blue cat")
    findings = find(captions, IMAGES, torch.tensor([0, 1, 0, 2]))
    assert confusable(findings, 5) == [(0, 2), (0, 1)]
    assert confusable(findings, 1) == [(0, 2)]
