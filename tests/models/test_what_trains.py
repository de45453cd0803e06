"""What of a captioner learns: all of it, all but its image encoder, or adapters; and how its gradient is computed."""

import copy
import json
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from tiny import CAPTIONS, CONVOLUTIONAL, make_captioner
from torch import Tensor, nn

from distcap.models import Lora, Sampler
from distcap.models.lora import merged
from distcap.stages.rl import frozen_copy
from distcap.types import UserError

FAMILIES = list(families.WRITERS)
GREEDY = Sampler(method="greedy", max_tokens=10)
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def likelihood(captioner: Any) -> Tensor:
    tokens, mask = captioner.tokenize(CAPTIONS[:4])
    return captioner.score(captioner.encode(IMAGES), tokens, mask, torch.arange(4)).sum()


def moved(captioner: Any) -> set[str]:
    """The parameters that the gradient reaches."""
    captioner.zero_grad()
    likelihood(captioner).backward()
    return {name for name, p in captioner.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def spread_adapters(captioner: Any) -> Any:
    """B starts at zero: give it something to add."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in captioner.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return captioner


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_reaches_what_trains_and_nothing_else(family: str, shelf: Path) -> None:
    whole = families.load(family, shelf / family)
    encoder = {id(parameter) for parameter in whole.encoder.parameters()}
    within = {name for name, parameter in whole.named_parameters() if id(parameter) in encoder}
    rest = {name for name, _ in whole.named_parameters()} - within
    reached = moved(whole)
    assert len(reached & within) > len(within) / 2  # poolers and the like are never used
    assert len(reached & rest) > len(rest) / 2

    frozen = families.load(family, shelf / family, **{"freeze_encoder": True}).train()
    assert moved(frozen) == reached & rest
    assert not frozen.encoder.training

    adapted = spread_adapters(families.load(family, shelf / family, lora=families.lora(family)))
    reached = moved(adapted)
    assert reached == {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "mapping" in name for name in reached)
    assert any("lora_B" in name for name in reached)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", ["all", "frozen encoder", "adapters"])
def test_whatever_learns_is_reached_by_the_gradient(family: str, option: str, shelf: Path) -> None:
    """Else plain `ddp`, which waits for every gradient, ends with an error at the second step."""
    lora = families.lora(family) if option == "adapters" else None
    captioner = families.load(family, shelf / family, freeze_encoder=option == "frozen encoder", lora=lora)
    spread_adapters(captioner)
    likelihood(captioner).backward()
    waiting = {name for name, p in captioner.named_parameters() if p.requires_grad and p.grad is None}
    assert not waiting


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_a_score_is_its_slope(family: str, shelf: Path) -> None:
    """By the mean of two steps along the gradient, a tenth of the score apart in all."""
    captioner = families.load(family, shelf / family)
    likelihood(captioner).backward()
    slopes = [(p, p.grad) for p in captioner.parameters() if p.grad is not None]
    square = sum(grad.square().sum() for _, grad in slopes)
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            for parameter, grad in slopes:
                parameter.add_(grad, alpha=sign * 0.05 / float(square))
            values.append(likelihood(captioner))
            for parameter, grad in slopes:
                parameter.sub_(grad, alpha=sign * 0.05 / float(square))
    assert (values[0] - values[1]).item() == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_computes_layers_twice_in_eval_mode_too_and_changes_no_gradient(family: str, shelf: Path) -> None:
    gradients, calls, words = [], [], []
    for checkpointing in (False, True):
        captioner = families.load(family, shelf / family, gradient_checkpointing=checkpointing)
        # A copy computes its own layers, not those that it was copied from.
        captioner = copy.deepcopy(captioner)
        inner = [part for part in captioner.language_model.modules() if isinstance(part, nn.LayerNorm)] or [
            part for part in captioner.language_model.modules() if type(part).__name__.endswith("RMSNorm")
        ]
        count: list[int] = []
        handles = [part.register_forward_hook(lambda *_, count=count: count.append(1)) for part in inner]
        loss = likelihood(captioner)
        forward = len(count)
        loss.backward()
        for handle in handles:
            handle.remove()
        calls.append((forward, len(count)))
        gradients.append({name: p.grad for name, p in captioner.named_parameters() if p.grad is not None})
        words.append(captioner.generate(captioner.encode(IMAGES), GREEDY)[0])
    assert torch.equal(*words)
    (stored, unchanged), (again, more) = calls
    assert stored == unchanged == again
    assert more > again
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        assert torch.equal(gradients[1][name], value), name


def test_checkpointing_keeps_the_dropout_it_drew(shelf: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        captioner = make_captioner(dropout=0.5, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(0)
        likelihood(captioner).backward()
        gradients.append([p.grad for p in captioner.parameters() if p.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_network_without_layers_to_checkpoint_is_one_error() -> None:
    from distcap.models.checkpointing import checkpoint_layers

    with pytest.raises(UserError, match="Linear has no layers that can do it"):
        checkpoint_layers(nn.Linear(2, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_captioner_with_adapters_is_saved_with_merged_weights(family: str, shelf: Path, tmp_path: Path) -> None:
    plain = families.load(family, shelf / family)
    adapted = families.load(family, shelf / family, lora=families.lora(family))
    torch.testing.assert_close(likelihood(adapted), likelihood(plain))  # B starts at zero
    spread_adapters(adapted)
    assert (likelihood(adapted) - likelihood(plain)).abs() > 0.01
    adapted.save_pretrained(tmp_path)
    merged = families.load(family, tmp_path)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in plain.named_parameters()}
    torch.testing.assert_close(likelihood(merged), likelihood(adapted), atol=1e-4, rtol=1e-5)
    words = [one.generate(one.encode(IMAGES), GREEDY)[0] for one in (merged, adapted)]
    assert torch.equal(*words)


@pytest.mark.parametrize("family", ["smolvlm", "clipcap"])
def test_frozen_weights_can_be_kept_in_fewer_bits_than_what_learns(family: str, shelf: Path, tmp_path: Path) -> None:
    captioner = families.load(family, shelf / family, lora=families.lora(family, base="bfloat16"))
    precisions = {(p.requires_grad, p.dtype) for p in captioner.parameters()}
    assert precisions == {(True, torch.float32), (False, torch.bfloat16)}
    likelihood(captioner).backward()
    captioner.generate(captioner.encode(IMAGES), GREEDY)
    captioner.save_pretrained(tmp_path)
    assert {p.dtype for p in families.load(family, tmp_path).parameters()} == {torch.float32}


def learnt_a_little(family: str, shelf: Path, **kwargs: Any) -> Any:
    """Adapters that add a hundredth of the weights, to a base of bfloat16: rounded to it, most would be lost."""
    captioner = families.load(family, shelf / family, lora=families.lora(family, base="bfloat16", **kwargs))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in captioner.named_parameters():
            if "lora_B" in name:
                parameter.copy_(3e-4 * torch.randn(parameter.shape, generator=generator))
    return captioner


@pytest.mark.parametrize("family", FAMILIES)
def test_a_captioner_on_a_coarse_base_comes_back_as_what_was_trained(family: str, shelf: Path, tmp_path: Path) -> None:
    trained = learnt_a_little(family, shelf)
    trained.save_pretrained(tmp_path)
    again = families.load(family, tmp_path, lora=families.lora(family, base="bfloat16"))
    assert torch.equal(likelihood(again), likelihood(trained))
    words = [one.generate(one.encode(IMAGES), GREEDY)[0] for one in (again, trained)]
    assert torch.equal(*words)
    # Whoever knows of no adapters, in float32: what was trained, without the rounding of its arithmetic.
    exact = likelihood(copy.deepcopy(trained).float())
    plain = likelihood(families.load(family, tmp_path))
    untrained = likelihood(families.load(family, shelf / family).bfloat16().float())
    torch.testing.assert_close(plain, exact, atol=1e-4, rtol=1e-6)
    assert (exact - untrained).abs() > 20 * (plain - exact).abs()


def test_merged_weights_on_a_coarse_base_lose_nothing_of_what_was_learnt(shelf: Path, tmp_path: Path) -> None:
    trained = learnt_a_little("vision_encoder_decoder", shelf)
    layer = trained.model.decoder.transformer.h[0].attn.c_attn
    base, delta = layer.base_layer.weight.float(), layer.get_delta_weight("default")
    weight = merged(trained.model)["decoder.transformer.h.0.attn.c_attn.weight"]
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight - base, delta, atol=1e-7, rtol=0)
    rounded = (base + delta).bfloat16().float() - base
    assert (rounded - delta).norm() > 0.2 * delta.norm()


@pytest.mark.parametrize("family", ["vision_encoder_decoder", "blip2", "qwen_vl"])
def test_hugging_face_reads_the_merged_weights_in_full_precision(family: str, shelf: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    trained = learnt_a_little(family, shelf)
    trained.save_pretrained(tmp_path)
    weights = AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict()
    for name, value in merged(trained.model).items():
        if name in weights:  # tied ones have one name
            assert torch.equal(weights[name], value.float()), name


def test_other_adapters_on_a_coarse_base_are_refused_and_on_a_fine_one_added(shelf: Path, tmp_path: Path) -> None:
    trained = learnt_a_little("blip", shelf)
    trained.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"'r': 2.*'r': 2, 'alpha': 8.*base: float32"):
        families.load("blip", tmp_path, lora=families.lora("blip", base="bfloat16", alpha=8.0))
    added = families.load("blip", tmp_path, lora=families.lora("blip", alpha=8.0))
    torch.testing.assert_close(likelihood(added), likelihood(families.load("blip", tmp_path)))


@pytest.mark.parametrize("damage", ["cut", "other shapes"])
def test_damaged_adapters_are_one_error(damage: str, shelf: Path, tmp_path: Path) -> None:
    learnt_a_little("blip", shelf).save_pretrained(tmp_path)
    file = tmp_path / "adapters.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    else:
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        with safe_open(file, "pt") as saved:
            metadata = saved.metadata()
        save_file({name: value[:1].contiguous() for name, value in load_file(file).items()}, file, metadata)
    with pytest.raises(UserError, match=r"adapters\.safetensors (is damaged|does not fit)"):
        families.load("blip", tmp_path, lora=families.lora("blip", base="bfloat16"))


def test_an_export_has_merged_weights_and_no_adapters(shelf: Path, tmp_path: Path) -> None:
    trained = learnt_a_little("vision_encoder_decoder", shelf)
    trained.export(tmp_path, GREEDY)
    assert not (tmp_path / "adapters.safetensors").exists()
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_layers_that_are_not_there_are_one_error_that_names_those_that_are(shelf: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.targets \['q_proj'\]: .* no such layers; it has .*c_attn"):
        families.load("clipcap", shelf / "clipcap", lora=Lora(["c_attn", "q_proj"]))


def test_the_frozen_copy_shares_what_is_frozen_and_nothing_that_learns(shelf: Path) -> None:
    captioner = spread_adapters(families.load("qwen_vl", shelf / "qwen_vl", lora=families.lora("qwen_vl")))
    reference = frozen_copy(captioner)
    before = likelihood(reference)
    assert torch.equal(before, likelihood(captioner))
    pairs = zip(captioner.parameters(), reference.parameters(), strict=True)
    assert all((mine is theirs) != mine.requires_grad for mine, theirs in pairs)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    with torch.no_grad():
        for parameter in captioner.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert torch.equal(likelihood(reference), before)
    assert not torch.equal(likelihood(captioner), before)


def test_a_resnet_encoder_does_not_stop_the_decoder_from_being_checkpointed() -> None:
    captioner = make_captioner(encoder=CONVOLUTIONAL, gradient_checkpointing=True)
    assert moved(captioner) == moved(make_captioner(encoder=CONVOLUTIONAL))
