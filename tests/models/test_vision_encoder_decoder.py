"""The captioner's contract: what it samples is what it scores, and nothing decodes but our own rules."""

import json
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CAPTIONS, CONVOLUTIONAL, ENCODER, make_captioner
from torch import Tensor

from distcap.baselines import Greedy
from distcap.experience import Experience, alone
from distcap.models import Sampler, VisionEncoderDecoder
from distcap.ngrams import CiderD
from distcap.objectives import PolicyGradient, WeightedTeacherForcing
from distcap.rewards import Reward
from distcap.stages import MLE, RL
from distcap.types import Batch, Rollout, UserError

GREEDY = Sampler(method="greedy", max_tokens=12)
SAMPLES = Sampler(samples=8, max_tokens=20)


class WordCount(Reward):
    """A reward that needs no CLIP."""

    def forward(self, rollout: Rollout, experience: Experience) -> Tensor:
        return torch.tensor([float(len(caption.split())) for caption in rollout.captions])


def gpt2_like(folder: Path) -> VisionEncoderDecoder:
    """As GPT-2 has it, one token starts, ends and pads."""
    captioner = make_captioner()
    captioner.tokenizer.bos_token = captioner.tokenizer.pad_token = captioner.tokenizer.eos_token
    for config in (captioner.model.config, captioner.model.config.decoder):
        config.bos_token_id = config.decoder_start_token_id = config.pad_token_id = captioner.end
    captioner.save_pretrained(folder)
    return VisionEncoderDecoder(str(folder)).eval()


@pytest.fixture(params=["own pad token", "pad is end", "convolutional"])
def captioner(request: pytest.FixtureRequest, tmp_path: Path) -> VisionEncoderDecoder:
    if request.param == "pad is end":
        return gpt2_like(tmp_path)
    return make_captioner(encoder=CONVOLUTIONAL if request.param == "convolutional" else ENCODER)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def batch(images: Tensor) -> Batch:
    return Batch(images, [CAPTIONS[:2], CAPTIONS[1:3], CAPTIONS[2:4], CAPTIONS[3:]], [10, 11, 12, 13])


def test_the_gpt2_like_captioner_pads_with_its_end_token(tmp_path: Path) -> None:
    captioner = gpt2_like(tmp_path)
    assert captioner.pad == captioner.end == captioner.start


@pytest.mark.parametrize("sampler", [SAMPLES, GREEDY], ids=["samples", "greedy"])
def test_the_score_of_a_caption_is_the_log_probability_it_was_decoded_with(
    captioner: VisionEncoderDecoder, images: Tensor, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """generate() decodes with a key-value cache, score() without one (trap 6)."""
    decode, logits = captioner.model.generate, []

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        config = kwargs["generation_config"]
        assert config.use_cache
        config.output_logits = config.return_dict_in_generate = True
        output = decode(*args, **kwargs)
        logits.extend(output.logits)
        return output.sequences

    monkeypatch.setattr(captioner.model, "generate", spy)
    memory = captioner.encode(images)
    tokens, mask, index = captioner.generate(memory, sampler)
    decoded = torch.stack(logits, 1).log_softmax(-1).gather(2, tokens[..., None]).squeeze(2)
    torch.testing.assert_close(
        captioner.score(memory, tokens, mask, index), decoded.where(mask, torch.zeros(())), atol=1e-4, rtol=0
    )
    assert tokens.shape == (4 * sampler.samples, len(logits))
    assert decoded.std() > 0.1  # a captioner without opinions would prove nothing


def test_each_token_is_scored_after_the_ones_before_it_and_the_start_token(
    captioner: VisionEncoderDecoder, images: Tensor
) -> None:
    """The independent reference: the decoder fed one token at a time, with its cache."""
    memory = captioner.encode(images[:1])
    tokens, mask = captioner.tokenize(["a red heart at night"])
    past, previous, expected = None, torch.tensor([[captioner.start]]), []
    for token in tokens[0]:
        output = captioner.model.decoder(
            input_ids=previous, encoder_hidden_states=memory, past_key_values=past, use_cache=True
        )
        past, previous = output.past_key_values, token.view(1, 1)
        expected.append(output.logits[0, -1].log_softmax(-1)[token])
    found = captioner.score(memory, tokens, mask, torch.tensor([0]))
    torch.testing.assert_close(found[0], torch.stack(expected), atol=1e-4, rtol=0)


def test_a_convolutional_encoder_remembers_one_vector_for_each_place(images: Tensor) -> None:
    captioner = make_captioner(encoder=CONVOLUTIONAL)
    grid = captioner.model.encoder(pixel_values=(images - captioner.mean) / captioner.std).last_hidden_state
    assert grid.shape == (4, 16, 4, 4)
    memory = captioner.encode(images)
    assert torch.equal(memory[2, 4 * 3 + 1], grid[2, :, 3, 1])
    assert memory.shape == (4, 16, 16)


def test_appended_pad_columns_change_no_score_to_the_bit(captioner: VisionEncoderDecoder, images: Tensor) -> None:
    memory, index = captioner.encode(images), torch.arange(4)
    tokens, mask = captioner.tokenize(CAPTIONS[:4])
    padded = torch.cat([tokens, torch.full((4, 5), captioner.pad)], 1)
    padded_mask = torch.cat([mask, torch.zeros(4, 5, dtype=torch.bool)], 1)
    scores = captioner.score(memory, tokens, mask, index)
    more = captioner.score(memory, padded, padded_mask, index)
    assert torch.equal(more[:, : tokens.shape[1]], scores)
    assert not more[:, tokens.shape[1] :].any()


def test_a_longer_neighbour_changes_neither_tokens_nor_mask(captioner: VisionEncoderDecoder) -> None:
    alone, alone_mask = captioner.tokenize(CAPTIONS[:1])
    together, mask = captioner.tokenize(CAPTIONS[:3])
    assert torch.equal(together[0, : alone.shape[1]], alone[0])
    assert torch.equal(together[0][mask[0]], alone[0][alone_mask[0]])
    assert mask[0].sum() == 6  # a dog on a porch END


def test_the_mask_holds_the_tokens_up_to_and_including_the_first_end_token(
    captioner: VisionEncoderDecoder, images: Tensor
) -> None:
    torch.manual_seed(0)
    tokens, mask, _ = captioner.generate(captioner.encode(images), SAMPLES)
    lengths = set()
    for row, keep in zip(tokens.tolist(), mask.tolist(), strict=True):
        length = row.index(captioner.end) + 1 if captioner.end in row else len(row)
        assert keep == [True] * length + [False] * (len(row) - length)
        lengths.add(length)
    assert len(lengths) > 2  # some ended, at various places


def test_decoding_rules_that_a_model_brings_along_are_not_used(tmp_path: Path, images: Tensor) -> None:
    """min_length, forbidden words and the like would make generate() another policy than score() (trap 8)."""
    captioner = make_captioner()
    captioner.save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    vocabulary = len(captioner.tokenizer)
    rules = {
        "min_length": 15,
        "no_repeat_ngram_size": 1,
        "bad_words_ids": [[token] for token in range(5, vocabulary - 2)],
        "decoder_start_token_id": vocabulary - 1,
        "bos_token_id": vocabulary - 1,
        "top_k": 1,
        "num_beams": 3,
        "length_penalty": 5.0,
        "repetition_penalty": 3.0,
        "max_length": 5,
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), **rules}))
    other = VisionEncoderDecoder(str(tmp_path)).eval()
    for sampler in (GREEDY, SAMPLES):
        drawn = []
        for one in (captioner, other):
            torch.manual_seed(0)
            drawn.append(one.generate(one.encode(images), sampler)[0])
        assert torch.equal(*drawn)


def test_samples_are_drawn_from_the_whole_vocabulary_by_default(images: Tensor) -> None:
    """Hugging Face's own default, the 50 likeliest tokens, would be off-policy; here any k below the vocabulary is."""
    captioner = make_captioner()
    with torch.no_grad():
        captioner.model.decoder.lm_head.weight.mul_(0.01)  # all words about equally likely
    torch.manual_seed(0)
    tokens, mask, _ = captioner.generate(captioner.encode(images), Sampler(samples=64, max_tokens=20))
    assert len(tokens[mask].unique()) == len(captioner.tokenizer)


@pytest.fixture(params=["own pad token", "pad is end"])
def guided(request: pytest.FixtureRequest, tmp_path: Path) -> VisionEncoderDecoder:
    return gpt2_like(tmp_path) if request.param == "pad is end" else make_captioner()


def strong_memory(captioner: VisionEncoderDecoder, images: Tensor) -> Tensor:
    """(B, S, E) that decides more than an untrained decoder's own habits: four captions of several lengths."""
    return 5 * captioner.encode(images).detach()


def guided_logprobs(captioner: VisionEncoderDecoder, memory: Tensor, tokens: list[int], gamma: float) -> Tensor:
    """(1, S, E), T tokens -> (V,) the slow reference: every next token scored twice, without a cache, and mixed."""
    vocabulary = torch.arange(len(captioner.tokenizer))[:, None]
    rows = torch.cat([torch.tensor(tokens, dtype=torch.long).expand(len(vocabulary), -1), vocabulary], 1)
    ones, first = torch.ones_like(rows, dtype=torch.bool), torch.zeros(len(rows), dtype=torch.long)
    with torch.no_grad():
        known, none = (
            captioner.score(condition, rows, ones, first)[:, -1] for condition in (memory, torch.zeros_like(memory))
        )
    mixed = (1 - gamma) * none.double() + gamma * known.double()
    return mixed - mixed.exp().sum().log()


@pytest.mark.parametrize("gamma", [0.0, 1.5, 3.0])
def test_a_guided_caption_takes_the_token_that_the_image_makes_most_likelier(
    guided: VisionEncoderDecoder, images: Tensor, gamma: float
) -> None:
    """Gamma 0 is p(y), the likeliest caption of no image. Otherwise lengths differ, and shorter rows are padded."""
    memory = strong_memory(guided, images)
    tokens, mask, index = guided.generate(memory, replace(GREEDY, guidance=gamma))
    for row in range(len(images)):
        found: list[int] = tokens[row][mask[row]].tolist()
        expected: list[int] = []
        while len(expected) < GREEDY.max_tokens and guided.end not in expected:
            expected.append(int(guided_logprobs(guided, memory[[row]], expected, gamma).argmax()))
        assert found == expected
    assert index.tolist() == [0, 1, 2, 3]
    # Captions that no guidance changed would prove nothing.
    assert tokens.tolist() != guided.generate(memory, GREEDY)[0].tolist()
    assert gamma == 0 or not mask.all()


def test_guidance_by_one_is_greedy_decoding_at_no_cost(
    guided: VisionEncoderDecoder, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = strong_memory(guided, images)
    rows = []
    decode = guided.model.generate
    monkeypatch.setattr(
        guided.model,
        "generate",
        lambda **kwargs: rows.append(len(kwargs["encoder_outputs"].last_hidden_state)) or decode(**kwargs),
    )
    greedy, nearly = (guided.generate(memory, replace(GREEDY, guidance=gamma))[0] for gamma in (1.0, 1.0 + 1e-6))
    assert rows == [4, 8]
    assert torch.equal(greedy, nearly)


def test_guided_beam_search_finds_the_likeliest_caption_by_guided_probabilities(images: Tensor) -> None:
    """With as many beams as words it is exhaustive for two tokens: the mean log-probability decides."""
    captioner = make_captioner()
    words = range(len(captioner.tokenizer))
    memory = strong_memory(captioner, images)
    sampler = Sampler(method="beam", beams=len(words), max_tokens=2, guidance=2.0)
    tokens, mask, _ = captioner.generate(memory, sampler)
    for row in range(len(images)):
        first = guided_logprobs(captioner, memory[[row]], [], 2.0)
        scores = {(captioner.end,): float(first[captioner.end])}
        for word in words:
            if word != captioner.end:
                second = guided_logprobs(captioner, memory[[row]], [word], 2.0)
                scores |= {(word, last): float(first[word] + second[last]) / 2 for last in words}
        assert tuple(tokens[row][mask[row]].tolist()) == max(scores, key=lambda caption: scores[caption])


@pytest.mark.parametrize("no_repeat_ngram", [0, 2])
def test_both_halves_of_a_guided_beam_search_hold_the_same_beams(
    guided: VisionEncoderDecoder, images: Tensor, no_repeat_ngram: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a cache would mix one caption given the image with another given none: the score tells."""
    decode, outputs = guided.model.generate, []

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        config = kwargs["generation_config"]
        config.output_scores = config.return_dict_in_generate = True
        outputs.append(decode(*args, **kwargs))
        return outputs[0].sequences

    monkeypatch.setattr(guided.model, "generate", spy)
    memory = strong_memory(guided, images)
    sampler = Sampler(method="beam", beams=5, max_tokens=12, guidance=1.5, no_repeat_ngram=no_repeat_ngram)
    tokens, mask, _ = guided.generate(memory, sampler)
    (output,) = outputs
    assert torch.equal(*output.sequences.chunk(2))
    assert torch.equal(*output.sequences_scores.chunk(2))
    assert tokens.shape[0] == 4
    if not no_repeat_ngram:  # that rule takes probability away after the score was normalised
        for row in range(len(images)):
            caption = tokens[row][mask[row]].tolist()
            steps = [guided_logprobs(guided, memory[[row]], caption[:t], 1.5)[token] for t, token in enumerate(caption)]
            assert float(output.sequences_scores[row]) == pytest.approx(float(sum(steps)) / len(steps), abs=1e-4)


def test_what_another_rule_forbids_stays_forbidden_under_guidance(images: Tensor) -> None:
    """A forbidden token has log-probability -inf with and without the image: their difference is not a number."""
    captioner = make_captioner()
    tokens, mask, _ = captioner.generate(
        strong_memory(captioner, images), replace(GREEDY, no_repeat_ngram=1, guidance=3.0, max_tokens=15)
    )
    for row, keep in zip(tokens, mask, strict=True):
        assert len(row[keep].unique()) == keep.sum()
    assert mask.sum(1).max() > 2


def test_guided_samples_are_refused_for_they_would_be_off_policy() -> None:
    with pytest.raises(UserError, match=r"guidance 2\.0 of multinomial samples.* method: greedy"):
        Sampler(samples=2, guidance=2.0)


def test_an_unknown_image_is_a_memory_of_zeros() -> None:
    captioner = make_captioner()
    memory = captioner.encode(torch.rand(2, 3, 32, 32))
    assert torch.equal(captioner.unknown(memory), torch.zeros(2, 17, 16))  # a class token and 4 x 4 patches


def mle_memory(drop_image: float, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """What a training step encoded and what it scored by, both (B, S, E)."""
    captioner = make_captioner()
    stage = MLE(captioner, drop_image=drop_image)
    seen = []
    score = captioner.score
    monkeypatch.setattr(captioner, "score", lambda memory, *args: seen.append(memory) or score(memory, *args))
    torch.manual_seed(0)
    stage.training_step(batch, 0).backward()
    return captioner.encode(batch.images), seen[0]


def test_a_share_of_the_images_is_withheld_whole_in_training(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400 images at 0.25, 100 are expected; fewer than 65 or more than 135 have odds of one in ten thousand."""
    batch = Batch(images.repeat(100, 1, 1, 1), [CAPTIONS[:1]] * 400, list(range(400)))
    encoded, scored = mle_memory(0.25, batch, monkeypatch)
    withheld = (scored == 0).flatten(1).all(1)
    assert 65 <= withheld.sum() <= 135
    assert torch.equal(scored[~withheld], encoded[~withheld])


@pytest.mark.parametrize(("drop_image", "unknown"), [(0.0, 0), (1.0, 4)])
def test_no_image_or_all_of_them_can_be_withheld(
    batch: Batch, drop_image: float, unknown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, scored = mle_memory(drop_image, batch, monkeypatch)
    assert int((scored == 0).flatten(1).all(1).sum()) == unknown


def test_a_share_that_is_none_is_one_error() -> None:
    with pytest.raises(UserError, match=r"drop_image is 1\.5; it takes a number from 0 to 1"):
        MLE(make_captioner(), drop_image=1.5)


def rl_stage(captioner: VisionEncoderDecoder) -> RL:
    stage = RL(
        captioner,
        rewards={"words": WordCount()},
        baseline=Greedy(),
        objective={"policy_gradient": PolicyGradient(), "weighted": WeightedTeacherForcing()},
        sampler=Sampler(samples=3, max_tokens=8),
        decoder=GREEDY,
    )
    stage._reference = [make_captioner()]
    stage._cider = CiderD({10: CAPTIONS[:2], 11: CAPTIONS[1:3], 12: CAPTIONS[2:4], 13: CAPTIONS[3:]})
    stage._gather = alone  # there is no trainer to ask for the number of processes
    return stage


def test_an_rl_step_samples_and_scores_without_dropout(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the samples would be another policy's than the one that is updated (trap 7)."""
    stage = rl_stage(make_captioner(dropout=0.5)).train()
    modes = []
    for name in ("encode", "generate", "score"):
        method = getattr(stage.captioner, name)

        def spy(*args: Any, method: Any = method) -> Any:
            modes.append([module.training for module in stage.captioner.modules()])
            return method(*args)

        monkeypatch.setattr(stage.captioner, name, spy)
    stage.training_step(batch, 1)
    assert modes
    assert not any(any(mode) for mode in modes)


def test_an_rl_step_encodes_each_image_once(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three samples, the greedy caption and the ground truth share the encoder's work."""
    stage = rl_stage(make_captioner())
    calls = []
    encode = stage.captioner.model.encoder.forward
    monkeypatch.setattr(
        stage.captioner.model.encoder,
        "forward",
        types.MethodType(lambda self, **kwargs: calls.append(len(kwargs["pixel_values"])) or encode(**kwargs), stage),
    )
    stage.training_step(batch, 1)
    assert calls == [4]


def test_the_gradient_of_an_rl_step_reaches_encoder_and_decoder(batch: Batch) -> None:
    stage = rl_stage(make_captioner())
    stage.training_step(batch, 1).backward()
    for part in (stage.captioner.model.encoder, stage.captioner.model.decoder):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


class Rival(WordCount):
    """A reward that compares with the ground truth, as the contrastive one does."""

    def forward(self, rollout: Rollout, experience: Experience) -> Tensor:
        return super().forward(rollout, experience) - len(experience.ground_truth.captions[0].split())


def test_human_captions_keep_their_gradient_when_a_reward_reads_them_first(batch: Batch) -> None:
    """Rewards have no gradient, but what they compute on the way is shared with weighted teacher forcing (trap 1)."""
    stage = rl_stage(make_captioner())
    stage.rewards["words"] = Rival()
    del stage.objective["policy_gradient"]
    stage.training_step(batch, 1).backward()
    assert sum(p.grad.abs().sum() for p in stage.captioner.parameters() if p.grad is not None) > 0


def test_a_frozen_encoder_gets_no_gradient(batch: Batch) -> None:
    stage = rl_stage(make_captioner(freeze_encoder=True))
    stage.training_step(batch, 1).backward()
    assert all(p.grad is None for p in stage.captioner.model.encoder.parameters())


def test_a_frozen_encoder_does_not_move_in_training(images: Tensor) -> None:
    """Batch normalisation would follow the images, gradient or none."""
    captioner = make_captioner(encoder=CONVOLUTIONAL, freeze_encoder=True).train()
    before = {name: value.clone() for name, value in captioner.model.encoder.state_dict().items()}
    captioner.encode(images)
    after = captioner.model.encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert captioner.model.decoder.training


def test_captions_survive_tokens_and_back(captioner: VisionEncoderDecoder) -> None:
    tokens, mask = captioner.tokenize(CAPTIONS)
    assert captioner.detokenize(tokens, mask) == CAPTIONS


def test_every_tokenised_caption_ends_with_the_end_token(captioner: VisionEncoderDecoder) -> None:
    tokens, mask = captioner.tokenize(CAPTIONS)
    last = mask.sum(1) - 1
    assert (tokens[torch.arange(len(tokens)), last] == captioner.end).all()
    assert ((tokens == captioner.end) & mask).sum(1).tolist() == [1] * len(CAPTIONS)


def test_a_long_caption_is_cut_and_still_ends() -> None:
    captioner = make_captioner(max_tokens=4)
    tokens, mask = captioner.tokenize(["a dog on a porch", "a cat"])
    assert tokens.shape == (2, 4)
    assert tokens[0, -1] == captioner.end
    assert captioner.detokenize(tokens, mask) == ["a dog on", "a cat"]


def test_a_saved_captioner_scores_as_before(captioner: VisionEncoderDecoder, images: Tensor, tmp_path: Path) -> None:
    captioner.save_pretrained(tmp_path / "saved")
    loaded = VisionEncoderDecoder(str(tmp_path / "saved")).eval()
    scores = []
    for one in (captioner, loaded):
        tokens, mask = one.tokenize(CAPTIONS[:4])
        scores.append(one.score(one.encode(images), tokens, mask, torch.arange(4)))
    assert torch.equal(*scores)


def test_hugging_face_reads_a_saved_captioner_and_decodes_the_same(tmp_path: Path, images: Tensor) -> None:
    from transformers import AutoTokenizer, VisionEncoderDecoderModel

    captioner = make_captioner()
    captioner.save_pretrained(tmp_path)
    model = VisionEncoderDecoderModel.from_pretrained(tmp_path).eval()
    pixels = (images - captioner.mean) / captioner.std
    found = model.generate(pixel_values=pixels, max_new_tokens=12, do_sample=False)
    tokens, mask, _ = captioner.generate(captioner.encode(images), GREEDY)
    words = AutoTokenizer.from_pretrained(tmp_path).batch_decode(found, skip_special_tokens=True)
    assert words == captioner.detokenize(tokens, mask)


def test_a_run_folder_stands_for_the_captioner_in_it(tmp_path: Path) -> None:
    captioner = make_captioner()
    captioner.save_pretrained(tmp_path / "captioner")
    assert VisionEncoderDecoder(str(tmp_path)).tokenizer.get_vocab() == captioner.tokenizer.get_vocab()


def test_images_of_a_wrong_size_are_one_error_that_names_the_option() -> None:
    with pytest.raises(UserError, match=r"32 pixels, got 64; set --data\.image_size=32"):
        make_captioner().encode(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["runs/nothing", "./nothing", "/nothing/at/all"])
def test_a_missing_captioner_is_one_error_that_tells_how_to_train_it(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: no captioner there; train it first"):
        VisionEncoderDecoder(name)


def test_a_folder_that_holds_something_else_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="cannot be loaded"):
        VisionEncoderDecoder(str(tmp_path))
