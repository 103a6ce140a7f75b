"""Random LoRAs for any diffusers network, as files, and copies of the network with their weights merged."""

import copy

import torch
from safetensors.torch import save_file
from torch import nn


def adapted_modules(network):
    """{path: module} of every linear layer and 2D convolution."""
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def random_lora(network, seed, rank=2, size=0.05, skip=lambda name: False):
    """{path: (down, up)} on every layer; `size` is the standard deviation of the delta's entries."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, module in adapted_modules(network).items():
        if skip(name):
            continue
        weight = module.weight
        down = torch.randn(rank, *weight.shape[1:], generator=generator)
        up = torch.randn(weight.shape[0], rank, generator=generator) * size / rank**0.5
        pairs[name] = (down, up)
    return pairs


def write_lora(path, pairs, metadata=None, prefix="base_model.model."):
    """`pairs` in peft's spelling; without alpha the scale is 1."""
    tensors = {}
    for name, (down, up) in pairs.items():
        trailing = (1,) * (down.dim() - 2)
        tensors[f"{prefix}{name}.lora_A.weight"] = down
        tensors[f"{prefix}{name}.lora_B.weight"] = up.reshape(*up.shape, *trailing)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


def merged(network, *weighted):
    """A copy of the network with sum_i w_i up_i down_i added to its weights; weighted: pairs of (w_i, lora_i)."""
    tuned = copy.deepcopy(network)
    modules = adapted_modules(tuned)
    with torch.no_grad():
        for weight, lora in weighted:
            for name, (down, up) in lora.items():
                delta = up.double() @ down.double().flatten(1)
                modules[name].weight += (weight * delta).reshape(modules[name].weight.shape).float()
    return tuned
