"""What a class of devices can do in a task, by the planner, where the file does not say."""

from __future__ import annotations

from msgspec.structs import replace

from edge_sdk.commands.plan import profile_machine
from edge_sdk.errors import ConfigError
from edge_sdk.memory.memory_guard import default_floor_bytes
from edge_sdk.model.model_shape import ModelShape
from edge_sdk.planning.cost import Budget, Workload
from edge_sdk.planning.plan import make_plan, memory_budget
from edge_sdk.planning.profiles import load_profile
from edge_sdk.wire.task import LayerSpec
from simulation.config import DeviceClass, RunConfig


def planned(
    device: DeviceClass, config: RunConfig, shape: ModelShape | None, layers: list[LayerSpec]
) -> DeviceClass:
    """Return a class of devices with k and step_s, from its profile if it does not state them.

    Raises:
        ConfigError: Nothing can be planned without a model.
        NotFeasible: The task does not fit such a device.
        ProfileError: There is no such profile.
    """
    if device.k is not None and device.step_s is not None:
        return device
    if shape is None or device.profile is None:
        raise ConfigError(
            f"profile {device.profile!r} is planned for a real model; a stand-in needs k and step_s"
        )
    profile, training = load_profile(device.profile), config.training_spec()
    memory_bytes, floor_bytes = memory_budget(
        profile.memory_usable_bytes, None, 0, default_floor_bytes(profile.memory_total_bytes)
    )
    work = Workload(
        shape=shape,
        layers=tuple(layers),
        r=config.adapter.r,
        sketch_sizes=tuple(config.ladder(config.adapter.r)),
        quantizations=profile.cpu_quantizations,
        batch_size=training.batch_size,
        local_steps=training.local_steps,
        length=training.max_length,
        learned=training.max_length,
    )
    budget = Budget(
        memory_bytes=memory_bytes,
        floor_bytes=floor_bytes,
        round_s=config.deadline_s,
        uplink_bytes_per_s=device.uplink_bytes_per_s,
        downlink_bytes_per_s=device.downlink_bytes_per_s,
    )
    plan = make_plan(work, profile_machine(profile), budget)
    return replace(
        device,
        k=plan.k if device.k is None else device.k,
        step_s=plan.cost.step_s if device.step_s is None else device.step_s,
    )
