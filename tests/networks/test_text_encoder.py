# SPDX-License-Identifier: Apache-2.0
"""Prompts as context: padding that changes nothing, a cache that dies with the weights, BERT and CLIP alike."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from medcf.networks import BundleUNet, PromptUNet, TextEncoder
from medcf.networks.tokenizer import fit_tokenizer
from medcf.runtime.weights import load_weights

CAPTIONS = ["normal chest x-ray", "large lung opacity in the left lower lobe", "COVID-19", "viral pneumonia"]


@pytest.fixture
def tokenizer(tmp_path):
    return fit_tokenizer(CAPTIONS, tmp_path / "tokenizer.json")


@pytest.fixture
def encoder(tokenizer):
    torch.manual_seed(0)
    return TextEncoder.small_bert(tokenizer, max_length=16, hidden_size=16, num_heads=2).eval()


def prompt_unet(encoder):
    torch.manual_seed(1)
    levels = {"channels": (8, 16), "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 8}
    unet = BundleUNet(2, 1, 1, num_head_channels=8, with_conditioning=True, cross_attention_dim=16, **levels)
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.2)  # MONAI's own start predicts 0
    return PromptUNet(unet, encoder)


def counting(encoder):
    """Count the calls of the text model."""
    calls = []
    encoder.model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def pretrained_bert(folder, tokenizer):
    """Save a BERT and its tokenizer, as a download has them."""
    encoder = TextEncoder.small_bert(tokenizer, max_length=16, hidden_size=16, num_heads=2)
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return encoder


def pretrained_clip(folder, *, pad_token="<|endoftext|>"):
    """Save a CLIP with Stable Diffusion's habit of padding with the end of the text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: i for i, word in enumerate(["<|startoftext|>", "<|endoftext|>", "left", "right", "lung", "!"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("<|endoftext|>", 1), ("<|startoftext|>", 0))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad_token, eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    ).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 6, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1, "max_position_embeddings": 16}
    torch.manual_seed(2)
    config = transformers.CLIPConfig(text_config={**sizes, **text}, vision_config={**sizes, "image_size": 32})
    model = transformers.CLIPModel(config)
    model.save_pretrained(folder)
    return model


def test_padding_does_not_change_embedding_or_prediction(encoder):
    network = prompt_unet(encoder).eval()
    ids = encoder.tokenize(["left lobe"])
    length = int((ids != 0).sum())
    sample, t = torch.randn(1, 1, 8, 8), torch.tensor([300])
    with torch.no_grad():
        embedded = [encoder(some) for some in (ids[:, :length], ids, torch.nn.functional.pad(ids, (0, 9)))]
        predicted = [network(sample, t, some) for some in (ids[:, :length], ids, encoder.embed(["left lobe"]))]
        alone = encoder.model(input_ids=ids[:, :length]).last_hidden_state
    torch.testing.assert_close(embedded[0][:, :length], alone)
    assert (embedded[0][:, length:] == 0).all()
    assert all(torch.equal(embedded[0], other) for other in embedded[1:])
    for other in predicted[1:]:
        torch.testing.assert_close(other, predicted[0])


def test_a_prompt_is_embedded_once(encoder):
    calls = counting(encoder)
    first = encoder.embed(["COVID-19", "", "COVID-19"])
    again = encoder.embed(["", "COVID-19"])
    assert len(calls) == 1
    assert torch.equal(first[[1, 0]], again)
    assert torch.equal(first[0], encoder(encoder.tokenize(["COVID-19"]))[0])


def test_a_prompt_whose_end_is_not_read_is_warned_about(encoder, caplog):
    fits = " ".join(["left"] * (encoder.max_length - 2))  # and the two tokens around it
    encoder.embed(["", fits])
    assert not caplog.text
    cut = encoder.embed([f"{fits} lobe"])
    assert f"longer than {encoder.max_length} tokens" in caplog.text
    assert torch.equal(cut, encoder.embed([f"{fits} covid"]))


def step(encoder):
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1)
    encoder(encoder.tokenize(["COVID-19"])).square().sum().backward()
    optimizer.step()


def loaded(encoder):
    other = {name: value + 1 if value.is_floating_point() else value for name, value in encoder.state_dict().items()}
    encoder.load_state_dict(other)


def averaged(encoder):
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.mul_(0.9)


@pytest.mark.parametrize("change", [step, loaded, averaged, lambda encoder: encoder.double()])
def test_the_cache_dies_with_the_weights(encoder, change):
    before = encoder.embed(["COVID-19"])
    change(encoder)
    after = encoder.embed(["COVID-19"])
    assert torch.equal(after[0], encoder(encoder.tokenize(["COVID-19"]))[0])
    assert before.dtype != after.dtype or not torch.allclose(before, after)


def test_a_copy_has_its_own_cache(encoder):
    before = encoder.embed(["COVID-19"])
    other = copy.deepcopy(encoder)
    loaded(other)
    assert not torch.allclose(other.embed(["COVID-19"]), before)
    assert torch.equal(encoder.embed(["COVID-19"]), before)


def test_training_caches_nothing(tokenizer):
    torch.manual_seed(0)
    encoder = TextEncoder.small_bert(tokenizer, max_length=16, hidden_size=16, num_heads=2, dropout=0.5).train()
    assert not torch.equal(encoder.embed(["COVID-19"]), encoder.embed(["COVID-19"]))


def test_unseen_words_are_split_into_known_pieces(encoder):
    ids = encoder.tokenize(["Cardiomegaly, lobes; Größe 12"])
    assert encoder.tokenizer.unk_token_id not in ids
    pieces = encoder.tokenizer.convert_ids_to_tokens(encoder.tokenize(["lobes"])[0])
    assert pieces[1:3] == ["lobe", "##s"]


def test_the_same_captions_give_the_same_tokenizer_and_a_written_one_is_kept(tmp_path):
    paths = [fit_tokenizer(order, tmp_path / name) for order, name in ((CAPTIONS, "a"), (CAPTIONS[::-1], "b"))]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    before = paths[0].read_bytes()
    assert fit_tokenizer(["other words"], paths[0]).read_bytes() == before
    assert fit_tokenizer(["other words"], paths[0], keep=False).read_bytes() != before


def test_the_gradient_reaches_the_text_encoder(encoder):
    network = prompt_unet(encoder).train()
    ids = encoder.tokenize(["COVID-19", "normal chest x-ray"])
    network(torch.randn(2, 1, 8, 8), torch.tensor([10, 900]), ids).square().sum().backward()
    word = encoder.model.get_input_embeddings().weight.grad
    assert (word[ids[0, 1]] != 0).any()
    assert (word[encoder.tokenize(["lobe"])[0, 1]] == 0).all()


def test_prediction_is_the_same_from_ids_and_from_their_embedding(encoder):
    network = prompt_unet(encoder).eval()
    sample, t = torch.randn(2, 1, 8, 8), torch.tensor([10, 900])
    prompts = ["left lobe", ""]
    with torch.no_grad():
        found = network(sample, t, encoder.tokenize(prompts))
        torch.testing.assert_close(network(sample, t, encoder.embed(prompts)), found)
        torch.testing.assert_close(network(sample, t)[1], found[1])
        assert not torch.allclose(network(sample, t)[0], found[0])


def test_weights_of_both_parts_are_one_file(encoder, tokenizer, tmp_path):
    network = prompt_unet(encoder).eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    torch.manual_seed(9)
    fresh = prompt_unet(TextEncoder.small_bert(tokenizer, max_length=16, hidden_size=16, num_heads=2))
    load_weights(fresh, tmp_path / "model.pt")
    sample, t = torch.randn(1, 1, 8, 8), torch.tensor([10])
    with torch.no_grad():
        expected = network(sample, t, encoder.tokenize(["COVID-19"]))
        assert torch.equal(fresh(sample, t, fresh.text_encoder.tokenize(["COVID-19"])), expected)


def test_a_pretrained_bert_is_read_by_its_path(tokenizer, tmp_path):
    source = pretrained_bert(tmp_path / "bert", tokenizer).eval()
    encoder = TextEncoder.from_pretrained(tmp_path / "bert", max_length=16).eval()
    assert torch.equal(encoder.embed(CAPTIONS), source.embed(CAPTIONS))


def test_a_pretrained_clip_gives_what_stable_diffusion_reads(tmp_path):
    source = pretrained_clip(tmp_path / "clip").eval()
    encoder = TextEncoder.from_pretrained(tmp_path / "clip", max_length=8).eval()
    ids = torch.tensor([[0, 2, 4, 1, 1, 1, 1, 1]])
    assert torch.equal(encoder.tokenize(["left lung"]), ids)
    with torch.no_grad():
        expected = source.text_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(encoder.embed(["left lung"]), expected)


def test_the_end_of_a_clip_prompt_is_no_padding(tmp_path):
    pretrained_clip(tmp_path / "clip")
    encoder = TextEncoder.from_pretrained(tmp_path / "clip", max_length=8, keep_padding=False).eval()
    assert (encoder.embed(["left lung"])[0] != 0).any(1).tolist() == [True] * 4 + [False] * 4


def test_a_projection_fits_another_width(tokenizer, tmp_path):
    pretrained_bert(tmp_path / "bert", tokenizer)
    encoder = TextEncoder.from_pretrained(tmp_path / "bert", max_length=16, projection=10).eval()
    embedded = encoder.embed(["left lobe"])
    assert embedded.shape[2] == encoder.num_features == 10
    assert (embedded[0, -1] == 0).all()


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist. Train the model first"):
        TextEncoder.small_bert(tmp_path / "none.json")
