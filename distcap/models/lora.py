"""Low-rank adapters: a large language model learns by a few million weights."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distcap.checks import above, at_least, share
from distcap.types import UserError

FILE = "adapters.safetensors"
"""Beside a captioner's merged weights: its adapters, and the weights that they were added to, in their few bits."""


@dataclass
class Lora:
    """W x + (alpha / r) B A x, of which A and B learn (Hu et al. 2022, arXiv 2106.09685); by `peft`.

    Args:
        targets: names of the language model's layers that are adapted, e.g. [q_proj, v_proj].
        r: rank of B A.
        alpha: scale of the adapters, divided by r.
        dropout: of their input, in training mode.
        base: precision in which the frozen weights are kept; adapters are float32. A captioner with a bfloat16 base is
            saved with its adapted weights twice: merged in float32, and apart in adapters.safetensors.

    Raises:
        UserError: a number is out of range; or, when added to a model, it has no layers of these names.
    """

    targets: list[str]
    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    base: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not self.targets or not all(isinstance(target, str) and target for target in self.targets):
            raise UserError(f"lora.targets is {self.targets}; it takes names of layers, e.g. [q_proj, v_proj]")
        at_least("lora.r", self.r, 1)
        above("lora.alpha", self.alpha, 0)
        share("lora.dropout", self.dropout, one=False)

    def add_to(self, model: nn.Module) -> None:
        """Put adapters into the model, which does not change what it says: B starts at zero."""
        from peft import LoraConfig, inject_adapter_in_model

        names = [
            name for name, module in model.named_modules() if "weight" in dict(module.named_parameters(recurse=False))
        ]
        ends = sorted({name.rsplit(".", 1)[-1] for name in names})
        if unknown := [target for target in self.targets if not any(_is(name, target) for name in names)]:
            raise UserError(f"lora.targets {unknown}: the language model has no such layers; it has {', '.join(ends)}")
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=self.targets,  # type: ignore[arg-type]
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # it sees by itself what GPT-2 has
                inject_adapter_in_model(config, model)
        except ValueError as error:
            raise UserError(f"lora.targets {self.targets}: {' '.join(str(error).split())[:300]}") from error
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)


def _is(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model whose adapters are part of them, under the names they have without adapters.

    Adapted weights are float32, whatever precision their base has: of a small difference a bfloat16 would lose most.
    """
    layers = _adapted(model)
    weights = {}
    with torch.no_grad():
        for name, value in model.state_dict().items():
            layer = next((one for one in layers if name.startswith(f"{one}.")), None)
            if layer is None:
                weights[name] = value
            elif (rest := name.removeprefix(f"{layer}.")).startswith("base_layer."):
                part = rest.removeprefix("base_layer.")
                adapted = part == "weight"
                weights[f"{layer}.{part}"] = (
                    value.float() + layers[layer].get_delta_weight("default").float() if adapted else value
                )
    return weights


def save_adapters(model: nn.Module, lora: Lora, folder: Path) -> None:
    """Write FOLDER/adapters.safetensors, so that a captioner can go on exactly as what it was, not as its merged twin.

    The two differ by rounding where the base is kept in fewer bits than the adapters.
    """
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in _parts(model).items()}
    save_file(weights, folder / FILE, {"lora": json.dumps(_settings(lora))})


def load_adapters(model: nn.Module, lora: Lora, folder: Path) -> None:
    """Go on with the adapters of a captioner that was saved; nothing if it had none.

    With other settings than theirs, new adapters are added to the merged weights.

    Raises:
        UserError: those would be kept in bfloat16, which loses what the adapters learnt; or the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not (file := folder / FILE).is_file():
        return
    try:
        with safe_open(file, "pt") as saved:
            settings = json.loads((saved.metadata() or {}).get("lora", "null"))
            if settings != _settings(lora):
                if lora.base != "float32":
                    raise UserError(
                        f"{folder} has adapters of {settings}, and lora asks for {_settings(lora)}; take the same "
                        "settings to go on with them, or base: float32 to add others"
                    )
                return
            parts = _parts(model)
            found = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}); train the captioner again, or get the folder again") from error
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in parts.items()}:
        raise UserError(
            f"{file} does not fit the weights beside it; train the captioner again, or get the folder again"
        )
    with torch.no_grad():
        for name, value in found.items():
            parts[name].copy_(value)


def _settings(lora: Lora) -> dict[str, Any]:
    """What decides which adapters there are, and what they add."""
    return {"targets": sorted(lora.targets), "r": lora.r, "alpha": float(lora.alpha)}


def _adapted(model: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def _parts(model: nn.Module) -> dict[str, Tensor]:
    """Of every adapted layer its base weight, A and B; as they are, not copied."""
    return {
        f"{name}.{part}": weight.detach()
        for name, layer in _adapted(model).items()
        for part, weight in (
            ("base", layer.base_layer.weight),
            ("A", layer.lora_A["default"].weight),
            ("B", layer.lora_B["default"].weight),
        )
    }
