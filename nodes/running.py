"""One sampling run of a blended model: its step, and the passes that evaluate the step's variants."""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import comfy.model_management
import comfy.model_sampling
import torch

from ..blend_core import BlendError, LoRABank, Plan, evaluate_variants, exact, mixed
from ..blend_core.estimators import Estimator
from ..blend_core.parameterization import State
from ..blend_core.plan import Call
from .clock import StepClock
from .neighbours import Caches, check_choices, separates
from .rows import keeps_rows_apart, network_of, note
from .sockets import KEY, LoRABlend
from .whole_models import moved

log = logging.getLogger(__name__)

MEMORY_MARGIN = 1.5  # the factor ComfyUI itself applies to its estimate before it batches conditionings

Steering = Callable[["BlendedRun", torch.Tensor], None]
"""steering(run, denoised): called between two steps with the guided prediction of the one before, (batch, ...) latents
as a VAE takes them. It may replace run.plan."""


def blended_run(model_options: dict) -> BlendedRun | None:
    """The run of the blended model that is sampling with these options; None for a model without a blend."""
    return model_options.get("transformer_options", {}).get(KEY)


@dataclass
class _SharedCall:
    """A call of the network that all variants of an evaluation share: its input, its predictions (k, rows, ...)."""

    x: torch.Tensor
    sigma: torch.Tensor
    predictions: torch.Tensor


class BlendedRun:
    """One sampling run: its plan, its step, and where the bank is attached."""

    def __init__(
        self,
        plan: Plan,
        clock: StepClock,
        bank: LoRABank,
        networks: Mapping[int, torch.nn.Module],
        execution: str,
        blend: LoRABlend,
        estimator: Estimator,
    ):
        self.networks = networks  # of the variants that are whole models
        self.blend = blend
        self.estimator = estimator
        self.plan = plan
        self.clock = clock
        self.bank = bank
        self.execution = execution
        self.step = 0
        self.recorded: set[int] = set()  # steps
        self.steering: Steering | None = None
        self.denoised: torch.Tensor | None = None  # the guided prediction before, where a run is steered
        self._calls: Counter = Counter()  # of this step, by what they ask for
        self._attachments = {}  # per network: there are several on several devices, each with a bank of its own
        self._banks: list[LoRABank] = []
        self._caches = Caches()
        self._shared: list[_SharedCall] | None = None  # None: predictions are blended
        self._turn = self._call = 0
        self._every = False  # variant in turn, and not those that count at the step alone
        self.apart = False  # whether no pass may hold two variants

    @property
    def exact(self) -> bool:
        """Whether every variant is evaluated at every step."""
        return self.estimator is exact

    def separately(self, step: int, predict: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        """predict() once under each variant that counts at `step`: the guided model if it were that basis alone.

        Guidance and every other patch run once per variant; the network's passes hold all variants and are made in
        the first turn only. A call that comes with another input than the first turn's is evaluated on its own.
        """
        return self._in_turn(len(self.plan.active(step)[0]), predict)

    def every_variant(self, predict: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        """The same under every variant, base first, whatever its coefficient; the run's caches see nothing of it."""
        caches, self._caches, self._every = self._caches, Caches(), True
        try:
            return self._in_turn(1 + len(self.blend.bases), predict)
        finally:
            self._caches, self._every = caches, False

    def _in_turn(self, turns: int, predict: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        self._shared, results = [], []
        try:
            for turn in range(turns):
                self._turn, self._call = turn, 0
                results.append(predict())
        finally:
            self._shared = None
        return results

    def _in_turns(self, images: int) -> torch.Tensor:
        """The variants (k, images) whose turns they are."""
        if not self._every:
            return self.plan.active(self.step, images)[0]
        return torch.arange(1 + len(self.blend.bases))[:, None].expand(-1, images)

    def advance(self, timestep: torch.Tensor) -> None:
        """Note the step of the evaluation that begins."""
        step = self.clock.step(float(timestep.max()))
        if step != self.step:
            self._calls.clear()
        self.step = step

    def predict(self, executor, inputs: dict, options: dict) -> torch.Tensor:
        """The blended denoised prediction, (rows, ...), from one or several calls of the model."""
        network, x = executor.class_obj, inputs["args"][0]
        attachment = self._attachment(network)
        rows, chunks = x.shape[0], len(options.get("cond_or_uncond", [])) or 1
        if not self.apart and (reason := separates(network, options)):
            log.info("one variant per pass: %s", reason)
            self.apart = True
        inputs = inputs | {"rows": torch.arange(rows)}  # of which a pass finds its own, as of every other input

        def evaluate(variants):
            check_choices(options, variants)

            def call(repeated, part):
                images = repeated["rows"][: part.shape[1]]
                basis = (id(network), tuple(part.flatten().tolist()), tuple(images.tolist()))
                own = options | {"uuids": [_uuid_of(u, basis[1:]) for u in options.get("uuids", [])]}
                x, *others = repeated["args"]
                with self._caches.of(basis, network, own):
                    run = self._executor(executor, part)
                    return run(x.clone(), *others, own, **repeated["kwargs"])  # EasyCache writes into x

            def run(group):
                return evaluate_variants(call, inputs, rows, variants, attachment, group, self.apart, self.networks)

            shared = sum(not self.networks.keys() >= set(of_images) for of_images in variants.tolist())
            group = self._group(network, x, max(shared, 1))
            predictions = self._fitting(run, group)
            if self.apart or keeps_rows_apart(network) is not None or not mixed(variants, group):
                return predictions
            return self._shown(network, predictions, run)

        images = rows // chunks if rows % chunks == 0 else rows
        if self._shared is None:
            asked = Call(self._named(options, x), _state(network, *inputs["args"][:2]))
            return self.plan(evaluate, self.step, images=images, call=asked)
        return self._one_of(evaluate, self._in_turns(images), *inputs["args"][:2])

    def _named(self, options: dict, x: torch.Tensor) -> Hashable:
        """What a call asks for, alike at every step: its conditionings, its shape, and which of such calls it is."""
        what = (tuple(options.get("uuids", ())), tuple(options.get("cond_or_uncond", ())), x.shape)
        self._calls[what] += 1
        return *what, self._calls[what]

    def _one_of(self, evaluate, variants: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The prediction of the variant whose turn it is, from the passes that all turns share."""
        if self._call == len(self._shared):
            self._shared.append(_SharedCall(x, sigma, evaluate(variants)))
        call = self._shared[self._call]
        self._call += 1
        if call.x.shape == x.shape and torch.equal(call.x, x) and torch.equal(call.sigma, sigma):
            return call.predictions[self._turn]
        return evaluate(variants[self._turn : self._turn + 1])[0]

    def _executor(self, executor, variants: torch.Tensor):
        """What evaluates a pass of `variants`: `executor`, or the same upon the whole model that the variant is."""
        network = self.networks.get(int(variants[0, 0]))
        return executor if network is None else moved(executor, network)

    def _attachment(self, network: torch.nn.Module):
        if id(network) not in self._attachments:
            bank, dtype = _own_bank(network) or self.bank, network.get_dtype_inference()
            self._banks.append(bank)
            dtype = dtype if dtype.itemsize > 1 else None
            self._attachments[id(network)] = bank.attach(network, dtype, patched=_patched_in_use)
        return self._attachments[id(network)]

    def release(self) -> None:
        """Let go of what the factors' banks made for this run."""
        for bank in self._banks:
            bank.drop_casts()

    def _group(self, network, x: torch.Tensor, k: int) -> int:
        """How many variants to put into one pass."""
        self.apart = self.apart or keeps_rows_apart(network) is False
        if self.apart or self.execution == "sequential":
            return 1
        if self.execution == "batched":
            return k
        free = network.current_patcher.get_free_memory(x.device) / MEMORY_MARGIN
        fits = (g for g in range(k, 1, -1) if network.memory_required([x.shape[0] * g, *x.shape[1:]]) < free)
        return next(fits, 1)

    def _fitting(self, run, group: int) -> torch.Tensor:
        """run(group), or one variant at a time for the rest of this run where a pass of several fails."""
        if self.apart:
            return run(1)
        try:
            return run(group)
        except BlendError as error:  # images of unlike variants, which the network mixes
            self._go_apart(group, error)
        except RuntimeError as error:  # out of memory, or a patch made for one batch size
            if group == 1:
                raise
            self._go_apart(group, error)
        comfy.model_management.soft_empty_cache()
        return run(1)

    def _shown(self, network, together: torch.Tensor, run) -> torch.Tensor:
        """Predictions one variant at a time, which show whether a network that no test has seen keeps rows apart.

        One evaluation more, once per kind of network and process. Where rows are mixed, the run goes on like this.
        """
        self.apart = True
        alone = run(1)
        self.apart = not note(network, together, alone)
        if self.apart:
            name = type(network_of(network)).__name__
            log.warning("%s mixes the rows of a batch, so every variant gets passes of its own", name)
        return alone

    def _go_apart(self, group: int, error: Exception) -> None:
        # Not the error itself: a handler that keeps records would keep its frames, and with them the model.
        log.warning("a pass of %d variants failed (%s); going on one at a time", group, str(error))
        self.apart = True


def _patched_in_use(module: torch.nn.Module) -> bool:
    """Whether ComfyUI patches the weight only when the module runs, as it does where weights are offloaded."""
    return any(getattr(module, name, None) for name in ("weight_function", "weight_lowvram_function"))


def _own_bank(network) -> LoRABank | None:
    """The bank that ComfyUI loaded with this network, a copy of the first where it is on another card."""
    patchers = network.current_patcher.get_additional_models_with_key(KEY) if network.current_patcher else []
    return patchers[0].model if patchers else None


def _state(network, x: torch.Tensor, sigma: torch.Tensor) -> State:
    """What a call of the model sees, in the noise of its family."""
    noise = float(sigma.max())
    flow = isinstance(network.model_sampling, comfy.model_sampling.CONST)
    return State(x, 1 - noise if flow else 1.0, noise)


def _uuid_of(conditioning: uuid.UUID, basis: Hashable) -> uuid.UUID:
    """A conditioning's id in the passes of one basis: caches keyed by it must not take another's residual."""
    return uuid.uuid5(conditioning, str(basis))
