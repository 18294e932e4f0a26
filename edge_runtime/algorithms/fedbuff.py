"""FedBuff: devices answer whenever they are done, and the server takes the mean of every K updates.

Nguyen et al., "Federated learning with buffered asynchronous aggregation" (AISTATS 2022, arXiv 2106.06639), Algorithm
1. A device trains the w of version v to x as in FedAvg, and sends U = w - x. When K updates have come, in version t,

    w <- w - (eta_g / K) sum_k (1 + t - v_k)^(-1/2) U_k .

K is the asynchronous run's `buffer`; in a synchronous run K is the cohort, nothing is stale, and this is FedAvg with a
server's learning rate.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass

import numpy as np

from edge_runtime import aggregate, fixed, sgd
from edge_runtime.algorithms import fedavg
from edge_runtime.algorithms.fedavg import Client, Down, Up
from edge_runtime.errors import DecodeError
from edge_runtime.tree import Flat, Layout

__all__ = ["Client", "Config", "Down", "Server", "Up"]


@dataclass(frozen=True)
class Config(aggregate.OwnedAveraging):
    """Local training, and what the server makes of it."""

    server_lr: float = 1.0
    """η_g."""
    staleness_exponent: float = 0.5
    """An update that is s versions old counts (1 + s) to minus this; 0: as any other."""

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        sgd.require("server-lr", self.server_lr, low=0.0, open_low=True)
        sgd.require("staleness-exponent", self.staleness_exponent, low=0.0)


class Server(fedavg.Server):
    """The coordinator's half: FedAvg's, but that updates may be stale, and the server has a learning rate."""

    habits = ("asynchronous", "synchronous")

    def __init__(
        self, config: Config, layout: Layout, initial: Flat, devices: MutableMapping[str, bytes], seed: int
    ) -> None:
        super().__init__(config, layout, initial, devices, seed)
        self._config = config

    def absorb(self, device: str, up: Up) -> None:
        """Fold in an update of this version of w or of an earlier one.

        Raises:
            DecodeError: it is of a version that there is not, or unfit; nothing has changed.
        """
        if not 0 <= up.round <= self.round:
            raise DecodeError(f"Up: it is of version {up.round}, and there are those up to {self.round}")
        fixed.check(up.values, self._has(device), len(self._model))
        weight = (1 + self.round - up.round) ** -self._config.staleness_exponent
        self.total.add(device, np.float32(weight) * up.values, up.samples, self._has(device))

    def close(self) -> None:
        """Move w by the mean of what arrived."""
        self.total.step(self._model, self._config.server_lr)
        self.total.clear()
        self.round += 1
