# SPDX-License-Identifier: Apache-2.0
"""Any conditions against one call per sample and level: factors, nulls, scales, and the references that rows read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medcf.inferers import create_method
from medcf.networks import AttentionInjection, Condition, Conditioner, Denoiser, References
from medcf.networks.stack import plan_stack
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

T, TOKENS, FEATURES, BATCH = 300, 2, 4, 3
#: Of which factors a condition consists: class labels, a prompt for all samples ("shared") or one each ("own"), both.
FACTORS = [
    *(("labels",), ("own",), ("shared",), ("labels+own",), ("own", "labels"), ("labels", "shared"), ("own", "shared")),
    *(("shared", "labels+own"), ("own", "labels", "shared"), ("labels", "own", "own")),
]


@pytest.fixture
def sample():
    return torch.randn(BATCH, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Mixing(torch.nn.Module):
    """The noise depends on the class, on every feature of every token, and on the order of the tokens."""

    def forward(self, sample, timesteps, context=None, class_labels=None):
        drive = torch.zeros(len(sample), dtype=sample.dtype)
        if context is not None:
            places = torch.linspace(0.5, 2.0, context[0].numel(), dtype=sample.dtype).reshape(context.shape[1:])
            drive = drive + (places * context).sum((1, 2))
        if class_labels is not None:
            drive = drive * (1 + 0.3 * class_labels) + 0.7 * class_labels
        return 0.1 * sample + (torch.sin(drive) + 0.2 * drive).reshape(-1, 1, 1, 1)


def draw(kinds, generator, scales=(1.0, 1.5, 3.0)):
    """Random factors, whose scales are often 1 or equal, for all samples or one each."""
    factors = []
    for kind in kinds:
        labels = torch.randint(0, 2, (BATCH,), generator=generator) if "labels" in kind else None
        rows = BATCH if "own" in kind else 1
        context = null = None
        if kind != "labels":
            context = torch.randn(rows, TOKENS, FEATURES, dtype=torch.float64, generator=generator)
            null = torch.randn(1, TOKENS, FEATURES, dtype=torch.float64, generator=generator)
        chosen = [scales[i] for i in torch.randint(0, len(scales), (BATCH,), generator=generator).tolist()]
        scale = chosen if torch.rand((), generator=generator) < 0.5 else chosen[0]
        nothing = Condition(None if labels is None else 2, null)
        factors.append(Condition(labels, context, nothing, scale))
    return factors


def given(factors, one, count):
    """The network's arguments for one sample, where the first ``count`` factors count."""
    told = {}
    for place, factor in enumerate(factors):
        source = factor if place < count else factor.null
        if factor.labels is not None:
            told["class_labels"] = factor.labels[one : one + 1] if place < count else torch.tensor([2])
        if factor.context is not None:
            tokens = source.context[one : one + 1] if len(source.context) > 1 else source.context
            told["context"] = torch.cat([told["context"], tokens], 1) if "context" in told else tokens
    return told


def one_by_one(call, factors):
    """The sum of (s_k - s_k+1) e(c_1 .. c_k), with s_0 = 1 and s_K+1 = 0; ``call(sample, k, arguments)`` gives e."""
    found = []
    for one in range(BATCH):
        scales = [1.0, *(factor.scales(BATCH)[one] for factor in factors), 0.0]
        weights = [scales[k] - scales[k + 1] for k in range(len(factors) + 1)]
        found.append(sum(w * call(one, k, given(factors, one, k)) for k, w in enumerate(weights) if w))
    return torch.cat(found)


def plain(network, sample):
    return lambda one, _level, told: network(sample[one : one + 1], timesteps=torch.tensor([T]), **told)


def noise(network, factors, sample, references=None):
    with torch.no_grad():
        return Denoiser(network, RespacedDDPMScheduler(1000), factors, references)(sample, T).noise


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kinds", FACTORS, ids=" ".join)
def test_any_factors_are_those_of_one_call_per_sample_and_level(sample, kinds, seed):
    factors = draw(kinds, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        noise(Mixing(), factors, sample), one_by_one(plain(Mixing(), sample), factors), rtol=0, atol=1e-9
    )
    needed = sum(
        sum(above != below for below, above in zip([1.0, *scales], [*scales, 0.0], strict=True))
        for scales in zip(*(factor.scales(BATCH) for factor in factors), strict=True)
    )
    assert len(plan_stack(factors, BATCH)) == needed  # rows that cancel are not run


def shifted(null):
    labels, context = null.labels, null.context
    return Condition(None if labels is None else labels - 1, None if context is None else context + 0.5)


@pytest.mark.parametrize("kinds", [("own", "labels"), ("shared", "labels+own"), ("own", "own")], ids=" ".join)
def test_factors_nulls_and_samples_cannot_be_exchanged(sample, kinds):
    """Shows that the comparison above would notice it."""
    factors = draw(kinds, torch.Generator().manual_seed(0), scales=(1.5, 3.0))
    first, second = (replace(factor, scale=scale) for factor, scale in zip(factors, (1.5, 3.0), strict=True))
    right = noise(Mixing(), [first, second], sample)
    turned = torch.tensor([1, 2, 0])
    wrong = {
        "scales": [replace(first, scale=3.0), replace(second, scale=1.5)],
        "order": [second, first],
        "null": [first, replace(second, null=shifted(second.null))],
        "samples": [first.rows(turned), second.rows(turned)],
    }
    for name, factors in wrong.items():
        assert (noise(Mixing(), factors, sample) - right).abs().amax() > 1e-2, name


def reading(network, sample, inputs, sources, factors, condition):
    """e of one sample beside its reference, whose condition is that of the sample's row, or the null of everything."""

    def call(one, _level, told):
        other = told if condition == "same" else given(factors, one, 0)
        stack = torch.cat([sample[one : one + 1], inputs[sources[one] : sources[one] + 1]])
        both = {name: torch.cat([told[name], other[name]]) for name in told}
        with torch.no_grad(), AttentionInjection(network) as injection:
            injection.reference = [1, 1]
            return network(stack, timesteps=torch.full((2,), T), **both)[:1]

    return call


@pytest.mark.parametrize("condition", ["same", "null"])
@pytest.mark.parametrize("sources", [[0, 1, 2], [1, 0, 0]])
@pytest.mark.parametrize("kinds", [("own",), ("labels+own",), ("shared", "own"), ("own", "labels")], ids=" ".join)
def test_references_have_the_prompt_of_the_row_that_reads_them(tiny_unet, sample, kinds, sources, condition):
    """On MONAI's U-Net with cross-attention, in double precision."""
    classes = {"num_class_embeds": 3} if "labels" in " ".join(kinds) else {}
    network = tiny_unet(with_conditioning=True, cross_attention_dim=FEATURES, **classes).double()
    factors = draw(kinds, torch.Generator().manual_seed(5), scales=(1.0, 2.0))
    inputs = torch.randn(BATCH, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    references = References(lambda _t: inputs, sources, AttentionInjection(network), condition)
    found = noise(network, factors, sample, references)
    wanted = one_by_one(reading(network, sample, inputs, sources, factors, condition), factors)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    other = "null" if condition == "same" else "same"
    unlike = one_by_one(reading(network, sample, inputs, sources, factors, other), factors)
    assert (found - unlike).abs().amax() > 1e-4  # the condition of the reference has an effect


def test_samples_with_one_prompt_share_their_references_and_others_do_not():
    null = torch.zeros(1, TOKENS, FEATURES)
    shared = Condition(context=torch.ones(1, TOKENS, FEATURES), null=Condition(context=null), scale=2.0)
    own = replace(shared, context=torch.ones(2, TOKENS, FEATURES))
    assert plan_stack([shared], 2, sources=[0, 0], reference="same").cost == [4, 2]
    assert plan_stack([own], 2, sources=[0, 0], reference="same").cost == [4, 3]  # they share the null's


def dark(image):
    """Everything is of class 0, and differentiable."""
    return torch.tensor([[3.0, 0.0]]).expand(len(image), 2) + 0 * image.sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("name", ["sdedit", "controlcg", "ilvr", "ddim_inversion", "ddpm_inversion", "diffice"])
def test_a_network_conditioned_by_prompts_alone_is_driven_by_the_prompt_of_the_target(tiny_unet, name):
    network = tiny_unet(with_conditioning=True, cross_attention_dim=FEATURES)  # it has no classes
    generator = torch.Generator().manual_seed(0)
    prompts, null = (3 * torch.randn(rows, TOKENS, FEATURES, generator=generator) for rows in (2, 1))
    images = torch.rand(2, 1, 8, 8, generator=generator) - 0.5

    def run(prompts, **options):
        told = Conditioner(contexts=prompts, null_context=null, by_class=False)
        if name == "diffice":
            options |= {"class_labels": "target", "num_iterations": 1, "classifier_scales": 0, "perceptual_scale": 0}
        method = create_method(
            name, scheduler=RespacedDDIMScheduler(1000), classifier=dark, target=1, conditioner=told,
            num_inference_steps=4, progress=False, guidance_scale=2.0, **options,
        )  # fmt: skip
        return method.explain(images, network, ["a", "b"]).image

    image = run(prompts)
    other = prompts.clone()
    other[1] += 1
    assert (run(other) - image).abs().amax() > 1e-3  # the target's
    if name not in ("ddim_inversion", "ddpm_inversion"):  # these walk up under the prompt of the input's class
        other = prompts.clone()
        other[0] += 1
        assert torch.equal(run(other), image)


def test_conditions_that_cannot_be_meant_are_refused_with_the_remedy(tiny_unet, sample):
    own, null = torch.zeros(2, TOKENS, FEATURES), torch.zeros(1, TOKENS, FEATURES)
    with pytest.raises(ValueError, match=r"null\.context has 2 rows.*one null"):
        Condition(context=own, null=Condition(context=own))
    with pytest.raises(ValueError, match=r"by_class=False leaves nothing.*give contexts"):
        Conditioner(by_class=False)
    with pytest.raises(ValueError, match=r"shapes \(2, 2, 4\) and \(1, 3, 4\).*padded to the same tokens"):
        Conditioner(contexts=own, null_context=torch.zeros(1, 3, FEATURES))
    with pytest.raises(ValueError, match="Class 2 has no prompt: contexts holds 2"):
        Conditioner(contexts=own, null_context=null)(torch.tensor([0, 2]))
    network = tiny_unet(with_conditioning=True, cross_attention_dim=FEATURES)
    with pytest.raises(ValueError, match=r"takes a prompt .* has none here.*null_context"):
        Denoiser(network, RespacedDDPMScheduler(1000))
    method = create_method(
        "sdedit", scheduler=RespacedDDPMScheduler(1000), classifier=dark, target=1, null_class_labels=2, progress=False
    )
    with pytest.raises(ValueError, match=r"no classes.*Conditioner\(contexts=\.\.\., by_class=False\)"):
        method(sample.clamp(-1, 1), network)
