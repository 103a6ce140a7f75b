"""The benchmark's ways to sample: they make the same picture, and do the work that its floors say."""

from dataclasses import replace

import pytest
import torch

from . import host, networks

modes, floors, bench, measuring, report = (
    host.submodule(f"benchmarks.costs.{name}") for name in ("modes", "floors", "networks", "measuring", "report")
)
SAMPLING = bench.SamplerSettings(steps=3, cfg=7.0)
SETTINGS = measuring.Settings("small", 8, SAMPLING.steps, SAMPLING.cfg, rounds=1, rewards=[3], copies=3, rank=8)
M = 3
HOOKS = "ComfyUI's LoRA hooks"
SAME = ("exact, one batch", HOOKS, modes.COPIES)
EVALUATIONS = {"stratified": 3, "random": 3, "budget 1": 2 + M, "exact, one batch": 3 * M}


@pytest.fixture(scope="module")
def network():
    prompts = networks.conditioning(1), networks.conditioning(2)
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    return bench.Network(networks.sd15(), networks.sd15, prompts, latent, torch.float32)


@pytest.fixture(scope="module")
def made(network):
    """made(name): a mode that has run once, and its latents."""
    loras = [network.lora(seed, SETTINGS.rank) for seed in range(M)]

    def make(name):
        mode = modes.MODES[name](network, SAMPLING, loras)
        return mode, mode.run()

    return make


@pytest.mark.parametrize("name", SAME)
def test_what_is_compared_makes_the_same_picture(made, network, name):
    _, expected = made("exact, one after another")
    _, latents = made(name)
    away = (expected - network.sample(SAMPLING)).norm()
    assert away > 0.01 * expected.norm()
    assert (latents - expected).norm() < 1e-3 * away


@pytest.mark.parametrize("name", [name for name in modes.MODES if name != HOOKS])
def test_a_run_does_the_multiply_adds_of_its_floor(made, network, name):
    mode, _ = made(name)
    floor = measuring.floors_of(network, SETTINGS)
    mode_floor = floor if mode.low_rank else floors.Floors(floor.network)
    least = mode_floor.work(mode.passes()).multiply_adds
    # One product for the columns of all variants launches less, at the price of products that count for nothing.
    factors = least - floors.Floors(floor.network).work(mode.passes()).multiply_adds
    assert least <= floors.counted(mode.run) <= least + (M - 1) * factors


def test_hooks_merge_weights_anew_in_every_run(made, network):
    mode, _ = made(HOOKS)
    merging = M * SETTINGS.rank * sum(layer.weight.numel() for layer in network.adapted().values())
    base = floors.Floors(measuring.floors_of(network, SETTINGS).network)
    assert floors.counted(mode.run) == base.work(mode.passes()).multiply_adds + merging


@pytest.mark.parametrize("name", EVALUATIONS)
def test_the_passes_are_those_of_the_evaluation(made, name):
    mode, _ = made(name)
    assert sum(passes.count * passes.variants for passes in mode.passes()) == EVALUATIONS[name]


def test_factors_are_held_once_in_the_dtype_of_the_network(made, network):
    mode, _ = made("exact, one batch")
    layers = network.adapted().values()
    elements = sum(floors.factor_elements(layer.weight.shape, SETTINGS.rank) for layer in layers)
    assert mode.held() == M * elements * 4


def test_every_way_gets_a_row_and_every_goal_a_line(network):
    settings = replace(SETTINGS, rewards=[4], copies=3)
    measuring_bench = measuring.Bench(
        network, settings, measuring.floors_of(network, settings), floors.Machine(multiply_adds=1e12, bytes=1e12)
    )
    *growing, rows = measuring.growing_rows(measuring_bench)
    allowed = [name for name in modes.MODES if name not in (modes.COPIES, *modes.ON_A_CARD)]
    assert [row["mode"] for row in rows] == ["plain sampler", *allowed]
    assert [len(fewer) for fewer in growing] == [*range(2, len(rows))], "what a cut run keeps"
    for fewer in growing:
        assert report.section_text({"network": "tiny", **measuring_bench.facts(), "rows": fewer})
    text = report.section_text({"network": "tiny", **measuring_bench.facts(), "rows": rows})
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [(mode, m) for mode, m, *_ in cells[2:][: len(rows)]] == [(r["mode"], str(r["m"] or "")) for r in rows]
    assert sum(row[-1] in ("met", "missed") for row in cells) == 1 + len(report.ONE_EVALUATION) + 2


@pytest.mark.parametrize(("name", "millions", "share"), [("SD 1.5", 859.5, 0.0074), ("SDXL", 2567.5, 0.0181)])
def test_four_adapters_of_rank_8_are_the_stated_share_of_a_network_of_real_size(name, millions, share):
    unet = bench.unet(bench.SHAPES[name], torch.float16)
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    elements = sum(floors.factor_elements(layer.weight.shape, 8) for layer in bench.attention_layers(unet).values())
    assert parameters == pytest.approx(millions * 1e6, rel=1e-4)
    assert 4 * elements / parameters == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize("name", bench.SHAPES)
def test_comfyui_knows_the_networks_by_their_weights(name):
    shape = bench.SHAPES[name].small()
    state = {key: value.to("meta") for key, value in bench.unet(shape, torch.float16).state_dict().items()}
    from comfy.model_detection import model_config_from_unet

    assert type(model_config_from_unet(state, "")).__name__ == name.replace("SD 1.5", "SD15")
