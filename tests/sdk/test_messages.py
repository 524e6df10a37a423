"""JSON messages: golden texts, every bad field named, unknown fields ignored."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ConfigError, MalformedMessage, ProtocolMismatch, SketchError
from edge_sdk.wire import credentials, messages, protocol, task
from edge_sdk.wire.messages import decode_message, encode_message
from edge_sdk.wire.protocol import check_protocol

GOLDEN = Path(__file__).parent / "golden"

LAYER = task.LayerSpec(name="model.layers.0.self_attn.q_proj", d_in=32, d_out=16)
BASE = task.BaseModel(
    model="owner/name",
    digest="ab" * 32,
    revision="main",
    task_type="SEQ_CLS",
    labels=["no", "yes"],
)
ADAPTER = task.AdapterSpec(
    r=8,
    lora_alpha=16.0,
    target_modules=["q_proj"],
    layers=[LAYER],
    use_rslora=True,
    dense=[task.DenseSpec(name="score.weight", shape=[2, 32])],
    wire_dtype="bf16",
)
TRAINING = task.TrainingSpec(
    local_steps=5,
    local_lr=0.001,
    optimizer="sgd",
    weight_decay=0.01,
    batch_size=4,
    max_length=128,
    update_encoding="int8",
    error_feedback=True,
)
POLICY = task.RoundPolicy(
    rounds=8,
    cohort_size=4,
    quorum=3,
    sketch_sizes=[2, 4, 8],
    min_updates=2,
    deadline_s=60.0,
    sketching="balanced",
    stragglers="fold",
    max_staleness=2,
)
AGGREGATION = task.AggregationSpec(
    weighting="examples",
    server_optimizer="adam",
    server_lr=0.5,
    max_norm=2.0,
    max_norm_ratio=5.0,
)
ASSIGNMENT = messages.Assignment(
    task="question-types",
    round_number=3,
    adapter_version=2,
    k=4,
    seed=9007199254740991,
    training=TRAINING,
    deadline_s=59.5,
)
REPLY = messages.CheckInReply(state="assigned", round_number=3, assignment=ASSIGNMENT)
MESSAGES = [
    task.TaskSpec(
        name="question-types",
        base=BASE,
        adapter=ADAPTER,
        training=TRAINING,
        policy=POLICY,
        aggregation=AGGREGATION,
    ),
    credentials.EnrolRequest(
        enrolment_token="secret", name="Ada's board", public_key="ef" * 32, proof="12" * 64
    ),
    credentials.Enrolment(device_id="d-1", signing_key="ab" * 32),
    messages.CheckIn(base_digest="ab" * 32, affordable_k=8, examples=120),
    REPLY,
    messages.UpdateReport(examples=120, loss=0.75, seconds=12.5, peak_rss_bytes=1_000_000_000),
    messages.UpdateNotice(size_bytes=1_226_208, digest="cd" * 32),
    messages.HeldParts(parts=[0, 1, 4]),
    messages.UploadPlace(
        url="https://s3.example/b/staged/d-1/t/3?X-Amz-Signature=0", expires_in_s=300.0
    ),
    messages.Receipt(task="question-types", round_number=3, digest="cd" * 32),
    messages.RoundStatus(
        round_number=3, state="closed", assigned=4, accepted=3, deadline_s=0.0, adapter_version=3
    ),
    messages.AdapterInfo(
        version=3, round_number=3, digest="cd" * 32, size_bytes=4096, created_at=1700000000.5
    ),
    messages.Problem(
        title="Round closed",
        status=409,
        code="round_closed",
        detail="round 3 is closed",
        request_id="0123456789abcdef",
    ),
    credentials.Challenge(nonce="edge.1.ab.1700000060.cd", expires_in_s=60.0),
    credentials.AccessRequest(nonce="edge.1.ab.1700000060.cd", signature="34" * 64),
    messages.SliceRanks(ranks=[[0, 5], [2, 7]]),
    credentials.AccessToken(access_token="edge.1.d-1.1700003600.cd", expires_in_s=3600.0),
    credentials.Departure(device_id="d-1", left_at=1700000000.5),
    credentials.KeyChange(
        nonce="edge.1.ab.1700000060.cd",
        public_key="ef" * 32,
        signature="12" * 64,
        new_signature="34" * 64,
    ),
    messages.EvaluationReport(
        version=3, examples=24, loss_before=1.5, loss_after=1.25, accepted=True, accuracy=0.75
    ),
]
TASK = MESSAGES[0]
by_kind = pytest.mark.parametrize("message", MESSAGES, ids=lambda x: type(x).__name__)


def golden(message: object) -> Path:
    return GOLDEN / f"{type(message).__name__}.json"


@by_kind
def test_the_json_of_a_message_never_changes(message):
    """A field that is renamed or removed breaks every device in the field."""
    assert json.loads(encode_message(message)) == json.loads(golden(message).read_text())


@by_kind
def test_a_kept_message_decodes_to_the_same_value(message):
    assert decode_message(type(message), golden(message).read_bytes()) == message
    assert decode_message(type(message), encode_message(message)) == message


@pytest.mark.parametrize(
    ("kind", "new"), [("CheckIn", '"is_relay"'), ("CheckInReply", '"members"')]
)
def test_a_message_of_a_release_without_relays_means_a_device(kind, new):
    lines = (GOLDEN / f"{kind}.json").read_text().splitlines()
    older = "".join(line for line in lines if new not in line)
    (message,) = [message for message in MESSAGES if type(message).__name__ == kind]
    older = older.replace("59.5,", "59.5")
    assert new not in older
    assert decode_message(type(message), older.encode()) == message


def test_every_message_of_the_protocol_has_a_golden_text():
    """Parts of other messages are covered by those."""
    kinds = {
        kind
        for module in (credentials, messages, task)
        for kind in vars(module).values()
        if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
    }
    parts = {
        type(x)
        for x in (LAYER, BASE, ADAPTER, ADAPTER.dense[0], TRAINING, POLICY, AGGREGATION, ASSIGNMENT)
    }
    assert kinds == {type(message) for message in MESSAGES} | parts
    assert {path.stem for path in GOLDEN.glob("*.json")} == {type(x).__name__ for x in MESSAGES}


@by_kind
def test_a_message_cannot_be_changed_after_it_was_checked(message):
    field = dataclasses.fields(message)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(message, field, None)


@by_kind
def test_fields_of_a_later_release_are_ignored(message):
    content = json.loads(golden(message).read_text())
    body = json.dumps({**content, "from_the_future": {"a": [1]}}).encode()
    assert decode_message(type(message), body) == message


@by_kind
def test_a_message_of_an_earlier_release_lacks_only_what_has_a_default(message):
    content = json.loads(golden(message).read_text())
    for field in dataclasses.fields(message):
        body = json.dumps({k: v for k, v in content.items() if k != field.name}).encode()
        has_default = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if has_default:
            decode_message(type(message), body)
        else:
            with pytest.raises(MalformedMessage, match=f"missing required field `{field.name}`"):
                decode_message(type(message), body)


@by_kind
@pytest.mark.parametrize("wrong", [None, [], {}, "text", 3.5, True])
def test_a_field_of_the_wrong_type_is_refused_by_name(message, wrong):
    content = json.loads(golden(message).read_text())
    for field in dataclasses.fields(message):
        body = json.dumps({**content, field.name: wrong}).encode()
        try:
            decoded = decode_message(type(message), body)
        except MalformedMessage as error:
            text = str(error)
        else:
            value = getattr(decoded, field.name)
            assert type(value) is type(wrong) or (wrong == {} and dataclasses.is_dataclass(value))
            continue
        assert f"not a valid {type(message).__name__}: " in text
        assert field.name in text


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"task": "\xff"}', b"{}" * 2]
)
def test_a_body_that_is_no_message_is_refused(body):
    with pytest.raises(MalformedMessage, match="not a valid Receipt"):
        decode_message(messages.Receipt, body)


@given(st.binary(max_size=60))
def test_no_bytes_do_worse_than_a_malformed_message(body):
    with pytest.raises(MalformedMessage):
        decode_message(task.TaskSpec, body)


NAN = float("nan")
INF = float("inf")
BAD_VALUES = [
    (LAYER, {"name": ""}, "has a name and at least one feature"),
    (LAYER, {"d_in": 0}, "d_in=0"),
    (LAYER, {"d_out": -1}, "d_out=-1"),
    (ADAPTER.dense[0], {"name": ""}, "has a name"),
    (ADAPTER.dense[0], {"shape": []}, r"shape \[\]"),
    (ADAPTER.dense[0], {"shape": [2, 0]}, r"shape \[2, 0\]"),
    (BASE, {"model": ""}, "needs a name"),
    (BASE, {"digest": "AB" * 32}, "is not 64 hex digits"),
    (BASE, {"digest": "ab" * 32 + "\n"}, "is not 64 hex digits"),
    (BASE, {"labels": ["a"]}, "at least two different labels"),
    (BASE, {"labels": ["a", "a"]}, "at least two different labels"),
    (ADAPTER, {"r": 0}, "r=0 must be at least 1"),
    (ADAPTER, {"r": 17}, "r=17 exceeds the smaller side of layer model.layers.0"),
    (ADAPTER, {"lora_alpha": 0.0}, "lora_alpha=0.0"),
    (ADAPTER, {"lora_alpha": NAN}, "lora_alpha=nan"),
    (ADAPTER, {"lora_alpha": INF}, "lora_alpha=inf"),
    (ADAPTER, {"layers": []}, "at least one target layer"),
    (ADAPTER, {"layers": [LAYER, LAYER]}, "the same name"),
    (TRAINING, {"local_steps": 0}, "local_steps=0"),
    (TRAINING, {"batch_size": 0}, "batch_size=0"),
    (TRAINING, {"max_length": 0}, "max_length=0"),
    (TRAINING, {"local_lr": 0.0}, "local_lr=0.0"),
    (TRAINING, {"local_lr": INF}, "local_lr=inf"),
    (TRAINING, {"weight_decay": -0.1}, "weight_decay=-0.1"),
    (TRAINING, {"weight_decay": NAN}, "weight_decay=nan"),
    (POLICY, {"rounds": 0}, "rounds=0"),
    (POLICY, {"min_updates": 0}, "min_updates=0"),
    (POLICY, {"quorum": 1}, "quorum=1"),
    (POLICY, {"cohort_size": 2}, "cohort_size=2"),
    (POLICY, {"deadline_s": 0.0}, "deadline_s=0.0"),
    (POLICY, {"deadline_s": NAN}, "deadline_s=nan"),
    (POLICY, {"max_staleness": 0}, "max_staleness=0"),
    (AGGREGATION, {"server_lr": -1.0}, "server_lr=-1.0"),
    (AGGREGATION, {"combination": "median"}, "weighting=examples needs combination=mean"),
    (AGGREGATION, {"trim": 0.5}, "trim=0.5"),
    (AGGREGATION, {"momentum": 1.0}, "momentum=1.0"),
    (AGGREGATION, {"second_momentum": -0.1}, "second_momentum=-0.1"),
    (AGGREGATION, {"epsilon": 0.0}, "epsilon=0.0"),
    (AGGREGATION, {"staleness_exponent": -1.0}, "staleness_exponent=-1.0"),
    (AGGREGATION, {"max_norm": 0.0}, "max_norm=0.0"),
    (AGGREGATION, {"max_norm_ratio": -1.0}, "max_norm_ratio=-1.0"),
    (REPLY, {"retry_after_s": -1.0}, "retry_after_s=-1.0"),
    (REPLY, {"retry_after_s": 1e9}, "retry_after_s=1000000000.0"),
    (POLICY, {"sketch_sizes": []}, "at least one sketch size"),
    (TASK, {"name": "Question types"}, "lower-case letters, digits and dashes"),
    (TASK, {"name": ""}, "lower-case letters, digits and dashes"),
    (TASK, {"name": "a" * 64}, "lower-case letters, digits and dashes"),
    (TASK, {"name": "../etc"}, "lower-case letters, digits and dashes"),
    (MESSAGES[1], {"name": ""}, "1 to 100 printable characters"),
    (MESSAGES[1], {"name": "a" * 101}, "1 to 100 printable characters"),
    (MESSAGES[1], {"name": "a\nb"}, "1 to 100 printable characters"),
    (MESSAGES[3], {"affordable_k": 0}, "affordable_k=0"),
    (MESSAGES[3], {"examples": 0}, "examples=0"),
    (MESSAGES[5], {"examples": 0}, "examples=0"),
    (MESSAGES[5], {"loss": NAN}, "loss=nan"),
    (MESSAGES[5], {"seconds": INF}, "seconds=inf"),
    (MESSAGES[6], {"size_bytes": 0}, "size_bytes=0"),
    (MESSAGES[6], {"digest": "../" * 21 + "x"}, "64 hex digits"),
    (MESSAGES[-1], {"version": -1}, "version=-1"),
    (MESSAGES[-1], {"version": 2**31}, "version=2147483648"),
    (MESSAGES[-1], {"examples": 0}, "examples=0"),
    (MESSAGES[-1], {"examples": messages.MAX_EVALUATED + 1}, "examples=10001"),
    (MESSAGES[-1], {"loss_before": NAN}, "loss_before=nan"),
    (MESSAGES[-1], {"loss_after": -0.1}, "loss_after=-0.1"),
    (MESSAGES[-1], {"loss_after": 10001.0}, "loss_after=10001.0"),
    (MESSAGES[-1], {"accuracy": 1.5}, "accuracy=1.5"),
]


@pytest.mark.parametrize(("message", "change", "text"), BAD_VALUES)
def test_a_value_that_cannot_be_is_refused_with_what_came(message, change, text):
    with pytest.raises((ConfigError, SketchError), match=text):
        dataclasses.replace(message, **change)


@pytest.mark.parametrize(("message", "change", "text"), BAD_VALUES)
def test_a_value_that_cannot_be_is_refused_when_it_arrives(message, change, text):
    finite = INF not in change.values() and NAN not in change.values()
    content = {**json.loads(encode_message(message)), **json.loads(encode_message(change))}
    with pytest.raises(MalformedMessage, match=text if finite else "not a valid"):
        decode_message(type(message), json.dumps(content).encode())


def test_a_task_cannot_give_out_more_ranks_than_it_has():
    policy = dataclasses.replace(POLICY, sketch_sizes=[4, 9])
    with pytest.raises(SketchError, match=r"k=9 must be in 1\.\.8"):
        dataclasses.replace(TASK, policy=policy)


def test_every_value_of_a_choice_is_checked():
    for kind, message, field in (
        (task.TrainingSpec, TRAINING, "optimizer"),
        (task.RoundPolicy, POLICY, "sketching"),
        (task.RoundPolicy, POLICY, "stragglers"),
        (task.AggregationSpec, AGGREGATION, "weighting"),
        (task.AggregationSpec, AGGREGATION, "combination"),
        (task.AggregationSpec, AGGREGATION, "server_optimizer"),
        (task.AdapterSpec, ADAPTER, "wire_dtype"),
        (task.TrainingSpec, TRAINING, "update_encoding"),
        (task.BaseModel, BASE, "task_type"),
    ):
        content = {**json.loads(encode_message(message)), field: "other"}
        with pytest.raises(MalformedMessage, match=f"Invalid enum value 'other'.*{field}"):
            decode_message(kind, json.dumps(content).encode())


def test_other_protocol_versions_are_refused_with_both_numbers():
    check_protocol(protocol.PROTOCOL)
    with pytest.raises(ProtocolMismatch, match=r"speaks protocol 2, this side 1"):
        check_protocol(2)
