"""The class head of a margin loss: a centre for each identity, split by rows over all devices, and a step's sample.

Every device computes the cosines of the whole batch with its own rows. Between devices go the batch's embeddings (and
their gradients), and of the logits only one maximum and two sums for each image.

Partial FC: with a rate below 1, a step compares with a random part of the classes, in which the batch's own classes
always are. The rows are sampled in groups of equal size, equally many of each, so that a device samples among its own
rows and the sample does not depend on how many devices there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fvjax.parallel import sharding
from fvjax.typing import Labels

ROWS_MULTIPLE = 128  # rows are padded to a multiple of it, which many numbers of devices divide
BY_ROWS = PartitionSpec(sharding.AXES)
STANDARD_DEVIATION = 0.01  # of a centre's random start, as in insightface


@dataclass(frozen=True)
class ClassHead:
    """The sizes of a head.

    Attributes:
        classes: identities. width: of an embedding. subcentres: centres of each class.
        sample_rate: part of the classes that a step compares with, 1: all of them.
        groups: in how many equal parts rows are sampled; a multiple of the number of devices.
    """

    classes: int
    width: int
    subcentres: int = 1
    sample_rate: float = 1.0
    groups: int = 8

    @property
    def rows(self) -> int:
        """Classes and the padding after them."""
        unit = math.lcm(ROWS_MULTIPLE, self.groups)
        return -(-self.classes // unit) * unit

    @property
    def sampled_rows(self) -> int:
        """Rows of each group that a step compares with."""
        return math.ceil(self.sample_rate * self.rows / self.groups)

    def init(self, key: jax.Array) -> jax.Array:
        """Return random centres, float32 [rows, D], or [rows, K, D] with K sub-centres; padding is zero."""
        middle = () if self.subcentres == 1 else (self.subcentres,)
        centres = STANDARD_DEVIATION * jax.random.normal(key, (self.rows, *middle, self.width))
        real = jnp.arange(self.rows) < self.classes
        return jnp.where(real.reshape(-1, *[1] * (centres.ndim - 1)), centres, 0.0)

    def check_sample(self, batch_size: int) -> None:
        """Raise ValueError if a batch's own classes may not fit into a sample, or leave no other class in it."""
        if self.sample_rate == 1.0:
            return
        rows, sampled = self.rows // self.groups, self.sampled_rows
        name = f"config.head.sample_rate={self.sample_rate:g}"
        if min(self.classes, self.groups * sampled) <= batch_size:
            problem = f"leaves {min(self.classes, self.groups * sampled)} of {self.classes} classes"
            raise ValueError(f"{name} {problem}, so a batch of {batch_size} identities may have no negatives; raise it")
        if sampled < min(batch_size, rows):
            problem = f"keeps {sampled} of {rows} rows in each of config.head.groups={self.groups} groups"
            raise ValueError(f"{name} {problem}, but a batch of {batch_size} may need them all in one; raise it")

    def select(self, centres: jax.Array, labels: Labels, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the centres that a step compares with, [C, D] or [C, K, D], and int32 [C], the class of each.

        Args:
            labels: int [N], the classes of the batch, which are always among them.
            key: decides which other ones are.
        """
        if self.sample_rate == 1.0:
            return centres, jnp.arange(self.rows)
        self._check_devices()
        chosen = self.sample(labels, key)
        grouped = centres.reshape(self.groups, self.rows // self.groups, *centres.shape[1:])
        taken = jax.vmap(lambda rows, numbers: rows[numbers])(sharding.constrain(grouped, BY_ROWS), chosen)
        taken = sharding.constrain(taken, BY_ROWS)
        columns = chosen + self.rows // self.groups * jnp.arange(self.groups)[:, None]
        return taken.reshape(-1, *centres.shape[1:]), columns.reshape(-1)

    def sample(self, labels: Labels, key: jax.Array) -> jax.Array:
        """Return which rows of each group are sampled, int32 [groups, sampled_rows]; padding comes last."""
        shape = self.groups, self.rows // self.groups
        of_batch = jnp.zeros(self.rows, bool).at[labels].set(True).reshape(shape)
        order = jnp.where(of_batch, 2.0, jax.random.uniform(key, shape))
        order = jnp.where(jnp.arange(self.rows).reshape(shape) < self.classes, order, -1.0)
        # A sort, which stays on the device of each group; XLA gathers what top_k is given.
        order = sharding.constrain(order, BY_ROWS)
        return jnp.argsort(order, axis=1, descending=True)[:, : self.sampled_rows]

    def _check_devices(self) -> None:
        mesh = jax.sharding.get_abstract_mesh()
        devices = 1 if mesh.empty else mesh.size
        if self.groups % devices:
            problem = f"is not a multiple of the {devices} devices, each of which samples its own rows"
            raise ValueError(f"config.head.groups={self.groups} {problem}")
