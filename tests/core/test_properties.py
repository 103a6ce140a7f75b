"""Identities of the algebra for any input in range, searched by hypothesis; deterministic."""

import math

import pytest
import torch
from diffusion_blend.blend_core import Blend, BlendError
from diffusion_blend.blend_core.adapters import canonical
from diffusion_blend.blend_core.adapters.names.spelling import parse
from diffusion_blend.blend_core.blend import blend
from diffusion_blend.blend_core.estimators import exact, random, stratified
from diffusion_blend.blend_core.regions import painted
from diffusion_blend.blend_core.schedules import CURVES, Schedule
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pytest import approx, raises

SEARCH = settings(derandomize=True, deadline=None, max_examples=60, database=None)
COUNTS, ALIGNMENTS = st.integers(1, 5), st.floats(0, 4)
SEEDS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3)


@st.composite
def blends(draw, count=COUNTS, alignments=ALIGNMENTS):
    m = draw(count)
    weights = draw(st.lists(st.floats(0, 1), min_size=m, max_size=m).filter(lambda w: sum(w) > 1e-3))
    total = math.fsum(weights)
    kl_weights = draw(st.one_of(st.just(()), st.lists(st.floats(0.01, 10), min_size=m, max_size=m)))
    names = tuple(f"r{i}" for i in range(m))
    return Blend(names, tuple(w / total for w in weights), draw(alignments), tuple(kl_weights))


def predictions(count, seed=0):
    return torch.randn(count, 2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@SEARCH
@given(blends())
def test_coefficients_sum_to_1_and_those_of_the_bases_to_the_alignment(made):
    assert math.fsum(made.coefficients) == approx(1, abs=1e-8)
    assert math.fsum(made.coefficients[1:]) == approx(made.alignment, rel=1e-8, abs=1e-8)


@SEARCH
@given(blends(), st.floats(0, 4))
def test_the_distance_from_the_base_is_linear_in_the_alignment(made, factor):
    again = made.aligned(factor).coefficients
    assert again[1:] == approx([factor * c for c in made.coefficients[1:]], abs=1e-9)


@SEARCH
@given(blends(), st.randoms(use_true_random=False))
def test_the_order_of_the_bases_is_irrelevant(made, random):
    order = list(range(len(made.names)))
    random.shuffle(order)
    other = Blend(
        tuple(made.names[i] for i in order),
        tuple(made.preference[i] for i in order),
        made.alignment,
        tuple(made.kl_weights[i] for i in order),
    )
    assert [other.coefficients[1 + order.index(i)] for i in range(len(order))] == approx(made.coefficients[1:])
    assert other.coefficients[0] == approx(made.coefficients[0], abs=1e-8)


@SEARCH
@given(blends(), st.floats(-3, 3), st.floats(-3, 3))
def test_a_blend_commutes_with_every_affine_map_of_the_predictions(made, scale, shift):
    """Why blending noise, velocity or x0, and before or after guidance, is one and the same."""
    denoised = predictions(1 + len(made.names))
    coefficients = torch.tensor(made.coefficients, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    mapped = blend(coefficients, scale * denoised + shift)
    torch.testing.assert_close(mapped, scale * blend(coefficients, denoised) + shift, rtol=1e-6, atol=1e-6)


@SEARCH
@given(blends(), st.integers(1, 6))
def test_the_exact_plan_is_the_weighted_sum_and_asks_for_what_counts_alone(made, steps):
    denoised, asked = predictions(1 + len(made.names)), []

    def evaluate(variants):
        asked.extend(variants[:, 0].tolist())
        return denoised[variants[:, 0]]

    coefficients = torch.tensor(made.coefficients, dtype=torch.float64)
    result = exact(made.coefficients, steps, [0, 1])(evaluate, steps - 1)
    torch.testing.assert_close(result, (coefficients.view(-1, 1, 1, 1, 1) * denoised).sum(0), rtol=1e-9, atol=1e-9)
    assert asked == [i for i, c in enumerate(made.coefficients) if c != 0]


@SEARCH
@given(blends(alignments=st.floats(0, 1)), st.integers(1, 40), SEEDS)
def test_stratified_counts_stay_within_one_of_their_share_at_every_prefix(made, steps, seeds):
    assume(min(made.coefficients) >= 0)
    chosen = stratified(made.coefficients, steps, seeds).variants[:, 0]
    counts = torch.nn.functional.one_hot(chosen, len(made.coefficients)).cumsum(0)
    share = torch.arange(1, steps + 1)[:, None, None] * torch.tensor(made.coefficients)
    assert (counts - share).abs().max() <= 1 + 1e-6


@pytest.mark.slow
@SEARCH
@given(blends(alignments=st.floats(0, 1)), st.integers(1, 12), SEEDS)
def test_an_image_has_the_same_choices_alone_and_in_a_batch(made, steps, seeds):
    assume(min(made.coefficients) >= 0)
    for estimator in (random, stratified):
        batch = estimator(made.coefficients, steps, seeds).variants
        for image, seed in enumerate(seeds):
            assert torch.equal(estimator(made.coefficients, steps, [seed]).variants[..., 0], batch[..., image])
        assert (torch.tensor(made.coefficients, dtype=torch.float64)[batch] > 0).all()


@SEARCH
@given(
    st.integers(1, 4).flatmap(lambda m: st.lists(blends(count=st.just(m)), min_size=1, max_size=4)),
    st.sampled_from(sorted(CURVES)),
    st.integers(1, 30),
)
def test_a_schedule_starts_and_ends_at_its_blends_and_every_step_sums_to_1(keyframes, curve, steps):
    schedule = Schedule.even(keyframes, curve)
    table = schedule.coefficients(steps)
    assert table.sum(1).tolist() == approx([1] * steps, abs=1e-8)
    assert table[0].tolist() == approx(keyframes[0].coefficients)
    if steps > 1:
        assert table[-1].tolist() == approx(keyframes[-1].coefficients)
    corners = torch.tensor([frame.coefficients for frame in keyframes], dtype=torch.float64)
    assert (table <= corners.amax(0) + 1e-9).all() and (table >= corners.amin(0) - 1e-9).all()


@SEARCH
@given(
    st.lists(blends(count=st.just(2)), min_size=1, max_size=4),
    st.integers(0, 2**16),
    st.sampled_from([(4, 4), (3, 5), (8, 2)]),
)
def test_the_maps_of_painted_regions_sum_to_1_at_every_position(layers, seed, size):
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.rand(1, 16, 16, generator=generator) for _ in layers[1:]]
    tables = [torch.tensor(layer.coefficients, dtype=torch.float64).expand(3, -1) for layer in layers]
    plan = painted(tables, masks, size, 2)
    assert torch.allclose(plan.maps.sum(0), torch.ones(1, *size, dtype=torch.float64))
    x = torch.ones(2, 4, *size, dtype=torch.float64)
    everywhere = plan(lambda variants: x.expand(len(variants), *x.shape), 1)
    torch.testing.assert_close(everywhere, x, rtol=1e-6, atol=1e-6)


@SEARCH
@given(st.lists(st.floats(), min_size=1, max_size=4), st.floats())
def test_numbers_that_make_no_blend_raise_and_the_rest_is_finite(preference, alignment):
    names = tuple(f"r{i}" for i in range(len(preference)))
    try:
        made = Blend(names, tuple(preference), alignment)
    except BlendError:
        return
    assert all(math.isfinite(c) for c in made.coefficients)


PARTS = st.lists(st.from_regex(r"[a-z]{1,6}(_[a-z0-9]{1,3})?", fullmatch=True), min_size=1, max_size=5).map(".".join)
PREFIXES = st.lists(
    st.sampled_from(["", "module.", "base_model.model.", "unet.", "transformer.", "diffusion_model."]), max_size=3
)
ENDS = st.sampled_from(
    [("lora_A.weight", "down"), ("lora_B.weight", "up"), ("lora_down.weight", "down"), ("lora.up.weight", "up")]
)


@SEARCH
@given(PARTS, PREFIXES, ENDS)
def test_prefixes_and_separators_change_no_canonical_name(module, prefixes, end):
    assume(not module.startswith(("unet", "model", "module", "lora", "transformer", "pipe", "lycoris")))
    ending, role = end
    key = parse(f"{''.join(prefixes)}{module}.{ending}")
    assert (key.role, key.module) == (role, module)
    assert canonical(key.module) == canonical(canonical(key.module)) == module.replace(".", "_")
    flat = parse(f"lora_unet_{module.replace('.', '_')}.lora_down.weight")
    assert canonical(flat.module) == canonical(key.module)


@pytest.mark.slow
def test_the_search_itself_can_fail():
    @SEARCH
    @given(blends())
    def never_beyond(made):
        assert made.alignment < 3

    with raises(AssertionError):
        never_beyond()
