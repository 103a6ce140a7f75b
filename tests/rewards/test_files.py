"""Where weights are found, and what is refused unopened."""

import pickle

import huggingface_hub
import pytest
import torch
from diffusion_blend.blend_core import BlendError
from diffusion_blend.blend_core.rewards import Library, RewardFile, load_reward
from diffusion_blend.blend_core.rewards.files import read_state_dict
from safetensors.torch import save_file

FILE = RewardFile("owner/repository", "weights.pt")


def touch(path):
    path.parent.mkdir(parents=True)
    path.touch()
    return path


@pytest.mark.parametrize("place", ["mine/weights.pt", "mine/weights.safetensors", "repository/weights.pt"])
def test_files_are_found_by_the_reward_or_by_the_repository(tmp_path, place):
    touch(tmp_path / "b" / place)
    assert Library((tmp_path / "a", tmp_path / "b")).find("mine", [FILE]) == [tmp_path / "b" / place]


def test_the_folder_of_a_host_serves_too(tmp_path):
    path = touch(tmp_path / "sd1_tokenizer" / "vocab.json")
    file = RewardFile("openai/clip", "vocab.json", also=("sd1_tokenizer",))
    assert Library((tmp_path,)).find("clipscore", [file]) == [path]


def test_then_the_cache_of_the_hub(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--owner--repository" / "snapshots" / "abc"
    path = touch(snapshot / "weights.pt")
    refs = tmp_path / "models--owner--repository" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    original = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda r, f: original(r, f, cache_dir=tmp_path))
    assert Library((tmp_path / "elsewhere",)).find("mine", [FILE]) == [path]


def test_a_missing_file_is_named_with_its_address_and_place(tmp_path):
    with pytest.raises(BlendError) as caught:
        load_reward("imagereward", Library((tmp_path,)))
    message = str(caught.value)
    assert "imagereward needs 2 files" in message and "Or allow downloads" in message
    assert "huggingface.co/THUDM/ImageReward/blob/main/ImageReward.pt" in message
    assert str(tmp_path / "imagereward" / "ImageReward.pt") in message
    assert "vocab.txt" in message


def test_a_download_that_fails_says_how_to_do_without(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # as the variable of that name does
    with pytest.raises(BlendError) as caught:
        load_reward("pickscore", Library((tmp_path,), download=True))
    message = str(caught.value)
    assert "a download failed" in message
    assert str(tmp_path / "pickscore" / "model.safetensors") in message


def test_a_file_that_the_user_is_to_bring_is_never_downloaded(library, small, tmp_path):
    with pytest.raises(BlendError, match="discus0434") as caught:
        load_reward("aesthetic_v2.5", Library((tmp_path,), download=True))
    assert "allow downloads" not in str(caught.value)


class Bomb:
    """A pickle that runs code where it is loaded."""

    def __init__(self, fuse):
        self.fuse = fuse

    def __reduce__(self):
        return open, (str(self.fuse), "w")


def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(tmp_path):
    path, fuse = tmp_path / "weights.pt", tmp_path / "fuse"
    torch.save({"a": torch.ones(2), "b": Bomb(fuse)}, path)
    with pytest.raises(BlendError, match="more than tensors"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps(Bomb(fuse)))
    with pytest.raises(BlendError):
        read_state_dict(path)
    assert not fuse.exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_a_truncated_file_is_called_damaged(tmp_path, name):
    path = tmp_path / name
    tensors = {"a": torch.rand(1000)}
    save_file(tensors, path) if name.endswith(".safetensors") else torch.save(tensors, path)
    assert torch.equal(read_state_dict(path)["a"], tensors["a"])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BlendError, match=r"damaged|cut off"):
        read_state_dict(path)


def test_an_empty_file_is_called_damaged(tmp_path):
    for name in ("weights.safetensors", "weights.pt"):
        (tmp_path / name).touch()
        with pytest.raises(BlendError, match="damaged"):
            read_state_dict(tmp_path / name)


def test_what_is_no_table_of_tensors_is_refused(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "weights.pt")
    with pytest.raises(BlendError, match="no table of tensors"):
        read_state_dict(tmp_path / "weights.pt")


def test_weights_of_another_model_are_refused_by_their_first_names(library, small, tmp_path):
    folder = tmp_path / "pickscore"
    folder.mkdir()
    save_file({"lora_unet_a.lora_up.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    with pytest.raises(BlendError) as caught:
        load_reward("pickscore", Library((tmp_path, *library.folders)))
    message = str(caught.value)
    assert "does not fit CLIPModel" in message and "1 are unknown (lora_unet_a.lora_up.weight)" in message


def test_a_head_of_another_width_is_refused(library, small, tmp_path):
    folder = tmp_path / "aesthetic_v1"
    folder.mkdir()
    torch.save({"weight": torch.ones(1, 5), "bias": torch.ones(1)}, folder / "sa_0_4_vit_l_14_linear.pth")
    with pytest.raises(BlendError, match="no chain of linear layers from 8 features to 1 score"):
        load_reward("aesthetic_v1", Library((tmp_path, *library.folders)))
