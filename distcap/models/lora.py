"""Low-rank adapters: a large language model learns by a few million weights."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distcap.checks import above, at_least, share
from distcap.types import UserError


@dataclass
class Lora:
    """W x + (alpha / r) B A x, of which A and B learn (Hu et al. 2022, arXiv 2106.09685); by `peft`.

    Args:
        targets: names of the language model's layers that are adapted, e.g. [q_proj, v_proj].
        r: rank of B A.
        alpha: scale of the adapters, divided by r.
        dropout: of their input, in training mode.
        base: precision in which the frozen weights are kept; adapters are float32.

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
    """The weights of a model whose adapters are part of them, under the names they have without adapters."""
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    weights = {}
    with torch.no_grad():
        for name, value in model.state_dict().items():
            layer = next((one for one in layers if name.startswith(f"{one}.")), None)
            if layer is None:
                weights[name] = value
            elif (rest := name.removeprefix(f"{layer}.")).startswith("base_layer."):
                part = rest.removeprefix("base_layer.")
                added = layers[layer].get_delta_weight("default") if part == "weight" else 0
                weights[f"{layer}.{part}"] = (value + added).to(value.dtype)
    return weights
