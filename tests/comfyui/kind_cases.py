"""A family made ready with a file of some kind beside a plain LoRA, and copies that ComfyUI merged them into."""

from __future__ import annotations

from . import kinds, loras
from .families import named
from .graphs import Graph, latent

ALIGNMENT = 1.2
KINDS = ["loha", "loha_with_cores", "lokr", "lokr_whole", "difference", "dora_of_columns"]
# LoKr with Tucker cores is held against peft (tests/core/test_changes.py): ComfyUI fails to merge it.
FAMILIES = {
    "SD 1.5": lambda name: "lora_unet_" + name.replace(".", "_"),
    "SD3": "transformer.{}".format,
    "Flux": "transformer.{}".format,
}


class Case:
    """A family with a file of some kind, and a plain LoRA on some of the layers it changes."""

    def __init__(self, name, kind, nodes, folder):
        family, stem = named(name), FAMILIES[name]
        self.model, self.graph = family.load(), Graph(nodes, family.prompt(51), family.prompt(52))
        layers = family.layers(self.model)
        plain = loras.random_lora(f"{family.kind}_{kind}_plain", layers[::2], rank=2, alpha=2.0, seed=2)
        file = self._tensors(kind, layers, stem)
        loras.save(file, folder, f"{family.kind}_{kind}.safetensors")
        write = loras.write_kohya if family.is_unet else loras.write_transformer  # which ComfyUI reads
        self.files = [f"{family.kind}_{kind}.safetensors", write(plain, folder)]
        self.networks = [
            self.model.model,
            kinds.merged(family.load(), file),
            plain.merge_into(family.load().model),
        ]
        self.inputs = {"latent_image": latent(2, family.latent), "cfg": 3.0, "steps": 2}

    def _tensors(self, kind, layers, stem):
        if kind == "norms_and_biases":
            return kinds.norms_and_biases(self.model.model, seed=1)
        if kind == "dora_of_columns":  # ComfyUI reads the magnitudes of a square weight as those of its rows
            layers = [layer for layer in layers if layer.shape[0] != layer.shape[1] != 1]
        return kinds.written(getattr(kinds, kind), layers, stem, seed=1)

    def blend(self, alignment=ALIGNMENT):
        return self.graph.blend(self.files, "0.6, 0.4", alignment=alignment)
