"""Which networks keep the rows of a batch apart, so that one pass may hold several variants.

The bank gives every row of a layer's input the delta of that row's variant. A network whose layers get frames or tokens
first, or images in one list, would give rows another variant's delta, and where the counts fit nobody would notice.
"""

from __future__ import annotations

from torch import Tensor, nn

from ....blend_core.network.execution import agree
from ..private import network_of

APART = {
    "GeneralDIT": "its layers get frames first",  # Cosmos 1
    "HunYuanDiT": "its pooler gets tokens first",
    "HiDreamImageTransformer2DModel": "its experts get the tokens of all images in one list",
    "SVD_img2vid": "the images of a batch are the frames of one video",
    "AceStepConditionGenerationModel": "the timbres of all images of a batch go to its first",
    "NaDiT": "it tells the prompt from the negative one by the halves of a batch",  # SeedVR2
    "MiniMaxH3Model": "it takes one image a pass",
}
"""Networks, by their class or that of ComfyUI's model around them, in which rows cannot be told apart: no pass of
theirs holds two variants."""

MIXED = ("SVD_img2vid", "AceStepConditionGenerationModel")
"""Those of them in which one image of a batch changes another, so that all take one choice."""

TESTED = frozenset({
    "ACEStepTransformer2DModel", "Anima", "AnimateWanModel", "AsymmDiTJoint", "AudioDiffusionTransformer",
    "BooguTransformer2DModel", "CameraWanModel", "CausalWanModel", "Chroma", "ChromaRadiance",
    "CogVideoXTransformer3DModel", "ErnieImageModel", "Flux", "HiDreamO1Transformer", "HumoWanModel",
    "HunyuanVideo", "Ideogram4Transformer2DModel", "JoyImageTransformer3DModel", "Kandinsky5", "LTXAVModel",
    "LTXVModel", "LensTransformer2DModel", "MMDiT", "MageFlowTransformer2DModel", "MiniMaxMusic3DiT",
    "MiniTrainDIT", "NextDiT", "NextDiTPixelSpace", "OmniGen2Transformer2DModel", "OpenAISignatureMMDITWrapper",
    "PidNet", "PixArtMS", "PixDiT_T2I", "QwenImageTransformer2DModel", "SCAIL2WanModel", "SCAILWanModel",
    "SingleStreamDiT", "StageB", "StageC", "UNetModel", "VaceWanModel", "WanAnimate2Model", "WanDancerModel",
    "WanModel", "WanModel_S2V",
})  # fmt: skip
"""Classes of networks whose batches of different variants tests/comfyui/test_families.py compares with merged
copies."""

_shown: dict[type, bool] = {}  # what other classes have shown in this process: whether they keep rows apart


def keeps_rows_apart(model: nn.Module) -> bool | None:
    """Whether a pass may hold several variants; None while it is unknown."""
    kind = type(network_of(model))
    if not APART.keys().isdisjoint(_kinds(model)):
        return False
    return True if kind.__name__ in TESTED else _shown.get(kind)


def mixes_images(model: nn.Module) -> bool:
    """Whether one image of a batch changes another."""
    return not _kinds(model).isdisjoint(MIXED)


def _kinds(model: nn.Module) -> set[str]:
    """The names of all classes that the network and ComfyUI's model around it are of."""
    return {base.__name__ for part in (network_of(model), model) for base in type(part).mro()}


def note(model: nn.Module, together: Tensor, separate: Tensor) -> bool:
    """Whether the model keeps rows apart, by two evaluations of the same variants; kept for the process. See agree."""
    apart = _shown[type(network_of(model))] = agree(together, separate)
    return apart
