"""The captioner's contract, of every family: what it samples is what it scores, by our own rules alone."""

import copy
import json
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from tiny import CAPTIONS
from torch import Tensor, nn

from distcap.models import Captioner, Sampler
from distcap.types import UserError

FAMILIES = list(families.WRITERS)
GREEDY = Sampler(method="greedy", max_tokens=12)
SAMPLES = Sampler(samples=4, max_tokens=12)
SHARPER = Sampler(samples=4, max_tokens=12, temperature=0.7)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def captioner(family: str, shelf: Path) -> Any:
    """Of one family; tests leave it as it is."""
    return families.load(family, shelf / family)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def decoded(captioner: Any, memory: Tensor, sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(N, T) tokens, mask, image_index and the (N, T, V) log-probabilities that they were chosen by."""
    decode, steps = captioner.decode, []

    def spy(memory: Tensor, **rules: Any) -> Tensor:
        def record(tokens: Tensor, scores: Tensor) -> Tensor:
            steps.append((scores / sampler.temperature).log_softmax(-1))
            return scores

        return decode(memory, **{**rules, "logits_processor": [record]})

    monkeypatch.setattr(captioner, "decode", spy)
    tokens, mask, index = captioner.generate(memory, sampler)
    return tokens, mask, index, torch.stack(steps, 1)


@pytest.mark.parametrize("sampler", [SAMPLES, SHARPER, GREEDY], ids=["samples", "sharper samples", "greedy"])
def test_the_score_of_a_caption_is_the_log_probability_it_was_decoded_with(
    captioner: Any, images: Tensor, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding uses a key-value cache, scoring none (trap 6)."""
    memory = captioner.encode(images)
    tokens, mask, index, odds = decoded(captioner, memory, sampler, monkeypatch)
    expected = odds.gather(2, tokens[..., None]).squeeze(2).where(mask, torch.zeros(()))
    scores = captioner.score(memory, tokens, mask, index, sampler.temperature)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    assert tokens.shape[0] == 4 * sampler.samples
    assert expected[mask].std() > 0.1  # a captioner without opinions would prove nothing


def test_a_greedy_token_is_the_likeliest_without_a_cache_too(captioner: Any, images: Tensor) -> None:
    memory = captioner.encode(images)
    tokens, mask, _ = captioner.generate(memory, GREEDY)
    likeliest = captioner.logits(memory, tokens).argmax(-1)
    assert torch.equal(likeliest[mask], tokens[mask])


def test_what_is_said_depends_on_the_image(captioner: Any, images: Tensor) -> None:
    """Memory that nobody read would pass every other test."""
    memory, index = captioner.encode(images), torch.zeros(4, dtype=torch.long)
    tokens, mask = captioner.tokenize([CAPTIONS[0]] * 4)
    scores = captioner.score(memory, tokens, mask, torch.arange(4)).sum(1)
    assert scores.unique().numel() == 4
    torch.testing.assert_close(captioner.score(memory, tokens, mask, index).sum(1), scores[:1].expand(4))


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_changes_no_score_to_the_bit(captioner: Any, images: Tensor, side: str) -> None:
    memory, index = captioner.encode(images), torch.arange(4)
    tokens, mask = captioner.tokenize(CAPTIONS[:4])
    before, after = (0 if side == "right" else 3), (0 if side == "left" else 2)
    padded = nn.functional.pad(tokens, (before, after), value=captioner.pad)
    padded_mask = nn.functional.pad(mask, (before, after))
    scores = captioner.score(memory, tokens, mask, index)
    more = captioner.score(memory, padded, padded_mask, index)
    assert torch.equal(more[:, before : before + tokens.shape[1]], scores)
    assert not more[~padded_mask].any()


def test_captions_survive_tokens_and_back_and_end_once(captioner: Any) -> None:
    tokens, mask = captioner.tokenize(CAPTIONS)
    assert captioner.detokenize(tokens, mask) == CAPTIONS
    assert ((tokens == captioner.end) & mask).sum(1).tolist() == [1] * len(CAPTIONS)
    assert (tokens[torch.arange(len(tokens)), mask.sum(1) - 1] == captioner.end).all()


def test_samples_greedy_caption_and_ground_truth_share_one_encoding(captioner: Any, images: Tensor) -> None:
    first = next(part for part in captioner.encoder.modules() if list(part.parameters(recurse=False)))
    leaf = next((part for part in first.modules() if isinstance(part, nn.Conv2d | nn.Conv3d | nn.Linear)), first)
    calls = []
    handle = leaf.register_forward_hook(lambda *_: calls.append(1))
    memory = captioner.encode(images)
    assert memory.shape[0] == 4
    seen = len(calls)
    for sampler in (SAMPLES, GREEDY):
        tokens, mask, index = captioner.generate(memory, sampler)
        captioner.score(memory, tokens, mask, index)
    handle.remove()
    assert seen > 0
    assert len(calls) == seen


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_a_guided_token_is_what_the_image_makes_most_likelier(captioner: Any, images: Tensor, gamma: float) -> None:
    memory = captioner.encode(images)
    tokens, mask, _ = captioner.generate(memory, Sampler(method="greedy", max_tokens=8, guidance=gamma))
    known, none = (captioner.logits(one, tokens).log_softmax(-1) for one in (memory, captioner.unknown(memory)))
    assert torch.equal(((1 - gamma) * none + gamma * known).argmax(-1)[mask], tokens[mask])


def test_beam_search_is_no_worse_than_greedy_search(captioner: Any, images: Tensor) -> None:
    """Of captions of one length, which no end token is allowed to shorten in this comparison."""
    memory = captioner.encode(images)
    scores = []
    for sampler in (Sampler(method="beam", beams=8, max_tokens=2), Sampler(method="greedy", max_tokens=2)):
        tokens, mask, index = captioner.generate(memory, sampler)
        scores.append(captioner.score(memory, tokens, mask, index).sum(1) / mask.sum(1))
    assert (scores[0] >= scores[1] - 1e-4).all()


def test_a_saved_captioner_speaks_and_scores_as_before(
    captioner: Any, family: str, images: Tensor, tmp_path: Path
) -> None:
    captioner.save_pretrained(tmp_path / "captioner")
    loaded = families.load(family, tmp_path)  # a run folder stands for the captioner in it
    tokens, mask = captioner.tokenize(CAPTIONS[:4])
    scores = [one.score(one.encode(images), tokens, mask, torch.arange(4)) for one in (captioner, loaded)]
    assert torch.equal(*scores)
    assert torch.equal(*(one.generate(one.encode(images), GREEDY)[0] for one in (captioner, loaded)))


def test_a_saved_folder_has_safetensors_and_nothing_that_runs_code(shelf: Path, family: str) -> None:
    files = [file for file in (shelf / family).rglob("*") if file.is_file()]
    assert any(file.name == "model.safetensors" for file in files)
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja", ".txt"}


def plain(family: str, folder: Path, images: Tensor) -> list[str]:
    """Greedy captions of PIL images by transformers alone; ours is not imported."""
    import transformers
    from torchvision.transforms.functional import to_pil_image

    pictures = [to_pil_image(image) for image in images]
    auto = {
        "vision_encoder_decoder": transformers.VisionEncoderDecoderModel,
        "git": transformers.AutoModelForCausalLM,
    }.get(family, transformers.AutoModelForImageTextToText)
    model = auto.from_pretrained(folder).eval()
    inputs: dict[str, Any]
    if family == "vision_encoder_decoder":
        processor = transformers.AutoTokenizer.from_pretrained(folder)
        inputs = dict(transformers.AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt"))
    else:
        processor = transformers.AutoProcessor.from_pretrained(folder)
        if family in ("smolvlm", "qwen_vl"):
            question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "describe"}]}
            chat = processor.apply_chat_template([question], add_generation_prompt=True)
            options = {"do_image_splitting": False} if family == "smolvlm" else {}
            rows = [[picture] for picture in pictures]
            inputs = dict(processor(text=[chat] * len(rows), images=rows, return_tensors="pt", **options))
        else:
            inputs = dict(processor(images=pictures, return_tensors="pt"))
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    if family in ("smolvlm", "qwen_vl"):
        tokens = tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def test_transformers_alone_gives_the_same_captions(captioner: Any, family: str, shelf: Path, images: Tensor) -> None:
    """Processor, prompt, start token, positions, and no rule of decoding that we do not know of."""
    if family == "clipcap":
        pytest.skip("transformers has no such class; what is exported brings it along, see test_export.py")
    images = (255 * images).round() / 255
    tokens, mask, _ = captioner.generate(captioner.encode(images), GREEDY)
    assert plain(family, shelf / family, images) == captioner.detokenize(tokens, mask)


def test_decoding_rules_that_a_model_brings_along_are_not_used(
    captioner: Any, family: str, shelf: Path, images: Tensor, tmp_path: Path
) -> None:
    """min_length, forbidden words and the like would make generate() another policy than score() (trap 8)."""
    captioner.save_pretrained(tmp_path)
    size = families.SIZE
    rules = {
        "min_length": 15,
        "no_repeat_ngram_size": 1,
        "bad_words_ids": [[token] for token in range(14, size - 2)],
        "suppress_tokens": [12, 13],
        "forced_bos_token_id": size - 1,
        "forced_eos_token_id": size - 1,
        "decoder_start_token_id": size - 1,
        "bos_token_id": size - 1,
        "do_sample": True,
        "temperature": 0.1,
        "top_k": 1,
        "num_beams": 3,
        "length_penalty": 5.0,
        "repetition_penalty": 3.0,
        "max_length": 5,
    }
    file = tmp_path / "generation_config.json"
    assert file.exists() == (family != "clipcap")  # which is saved without any
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**found, **rules}))
    other = families.load(family, tmp_path)
    for sampler in (GREEDY, SAMPLES):
        drawn = []
        for one in (captioner, other):
            torch.manual_seed(0)
            drawn.append(one.generate(one.encode(images), sampler)[0])
        assert torch.equal(*drawn)


def test_a_copy_says_the_same_and_lives_on_its_own(captioner: Any, images: Tensor) -> None:
    """RL compares the policy with a frozen copy of it."""
    twin = copy.deepcopy(captioner)
    tokens, mask = captioner.tokenize(CAPTIONS[:4])

    def score(one: Captioner) -> Tensor:
        return one.score(one.encode(images), tokens, mask, torch.arange(4))

    before = score(captioner)
    assert torch.equal(score(twin), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert torch.equal(score(captioner), before)
    assert not torch.equal(score(twin), before)


def test_images_of_a_wrong_size_are_one_error_that_names_the_option(captioner: Any) -> None:
    with pytest.raises(UserError, match=r"32 pixels, got 64; set --data\.image_size=32"):
        captioner.encode(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("family", ["blip", "git", "blip2", "clipcap"])
def test_a_folder_of_another_family_is_one_error(family: str, shelf: Path, tmp_path: Path) -> None:
    """Hugging Face would only warn, and draw the weights at random."""
    with pytest.raises(UserError, match="it is a vision-encoder-decoder model"):
        families.load(family, shelf / "vision_encoder_decoder")


def test_blip2_with_a_t5_is_refused(tmp_path: Path) -> None:
    from transformers import Blip2Config

    Blip2Config(text_config={"model_type": "t5"}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"sequence-to-sequence one \(T5\)"):
        families.load("blip2", tmp_path)


def test_a_chat_vlm_that_splits_images_or_resizes_them_is_one_error_that_says_what_to_set(shelf: Path) -> None:
    with pytest.raises(UserError, match=r"17 of 32; set image_size: 32 .*do_image_splitting: false"):
        families.load("smolvlm", shelf / "smolvlm", processor={"do_image_splitting": True})
    with pytest.raises(UserError, match=r"of an image of 40 pixels the processor makes 1 of (32|48)"):
        families.load("qwen_vl", shelf / "qwen_vl", image_size=40)
