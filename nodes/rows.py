"""Which networks keep the rows of a batch apart, so that one pass may hold several variants.

The bank gives every row of a layer's input the delta of that row's variant. A network whose layers get frames or tokens
first, or images in one list, would give rows another variant's delta, and where the counts fit nobody would notice.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..blend_core import agree

APART = {
    "GeneralDIT": "its layers get frames first",  # Cosmos 1
    "HunYuanDiT": "its pooler gets tokens first",
    "HiDreamImageTransformer2DModel": "its experts get the tokens of all images in one list",
}
"""Networks, by class, in which rows cannot be told apart: no pass of theirs holds two variants."""

TESTED = frozenset({
    "Chroma", "CogVideoXTransformer3DModel", "Flux", "HunyuanVideo", "Kandinsky5", "LTXVModel", "MMDiT", "MiniTrainDIT",
    "NextDiT", "OpenAISignatureMMDITWrapper", "PixArtMS", "QwenImageTransformer2DModel", "SingleStreamDiT", "UNetModel",
    "WanModel",
})  # fmt: skip
"""Classes of networks whose batches of unlike variants tests/comfyui/test_families.py holds against merged copies."""

_shown: dict[type, bool] = {}  # what other classes have shown in this process: whether they keep rows apart


def network_of(model: nn.Module) -> nn.Module:
    """ComfyUI's model without its envelopes; torch.compile puts one around the network."""
    return getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)


def keeps_rows_apart(model: nn.Module) -> bool | None:
    """Whether a pass may hold several variants; None while it is unknown."""
    kind = type(network_of(model))
    if not APART.keys().isdisjoint(base.__name__ for base in kind.mro()):
        return False
    return True if kind.__name__ in TESTED else _shown.get(kind)


def note(model: nn.Module, together: Tensor, alone: Tensor) -> bool:
    """Whether the model keeps rows apart, by two evaluations of the same variants; kept for the process. See agree."""
    kept = _shown[type(network_of(model))] = agree(together, alone)
    return kept
