"""The nodes of Diffusion Blend, and the extension that lists them."""

from comfy_api.latest import ComfyExtension, io

from .bases import LoadRewardLoRA, ModelAsBasis
from .blending import BlendRegion, BlendSchedule, BlendWeights, KLInterpolate
from .diagnosing import Diagnostics
from .dueling import BlendDuel
from .maximin import MaximinKSampler
from .sampling import ApplyBlend, BlendedKSampler, MSDDAKSampler, MSDDASampler, StochasticLSSampler
from .saving import SaveBlendAsLoRA
from .scoring import LoadRewardModel, PickBest, RewardScorer
from .sweeping import ParetoPlot, Sweep


class DiffusionBlendExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes; their ids are final, because saved workflows hold them."""
        return [
            LoadRewardLoRA,
            ModelAsBasis,
            BlendWeights,
            BlendDuel,
            KLInterpolate,
            BlendSchedule,
            BlendRegion,
            ApplyBlend,
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
            ParetoPlot,
            SaveBlendAsLoRA,
        ]
