"""Blend Sweep's blends are those that Blend Weights and KL Interpolate make; Pareto Plot draws what was scored."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from .host import submodule
from .reference import assert_equal

BlendError = submodule("blend_core").BlendError


@pytest.fixture
def sweep(nodes):
    """Blend Sweep: (blends, labels)."""
    return lambda blend, over, **options: nodes["Sweep"].execute(blend=blend, over={"over": over, **options}).result


def plot(nodes, labels, *columns, **options):
    inputs = {"names": [options.pop("names", "")], "scores": {f"scores_{i}": score for i, score in enumerate(columns)}}
    return nodes["ParetoPlot"].execute(labels=labels, **inputs, **options).result


def test_a_sweep_over_preferences_is_blend_weights_at_each(graph, files, sweep):
    blends, labels = sweep(graph.blend(files[:2], "0.3, 0.7", alignment=0.5), "preference", parts=2)
    assert labels == ["r0 1, r1 0", "r0 0.5, r1 0.5", "r0 0, r1 1"]
    for blend, weights in zip(blends, ("1, 0", "0.5, 0.5", "0, 1"), strict=True):
        expected = graph.blend(files[:2], weights, alignment=0.5)
        assert blend.schedule == expected.schedule


def test_a_sweep_over_alignment_is_kl_interpolate_at_each(graph, base, files, sweep):
    blends, labels = sweep(graph.blend(files[:2], "0.3, 0.7"), "alignment", alignments="0, -1, 1.5")
    assert labels == ["alignment 0", "alignment -1", "alignment 1.5"]
    assert_equal(graph.blended(base, blends[0]), graph.plain(base))
    for place, alignment in ((1, -1.0), (2, 1.5)):
        expected = graph.blended(base, graph.blend(files[:2], "0.3, 0.7", alignment=alignment))
        assert torch.equal(graph.blended(base, blends[place]), expected)


def test_three_rewards_at_four_parts_are_fifteen_blends(graph, files, sweep):
    blends, _ = sweep(graph.blend(files, "1, 1, 1"), "preference", parts=4)
    assert len(blends) == 15


def test_grids_that_cannot_be_are_refused(graph, nodes, files, sweep):
    blend = graph.blend(files, "1, 1, 1")
    with pytest.raises(BlendError, match=r"50 parts and 3 rewards make 1326 blends, more than 256"):
        sweep(blend, "preference", parts=50)
    with pytest.raises(BlendError, match=r"alignments are ' ', expected numbers such as 0"):
        sweep(blend, "alignment", alignments=" ")
    frames = {"blend_0": blend, "blend_1": graph.blend(files, "1, 0, 0")}
    (schedule,) = nodes["BlendSchedule"].execute(blends=frames, curve="linear").result
    with pytest.raises(BlendError, match=r"a schedule, window or region came"):
        sweep(schedule, "preference", parts=2)
    assert len(sweep(schedule, "alignment", alignments="0.5, 1")[0]) == 2


def test_a_sweep_over_files_is_the_blend_with_each_of_them(graph, base, files, sweep, nodes):
    blend = graph.blend(files[:2], "0.3, 0.7", alignment=0.5)
    blends, labels = sweep(blend, "file", lora=2, files=f"{files[2]}, {files[1]}")
    assert len(labels) == len(set(labels)) == 2 and blends[0].names == blend.names
    assert torch.equal(graph.blended(base, blends[1]), graph.blended(base, blend))
    expected = graph.blend([files[0], files[2]], "0.3, 0.7", alignment=0.5)
    assert torch.equal(graph.blended(base, blends[0]), graph.blended(base, expected))


def test_files_are_found_by_a_pattern_and_epochs_are_in_their_order(files):
    import folder_paths

    loaders = submodule("nodes.loaders")
    source = Path(folder_paths.get_full_path("loras", files[0]))
    names = [f"epochs-{number}.safetensors" for number in (100, 9, 10)] + ["epochs [a²].safetensors"]
    try:
        for name in names:
            shutil.copy(source, source.with_name(name))
        folder_paths.filename_list_cache.clear()
        listed = [Path(name).name for name in loaders.files_like("*epochs-*")]
        assert listed == ["epochs-9.safetensors", "epochs-10.safetensors", "epochs-100.safetensors"]
        assert len(loaders.files_like("*epochs*")) == 4
        assert len(loaders.files_like("*epochs [a²].safetensors")) == 1
        with pytest.raises(BlendError, match=r"files has 'absent-\*', which is no file in models/loras"):
            loaders.files_like("absent-*")
    finally:
        for name in names:
            source.with_name(name).unlink()
        folder_paths.filename_list_cache.clear()


def test_a_sweep_over_files_refuses_what_it_cannot_replace(graph, files, sweep):
    blend = graph.blend(files[:2], "1, 1")
    with pytest.raises(BlendError, match="lora is 3, expected the number of a reward LoRA with a file, of 2 in"):
        sweep(blend, "file", lora=3, files=files[0])
    with pytest.raises(BlendError, match="files is empty"):
        sweep(blend, "file", lora=1, files=" ")


def test_the_grid_holds_every_image_below_its_label(nodes):
    images = torch.linspace(0, 1, 6).view(6, 1, 1, 1).expand(6, 40, 64, 3)
    (picture,) = nodes["SweepGrid"].execute(list(images.split(2)), ["a", "b", "c"]).result
    _, height, width, _ = picture.shape
    assert width == 3 * 64 + 4 * 8 and height > 2 * 40
    for column in range(3):
        left = 8 + column * 72
        values = [picture[0, height - 24 - 48 * (1 - row), left + 32].mean() for row in range(2)]
        assert torch.allclose(torch.stack(values), images[2 * column : 2 * column + 2, 0, 0, 0], atol=1 / 128)
    assert picture[0, :20].min() < 0.5  # the label
    (square,) = nodes["SweepGrid"].execute([images], ["a", "b", "c", "d", "e", "f"], [2]).result
    assert square.shape[2] == 2 * 64 + 3 * 8
    with pytest.raises(BlendError, match="6 images came for 4 labels, expected equally many of each"):
        nodes["SweepGrid"].execute([images], list("abcd"))


def test_the_plot_averages_over_the_images_of_each_blend(nodes):
    calm, vivid = [3.0, 1.0, 1.0, 1.0, 0.0, 0.5], [0.0, 1.0, 2.0, 2.0, 0.0, 0.0]
    images = torch.linspace(0, 1, 6).view(6, 1, 1, 1).expand(6, 32, 24, 3)
    image, volume, table, text = plot(nodes, ["a", "b", "c"], calm, vivid, names="calm, vivid", image=[images])
    facts = json.loads(text)
    assert facts["rewards"] == ["calm", "vivid"] and facts["front"] == [0, 1]
    assert [point["means"] for point in facts["points"]] == [[2.0, 0.5], [1.0, 2.0], [0.25, 0.0]]
    assert facts["points"][0]["standard_errors"] == pytest.approx([1.0, 0.5])
    assert volume == pytest.approx(1.75 * 0.5 + 0.75 * 1.5)
    assert "| b | 1 | 2 | yes |" in table and "| c | 0.25 | 0 |  |" in table
    assert image.shape[0] == 1 and image.shape[-1] == 3 and 0 <= image.min() < image.max() <= 1
    without = plot(nodes, ["a", "b", "c"], calm, vivid)[0]
    assert without.shape[1] < image.shape[1]


def test_a_reference_makes_plots_comparable(nodes):
    assert plot(nodes, ["a"], [2.0], [3.0], reference=["1, 1"])[1] == pytest.approx(2.0)


def test_what_does_not_fit_together_is_refused(nodes):
    with pytest.raises(BlendError, match=r"2, 4 scores came for 2 labels"):
        plot(nodes, ["a", "b"], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(BlendError, match=r"3 scores came for 2 labels"):
        plot(nodes, ["a", "b"], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    with pytest.raises(BlendError, match=r"names are 'calm' for 2 rewards"):
        plot(nodes, ["a"], [1.0], [1.0], names="calm")
    with pytest.raises(BlendError, match=r"reference is '0' for 2 rewards"):
        plot(nodes, ["a"], [1.0], [1.0], reference=["0"])
    with pytest.raises(BlendError, match=r"2 images came with 1 scores"):
        plot(nodes, ["a"], [1.0], [1.0], image=[torch.rand(2, 8, 8, 3)])
