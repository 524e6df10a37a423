"""``edge-sdk probe``: what this device is and can do, with the source of every reading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from edge_sdk.compute.rates import Rates
from edge_sdk.device import DeviceReport, probe
from edge_sdk.errors import DeviceError
from edge_sdk.planning.microbenchmark import known_rates, measure_rates
from edge_sdk.quantities import format_bytes
from edge_sdk.sensors.reading import Reading

Row = tuple[str, str, str]


def run_probe(
    console: Console, as_json: bool, refresh: bool, threads: int | None = None
) -> dict[str, Any]:
    """Probe; print it for people unless JSON was asked for; return it for machines.

    Args:
        console: Where the table goes.
        as_json: The caller prints what is returned instead.
        refresh: Run the benchmark again even if this device was measured before.
        threads: CPU threads to measure with; None takes the cores this process may use.
    """
    report = probe()
    threads = threads or report.cores
    rates, failure = known_rates(report, threads), None
    if refresh or rates.origin != "measured":
        try:
            rates = measure_rates(report, threads)
        except DeviceError as error:
            failure = str(error)
    if not as_json:
        _print(console, report, rates, failure)
    whole: dict[str, Any] = msgspec.to_builtins(report)
    return {**whole, "rates": msgspec.to_builtins(rates), "benchmark_failure": failure}


def _print(console: Console, report: DeviceReport, rates: Rates, failure: str | None) -> None:
    table = Table("reading", "value", "source", title=f"This device: {report.system}")
    for section in (_memory(report), _compute(report), _surroundings(report), _speed(rates)):
        for row in section:
            table.add_row(*row)
        table.add_section()
    console.print(table)
    for quantization, reason in rates.unusable.items():
        console.print(f"{quantization} cannot be used here by the general trainer: {reason}")
    if failure is not None:
        console.print(f"speed was not measured: {failure}")


def _memory(report: DeviceReport) -> list[Row]:
    memory = report.memory
    return [
        _row("memory we may have", memory.total_bytes, format_bytes),
        _row("of it free now", memory.available_bytes, format_bytes),
        _row("memory of the host", memory.host_total_bytes, format_bytes),
        _row("swap on disk, never counted", memory.swap.total_bytes, format_bytes),
        _row("zram, never counted", memory.swap.zram_bytes, format_bytes),
        _row("memory pressure", memory.pressure_percent, lambda x: f"{x:.1f} %"),
    ]


def _compute(report: DeviceReport) -> list[Row]:
    cpu, accelerator = report.cpu, report.accelerator
    rows = [
        _row("board", report.board, str),
        _row("processor", cpu.model, str),
        _row("cores we may use", cpu.cores, str),
        _row("instruction sets", cpu.instruction_sets, " ".join),
        _row("accelerator", accelerator.name, str),
    ]
    if accelerator.kind.value is not None:
        rows += [
            _row("its free memory", accelerator.free_bytes, format_bytes),
            _row("its power mode", accelerator.power_mode, str),
        ]
    return rows


def _surroundings(report: DeviceReport) -> list[Row]:
    around = report.surroundings
    return [
        _row("disk free", around.disk_free_bytes, format_bytes),
        _row("battery", around.battery_percent, lambda x: f"{x:.0f} %"),
        _row("on mains", around.is_on_mains, _yes_or_no),
        _row("temperature", around.temperature_celsius, lambda x: f"{x:.0f} °C"),
        _row("throttled now", around.throttled_now, lambda x: ", ".join(x) or "no"),
        _row("metered network", around.is_metered, _yes_or_no),
        _row("load per core", around.load_per_core, lambda x: f"{x:.2f}"),
    ]


def _speed(rates: Rates) -> list[Row]:
    source = f"{rates.origin}, {rates.threads} thread(s)"
    lean = rates.lean
    int8 = f"{lean.int8_flops_per_s / 1e9:.0f} GOP/s" if lean.int8_flops_per_s else "-"
    kernels = "compiled" if lean.has_fused else "plain torch"
    return [
        ("products in fp32", f"{rates.fp32_flops_per_s / 1e9:.0f} GFLOP/s", source),
        ("products in bf16", f"{rates.bf16_flops_per_s / 1e9:.0f} GFLOP/s", source),
        ("products in int8", int8, source),
        ("memory in use", f"{lean.moved_bytes_per_s / 1e9:.1f} GB/s", source),
        ("fresh memory", f"{rates.fresh_bytes_per_s / 1e9:.1f} GB/s", source),
        ("nf4 widened", f"{lean.nf4_widened_per_s / 1e9:.1f} G numbers/s", source),
        ("nf4 to int8", f"{lean.nf4_to_int8_per_s / 1e9:.1f} G numbers/s", source),
        ("kernels of its own", kernels, source),
    ]


def _row(name: str, reading: Reading[Any], write: Callable[[Any], str]) -> Row:
    return name, "-" if reading.value is None else write(reading.value), reading.source


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"
