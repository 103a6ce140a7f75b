"""Rewards: functions of images (batch, 3, height, width) in [0, 1] that give one float32 score per image, (batch,).

Higher is better, and an image's score does not depend on its neighbours in the batch.
"""

from .image import colourfulness, jpeg_compressibility

__all__ = ["colourfulness", "jpeg_compressibility"]
