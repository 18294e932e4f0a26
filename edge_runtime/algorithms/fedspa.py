"""FedSpa: every device trains its own sparse part of one shared model.

Huang et al., "Achieving personalized federated learning with sparse local models" (arXiv 2201.11380). The coordinator
keeps a dense w. Device k has a mask m_k in {0,1}^d with a fixed number of active weights in every tensor, and

    min_w  (1/K) sum_k F_k(m_k * w).

Round t, device k of a cohort of S: x_0 = m_{k,t} * w_t arrives (active values only); N steps of masked SGD lead to x_N;
the update U_k = x_0 - x_N and the change to m_{k,t+1} go back; w_{t+1} = w_t - (1/S) sum_k U_k. A coordinate that
nobody owns keeps its value. Masks are static and random (mode `rsm`), or move (mode `dst`): in every tensor drop the
r = ceil(alpha_t n+) of its n+ active weights that are smallest, and grow as many where the dense gradient is largest,

    alpha_t = (alpha_0 / 2) (1 + cos(pi t / T)),    t and T counted in rounds of the run.

Densities of tensors follow ERK (Evci et al. 2020, "Rigging the lottery", section 3). The paper's full text was not at
hand: where a setting's note says [recalled], its default is the recollection of the paper or of the same authors' later
code (Lockdown, DisPFL), not a quotation.
"""

import functools
import hashlib
import math
import typing
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

import numpy as np

from edge_runtime import aggregate, packed, sgd
from edge_runtime.algorithm import Batches, Fitted, Model, State, no_cut
from edge_runtime.compression import codec, submodel
from edge_runtime.compression import mask as masks
from edge_runtime.compression.submodel import Cut
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.mask import Bits, Mask, from_bits
from edge_runtime.tree import Change, Flat, Layout, Shared

_ROUNDING = 1e-9
"""So that ceil(0.07 * 100) is 7 and floor(0.7 * 10) is 7 whatever the last bit of the product says."""


@dataclass(frozen=True)
class Config(aggregate.OwnedAveraging):
    """Local training, how updates are averaged (of uniform weight, divided by the cohort [recalled]), and the masks."""

    density: float = 0.5
    """ρ: active weights / all weights, over the tensors that are masked. [recalled]"""
    distribution: str = "erk"
    """ρ_l, the density of each tensor: `erk` (small tensors denser) or `uniform`."""
    erk_power: float = 1.0
    """p, the exponent of ERK; 0 is uniform."""
    mask_1d: bool = False
    """Mask biases and norms as well. Off: all of them stay active, and are not counted in density."""
    mode: str = "dst"
    """`dst` (masks move) or `rsm` (random and static)."""
    mask_init: str = "by-mode"
    """First masks: `same` on all devices, `different`, or `by-mode` (dst: same, rsm: different)."""
    prune_rate: float = 0.5
    """α_0, the part of the active weights that moves in round 0. [recalled]"""
    rounds: int = 500
    """T, the length of the run; set from the run itself."""
    grow: str = "gradient"
    """Where weights grow: `gradient` (largest dense gradient of one batch) or `random` (no dense gradient needed)."""
    exclude_just_pruned: bool = False
    """Do not let a weight that was just dropped grow again. [recalled: it may]"""
    mask_order: str = "after-train"
    """When masks move. [recalled: after-train]

    `after-train`: drop and grow at x_N. `before-train`: drop and grow at the x_N of the device's last round, then
    train. `split` (Lockdown): drop at x_N, and grow at the start of the device's next round. In the last two a weight
    that grows starts at 0 (one that was just dropped, in `split`, at its value in w), since its value cannot have been
    sent; and a device's first round has nothing to go by and moves nothing.
    """

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        sgd.require("density", self.density, low=0.0, high=1.0, open_low=True)
        sgd.require("erk-power", self.erk_power, low=0.0)
        sgd.require("prune-rate", self.prune_rate, low=0.0, high=1.0)
        sgd.require("rounds", self.rounds, low=1)
        sgd.require_one_of("distribution", self.distribution, ("erk", "uniform"))
        sgd.require_one_of("mode", self.mode, ("dst", "rsm"))
        sgd.require_one_of("mask-init", self.mask_init, ("by-mode", "same", "different"))
        sgd.require_one_of("grow", self.grow, ("gradient", "random"))
        sgd.require_one_of("mask-order", self.mask_order, ("after-train", "before-train", "split"))
        if (self.mode, self.mask_init) == ("rsm", "same"):
            raise ConfigError("algorithm: mask-init same with mode rsm is FedAvg on one sparse model; use different")

    @property
    def moves_first(self) -> bool:
        """Say whether a mask moves before the training of a round, so that an update lies on the new mask."""
        return self.mode == "dst" and self.mask_order != "after-train"

    def move_rate(self, round_: int) -> float:
        """Give α_t; 0 once the run's T rounds are over."""
        return self.prune_rate / 2 * (1 + math.cos(math.pi * min(round_, self.rounds) / self.rounds))


@dataclass(frozen=True)
class Down:
    """The active values of w_t; for a device without a mask also that: its 16-byte seed, or all of it once it moved."""

    round: int
    values: Shared
    seed: bytes
    mask: bytes


@dataclass(frozen=True)
class Up:
    """U on the active coordinates (of the new mask if it moves first), the samples behind it, and the mask's change.

    `mask` is empty if the mask stays as it was. With growth at random it is a seed of 16 bytes and what was dropped.
    """

    round: int
    samples: int
    values: Change
    mask: bytes


def erk(shapes: typing.Sequence[tuple[int, ...]], density: float, power: float = 1.0) -> list[float]:
    """Give every tensor its density by the Erdos-Renyi-kernel rule.

    Densities go with (sum / product of the shape)^power. Tensors that would come out above 1 are dense, and the others
    share what is left, so that `density` holds over all.
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [((sum(shape) or 1) / max(size, 1)) ** power for shape, size in zip(shapes, sizes, strict=True)]
    sparse = set(range(len(shapes))) if density < 1 else set()
    scale = 1.0
    while sparse:
        budget = density * sum(sizes) - sum(size for i, size in enumerate(sizes) if i not in sparse)
        scale = budget / sum(raw[i] * sizes[i] for i in sparse)
        largest = max(raw[i] for i in sparse)
        if largest * scale <= 1:
            break
        sparse -= {i for i in sparse if raw[i] == largest}
    return [scale * raw[i] if i in sparse else 1.0 for i in range(len(shapes))]


def active_counts(layout: Layout, config: Config) -> tuple[int, ...]:
    """Count the active weights of every tensor, the same on all devices and for ever.

    Raises:
        ConfigError: a tensor would have none.
    """
    masked = [i for i, shape in enumerate(layout.shapes) if config.mask_1d or len(shape) >= 2]
    shapes = [layout.shapes[i] for i in masked]
    uniform = config.distribution == "uniform"
    densities = [config.density] * len(shapes) if uniform else erk(shapes, config.density, config.erk_power)
    counts = list(layout.sizes)
    for i, density in zip(masked, densities, strict=True):
        counts[i] = math.floor(density * layout.sizes[i] + _ROUNDING)
        if counts[i] < 1:
            raise ConfigError(
                f"algorithm: density {config.density:g} leaves {layout.names[i]!r} no active weight; raise it"
            )
    return tuple(counts)


def moves(sizes: tuple[int, ...], counts: tuple[int, ...], rate: float, exclude_just_pruned: bool) -> tuple[int, ...]:
    """Count the weights r_l that each tensor drops and grows: ceil(rate * active), as many as there is room for.

    A dense tensor moves none: what it drops is all that it could grow.
    """
    return tuple(
        min(math.ceil(rate * count - _ROUNDING), size - count if exclude_just_pruned else count) if count < size else 0
        for size, count in zip(sizes, counts, strict=True)
    )


def prune(mask: Mask, values: Flat, numbers: tuple[int, ...]) -> Bits:
    """Choose in each tensor the `numbers[l]` active values that are smallest; of equals, those that come first.

    Gives one bool for each active value [packed size].
    """
    dropped = np.zeros(len(values), np.bool_)
    for held, number in zip(mask.packed.slices, numbers, strict=True):
        if number:
            order = np.argsort(np.abs(values[held]), kind="stable")
            dropped[held][order[:number]] = True
    return dropped


def _check(bits: Bits, layout: Layout, counts: tuple[int, ...]) -> Bits:
    """Raise DecodeError unless a mask has the right number of active weights in every tensor."""
    for name, where, count in zip(layout.names, layout.slices, counts, strict=True):
        if (found := int(np.count_nonzero(bits[where]))) != count:
            raise DecodeError(f"mask: {found} active weights in {name!r} where {count} are expected")
    return bits


class Client:
    """The device's half. Its state is the mask, and what the order of moving it needs of the last round."""

    own_model = False

    def __init__(self, config: Config, model: Model, state: State | None) -> None:
        self._config, self._model, self._state = config, model, state
        self._layout = model.layout
        self._counts = active_counts(model.layout, config)
        self._trained: Fitted | None = None
        self._drawn: tuple[bytes, Bits] | None = None
        """With growth at random: the seed of what grew, and what was dropped [size]."""
        self._next: State = {}

    def shared(self, down: Down) -> None:  # noqa: ARG002
        """Give nothing: a device sees a part of the shared model only."""
        return

    def support(self, down: Down | None) -> Bits:
        """Give the mask that a Down's values lie on, or (None) those of the Up that `round` has made."""
        if down is not None:
            return self._mask(down).bits()
        if self._trained is None or self._trained.mask is None:
            raise ValueError("support(None) is asked before round")
        return self._trained.mask.bits()

    def personal(self, down: Down | None) -> Fitted:
        """Give m_t * w_t, or x_N after training."""
        if down is not None:
            mask, values = self._received(down)
            return Fitted(packed.of(self._model, mask), values, mask)
        if self._trained is None:
            raise ValueError("personal(None) is asked before round")
        return self._trained

    def round(self, down: Down, batches: Batches) -> Up:
        """Train within the mask, and move it."""
        config = self._config
        old, start = self._received(down)
        mask = old
        if config.moves_first and not (down.seed or down.mask):
            mask = self._move_first(old, start, down.round, batches)
            start = old.carry(start, mask)
        model = packed.of(self._model, mask)
        trained = sgd.descend(model, start, batches, config, down.round)
        self._trained = Fitted(model, trained, mask)
        new = mask
        if config.mode == "dst" and config.mask_order == "after-train":
            new = self._regrow(mask, prune(mask, trained, self._numbers(down.round)), trained, batches)
        self._next = self._remember(new, trained, down.round)
        return Up(down.round, len(batches), start - trained, self._change(old, new))

    def state(self) -> State:
        """Give the mask of the next round, and what moving it will need."""
        return self._next

    def _received(self, down: Down) -> tuple[Mask, Flat]:
        """Give the mask that the values of `down` lie on, and these [packed size]."""
        mask = self._mask(down)
        if len(down.values) != sum(self._counts):
            raise DecodeError(f"Down: {len(down.values)} values where {sum(self._counts)} are expected")
        return mask, down.values

    def _mask(self, down: Down) -> Mask:
        layout = self._layout
        if down.round < 0 or len(down.seed) not in (0, 16):
            raise DecodeError(f"Down: round {down.round} with a seed of {len(down.seed)} bytes")
        if down.mask:
            bits = masks.decode(down.mask, layout.size)
        elif down.seed:
            bits = masks.from_seed(down.seed, layout.sizes, self._counts)
        elif self._state is not None:
            bits = masks.decode(typing.cast(bytes, self._state["mask"]), layout.size)
        else:
            raise DecodeError("Down: it has no mask, and this device holds none")
        return from_bits(layout, _check(bits, layout, self._counts))

    def _numbers(self, round_: int) -> tuple[int, ...]:
        config = self._config
        return moves(self._layout.sizes, self._counts, config.move_rate(round_), config.exclude_just_pruned)

    def _move_first(self, old: Mask, start: Flat, round_: int, batches: Batches) -> Mask:
        """Move the mask at the start of a round, by what the last one left."""
        if self._state is None:
            return old
        if self._config.mask_order == "split":
            dropped = masks.decode(typing.cast(bytes, self._state["dropped"]), self._layout.size)[old.bits()]
            return self._regrow(old, dropped, np.where(dropped, np.float32(0), start), batches)
        last = typing.cast(Flat, self._state["values"])
        return self._regrow(old, prune(old, last, self._numbers(round_)), last, batches)

    def _regrow(self, old: Mask, dropped: Bits, at: Flat, batches: Batches) -> Mask:
        """Grow as many weights as were dropped, by the dense gradient of one batch at the point `at` [packed size]."""
        if not dropped.any():
            return old
        config, kept = self._config, old.keep(~dropped)
        if config.grow == "random":
            bits, gone = old.bits(), old.bits() & ~kept.bits()
            self._drawn = batches.rng.bytes(masks.SEED_BYTES), gone
            again = not config.exclude_just_pruned
            return from_bits(self._layout, masks.regrow(bits, gone, self._layout.shapes, self._drawn[0], again))
        numbers = tuple(int(np.count_nonzero(dropped[held])) for held in old.packed.slices)
        barred = old if config.exclude_just_pruned else kept
        batch = batches.sample(config.batch_size)
        return kept.add(sgd.steepest(packed.of(self._model, old), at, batch, barred, numbers))

    def _change(self, old: Mask, new: Mask) -> bytes:
        """Encode how the mask moved: with growth at random only what was dropped, behind the seed of what grew."""
        if old.same(new):
            return b""
        if self._drawn is None:
            return masks.encode_change(old.bits(), new.bits(), self._layout.shapes)
        seed, dropped = self._drawn
        return seed + masks.encode_regrowth(old.bits(), dropped, self._layout.shapes)

    def _remember(self, new: Mask, trained: Flat, round_: int) -> State:
        state: dict[str, int | float | bytes | Flat] = {"mask": masks.encode(new.bits())}
        if self._config.moves_first and self._config.mask_order == "split":
            state["dropped"] = masks.encode(new.keep(prune(new, trained, self._numbers(round_))).bits())
        elif self._config.moves_first:
            state["values"] = trained
        return state


@dataclass(frozen=True)
class _World:
    """What a device has of the model: all of it, or what a cut leaves; and how many active weights of each tensor."""

    layout: Layout
    counts: tuple[int, ...]
    cut: Cut | None = None

    def among_all(self, bits: Bits) -> Bits:
        """Say where in the whole model these of its values lie."""
        return bits if self.cut is None else submodel.within(self.cut.bits, bits)


@functools.lru_cache(16)  # more parts than a run has; one is asked for with every message
def _part(whole: Layout, config: Config, cut: Cut) -> _World:
    layout = Layout(whole.names, cut.shapes)
    return _World(layout, active_counts(layout, config), cut)


class Server:
    """The coordinator's half: the dense w, the round's updates, and on disk the mask of each device.

    A device that is not in `devices` still has the mask of its seed. Else its entry is (round, old, new): in `round` it
    told of the move from `old` (empty: the seed's) to `new`, which holds from the next round on. So within a round
    `down` gives the same before and after `absorb`, and an update that is absorbed again after a crash, when its entry
    is on disk but the sum is lost, is read against the mask that it was made with.
    """

    habits = ("synchronous",)

    def __init__(
        self, config: Config, layout: Layout, initial: Flat, devices: MutableMapping[str, bytes], seed: int
    ) -> None:
        self.round = 0
        self._config, self._devices, self._seed = config, devices, seed
        self._whole = _World(layout, active_counts(layout, config))
        self.cut_of: Callable[[str], Cut | None] = no_cut
        self._model = initial.astype(np.float32)
        self.total: aggregate.Aggregate = aggregate.of(config, layout.size, seed, owners=config.aggregate == "owners")
        self._drawn = b"", self._whole, np.empty(0, np.bool_)

    def down(self, device: str, first: bool) -> Down:
        """Give the values that the device's mask picks out of w_t, and to one without a mask also that."""
        coded = self._mask(device, self.round)
        values = self._model[self._world(device).among_all(self._bits(device, coded))]
        if not first:
            return Down(self.round, values, b"", b"")
        return Down(self.round, values, b"" if coded else self._mask_seed(device), coded)

    def absorb(self, device: str, up: Up) -> None:
        """Fold in an update, and write down where the mask moves.

        Raises:
            DecodeError: it is of another round, has not as many values as the mask is long, or a mask that may not be;
                nothing has changed.
        """
        if up.round != self.round:
            raise DecodeError(f"Up: it is of round {up.round}, not {self.round}")
        coded, world = self._mask(device, self.round), self._world(device)
        old = new = self._bits(device, coded)
        if up.mask:
            if self._config.mode == "rsm":
                raise DecodeError("Up: a mask moves, but the masks of this run are static")
            new = _check(self._moved(old, up.mask, world.layout.shapes), world.layout, world.counts)
        entry = codec.encode([self.round, coded, masks.encode(new)]) if up.mask else b""
        where = world.among_all(new if self._config.moves_first else old)
        self.total.add(device, up.values, up.samples, where)
        if entry:
            self._devices[device] = entry

    def _moved(self, old: Bits, change: bytes, shapes: masks.Shapes) -> Bits:
        config = self._config
        if config.grow != "random":
            return masks.decode_change(change, old, shapes)
        if len(change) <= masks.SEED_BYTES:
            raise DecodeError("Up: a mask that grew at random has a seed, and this one is too short")
        seed, dropped = change[: masks.SEED_BYTES], change[masks.SEED_BYTES :]
        return masks.decode_change(dropped, old, shapes, seed, not config.exclude_just_pruned)

    def close(self) -> None:
        """Move w by the mean update; the masks that were told of now hold."""
        self.total.step(self._model)
        self.total.clear()
        self.round += 1

    def shared(self) -> Flat:
        """Give the dense w [size]."""
        return self._model.copy()

    def state(self) -> State:
        """Give the round, w, and what the aggregator keeps; masks lie in `devices`."""
        return {"round": self.round, "model": self._model.copy(), **self.total.state()}

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self.round = int(typing.cast(int, state["round"]))
        self._model[:] = typing.cast(Flat, state["model"])
        self.total.restore(state)

    def support(self, device: str, round_: int) -> Bits:
        """Give a device's mask in this round, or in the last that it took part in, over what it has of the model."""
        return self._bits(device, self._mask(device, round_))

    def _mask(self, device: str, at: int) -> bytes:
        """Give a device's mask in a round, encoded; empty: it is the seed's."""
        entry = self._devices.get(device)
        if entry is None:
            return b""
        round_, old, new = codec.decode(entry, max_values=0)
        return typing.cast(bytes, new if typing.cast(int, round_) < at else old)

    def _bits(self, device: str, coded: bytes) -> Bits:
        world = self._world(device)
        if coded:
            return masks.decode(coded, world.layout.size)
        seed = self._mask_seed(device)
        if self._drawn[:2] != (seed, world):  # drawing takes a while, and all devices may begin with the same mask
            self._drawn = seed, world, masks.from_seed(seed, world.layout.sizes, world.counts)
        return self._drawn[2]

    def _world(self, device: str) -> _World:
        cut = self.cut_of(device)
        return self._whole if cut is None else _part(self._whole.layout, self._config, cut)

    def _mask_seed(self, device: str) -> bytes:
        """Derive the seed of a device's first mask from the run's."""
        config = self._config
        same = config.mask_init == "same" or (config.mask_init == "by-mode" and config.mode == "dst")
        return hashlib.sha256(f"fedspa/{self._seed}/{'' if same else device}".encode()).digest()[:16]
