"""Diffusion Blend: dials over rewards for diffusion models, as a ComfyUI node pack.

ComfyUI calls :func:`comfy_entrypoint`; installed with pip, this folder is the package ``diffusion_blend``.
"""

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the ComfyUI extension that lists the nodes of this pack."""
    from .nodes import DiffusionBlendExtension  # imported here, so that tests and tools run without ComfyUI

    return DiffusionBlendExtension()
