"""A model of which only some tensors are trained: the others are held where they are, and have no gradient."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.algorithm import Model, Oracle, Pullback
from edge_runtime.tree import Layout, Tree


@dataclass(frozen=True)
class Held:
    """An Oracle of the tensors that `held` does not name."""

    oracle: Oracle
    held: Tree

    def vjp(self, params: Tree, x: NDArray[Any]) -> tuple[NDArray[np.float32], Pullback]:
        """Evaluate the model; see `algorithm.Oracle`."""
        outputs, pullback = self.oracle.vjp({**self.held, **params}, x)

        def some(slope: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
            gradients = pullback(slope)
            return {name: gradients[name] for name in params}

        return outputs, some


def holding(model: Model, layout: Layout, held: Tree) -> Model:
    """Make a model of the tensors in `layout`, some of `model`'s, where the others have the values `held`."""
    return Model(layout, Held(model.oracle, held))
