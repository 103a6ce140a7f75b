"""The blend engine on diffusers: any pipeline, its denoising network blended while a context is open.

    with blended(pipe, bank, plan):
        images = pipe(prompts, generator=generators, eta=1.0).images

Only the network's `forward` is replaced, and put back afterwards: schedulers, guidance, ControlNets and the pipeline's
own loop stay as they are. eps, v and flow velocity may all be blended, because coefficients sum to 1.
diffusers puts guidance's rows as [uncond..., cond...], group by group, which is the layout the engine expects.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..blend_core import BlendError, LoRABank, Plan, Target, TargetIndex
from ..blend_core.network.execution import evaluate_variants
from ..blend_core.parameterization import State
from ..blend_core.plan import Call
from .parameterization import Reading, first_of, read_scheduler, unit_of

EXECUTIONS = ("sequential", "batched")

# Arguments of flow transformers that all rows share; their first axis counts tokens, which may happen to be `rows`.
_SHARED = ("img_ids", "txt_ids", "image_rotary_emb")


def network_of(pipe: DiffusionPipeline) -> nn.Module:
    """The network that a pipeline denoises with. Raises BlendError where it has none."""
    for name in ("unet", "transformer"):
        if isinstance(getattr(pipe, name, None), nn.Module):
            return getattr(pipe, name)
    raise BlendError(
        f"{type(pipe).__name__} has no unet and no transformer; expected a text-to-image or video pipeline of "
        "diffusers. Choose another base model."
    )


NORMS = nn.LayerNorm | nn.GroupNorm | nn.RMSNorm


def target_index(network: nn.Module) -> TargetIndex:
    """The weights a file may address in this network: its linear layers, 2D convolutions and norms, by module paths.

    LDM, BFL and other native names need no entry: the engine renames them to these.
    """
    aliases = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):  # the sizes, because a quantised weight is stored in another shape
            shape = (module.out_features, module.in_features)
        elif isinstance(module, nn.Conv2d | NORMS) and module.weight is not None:
            shape = tuple(module.weight.shape)
        else:
            continue
        # peft wraps a layer it adapts and moves it to `.base_layer`; files name the place it had.
        aliases[name.removesuffix(".base_layer")] = Target(name, shape)
    return TargetIndex(aliases)


@contextmanager
def blended(
    pipe: DiffusionPipeline | nn.Module, bank: LoRABank, plan: Plan, execution: str = "sequential"
) -> Iterator[None]:
    """While open, every call of the pipeline's network predicts the blend of `plan`.

    pipe: a pipeline, or its denoising network.  execution: one pass per variant, or one batched pass of all.
    A new step begins where the timestep differs from the last call's, so samplers that call twice at one timestep,
    and guidance in separate calls, see one choice per step; a timestep above the last one begins a new run. Whatever
    happens inside, the network is left as it was found. Raises BlendError for a network that is blended already, for
    rows that are no multiple of the plan's images, and for a plan that needs denoised predictions where the noise
    levels are not known: of a network alone, or under a scheduler without a reading (parameterization.py).
    """
    network = pipe if isinstance(pipe, nn.Module) else network_of(pipe)
    if execution not in EXECUTIONS:
        raise BlendError(f"execution is {execution!r}, expected one of {', '.join(EXECUTIONS)}.")
    original = network.forward
    if isinstance(original, _BlendedForward):
        raise BlendError(
            "this network is blended already; one blend inside another would add both. Put all LoRAs into one bank."
        )
    forward = _BlendedForward(network, bank, plan, execution, getattr(pipe, "scheduler", None))
    with replaced(network, "forward", forward):
        yield


@contextmanager
def replaced(owner: Any, name: str, function: Callable) -> Iterator[None]:
    """While open, `function` stands for the method `name` of one object; then what was there before.

    accelerate's offloading, for one, has put a forward of its own into the object, which comes back too.
    """
    attributes = owner.__dict__
    former = attributes.get(name)
    attributes[name] = function
    try:
        yield
    finally:
        if former is None:
            del attributes[name]
        else:
            attributes[name] = former


class _BlendedForward:
    """The network's forward while a blend is open: (timestep, rows, ...) in, the blended prediction out."""

    def __init__(self, network: nn.Module, bank: LoRABank, plan: Plan, execution: str, scheduler=None):
        self.original = network.forward
        self.scheduler = scheduler
        self.unit = 1.0
        self.signature = inspect.signature(type(network).forward)
        self.attachment = bank.attach(network)
        self.attachment.mix(plan.mixtures)
        self.plan = plan
        self.execution = execution
        self.clock = TimestepClock(len(plan.variants))

    def __call__(self, *args, **kwargs):
        inputs = self._by_name(args, kwargs)
        x = next(iter(inputs.values()))
        rows = self._rows(x)
        step, ordinal = self.clock.step(inputs["timestep"]), self.clock.ordinal
        reading = self._reading(inputs["timestep"], step) if self.plan.needs_denoised else None
        output = None

        def call(repeated: dict[str, Any], _variants: Tensor) -> Tensor:
            nonlocal output
            output = self.original(**repeated, **shared)
            return output[0]

        def evaluate(variants: Tensor) -> Tensor:
            group = len(variants) if self.execution == "batched" else 1
            predictions = evaluate_variants(call, inputs, rows, variants, self.attachment, group)
            return predictions if reading is None else reading.denoised(x, predictions)

        shared = {name: inputs.pop(name) for name in _SHARED if name in inputs}
        state = None if reading is None else State(x, reading.signal, reading.noise)
        prediction = self.plan(evaluate, step, call=Call((ordinal, x.shape), state))
        if reading is not None:
            prediction = reading.prediction(x, prediction)
        return (prediction,) if isinstance(output, tuple) else type(output)(sample=prediction)

    def _reading(self, timestep: Tensor, step: int) -> Reading:
        """What predictions mean at this call."""
        if step == 0 and hasattr(self.scheduler, "begin_index"):
            self.unit = unit_of(self.scheduler, timestep)
        return read_scheduler(self.scheduler, first_of(timestep) * self.unit)

    def _by_name(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        """The call's inputs by parameter name, the noisy latents first in every diffusers network."""
        names = list(self.signature.parameters)[1:]  # after self
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        return {names[0]: inputs.pop(names[0]), **inputs}

    def _rows(self, x: Tensor) -> int:
        rows = x.shape[0]
        if rows % self.plan.batch:
            raise BlendError(
                f"the pipeline passed {rows} rows for a plan of {self.plan.batch} images. Plan as many images as the "
                "pipeline makes in one call."
            )
        return rows


class TimestepClock:
    """Counts the steps of a run from the timesteps that a network is called with; they fall during a run."""

    def __init__(self, steps: int):
        self._steps = steps
        self._step = 0
        self._last: float | None = None
        self.ordinal = 0  # of the last call within its step

    def step(self, timestep: Tensor | float) -> int:
        """The step of one call. Schedulers with more timesteps than steps go through the plan again."""
        value = first_of(timestep)
        self.ordinal = self.ordinal + 1 if value == self._last else 0
        if self._last is None or value > self._last:
            self._step = 0
        elif value < self._last:
            self._step += 1
        self._last = value
        return self._step % self._steps
