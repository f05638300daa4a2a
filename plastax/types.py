"""The nouns of plastax: what a stream, a model, a method, a probe and a program are.

Types only, no logic. States and outputs are NamedTuples of arrays; configurations are frozen dataclasses; the two never
mix. Axis names used in every docstring: ``S`` seeds, ``B`` examples in a batch, ``P`` parameters, ``L`` layers,
``T`` rollout steps, ``N`` parallel environments, ``K`` Lanczos steps, ``R`` Lanczos probe vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import optax

from plastax.layers import LayerInputs, Units

Array = jax.Array
Key = jax.Array
"""A typed PRNG key, ``jax.random.key(...)``."""
Tree = Any
"""Any pytree of arrays."""
Params = Any
"""A pytree of float arrays: the parameters of one network."""
Features = dict[str, Array]
"""Layer name -> post-activation features ``[B, ..., width]``, in the order of the forward pass."""

Method: TypeAlias = optax.GradientTransformationExtraArgs
"""What keeps a network plastic: an optax transformation whose update takes the arguments of `MethodArgs` by name."""


def all_count(batch: Tree) -> None:
    """``counted_fn`` of a network without padding: every place counts."""


class MethodArgs(NamedTuple):
    """The extra arguments of ``method.update(grads, state, params, **args._asdict())``.

    Every program passes all of them. A method names those that it needs as keyword-only arguments and ignores the rest.

    Attributes:
      key: PRNG key of this step and seed, for all that the method draws.
      clock: int32 scalar, gradient steps since the start of the run. All seeds share it (it is never batched), so a
        `lax.cond` on it stays a branch under `vmap`.
      batch: the minibatch that the gradient was taken on.
      value: the loss on it, a scalar.
      features: the network's features on it.
      tap_grads: layer name -> gradient of ``value`` with respect to the layer's pre-activations ``[B, ..., width]``.
      loss_fn: ``(params, batch) -> scalar``, the training loss without any regulariser.
      features_fn: ``(params, batch) -> Features``.
      outputs_fn: ``(params, batch) -> outputs``, a tree with leading axis ``B``.
      init_fn: ``(key) -> params``, a fresh draw from the model's initialiser.
      boundary: bool scalar, shared by all seeds. True once per task switch, in a call of its own before the new task's
        first batch. That call has zero gradients, a batch of zeros, no features and no tap gradients. Only methods
        whose config says ``needs_boundary`` get it.
      rate: what the program will multiply the update by, shared by all seeds: 1, or less where the step size falls
        within a task. A method divides what must arrive whole (a replaced unit's parameters) by it.
      every_step: static; whether every step is a call and every call is applied, as in the programs. In other loops
        (`optax.MultiSteps` applies few calls) a method that acts periodically keeps the clock of the last applied call.
      counted_fn: ``(batch) -> bool [B, T]``, see `Model.counted`; it returns None if every place counts.
    """

    key: Key
    clock: Array
    batch: Tree
    value: Array
    features: Features
    tap_grads: dict[str, Array]
    loss_fn: Callable[[Params, Tree], Array]
    features_fn: Callable[[Params, Tree], Features]
    outputs_fn: Callable[[Params, Tree], Tree]
    init_fn: Callable[[Key], Params]
    boundary: Array | bool
    rate: Array | float = 1.0
    every_step: bool = True
    counted_fn: Callable[[Tree], Array | None] = all_count


LATER: Mapping[str, bool] = MappingProxyType({"later": True})
"""Metadata of a setting's field that is no part of a run's settings, and of its hash, while it has its default: runs
from before it came keep theirs."""


@runtime_checkable
class Recorded(Protocol):
    """A method's state with values for the record."""

    @property
    def recorded(self) -> Mapping[str, Array]:
        """Name of the training value, ``<method>/<value>`` -> scalar."""


class MethodConfig(Protocol):
    """The settings of one method: a frozen dataclass.

    In `build`, fields of type float may be traced arrays (a hyperparameter axis under `vmap`). All others are static.
    """

    @property
    def model_options(self) -> Mapping[str, Any]:
        """Options that the method sets in the model (``{"layer_norm": True}``), usually none."""

    @property
    def needs_boundary(self) -> bool:
        """Whether the method acts at task switches."""

    @property
    def restarts_statistics(self) -> bool:
        """Whether the running statistics of batch normalisation restart at a switch."""

    @property
    def replaces_units(self) -> bool:
        """Whether the method replaces the parameters of units. It then acts after all methods that add to the step."""

    @property
    def off(self) -> Mapping[str, Any] | None:
        """Settings under which it equals the wrapped optimiser bit for bit between switches; None: no such settings."""

    @property
    def replaces_optimizer(self) -> bool:
        """Whether it is an optimiser itself and ignores the one that it is given."""

    def build(self, inner: optax.GradientTransformation, model: Model | None = None) -> Method:
        """Wraps the optimiser ``inner`` into the method, whose state keeps its structure, shapes and types.

        Args:
          inner: the optimiser, or another method around it.
          model: the network that will be trained. Methods that act on units need it.

        Raises:
          ConfigError: ``model`` lacks something that the method needs.
        """


class Model(NamedTuple):
    """A network as pure functions, for one seed.

    A network with batch normalisation also has running statistics, ``stats``. `apply` and `tapped` do not use them:
    they normalise by the batch, as training does, so curvature is that of the training loss.

    Attributes:
      init: ``(key) -> params``, the same for the same key.
      apply: ``(params, x) -> (outputs, features)``.
      taps: ``(x) -> dict``: zeros of the shape of what every tapped layer gives, by name: the pre-activations of dense
        and convolutional layers, embeddings, normalised values.
      tapped: ``(params, taps, x) -> (outputs, features, inputs)``: `apply` with ``taps`` added to the pre-activations,
        and the layers' inputs. One backward pass with respect to (params, taps) holds both Kronecker factors.
      layers: names of the tapped layers with a kernel, in the order of the forward pass; ``roles`` says which parameter
        is a layer's kernel, in plastax's networks ``<layer>/kernel``.
      hidden: names of the hidden layers, the keys of the features, in the order of the forward pass.
      units: hidden layer -> its units.
      stats: the running statistics that training starts with, a tree of arrays; empty without batch normalisation.
      train: ``(params, stats, taps, x) -> (outputs, features, inputs, stats)``: `tapped`, and the statistics moved on.
        None without batch normalisation.
      evaluate: ``(params, stats, x) -> (outputs, features)``: normalised by the running statistics. None without.
      batch_like: shapes of the training batches (`jax.ShapeDtypeStruct`, leading axis ``B``), for methods that keep
        examples in their state; None: not known.
      activation: name of the hidden layers' nonlinearity. Which units count as dead or linear depends on it.
      roles: what every parameter is, a `plastax.roles.RolesOf`; None: told from their structure.
      lacking: layer -> why it has no units, of a network that was made elsewhere.
      counted: ``(x) -> bool [B, T]``, which places of a batch of tokens are not padding. The features and outputs of
        the others are zero, and means over places leave them out. None: inputs are not tokens; every place counts.
      factored: tapped layer -> names of its parameters, in the order of the forward pass: all that have Kronecker
        factors. Empty: those of ``layers``, ``<layer>/kernel`` and ``<layer>/bias``.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Params, Array], tuple[Tree, Features]]
    taps: Callable[[Array], dict[str, Array]]
    tapped: Callable[[Params, dict[str, Array], Array], tuple[Tree, Features, dict[str, LayerInputs]]]
    layers: tuple[str, ...]
    hidden: tuple[str, ...]
    units: Mapping[str, Units] = MappingProxyType({})
    stats: Tree = ()
    train: (
        Callable[[Params, Tree, dict[str, Array], Array], tuple[Tree, Features, dict[str, LayerInputs], Tree]] | None
    ) = None
    evaluate: Callable[[Params, Tree, Array], tuple[Tree, Features]] | None = None
    batch_like: Tree = None
    activation: str = "relu"
    roles: Any = None
    lacking: Mapping[str, str] = MappingProxyType({})
    counted: Callable[[Array], Array] | None = None
    factored: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Operator(NamedTuple):
    """A symmetric linear operator over trees of the structure of ``like``.

    Attributes:
      mv: ``tree -> tree``, linear and symmetric.
      like: a tree of arrays (or shape structs) of the operator's domain.
      product: how products are taken: ``forward``, ``reverse`` or ``finite``, see `plastax.curvature.products`; None:
        nothing was to choose.
      error: ``tangent -> scalar``: a bound on the norm of the product's error, estimated by differences of two steps;
        None: the product is exact up to rounding.
    """

    mv: Callable[[Tree], Tree]
    like: Tree
    product: str | None = None
    error: Callable[[Tree], Array] | None = None


def _same(outputs: Tree) -> Tree:
    return outputs


class Loss(NamedTuple):
    """A mean loss as a function of the network's outputs, and its curvature there; see `plastax.curvature.losses`.

    Attributes:
      value: ``(outputs, batch) -> scalar``, the mean over the batch.
      curvature: ``(outputs, batch, tangent) -> cotangent``: the product of a tangent of the outputs with C, the
        positive semi-definite Hessian of ``value`` with respect to the outputs (for a policy, its Fisher information).
        C has no entries between examples.
      root: ``(outputs, batch) -> cotangents`` with a leading axis K: for example i, ``sum_k r_ki r_ki^T`` is the block
        of C. None if not known.
      sample: ``(outputs, batch, key) -> cotangent``, random, with mean zero, ``E[s_i s_i^T]`` the block of C and the
        examples independent; None if not known.
      finite: ``(outputs) -> tree``: the outputs that must be finite, by default all. A masked logit may be infinite.
      weights: ``(batch) -> [B]``, what each example counts in the mean (its labels that are counted); None: all alike.
    """

    value: Callable[[Tree, Tree], Array]
    curvature: Callable[[Tree, Tree, Tree], Tree]
    root: Callable[[Tree, Tree], Tree] | None = None
    sample: Callable[[Tree, Tree, Key], Tree] | None = None
    finite: Callable[[Tree], Tree] = _same
    weights: Callable[[Tree], Array] | None = None


class Examples(NamedTuple):
    """Supervised examples: what a stream gives, and the batch of every supervised loss.

    Attributes:
      x: inputs ``[B, ...]``, float32; or tokens ``[B, T]``, int32, of which negative ones are padding.
      y: labels ``[B]``, int32, or targets ``[B, D]``, float32; or next tokens ``[B, T]``, int32, of which negative ones
        do not count.
      active: bool ``[B, C]``, the classes of the current task, the same for all examples. The logits of other classes
        are masked. None: all classes are active.
    """

    x: Array
    y: Array
    active: Array | None = None


class Stream(NamedTuple):
    """A supervised stream of tasks for one seed, as pure functions of a key, the task's number and shared data.

    Attributes:
      data: arrays that all seeds share, as they lie in memory (images uint8).
      loss: name of the loss in `plastax.curvature.losses`.
      input_shape: of one input.
      outputs: number of the network's outputs C.
      examples: training examples of a task.
      held_out: its held-out examples, none of which is ever trained on.
      task: ``(key, data, index) -> task``, a tree with what is particular to task ``index`` (a permutation, labels).
        The key is the seed's and the same for all tasks, so a stream can keep something over tasks. Nothing that was
        learned goes in: every method sees the same tasks.
      train: ``(task, data, index, key) -> Examples``: the training examples ``index`` ``[B]``, from 0 to ``examples -
        1``. The key differs at every call, for augmentation and noise.
      test: ``(task, data, index) -> Examples``: the held-out examples ``index`` ``[B]``, from 0 to ``held_out - 1``,
        the same at every call. Noise on them comes from the task, which has a key or the noise in it.
      description: one line.
      validated: training images kept out of training, for an evaluation of their own; 0: none.
      validation: ``(task, data, index) -> Examples``, as ``test``, of those; None: none.
      boundaries: whether the data change abruptly at task borders. If they change gradually, a task is only a stretch
        of time, and methods that act at switches are refused.
      reference: ``(task, data) -> scalar``: the least loss that any network could have (an entropy rate); None: not
        known.
      tasks: how many there are; None: any number.
    """

    data: Tree
    loss: str
    input_shape: tuple[int, ...]
    outputs: int
    examples: int
    held_out: int
    task: Callable[[Key, Tree, Array], Tree]
    train: Callable[[Tree, Tree, Array, Key], Examples]
    test: Callable[[Tree, Tree, Array], Examples]
    description: str
    validated: int = 0
    validation: Callable[[Tree, Tree, Array], Examples] | None = None
    boundaries: bool = True
    reference: Callable[[Tree, Tree], Array] | None = None
    tasks: int | None = None


class ProbeInput(NamedTuple):
    """What a probe may look at: one network, one batch, and the functions that connect them.

    Attributes:
      params: the network's parameters.
      batch: the examples, leading axis ``B``.
      loss_fn: ``(params, batch) -> scalar`` mean loss.
      features_fn: ``(params, batch) -> Features``.
      outputs_fn: ``(params, batch) -> outputs``, the network's outputs (a tree, leading axis ``B``).
      output_loss: the loss as a function of those outputs, whose curvature defines the generalised Gauss-Newton matrix.
      tapped_loss_fn: ``(params, taps, batch) -> (loss, (features, inputs))``, see `Model.tapped`.
      taps_fn: ``(batch) -> taps``.
      factors: Kronecker factors that the training steps of this task have accumulated, a
        `plastax.curvature.running.Running` of layer name -> `kronecker.Factors`; empty where training takes none.
      key: the probe's own key, for all that it draws.
      initial: ``() -> params``: draws the parameters that training began with again.
      previous: the parameters at the end of the previous task, those at the start in the first; empty unless a probe
        says `Probe.needs_previous`.
      counted_fn: ``(batch) -> bool [B, T]``, see `Model.counted`; it returns None if every place counts.
    """

    params: Params
    batch: Tree
    loss_fn: Callable[[Params, Tree], Array]
    features_fn: Callable[[Params, Tree], Features]
    outputs_fn: Callable[[Params, Tree], Tree]
    output_loss: Loss
    tapped_loss_fn: Callable[[Params, Tree, Tree], tuple[Array, tuple[Features, dict[str, LayerInputs]]]]
    taps_fn: Callable[[Tree], dict[str, Array]]
    factors: Tree
    key: Key
    initial: Callable[[], Params]
    previous: Params
    counted_fn: Callable[[Tree], Array | None] = all_count


class Probe(NamedTuple):
    """A pure measurement of one network.

    Attributes:
      name: prefix of its values in the record, ``<name>/<value>``.
      measure: ``ProbeInput -> {value name: array}`` of fixed shapes.
      dims: value name -> names of its axes, for the labelled record; values not named here are scalars.
      coords: axis name -> labels.
      every: tasks from one measurement to the next.
      needs_previous: whether it looks at `ProbeInput.previous`, one more copy of the parameters in the state.
    """

    name: str
    measure: Callable[[ProbeInput], dict[str, Array]]
    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, tuple[Any, ...]]
    every: int = 1
    needs_previous: bool = False


class Record(NamedTuple):
    """What one segment measured, for one seed (a leading axis ``S`` for several).

    Attributes:
      train: name -> ``[length]``, one value an update, reduced inside the update.
      probe: ``<probe>/<value>`` -> ``[2, ...]``: at the segment's start and at its end; NaN where none was due.
    """

    train: dict[str, Array]
    probe: dict[str, Array]


class Program(NamedTuple):
    """A training run as pure functions of one seed; `parallel` makes it many seeds, `runs.compiled` compiles them.

    Training and measuring are programs of their own: methods train differently, and are measured alike.

    Attributes:
      init: ``(key, data) -> state``.
      begin: ``(state, data, clock) -> state``: the switch to the task whose first update has the number ``clock``
        (int32 scalar, shared by all seeds). The first task has one, too.
      segment: ``(state, data, clock, length) -> (state, train)``: ``length`` (static) updates of one task, the first of
        which has the number ``clock``; ``train`` as in `Record`.
      view: ``state -> view``: the part of the state that is measured. It selects leaves and computes nothing.
      measure: ``(view, data, border) -> {<probe>/<value>: array}``. ``border`` is an int32 that differs for all
        measurements, for their keys: twice the number of updates done, plus one at the end of a segment.
      updates_per_task: tasks begin at its multiples.
      due: ``(updates done, whether a segment ends rather than starts here) -> bool``: when to measure; on the host.
      data: arrays that all seeds share and no update changes (images). As an argument of the compiled program they are
        neither constants of it nor copied with the seeds. May be empty.
      dims: ``<probe>/<value>`` -> names of the axes after seed and mark.
      coords: axis name -> labels.
      alike: equal in programs whose ``measure`` is the same function, which is then compiled once; None: not known.
    """

    init: Callable[[Key, Tree], Tree]
    begin: Callable[[Tree, Tree, Array], Tree]
    segment: Callable[[Tree, Tree, Array, int], tuple[Tree, dict[str, Array]]]
    view: Callable[[Tree], Tree]
    measure: Callable[[Tree, Tree, Array], dict[str, Array]]
    updates_per_task: int
    due: Callable[[int, bool], bool]
    data: Tree
    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, tuple[Any, ...]]
    alike: Hashable = None
