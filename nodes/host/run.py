"""One sampling run of a blended model: its step, and the passes that evaluate the step's variants."""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import comfy.model_management
import comfy.model_sampling
import torch
from comfy.model_base import BaseModel

from ...blend_core import BlendError, LoRABank, Plan
from ...blend_core.estimators import Estimator, exact, merged
from ...blend_core.network.bank import Attachment
from ...blend_core.network.execution import evaluate_variants, mixed
from ...blend_core.parameterization import State
from ...blend_core.plan import Call, Job
from ..types import KEY, LoRABlend
from .networks.conditionings import Conditionings
from .networks.other_packs import Caches, check_choices, separates
from .networks.row_layout import keeps_rows_apart, note
from .networks.whole_models import moved
from .private import PARAMETERS, is_compiled, keep_moving_weights_as_stored, network_of
from .steps import StepClock
from .turns import Turns

log = logging.getLogger(__name__)

MEMORY_MARGIN = 1.5  # the factor ComfyUI itself applies to its estimate before it batches conditionings

_WHOLE_JOB = Job()
Record = Callable[[int, float, torch.Tensor, list[torch.Tensor], list[float], torch.Tensor | None], None]
"""record(step, sigma, x, denoised, coefficients, together): the guided prediction of every variant at x, base first.
together: that of all LoRAs added up; None where it is one of the variants, or a basis is a whole model."""
Steering = Callable[[int, torch.Tensor], Plan | None]
"""steering(step, denoised): called between two steps with the number of the one that begins and the guided prediction
of the one before, (batch, ...) latents as a VAE takes them. Returns the plan from here on, or None to keep it."""


@dataclass(frozen=True)
class RunSettings:
    """What every run of a blended model is made from.

    execution: one of apply.EXECUTIONS.  seed, image_indices: decide the choices of one-variant evaluations; the indices
    are the number of each image within the whole job, where the latents are a part of it.  job: what a run is a part
    of; schedules and choices count its steps.  steered: makes the steering of a run from its number of steps.  record:
    called at the first evaluation of every step.
    """

    blend: LoRABlend
    estimator: Estimator
    execution: str
    seed: int
    image_indices: list[int] | None = None
    job: Job = _WHOLE_JOB
    steered: Callable[[int], Steering] | None = None
    record: Record | None = None

    @property
    def exact(self) -> bool:
        """Whether every variant is evaluated at every step."""
        return self.estimator is exact


def blended_run(model_options: dict) -> BlendedRun | None:
    """The run of the blended model that is sampling with these options; None for a model without a blend."""
    return model_options.get("transformer_options", {}).get(KEY)


class BlendedRun:
    """One sampling run: its plan, its step, and where the bank is attached."""

    def __init__(
        self,
        plan: Plan,
        coefficients: torch.Tensor,
        clock: StepClock,
        bank: LoRABank,
        networks: Mapping[int, torch.nn.Module],
        settings: RunSettings,
    ):
        keep_moving_weights_as_stored()
        self.plan = plan
        self.coefficients = coefficients  # (steps, 1 + m), base first, below the regions
        self.clock = clock
        self.bank = bank
        self.networks = networks  # of the variants that are whole models
        self.settings = settings
        self.together = merged(coefficients, len(coefficients), [0]) if settings.record and not networks else plan
        self.step = 0
        self.noise = 0.0  # of the evaluation
        self.recorded: set[int] = set()  # steps
        self.denoised: torch.Tensor | None = None  # the guided prediction before, where a run is steered
        self.caches = Caches()
        self.conditionings: Conditionings | None = None  # None: no network prepared any
        self.apart = False  # whether no pass may hold two variants
        self.exits = ExitStack()  # what has to be closed when the run ends
        self._calls: Counter = Counter()  # of this step, by what they ask for
        self._attachments: dict[int, Attachment] = {}  # per network: there are several on several devices
        self._banks: list[LoRABank] = []
        self._turns: Turns | None = None  # None: predictions are blended

    @contextmanager
    def preparing(self, network: BaseModel) -> Iterator[None]:
        """While open, conditionings that the network prepares are prepared for every basis."""
        self.conditionings = Conditionings(lambda: self.attachment(network), self.networks)
        with self.conditionings.prepared(network):
            yield

    def separately(self, step: int, predict: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        """predict() once under each variant that counts at `step`: the guided model if it were that basis alone.

        Guidance and every other patch run once per variant; the network's passes hold all variants, see Turns.
        """
        return self._in_turn(len(self.plan.active(step)[0]), self._counting, predict)

    def every_variant(self, predict: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        """The same under every variant, base first, whatever its coefficient; the run's caches see nothing of it."""
        return self._aside(range(1 + len(self.settings.blend.bases)), predict)

    def all_at_once(self, predict: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """The same under all LoRAs added up at this step's coefficients, in passes of its own; see Record."""
        variant = int(self.together.variants[self.step, 0, 0])
        return self._aside([variant], predict)[0] if variant in self.together.mixtures else None

    def _aside(self, variants: Sequence[int], predict: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        column = torch.tensor(variants)[:, None]
        caches, self.caches = self.caches, Caches()
        try:
            return self._in_turn(len(column), lambda images: column.expand(-1, images), predict)
        finally:
            self.caches = caches

    def _counting(self, images: int) -> torch.Tensor:
        return self.plan.active(self.step, images)[0]

    def _in_turn(
        self, count: int, variants: Callable[[int], torch.Tensor], predict: Callable[[], torch.Tensor]
    ) -> list[torch.Tensor]:
        self._turns = Turns(variants)
        try:
            return [self._turns.take(turn, predict) for turn in range(count)]
        finally:
            self._turns = None

    def advance(self, timestep: torch.Tensor) -> bool:
        """Note the step of the evaluation that begins, and its noise level, which is read off the GPU once.

        Returns whether a step begins with it.
        """
        self.noise = float(timestep.max())
        before, self.step = self.step, self.clock.step(self.noise)
        if self.step != before:
            self._calls.clear()
        return self.step > before

    def predict(self, executor, inputs: dict, options: dict) -> torch.Tensor:
        """The blended denoised prediction, (rows, ...), from one or several calls of the model."""
        call = _ModelCall(self, executor, inputs, options)
        if self._turns is not None:
            return self._turns.prediction(call)
        return self.plan(call.evaluate, self.step, images=call.images, call=self._asked(call))

    def _asked(self, call: _ModelCall) -> Call:
        """What a call sees, and what it asks for: its conditionings, its shape, and which of such calls it is."""
        options = call.options
        what = (tuple(options.get("uuids", ())), tuple(options.get("cond_or_uncond", ())), call.x.shape)
        self._calls[what] += 1
        flow = isinstance(call.network.model_sampling, comfy.model_sampling.CONST)
        return Call((*what, self._calls[what]), State(call.x, 1 - self.noise if flow else 1.0, self.noise))

    def attachment(self, network: BaseModel) -> Attachment:
        """The bank on a network, attached once per run."""
        if id(network) not in self._attachments:
            bank, dtype = _own_bank(network) or self.bank, network.get_dtype_inference()
            self._banks.append(bank)
            dtype = dtype if dtype.itemsize > 1 else None
            self._attachments[id(network)] = bank.attach(network, dtype, PARAMETERS)
            self._attachments[id(network)].mix(self.together.mixtures)
        return self._attachments[id(network)]

    def unused(self) -> dict[str, list[str]]:
        """The modules that a LoRA changes and nobody used in this run, by the LoRA's name; none where all were."""
        attachments = list(self._attachments.values())
        planned = set(self.plan.variants.flatten().tolist())
        planned |= {variant for mixture in self.plan.mixtures.values() for variant in mixture}
        unused = {
            name: sorted(set.intersection(*(set(attachment.unused(variant)) for attachment in attachments)))
            for variant, name in enumerate(self.settings.blend.names, start=1)
            if attachments and variant not in self.networks and variant in planned
        }
        return {name: modules for name, modules in unused.items() if modules}

    def read(self) -> list[str]:
        """The modules that changed through their parameters in this run: the network reads these without a call."""
        return sorted(set().union(*(attachment.read() for attachment in self._attachments.values())))

    def release(self) -> None:
        """Let go of what this run made and nobody else needs."""
        self.exits.close()
        for bank in self._banks:
            bank.release()
        self.caches.leave()
        self.conditionings = None

    def go_apart(self, reason: str) -> None:
        """From now on no pass holds two variants."""
        log.info("one variant per pass: %s", reason)
        self.apart = True


class _ModelCall:
    """One call of the model that ComfyUI makes, evaluated under several variants.

    images: of the batch; its rows are groups of them (conditional, unconditional).
    """

    def __init__(self, run: BlendedRun, executor, inputs: dict, options: dict):
        self.run, self.executor, self.options = run, executor, options
        self.network = executor.class_obj
        self.x, self.sigma = inputs["args"][:2]
        self.rows = self.x.shape[0]
        chunks = len(options.get("cond_or_uncond", [])) or 1
        self.images = self.rows // chunks if self.rows % chunks == 0 else self.rows
        self._attachment = run.attachment(self.network)
        self._attachment.compiled |= is_compiled(options)
        inputs = inputs if run.conditionings is None else run.conditionings.of_call(inputs)
        self._inputs = inputs | {"rows": torch.arange(self.rows)}  # of which a pass finds its own, as of all inputs

    def evaluate(self, variants: torch.Tensor) -> torch.Tensor:
        """The predictions (k, rows, ...) of variants (k, images), in passes of as many as fit."""
        run, network = self.run, self.network
        check_choices(self.options, variants)
        if not run.apart and (reason := separates(network, self.options)):
            run.go_apart(reason)
        group = self._group(variants)
        predictions = self._fitting(variants, group)
        if run.apart or keeps_rows_apart(network) is not None or not mixed(variants, group):
            return predictions
        return self._shown(variants, predictions)

    def _passes(self, variants: torch.Tensor, group: int) -> torch.Tensor:
        run = self.run
        return evaluate_variants(
            self._pass, self._inputs, self.rows, variants, self._attachment, group, run.apart, run.networks
        )

    def _pass(self, inputs: dict, variants: torch.Tensor) -> torch.Tensor:
        """One pass of the network, for variants (g, images)."""
        run, images = self.run, inputs["rows"][: variants.shape[1]]
        basis = (id(self.network), tuple(variants.flatten().tolist()), tuple(images.tolist()))
        options = self.options | {"uuids": [_uuid_of(u, basis[1:]) for u in self.options.get("uuids", [])]}
        network = run.networks.get(variants[0].tolist()[0])
        executor = self.executor if network is None else moved(self.executor, network)
        x, *others = inputs["args"]
        with run.caches.of(basis, network or self.network, options):
            return executor(x.clone(), *others, options, **inputs["kwargs"])  # EasyCache writes into x

    def _group(self, variants: torch.Tensor) -> int:
        """How many variants to put into one pass."""
        run, network, x = self.run, self.network, self.x
        k = max(sum(not run.networks.keys() >= set(of_images) for of_images in variants.tolist()), 1)
        run.apart = run.apart or keeps_rows_apart(network) is False
        if run.apart or run.settings.execution == "sequential":
            return 1
        if run.settings.execution == "batched":
            return k
        free = network.current_patcher.get_free_memory(x.device) / MEMORY_MARGIN
        fits = (g for g in range(k, 1, -1) if network.memory_required([x.shape[0] * g, *x.shape[1:]]) < free)
        return next(fits, 1)

    def _fitting(self, variants: torch.Tensor, group: int) -> torch.Tensor:
        """The predictions, one variant at a time for the rest of this run where a pass of several fails."""
        if self.run.apart:
            return self._passes(variants, 1)
        try:
            return self._passes(variants, group)
        except BlendError as error:  # rows that the network mixes, or a parameter that is read without its layer
            failure = str(error)
        except RuntimeError as error:  # out of memory, or a patch made for one batch size
            if group == 1:
                raise
            failure = str(error)
        # Not the error itself: a handler that keeps records would keep its frames, and with them the model.
        log.warning("a pass of %d variants failed (%s); going on one at a time", group, failure)
        self.run.apart = True
        comfy.model_management.soft_empty_cache()
        return self._passes(variants, 1)

    def _shown(self, variants: torch.Tensor, together: torch.Tensor) -> torch.Tensor:
        """Predictions one variant at a time, which show whether a network that no test has seen keeps rows apart.

        One evaluation more, once per kind of network and process. Where rows are mixed, the run goes on like this.
        """
        run = self.run
        run.apart = True
        separate = self._passes(variants, 1)
        run.apart = not note(self.network, together, separate)
        if run.apart:
            name = type(network_of(self.network)).__name__
            log.warning("%s mixes the rows of a batch, so every variant gets passes of its own", name)
        return separate


def _own_bank(network) -> LoRABank | None:
    """The bank that ComfyUI loaded with this network, a copy of the first where it is on another card."""
    patchers = network.current_patcher.get_additional_models_with_key(KEY) if network.current_patcher else []
    return patchers[0].model if patchers else None


def _uuid_of(conditioning: uuid.UUID, basis: Hashable) -> uuid.UUID:
    """A conditioning's id in the passes of one basis: caches keyed by it must not take another's residual."""
    return uuid.uuid5(conditioning, str(basis))
