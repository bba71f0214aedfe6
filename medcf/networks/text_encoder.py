# SPDX-License-Identifier: Apache-2.0
"""Prompts to cross-attention context: any BERT or CLIP text model of transformers, or a small one of one's own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TextEncoder"]

logger = logging.getLogger(__name__)


class TextEncoder(nn.Module):
    """A text model and its tokenizer.

    Every prompt becomes the same number of tokens. Positions after its end hold padding, which the model does not
    attend to and whose features are set to 0, because MONAI's cross-attention takes no mask: a feature of 0 has key and
    value 0 there. How a prompt was padded before therefore changes nothing.

    Args:
        model: a text model of transformers, called as ``model(input_ids=, attention_mask=)`` and returning
            ``last_hidden_state`` (B, tokens, features).
        tokenizer: its tokenizer (`PreTrainedTokenizerBase`), with a padding token.
        max_length: number of tokens; longer prompts are cut.
        keep_padding: attend to the padding and keep its features, as Stable Diffusion was trained with CLIP.
        projection: number of features to which a linear layer maps those of the model, for a U-Net whose
            ``cross_attention_dim`` differs; None for no layer.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        max_length: int = 77,
        *,
        keep_padding: bool = False,
        projection: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.keep_padding = keep_padding
        width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.projection = nn.Identity() if projection is None else nn.Linear(width, projection)
        self.num_features = width if projection is None else projection
        self._cache: dict[str, Tensor] = {}
        self._cached_for: tuple[Any, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        max_length: int = 77,
        *,
        keep_padding: bool | None = None,
        projection: int | None = None,
        **options: Any,
    ) -> TextEncoder:
        """Load a text model and its tokenizer.

        Args:
            name: folder, or name on the Hugging Face hub, such as ``"StanfordAIMI/RadBERT"`` or
                ``"openai/clip-vit-large-patch14"``; of a CLIP only the text model is loaded.
            max_length: see the class.
            keep_padding: see the class; None keeps it for CLIP.
            projection: see the class.
            options: for ``from_pretrained`` of both, such as ``local_files_only=True`` or ``subfolder``.

        Raises:
            ModuleNotFoundError: if transformers is not installed.
        """
        transformers = _transformers()
        kind = str(transformers.AutoConfig.from_pretrained(name, **options).model_type)
        is_clip = kind.startswith("clip")
        loader = transformers.CLIPTextModel if is_clip else transformers.AutoModel
        more = {"add_pooling_layer": False} if kind in ("bert", "roberta") else {}
        model = loader.from_pretrained(name, **more, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
        keep = is_clip if keep_padding is None else keep_padding
        return cls(model, tokenizer, max_length, keep_padding=keep, projection=projection)

    @classmethod
    def small_bert(
        cls,
        tokenizer: str | Path,
        max_length: int = 24,
        *,
        hidden_size: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> TextEncoder:
        """Build a small BERT with random weights, to be trained together with a U-Net.

        Args:
            tokenizer: file written by `medcf.networks.tokenizer.fit_tokenizer`.
            max_length: see the class.
            hidden_size: number of features.
            num_layers: number of layers.
            num_heads: attention heads per layer.
            dropout: dropout of the layers in training.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        if not Path(tokenizer).is_file():
            raise FileNotFoundError(f"The tokenizer {tokenizer} does not exist. Train the model first: it writes both.")
        transformers = _transformers()
        special = {name: f"[{name[:3].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
        words = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), **special)
        config = transformers.BertConfig(
            vocab_size=len(words),
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            intermediate_size=2 * hidden_size,
            max_position_embeddings=max_length,
            type_vocab_size=1,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            pad_token_id=words.pad_token_id,
        )
        return cls(transformers.BertModel(config, add_pooling_layer=False), words, max_length)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.parameters()).device

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Return token ids (B, max_length) on the model's device; cut and padded."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.max_length, "return_tensors": "pt"}
        ids: Tensor = self.tokenizer(list(prompts), **options)["input_ids"]
        return ids.to(self.device)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed prompts, with gradient.

        Args:
            ids: token ids (B, tokens); fewer than ``max_length`` are padded, and padding beyond it is cut off.

        Returns:
            (B, max_length, features), 0 at the padding unless it is kept.
        """
        missing = max(self.max_length - ids.shape[1], 0)
        ids = nn.functional.pad(ids, (0, missing), value=self.tokenizer.pad_token_id)[:, : self.max_length]
        if self.keep_padding:
            return self.projection(self.model(input_ids=ids).last_hidden_state)
        mask = self._is_text(ids)
        features: Tensor = self.projection(self.model(input_ids=ids, attention_mask=mask).last_hidden_state)
        return features * mask[..., None].to(features.dtype)

    def _is_text(self, ids: Tensor) -> Tensor:
        """Return 1 where there is text and 0 after its end; CLIP's first padding token is its end of text."""
        ends = int(self.tokenizer.pad_token_id == self.tokenizer.eos_token_id)
        padding = ids == self.tokenizer.pad_token_id
        return (~padding | (padding.cumsum(1) <= ends)).long()

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts without gradient; each one is computed once for the same weights.

        The cache is for inference: it is empty in training mode, and any change of a weight, its device or its type
        empties it. In inference a prompt whose end is cut off is warned about.

        Args:
            prompts: B prompts; "" is the null prompt.

        Returns:
            (B, max_length, features).
        """
        version = self._state_of_weights()
        if self.training or version != self._cached_for:
            self._cache, self._cached_for = {}, version
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        if new:
            self._warn_of_cut(() if self.training else new)
            self._cache |= dict(zip(new, self(self.tokenize(new)), strict=True))
        found = torch.stack([self._cache[prompt] for prompt in prompts])
        if self.training:  # dropout: the same prompt is another one next time
            self._cache = {}
        return found

    def _warn_of_cut(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            if len(self.tokenizer(prompt, verbose=False)["input_ids"]) > self.max_length:
                logger.warning(
                    "The prompt %.60r is longer than %d tokens: its end is not read.", prompt, self.max_length
                )

    def forget(self) -> None:
        """Empty the cache of ``embed``, after a change that no weight shows, such as an adapter's ratio."""
        self._cache = {}

    def _state_of_weights(self) -> tuple[Any, ...]:
        """Return what changes with any parameter: torch counts the in-place changes of each."""
        own = [*self.parameters(), *self.buffers()]
        return tuple((each.data_ptr(), each._version, each.dtype, each.device) for each in own)


def _transformers() -> ModuleType:
    """Import transformers, or say which extra has it."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Prompts need transformers, which is not installed: python -m pip install 'medcf[text]', or '.[text]' in a "
            "clone."
        ) from error
    return transformers
