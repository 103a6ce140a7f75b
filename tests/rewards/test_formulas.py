"""Rewards without weights, on pictures whose values are known."""

import pytest
import torch
from diffusion_blend.blend_core.rewards import colourfulness, jpeg_compressibility, load_reward


def flat(*rgb, size=32):
    return torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, size, size)


def score(name, images):
    (value,) = load_reward(name)(images).tolist()
    return value


def halves():
    """Black on the left, white on the right."""
    images = torch.zeros(1, 3, 32, 32)
    images[..., 16:] = 1
    return images


def noise(size=512):
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_colourfulness_of_known_pictures():
    assert colourfulness(flat(0.4, 0.4, 0.4)).item() == pytest.approx(0, abs=1e-3)
    assert colourfulness(flat(1, 0, 0)).item() == pytest.approx(85.5, abs=0.1)
    assert colourfulness(noise()).item() == pytest.approx(138.1, abs=0.5)


def test_brightness_is_the_mean_luma():
    assert score("brightness", flat(1, 0, 0)) == pytest.approx(0.299)
    assert score("brightness", halves()) == pytest.approx(0.5)


def test_contrast_of_half_black_half_white_is_a_half():
    assert score("contrast", halves()) == pytest.approx(0.5, abs=1e-6)
    assert score("contrast", flat(0.3, 0.6, 0.9)) == pytest.approx(0, abs=2e-4)


def test_saturation_is_the_chroma():
    assert score("saturation", flat(1, 0, 0)) == 1
    assert score("saturation", flat(0.7, 0.7, 0.7)) == 0
    assert score("saturation", flat(0.2, 0.5, 0.3)) == pytest.approx(0.3)


def test_sharpness_of_a_single_white_pixel():
    images = torch.zeros(1, 3, 12, 12)
    images[..., 6, 6] = 1
    values = torch.zeros(100, dtype=torch.float64)
    values[:5] = torch.tensor([-4.0, 1, 1, 1, 1]) * 255
    assert score("sharpness", images) == pytest.approx(values.var(unbiased=False).item(), rel=1e-5)
    assert score("sharpness", flat(0.2, 0.5, 0.3)) == pytest.approx(0, abs=1e-6)
    assert score("sharpness", flat(0.2, 0.5, 0.3, size=2)) == 0


def test_blur_lowers_sharpness():
    blurred = torch.nn.functional.avg_pool2d(noise(64), 3, 1, 1)
    assert score("sharpness", blurred) < score("sharpness", noise(64)) / 2


def test_symmetry_of_mirrors_is_one():
    assert score("symmetry", torch.cat([noise(64), noise(64).flip(-1)], -1)) == pytest.approx(1, abs=1e-6)
    assert score("symmetry", halves()) == pytest.approx(0, abs=1e-6)


def test_jpeg_sizes_are_those_of_a_real_file(tmp_path):
    from PIL import Image

    images = noise(64)
    pixels = (images[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    kilobytes = (tmp_path / "a.jpg").stat().st_size / 1000
    assert score("jpeg_incompressibility", images) == pytest.approx(kilobytes)
    assert score("jpeg_compressibility", images) == pytest.approx(-kilobytes)
    assert jpeg_compressibility(flat(0.5, 0.5, 0.5, size=512)).item() == pytest.approx(-4.7, abs=0.5)
