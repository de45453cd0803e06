"""Every kind of CLIP that open_clip has embeds as open_clip itself would, by its own preprocessing and tokenizer."""

from pathlib import Path

import open_clip
import pytest
import torch
from open_clips import CONTEXT, write
from PIL import Image
from torch.nn.functional import normalize

from distcap.functional import contrastive
from distcap.models import FrozenClip
from distcap.types import UserError

KINDS = (
    *("CLIP", "SigLIP", "SigLIP2", "no end token", "padded left", "CLIPA", "CLIPS"),
    *("CoCa", "RoBERTa", "ConvNeXt", "EVA"),
)
ROOM = {"SigLIP": 7, "SigLIP2": 7, "no end token": 8, "padded left": 7, "CLIPS": 5}
"""Words that the context of 8 has room for: of most, 6, beside a begin and an end token."""
CAPTIONS = ["a dog", "The red dog's on a porch!", "a cat on the porch " * 5, ""]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def picture(root: Path) -> Path:
    """Not a square, so that it matters who crops and who squashes."""
    file = root / "picture.png"
    Image.radial_gradient("L").resize((80, 48)).convert("RGB").save(file)
    return file


def make(root: Path, kind: str) -> FrozenClip:
    folder = root / kind.replace(" ", "-")
    return FrozenClip(str(folder if folder.exists() else write(folder, kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_it_embeds_as_open_clip_does(kind: str, root: Path, picture: Path) -> None:
    clip = make(root, kind)
    name = f"local-dir:{clip.model}"
    net, preprocess = open_clip.create_model_from_pretrained(name)
    with torch.no_grad():
        texts = net.eval().encode_text(open_clip.get_tokenizer(name)(CAPTIONS), normalize=True)
        images = net.encode_image(preprocess(Image.open(picture))[None], normalize=True)
    assert torch.equal(clip.embed_captions(CAPTIONS), texts)
    assert torch.equal(clip.embed_images([picture]), images)


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_counts_as_truncated_from_the_first_word_that_does_not_fit(kind: str, root: Path) -> None:
    clip, room = make(root, kind), ROOM.get(kind, CONTEXT - 2)
    clip.embed_captions(["dog " * room, "dog", "", "dog " * (room - 1)])
    assert clip.truncated == 0
    clip.embed_captions(["dog " * (room + 1), "dog", "dog " * 50])
    assert clip.truncated == 2


def test_tau_of_a_siglip_is_its_own_temperature_and_its_bias_moves_no_contrastive_reward(
    root: Path, picture: Path
) -> None:
    """By SigLIP's own logits, bias included: exp(own) / sum exp(rivals) is free of a constant in all of them."""
    clip = make(root, "SigLIP2")
    captions = ["a dog", "a red cat", "the porch"]
    images = torch.cat([clip.embed_images([picture]), normalize(torch.randn(2, 64), dim=-1)])
    texts = clip.embed_captions(captions)
    net = clip.net
    assert float(net.logit_bias) == -10
    logits = net.logit_scale.exp() * texts @ images.T + net.logit_bias
    own = torch.arange(3)
    found = contrastive(texts, images, texts, images, own, own, tau=clip.tau, direction="both")
    for i in range(3):
        captions_compete = logits[i, i].exp() / sum(logits[j, i].exp() for j in range(3) if j != i)
        images_compete = logits[i, i].exp() / sum(logits[i, j].exp() for j in range(3) if j != i)
        expected = clip.tau * (captions_compete.log() + images_compete.log()) / 2
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP", "CoCa"])
def test_mixed_precision_around_it_changes_nothing(kind: str, root: Path, picture: Path) -> None:
    """A step in bfloat16 reads what was stored outside of one."""
    clip = make(root, kind)
    stored = clip.embed_captions(CAPTIONS), clip.embed_images([picture])
    with torch.autocast("cpu", torch.bfloat16):
        live = clip.embed_captions(CAPTIONS), clip.embed_images([picture])
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16  # it is mixed
    assert all(torch.equal(a, b) for a, b in zip(stored, live, strict=True))


def test_the_contrastive_reward_is_that_of_full_precision_in_mixed_precision_too() -> None:
    texts, images = normalize(torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    own = torch.arange(4)
    expected = contrastive(texts, images, texts, images, own, own, tau=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive(texts, images, texts, images, own, own, tau=0.01), expected)


def test_the_fingerprint_tells_tokenizers_apart(root: Path, tmp_path: Path) -> None:
    """Of the same weights: one that knows other words, one that ends otherwise, one that keeps punctuation."""
    first = make(root, "SigLIP2")
    found = {first.fingerprint}

    def change(name: str, file: str, old: str, new: str) -> None:
        folder = write(tmp_path / name, "SigLIP2")
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))
        clip = FrozenClip(str(folder))
        assert all(
            torch.equal(a, b)
            for a, b in zip(first.net.state_dict().values(), clip.net.state_dict().values(), strict=True)
        )
        found.add(clip.fingerprint)

    change("words", "tokenizer.json", '"cat"', '"cow"')
    change("clean", "open_clip_config.json", '"canonicalize"', '"lower"')
    change("same", "tokenizer.json", '"cat"', '"cat"')
    assert len(found) == 3


@pytest.mark.parametrize(
    ("model", "tag", "message"),
    [
        ("vit-b32", "openai", r"open_clip has no model vit-b32; close to it: .*ViT-B-32"),
        ("ViT-B-16-SigLIP3", "webli", r"no model ViT-B-16-SigLIP3; close to it: .*ViT-B-16-SigLIP"),
        ("zzzz", "openai", r"no model zzzz; there are "),
        ("ViT-B-16", "laion2b", r"CLIP ViT-B-16 has no weights laion2b; close to it: .*laion2b_s34b_b88k"),
        (
            "ViT-B-16-SigLIP",
            "openai",
            r"CLIP ViT-B-16-SigLIP has no weights openai; .*webli; models that have it: RN50",
        ),
    ],
)
def test_a_model_or_tag_that_open_clip_does_not_have_is_one_line_with_what_is_close(
    model: str, tag: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        FrozenClip(model, tag).to("cpu")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_more_clips_than_a_handful_are_each_loaded_once(root: Path, tmp_path: Path) -> None:
    clips = [FrozenClip(str(write(tmp_path / str(number), "CLIP"))) for number in range(6)]
    nets = [clip.net for clip in clips]
    assert all(clip.net is net for clip, net in zip(clips, nets, strict=True))
