"""Small stand-ins for packs that are not part of ComfyUI: each reaches into a run where its original does, and keeps
between passes what its original keeps. The originals are named in the docstrings; nothing of them is here.
"""

from __future__ import annotations

import inspect
import unittest.mock
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

# --- IPAdapter


class ImagePrompt:
    """cubiq/ComfyUI_IPAdapter_plus: attention to image tokens, added to what a layer attends to in the prompt.

    It has keys and values of its own for each layer, for the conditional and the unconditional rows, and counts images
    as rows over chunks. `kwargs` holds its settings, one dictionary for every image prompt on the layer.
    """

    def __init__(self, keys: nn.Module, values: nn.Module, **settings):
        self.layers = [(keys, values)]
        self.kwargs = [settings]

    def over(self, other: ImagePrompt | None) -> ImagePrompt:
        """Both, on one layer."""
        if other is not None:
            self.layers, self.kwargs = other.layers + self.layers, other.kwargs + self.kwargs
        return self

    def __call__(self, q, k, v, options):
        out = optimized_attention(q, k, v, options["n_heads"])
        for layers, settings in zip(self.layers, self.kwargs, strict=True):
            if settings["sigma_end"] <= float(options["sigmas"][0]) <= settings["sigma_start"]:
                out = out + _attend(q, layers, options, **settings)
        return out


def _attend(q, layers, options, cond, uncond, weight, mask, unfold_batch, **_):
    chunks = options["cond_or_uncond"]
    images, heads = len(q) // len(chunks), options["n_heads"]
    if unfold_batch:
        cond, uncond = _to_size(cond, images), _to_size(uncond, images)
    weight = _to_size(weight, images).repeat(len(chunks), 1, 1) if isinstance(weight, Tensor) else weight
    times = 1 if unfold_batch else images
    keys, values = (
        torch.cat([(layer(cond), layer(uncond))[kind].repeat(times, 1, 1) for kind in chunks]) for layer in layers
    )
    out = optimized_attention(q, keys, values, heads) * weight
    if mask is None:
        return out
    height, width = options["original_shape"][-2:]
    shrunk = round((height * width / q.shape[1]) ** 0.5)
    small = F.interpolate(mask[:, None], (height // shrunk, width // shrunk), mode="bilinear")[:, 0]
    return out * _to_size(small, images).repeat(len(chunks), 1, 1).flatten(1)[..., None]


def _to_size(tensor: Tensor, rows: int) -> Tensor:
    """As many rows; the last one again where there are too few."""
    missing = max(rows - len(tensor), 0)
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])[:rows]


def image_prompt(model, images: int = 1, masks: Tensor | None = None, weights=None, start=0.0, end=1.0):
    """`model` with a random image prompt on every cross-attention; several images: one for each latent."""
    clone = model.clone()
    percent_to_sigma = clone.get_model_object("model_sampling").percent_to_sigma
    generator = torch.Generator().manual_seed(31)
    layers = [m for name, m in clone.model.named_modules() if name.endswith("attn2")]
    width = layers[0].to_k.in_features
    shared = {
        "cond": torch.randn(images, 4, width, generator=generator),
        "uncond": torch.randn(images, 4, width, generator=generator),
        "mask": masks,
        "unfold_batch": images > 1,
        "sigma_start": percent_to_sigma(start),
        "sigma_end": percent_to_sigma(end),
    }
    for number, (place, layer) in enumerate(_cross_attentions(clone)):
        projections = [_random_linear(width, layer.to_q.out_features, generator) for _ in range(2)]
        weight = 0.5 + 0.2 * number if weights is None else weights  # its weight types give layers different weights
        patch = ImagePrompt(*projections, weight=weight, **shared)
        replaced = clone.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
        clone.set_model_attn2_replace(patch.over(replaced.get(place)), *place)
    return clone


def _cross_attentions(model):
    """((kind of block, its number, the transformer's number), module) of each."""
    for name, module in model.model.diffusion_model.named_modules():
        if name.endswith("attn2"):
            kind, *middle = name.split(".")
            block = 0 if kind.startswith("middle") else int(middle[0])
            depth = int(name.split("transformer_blocks.")[1].split(".")[0])
            yield (kind.removesuffix("_blocks").removesuffix("_block"), block, depth), module


def _random_linear(ins: int, outs: int, generator) -> nn.Module:
    linear = nn.Linear(ins, outs, bias=False)
    linear.weight.data = torch.randn(outs, ins, generator=generator) / ins**0.5
    return linear.requires_grad_(False)


# --- Tiles


def in_tiles(size: tuple[int, int], overlap: int, at_once: int):
    """shiimizu/ComfyUI-TiledDiffusion (MultiDiffusion): a function wrapper that evaluates overlapping tiles of the
    latents, several in one batch, and averages them. A batch is tile after tile, each with all rows; what comes with
    the rows is repeated, and `cond_or_uncond` stays as it was.
    """

    def wrapper(apply_model, call):
        x, t, c = call["input"], call["timestep"], call["c"]
        total, count = torch.zeros_like(x), torch.zeros(x.shape[-2:])
        tiles = list(_tiles(x.shape[-2:], size, overlap))
        for start in range(0, len(tiles), at_once):
            batch = tiles[start : start + at_once]
            part = torch.cat([x[..., rows, columns] for rows, columns in batch])
            repeated = {name: _repeated(value, batch, x, len(batch)) for name, value in c.items()}
            out = apply_model(part, t.repeat(len(batch)), **repeated)
            for (rows, columns), tile in zip(batch, out.split(len(x)), strict=True):
                total[..., rows, columns] += tile
                count[rows, columns] += 1
        return total / count

    return wrapper


def _tiles(whole, size, overlap):
    for top in _starts(whole[0], size[0], overlap):
        for left in _starts(whole[1], size[1], overlap):
            yield slice(top, top + size[0]), slice(left, left + size[1])


def _starts(whole: int, size: int, overlap: int) -> list[int]:
    count = -(-(whole - overlap) // (size - overlap))
    return [round(i * (whole - size) / max(count - 1, 1)) for i in range(count)]


def _repeated(value, batch, x, times):
    if not isinstance(value, Tensor):
        return value
    if value.dim() == x.dim() and value.shape[-2:] == x.shape[-2:]:
        return torch.cat([value[..., rows, columns] for rows, columns in batch])
    return value.repeat(times, *[1] * (value.dim() - 1)) if len(value) == len(x) else value


def tile_after_tile(sample: Callable[..., Tensor], size: tuple[int, int], overlap: int):
    """ssitu/ComfyUI_UltimateSDUpscale: a stock sampler for each tile of a picture, with prompts cropped to it, and its
    result put over the picture before the next. Returns a function like `sample`.
    """

    def sampled(model, *, latent_image, positive, negative, **inputs):
        picture = latent_image["samples"].clone()
        for rows, columns in _tiles(picture.shape[-2:], size, overlap):
            tile = {"samples": picture[..., rows, columns].clone()}
            prompts = {
                role: [[tokens, _cropped(extra, picture.shape[-2:], rows, columns)] for tokens, extra in prompt]
                for role, prompt in (("positive", positive), ("negative", negative))
            }
            picture[..., rows, columns] = sample(model, latent_image=tile, **prompts, **inputs)
        return picture

    return sampled


def _cropped(extra: dict, whole, rows: slice, columns: slice) -> dict:
    """What comes with a prompt, for a tile: the part of its area and of a control's picture that lie in it."""
    crop = dict(extra)
    if "area" in crop:
        height, width, top, left = crop["area"]
        top, bottom = (min(max(y - rows.start, 0), rows.stop - rows.start) for y in (top, top + height))
        left, right = (min(max(x - columns.start, 0), columns.stop - columns.start) for x in (left, left + width))
        crop["area"] = (bottom - top, right - left, top, left)
    if "control" in crop:
        control = crop["control"].copy()
        scale = control.cond_hint_original.shape[-1] // whole[-1]
        window = [slice(part.start * scale, part.stop * scale) for part in (rows, columns)]
        control.cond_hint_original = control.cond_hint_original[..., window[0], window[1]]
        crop["control"] = control
    return crop


# --- Caches that keep a step on the network


class StepCache:
    """welltop-cn/ComfyUI-TeaCache: a function wrapper that puts another forward on the network while it runs. That one
    keeps the change which the blocks made, as attributes of the network, and makes it again while its input changed
    little since. Zehong-Ma/ComfyUI-MagCache differs in the names.

    per_prompt: one state for the conditional rows and one for the others, in one dictionary, as for Wan; else single
    attributes, as for Flux.
    """

    NAMES: ClassVar = {
        "teacache": ("teacache_state", "accumulated_rel_l1_distance", "previous_modulated_input", "previous_residual"),
        "magcache": ("magcache_state", "accumulated_err", "accumulated_ratio", "residual_cache"),
    }

    def __init__(self, kind: str, threshold: float, per_prompt: bool):
        self.kind, self.threshold, self.per_prompt = kind, threshold, per_prompt
        self.state, self.distance, self.before, self.residual = self.NAMES[kind]
        self.computed = 0  # rows

    def wrapper(self, network):
        """The function wrapper for one network."""

        def wrapper(apply_model, call):
            sigmas = call["c"]["transformer_options"]["sample_sigmas"]
            if float(call["timestep"][0]) == float(sigmas[0]):
                for name in (self.state, self.distance):
                    if name in vars(network):
                        delattr(network, name)
            with unittest.mock.patch.multiple(network, forward_orig=self._forward().__get__(network)):
                return apply_model(call["input"], call["timestep"], **call["c"])

        return wrapper

    def _forward(self):
        cache = self

        def forward(self, img, *args, **kwargs):
            original = type(self).forward_orig
            bound = inspect.signature(original).bind(self, img, *args, **kwargs)
            options = bound.arguments["transformer_options"]
            if not cache._changed(self, self.double_blocks[0].img_norm1(self.img_in(img)), options):
                return img + cache._kept(self, options)
            cache.computed += len(img)
            out = original(*bound.args, **bound.kwargs)
            cache._keep(self, out - img, options)
            return out

        forward.__qualname__ = f"{self.kind}_forward"
        return forward

    def _states(self, network, options) -> list[dict]:
        """What is kept of every chunk of the batch, or of the batch."""
        if not self.per_prompt:
            return [vars(network)]
        if self.state not in vars(network):
            setattr(network, self.state, {0: {}, 1: {}})
        return [getattr(network, self.state)[kind] for kind in options["cond_or_uncond"]]

    def _changed(self, network, seen: Tensor, options) -> bool:
        states, changed = self._states(network, options), False
        for state, part in zip(states, seen.chunk(len(states)), strict=True):
            far = True
            if self.distance in state:
                before = state[self.before]
                state[self.distance] += float((part - before).abs().mean() / before.abs().mean())
                far = state[self.distance] >= self.threshold
            changed = changed or far
            state[self.distance] = 0.0 if far else state[self.distance]
            state[self.before] = part
        return changed

    def _keep(self, network, residual: Tensor, options) -> None:
        states = self._states(network, options)
        for state, part in zip(states, residual.chunk(len(states)), strict=True):
            state[self.residual] = part

    def _kept(self, network, options) -> Tensor:
        return torch.cat([state[self.residual] for state in self._states(network, options)])
