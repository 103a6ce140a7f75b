"""Which objective the settings name."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.pairs import PairSet
from ..distributed import Gathering
from ..model.policy import Policy
from ..settings.config import Config
from .distillation import Distillation
from .last_steps import LastSteps
from .objective import Objective
from .online import Score
from .policy_gradient import PolicyGradient
from .predicted_x0 import PredictedX0
from .preference import Preference


def objective_of(
    config: Config, policy: Policy, score: Score | None, items: Sequence[str] | PairSet, gathering: Gathering
) -> Objective:
    """The objective of `config.algorithm`. items: the prompts, or for dpo the pairs.

    policy: an ImagePolicy for dpo, a TaughtPolicy for distil.
    """
    if config.algorithm == "dpo":
        return Preference(config, policy, items)
    if config.algorithm == "distil":
        kind = Distillation
    elif config.algorithm == "draft":
        kind = PredictedX0 if config.draft.through == "x0" else LastSteps
    else:
        kind = PolicyGradient
    return kind(config, policy, score, items, gathering)
