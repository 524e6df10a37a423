"""Tokens, chats and pieces of text come out as transformers makes them, without transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from edge_sdk.errors import ConfigError, DataError, ModelError
from edge_sdk.inference.sampling import Sampler, Sampling
from edge_sdk.inference.text import Pieces, TextTokenizer
from edge_sdk.text.tokenization import chat_prompt, prompt_ids, start_ids
from tests.tiny_model import save_tokenizer

TEMPLATE = """
{%- for message in messages %}
    {%- if message.role == 'tool' %}{{ raise_exception('no tools ' + message.role) }}{% endif %}
    {%- if loop.index > 9 %}{% break %}{% endif %}
    {{- bos_token + message['role'] | tojson + '\\n' + message.content | trim }}
    {%- generation %}{{- eos_token }}{% endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start>assistant' }}{% endif %}
"""


def save_bytes_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Save a tokenizer of single bytes that begins every text with a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {x: i for i, x in enumerate(["<begin>", "<end>", *alphabet])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<begin> $A", pair="<begin> $A $B", special_tokens=[("<begin>", 0)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<begin>",
        eos_token="<end>",
        chat_template=TEMPLATE,
        model_max_length=20,
    )
    made.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("bytes")
    save_bytes_tokenizer(found)
    return found


def test_prompts_become_the_tokens_transformers_makes(tmp_path):
    theirs = save_bytes_tokenizer(tmp_path)
    ours = TextTokenizer(tmp_path)
    for text in ("", "a", "Grüße, 世界 🌍", "x" * 40):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
        assert ours.beginning(text, 99) == theirs(text, truncation=True)["input_ids"]
        ids = theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text
    assert len(ours.beginning("x" * 40, 7)) == 7
    assert start_ids(ours) == start_ids(theirs) == [0]
    for chat in (False, True):
        assert prompt_ids(ours, " hi ", chat=chat) == prompt_ids(theirs, " hi ", chat=chat)
    assert chat_prompt(ours, " hé ") == chat_prompt(theirs, " hé ")


def test_a_chat_template_may_refuse(folder):
    ours = TextTokenizer(folder)
    messages = [{"role": "tool", "content": "x"}]
    with pytest.raises(Exception, match="no tools tool"):
        ours.apply_chat_template(messages)
    ours.chat_template = "{{ messages[0].__class__.__mro__ }}"
    with pytest.raises(DataError, match="refuses these messages"):
        chat_prompt(ours, "escape the sandbox")


def test_a_template_file_comes_before_the_configuration(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}!", encoding="utf-8")
    assert chat_prompt(TextTokenizer(copy), "hi") == "hi!"
    (copy / "chat_template.jinja").unlink()
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": "{{ messages[0].content }}?"}]
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    assert chat_prompt(TextTokenizer(copy), "hi") == "hi?"


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=30))
def test_pieces_never_split_a_character_and_add_up_to_the_text(folder, text):
    tokenizer = _tokenizer(folder)
    pieces = Pieces(tokenizer)
    found = [pieces.add(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert "".join(found) + pieces.rest() == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)


def test_what_is_left_of_a_character_comes_at_the_end(folder):
    tokenizer = _tokenizer(folder)
    pieces = Pieces(tokenizer)
    ids = tokenizer("aé", add_special_tokens=False)["input_ids"]
    assert [pieces.add(token) for token in ids[:-1]] == ["a", ""]
    assert pieces.rest() == "\N{REPLACEMENT CHARACTER}"


def test_pieces_keep_the_spaces_that_a_tokenizer_drops_at_the_beginning(tmp_path):
    tokenizer = TextTokenizer(save_tokenizer(tmp_path))
    pieces = Pieces(tokenizer)
    ids = tokenizer("what is <pad> the city")["input_ids"]
    assert "".join(pieces.add(token) for token in ids) == "what is the city"


def test_end_tokens_are_those_of_the_generation_configuration(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert TextTokenizer(copy).end_ids == {1}
    (copy / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert TextTokenizer(copy).end_ids == {1, 7, 8}


def test_a_folder_without_a_usable_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        TextTokenizer(tmp_path)


def test_draws_follow_the_probabilities_and_the_most_probable_part():
    logits = np.log(np.array([0.1, 0.5, 0.2, 0.2], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=0))
    drawn = np.bincount([sampler.choose(logits) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, [0.1, 0.5, 0.2, 0.2], atol=0.03)
    narrow = Sampler(Sampling(temperature=1.0, top_p=0.6, seed=0))
    assert {narrow.choose(logits) for _ in range(200)} == {1, 2}
    assert {Sampler(Sampling()).choose(logits) for _ in range(9)} == {1}
    cold = Sampler(Sampling(temperature=0.01, seed=0))
    assert {cold.choose(logits) for _ in range(99)} == {1}


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}])
def test_a_sampling_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="must be"):
        Sampling(**wrong)


def _tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer(folder)
