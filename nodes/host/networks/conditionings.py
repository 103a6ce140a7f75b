"""Conditionings that a network's own layers prepare before sampling: one for each basis that changes these layers.

Anima's adapter of prompts, LTX-2's connectors and MiniMax H3's projection run in `extra_conds`, once per run. What they
make is a tensor like any other to the passes that follow, so every pass of a basis has to get that basis's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from comfy.conds import CONDConstant
from comfy.model_base import BaseModel
from torch.nn.modules.module import register_module_forward_pre_hook

from ....blend_core import BlendError
from ....blend_core.network.bank import Attachment
from ....blend_core.network.execution import ByVariant


class Conditionings:
    """Those of one run.

    attachment: gives the bank on the network that is sampled, once it is loaded.  networks: the whole models, by
    variant.
    """

    def __init__(self, attachment: Callable[[], Attachment], networks: Mapping[int, BaseModel]):
        self._attachment, self._networks = attachment, networks
        self._waiting: dict[int, tuple[Any, ByVariant]] = {}  # by the id of what ComfyUI passes on, which is kept alive

    @contextmanager
    def prepared(self, network: BaseModel) -> Iterator[None]:
        """While open, `network` prepares conditionings for every variant."""
        attributes, original = network.__dict__, network.extra_conds
        replaced_before = "extra_conds" in attributes

        def extra_conds(**arguments):
            return self._of_every_variant(network, original, arguments)

        attributes["extra_conds"] = extra_conds
        try:
            yield
        finally:
            self._waiting.clear()
            if replaced_before:
                attributes["extra_conds"] = original
            else:
                del attributes["extra_conds"]

    def _of_every_variant(self, network: BaseModel, original: Callable, arguments: dict) -> dict:
        attachment = self._attachment()
        with attachment.watching() as variants, _running() as ran:
            values = original(**arguments)
        others = {}
        for variant in sorted(variants):
            with attachment.using([variant], arguments.get("device")):
                others[variant] = original(**arguments)
        if ran:
            others |= {variant: whole.extra_conds(**arguments) for variant, whole in self._networks.items()}
        if not others:
            return values
        return {
            name: self._joined(value, {variant: of_variant[name] for variant, of_variant in others.items()})
            for name, value in values.items()
        }

    def _joined(self, value: Any, others: Mapping[int, Any]) -> Any:
        return value if isinstance(value, CONDConstant) else _varied(value, others, self._wait)

    def _wait(self, passed_on: Any, values: ByVariant) -> None:
        self._waiting[id(passed_on)] = (passed_on, values)

    def of_call(self, inputs: Any) -> Any:
        """`inputs` of a call with each conditioning of several variants in the place of the base's.

        Raises BlendError where another node made new tensors of them, which would be the base's for every basis.
        """
        if not self._waiting:
            return inputs
        replaced = self._replaced(inputs)
        if replaced is inputs:
            raise BlendError(
                "a LoRA changes layers that prepare the prompt before sampling, and another node in the graph changes "
                "the prepared prompt on its way to the model. Remove that node (a tiler, a context window), or leave "
                "these layers out of the LoRA."
            )
        return replaced

    def _replaced(self, inputs: Any) -> Any:
        """The same object where nothing in it waits."""
        if id(inputs) in self._waiting:
            return self._waiting.pop(id(inputs))[1]
        if type(inputs) is dict:
            replaced = {name: self._replaced(value) for name, value in inputs.items()}
            same = all(replaced[name] is value for name, value in inputs.items())
        elif type(inputs) in (list, tuple):
            replaced = type(inputs)(map(self._replaced, inputs))
            same = all(after is before for after, before in zip(replaced, inputs, strict=True))
        else:
            return inputs
        return inputs if same else replaced


@contextmanager
def _running() -> Iterator[list[torch.nn.Module]]:
    """While open, notes the modules that run."""
    modules: list[torch.nn.Module] = []
    handle = register_module_forward_pre_hook(lambda module, _: modules.append(module))
    try:
        yield modules
    finally:
        handle.remove()


def _varied(value: Any, others: Mapping[int, Any], wait: Callable[[Any, ByVariant], None]) -> Any:
    """A conditioning of ComfyUI's class that is `value` to everybody, and tells `wait` what the variants have."""
    kind = type(value)

    class Varied(kind):
        """The base's conditioning, and those of the variants."""

        def __init__(self, base: Any, of_variants: Mapping[int, Any]):
            self.__dict__.update(vars(base))
            self._base, self._of_variants = base, of_variants

        def _copy_with(self, cond: Any) -> Any:
            raise BlendError(
                "a LoRA changes layers that prepare the prompt before sampling, and another node cuts the prepared "
                "prompt into parts (context windows do). Remove that node, or leave these layers out of the LoRA."
            )

        def process_cond(self, **kwargs) -> Any:
            processed = {variant: cond.process_cond(**kwargs) for variant, cond in self._of_variants.items()}
            return Varied(self._base.process_cond(**kwargs), processed)

        def concat(self, others: list) -> Any:
            bases = [getattr(other, "_base", other) for other in others]
            passed_on = self._base.concat(bases)
            values = {0: passed_on}
            for variant, of_variant in self._of_variants.items():
                same = [getattr(other, "_of_variants", {}).get(variant, other) for other in others]
                values[variant] = of_variant.concat(same)
            wait(passed_on, ByVariant(values))
            return passed_on

    return Varied(value, others)
