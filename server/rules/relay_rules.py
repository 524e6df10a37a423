"""Which tasks a relay can take part in, and what its own devices are told of them."""

from __future__ import annotations

from dataclasses import replace

from edge_sdk.errors import ConfigError
from edge_sdk.wire.task import TaskSpec

MOST_MEMBERS = 2**20
"""Devices one relay may speak for."""


def why_not_relayed(spec: TaskSpec) -> str | None:
    """Say which option of a task needs every single update, or nothing if sums will do."""
    if spec.aggregation.combination != "mean":
        return f"combination={spec.aggregation.combination}"
    if spec.aggregation.max_norm_ratio is not None:
        return "max_norm_ratio"
    if spec.policy.sketching == "balanced":
        return "sketching=balanced"
    return None


def check_relay(spec: TaskSpec, relay_for: int | None, is_relay: bool) -> None:
    """Refuse who says it is a relay and may not be one, and the other way round.

    Args:
        spec: Of the task.
        relay_for: Devices that who asks may speak for, from its token; None for a device.
        is_relay: What it says it is.

    Raises:
        ConfigError: Says what to do.
    """
    if is_relay != (relay_for is not None):
        raise ConfigError(
            "this relay joined with a token for devices: ask the operator for one made with "
            "--relay-for"
            if is_relay
            else "this device joined with a token for relays, which only a server can use: ask the "
            "operator for one made without --relay-for"
        )
    if relay_for is None:
        return
    reason = why_not_relayed(spec)
    if reason is not None:
        raise ConfigError(
            f"task {spec.name!r} takes no relays: {reason} needs every single update, and a relay "
            "sends one sum; let its devices join the upstream server instead"
        )
    if relay_for > spec.policy.cohort_size:
        raise ConfigError(
            f"this relay speaks for {relay_for} devices, and a round of task {spec.name!r} has "
            f"places for {spec.policy.cohort_size}: ask the operator for a token for fewer"
        )


def site_spec(spec: TaskSpec, members: int) -> TaskSpec:
    """Return a task of the upstream server as the devices behind a relay see it.

    A round of the site ends with the same share of its places as one upstream.

    Args:
        spec: Of the upstream server.
        members: Places of the relay in a round.
    """
    upstream = spec.policy
    policy = replace(
        upstream,
        cohort_size=members,
        quorum=-(-members * upstream.quorum // upstream.cohort_size),
        min_updates=1,
        stragglers="refuse",
    )
    return replace(spec, policy=policy)
