"""One LoRA out of a blend: on Gaussian chains the optimum is the blend, and on tiny models of every family a run starts
as the merged blend, comes nearer to the exact one, goes on exactly and says what it is made of."""

from __future__ import annotations

import json

import pytest
import torch
from diffusion_blend.blend_core import Blend, LoRABank, read_adapter
from diffusion_blend.blend_core.adapters.files import sha256
from diffusion_blend.blend_core.blend import blend
from diffusion_blend.blend_core.errors import BlendError
from diffusion_blend.blend_core.estimators import exact
from diffusion_blend.pipelines import blended, load_base, load_factors, match, network_of
from diffusion_blend.trainers import train as loop
from diffusion_blend.trainers.data.prompts import epoch_chunks, held_out
from diffusion_blend.trainers.distributed import Gathering
from diffusion_blend.trainers.loop.epoch import Updater, collect, update_policy
from diffusion_blend.trainers.loop.log import read_log
from diffusion_blend.trainers.model.base import Base
from diffusion_blend.trainers.model.chain import ddim_steps
from diffusion_blend.trainers.model.distilled import DistilledPolicy, Parts
from diffusion_blend.trainers.model.policy import TaughtPolicy
from diffusion_blend.trainers.objectives.choice import objective_of
from diffusion_blend.trainers.objectives.distillation import FLOOR
from diffusion_blend.trainers.settings.config import read_config
from diffusion_blend.trainers.train import train
from torch import nn

from ..lora_files import merged, random_lora, write_lora
from .chain import SHAPE, ChainPolicy, ddim_chain, ddim_scheduler, flow_chain
from .test_run import same, two_processes
from .worlds import FAMILIES, PROMPTS, save, settings

SLOPES = {"calm": (1.0, -0.5), "vivid": (-0.3, 2.0)}
KL_WEIGHTS = {"calm": 1.0, "vivid": 0.5}
WEIGHTS, ALIGNMENT = (0.7, 0.3), 1.5
CHAINS = {
    "ddim, eta 1": ddim_chain,
    "ddim, eta 0": lambda: ddim_steps(ddim_scheduler(), 10, 0.0),
    "flow sde": flow_chain,
    "flow ode": lambda: flow_chain(noise_level=0.0),
}


class TaughtChain(ChainPolicy):
    """A prediction of one slope and one shift per step; the teacher is a blend of bases of other shifts and slopes."""

    def __init__(self, steps):
        super().__init__(steps)
        draw = torch.Generator().manual_seed(3)
        self.slopes = nn.Parameter(torch.zeros(len(steps), *SHAPE, dtype=torch.float64))
        size = (len(SLOPES), 2, len(steps), *SHAPE)
        self.bases = torch.randn(size, generator=draw, dtype=torch.float64) * 0.3  # (basis, shift and slope, step, ...)
        self.coefficients = Blend(tuple(SLOPES), WEIGHTS, ALIGNMENT, tuple(KL_WEIGHTS.values())).coefficients

    def predictor(self, conditions):
        return lambda x, k: self.exact(x, k) + self.shifts[k] + self.slopes[k] * x

    def teacher_predictor(self, conditions):
        def predict(x, k):
            ways = [self.exact(x, k), *(self.exact(x, k) + shift[k] + slope[k] * x for shift, slope in self.bases)]
            return blend(torch.tensor(self.coefficients).view(-1, *[1] * x.dim()), torch.stack(ways))

        return predict

    def optimum(self):
        """(shifts, slopes) of the blend: predictions are affine in x, and so is their blend."""
        weights = torch.tensor(self.coefficients[1:]).view(-1, *[1] * (self.bases.dim() - 1))
        return (weights * self.bases).sum(0)


@pytest.mark.parametrize("name", CHAINS)
def test_the_optimum_is_the_exact_blend(name):
    policy = TaughtChain(CHAINS[name]())
    config = read_config(
        algorithm="distil", prompts_per_epoch=8, images_per_prompt=8, reuse=4, distil__steps=5,
        sampling__steps=len(policy.steps), optimisation__images_per_pass=64,
    )  # fmt: skip
    objective = objective_of(config, policy, None, ["one", "other"], Gathering())
    optimiser = torch.optim.Adam(policy.parameters(), 0.03)
    epochs = 200
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda update: 1 - update / (epochs * config.reuse))
    update = Updater(list(policy.parameters()), optimiser, 1e9, schedule=schedule)
    for epoch in range(epochs):
        samples, _ = objective.compare(collect(objective, epoch_chunks(config, epoch, 2)), epoch)
        update_policy(config, objective, samples, update, epoch)
    shifts, slopes = policy.optimum()
    assert (policy.shifts - shifts).norm() < 0.01 * shifts.norm()
    assert (policy.slopes - slopes).norm() < 0.01 * slopes.norm()


def test_passes_are_an_unbiased_sum_over_the_chain_whatever_the_losses_were():
    policy = TaughtChain(ddim_chain())
    sums = {}
    for steps in (3, 10):
        config = read_config(
            algorithm="distil", prompts_per_epoch=1, images_per_prompt=4, distil__steps=steps,
            sampling__steps=len(policy.steps),
        )  # fmt: skip
        objective = objective_of(config, policy, None, ["one"], Gathering())
        samples = collect(objective, epoch_chunks(config, 0, 1))
        for k in range(10):
            objective.step_losses.note(k, 4.0**-k)
        objective.compare(samples, 0)
        draws = [torch.Generator().manual_seed(seed) for seed in range(400 if steps == 3 else 1)]
        passes = [[forward() for forward in objective.passes(samples, draw)] for draw in draws]
        sums[steps] = torch.tensor([sum(loss.item() for loss, _ in of_draw) for of_draw in passes])
        figures = [sum(figures["imitation_loss"] for _, figures in of_draw) / steps for of_draw in passes]
        torch.testing.assert_close(torch.tensor(figures), sums[steps])  # what the log says is the same mean
    error = sums[3].std() / len(sums[3]) ** 0.5
    assert abs(sums[3].mean() - sums[10].mean()) < 4 * error < 0.5 * sums[10].mean()


def test_passes_go_where_the_loss_is_and_a_checkpoint_keeps_that():
    policy = TaughtChain(ddim_chain())
    config = read_config(algorithm="distil", prompts_per_epoch=1, images_per_prompt=4, distil__steps=2)
    objective = objective_of(config, policy, None, ["one"], Gathering())
    samples = collect(objective, epoch_chunks(config, 0, 1))
    for k in range(10):
        objective.step_losses.note(k, 100.0 if k < 3 else 1e-4)
    other = objective_of(config, policy, None, ["one"], Gathering())
    other.load_state_dict(objective.state_dict())
    chosen = []
    for seed in range(100):
        chosen += [one.args[1] for one in other.passes(samples, torch.Generator().manual_seed(seed))]
    early = sum(k < 3 for k in chosen) / len(chosen)
    assert early == pytest.approx((10 + 3 * FLOOR) / (10 + 10 * FLOOR), abs=0.05)  # 200 draws; the floor is for all
    assert other.step_losses.expected == objective.step_losses.expected


@pytest.fixture(scope="module")
def studios(tmp_path_factory):
    """kind -> folder with base/, calm.safetensors and vivid.safetensors on the attention's layers."""
    root = tmp_path_factory.mktemp("studios")
    made = {}
    for kind in FAMILIES:
        made[kind] = root / kind
        save(kind, made[kind] / "base")
        network, prefix = network_of(load_base(str(made[kind] / "base"))), "transformer."
        prefix = "unet." if kind in ("sd15", "sdxl") else prefix
        for seed, name in enumerate(SLOPES, start=11):
            pairs = random_lora(network, seed, size=0.4, skip=lambda layer: not layer.endswith(("to_q", "to_v")))
            write_lora(made[kind] / f"{name}.safetensors", pairs, prefix=prefix)
    return made


def config_of(studio, folder, **changes):
    loras = tuple(f"{name}={studio / name}.safetensors" for name in SLOPES)
    defaults = {
        "algorithm": "distil", "reward__name": "", "kl_weight": 0.0, "distil__loras": loras, "distil__weights": WEIGHTS,
        "distil__steps": 2, "lora__rank": 4, "sampling__size": 16, "optimisation__images_per_pass": 4,
    }  # fmt: skip
    return settings(studio / "base", folder, **defaults | changes)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_start_is_the_merged_blend_and_the_teacher_is_the_engines_exact_one(studios, tmp_path, kind):
    config = config_of(studios[kind], tmp_path / "run")
    parts = Parts.of(config)
    policy = DistilledPolicy(Base(load_base(config.base.path), 16), config, parts)
    assert isinstance(policy, TaughtPolicy)
    encoded, base = policy.encode(PROMPTS[:2]), Base(load_base(config.base.path), 16)
    x = policy.noise([torch.Generator().manual_seed(i) for i in range(2)])()
    factors, _ = match(base.pipe, parts.adapters)
    conditions, timestep = base.guidance(PROMPTS[:2], config.sampling.cfg), policy.steps[1].timestep

    def guided():
        return conditions.guided(base.call(base.network, conditions.rows(x), timestep, conditions.conditions))

    with torch.no_grad():
        plain = guided()
        with blended(base.network, LoRABank(factors), exact(parts.blend.coefficients, 1, [0, 0])):
            expected = guided()
        taught = policy.teacher_predictor(encoded)(x, 1)
        torch.testing.assert_close(taught, expected, rtol=1e-4, atol=1e-5)
        start = policy.predictor(encoded)(x, 1)
        loras = [{target.module: _pair(change) for target, change in factor.items()} for factor in factors]
        base.network = merged(base.network, *zip(parts.coefficients, loras, strict=True))
        torch.testing.assert_close(start, guided(), rtol=1e-3, atol=1e-4)  # ranks 2 + 2 fit into 4
        assert (taught - plain).norm() > (start - taught).norm() > 1e-3 * taught.norm()  # near, and not equal
        assert torch.equal(policy.predictor(encoded)(x, 1), start)  # the teacher left nothing behind


def _pair(change):
    return change.factors.down, change.factors.up * change.factors.scale


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux"])
def test_a_run_comes_nearer_to_the_exact_blend_and_says_what_it_is_made_of(studios, tmp_path, kind):
    config = config_of(
        studios[kind], tmp_path / "run", epochs=12, reuse=4, output__validate_every=6, output__validation_images=4,
        optimisation__learning_rate=3e-3, output__checkpoint_every=0, output__grid=4, output__title="one",
    )  # fmt: skip
    path = train(config)
    assert path.name == "one.safetensors"
    distances = [line["valid_distance"] for line in read_log(path.parent / "log.jsonl") if "valid_distance" in line]
    assert min(distances[1:]) < 0.9 * distances[0]
    _, (report,) = load_factors(load_base(config.base.path), [path])
    assert report.matched == report.in_file > 0
    facts = {key.removeprefix("diffusion_blend."): text for key, text in read_adapter(path).metadata.items()}
    parts = json.loads(facts["parts"])
    files = [studios[kind] / f"{name}.safetensors" for name in SLOPES]
    assert [(part["name"], part["file"]) for part in parts] == [(name, f"{name}.safetensors") for name in SLOPES]
    assert [part["coefficient"] for part in parts] == pytest.approx(WEIGHTS)
    assert [part["sha256"] for part in parts] == [sha256(file) for file in files]
    assert json.loads(facts["weights"]) == pytest.approx(WEIGHTS)
    assert {"algorithm": "distil", "alignment": "1.0", "distil_steps": "2", "rank": "4"}.items() <= facts.items()
    assert not {"kl_weight", "rewards"} & facts.keys()
    assert len(list((path.parent / "grids").glob("*.png"))) == 3


def test_a_stopped_run_goes_on_exactly(studios, tmp_path):
    whole = train(config_of(studios["sd15"], tmp_path / "whole", epochs=3))
    train(config_of(studios["sd15"], tmp_path / "broken", epochs=1))
    same(whole, train(config_of(studios["sd15"], tmp_path / "broken", epochs=3)))


def test_two_processes_learn_the_same_as_one(studios, tmp_path):
    options = {"images_per_prompt": 4, "output__validate_every": 2, "output__validation_images": 8, "reuse": 2}
    one = config_of(studios["sd15"], tmp_path / "one", **options)
    two = config_of(studios["sd15"], tmp_path / "two", **options)
    path = train(one)
    assert "on 2 process(es)" in two_processes(two, tmp_path)
    same(path, tmp_path / "two" / path.name, tolerance=1e-5)  # an update moves each weight by 1e-3
    single, shared = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    for name in ("imitation_loss", "valid_distance"):
        assert shared[-1][name] == pytest.approx(single[-1][name], rel=1e-3)


def test_a_part_of_the_prompts_is_held_out_and_never_trained_on():
    prompts = [f"prompt {i}" for i in range(50)]
    trained, held = held_out([*prompts, *prompts])
    assert len(held) == 5 and sorted(trained + held) == sorted(prompts)
    assert len(held_out([f"prompt {i}" for i in range(1000)])[1]) == 32
    with pytest.raises(BlendError, match="two at least"):
        held_out(["one prompt", "one prompt"])


BAD = [
    ({"distil__loras": ()}, "distil.loras is empty"),
    ({"distil__loras": ("calm",)}, "expected NAME=PATH"),
    ({"distil__loras": ("calm=nowhere.safetensors",)}, "nowhere.safetensors is no file"),
    ({"distil__weights": (1.0,)}, "weight"),
    ({"reward__name": "brightness"}, "learns from the blend alone"),
    ({"distil__steps": 9}, "distil.steps is 9, above sampling.steps"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_what_cannot_be_distilled_is_refused_before_a_base_is_loaded(studios, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(loop, "open_base", lambda *_: pytest.fail("the base was loaded"))
    with pytest.raises(BlendError, match=message):
        train(config_of(studios["sd15"], tmp_path / "run", **changes))


def test_weights_of_nothing_are_refused(studios, tmp_path):
    with pytest.raises(BlendError, match="changes nothing"):
        train(config_of(studios["sd15"], tmp_path / "run", distil__alignment=0.0))
