"""Whether traffic costs money: the network is metered or not."""

from __future__ import annotations

from edge_sdk.sensors.commands import Run
from edge_sdk.sensors.reading import Reading, first_known

_BUS = "org.freedesktop.NetworkManager"
# NetworkManager's codes, with its guesses taken for the truth; 0 is "unknown".
_CODES = {"1": True, "2": False, "3": True, "4": False}
_WORDS = {"yes": True, "no": False, "yes (guessed)": True, "no (guessed)": False}


def read_metered(run: Run, system: str) -> Reading[bool]:
    """Return what NetworkManager says about the connection in use; missing without it."""
    if system != "Linux":
        return Reading(None, f"{system} does not tell")
    told = _primary_connection(run)
    return told if told.value is not None else first_known(told, _any_device(run))


def _primary_connection(run: Run) -> Reading[bool]:
    path = "/" + _BUS.replace(".", "/")
    # Asking must not start a NetworkManager that the owner has switched off.
    command = ["busctl", "--auto-start=no", "get-property", _BUS, path, _BUS, "Metered"]
    words = (run(command) or "").split()
    if len(words) != 2 or words[0] != "u":
        return Reading(None, "NetworkManager: no answer")
    metered = _CODES.get(words[1])
    return Reading(metered, "busctl" if metered is not None else "NetworkManager: unknown")


def _any_device(run: Run) -> Reading[bool]:
    """Ask per device, where the bus cannot be asked: one metered device is enough."""
    printed = run(["nmcli", "-g", "GENERAL.METERED", "device", "show"])
    told = [_WORDS.get(line.strip()) for line in (printed or "").splitlines()]
    known = [metered for metered in told if metered is not None]
    return Reading(any(known), "nmcli") if known else Reading(None, "nmcli: no answer")
