# SPDX-License-Identifier: Apache-2.0
"""Attention injection against its formula, over MONAI's networks as they are."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks import CrossAttentionBlock, SABlock
from monai.networks.nets import UNet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medcf.networks import AttentionInjection, ClassTokenUNet

KINDS = {
    "2d": {},
    "2d_flash": {"use_flash_attention": True},
    "2d_conditioned": {"with_conditioning": True, "cross_attention_dim": 4, "use_combined_linear": True},
    "3d": {"spatial_dims": 3, "use_combined_linear": True, "use_flash_attention": True},
    "3d_conditioned": {"spatial_dims": 3, "with_conditioning": True, "cross_attention_dim": 4},
}
REFERENCE = [2, 3, 2, 3]  # the stack [x|c, x|null, y|c, y|null]


class Stack:
    """A perturbed U-Net in double precision and four rows for it."""

    def __init__(self, network, **options):
        self.network = network.double()
        dims = options.get("spatial_dims", 2)
        self.conditioned = options.get("with_conditioning", False)
        generator = torch.Generator().manual_seed(1)
        self.image = torch.randn(4, 1, *(8,) * dims, dtype=torch.float64, generator=generator)
        self.context = torch.randn(2, 1, 4, dtype=torch.float64, generator=generator).repeat(2, 1, 1)

    def __call__(self, image=None, rows=None):
        image = self.image if image is None else image
        rows = list(range(len(image))) if rows is None else rows
        timesteps = torch.full((len(rows),), 300)
        options = {"context": self.context[rows]} if self.conditioned else {}
        with torch.no_grad():
            return self.network(image[rows], timesteps, **options)

    def injected(self, image=None, scale=1.0, reference=REFERENCE):
        with AttentionInjection(self.network, scale) as injection:
            injection.reference = reference
            return self(image)


@pytest.fixture(params=KINDS)
def stack(tiny_unet, request):
    options = KINDS[request.param]
    return Stack(tiny_unet(**options), **options)


def self_attention(network):
    return [module for module in network.modules() if isinstance(module, SABlock)]


def close(first, second, tolerance=1e-10):
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_a_reference_equal_to_its_row_changes_nothing(stack, scale):
    stack.image[2:] = stack.image[:2]
    close(stack.injected(scale=scale), stack())


def test_a_scale_of_zero_changes_nothing(stack):
    close(stack.injected(scale=0.0), stack(), 1e-12)


@pytest.mark.parametrize("reference", [None, [0, 1, 2, 3]])
def test_without_another_row_to_read_nothing_changes(stack, reference):
    close(stack.injected(reference=reference), stack(), 1e-12)


def test_a_flash_network_is_the_same_bit_for_bit_at_scale_zero(tiny_unet):
    stack = Stack(tiny_unet(**KINDS["2d_flash"]))
    assert torch.equal(stack.injected(scale=0.0), stack())


def test_readers_change_and_the_rows_they_read_do_not(stack):
    plain, injected = stack(), stack.injected()
    assert (injected - plain)[:2].abs().amax(dim=tuple(range(1, plain.ndim))).min() > 1e-3
    close(injected[2:], plain[2:], 1e-12)
    other = stack.image.clone()
    other[:2] = torch.randn_like(other[:2])
    close(stack.injected(other)[2:], injected[2:], 1e-12)
    close(injected[2:], stack(rows=[2, 3]), 1e-12)


def test_each_row_reads_the_row_that_it_names(stack):
    crossed = stack.injected(reference=[3, 2, 2, 3])
    swapped = stack.image[[0, 1, 3, 2]]
    if stack.conditioned:  # contexts of rows 2 and 3 are those of 0 and 1: swap them along
        stack.context = stack.context[[0, 1, 3, 2]]
    close(crossed[:2], stack.injected(swapped)[:2])


def by_hand(block, tokens, reference, scale):
    """Eq. 8 with explicit matrices: out_i = (sum_self e v + s sum_ref e v) / (sum_self e + s sum_ref e)."""
    if block.use_combined_linear:
        weights = block.qkv.weight.chunk(3)
        biases = block.qkv.bias.chunk(3) if block.qkv.bias is not None else (0.0, 0.0, 0.0)
    else:
        linears = block.to_q, block.to_k, block.to_v
        weights = [linear.weight for linear in linears]
        biases = [linear.bias if linear.bias is not None else 0.0 for linear in linears]
    query, key, value = (tokens @ weight.T + bias for weight, bias in zip(weights, biases, strict=True))
    width = block.dim_head
    rows = []
    for row, source in enumerate(reference):
        heads = []
        for head in range(block.num_heads):
            part = slice(head * width, (head + 1) * width)
            own = torch.exp(query[row, :, part] @ key[row, :, part].T / width**0.5)
            given = torch.exp(query[row, :, part] @ key[source, :, part].T / width**0.5) * scale
            if source == row:
                given = torch.zeros_like(given)
            total = own.sum(1, keepdim=True) + given.sum(1, keepdim=True)
            heads.append((own @ value[row, :, part] + given @ value[source, :, part]) / total)
        rows.append(torch.cat(heads, dim=1))
    mixed = torch.stack(rows)
    return mixed @ block.out_proj.weight.T + block.out_proj.bias if block.include_fc else mixed


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("reference", [REFERENCE, [3, 3, 3, 3], [0, 0, 1, 3]])
def test_every_block_computes_equation_8_on_the_tokens_behind_its_norm(stack, scale, reference):
    calls = []
    handles = [
        block.register_forward_hook(lambda block, args, output: calls.append((block, args[0], output)))
        for block in self_attention(stack.network)
    ]
    stack.injected(scale=scale, reference=reference)
    for handle in handles:
        handle.remove()
    assert {block for block, _, _ in calls} == set(self_attention(stack.network))
    for block, tokens, output in calls:
        close(output, by_hand(block, tokens, reference, scale))


@pytest.mark.parametrize("width", [8, 12, 16])
def test_heads_of_any_width_are_weighted(width):
    torch.manual_seed(0)
    block = SABlock(hidden_size=2 * width, num_heads=2, qkv_bias=True).double()
    tokens = torch.randn(2, 10, 2 * width, dtype=torch.float64)
    with torch.no_grad(), AttentionInjection(block, 0.5) as injection:
        injection.reference = [1, 1]
        close(block(tokens), by_hand(block, tokens, [1, 1], 0.5))


@pytest.mark.parametrize("flash", [False, True])
def test_dropout_is_for_training_alone(flash):
    torch.manual_seed(0)
    block = SABlock(16, 2, dropout_rate=0.5, qkv_bias=True, use_flash_attention=flash).double().eval()
    tokens = torch.randn(2, 40, 16, dtype=torch.float64)
    with torch.no_grad(), AttentionInjection(block, 0.5) as injection:
        injection.reference = [1, 1]
        expected = by_hand(block, tokens, [1, 1], 0.5)
        close(block(tokens), expected)
        block.train()
        block.drop_output.eval()
        weights = block(tokens)
        assert (weights - block(tokens)).abs().amax((1, 2)).min() > 1e-3  # other weights are dropped each time
        block.drop_output.train()
        block.dropout_rate = 0.0
        output = block(tokens)
    kept = output != 0
    assert 0.4 < float(kept.double().mean()) < 0.6
    close(output[kept], 2 * expected[kept])


def test_the_order_of_the_references_tokens_does_not_matter():
    torch.manual_seed(0)
    block = SABlock(hidden_size=16, num_heads=2, qkv_bias=True).double()
    tokens = torch.randn(2, 12, 16, dtype=torch.float64)
    order = torch.randperm(12)
    shuffled, own = tokens.clone(), tokens.clone()
    shuffled[1], own[0] = tokens[1, order], tokens[0, order]
    with torch.no_grad(), AttentionInjection(block, 0.7) as injection:
        injection.reference = [1, 1]
        expected = block(tokens)
        close(block(shuffled)[0], expected[0], 1e-12)
        close(block(own)[0], expected[0, order], 1e-12)


def test_cross_attention_runs_as_it_is(stack):
    calls = []
    blocks = [module for module in stack.network.modules() if isinstance(module, CrossAttentionBlock)]
    assert bool(blocks) == stack.conditioned
    handles = [
        block.register_forward_hook(
            lambda block, args, kwargs, output: calls.append((block, args, kwargs, output)), with_kwargs=True
        )
        for block in blocks
    ]
    stack.injected()
    for handle in handles:
        handle.remove()
    assert len(calls) == len(blocks)
    for block, args, kwargs, output in calls:
        with torch.no_grad():
            assert torch.equal(block(*args, **kwargs), output)


def test_the_network_is_itself_after_the_block(stack):
    before = stack()
    stack.injected()
    assert torch.equal(stack(), before)
    assert not any("forward" in vars(block) for block in self_attention(stack.network))


def test_the_network_is_itself_after_an_exception(stack):
    before = stack()
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        stack.injected(stack.image[..., :-1])  # 7 columns: the halves do not meet on the way up
    assert torch.equal(stack(), before)
    with pytest.raises(ValueError, match="batch of 2, but the network got 4"):
        stack.injected(reference=[1, 1])
    assert torch.equal(stack(), before)


def test_a_forward_that_someone_else_replaced_comes_back(tiny_unet):
    stack = Stack(tiny_unet())
    block = self_attention(stack.network)[0]
    mine = block.forward
    block.forward = mine
    stack.injected()
    assert vars(block)["forward"] is mine


def test_a_network_takes_one_injection_at_a_time_and_another_after_it(tiny_unet):
    stack = Stack(tiny_unet())
    expected = stack.injected()
    with AttentionInjection(stack.network) as outer:
        with pytest.raises(RuntimeError, match="already"), AttentionInjection(nn.Sequential(stack.network)):
            pass
        outer.reference = REFERENCE  # the failed attempt took nothing away
        assert torch.equal(stack(), expected)
    assert torch.equal(stack.injected(), expected)


def test_the_reference_is_changed_between_forwards(tiny_unet):
    stack = Stack(tiny_unet())
    with AttentionInjection(stack.network) as injection:
        assert injection.reference is None
        close(stack(), Stack(tiny_unet())(), 1e-12)
        injection.reference = torch.tensor([1, 1, 3, 3])
        first = stack()
        injection.reference = REFERENCE
        second = stack()
    close(first, stack.injected(reference=[1, 1, 3, 3]), 1e-12)
    close(second, stack.injected(), 1e-12)


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor has that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("flash", [True, False])
def test_no_attention_matrix_is_ever_made(tiny_unet, flash, scale):
    network = tiny_unet(use_flash_attention=flash)
    image, timesteps = torch.randn(4, 1, 32, 32), torch.full((4,), 10)
    tokens = 16 * 16
    if not flash:  # the counter does see such a matrix
        with torch.no_grad(), LargestTensor() as plain:
            network(image, timesteps)
        assert plain.elements >= tokens * 2 * tokens
    for grad in (False, True):
        with torch.set_grad_enabled(grad), AttentionInjection(network, scale) as injection, LargestTensor() as largest:
            injection.reference = REFERENCE
            output = network(image, timesteps)
            if grad:
                output.square().mean().backward()
        assert largest.elements < tokens * 2 * tokens


def test_keys_and_values_are_projected_once(tiny_unet):
    stack = Stack(tiny_unet())
    calls = []
    blocks = self_attention(stack.network)
    for block in blocks:
        for linear in (block.to_q, block.to_k, block.to_v):
            linear.register_forward_hook(lambda linear, args, output: calls.append(len(args[0])))
    stack.injected()
    assert calls == [4] * 3 * len(blocks)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_half_precision_costs_no_more_than_the_networks_own_rounding(tiny_unet, scale):
    stack = Stack(tiny_unet(**KINDS["2d_flash"]))
    exact, plain = stack.injected(scale=scale), stack()
    stack.network.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, rounded = stack.injected(stack.image.float(), scale=scale), stack(stack.image.float())
    assert (half - exact).norm() < 1.5 * (rounded - plain).norm()
    assert (half - exact).norm() < 0.05 * exact.norm()


def test_gradients_flow_to_the_reference_and_match_finite_differences():
    torch.manual_seed(0)
    block = SABlock(hidden_size=8, num_heads=2, qkv_bias=True).double()
    tokens = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    with AttentionInjection(block, 0.5) as injection:
        injection.reference = [1, 1]
        (gradient,) = torch.autograd.grad(block(tokens)[0].square().sum(), tokens)
        assert gradient[1].abs().max() > 1e-4
        assert torch.autograd.gradcheck(block, tokens)


def test_gradients_are_the_same_with_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = ClassTokenUNet(
            2, 1, 1, cross_attention_dim=4, attention_init=0.2, gradient_checkpointing=checkpointing, channels=(8, 8),
            attention_levels=(False, True), num_res_blocks=1, norm_num_groups=4, num_head_channels=8,
        )  # fmt: skip
        nn.init.normal_(network.unet.out[2].conv.weight)
        image = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        with AttentionInjection(network) as injection:
            injection.reference = REFERENCE
            output = network(image, torch.full((4,), 9), class_labels=torch.tensor([0, 2, 0, 2]))
            output.square().mean().backward()  # recomputes inside the block
        gradients.append([parameter.grad for parameter in network.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_wrapped_and_compiled_networks_are_injected(tiny_unet):
    stack = Stack(tiny_unet())
    plain, expected = stack(), stack.injected()
    network = stack.network

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleDict({"network": network})

        def forward(self, image, timesteps):
            return self.inner["network"](image, timesteps)

    stack.network = Wrapper()
    assert torch.equal(stack.injected(), expected)
    stack.network = torch.compile(network, backend="eager")
    close(stack(), plain, 1e-12)
    close(stack.injected(), expected, 1e-12)
    close(stack(), plain, 1e-12)
    torch._dynamo.reset()


def test_what_cannot_be_injected_is_said(tiny_unet):
    with pytest.raises(ValueError, match="attention_levels"):
        AttentionInjection(UNet(2, 1, 1, channels=(4, 8), strides=(2,)))
    for scale in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"scale={scale}"):
            AttentionInjection(tiny_unet(), scale)
    for options in (
        {"causal": True, "sequence_length": 4},
        {"save_attn": True},
        {"rel_pos_embedding": "decomposed", "input_size": (2, 2)},
    ):
        with pytest.raises(ValueError, match="Causal attention, relative positions and saved"):
            AttentionInjection(SABlock(8, 1, **options))
    block = SABlock(8, 1)
    with AttentionInjection(block), pytest.raises(ValueError, match="attn_mask"):
        block(torch.zeros(1, 4, 8), attn_mask=torch.ones(1, 4))
    with AttentionInjection(tiny_unet()) as injection:
        for rows in ([], [0, 2], [-1, 0]):
            with pytest.raises(ValueError, match="give one row index"):
                injection.reference = rows
