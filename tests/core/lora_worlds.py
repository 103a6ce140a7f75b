"""Small hosts shaped like ComfyUI's key maps, and one tiny LoRA for each, to be written in any spelling."""

from dataclasses import dataclass

import torch
from diffusion_blend.blend_core.adapters import Target, TargetIndex
from safetensors.torch import save_file

RANK = 2


@dataclass(frozen=True)
class Weight:
    """One host weight by both names. rows and swap as in Target; aliases only the host's map knows go elsewhere."""

    diffusers: str
    native: str
    shape: tuple
    rows: tuple | None = None
    swap: bool = False

    @property
    def target(self):
        return Target("diffusion_model." + self.native, self.shape, self.rows, self.swap)


@dataclass(frozen=True)
class Host:
    name: str
    weights: tuple
    style: str  # which branch of ComfyUI's model_lora_keys_unet it follows: unet, sd3, flux or wan

    @property
    def plain(self):
        """Weights with one name in each code base: no slice, no swap."""
        return [weight for weight in self.weights if weight.rows is None and not weight.swap]

    @property
    def index(self):
        aliases = {}
        for weight in self.weights:
            whole = Target("diffusion_model." + weight.native, weight.shape)
            aliases["lora_unet_" + weight.native.replace(".", "_")] = whole
            aliases["diffusion_model." + weight.native] = whole
            aliases.update((name, weight.target) for name in _diffusers_aliases(self.style, weight.diffusers))
        return TargetIndex(aliases)

    @property
    def diffusers_index(self):
        """The same network as diffusers builds it: its own module paths, nothing fused."""
        return TargetIndex(
            {
                weight.diffusers: Target(weight.diffusers, (weight.target.height, *weight.shape[1:]))
                for weight in self.weights
            }
        )


def _diffusers_aliases(style, name):
    flat = name.replace(".", "_")
    if style == "unet":
        processor = name.replace(".to_", ".processor.to_").removesuffix(".0")
        return [f"lora_unet_{flat}", f"lycoris_{flat}", processor, f"unet.{processor}"]
    if style == "sd3":
        return [f"transformer.{name}", f"base_model.model.{name}", f"lora_transformer_{flat}", f"lycoris_{flat}"]
    if style == "flux":
        return [f"transformer.{name}", f"lycoris_{flat}", f"lora_transformer_{flat}", name]
    return []  # Wan: ComfyUI knows its own names only


def _unet(name, context, diffusers, native, resnet, native_resnet, conv_proj):
    width = 8
    weights = [
        Weight(f"{diffusers}.transformer_blocks.0.{part}", f"{native}.transformer_blocks.0.{part}", shape)
        for part, shape in (
            ("attn1.to_q", (width, width)),
            ("attn1.to_out.0", (width, width)),
            ("attn2.to_k", (width, context)),
            ("ff.net.0.proj", (8 * width, width)),
        )
    ]
    proj = (width, width, 1, 1) if conv_proj else (width, width)
    weights.append(Weight(f"{diffusers}.proj_in", f"{native}.proj_in", proj))
    weights.append(Weight(f"{resnet}.conv1", f"{native_resnet}.in_layers.2", (width, width, 3, 3)))
    return Host(name, tuple(weights), "unet")


SD15 = _unet(
    "SD 1.5", 768, "down_blocks.0.attentions.0", "input_blocks.1.1", "down_blocks.0.resnets.0", "input_blocks.1.0", True
)
SDXL = _unet(
    "SDXL", 2048, "down_blocks.1.attentions.0", "input_blocks.4.1", "up_blocks.1.resnets.2", "output_blocks.5.0", False
)


def _fused(diffusers, names, native, h, shape):
    return [
        Weight(f"{diffusers}.{name}", native, shape, (i * h, h if name != "proj_mlp" else shape[0] - i * h))
        for i, name in enumerate(names)
    ]


def _sd3(h=8):
    block, joint = "transformer_blocks.0", "joint_blocks.0"
    return Host(
        "SD3",
        (
            *_fused(block, ("attn.to_q", "attn.to_k", "attn.to_v"), f"{joint}.x_block.attn.qkv", h, (3 * h, h)),
            Weight(f"{block}.attn.to_out.0", f"{joint}.x_block.attn.proj", (h, h)),
            Weight(f"{block}.attn.to_add_out", f"{joint}.context_block.attn.proj", (h, h)),
            Weight(f"{block}.ff.net.0.proj", f"{joint}.x_block.mlp.fc1", (4 * h, h)),
            Weight("norm_out.linear", "final_layer.adaLN_modulation.1", (2 * h, h), swap=True),
        ),
        "sd3",
    )


def _flux(h=8):
    double, single = "transformer_blocks.0", "single_transformer_blocks.0"
    txt = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
    split = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    return Host(
        "Flux",
        (
            *_fused(double, ("attn.to_q", "attn.to_k", "attn.to_v"), "double_blocks.0.img_attn.qkv", h, (3 * h, h)),
            *_fused(double, txt, "double_blocks.0.txt_attn.qkv", h, (3 * h, h)),
            *_fused(single, split, "single_blocks.0.linear1", h, (7 * h, h)),
            Weight(f"{double}.attn.to_out.0", "double_blocks.0.img_attn.proj", (h, h)),
            Weight(f"{double}.attn.to_add_out", "double_blocks.0.txt_attn.proj", (h, h)),
            Weight(f"{single}.proj_out", "single_blocks.0.linear2", (h, 5 * h)),
            Weight("norm_out.linear", "final_layer.adaLN_modulation.1", (2 * h, h), swap=True),
        ),
        "flux",
    )


def _wan(h=8):
    names = (
        ("attn1.to_q", "self_attn.q"), ("attn1.to_out.0", "self_attn.o"), ("attn2.to_k", "cross_attn.k"),
        ("attn2.add_k_proj", "cross_attn.k_img"),
    )  # fmt: skip
    weights = [Weight(f"blocks.0.{diffusers}", f"blocks.0.{native}", (h, h)) for diffusers, native in names]
    return Host("Wan", (*weights, Weight("blocks.0.ffn.net.2", "blocks.0.ffn.2", (h, 4 * h))), "wan")


SD3, FLUX, WAN = _sd3(), _flux(), _wan()
HOSTS = (SD15, SDXL, SD3, FLUX, WAN)


def tensors_for(weights, rank=RANK, seed=0):
    """{weight: (down, up)} as a trainer would save them: convolutions with an `up` of (out, rank, 1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for weight in weights:
        out = weight.rows[1] if weight.rows else weight.shape[0]
        trailing = (1,) * (len(weight.shape) - 2)
        down = torch.randn(rank, *weight.shape[1:], generator=generator)
        pairs[weight] = (down, torch.randn(out, rank, *trailing, generator=generator))
    return pairs


def _processor(prefix):
    def names(weight):
        block, dot, last = weight.diffusers.removesuffix(".0").rpartition(".to_")
        if not dot:  # that diffusers wrote attention only
            return f"{prefix}{weight.diffusers}.lora.down.weight", f"{prefix}{weight.diffusers}.lora.up.weight"
        return tuple(f"{prefix}{block}.processor.to_{last}_lora.{side}.weight" for side in ("down", "up"))

    return names


def _dotted(prefix, native=False, down="lora_A.weight", up="lora_B.weight"):
    def names(weight):
        module = weight.native if native else weight.diffusers
        return f"{prefix}{module}.{down}", f"{prefix}{module}.{up}"

    return names


def _flat(prefix, native=False):
    def names(weight):
        module = (weight.native if native else weight.diffusers).replace(".", "_")
        return f"{prefix}{module}.lora_down.weight", f"{prefix}{module}.lora_up.weight"

    return names


def _xlabs(weight):
    """Only Flux's attention has such names."""
    block, _, part = weight.native.rpartition(".")
    part = {"linear1": "qkv", "linear2": "proj"}.get(part, part)
    stream = {"img_attn": "1", "txt_attn": "2"}.get(block.rpartition(".")[2], "")
    block = block.removesuffix(".img_attn").removesuffix(".txt_attn")
    return tuple(f"{block}.processor.{part}_lora{stream}.{side}.weight" for side in ("down", "up"))


# Row of LORA_FORMATS.md section 3 -> the two key names of a weight.
SPELLINGS = {
    "1 diffusers to 0.21": _processor(""),
    "2 with pipeline prefix": _processor("unet."),
    "3 diffusers 0.22": _dotted("unet.", down="lora.down.weight", up="lora.up.weight"),
    "4 diffusers with peft names": _dotted("transformer."),
    "5 peft": _dotted("base_model.model."),
    "6 peft state dict": _dotted("base_model.model.", down="lora_A.learner.weight", up="lora_B.learner.weight"),
    "7 wrapped": _dotted("module.base_model.model.unet._orig_mod."),
    "8 no prefix": _dotted(""),
    "9 kohya": _flat("lora_unet_"),
    "10 kohya native": _flat("lora_unet_", native=True),
    "11 OneTrainer": _flat("lora_transformer_"),
    "12 LyCORIS": _flat("lycoris_"),
    "13 ComfyUI native": _dotted("diffusion_model.", native=True),
    "14 two underscores": _flat("lora_unet__", native=True),
    "15 XLabs": _xlabs,
    "16 BFL": _dotted("", native=True),
}


def spelled(pairs, spelling):
    """{key: tensor} of a LoRA in one spelling."""
    tensors = {}
    for weight, (down, up) in pairs.items():
        down_key, up_key = SPELLINGS[spelling](weight)
        tensors[down_key], tensors[up_key] = down.contiguous(), up.contiguous()
    return tensors


def write(path, tensors, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)
    return path


def pair(module="down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", rank=RANK, out=8, width=8):
    """The two tensors of one module in the bare peft spelling."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, width, generator=generator),
        f"{module}.lora_B.weight": torch.randn(out, rank, generator=generator),
    }


def deltas(resolved):
    """{(module, rows): scale * up @ down, shape of the target's rows}."""
    return {
        (target.module, target.rows): factors.scale * (factors.up.double() @ factors.down.double().flatten(1))
        for target, change in resolved.items()
        if (factors := change.factors) is not None
    }


def assert_same_deltas(left, right):
    assert left.keys() == right.keys()
    for key, delta in left.items():
        assert torch.allclose(delta, right[key], rtol=0, atol=1e-12), key
