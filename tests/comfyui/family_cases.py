"""A family made ready for a test: its model, two LoRAs as files, and copies of the model with each of them merged."""

from __future__ import annotations

from functools import cached_property, partial

import comfy.model_sampling
from torch import nn

from . import loras
from .every_family import empty
from .families import Family
from .graphs import Graph
from .reference import ROUNDING, assert_differ, assert_equal, blended_reference

ALIGNMENT = 1.2
EXECUTIONS = ("batched", "sequential")


class Case:
    """One family with two LoRAs, on all its layers and on every other one."""

    def __init__(self, family: Family, nodes: dict, folder):
        self.family = family
        self.model = family.load()
        self.graph = Graph(nodes, family.prompt(51), family.prompt(52))
        # Layers that prepare the prompt run before a pass, where the references do not reach: see test_every_parameter.
        layers = [layer for layer in family.layers(self.model) if layer.module.split(".")[0] not in family.before]
        self._loras = [
            loras.random_lora(f"{family.kind}_all", layers, rank=3, alpha=3.0, seed=1),
            loras.random_lora(f"{family.kind}_some", layers[::2], rank=2, alpha=2.0, seed=2),
        ]
        self.files = [loras.write_transformer(lora, folder) for lora in self._loras]
        self.inputs = {"latent_image": empty(family, family.images), "cfg": 3.0, "steps": 2}

    @cached_property
    def networks(self) -> list[nn.Module]:
        """What the coefficients multiply, base first."""
        return [self.model.model, *(lora.merge_into(self.family.load().model) for lora in self._loras)]

    @property
    def flow(self) -> bool:
        """Whether the family has rectified flow's noise."""
        return isinstance(self.model.get_model_object("model_sampling"), comfy.model_sampling.CONST)

    def blend(self, alignment: float):
        """0.6 and 0.4 of the two LoRAs."""
        return self.graph.blend(self.files, "0.6, 0.4", alignment=alignment)


def coefficients(alignment: float) -> tuple[float, float, float]:
    """What Case.blend(alignment) multiplies, base first."""
    return (1 - alignment, 0.6 * alignment, 0.4 * alignment)


def assert_blends(
    case: Case, patch=lambda model: model, tolerance=ROUNDING, sample=None, shows=True, through=None, **inputs
) -> None:
    """With patch(model) before the blend and after it, in either execution, the blend equals that of merged copies.

    sample: instead of KSampler.  shows: whether what is varied must make a difference.  through: of each network in the
    reference, see blended_reference.
    """
    inputs = {**case.inputs, **inputs}
    sample = sample or case.graph.plain
    reference = partial(blended_reference, networks=case.networks, coefficients=coefficients(ALIGNMENT))
    expected = sample(reference(patch(case.model), through=through), **inputs)
    if shows:
        assert_differ(expected, case.graph.plain(reference(case.model), **case.inputs))
    for execution in EXECUTIONS:
        before = case.graph.applied(patch(case.model), case.blend(ALIGNMENT), execution)
        assert_equal(sample(before, **inputs), expected, tolerance)
        after = patch(case.graph.applied(case.model, case.blend(ALIGNMENT), execution))
        assert_equal(sample(after, **inputs), expected, tolerance)
