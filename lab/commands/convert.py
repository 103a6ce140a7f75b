"""`diffusion-blend convert`: another spelling for a LoRA, or a LoRA from a fully tuned network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import nn


def command(
    file: Annotated[Path, typer.Argument(help="A LoRA, or with --rank the weights of a fully tuned network.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    spelling: Annotated[str, typer.Option(help="kohya (ComfyUI, UNets), diffusers (transformers), or peft.")] = "kohya",
    base: Annotated[str, typer.Option(help="The base model: needed for kohya's names, and with --rank.")] = "",
    rank: Annotated[int, typer.Option(help="Make a LoRA of this rank from a tuned network; 0: file is a LoRA.")] = 0,
) -> None:
    """Write a LoRA under other names, header kept; or cut a fully tuned UNet or transformer down to a LoRA."""
    from ...blend_core import BlendError, read_adapter
    from ...trainers.files.convert import by_module, carried, reduced, spelled
    from ...trainers.files.lora import save_lora

    network, component = _network(base) if base else (None, "unet")
    if not rank:
        adapter = read_adapter(file)
        tensors = spelled(by_module(adapter, network), spelling, component)
        save_lora(out, tensors, carried(adapter.metadata))
        print(f"{out}: {len(adapter.modules)} modules in {spelling}'s spelling")
        return
    if network is None:
        raise BlendError("--rank came without --base. Give the model the network was tuned from.")
    result = reduced(_tuned(file), network, rank)
    save_lora(out, spelled(result.factors, spelling, component), {})
    worst = sorted(result.lost.items(), key=lambda pair: -pair[1])[:3]
    print(f"{out}: {len(result.factors)} modules of rank {rank}; {result.lost_share:.1%} of the change's norm is lost")
    print("most lost: " + ", ".join(f"{name} {share:.1%}" for name, share in worst))
    if result.left_out:
        print(f"left out, as no LoRA can hold it: {len(result.left_out)} changed weights, such as {result.left_out[0]}")


def _network(base: str) -> tuple[nn.Module, str]:
    from ...pipelines import load_base, network_of
    from ..toy import place

    pipe = load_base(place(base))
    return network_of(pipe), "unet" if getattr(pipe, "unet", None) is not None else "transformer"


def _tuned(file: Path) -> dict:
    from ...blend_core import BlendError
    from ...blend_core.rewards.files import read_state_dict

    weights = file / "diffusion_pytorch_model.safetensors" if file.is_dir() else file
    if not weights.is_file():
        raise BlendError(f"{weights} does not exist. Give the tuned network's folder or its .safetensors file.")
    return read_state_dict(weights)
