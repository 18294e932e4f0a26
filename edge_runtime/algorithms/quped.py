"""QuPeD: every device trains a quantised model of its own, of any architecture, by distillation from a shared one.

Ozkara et al., "QuPeD: quantized personalization via distillation with applications to federated learning" (NeurIPS
2021, arXiv 2107.13892), Algorithms 1 and 2. Device i has weights x_i, and for every quantised layer m = 2^b centres c_i
(`compression/quantize.py`: Q_c takes a weight to its nearest centre, Q~_c is the soft form of that). All share w, of
full precision. With lambda_p in [0, 1] and KL_T(w, z) = T^2 KL(softmax(w's outputs / T) || softmax(z's outputs / T)),

    min_{w, x_i, c_i}  (1/n) sum_i  h_i(x_i) + h_i(Q~_{c_i}(x_i)) + lambda R(x_i, c_i),
    h_i(z) = (1 - lambda_p) f_i(z) + lambda_p KL_T(w, z),    R(x, c) = |x - Q_c(x)|_1 / 2.

One step, on one batch; device i trains a copy w_i of w, and what teaches x and c is a constant to them:

    x   <- prox_{lr lambda R(., c)}(x - lr (grad h(x) + grad_x h(Q~_c(x))))
    c   <- sorted prox_{centre-lr lambda R(x, .)}(c - centre-lr grad_c h(Q~_c(x)))             with the new x
    w_i <- w_i - shared-lr (lambda_p grad_w (KL_T(w_i, x) + KL_T(w_i, Q~_c(x))) + shared-ce grad f(w_i))

The server moves w to the mean of the w_i. In round t lambda is lambda-0 (1 + lambda-growth t). From part freeze-at of
the run on, a device's codes and centres stay, and only the layers of full precision are trained. What a device uses
is always the hard model Q_c(x). x and c never leave the device, and are never made from w.

QuPeL (Ozkara et al., 2021, arXiv 2102.11786) is `penalty = "proximal"`: h_i = f_i, and lambda_p/2 |x_i - w|^2 in place
of distillation, so that w_i <- w_i - shared-lr lambda_p (w_i - x_i). All devices have the shared model's architecture.

AdaPeD (Ozkara et al., ICLR 2023, arXiv 2207.01771) is `adaptive`: h_i = f_i + KL_T / (2 psi_i) + log(2 psi_i) / 2, in
which psi_i is learned too; it comes to rest at the KL that the device has.

The papers' full texts were not at hand: the formulas are recollections, checked against the authors' code
(kazkara/QuPeD) and by hand, and where a setting's note says [recalled], its default is too. What differs from their
code: the threshold (half of theirs), the prox of the centres (exact; theirs ascends), layers of full precision by name
(theirs by their number of outputs), temperature on both sides; and a layer with no more weights than centres stays at
full precision, as its codebook would be larger than itself. Batches, clipping, momentum and weight decay (on x and
w) are those of `sgd.py`; with momentum or a clipped gradient the prox is a heuristic. Only the sizes of weights
shrink: activations and what is sent stay float32.
"""

import fnmatch
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edge_runtime import aggregate, losses, sgd
from edge_runtime.algorithm import Batch, Batches, Fitted, Model, OwnModel, Pullback, Quantised, State
from edge_runtime.algorithms.fedavg import Down, Server, Up, checked
from edge_runtime.compression import prox, quantize
from edge_runtime.compression.quantize import Codes
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.tree import Flat, Layout

__all__ = ["Client", "Config", "Down", "Server", "Up"]

Centres = NDArray[np.float32]


@dataclass(frozen=True)
class Config(aggregate.OwnedAveraging):
    """Local training, quantisation and collaboration, and how the w_i are averaged."""

    weight_decay: float = 0.0
    bits: int = 2
    """b, of a weight: 2^b centres for a layer; 0: nothing is quantised. Devices may differ."""
    full_precision: str = "auto"
    """Globs of the tensors that are not quantised, with commas between.

    `auto`: everything one-dimensional (biases, norms), and the first and the last of the others.
    """
    penalty: str = "distillation"
    """How x and w draw each other: `distillation` (QuPeD) or `proximal` (QuPeL)."""
    lambda_p: float = 0.25
    """λ_p, weight of collaboration: 0 is local training; with distillation at most 1 (no labels). [recalled]"""
    temperature: float = 1.0
    """T of distillation; unknown for the paper."""
    shared_lr: float = 0.0
    """η_3, for w; 0: as lr. It decays as lr does."""
    shared_ce: float = 1.0
    """With distillation: weight of the labels in the training of w; 0 is the paper, as far as it is recalled.

    Models that are drawn at random have nothing to teach each other at first: with 2 labels a class of `watch`, 1 made
    the personal models 1.5 points better after 10 rounds, and with 5 half a point (one seed).
    """
    lambda_0: float = 1e-4
    """λ in round 0; 1e-6 to 1e-4 in the authors' code. 1e-3 did no worse in 10 rounds of 20 steps on `watch`."""
    lambda_growth: float = 1.0
    """How much of lambda-0 is added every round."""
    regulariser: str = "l1"
    """R: `l1`, or `l2` for |x - Q_c(x)|^2."""
    soft_p: float = 0.0
    """P, the steepness of Q~ in round 0; 0: infinite, as in the authors' code, so that Q~ is Q."""
    soft_p_growth: float = 1.0
    """Factor of P per round."""
    centre_lr: float = 1e-4
    """η_2, for c. It decays as lr does."""
    centre_clip: float = 10.0
    """Largest magnitude of a centre's gradient; 0: no limit."""
    freeze_at: float = 0.8
    """Part of the rounds after which codes and centres stay, where they have been trained; 1: after the last."""
    rounds: int = 100
    """Length of the run; set from the run itself."""
    qr_compat: bool = False
    """As the authors' code.

    Threshold lr lambda, of two centres the one of the weight's sign, quantised weights clamped to [-1, 1], the centres'
    prox one step of first order (with its sign corrected).
    """
    adaptive: bool = False
    """AdaPeD: learn the weight of collaboration, 1 / (2 ψ), in place of lambda-p."""
    psi: float = 2.0
    """ψ at first: 2 is the weight 0.25."""
    psi_lr: float = 0.1
    """Step of ψ. [recalled]"""
    psi_min: float = 0.1
    """Smallest ψ."""

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        sgd.require("bits", self.bits, low=0, high=quantize.MAX_BITS)
        sgd.require_one_of("penalty", self.penalty, ("distillation", "proximal"))
        sgd.require("lambda-p", self.lambda_p, low=0.0, high=1.0 if self.penalty == "distillation" else math.inf)
        sgd.require("temperature", self.temperature, low=0.0, open_low=True)
        sgd.require_one_of("regulariser", self.regulariser, ("l1", "l2"))
        sgd.require("soft-p-growth", self.soft_p_growth, low=1.0)
        sgd.require("freeze-at", self.freeze_at, low=0.0, high=1.0)
        sgd.require("rounds", self.rounds, low=1)
        for key in ("shared-lr", "shared-ce", "lambda-0", "lambda-growth", "soft-p", "centre-lr", "centre-clip"):
            sgd.require(key, getattr(self, key.replace("-", "_")), low=0.0)
        sgd.require("psi-lr", self.psi_lr, low=0.0)
        sgd.require("psi-min", self.psi_min, low=0.0, open_low=True)
        sgd.require("psi", self.psi, low=self.psi_min)
        if self.adaptive and self.penalty != "distillation":
            raise ConfigError("algorithm: adaptive needs penalty distillation")
        if self.qr_compat and (self.soft_p or self.regulariser != "l1"):
            raise ConfigError("algorithm: qr-compat needs soft-p 0 and regulariser l1")

    def pressure(self, round_: int) -> float:
        """Give λ of a round."""
        return self.lambda_0 * (1 + self.lambda_growth * round_)

    def steepness(self, round_: int) -> float:
        """Give P of a round."""
        return self.soft_p * self.soft_p_growth**round_ if self.soft_p else math.inf

    def frozen(self, round_: int) -> bool:
        """Say whether codes and centres stay as they are in a round."""
        return self.bits > 0 and round_ >= math.ceil(self.freeze_at * self.rounds)


def _full_precision(layout: Layout, globs: str) -> set[str]:
    """Name the tensors that are not quantised."""
    wide = [name for name, shape in zip(layout.names, layout.shapes, strict=True) if len(shape) > 1]
    kept: set[str] = set()
    for glob in (part.strip() for part in globs.split(",")):
        if glob == "auto":
            kept |= {*wide[:1], *wide[-1:], *(set(layout.names) - set(wide))}
        else:
            kept |= {name for name in layout.names if fnmatch.fnmatchcase(name, glob)}
    return kept


@dataclass(frozen=True)
class Layers:
    """The quantised tensors of a model, each with its row of centres [layers, m]."""

    size: int
    names: tuple[str, ...]
    slices: tuple[slice, ...]
    bits: int
    by_sign: bool

    @property
    def form(self) -> quantize.Form:
        """Say what the deployed model consists of."""
        sizes = tuple(where.stop - where.start for where in self.slices)
        return quantize.Form(self.bits, sizes, self.size - sum(sizes))

    @property
    def full(self) -> NDArray[np.bool_]:
        """Say which weights [size] are not quantised."""
        full = np.ones(self.size, np.bool_)
        for where in self.slices:
            full[where] = False
        return full

    def initial(self, x: Flat) -> Centres:
        """Choose the first centres."""
        rows = [quantize.initial(x[where], self.bits) for where in self.slices]
        return np.array(rows, np.float32).reshape(len(rows), 1 << self.bits)

    def codes(self, x: Flat, centres: Centres) -> list[Codes]:
        """Give the code of every quantised weight."""
        pairs = zip(self.slices, centres, strict=True)
        return [quantize.assign(x[where], row, self.by_sign) for where, row in pairs]

    def put(self, x: Flat, codes: list[Codes], centres: Centres) -> Flat:
        """Put the centres of these codes into x as its quantised weights, in place."""
        for where, part, row in zip(self.slices, codes, centres, strict=True):
            x[where] = row[part]
        return x

    def soft(self, x: Flat, centres: Centres, steepness: float) -> Flat:
        """Compute Q~_c(x) [size]."""
        soft = x.copy()
        for where, row in zip(self.slices, centres, strict=True):
            soft[where] = quantize.soften(x[where], row, steepness, self.by_sign)
        return soft

    def pull_back(self, x: Flat, centres: Centres, steepness: float, slope: Flat) -> tuple[Flat, Centres]:
        """Take a gradient at Q~_c(x) [size] to those by x [size], changing `slope` into it, and by c [layers, m]."""
        to_centres = np.empty_like(centres)
        for row, (where, held) in enumerate(zip(self.slices, centres, strict=True)):
            slope[where], to_centres[row] = quantize.pull_back(x[where], held, steepness, slope[where], self.by_sign)
        return slope, to_centres


def layers(layout: Layout, config: Config) -> Layers:
    """Choose the tensors that are quantised."""
    kept = _full_precision(layout, config.full_precision)
    chosen = {
        name: where
        for name, size, where in zip(layout.names, layout.sizes, layout.slices, strict=True)
        if config.bits and name not in kept and size > 1 << config.bits
    }
    by_sign = config.qr_compat and config.bits == 1
    return Layers(layout.size, tuple(chosen), tuple(chosen.values()), config.bits, by_sign)


@dataclass(frozen=True)
class _Own:
    """What a device keeps: x [size], c [layers, m], ψ; and once frozen the codes, of which x then has the centres."""

    x: Flat
    centres: Centres
    psi: float
    codes: list[Codes] | None = None


def _opened(data: bytes, parts: Layers, psi: float) -> _Own:
    codes, centres, full = quantize.decode(data, parts.form)
    ends = np.cumsum(parts.form.layers)[:-1]
    cut = np.split(codes, ends) if parts.slices else []
    x = np.empty(parts.size, np.float32)
    x[parts.full] = full
    return _Own(parts.put(x, cut, centres), centres, psi, cut)


class Client:
    """The device's half: its state is x, c and ψ; once frozen it is the deployed model."""

    own_model = True

    def __init__(self, config: Config, model: OwnModel, state: State | None) -> None:
        if config.penalty == "proximal" and model.layout.shapes != model.shared.layout.shapes:
            raise DeviceError("penalty proximal needs the run's model on this device; use distillation, or that model")
        self._config, self._model = config, model
        self._layers = layers(model.layout, config)
        self._new = state is None
        self._own = self._begin() if state is None else self._kept(state)

    def _begin(self) -> _Own:
        x = self._model.initial.astype(np.float32)
        return _Own(x, self._layers.initial(x), self._config.psi)

    def _kept(self, state: State) -> _Own:
        psi = cast(float, state["psi"])
        if "deployed" in state:
            return _opened(cast(bytes, state["deployed"]), self._layers, psi)
        x, centres = cast(Flat, state["x"]), cast(Flat, state["centres"])
        form = self._layers.form
        if len(x) != self._layers.size or len(centres) != len(form.layers) * form.centres:
            raise DeviceError("the model that this device keeps is of another architecture, or has other bits")
        return _Own(x, centres.reshape(len(form.layers), form.centres), psi)

    def shared(self, down: Down) -> Flat:
        """Give w."""
        return checked(down, self._model.shared.layout)

    def personal(self, down: Down | None) -> Fitted:  # noqa: ARG002  # a device's own model does not hang on w
        """Give Q_c(x), before or after training."""
        return Fitted(self._model, self._layers.put(self._own.x.copy(), self._codes(), self._own.centres))

    def _codes(self) -> list[Codes]:
        own = self._own
        return self._layers.codes(own.x, own.centres) if own.codes is None else own.codes

    def deployed(self) -> Quantised | None:
        """Give Q_c(x) as it is stored, where it has codes."""
        parts = self._layers
        return Quantised(parts.bits, parts.names, self._stored()) if parts.slices else None

    def _stored(self) -> bytes:
        """Give Q_c(x) as packed codes, codebooks and the other weights (`quantize.py`)."""
        codes = self._codes()
        packed = np.concatenate(codes) if codes else np.empty(0, np.uint8)
        return quantize.encode(self._layers.form, packed, self._own.centres, self._own.x[self._layers.full])

    def round(self, down: Down, batches: Batches) -> Up:
        """Train x, c and a copy of w."""
        start, config = self.shared(down), self._config
        if config.frozen(down.round) and not self._new and self._own.codes is None:
            codes = self._codes()
            self._own = _Own(self.personal(None).values, self._own.centres, self._own.psi, codes)
        training = _Training(config, self._model, self._layers, self._own, start, down.round)
        with np.errstate(over="ignore", invalid="ignore"):  # what diverges is told below, in one line
            for batch in sgd.deal(batches, config):
                training.step(batch)
        for values in (training.x, training.centres, training.w):
            sgd.check(values, config, down.round)
        self._own = _Own(training.x, training.centres, training.psi, self._own.codes)
        return Up(down.round, len(batches), start - training.w)

    def state(self) -> State:
        """Give x, c and ψ."""
        own = self._own
        if own.codes is not None:
            return {"psi": own.psi, "deployed": self._stored()}
        return {"psi": own.psi, "x": own.x, "centres": own.centres.ravel()}


class _Training:
    """What moves while a device trains for a round: x, c, ψ and its copy of w."""

    def __init__(self, config: Config, model: OwnModel, parts: Layers, own: _Own, w: Flat, round_: int) -> None:
        self.x, self.centres, self.psi, self.w = own.x.copy(), own.centres.copy(), own.psi, w.copy()
        self._config, self._model, self._layers, self._codes = config, model, parts, own.codes
        self._quantises = bool(parts.slices) and own.codes is None
        self._steepness, self._pressure = config.steepness(round_), config.pressure(round_)
        decay = config.lr_decay**round_
        self._rate, self._centre_rate = config.rate(round_), config.centre_lr * decay
        self._shared_rate = (config.shared_lr or config.lr) * decay
        self._velocity = np.zeros_like(self.x) if config.momentum else None
        self._shared_velocity = np.zeros_like(self.w) if config.momentum else None

    def step(self, batch: Batch) -> None:
        """Move x, then c, then w, on one batch."""
        teacher = None
        if self._distils:
            outputs, _ = _forward(self._model.shared, self.w, batch)
            teacher = losses.softmax(outputs, self._config.temperature)
        self._move_x(batch, teacher)
        if self._quantises:
            self._move_centres(batch, teacher)
        self._move_shared(batch)

    @property
    def _distils(self) -> bool:
        config = self._config
        return config.penalty == "distillation" and (config.adaptive or config.lambda_p > 0)

    @property
    def _weights(self) -> tuple[np.float32, np.float32]:
        """Give the weights of labels and of distillation in h."""
        config = self._config
        if config.penalty == "proximal":
            return np.float32(1), np.float32(0)
        if config.adaptive:
            return np.float32(1), np.float32(1 / (2 * self.psi))
        return np.float32(1 - config.lambda_p), np.float32(config.lambda_p)

    def _points(self) -> list[Flat]:
        """Give the points at which h counts: x, and Q~_c(x) if that is another one."""
        return [self.x, self._soft()] if self._quantises else [self.x]

    def _soft(self) -> Flat:
        return self._layers.soft(self.x, self.centres, self._steepness)

    def _gradient(self, at: Flat, batch: Batch, teacher: losses.Outputs | None) -> Flat:
        """Compute the gradient [size] of h at a point; no teacher: of the labels' part."""
        outputs, pullback = _forward(self._model, at, batch)
        if teacher is not None and teacher.shape != outputs.shape:
            raise DeviceError(f"this device's model has {outputs.shape[1]} classes, the shared one {teacher.shape[1]}")
        labels, distilled = self._weights
        slope = np.zeros_like(outputs)
        if labels:
            slope += labels * losses.cross_entropy(outputs, batch.y)[1]
        if teacher is not None:
            slope += distilled * losses.distillation(outputs, teacher, self._config.temperature)[1]
        return self._model.layout.join(pullback(slope))

    def _move_x(self, batch: Batch, teacher: losses.Outputs | None) -> None:
        config, parts = self._config, self._layers
        gradient = self._gradient(self.x, batch, teacher)
        if self._quantises:
            slope = self._gradient(self._soft(), batch, teacher)
            gradient += parts.pull_back(self.x, self.centres, self._steepness, slope)[0]
        elif self._codes is not None:
            gradient[~parts.full] = 0
        force = np.float32(config.lambda_p)
        pull = (lambda x: force * (x - self.w)) if config.penalty == "proximal" else None
        sgd.move(self.x, gradient, self._velocity, config, self._rate, pull)
        if self._quantises:
            self._draw_x()
        elif self._codes is not None:  # what a velocity or a decay has moved
            parts.put(self.x, self._codes, self.centres)

    def _draw_x(self) -> None:
        """Draw the quantised weights to their centres."""
        config, strength = self._config, self._rate * self._pressure
        for where, row, codes in self._clusters():
            moved = self.x[where]
            if config.regulariser == "l2":
                moved = prox.weights_l2(moved, row[codes], strength)
            else:
                moved = prox.weights_l1(moved, row[codes], strength if config.qr_compat else strength / 2)
            self.x[where] = np.clip(moved, -1, 1) if config.qr_compat else moved

    def _move_centres(self, batch: Batch, teacher: losses.Outputs | None) -> None:
        config, strength = self._config, self._centre_rate * self._pressure
        slope = self._gradient(self._soft(), batch, teacher)
        gradient = self._layers.pull_back(self.x, self.centres, self._steepness, slope)[1]
        if config.centre_clip:
            np.clip(gradient, -config.centre_clip, config.centre_clip, out=gradient)
        moved = self.centres - np.float32(self._centre_rate) * gradient
        for row, (where, _, codes) in enumerate(self._clusters()):
            if config.regulariser == "l2":
                moved[row] = prox.centres_l2(moved[row], self.x[where], codes, strength)
            elif config.qr_compat:
                moved[row] = prox.centres_first_order(moved[row], self.x[where], codes, strength)
            else:
                moved[row] = prox.centres_l1(moved[row], self.x[where], codes, strength / 2)
        self.centres = np.sort(moved, axis=1)  # nothing holds codes of these: they are made anew from x

    def _clusters(self) -> Iterator[tuple[slice, Centres, Codes]]:
        return zip(self._layers.slices, self.centres, self._layers.codes(self.x, self.centres), strict=True)

    def _move_shared(self, batch: Batch) -> None:
        """Move w by what it and x say of the batch, and ψ by how far they are apart."""
        config = self._config
        force = np.float32(config.lambda_p)
        proximal = config.penalty == "proximal"
        pull = (lambda w: force * (w - self.x)) if proximal else None
        if not proximal and (self._distils or config.shared_ce):
            # The students first: so one pass's activations are held at a time, not three.
            students = [_forward(self._model, at, batch)[0] for at in self._points()] if self._distils else []
            step = self._shared_gradient(students, batch)
        elif proximal:
            step = np.zeros_like(self.w)
        else:
            return
        sgd.move(self.w, step, self._shared_velocity, config, self._shared_rate, pull)

    def _shared_gradient(self, students: list[losses.Outputs], batch: Batch) -> Flat:
        config, shared = self._config, self._model.shared
        outputs, pullback = _forward(shared, self.w, batch)
        slope = np.zeros_like(outputs)
        for student in students:
            slope += self._weights[1] * losses.distillation_teacher(student, outputs, config.temperature)
        if config.shared_ce:
            slope += np.float32(config.shared_ce) * losses.cross_entropy(outputs, batch.y)[1]
        if config.adaptive:
            teacher = losses.softmax(outputs, config.temperature)
            apart = [losses.distillation(student, teacher, config.temperature)[0] for student in students]
            self.psi = adapt(self.psi, float(np.mean(apart)), config)
        return shared.layout.join(pullback(slope))


def adapt(psi: float, apart: float, config: Config) -> float:
    """Take one step of ψ down KL / (2 ψ) + log(2 ψ) / 2, at rest where ψ is the KL `apart`."""
    return max(config.psi_min, psi - config.psi_lr * (psi - apart) / (2 * psi**2))


def _forward(model: Model, at: Flat, batch: Batch) -> tuple[losses.Outputs, Pullback]:
    return model.oracle.vjp(model.layout.views(at), batch.x)
