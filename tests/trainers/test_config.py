"""Settings: every field explained, unknown keys and wrong types refused, presets that fit, shares of an epoch."""

from __future__ import annotations

import math
import re

import pytest
import torch
from diffusion_blend.blend_core.errors import BlendError
from diffusion_blend.blend_core.rewards import load_reward
from diffusion_blend.trainers.data.prompts import epoch_chunks, read_prompts, shuffled
from diffusion_blend.trainers.loop.epoch import Updater
from diffusion_blend.trainers.rewards import open_rewards
from diffusion_blend.trainers.settings.config import PRESETS, Config, read_config
from diffusion_blend.trainers.settings.fields import expected, fields, settings_help, to_flat
from diffusion_blend.trainers.settings.rules import RULES, check


def test_every_setting_is_explained_with_its_default():
    text = settings_help(Config, PRESETS, "Presets", RULES)
    for key, setting in fields(Config):
        assert len(setting.metadata["help"]) > 20 and setting.metadata["help"].endswith(".")
        assert f"  {key} = " in text and setting.metadata["help"] in text


def values_out_of(entry):
    """Values of the setting's type that are none of its choices, or just outside of its range."""
    within = entry.metadata["within"]
    if entry.metadata["choices"]:
        return ["none of these"]
    outside = [within.low] if within.open_low else [within.low - 1]
    if within.high < math.inf:
        outside.append(within.high if within.open_high else within.high + 1)
    return [type(entry.default)(value) for value in outside]


LIMITED = [(key, entry) for key, entry in fields(Config) if expected(entry)]


@pytest.mark.parametrize(("key", "entry"), LIMITED, ids=[key for key, _ in LIMITED])
def test_help_states_what_a_setting_may_be_and_other_values_are_refused(key, entry):
    assert f"  {key} = {entry.default}   ({expected(entry)})" in settings_help(Config, PRESETS, "Presets", RULES)
    for value in values_out_of(entry):
        message = f"{key} is .*, expected {re.escape(expected(entry))}. Correct it"
        with pytest.raises(BlendError, match=message):
            check(read_config(["sd15"], **{key.replace(".", "__"): value}))


def test_help_states_what_settings_must_be_together():
    text = settings_help(Config, PRESETS, "Presets", RULES)
    assert all(rule.__doc__ and rule.__doc__.endswith(".") and rule.__doc__ in text for rule in RULES)


def test_later_sources_win_and_values_keep_their_types(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('kl_weight = 1\n[sampling]\nsteps = 10\n[lora]\ntargets = ["to_q"]\n')
    config = read_config([file], ["sampling.steps=20", "base.path=some/folder", "lora.targets=['a', 'b']"], epochs=3)
    assert config.kl_weight == 1.0 and isinstance(config.kl_weight, float)
    assert (config.sampling.steps, config.base.path, config.epochs) == (20, "some/folder", 3)
    assert config.lora.targets == ("a", "b")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("sampling.step=20", "Did you mean sampling.steps"),
        ("sampling.steps=many", "expected int"),
        ("sampling.steps=2.5", "expected int"),
        ("epochs=true", "expected int"),
        ("lora.targets=to_q", "expected a list"),
        ("kl_weight", "expected key=value"),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused(assignment, message):
    with pytest.raises(BlendError, match=message):
        read_config([], [assignment])


def test_unreadable_and_unknown_files_are_refused(tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("kl_weight = = 1")
    with pytest.raises(BlendError, match="not valid TOML"):
        read_config([broken])
    with pytest.raises(BlendError, match="neither a preset"):
        read_config(["nowhere"])


@pytest.mark.parametrize("name", sorted(file.stem for file in PRESETS.glob("*.toml")))
def test_presets_need_only_what_a_person_must_choose(name):
    missing = {"base__path": "somewhere", "prompts__file": "prompts.txt"}
    distil = read_config([name]).algorithm == "distil"
    missing |= {"distil__loras": ("calm=calm.safetensors",)} if distil else {"reward__name": "brightness"}
    preset = to_flat(read_config([name]))
    chosen = {key: value for key, value in missing.items() if not preset[key.replace("__", ".")]}
    assert chosen and check(read_config([name], **chosen)) is None  # it raises for the first complaint


def test_the_derived_totals():
    config = Config(epochs=10, prompts_per_epoch=6, images_per_prompt=4, updates_per_epoch=3)
    assert (config.images_per_epoch, config.images_per_update, config.updates) == (24, 8, 30)


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_processes_share_out_the_same_chunks(processes):
    config = read_config(
        prompts_per_epoch=6, images_per_prompt=4, updates_per_epoch=2, optimisation__images_per_pass=2, seed=5
    )
    whole = epoch_chunks(config, 3, 10)
    shares = [epoch_chunks(config, 3, 10, process, processes) for process in range(processes)]
    for number, minibatch in enumerate(whole):
        together = [chunk for share in shares for chunk in share[number]]
        assert sorted(chunk.numbers for chunk in together) == sorted(chunk.numbers for chunk in minibatch)
        assert {len(share[number]) for share in shares} == {len(minibatch) // processes}
    images = [n for minibatch in whole for chunk in minibatch for n in chunk.numbers]
    assert sorted(images) == list(range(72, 96))
    items = {chunk.groups[i]: chunk.items[i] for m in whole for chunk in m for i in range(2)}
    assert len(items) == 6  # each group has one prompt


def test_every_prompt_comes_once_a_round():
    drawn = [item for start in range(0, 21, 3) for item in shuffled(1, start, 3, 7)]
    assert all(sorted(drawn[i : i + 7]) == list(range(7)) for i in range(0, 21, 7))
    assert drawn[:7] != drawn[7:14] and drawn != [i for s in range(0, 21, 3) for i in shuffled(2, s, 3, 7)]


def test_prompts_are_read_from_text_and_jsonl(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    assert read_prompts(tmp_path / "a.txt") == read_prompts(tmp_path / "a.jsonl") == ["one", "two"]
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(BlendError, match=r"line 1 .* has no prompt"):
        read_prompts(tmp_path / "b.jsonl")


def test_an_update_from_a_loss_that_is_no_number_is_refused():
    import torch

    weight = torch.ones(1, requires_grad=True)
    update = Updater([weight], torch.optim.SGD([weight], 1.0), 1.0)
    with pytest.raises(BlendError, match="not a finite number"):
        update([lambda: ((weight * float("inf")).sum(), {})])
    assert torch.equal(weight, torch.ones(1))


def test_scales_are_of_the_trained_reward_alone_and_the_header_states_them():
    names = {"reward__name": "jpeg_compressibility", "reward__watch": ("jpeg_incompressibility",)}
    rewards = open_rewards(read_config([], reward__scale="flow-grpo", reward__factor=10.0, **names), "cpu")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    small, large = (load_reward(name)(images, [""] * 2) for name in ("jpeg_compressibility", "jpeg_incompressibility"))
    torch.testing.assert_close(rewards.trained(images, [""] * 2), small * 10 / 500)
    torch.testing.assert_close(rewards.watched["jpeg_incompressibility"](images, [""] * 2), large)
    assert rewards.facts() == [{"name": "jpeg_compressibility", "weight": 1.0, "scale": 10 / 500, "shift": 0.0}]
