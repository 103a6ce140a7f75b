"""Whole models as bases: a network of their own next to the base's, which ComfyUI loads, counts and evicts with it.

A whole model gives its weights, with what ComfyUI's loaders patched into them. Guidance, attention patches, ControlNets
and wrappers come from the model that is blended, and reach every basis.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import comfy.model_management
import comfy.model_sampling
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor

from ....blend_core import BlendError
from ...types import KEY, Basis, WholeModel
from ..private import compiles, has_lora_hook, inner_apply_model, network_of, own_copy, reread

MODELS_KEY = f"{KEY}_models"
MB = 2**20


def whole_model(model, label: str, kl_weight: float | None, own_copy: bool) -> WholeModel:
    """`model` as a basis; own_copy: with weights that no other MODEL shares.

    Raises BlendError for a blended model, and for one with patches that a basis could not keep.
    """
    if KEY in _wrapped(model):
        raise BlendError(
            "this model is blended already, so it cannot be a basis of another blend. Connect the model from before "
            "Apply Blend; to mix blends, put all of their rewards into one Blend Weights node."
        )
    if patches := _patches(model):
        raise BlendError(
            f"this model carries patches besides those of its weights ({', '.join(patches)}), which a basis cannot "
            "keep. Connect the model from before them, and patch the one that goes into Apply Blend or the sampler: "
            "that reaches every basis."
        )
    return WholeModel(label, _copied(model) if own_copy else model, kl_weight)


def megabytes(model) -> float:
    """What the weights of a model take, in MiB."""
    return model.model_size() / MB


def network_name(model) -> str:
    """The class of a model's network, as ComfyUI calls it."""
    return type(network_of(model.model)).__name__


def _wrapped(model) -> set[str]:
    return {str(key) for of_kind in model.wrappers.values() for key, wrappers in of_kind.items() if wrappers}


def _patches(model) -> list[str]:
    options = {name for name, value in model.model_options.items() if name != "transformer_options" and value}
    inner = {name for name, value in model.model_options.get("transformer_options", {}).items() if value}
    objects = set(model.object_patches) - {"model_sampling"}
    return sorted(options | inner | objects | _wrapped(model))


def _copied(model):
    """A patcher with the same patches on a network of its own."""
    if model.injections:
        raise BlendError(
            "this model has a LoRA that was put into its modules (a bypass loader), which a copy of the weights would "
            "lose. Use ComfyUI's Load LoRA instead, or switch own_copy off."
        )
    comfy.model_management.unload_all_models()  # puts every patched weight back
    return own_copy(model, _fresh(model))


def _fresh(model) -> torch.nn.Module:
    """The network as its file has it: read again where ComfyUI knows how, else copied in memory."""
    if (network := reread(model)) is not None:
        return network
    if model.is_dynamic():
        raise BlendError(
            "this model streams its weights, and its loader does not say how to read them again, so they cannot be "
            "copied. Load it with ComfyUI's own Load Checkpoint or Load Diffusion Model."
        )
    config = model.model.model_config  # never written to, and its class has no way to be copied
    return copy.deepcopy(model.model, {id(config): config})


def moved(executor: WrapperExecutor, network: BaseModel) -> WrapperExecutor:
    """What APPLY_MODEL has still to do for the base, done upon another network: wrappers below ours, then the network.

    Compiled modules are left out, for they would put the base's in the place of the other's. Raises BlendError for
    LoRA hooks of a prompt, which change the base's weights alone.
    """
    if has_lora_hook(executor.class_obj.current_patcher):
        raise BlendError(
            "a prompt carries a LoRA hook, which changes the weights of the base model and would not reach a basis "
            "that is a whole model. Remove the hook, or put its LoRA into both models with Load LoRA."
        )
    done, rest = executor.wrappers[: executor.idx + 1], executor.wrappers[executor.idx + 1 :]
    rest = [wrapper for wrapper in rest if not compiles(wrapper)]
    return WrapperExecutor.new_class_executor(inner_apply_model(network), network, [*done, *rest], executor.idx)


class WholeModels:
    """The whole models among a blend's bases. Raises BlendError for those that do not go with the base."""

    def __init__(self, bases: Sequence[Basis], base):
        whole = {variant: basis for variant, basis in enumerate(bases, start=1) if isinstance(basis, WholeModel)}
        self._models: dict[BaseModel, ModelPatcher] = {}  # by network, so that a model that stands twice is loaded once
        for basis in whole.values():
            _check_like(basis, base)
            first = self._models.setdefault(basis.model.model, basis.model)
            if basis.model.model is base.model or not _same_weights(first, basis.model):
                raise BlendError(
                    f"{basis.label} shares its weights in memory with the base model or another basis (ComfyUI loads a "
                    "file once, however many loaders name it), and they cannot be patched in two ways at once. Switch "
                    "on own_copy of its Model as Reward LoRA node."
                )
        self.networks: dict[int, BaseModel] = {variant: basis.model.model for variant, basis in whole.items()}
        self.report = [_line(basis) for basis in whole.values()]
        if whole and (changed := _changed(base)):
            self.report.append(
                f"note: {' and '.join(changed)} of the base model do not act in whole models; put them into both"
            )

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(model.model_size() for model in self._models.values())

    def attach(self, patcher) -> None:
        """Have ComfyUI load them with `patcher`, and with its clones."""
        if self._models:
            patcher.set_additional_models(MODELS_KEY, list(self._models.values()))

    @contextmanager
    def running(self) -> Iterator[None]:
        """While open, each network knows its patcher, as ComfyUI has it during a run."""
        for network, model in self._models.items():
            network.current_patcher = model
        try:
            yield
        finally:
            for network in self._models:
                network.current_patcher = None


def _same_weights(first, second) -> bool:
    return first.patches_uuid == second.patches_uuid and first.object_patches == second.object_patches


def _line(basis: WholeModel) -> str:
    return f"{basis.label}: a whole model, {megabytes(basis.model):.0f} MB next to the base, in passes of its own"


def _changed(base) -> list[str]:
    """What was done to the base's own weights and modules."""
    modules = set(base.object_patches) - {"diffusion_model"} or base.injections
    return [name for name, changes in (("LoRAs", base.patches), ("patches of modules", modules)) if changes]


def _check_like(basis: WholeModel, base) -> None:
    for what, of_basis, expected in _compared(basis.model, base):
        if of_basis != expected:
            raise BlendError(
                f"{basis.label} is another kind of model than the base: {what} {of_basis}, expected {expected}. "
                "Connect to Model as Reward LoRA a model that was trained from this base."
            )


def _compared(model, base) -> Iterator[tuple[str, object, object]]:
    """(what, of the model, of the base): what has to be equal."""
    networks = [network_of(patcher.model) for patcher in (model, base)]
    yield "its network is", type(networks[0]).__name__, type(networks[1]).__name__
    shapes, expected = map(_shapes, networks)
    for name in [*expected, *(shapes.keys() - expected.keys())]:
        yield f"{name} has the shape", shapes.get(name), expected.get(name)
    yield "its latents are", type(model.model.latent_format).__name__, type(base.model.latent_format).__name__
    yield "it predicts as", _prediction(model), _prediction(base)
    yield "it runs on", model.load_device, base.load_device


def _shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    weights = {name: getattr(module, "weight", None) for name, module in network.named_modules()}
    return {name: tuple(weight.shape) for name, weight in weights.items() if weight is not None}


def _prediction(model) -> str:
    """eps, v, flow...: what ComfyUI's classes say of a model's output and its noise."""
    kinds = type(model.get_model_object("model_sampling")).mro()
    return " ".join(kind.__name__ for kind in kinds if kind.__module__ == comfy.model_sampling.__name__)
