# SPDX-License-Identifier: Apache-2.0
"""MONAI Generative's networks, schedulers and inferers with ours, where the package is installed (extra "legacy")."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import monai.config
import pytest
import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet

from medcf.inferers import DiffICEInferer, SDEditInferer
from medcf.networks import Denoiser
from medcf.runtime.legacy import load_generative
from medcf.runtime.weights import load_weights
from medcf.sampling import LatentSpace, denoise
from medcf.schedulers import adapt_scheduler
from medcf.schedulers.adapted import check_scheduler
from medcf.training.inferer import DiffusionTrainingInferer

pytestmark = pytest.mark.skipif(
    find_spec("generative") is None, reason="needs monai-generative 0.2.3 (pip install --no-deps, extra 'legacy')"
)
SHAPE: dict[str, Any] = {"spatial_dims": 2, "num_res_blocks": 1, "norm_num_groups": 4}
UNET = SHAPE | {"in_channels": 3, "out_channels": 3, "num_head_channels": 8, "attention_levels": (False, True)}
LEVELS = (8, 16)
NOISE = {"num_train_timesteps": 1000, "schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}


@pytest.fixture(scope="module")
def nets() -> Any:
    load_generative()
    import generative.networks.nets

    torch.manual_seed(0)
    return generative.networks.nets


@pytest.fixture(scope="module")
def schedulers(nets: Any) -> Any:
    import generative.networks.schedulers

    return generative.networks.schedulers


def perturbed(network: torch.nn.Module) -> torch.nn.Module:
    """Give weights that start at 0 values; what its projections compute is then tested, too."""
    for weight in network.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return network.eval()


def both(nets: Any, folder: Path, conditional: bool = False, classes: int | None = None) -> tuple[Any, Any]:
    """Their U-Net and MONAI's with its checkpoint."""
    more = {"num_class_embeds": classes, "with_conditioning": conditional}
    more |= {"cross_attention_dim": 4 if conditional else None}
    theirs = perturbed(nets.DiffusionModelUNet(num_channels=LEVELS, **UNET, **more))
    torch.save(theirs.state_dict(), folder / "old.pt")
    ours = DiffusionModelUNet(channels=LEVELS, include_fc=conditional, use_combined_linear=False, **UNET, **more)
    return theirs, load_weights(ours, folder / "old.pt")


def autoencoders(nets: Any, folder: Path) -> tuple[Any, Any]:
    shape = SHAPE | {"attention_levels": (False, True), "latent_channels": 3}
    theirs = perturbed(nets.AutoencoderKL(num_channels=LEVELS, **shape))
    torch.save(theirs.state_dict(), folder / "old_autoencoder.pt")
    ours = AutoencoderKL(channels=LEVELS, include_fc=False, use_combined_linear=False, **shape)
    return theirs, load_weights(ours, folder / "old_autoencoder.pt")


def classifier(image: torch.Tensor) -> torch.Tensor:
    total = image.mean((1, 2, 3))
    return torch.stack([1 - total, total - 1], dim=1)


def test_its_import_leaves_monai_as_it_was(nets) -> None:
    assert not hasattr(monai.config, "IgniteInfo")


@pytest.mark.parametrize("conditional", [True, False])
def test_its_checkpoints_load_into_monai_s_networks(nets, tmp_path: Path, conditional: bool) -> None:
    theirs, ours = both(nets, tmp_path, conditional)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    context = torch.randn(2, 5, 4) if conditional else None
    assert torch.allclose(ours(x, t, context), theirs(x, t, context), atol=1e-5)
    old, new = autoencoders(nets, tmp_path)
    image = torch.rand(2, 1, 16, 16)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(new.encode(image), old.encode(image), strict=True))
    assert torch.allclose(new.decode(new.encode(image)[0]), old.decode(old.encode(image)[0]), atol=1e-5)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("method", [SDEditInferer, DiffICEInferer])
def test_methods_run_with_its_networks_and_schedules(nets, schedulers, tmp_path: Path, name: str, method: Any) -> None:
    pytest.importorskip("diffusers")
    scheduler = getattr(schedulers, name)(**NOISE)
    with pytest.raises(ValueError, match="adapt_scheduler"):
        check_scheduler(scheduler)
    adapted = adapt_scheduler(scheduler)
    x, noise, t = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([0, 700])
    assert torch.allclose(adapted.add_noise(x, noise, t), scheduler.add_noise(x, noise, t), atol=1e-5)
    results, options = [], {"num_inference_steps": 10, "strength": 0.5, "null_class_labels": 2, "progress": False}
    options |= {"classifier_scales": (5.0,), "num_iterations": 1} if method is DiffICEInferer else {}
    for network, autoencoder in zip(both(nets, tmp_path, classes=3), autoencoders(nets, tmp_path), strict=True):
        parts = {"scheduler": adapted, "classifier": classifier, "target": 1, "space": LatentSpace(autoencoder)}
        image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)) - 0.5
        results.append(method(**parts, **options).explain(image, network, ["a", "b"]).image)
    assert (results[0] - image).abs().max() > 0.01
    assert torch.allclose(*results, atol=1e-4)


def test_its_inferer_trains_and_samples_as_ours(nets, schedulers, tmp_path: Path) -> None:
    import generative.inferers

    network, loaded = both(nets, tmp_path)
    scheduler = schedulers.DDIMScheduler(clip_sample=False, **NOISE)
    adapted, x = adapt_scheduler(scheduler), torch.randn(2, 3, 8, 8)
    given = {"noise": torch.randn(2, 3, 8, 8), "timesteps": torch.tensor([5, 800])}
    inferer = generative.inferers.DiffusionInferer(scheduler)
    expected = DiffusionTrainingInferer(adapted)(x, loaded, **given)
    assert torch.allclose(inferer(x, network, **given), expected, atol=1e-4)
    scheduler.set_timesteps(10)
    adapted.set_timesteps(10)
    start = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        own, with_ours = (inferer.sample(start, network, each, verbose=False) for each in (scheduler, adapted))
        expected = denoise(Denoiser(loaded, adapted), adapted, start, adapted.timesteps_from(1.0))
    assert torch.allclose(own, expected, atol=1e-4)
    assert torch.allclose(with_ours, expected, atol=1e-4)
