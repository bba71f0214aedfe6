# SPDX-License-Identifier: Apache-2.0
"""Adapters against the dense computation: W + m (alpha / r) B A, nothing else moves, and the way back."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("peft")
pytest.importorskip("transformers")

from medcf.networks import BundleUNet, PromptUNet, TextEncoder
from medcf.networks.lora import Adapters, adapter_files, with_adapters
from medcf.networks.tokenizer import fit_tokenizer
from medcf.runtime.weights import weights_sha256

CROSS, ALL = "cross-attention", "all attention and feed-forward"
CAPTIONS = ["normal chest x-ray", "large lung opacity on the left"]


def unet(dims: int = 2, **options: object) -> BundleUNet:
    shape = {"channels": (8, 16), "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 8}
    shape |= {"num_head_channels": 8, "with_conditioning": True, "cross_attention_dim": 16}
    return BundleUNet(dims, 1, 1, **(shape | options))


def encoder(folder: Path) -> TextEncoder:
    tokenizer = fit_tokenizer(CAPTIONS, folder / "tokenizer.json")
    return TextEncoder.small_bert(tokenizer, max_length=8, hidden_size=16, num_heads=2)


KINDS: dict[str, Callable[[Path], nn.Module]] = {
    "2d": lambda _: unet(),
    "2d, one projection for query, key and value": lambda _: unet(use_combined_linear=True),
    "2d, by class": lambda _: unet(with_conditioning=False, cross_attention_dim=None),
    "3d": lambda _: unet(3),
    "prompts": lambda folder: PromptUNet(unet(), encoder(folder)),
    "text": encoder,
}
HAVE_CROSS = [kind for kind in KINDS if kind not in ("text", "2d, by class")]
SETS = [*((kind, CROSS) for kind in HAVE_CROSS), *((kind, ALL) for kind in KINDS)]


def build(kind: str, folder: Path) -> nn.Module:
    """Build a network in double precision whose zero-initialized weights are perturbed."""
    torch.manual_seed(0)
    network = KINDS[kind](folder).double().eval()
    for weight in network.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.2)
    return network


def output(network: nn.Module, folder: Path) -> Tensor:
    """Run a network on a fixed input."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(network, TextEncoder):
        return network(network.tokenize(CAPTIONS))
    plain = network.unet if isinstance(network, PromptUNet) else network
    size = [8] * plain.conv_in.spatial_dims
    sample = torch.randn(2, 1, *size, generator=generator).double()
    context = torch.randn(2, 5, 16, generator=generator).double()
    if isinstance(network, PromptUNet):
        context = network.text_encoder.tokenize(CAPTIONS)
    options = {"context": context} if plain.with_conditioning else {}
    return network(sample, timesteps=torch.tensor([3, 700]), **options)


def randomized(adapters: Adapters, name: str = "adapter", seed: int = 2) -> Adapters:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapters.module(name).parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return adapters


def dense(base: nn.Module, adapted: nn.Module, scales: dict[str, float]) -> nn.Module:
    """Return the base with W + sum of scale B A in place of W, from the adapted network's matrices."""
    result = copy.deepcopy(base)
    for path, layer in adapted.named_modules():
        for name in scales.keys() & getattr(layer, "lora_A", {}).keys():
            product = torch.einsum("or...,ri...->oi...", layer.lora_B[name].weight, layer.lora_A[name].weight)
            result.get_submodule(path).weight.data += scales[name] * product
    return result


@pytest.mark.parametrize(("kind", "targets"), SETS)
def test_the_network_is_that_with_w_plus_alpha_over_r_b_a(kind: str, targets: str, tmp_path: Path) -> None:
    base = build(kind, tmp_path)
    adapters = Adapters(copy.deepcopy(base)).add(rank=3, alpha=6, targets=targets)
    # B is 0 before the first step
    torch.testing.assert_close(output(adapters.network, tmp_path), output(base, tmp_path), atol=1e-6, rtol=0)
    randomized(adapters)
    ours, expected = output(adapters.network, tmp_path), output(dense(base, adapters.network, {"adapter": 2}), tmp_path)
    assert (ours - output(base, tmp_path)).abs().max() > 1e-3
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)

    adapters.merge()
    torch.testing.assert_close(output(adapters.network, tmp_path), expected, atol=1e-6, rtol=0)
    adapters.unmerge()
    torch.testing.assert_close(output(adapters.network, tmp_path), expected, atol=1e-6, rtol=0)
    adapters.remove()
    assert adapters.network.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(adapters.network.state_dict(), base.state_dict(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rank", [8, 32, 128])
@pytest.mark.parametrize(("kind", "targets"), [("2d", CROSS), ("3d", ALL), ("prompts", ALL)])
def test_rank_r_has_r_times_d_in_plus_d_out_parameters_a_layer(
    kind: str, targets: str, rank: int, tmp_path: Path
) -> None:
    base = build(kind, tmp_path)
    adapters = Adapters(copy.deepcopy(base)).add(rank=rank, targets=targets)
    adapted = {path for path, layer in adapters.network.named_modules() if hasattr(layer, "lora_A")}
    everything = ("attn1", "attn2", ".ff.", ".proj_in.", ".proj_out.", "text_encoder.model")
    parts = ("attn2",) if targets == CROSS else everything
    layers = {
        path: layer
        for path, layer in base.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d) and any(each in path for each in parts)
    }
    assert adapted == layers.keys()
    own = adapters.network
    for path, layer in layers.items():
        count = sum(p.numel() for name, p in own.get_submodule(path).named_parameters() if "lora_" in name)
        assert count == rank * (layer.weight.shape[0] + layer.weight.shape[1]), path
    trained = sum(weight.numel() for weight in own.parameters() if weight.requires_grad)
    assert trained == sum(weight.numel() for weight in adapters.module().parameters())


def test_a_starts_gaussian_with_a_deviation_of_one_over_r_and_b_at_zero() -> None:
    adapters = Adapters(unet(channels=(32, 64), num_head_channels=32)).add(rank=32, targets=ALL)
    down, up = (torch.cat([each.weight.detach().flatten() for each in list(adapters.module())[i::2]]) for i in (0, 1))
    assert float(down.std()) == pytest.approx(1 / 32, rel=0.03)
    kurtosis = float(((down / down.std()) ** 4).mean())
    assert kurtosis == pytest.approx(3, abs=0.15)  # 1.8 if it were uniform
    assert not up.any()


def test_only_the_adapter_moves(tmp_path: Path) -> None:
    network = build("prompts", tmp_path).float().train()
    before = copy.deepcopy(network)
    adapters = Adapters(network).add(rank=4, targets=ALL)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)  # all of them: the base is frozen
    sample, ids = torch.randn(2, 1, 8, 8), network.text_encoder.tokenize(CAPTIONS)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = network(sample, torch.tensor([3, 700]), ids).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(bool(each.weight.any()) for each in adapters.module())
    assert any("text_encoder" in path for path, each in network.named_modules() if hasattr(each, "lora_A"))
    for name, value in adapters.remove().state_dict().items():
        assert torch.equal(value, before.state_dict()[name]), name


@pytest.mark.parametrize("merged", [False, True])
def test_the_merging_ratio_interpolates_between_base_and_adapter(merged: bool, tmp_path: Path) -> None:
    base = build("3d", tmp_path)
    adapters = randomized(Adapters(copy.deepcopy(base)).add(rank=2, targets=ALL))
    for ratio in (0.0, 0.25, 0.8, 1.0):
        adapters.use({"adapter": ratio})
        expected = output(dense(base, adapters.network, {"adapter": ratio}), tmp_path)
        if merged:
            adapters.merge()
        torch.testing.assert_close(output(adapters.network, tmp_path), expected, atol=1e-6, rtol=0)
    adapters.use({})
    torch.testing.assert_close(output(adapters.network, tmp_path), output(base, tmp_path), atol=1e-6, rtol=0)
    for wrong in ({"adapter": 1.2}, {"adapter": -0.1}):
        with pytest.raises(ValueError, match="from 0 to 1"):
            adapters.use(wrong)
    with pytest.raises(ValueError, match="no adapter 'other'; there are: adapter"):
        adapters.use("other")


def test_adapters_are_switched_and_mixed(tmp_path: Path) -> None:
    base = build("prompts", tmp_path)
    adapters = randomized(Adapters(copy.deepcopy(base)).add("site", rank=2, targets=CROSS), "site")
    randomized(adapters.add("disease", rank=3, alpha=1.5, targets=ALL), "disease", seed=5)

    for ratios in ({"site": 1.0}, {"disease": 1.0}, {"site": 0.3, "disease": 0.6}):
        adapters.use(ratios)
        scales = {"site": ratios.get("site", 0.0), "disease": ratios.get("disease", 0.0) / 2}
        expected = output(dense(base, adapters.network, scales), tmp_path)
        torch.testing.assert_close(output(adapters.network, tmp_path), expected, atol=1e-6, rtol=0)
        adapters.merge()
        torch.testing.assert_close(output(adapters.network, tmp_path), expected, atol=1e-6, rtol=0)
    assert adapters.ratios == {"site": 0.3, "disease": 0.6}
    with pytest.raises(ValueError, match="'site' is taken"):
        adapters.add("site")


def test_prompts_are_embedded_by_the_adapters_in_use(tmp_path: Path) -> None:
    text = build("text", tmp_path)
    before = text.embed(CAPTIONS)
    adapters = randomized(Adapters(text).add(rank=2, targets=ALL))
    changed = text.embed(CAPTIONS)
    assert (changed - before).abs().max() > 1e-3
    adapters.use({"adapter": 0.5})
    assert (text.embed(CAPTIONS) - changed).abs().max() > 1e-3
    adapters.use({})
    assert torch.equal(text.embed(CAPTIONS), before)
    with pytest.raises(ValueError, match="TextEncoder has no layers of cross-attention"):
        Adapters(adapters.remove()).add(targets=CROSS)


def test_a_saved_adapter_is_the_same_on_its_base_and_refused_on_another(tmp_path: Path) -> None:
    from safetensors import safe_open

    base = build("prompts", tmp_path)
    adapters = randomized(Adapters(copy.deepcopy(base)).add(rank=2, alpha=3, targets=ALL))
    path = adapters.save(tmp_path / "my.site.safetensors")
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["medcf_base_sha256"] == weights_sha256(base)
        assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in file.keys())  # noqa: SIM118
    other = Adapters(copy.deepcopy(base))
    assert other.load(path) == "my_site"
    assert torch.equal(output(other.network, tmp_path), output(adapters.network, tmp_path))
    assert not any(weight.requires_grad for weight in other.network.parameters())

    changed = copy.deepcopy(base)
    changed.unet.conv_in.conv.bias.data[0] += 1e-3
    refusing = Adapters(changed)
    with pytest.raises(ValueError, match="another base") as error:
        refusing.load(path)
    for said in (str(path), weights_sha256(base), weights_sha256(changed)):
        assert said in str(error.value)
    assert changed.state_dict().keys() == base.state_dict().keys()
    refusing.load(path, any_base=True)
    with pytest.raises(ValueError, match="adapters already"):
        Adapters(changed)


def test_a_file_that_is_no_adapter_of_this_network_says_so(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network = build("2d", tmp_path)
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors does not exist"):
        Adapters(network).load(path)
    path.write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match=r"a\.safetensors is not a readable safetensors file"):
        Adapters(network).load(path)
    block = "unet.down_blocks.1.attentions.0"
    layer = f"{block}.transformer_blocks.0.attn2.to_q"
    for state, message in (
        ({}, "no LoRA adapter"),
        ({"unet.conv_in.conv.weight": torch.ones(3)}, "no LoRA adapter"),
        ({f"{layer}.lora_A.weight": torch.ones(2, 16)}, "no LoRA adapter"),
        ({"x.lora_A.weight": torch.ones(2, 4), "x.lora_B.weight": torch.ones(4, 2)}, "layers that the network lacks"),
        ({f"{layer}.lora_A.weight": torch.ones(2, 5), f"{layer}.lora_B.weight": torch.ones(16, 2)}, "does not fit"),
        ({f"{layer}.lora_A.weight": torch.full((2, 16), torch.nan)}, "not finite"),
        ({f"{layer}.lora_A.weight": torch.ones(2, 16), f"{layer}.lora_B.weight": torch.ones(16, 3)}, "does not fit"),
        ({f"{layer}.lora_A.weight": torch.ones(0, 16), f"{layer}.lora_B.weight": torch.ones(16, 0)}, "does not fit"),
        ({f"{block}.lora_A.weight": torch.ones(2, 16), f"{block}.lora_B.weight": torch.ones(16, 2)}, "SpatialTrans"),
    ):
        save_file(state, path)
        with pytest.raises(ValueError, match=message) as error:
            Adapters(network).load(path)
        assert str(path) in str(error.value)
        assert not any(hasattr(module, "lora_A") for module in network.modules())


def test_ranks_and_alphas_by_the_end_of_a_name_are_as_peft_reads_them(tmp_path: Path) -> None:
    import peft
    from safetensors.torch import save_file

    base = build("2d", tmp_path)
    theirs = copy.deepcopy(base)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["to_q", "to_k"], alpha_pattern={"to_q": 2}, rank_pattern={"attn1.to_k": 2}
    )
    peft.inject_adapter_in_model(config, theirs, "default")
    for name, weight in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.3)
    state = peft.get_peft_model_state_dict(theirs, adapter_name="default")
    options = {f"unet.{name}": getattr(config, name) for name in ("r", "lora_alpha", "alpha_pattern", "rank_pattern")}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(options)}
    path = tmp_path / "theirs.safetensors"
    save_file({f"unet.{name}": value.contiguous() for name, value in state.items()}, path, metadata)
    ours = Adapters(copy.deepcopy(base))
    ours.load(path)
    torch.testing.assert_close(output(ours.network, tmp_path), output(theirs, tmp_path), atol=1e-6, rtol=0)
    assert (output(ours.network, tmp_path) - output(base, tmp_path)).abs().max() > 1e-3
    for damaged in ("no json", "[]"):
        save_file(
            {f"unet.{name}": value.contiguous() for name, value in state.items()},
            path,
            {"lora_adapter_metadata": damaged},
        )
        with pytest.raises(ValueError, match="is damaged"):
            Adapters(copy.deepcopy(base)).load(path)


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan")])
def test_an_alpha_by_which_nothing_could_be_learned_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha="):
        Adapters(unet()).add(alpha=alpha)


def test_adapters_merged_for_inference_leave_the_network_its_names(tmp_path: Path) -> None:
    base = build("2d", tmp_path)
    files = []
    for seed in (2, 3):
        made = randomized(Adapters(copy.deepcopy(base)).add(rank=2), seed=seed)
        files.append(made.save(tmp_path / f"{seed}.safetensors"))
    mixed = with_adapters(copy.deepcopy(base), files, [0.5, 0.25])
    assert mixed.state_dict().keys() == base.state_dict().keys()
    both = Adapters(copy.deepcopy(base))
    names = [both.load(path) for path in files]
    both.use(dict(zip(names, (0.5, 0.25), strict=True)))
    torch.testing.assert_close(output(mixed, tmp_path), output(both.network, tmp_path), atol=1e-6, rtol=0)
    assert with_adapters(base, None) is base
    assert adapter_files(str(files[0])) == {"adapter 1": files[0]}
    with pytest.raises(ValueError, match="2 adapters and 3 merging ratios"):
        with_adapters(base, files, [1, 1, 1])


def test_the_hash_of_a_base_sees_every_weight_and_nothing_else() -> None:
    torch.manual_seed(0)
    network = unet().half().float()
    known = weights_sha256(network)
    assert weights_sha256(copy.deepcopy(network).half()) == known  # the same values in another type
    assert weights_sha256(copy.deepcopy(network).to(memory_format=torch.channels_last)) == known
    for name, weight in network.named_parameters():
        kept = weight.data.clone()
        weight.data.view(-1)[0] += 1
        assert weights_sha256(network) != known, name
        weight.data.copy_(kept)
    assert weights_sha256(network) == known
    assert weights_sha256(nn.ParameterDict({"a": kept})) != weights_sha256(nn.ParameterDict({"b": kept}))
