"""Every family x every evaluation x either execution equals copies of the network with merged weights.

`python tests/comfyui/run.py --write-table` writes the outcome into docs/models.md; see coverage.py.
"""

import pytest
import torch

from . import coverage, spellings
from .every_family import EVERY, empty, flat, present
from .family_cases import Case, coefficients
from .host import REPOSITORY, submodule, version_of, workspaces
from .reference import ROUNDING, assert_differ, assert_equal, blended_reference, fused_reference, switching_reference

EVALUATIONS = ("exact", "stratified", "MSDDA")
EXECUTIONS = ("batched", "sequential")
SEED = 4  # of the choices: the two images take unlike variants


@pytest.fixture(scope="module", params=EVERY, ids=[family.name for family in EVERY])
def family(request):
    """One after the other; skipped by name where this ComfyUI lacks it."""
    if request.param.missing:
        pytest.skip(f"{request.param.name} is not in this ComfyUI")
    return request.param


@pytest.fixture(scope="module")
def case(family, nodes, lora_folder):
    """The family, built once."""
    return Case(family, nodes, lora_folder)


@pytest.fixture(scope="module")
def expected(case):
    """expected(evaluation): the latents of the merged networks, made once."""
    made = {}

    def make(evaluation):
        if evaluation not in made:
            made[evaluation] = flat(_REFERENCES[evaluation](case))
        return made[evaluation]

    return make


def _exact(case):
    return case.graph.plain(blended_reference(case.model, case.networks, coefficients(1.3)), **case.inputs)


def _stratified(case):
    estimators = submodule("blend_core.estimators")
    seeds = [estimators.image_seed(SEED, image) for image in range(case.family.images)]
    choices = estimators.stratified(coefficients(0.9), case.inputs["steps"], seeds).variants[:, 0].T
    assert len(choices.unique()) > 1
    assert case.family.images == 1 or not torch.equal(choices[0], choices[1])
    steps = [step for step in range(case.inputs["steps"]) for _ in range(case.family.calls)]
    reference = switching_reference(case.model, case.networks, choices, steps)
    return case.graph.plain(reference, **case.inputs)


def _fused(case):
    etas = (0.9, 1.0, 0.4)
    return fused_reference(
        case.graph, case.model, case.networks, coefficients(0.9), etas, flow=case.flow, **case.inputs
    )


_REFERENCES = {"exact": _exact, "stratified": _stratified, "MSDDA": _fused}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_a_blend_equals_merged_copies(case, expected, evaluation, execution):
    graph, model = case.graph, case.model
    if evaluation == "exact":
        result = graph.blended(model, case.blend(1.3), execution, **case.inputs)
    elif evaluation == "MSDDA":
        result = graph.msdda(model, case.blend(0.9), execution, "1, 0.4", 0.9, **case.inputs)
    else:
        applied = graph.applied(model, case.blend(0.9), execution, "stratified", SEED)
        result = graph.plain(applied, **case.inputs)
    assert_equal(flat(result), expected(evaluation), case.family.rounding * ROUNDING)


@pytest.mark.parametrize("family", present(f for f in EVERY if f.name in ("SVD", "ACE-Step 1.5")), indirect=True)
def test_images_that_change_each_other_take_one_choice(case):
    inputs = case.inputs | {"latent_image": empty(case.family, 2)}
    estimators, steps = submodule("blend_core.estimators"), range(inputs["steps"])
    seeds = [estimators.image_seed(SEED, 0)] * 2
    choices = estimators.stratified(coefficients(0.9), len(steps), seeds).variants[:, 0].T
    applied = case.graph.applied(case.model, case.blend(0.9), "batched", "stratified", SEED)
    expected = case.graph.plain(switching_reference(case.model, case.networks, choices, steps), **inputs)
    assert_equal(case.graph.plain(applied, **inputs), expected)


def test_the_network_is_known_to_need_one_variant_at_a_time(case):
    layout = submodule("nodes.host.networks.row_layout")
    assert layout.keeps_rows_apart(case.model.model) is not bool(case.family.sequential)


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_the_blend_is_not_the_base(case, expected, evaluation):
    """A comparison of two things that are both the base would show nothing."""
    assert_differ(expected(evaluation), flat(case.graph.plain(case.model, **case.inputs)))


def test_the_committed_table_says_what_is_covered():
    columns = coverage.committed((REPOSITORY / "docs" / "models.md").read_text())
    version = f"ComfyUI {version_of(workspaces()[0])}"
    if not any(version in of_family for of_family in columns.values()):
        pytest.skip(f"docs/models.md has no column for {version}")
    blends = len(EVALUATIONS) * len(EXECUTIONS)
    expected = {
        family.name: coverage.ABSENT if family.missing else coverage.cell(blends, spellings.count(family))
        for family in EVERY
    }
    advice = "write it again: python tests/comfyui/run.py --write-table"
    assert {name: of_family[version] for name, of_family in columns.items()} == expected, advice
