"""Turning the dials moves no weight: the model stays loaded as it is."""

import comfy.model_management
import pytest
from comfy.model_patcher import ModelPatcher


@pytest.fixture
def patched_weights(base, monkeypatch):
    """The names of the base's weights that ComfyUI patches, from here on."""
    names = []
    original = ModelPatcher.patch_weight_to_device

    def patch(self, key, *args, **kwargs):
        if self.model is base.model:
            names.append(key)
        return original(self, key, *args, **kwargs)

    monkeypatch.setattr(ModelPatcher, "patch_weight_to_device", patch)
    return names


def _places(model) -> list[int]:
    return [parameter.data_ptr() for parameter in model.model.parameters()]


def _loaded(model) -> int:
    """How often ComfyUI believes the model to be in memory."""
    return sum(loaded.model.is_clone(model) for loaded in comfy.model_management.current_loaded_models)


@pytest.mark.parametrize("route", ["Blended KSampler", "Apply Blend"])
def test_changing_the_weights_reloads_nothing(graph, base, files, patched_weights, route):
    def picture(weights, alignment):
        blend = graph.blend(files, weights, alignment)
        if route == "Blended KSampler":
            return graph.blended(base, blend)
        return graph.plain(graph.applied(base, blend))

    picture("1, 0, 0", 1.0)
    patched_weights.clear()  # the first picture of a process loads the model
    places, uuid = _places(base), base.model.current_weight_patches_uuid
    for weights, alignment in (("0.5, 0.5, 0", 1.0), ("0, 0.5, 0.5", 1.5)):
        picture(weights, alignment)
        assert _places(base) == places
        assert base.model.current_weight_patches_uuid == uuid
        assert _loaded(base) == 1
    assert patched_weights == []
