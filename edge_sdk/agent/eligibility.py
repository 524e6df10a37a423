"""Decide from what the sensors say whether a device may train now, and why not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_sdk.agent.policy import Policy, read_hours
from edge_sdk.quantities import format_bytes, format_seconds

if TYPE_CHECKING:
    from edge_sdk.agent.senses import Sensed, Senses

# Once a rule has stopped training, it asks for so much more before it lets it go on.
_BATTERY_PERCENT = 2.0
_OTHER_CPU_PERCENT = 10.0
_TEMPERATURE_C = 5.0
_SPACE_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one rule says.

    Attributes:
        rule: Its name.
        may_train: Whether it lets this device train.
        reason: For people, with the value that was read.
        needs_memory: Whether a pause is not enough: training must give its memory back.
    """

    rule: str
    may_train: bool
    reason: str
    needs_memory: bool = False


class Eligibility:
    """The rules of one policy, with a memory: a rule that stopped does not flap.

    Args:
        policy: What the owner allows.
        senses: What this device feels.
    """

    def __init__(self, policy: Policy, senses: Senses) -> None:
        self._policy = policy
        self._senses = senses
        self._stopping: frozenset[str] = frozenset()

    def check(self) -> list[Verdict]:
        """Read every sensor the policy asks for and return what each rule says."""
        policy, felt = self._policy, self._senses.read()
        verdicts = [
            *_power(policy, felt, self._margin("power", _BATTERY_PERCENT)),
            *_network(policy, felt),
            *_other_cpu(policy, felt, self._margin("cpu", _OTHER_CPU_PERCENT)),
            *_input(policy, felt),
            *_heat(policy, felt, self._margin("temperature", _TEMPERATURE_C)),
            *_hours(policy, felt),
            *_memory(policy, felt, 1 + self._margin("memory", _SPACE_SHARE)),
            *_disk(policy, felt, 1 + self._margin("disk", _SPACE_SHARE)),
        ]
        self._stopping = frozenset(found.rule for found in verdicts if not found.may_train)
        return verdicts

    def _margin(self, rule: str, margin: float) -> float:
        return margin if rule in self._stopping else 0.0


def _power(policy: Policy, felt: Sensed, margin: float) -> Iterator[Verdict]:
    least = policy.min_battery_percent
    if least is None:
        return
    if felt.is_on_mains is not False:
        yield Verdict(rule="power", may_train=True, reason="on mains, or no battery")
    elif felt.battery_percent is None:
        yield Verdict(rule="power", may_train=False, reason="on battery, its charge is unknown")
    else:
        yield Verdict(
            rule="power",
            may_train=felt.battery_percent > least + margin,
            reason=f"on battery at {felt.battery_percent:.0f} %; it waits at {least:.0f} % or less",
        )


def _network(policy: Policy, felt: Sensed) -> Iterator[Verdict]:
    if policy.allows_metered:
        return
    is_metered = felt.is_metered is True
    reason = "the network costs money" if is_metered else "the network is not known to cost money"
    yield Verdict(rule="network", may_train=not is_metered, reason=reason)


def _other_cpu(policy: Policy, felt: Sensed, margin: float) -> Iterator[Verdict]:
    most, used = policy.max_other_cpu_percent, felt.other_cpu_percent
    if most is None:
        return
    if used is None:
        yield _unknown("cpu", "what other programs use")
        return
    yield Verdict(
        rule="cpu",
        may_train=used <= max(most - margin, most / 2),
        reason=f"other programs use {used:.0f} % of the processor; it waits above {most:.0f} %",
    )


def _input(policy: Policy, felt: Sensed) -> Iterator[Verdict]:
    least, idle = policy.min_input_idle_s, felt.input_idle_s
    if least is None:
        return
    if idle is None:
        yield _unknown("input", "when the owner was last here")
        return
    yield Verdict(
        rule="input",
        may_train=idle >= least,
        reason=f"the owner was last here {format_seconds(idle)} ago; it waits until "
        f"{format_seconds(least)}",
    )


def _heat(policy: Policy, felt: Sensed, margin: float) -> Iterator[Verdict]:
    most, hot = policy.max_temperature_c, felt.temperature_c
    if most is None:
        return
    if hot is None:
        yield _unknown("temperature", "the temperature")
        return
    yield Verdict(
        rule="temperature",
        may_train=hot <= most - margin,
        reason=f"the hottest sensor says {hot:.0f} °C; it waits above {most:.0f} °C",
    )


def _hours(policy: Policy, felt: Sensed) -> Iterator[Verdict]:
    if policy.quiet_hours is None:
        return
    begin, end = read_hours(policy.quiet_hours)
    now = felt.local_time
    is_quiet = begin <= now < end if begin < end else now >= begin or now < end
    yield Verdict(
        rule="hours",
        may_train=not is_quiet,
        reason=f"it is {now:%H:%M}, quiet hours are {policy.quiet_hours}",
    )


def _memory(policy: Policy, felt: Sensed, margin: float) -> Iterator[Verdict]:
    least, free = policy.min_free_memory_bytes, felt.free_memory_bytes
    if least is None:
        return
    if free is None:
        yield _unknown("memory", "how much memory is free")
        return
    yield Verdict(
        rule="memory",
        may_train=free >= least * margin,
        reason=f"{format_bytes(free)} of memory are free, {format_bytes(least)} must be",
        needs_memory=True,
    )


def _disk(policy: Policy, felt: Sensed, margin: float) -> Iterator[Verdict]:
    least, free = policy.min_free_disk_bytes, felt.free_disk_bytes
    if least is None:
        return
    if free is None:
        yield _unknown("disk", "how much of the disk is free")
        return
    yield Verdict(
        rule="disk",
        may_train=free >= least * margin,
        reason=f"{format_bytes(free)} of the disk are free, {format_bytes(least)} must be",
    )


def _unknown(rule: str, what: str) -> Verdict:
    """What cannot be told stops nothing."""
    return Verdict(rule=rule, may_train=True, reason=f"{what} is not known here")
