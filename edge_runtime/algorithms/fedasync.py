"""FedAsync: the shared model is mixed with each device's model when it arrives, the less the staler it is.

Xie, Koyejo and Gupta, "Asynchronous federated optimization" (arXiv 1903.03934), Algorithm 1. A device trains the w of
version v to x, descending f_i(x) + rho/2 |x - w|^2, and sends x. In version t the server goes

    w <- (1 - a_s) w + a_s x,   a_s = alpha s(t - v),   s constant, hinge or polynomial (section 5.2).

If several x came since the last version, the mixing must not depend on their order: w moves by the mean of what each
alone would move it by. PersA-FL, unlike this, adds differences: a stale x pulls w back to where x began.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass

import numpy as np

from edge_runtime import fixed, sgd
from edge_runtime.algorithm import Batches, Fitted, Model, State
from edge_runtime.algorithms import fedavg
from edge_runtime.algorithms.fedavg import Down
from edge_runtime.errors import DecodeError
from edge_runtime.tree import Change, Flat, Layout

__all__ = ["Client", "Config", "Down", "Server", "Up"]


@dataclass(frozen=True)
class Config(sgd.Sgd):
    """Local training, and how models are mixed; defaults of mixing as recalled from the paper's experiments."""

    attraction: float = 0.0
    """ρ, of x towards w; 0: none."""
    mixing: float = 0.6
    """α: 1 replaces w by a fresh x."""
    staleness: str = "polynomial"
    """s(k): `constant` (1), `polynomial` ((1 + k)^-a), or `hinge` (1 up to k = b, then 1 / (a (k - b) + 1))."""
    staleness_exponent: float = 0.5
    """a of `polynomial`."""
    hinge_slope: float = 10.0
    """a of `hinge`."""
    hinge_start: int = 4
    """b of `hinge`, in versions."""

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        sgd.require("attraction", self.attraction, low=0.0, high=2 / self.lr, open_high=True)
        sgd.require("mixing", self.mixing, low=0.0, high=1.0, open_low=True)
        sgd.require_one_of("staleness", self.staleness, ("constant", "polynomial", "hinge"))
        sgd.require("staleness-exponent", self.staleness_exponent, low=0.0)
        sgd.require("hinge-slope", self.hinge_slope, low=0.0)
        sgd.require("hinge-start", self.hinge_start, low=0)

    def weight(self, staleness: int) -> float:
        """Give a_s, the part of the device's model in the mixture."""
        match self.staleness:
            case "polynomial":
                return float(self.mixing * (1 + staleness) ** -self.staleness_exponent)
            case "hinge":
                return self.mixing / (1 + self.hinge_slope * max(staleness - self.hinge_start, 0))
            case _:
                return self.mixing


@dataclass(frozen=True)
class Up:
    """The device's model x [size], and the version of the w that it was made from."""

    round: int
    values: Change


class Client:
    """The device's half: no state but the model that it has just trained."""

    own_model = False

    def __init__(self, config: Config, model: Model, state: State | None) -> None:  # noqa: ARG002  # the contract's
        self._config, self._model = config, model
        self._trained: Flat | None = None

    def shared(self, down: Down) -> Flat:
        """Give w."""
        return fedavg.checked(down, self._model.layout)

    def personal(self, down: Down | None) -> Fitted:
        """Give w, or x after training."""
        if down is not None:
            return Fitted(self._model, self.shared(down))
        if self._trained is None:
            raise ValueError("personal(None) is asked before round")
        return Fitted(self._model, self._trained)

    def round(self, down: Down, batches: Batches) -> Up:
        """Train w to x."""
        start, force = self.shared(down), np.float32(self._config.attraction)
        pull = (lambda x: force * (x - start)) if force else None
        self._trained = sgd.descend(self._model, start, batches, self._config, down.round, pull=pull)
        return Up(down.round, self._trained)

    def state(self) -> State:
        """Give nothing: a device remembers nothing."""
        return {}


class Server:
    """The coordinator's half: w, and the running sum of what it would move by."""

    habits = ("asynchronous",)

    def __init__(
        self,
        config: Config,
        layout: Layout,
        initial: Flat,
        devices: MutableMapping[str, bytes],  # noqa: ARG002  # nothing is remembered of a device
        seed: int,  # noqa: ARG002
    ) -> None:
        self.round = 0
        self._config = config
        self._model = initial.astype(np.float32)
        self._total = fixed.Total(layout.size)

    def down(self, device: str, first: bool) -> Down:  # noqa: ARG002
        """Give everyone w."""
        return Down(self.round, self._model.copy())

    def absorb(self, device: str, up: Up) -> None:  # noqa: ARG002
        """Fold in a model made from this version of w or from an earlier one.

        Raises:
            DecodeError: it is of a version that there is not, or unfit; nothing has changed.
        """
        if not 0 <= up.round <= self.round:
            raise DecodeError(f"Up: it is of version {up.round}, and there are those up to {self.round}")
        fixed.check(up.values, None, len(self._model))
        self._total.add(np.float32(self._config.weight(self.round - up.round)) * (self._model - up.values))

    def close(self) -> None:
        """Mix w with what arrived."""
        self._total.step(self._model)
        self._total.clear()
        self.round += 1

    def shared(self) -> Flat:
        """Give w [size]."""
        return self._model.copy()

    def state(self) -> State:
        """Give the version and w."""
        return {"round": self.round, "model": self._model.copy()}

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self.round = int(state["round"])
        self._model[:] = np.asarray(state["model"])
        self._total.clear()
