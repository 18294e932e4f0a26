"""FFGG: devices agree on shared tensors theta, and each fits private tensors w_m to them, which never leave it.

Mishchenko, Islamov, Gorbunov and Horvath, "Partially personalized federated learning: breaking the curse of data
heterogeneity" (TMLR 2025; arXiv 2305.18285). The objective is

    min over theta, w_1 ... w_M of (1/M) sum_m f_m(theta, w_m)

In round t device m fine-tunes, then gives one gradient (Algorithms 1 and 2):

    w_m <- w_m - eta grad_w f_m(theta_t, w_m)        tau times, or until the gradient's norm is at most a tolerance
    g_m  = grad_theta f_m(theta_t, w_m)              w_m held fixed: nothing goes back through the fine-tuning
    theta_{t+1} = theta_t - gamma Agg(g_m)

If w_m is the minimiser, g_m is the gradient of min_w f_m(theta_t, w) (the envelope theorem). Where one theta suits all
devices (an overpersonalised model), all g_m vanish there, and neither local steps, nor delays, nor, under a robust Agg,
devices that lie keep theta from it.

`variant = "local"` (Algorithm 4; its order of steps is from memory) repeats on the device, H times: fine-tune w_m at
theta_m, then train theta_m with w_m fixed. It sends theta_t - theta_m, and theta moves by the aggregate of these.
H = 1 with one step is Algorithm 1; H = 1 with an epoch for each part is FedAlt (Pillutla et al., ICML 2022).

An asynchronous run (Algorithm 3) moves theta by every gradient as it comes, with gamma undiminished, however old the
theta that it was computed at.

A device's personal model is theta_t as it came, with the w_m that was fine-tuned at it; never a theta that moved after
the fine-tuning.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass

import numpy as np

from edge_runtime import aggregate, algorithm, partial, sgd
from edge_runtime.algorithm import Batches, Fitted, Model, State
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.tree import ChangePart, Flat, Layout, Part, SharedPart

VARIANTS = ("gradient", "local")
STARTS = ("warm", "initial", "zeros", "normal")


@dataclass(frozen=True)
class Config(aggregate.Averaging):
    """How both parts are trained, and how the updates are aggregated.

    A batch-size of at least a device's samples makes every step one on all of them, as in the paper. lr, lr-decay,
    local-epochs, local-steps and momentum are those of theta; weight-decay, clip-norm and batch-size are those of both
    parts. The official code (synthetic data) takes a constant gamma = 1/L, no decay, no clipping, and the plain mean.
    """

    lr: float = 0.1
    """γ. Of variant gradient, the server's step; of variant local, the device's."""
    lr_decay: float = 1.0
    weight_decay: float = 0.0
    local_epochs: int = 1
    """Of variant local: passes that train theta after a fine-tuning."""
    lr_slowdown: float = 0.0
    """c: γ is divided by 1 + c t in round (asynchronous: version) t."""
    variant: str = "gradient"
    """`gradient`: one gradient of all samples a round; `local`: steps on the device."""
    alternations: int = 1
    """H, of variant local: how often a round fine-tunes w and then trains theta."""
    private: str = "auto"
    """The tensors of w: comma-separated patterns (`head.*`); `auto`: those of the bundle, else the last layer's; empty:
    none, which is FedSGD, or with variant local FedAvg."""
    private_lr: float = 0.1
    """η, constant."""
    private_epochs: int = 1
    """Passes of one fine-tuning."""
    private_steps: int = 0
    """τ, steps of one fine-tuning; 0: as many as private-epochs gives, and with private-epochs 0 none: w stays."""
    tolerance: float = 0.0
    """End a fine-tuning where the norm of a batch's gradient is at most this; 0: never before its last step."""
    private_start: str = "warm"
    """Where a fine-tuning begins: `warm`, where the last one ended (the first: the initial values), else every time at
    the `initial` values, at `zeros`, or at a `normal` draw of deviation 1, as in the official code. Only with `warm`
    does a short fine-tuning lead to the exact solution; the others need τ large beside the condition of f_m in w."""
    delay_adaptive: int = 0
    """M: an update made d versions ago counts M / max(M, d); 0: fully, however old it is."""

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        sgd.require("lr-slowdown", self.lr_slowdown, low=0.0)
        sgd.require_one_of("variant", self.variant, VARIANTS)
        sgd.require("alternations", self.alternations, low=1)
        sgd.require("private-lr", self.private_lr, low=0.0, open_low=True)
        sgd.require("private-epochs", self.private_epochs, low=0)
        sgd.require("private-steps", self.private_steps, low=0)
        sgd.require("tolerance", self.tolerance, low=0.0)
        sgd.require_one_of("private-start", self.private_start, STARTS)
        sgd.require("delay-adaptive", self.delay_adaptive, low=0)

    def rate(self, round_: int) -> float:
        """Give gamma in a round."""
        return super().rate(round_) / (1 + self.lr_slowdown * round_)


@dataclass(frozen=True)
class Down:
    """theta_t; and for a device without state the initial values of its private tensors, else no tensor."""

    round: int
    theta: SharedPart
    initial: Part


@dataclass(frozen=True)
class Up:
    """The gradient g_m, or of variant local theta_t - theta_m; and the number of training samples behind it."""

    round: int
    samples: int
    values: ChangePart


@dataclass(frozen=True)
class _Split:
    """A layout, and which of its tensors are shared and which private."""

    whole: Layout
    theta: Layout
    private: Layout

    @classmethod
    def of(cls, config: Config, layout: Layout) -> "_Split":
        names = algorithm.private_names(config, layout)
        if len(names) == len(layout.names):
            raise ConfigError(f"algorithm: private {config.private!r} is all of the model; use the algorithm `local`")
        shared = layout.only([name for name in layout.names if name not in names])
        return cls(layout, shared, layout.only(names))

    def part(self, values: Flat) -> Part:
        """Make the part of theta [its size]."""
        return Part(self.whole.bits(self.theta.names), values)

    def theta_of(self, part: Part, what: str) -> Flat:
        """Give the values of theta, and of nothing else, or raise DecodeError."""
        if self.whole.names_of(part) != self.theta.names:
            raise DecodeError(f"{what}: its tensors are not those that this run shares")
        return part.values

    def join(self, theta: Flat, own: Flat) -> Flat:
        """Lay theta and w together [size of the whole]."""
        return self.whole.join({**self.theta.views(theta), **self.private.views(own)})


class Client:
    """The device's half. Its state is w_m, and where a fine-tuning begins at the initial values those."""

    own_model = False

    def __init__(self, config: Config, model: Model, state: State | None) -> None:
        self._config, self._model = config, model
        self._split = _Split.of(config, model.layout)
        kept = {} if state is None else {name: np.asarray(values, np.float32) for name, values in state.items()}
        self._own, self._initial = kept.get("private"), kept.get("initial")
        self._fitted: Flat | None = None

    def shared(self, down: Down) -> Flat | None:
        """Give nothing, but where no tensor is private: theta is not a whole model."""
        return None if self._split.private.names else self._theta(down)

    def personal(self, down: Down | None) -> Fitted:
        """Give theta_t with the w_m that the device has, or after `round` with that fine-tuned at it."""
        if down is not None:
            theta = self._theta(down)
            return Fitted(self._model, self._split.join(theta, self._held(down)))
        if self._fitted is None:
            raise ValueError("personal(None) is asked before round")
        return Fitted(self._model, self._fitted)

    def round(self, down: Down, batches: Batches) -> Up:
        """Fine-tune w at theta_t, and give the gradient there; or alternate."""
        config, theta = self._config, self._theta(down)
        own = self._fine_tuned(theta, self._held(down), batches, down.round)
        self._fitted = self._split.join(theta, own)
        if config.variant == "gradient":
            values = sgd.full_gradient(self._theta_model(own), theta, batches, config)
        else:
            moved = sgd.descend(self._theta_model(own), theta, batches, config, down.round)
            for _ in range(config.alternations - 1):
                own = self._fine_tuned(moved, own, batches, down.round)
                moved = sgd.descend(self._theta_model(own), moved, batches, config, down.round)
            values = theta - moved
        self._own = own
        return Up(down.round, len(batches), self._split.part(values))

    def state(self) -> State:
        """Give w."""
        if self._own is None:
            raise ValueError("state is asked before round")
        kept = {"private": self._own}
        return kept | ({"initial": self._initial} if self._initial is not None else {})

    def _theta(self, down: Down) -> Flat:
        if down.round < 0:
            raise DecodeError(f"Down: round {down.round}")
        return self._split.theta_of(down.theta, "Down")

    def _held(self, down: Down) -> Flat:
        """Give w as the device has it: its own, or the initial values, which are kept if they will be needed again."""
        names, private = self._split.whole.names_of(down.initial), self._split.private.names
        if names not in ((), private):
            raise DecodeError("Down: its initial values are not those of the private tensors")
        if names and self._config.private_start == "initial":
            self._initial = down.initial.values
        if names or not private:
            return down.initial.values
        if self._own is None:
            raise DecodeError("Down: it has no initial values, and this device has no private tensors of its own")
        return self._own

    def _fine_tuned(self, theta: Flat, own: Flat, batches: Batches, round_: int) -> Flat:
        config, split = self._config, self._split
        if not split.private.names:
            return own
        if config.private_start == "initial" and self._initial is not None:
            own = self._initial
        elif config.private_start == "zeros":
            own = np.zeros(split.private.size, np.float32)
        elif config.private_start == "normal":
            own = batches.rng.standard_normal(split.private.size, np.float32)
        if not (config.private_steps or config.private_epochs):
            return own
        settings = sgd.Sgd(
            lr=config.private_lr,
            lr_decay=1.0,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            local_epochs=max(config.private_epochs, 1),
            local_steps=config.private_steps,
            batch_size=config.batch_size,
        )
        model = partial.holding(self._model, split.private, split.theta.views(theta))
        return sgd.descend(model, own, batches, settings, round_, tolerance=config.tolerance)

    def _theta_model(self, own: Flat) -> Model:
        return partial.holding(self._model, self._split.theta, self._split.private.views(own))


class Server:
    """The coordinator's half: theta, the round's updates, and the initial values of the private tensors."""

    habits = ("synchronous", "asynchronous")

    def __init__(
        self,
        config: Config,
        layout: Layout,
        initial: Flat,
        devices: MutableMapping[str, bytes],  # noqa: ARG002  # nothing is remembered of a device
        seed: int,
    ) -> None:
        self.round = 0
        self._config, self._split = config, _Split.of(config, layout)
        self._initial = initial.astype(np.float32)
        self._theta = layout.cut(self._initial, self._split.theta.names).values
        self.total: aggregate.Aggregate = aggregate.of(config, len(self._theta), seed)

    def down(self, device: str, first: bool) -> Down:  # noqa: ARG002
        """Give everyone theta_t, and a device without state the initial values of its private tensors."""
        split = self._split
        initial = split.whole.cut(self._initial, split.private.names if first else ())
        return Down(self.round, split.part(self._theta.copy()), initial)

    def absorb(self, device: str, up: Up) -> None:
        """Fold in an update, which may be of an earlier version.

        Raises:
            DecodeError: it is of a round to come, or unfit; nothing has changed.
        """
        if not 0 <= up.round <= self.round:
            raise DecodeError(f"Up: it is of round {up.round}, and this is round {self.round}")
        values, delay, limit = self._split.theta_of(up.values, "Up"), self.round - up.round, self._config.delay_adaptive
        if limit and delay > limit:
            values = values * np.float32(limit / delay)
        self.total.add(device, values, up.samples)

    def close(self) -> None:
        """Move theta by the aggregate."""
        rate = self._config.rate(self.round) if self._config.variant == "gradient" else 1.0
        self.total.step(self._theta, rate)
        self.total.clear()
        self.round += 1

    def shared(self) -> Flat:
        """Give a whole model [size]: theta, and the private tensors as they began."""
        whole = self._initial.copy()
        self._split.whole.paste(whole, self._split.part(self._theta))
        return whole

    def state(self) -> State:
        """Give the round, theta, and what the aggregator keeps."""
        return {"round": self.round, "theta": self._theta.copy(), **self.total.state()}

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self.round = int(state["round"])
        self._theta[:] = np.asarray(state["theta"])
        self.total.restore(state)
