"""What an app embeds: training in the background that the app and its user do not notice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edge_sdk.agent.errand import pull_adapter
from edge_sdk.agent.policy import Policy
from edge_sdk.agent.status import Status
from edge_sdk.errors import ConfigError
from edge_sdk.identity.identity import default_state_folder
from edge_sdk.planning.allowance import Allowance

if TYPE_CHECKING:
    from edge_sdk.agent.senses import Senses
    from edge_sdk.agent.supervisor import Event, Supervisor
    from edge_sdk.inference.host import InferenceProcess

_ADAPTER = "adapter"


class EdgeClient:
    """Take part in a federated task in the background, and use what it learns.

    Training and inference run in processes of their own; this one imports neither torch nor NumPy.
    Methods may be called from any thread. What goes wrong in the background is in :meth:`status`
    and goes to ``on_event``; only the call that caused an error raises it.

    Args:
        server: Base address; None uses the server this device joined before.
        data: JSONL file with the private training examples; needed by :meth:`start`.
        policy: When this device may train.
        allowance: What a round may take from it.
        task: Name of the task; None takes the server's only one.
        model: Folder or hub id of the base model; None uses the name the task gives.
        enrolment_token: From the operator; needed once.
        name: Of this device, for people; None takes the host name.
        state_folder: Where everything about this device is kept; None takes the platform's folder.
        gate: Use a new version only if it does not lose on examples of this device's own.
        personal: The same, and train an adapter that never leaves this device.
        on_event: Called with each :class:`edge_sdk.agent.supervisor.Event`, on the agent's thread;
            what it raises is logged and harms nothing.
        senses: What the policy looks at; None takes this device's sensors.
    """

    def __init__(
        self,
        *,
        server: str | None = None,
        data: str | Path | None = None,
        policy: Policy | None = None,
        allowance: Allowance | None = None,
        task: str | None = None,
        model: str | None = None,
        enrolment_token: str | None = None,
        name: str | None = None,
        state_folder: str | Path | None = None,
        gate: bool = False,
        personal: bool = False,
        on_event: Callable[[Event], None] | None = None,
        senses: Senses | None = None,
    ) -> None:
        self._state = Path(state_folder).absolute() if state_folder else default_state_folder()
        self._has_data = data is not None
        self._settings = {
            "server": server,
            "data": str(Path(data).absolute()) if data is not None else None,
            "task": task,
            "model": model,
            "enrolment_token": enrolment_token,
            "name": name,
            "state_folder": str(self._state),
            "allowance": asdict(allowance or Allowance()),
            "gate": gate,
            "personal": personal,
        }
        json.dumps(self._settings)  # a wrong type fails here, not in the background
        self._policy = policy or Policy()
        self._on_event = on_event
        self._senses = senses
        self._supervisor: Supervisor | None = None
        self._inference: InferenceProcess | None = None
        self._lock = threading.RLock()
        self._serving = threading.Lock()  # held while an adapter is fetched: nothing else waits

    def __enter__(self) -> EdgeClient:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to take part, and return at once; nothing happens if it has begun already.

        Raises:
            ConfigError: There is no data to train on.
            AlreadyRunning: Another agent works with the same state folder.
            StorageError: The state folder cannot be written.
        """
        if not self._has_data:
            raise ConfigError("taking part needs training data: name a JSONL file")
        with self._lock:
            if self._supervisor is not None and not self._supervisor.join(0):
                return
            from edge_sdk.agent.supervisor import Supervisor

            self._supervisor = Supervisor(
                self._settings,
                self._policy,
                self._state,
                self._on_event,
                self._senses,
                self._inference_cpu_s,
            )

    def pause(self) -> None:
        """Suspend training within a second, wherever it is; nothing of it is lost."""
        with self._lock:
            if self._supervisor is not None:
                self._supervisor.pause(True)

    def resume(self) -> None:
        """Let training go on where it was suspended, if the policy agrees."""
        with self._lock:
            if self._supervisor is not None:
                self._supervisor.pause(False)

    def stop(self) -> None:
        """End training and inference; the next start goes on in the middle of the round."""
        with self._lock:
            supervisor, inference = self._supervisor, self._inference
            self._inference = None
        if supervisor is not None:
            supervisor.stop()
        if inference is not None:
            inference.close()

    def status(self) -> Status:
        """Return what it is doing now, and why it is not training."""
        with self._lock:
            return self._supervisor.status if self._supervisor is not None else Status()

    def wait(self, timeout_s: float | None = None) -> Status:
        """Wait until the task is finished or failed, or until the time is over.

        Args:
            timeout_s: None waits for as long as it takes.
        """
        with self._lock:
            supervisor = self._supervisor
        if supervisor is not None:
            supervisor.join(timeout_s)
        return self.status()

    def use_newest(self) -> int:
        """Fetch the adapter this device shall use now, and use it from the next text on.

        A text that is being generated goes on with the adapter it began with. Without a server
        that answers, the adapter that was fetched before stays.

        Returns:
            Its version.

        Raises:
            EdgeError: It could not be fetched, is not to be trusted, or cannot be used.
        """
        with self._serving:
            found = pull_adapter(self._settings, self._state, self._state / _ADAPTER)
            inference = self._inference
            if inference is not None and inference.is_alive:
                inference.swap(self._state / _ADAPTER)
        return found.version

    def generate(
        self, prompt: str, *, max_new_tokens: int = 128, chat: bool = False, temperature: float = 0
    ) -> Iterator[str]:
        """Continue a prompt with the adapter in use, piece by piece, while training goes on.

        Args:
            prompt: What to continue; with ``chat``, what the user says.
            max_new_tokens: Upper limit.
            chat: Put the prompt into the model's chat template.
            temperature: 0 always takes the most probable token.

        Raises:
            EdgeError: The model or the adapter cannot be used.
        """
        return self._opened().generate(
            prompt, max_new_tokens=max_new_tokens, chat=chat, temperature=temperature
        )

    def classify(self, text: str, choices: Sequence[str] = ()) -> dict[str, float]:
        """Return the probability of each label.

        Args:
            text: To a classifier; to a language model the prompt before the choices.
            choices: For a language model: the continuations, which are the labels.

        Raises:
            EdgeError: The model or the adapter cannot be used.
        """
        return self._opened().classify(text, choices)

    def _inference_cpu_s(self) -> float:
        """Inference is this SDK's own: it is no reason to stop training."""
        inference = self._inference
        return inference.cpu_s if inference is not None else 0.0

    def _opened(self) -> InferenceProcess:
        """Open the base model with the adapter fetched last; fetch one if there is none."""
        with self._serving:
            inference = self._inference
            if inference is None or not inference.is_alive:
                found = pull_adapter(
                    self._settings, self._state, self._state / _ADAPTER, may_be_old=True
                )
                from edge_sdk.inference.host import InferenceProcess

                inference = InferenceProcess(found.base, self._state / _ADAPTER)
                self._inference = inference
            return inference
