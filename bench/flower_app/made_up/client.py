"""Flower's side of a device that trains nothing: the arrays it got come back, a little moved."""

from __future__ import annotations

import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

STEP = np.float32(1e-3)

_ROUND = "think-in-round"


def train(message: Message, context: Context) -> Message:
    """Answer with every array moved by a step of this device's own."""
    position = int(context.node_config["position"])
    if position % 2 and message.content["config"]["server-round"] == context.run_config[_ROUND]:
        time.sleep(float(context.run_config["think-s"]))
    step = STEP * np.float32(1 + position)
    arrays = message.content["arrays"]
    moved = {name: Array(array.numpy() + step) for name, array in arrays.items()}
    content = RecordDict(
        {"arrays": ArrayRecord(moved), "metrics": MetricRecord({"num-examples": 1})}
    )
    return Message(content=content, reply_to=message)


app = ClientApp()
app.train()(train)
