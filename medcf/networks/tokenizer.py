# SPDX-License-Identifier: Apache-2.0
"""A tokenizer from the captions of a training."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from medcf.runtime.atomic import replace_file

__all__ = ["fit_tokenizer"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation


def fit_tokenizer(captions: Iterable[str], path: str | Path, *, keep: bool = True, max_words: int = 8000) -> Path:
    """Write a WordPiece tokenizer whose vocabulary is the words of captions, and every character.

    A word that is in no caption is split into the longest known words and single characters (Wu et al. 2016, arXiv
    1609.08144), so no word of ASCII characters is unknown. Case and accents are dropped, as in BERT. The same captions
    give the same file, whatever their order.

    Args:
        captions: the captions; not read if the file is kept.
        path: JSON file of the tokenizers library.
        keep: keep an existing file, to whose vocabulary trained weights belong.
        max_words: number of words; the most frequent ones are kept.

    Returns:
        The path.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    target = Path(path)
    if keep and target.is_file():
        return target
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word for caption in captions for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption))
    )
    words = sorted(counts, key=lambda word: (-counts[word], word))[:max_words]
    pieces = [*_SPECIAL, *_CHARACTERS, *(f"##{character}" for character in _CHARACTERS), *sorted(words)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    ends = [(piece, vocabulary[piece]) for piece in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    content = tokenizer.to_str(pretty=True)
    return replace_file(target, lambda file: file.write(content))
