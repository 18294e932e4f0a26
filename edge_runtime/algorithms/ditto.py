"""Ditto: a shared model by FedAvg, and beside it a personal model that is drawn towards it.

Li et al., "Ditto: fair and robust federated learning through personalization" (ICML 2021), Algorithm 1. Device k
answers the shared w_t as in FedAvg, and on its own descends

    min_v  F_k(v) + lambda/2 |v - w_t|^2,    that is  v <- v - lr (grad F_k(v) + lambda (v - w_t))

from the v_k that it keeps; v_k starts as the first w_t that it sees. v_k never leaves the device.
"""

from dataclasses import dataclass, replace

import numpy as np

from edge_runtime import aggregate, sgd
from edge_runtime.algorithm import Batches, Fitted, Model, State
from edge_runtime.algorithms.fedavg import Down, Server, Up, checked
from edge_runtime.tree import Flat

__all__ = ["Client", "Config", "Down", "Server", "Up"]


@dataclass(frozen=True)
class Config(aggregate.OwnedAveraging):
    """Local training of both models; the defaults of lambda and the epochs are those of DisPFL's scripts."""

    local_epochs: int = 2
    """Passes that train the shared model."""
    personal_epochs: int = 3
    """Passes that train the personal model."""
    personal_steps: int = 0
    """Steps that train the personal model; 0: as many as personal-epochs gives."""
    attraction: float = 0.5
    """λ: 0 trains the personal model alone, a large one makes it the shared model. lr times this must be below 2."""

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        sgd.require("personal-epochs", self.personal_epochs, low=1)
        sgd.require("personal-steps", self.personal_steps, low=0)
        sgd.require("attraction", self.attraction, low=0.0, high=2 / self.lr, open_high=True)


class Client:
    """The device's half: its personal model v is its state."""

    own_model = False

    def __init__(self, config: Config, model: Model, state: State | None) -> None:
        self._config, self._model = config, model
        self._own: Flat | None = None if state is None else np.asarray(state["personal"], np.float32)

    def shared(self, down: Down) -> Flat:
        """Give w_t."""
        return checked(down, self._model.layout)

    def personal(self, down: Down | None) -> Fitted:
        """Give v, before or after training."""
        return Fitted(self._model, self._values(down))

    def _values(self, down: Down | None) -> Flat:
        if self._own is not None:
            return self._own
        if down is None:
            raise ValueError("personal(None) is asked before round")
        return self.shared(down)

    def round(self, down: Down, batches: Batches) -> Up:
        """Train a copy of w_t for all, and v for this device."""
        config, start = self._config, self.shared(down)
        trained = sgd.descend(self._model, start, batches, config, down.round)
        own = replace(config, local_epochs=config.personal_epochs, local_steps=config.personal_steps)
        force = np.float32(config.attraction)
        self._own = sgd.descend(
            self._model, self._values(down), batches, own, down.round, pull=lambda v: force * (v - start)
        )
        return Up(down.round, len(batches), start - trained)

    def state(self) -> State:
        """Give v."""
        return {"personal": self._values(None)}
