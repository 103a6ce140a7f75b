"""The nodes of Diffusion Blend, and the extension that lists them."""

from comfy_api.latest import ComfyExtension, io

from .blends import ApplyRewardLoRAs, BlendRegion, BlendWeights, KLInterpolate
from .diagnostics import Diagnostics
from .duel import BlendDuel
from .loaders import LoadRewardLoRA, ModelAsBasis, ModelAsRewardLoRA
from .maximin import MaximinKSampler
from .rewards import LoadRewardModel, PickBest, RewardScorer
from .samplers import ApplyBlend, BlendedKSampler, MSDDAKSampler, MSDDASampler, StochasticLSSampler
from .saving import SaveBlendAsLoRA
from .schedules import BlendSchedule, BlendWindow
from .sweep import ParetoPlot, Sweep, SweepGrid


class DiffusionBlendExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes; their ids are final, because saved workflows hold them."""
        return [
            LoadRewardLoRA,
            ModelAsRewardLoRA,
            BlendWeights,
            BlendDuel,
            KLInterpolate,
            BlendSchedule,
            BlendRegion,
            BlendWindow,
            ApplyBlend,
            ApplyRewardLoRAs,
            BlendedKSampler,
            StochasticLSSampler,
            MSDDASampler,
            MSDDAKSampler,
            Diagnostics,
            MaximinKSampler,
            LoadRewardModel,
            RewardScorer,
            PickBest,
            Sweep,
            SweepGrid,
            ParetoPlot,
            SaveBlendAsLoRA,
            ModelAsBasis,
        ]
