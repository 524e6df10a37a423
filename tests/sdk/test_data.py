"""Every form of a training record, every way it can be wrong, and batches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edge_sdk.errors import DataError
from edge_sdk.text.batches import IGNORED, collate
from edge_sdk.text.data import load_examples
from edge_sdk.text.example import Example
from edge_sdk.text.tokenization import Part, Tokens, fit, prompt_ids, tokenize
from edge_sdk.text.tokenizer import load_tokenizer
from tests.sdk.parts import causal_spec, classifier_spec
from tests.tiny_model import write_jsonl


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return load_tokenizer(tiny_llama)


@pytest.fixture
def read(tokenizer, tmp_path):
    """Read records for a causal LM and return what is given and what is learned, as text."""

    def read(*records: dict, max_length: int = 64, **settings) -> list[tuple[str, str]]:
        path = write_jsonl(tmp_path / "data.jsonl", list(records))
        chosen = settings.get("tokenizer", tokenizer)
        examples = load_examples(path, chosen, causal_spec(), max_length)
        return [split(chosen, example) for example in examples]

    return read


def split(tokenizer, example: Example) -> tuple[str, str]:
    pairs = list(zip(example.tokens, example.is_learned, strict=True))
    return tuple(
        tokenizer.decode([x for x, is_learned in pairs if is_learned == wanted])
        for wanted in (False, True)
    )


def bytes_tokenizer(
    *merges: tuple[str, str],
    bos: bool = False,
    chat_template: str | None = None,
    prefix: bool = False,
):
    """A byte-level BPE with chosen merges, as most models have, optionally with a begin token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<s>", "</s>", *letters, *("".join(merge) for merge in merges)]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    if bos:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
        )
    tokenizer.chat_template = chat_template
    return tokenizer


def test_of_a_prompt_and_completion_only_the_completion_and_its_end_are_learned(read):
    record = {"prompt": "what is red ?", "completion": " a number", "other": 1}
    assert read(record) == [("what is red ?", "a number <eos>")]


def test_a_text_is_learned_from_its_beginning(read):
    assert read({"text": "what is red ?"}) == [("", "what is red ? <eos>")]


@pytest.mark.parametrize(("label", "learned"), [("green", "green <eos>"), (2, "<unk> <eos>")])
def test_a_labelled_text_is_a_completion_for_a_causal_lm(read, label, learned):
    assert read({"text": "what is red ?", "label": label}) == [("what is red ?", learned)]


def test_of_a_conversation_only_the_assistants_turns_are_learned(read):
    turns = [
        {"role": "system", "content": "yes"},
        {"role": "user", "content": "what is red"},
        {"role": "assistant", "content": "a number"},
        {"role": "user", "content": "why"},
        {"role": "assistant", "content": "no"},
    ]
    given_text = (
        "system : yes <eos> user : what is red <eos> assistant : user : why <eos> assistant :"
    )
    assert read({"messages": turns}) == [(given_text, "a number <eos> no <eos>")]


def test_a_conversation_without_a_chat_template_is_written_as_plain_lines(read):
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "no"}]
    found = read({"messages": turns}, tokenizer=bytes_tokenizer())
    assert found == [("user: why?\nassistant:", " no</s>\n")]


def test_a_turn_that_the_template_rewrites_later_is_given_not_learned(read):
    """As templates do that show the reasoning of the last turn only."""
    template = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' and loop.last %}[think]"
        "{% endif %}{{ m.content }}|{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    found = read({"messages": turns}, tokenizer=bytes_tokenizer(chat_template=template))
    assert found == [("user:a|assistant:b|user:c|assistant:", "[think]d|")]


def test_a_template_that_hides_the_assistants_turns_is_refused(read):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    template = "{{ messages | length }}{{ messages[-1].content }}"
    with pytest.raises(DataError, match="hides where the assistant's turns"):
        read({"messages": turns}, tokenizer=bytes_tokenizer(chat_template=template))


def test_a_template_that_refuses_the_roles_is_a_data_error(read):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"data\.jsonl:1: .*roles must alternate"):
        read({"messages": turns}, tokenizer=bytes_tokenizer(chat_template=template))


def test_no_token_reaches_across_the_boundary_to_the_completion():
    """'a' + 'b' would merge to one token; generation after 'xa' can never see that one."""
    tokenizer = bytes_tokenizer(("a", "b"))
    whole = tokenizer("xab", add_special_tokens=False)["input_ids"]
    parts = [Part("xa", is_learned=False), Part("b", is_learned=True)]
    found = tokenize(tokenizer, parts)
    assert len(whole) == 2
    assert [tokenizer.decode([x]) for x in found.ids] == ["x", "a", "b"]
    assert found.is_learned == [False, False, True]


def test_no_space_slips_in_at_the_boundary_where_the_tokenizer_puts_one_before_every_text():
    tokenizer = bytes_tokenizer(prefix=True)
    found = tokenize(tokenizer, [Part("ab", is_learned=False), Part("c", is_learned=True)])
    assert tokenizer.decode(found.ids) == " abc"
    assert found.is_learned == [False, False, False, True]


def test_a_merge_within_the_completion_is_kept():
    tokenizer = bytes_tokenizer(("a", "b"))
    found = tokenize(tokenizer, [Part("x", is_learned=False), Part("ab", is_learned=True)])
    assert [tokenizer.decode([x]) for x in found.ids] == ["x", "ab"]


def test_a_begin_token_is_put_first_where_the_tokenizer_has_one_and_survives_the_cut(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "abcdef", "completion": "gh"}])
    tokenizer = bytes_tokenizer(bos=True)
    example = load_examples(path, tokenizer, causal_spec(), 64)[0]
    assert split(tokenizer, example) == ("<s>abcdef", "gh</s>")
    example = load_examples(path, tokenizer, causal_spec(), 6)[0]
    assert split(tokenizer, example) == ("<s>ef", "gh</s>")
    example = load_examples(path, tokenizer, causal_spec(), 3)[0]
    assert split(tokenizer, example) == ("<s>", "gh")


@pytest.mark.parametrize("max_length", [64, 9])
def test_a_begin_token_the_chat_template_writes_is_not_put_twice(tmp_path, max_length):
    template = "<s>{% for m in messages %}{{ m.content }}|{% endfor %}"
    turns = [{"role": "user", "content": "abcdef"}, {"role": "assistant", "content": "gh"}]
    path = write_jsonl(tmp_path / "x.jsonl", [{"messages": turns}])
    tokenizer = bytes_tokenizer(bos=True, chat_template=template)
    (example,) = load_examples(path, tokenizer, causal_spec(), max_length)
    given_text = "<s>abcdef|" if max_length == 64 else "<s>cdef|"
    assert split(tokenizer, example) == (given_text, "gh|")


def test_plain_lines_of_a_conversation_start_with_the_begin_token(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write_jsonl(tmp_path / "x.jsonl", [{"messages": turns}])
    tokenizer = bytes_tokenizer(bos=True)
    (example,) = load_examples(path, tokenizer, causal_spec(), 64)
    assert split(tokenizer, example) == ("<s>user: a\nassistant:", " b</s>\n")


@pytest.mark.parametrize(
    "template",
    [None, "<s>{{ messages[0].content }}:{% for m in messages[1:] %}{{ m.content }}|{% endfor %}"],
)
def test_what_is_given_in_training_is_what_generation_starts_from(tmp_path, template):
    """The same tokens, with the begin token and without, with a chat template and without."""
    for bos in (True, False):
        tokenizer = bytes_tokenizer(bos=bos, chat_template=template)
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        path = write_jsonl(tmp_path / "x.jsonl", [{"messages": turns}])
        (example,) = load_examples(path, tokenizer, causal_spec(), 64)
        trained = [
            x for x, learned in zip(example.tokens, example.is_learned, strict=True) if not learned
        ]
        assert prompt_ids(tokenizer, "a", chat=True) == trained


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [
        (9, ("what is the city", "red . one yes <eos>")),
        (7, ("the city", "red . one yes <eos>")),
        (6, ("city", "red . one yes <eos>")),
        (5, ("city", "red . one yes")),
        (2, ("city", "red")),
    ],
)
def test_a_long_example_loses_its_beginning_first_and_keeps_one_token_to_predict_from(
    read, max_length, expected
):
    record = {"prompt": "what is the city", "completion": " red . one yes"}
    assert read(record, max_length=max_length) == [expected]


def test_a_long_text_loses_its_end(read):
    assert read({"text": "one two three four"}, max_length=3) == [("", "one two three")]


def test_a_long_conversation_keeps_its_last_answer(read):
    turns = [
        {"role": "user", "content": "one two three"},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "why"},
        {"role": "assistant", "content": "no"},
    ]
    assert read({"messages": turns}, max_length=8) == [("user : why <eos> assistant :", "no <eos>")]


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 14), st.integers(0, 1))
def test_a_cut_keeps_the_limit_the_order_and_the_start(learned, max_length, kept):
    learned = [False] * kept + learned
    whole = Tokens(list(range(len(learned))), learned)
    found = fit(whole, max_length, kept)
    assert len(found.ids) == min(max_length, len(learned))
    assert found.ids == sorted(found.ids)
    assert found.ids[:kept] == whole.ids[:kept]
    assert found.is_learned == [learned[i] for i in found.ids]
    if max_length > kept + 1 and any(learned[1:]):
        assert any(found.is_learned[1:])


@pytest.mark.parametrize(("label", "index"), [("red", 0), ("blue", 2), (1, 1)])
def test_a_classifiers_label_is_a_name_or_an_index(tokenizer, tmp_path, label, index):
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "what is the city", "label": label}])
    (example,) = load_examples(path, tokenizer, classifier_spec(), max_length=3)
    assert tokenizer.decode(example.tokens) == "what is the"
    assert (example.label, any(example.is_learned)) == (index, False)


def test_a_label_that_looks_like_an_index_is_a_name_if_the_task_has_it(tokenizer, tmp_path):
    spec = replace(classifier_spec(), labels=["1", "0"])
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "what", "label": "1"}])
    assert load_examples(path, tokenizer, spec, max_length=3)[0].label == 0


def test_blank_lines_are_skipped_and_windows_line_ends_are_read(tokenizer, tmp_path):
    path = tmp_path / "x.jsonl"
    line = json.dumps({"text": "what is"}).encode()
    path.write_bytes(b"\r\n" + line + b"\r\n   \n" + line)
    assert len(load_examples(path, tokenizer, causal_spec(), 8)) == 2


def test_a_line_separator_inside_a_text_does_not_end_the_record(tokenizer, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "what\u2028is\u0085red"}\n', encoding="utf-8")
    assert len(load_examples(path, tokenizer, causal_spec(), 8)) == 1


BAD_RECORDS = {
    "not JSON": ("{", "not a JSON object"),
    "not an object": ("[1]", "not a JSON object but list"),
    "no known field": ('{"question": "what"}', r"fields \['question'\]: expected messages"),
    "no completion": ('{"prompt": "what"}', "field 'completion' must be a text, got None"),
    "no prompt": ('{"completion": "what"}', "field 'prompt' must be a text, got None"),
    "a number as text": ('{"text": 3}', "field 'text' must be a text, got 3"),
    "a number as prompt": ('{"prompt": 3, "completion": "a"}', "'prompt' must be a text, got 3"),
    "a label without text": ('{"label": "red"}', "field 'text' must be a text, got None"),
    "a true label": ('{"text": "what", "label": true}', "'label' must be a class name"),
    "messages as text": ('{"messages": "what"}', "messages must be a list"),
    "messages of texts": ('{"messages": ["what"]}', "messages must be a list"),
    "a turn without role": ('{"messages": [{"content": "what"}]}', "texts role and content"),
    "a turn with a number": (
        '{"messages": [{"role": "assistant", "content": 1}]}',
        "texts role and content",
    ),
    "no messages": ('{"messages": []}', "no assistant turn"),
    "no assistant": ('{"messages": [{"role": "user", "content": "a"}]}', "no assistant turn"),
    "an empty text": ('{"text": ""}', "no token to learn from"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_bad_record_is_refused_with_its_file_and_line(tokenizer, tmp_path, case):
    line, text = BAD_RECORDS[case]
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"text": "what is"}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=rf"data\.jsonl:3: .*{text}"):
        load_examples(path, tokenizer, causal_spec(), 8)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "what"}, "field 'label' must be a class name or its index, got None"),
        (
            {"text": "what", "label": "pink"},
            "label 'pink' is none of red, green, blue, nor an index",
        ),
        ({"text": "what", "label": 3}, "label 3 is none of red, green, blue"),
        ({"text": "what", "label": -1}, "label -1 is none of"),
        ({"text": "", "label": "red"}, "the text has no token to learn from"),
        ({"prompt": "what", "completion": "red"}, "field 'text' must be a text"),
    ],
)
def test_a_record_no_classifier_can_learn_is_refused(tokenizer, tmp_path, record, text):
    path = write_jsonl(tmp_path / "data.jsonl", [record])
    with pytest.raises(DataError, match=rf"data\.jsonl:1: {text}"):
        load_examples(path, tokenizer, classifier_spec(), 8)


def test_a_length_that_leaves_nothing_to_predict_is_refused(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"text": "what is"}])
    with pytest.raises(DataError, match="within max_length=1: the first token of a text"):
        load_examples(path, tokenizer, causal_spec(), 1)


def test_a_file_that_cannot_be_read_is_refused_by_name(tokenizer, tmp_path):
    def load(path: Path) -> None:
        load_examples(path, tokenizer, causal_spec(), 8)

    with pytest.raises(DataError, match=r"gone\.jsonl cannot be read"):
        load(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl is not UTF-8 text"):
        load(tmp_path / "latin.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"empty\.jsonl holds no example"):
        load(tmp_path / "empty.jsonl")


def test_a_batch_is_padded_on_the_right_and_padding_is_neither_seen_nor_learned():
    batch = collate(
        [Example([5, 6, 7], [False, True, True]), Example([8, 9], [False, True])], pad_token_id=1
    )
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.targets.tolist() == [[IGNORED, 6, 7], [IGNORED, 9, IGNORED]]
    assert {x.dtype for x in (batch.input_ids, batch.targets)} == {torch.int64}


def test_a_classifiers_batch_targets_its_classes():
    batch = collate(
        [Example([5, 6], [False] * 2, label=0), Example([8], [False], label=2)], pad_token_id=0
    )
    assert batch.targets.tolist() == [0, 2]
