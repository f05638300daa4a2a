"""What every method promises, checked by training a small network through it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plastax import tree
from plastax.curvature import losses
from plastax.models import MLP
from plastax.program import learner
from plastax.testing.promises import Promise, check_pure, close, difference, plain, quick, traced
from plastax.types import Array, Examples, Features, Key, MethodArgs, MethodConfig, Model, Params, Program, Tree

INNER = optax.adam(1e-2)
"""The optimiser that methods are built around."""
EXACT = optax.sgd(0.5, momentum=0.5)
"""Another one, exact where all numbers are small and whole, however XLA compiles it."""
INPUTS = (3,)
STEPS = 200
SWITCH = 60
"""A task switch comes before this step, for methods that act at switches."""
Fields = Mapping[str, Any]
"""Name of a setting -> its value, traced."""
NONE: Fields = MappingProxyType({})
MEMBERS = ("model_options", "needs_boundary", "restarts_statistics", "replaces_units", "off", "replaces_optimizer")


def make_batches() -> Examples:
    """One batch a step, ``x`` ``[STEPS, B, 3]`` and one target ``y`` ``[STEPS, B, 1]``."""
    x: Any = np.random.default_rng(0).standard_normal((STEPS, 16, *INPUTS)).astype(np.float32)
    return Examples(x, np.sin(x[..., :1]) + x[..., 1:2] * x[..., 2:])


BATCHES = make_batches()


@functools.cache
def make_model(silent: bool = False, **options: Any) -> Model:
    """The model of methods that set these options, small: every method compiles a training of its own.

    Args:
      silent: whether its units are silent for whole batches.
      **options: of `MLP`.
    """
    model = MLP(**{"hidden": (8,), **options}).build(INPUTS, 1)
    if not silent:
        return model
    drawn = model.init
    return model._replace(init=lambda key: tree.map_named(lambda n, x: x - 2 * (n == "dense_0/bias"), drawn(key)))


class Trial:
    """A method, the small network that it trains, and the compiled training."""

    def __init__(
        self,
        config: MethodConfig,
        model: Model | None = None,
        idle: Collection[str] = (),
        batches: Examples = BATCHES,
    ) -> None:
        self.config, self.who, self.idle, self.batches = config, type(config).__name__, frozenset(idle), batches
        check_configuration(config)
        what = f"plastax.models.MLP with the options {dict(config.model_options)}"
        with Promise(MethodConfig, "model_options").kept(self.who, what, "name options that models have"):
            model = model or make_model(**config.model_options)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches)
        self.model = model._replace(batch_like=like)
        loss = losses.get("mse" if model.counted is None else "token_cross_entropy")
        self.network = learner.network(
            self.model, loss, lambda outputs, batch: (loss.value(outputs, batch), {}), lambda batch: batch.x
        )
        self.trained = quick(self.train)

    def seen(self, params: Params, batch: Examples) -> tuple[Params, tuple[Array, Features, dict[str, Array]]]:
        """The gradient, and (loss, features, gradient with respect to the taps)."""
        seen = self.network.backward(params, self.model.stats, batch)
        return seen.grads, (seen.value, seen.features, seen.tap_grads)

    def args(self, key: Key, clock: Any, batch: Examples, seen: Any, boundary: Any = False) -> dict[str, Any]:
        """`MethodArgs` of (loss, features, gradients of the taps), and an argument that no method knows."""
        value, features, tap_grads = seen
        functions = self.network.loss, self.network.features, self.network.outputs, self.model.init
        args = MethodArgs(
            key, clock, batch, value, features, tap_grads, *functions, boundary, counted_fn=self.network.counted
        )
        return args._asdict() | {"surprise": jnp.ones(3)}

    @functools.cached_property
    def fields(self) -> dict[str, Array]:
        """Two values ``[2]`` of each setting that may be traced: its own, and half of it."""
        values = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(self.config)}  # type: ignore[arg-type]
        values = {name: value for name, value in values.items() if isinstance(value, float)}
        return {name: jnp.asarray([value, value / 2 if value else 0.5]) for name, value in values.items()}

    def build(self, inner: optax.GradientTransformation = INNER, **fields: Any) -> Any:
        """The method, under other settings."""
        with Promise(MethodConfig, "build").kept(self.who, "build", "accept (inner, model), and traced floats"):
            return dataclasses.replace(self.config, **fields).build(inner, self.model)  # type: ignore[type-var]

    def step(self, method: Any, params: Params, state: Tree, key: Key, clock: Array) -> tuple[Params, Tree, Array]:
        """A gradient step: parameters, state and loss."""
        batch = jax.tree.map(lambda x: jnp.asarray(x)[clock % STEPS], self.batches)
        grads, seen = self.seen(params, batch)
        args = self.args(key, clock, batch, seen)
        remedy = "name what update needs as keyword-only arguments, ignore the rest (**_), use settings as arrays"
        with Promise(MethodArgs).kept(self.who, "update", remedy):
            updates, state = method.update(grads, state, params, **args)
        return optax.apply_updates(params, updates), state, seen[0]

    def switch(self, method: Any, params: Params, state: Tree, key: Key, boundary: Any = True) -> tuple[Params, Tree]:
        """A task switch as the programs call it: no gradient, no batch, no features."""
        batch = jax.tree.map(lambda x: jnp.zeros_like(x[0]), self.batches)
        args = self.args(key, jnp.int32(SWITCH), batch, (jnp.zeros(()), {}, {}), boundary)
        remedy = "act at a boundary without gradients, features and tap gradients"
        with Promise(MethodArgs, "boundary").kept(self.who, "update", remedy):
            updates, state = method.update(jax.tree.map(jnp.zeros_like, params), state, params, **args)
        return optax.apply_updates(params, updates), state

    def train(self, fields: Fields, key: Key, drawing: Key) -> tuple[Params, Tree, Array]:
        """Trains with ``fields`` in place of the configuration's own: parameters, state and losses ``[STEPS]``.

        Args:
          fields: settings, traced.
          key: of the initial network.
          drawing: of what the method draws.
        """
        method, params = self.build(**fields), self.model.init(key)

        def body(carry: Any, x: tuple[Key, Array]) -> tuple[Any, Array]:
            if self.config.needs_boundary:
                act = functools.partial(self.switch, method, key=jax.random.fold_in(x[0], 1))
                carry = jax.lax.cond(x[1] == SWITCH, act, lambda *same: same, *carry)
            params, state, value = self.step(method, carry[0], carry[1], x[0], x[1])
            return (params, state), value

        steps = (jax.random.split(drawing, STEPS), jnp.arange(STEPS))
        (params, state), losses = jax.lax.scan(body, (params, method.init(params)), steps)
        return params, state, losses

    def run(
        self,
        setting: int = 0,
        seed: int = 0,
        drawing: int | None = None,
        other: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """`train`, compiled once for all settings."""
        fields = jax.tree.map(lambda x: x[setting], self.fields) | other
        return self.trained(fields, jax.random.key(seed), jax.random.key(seed if drawing is None else drawing))


def check_configuration(config: Any) -> None:
    """A frozen dataclass with all that `MethodConfig` names."""
    who, promise = type(config).__name__, Promise(MethodConfig)
    if not getattr(getattr(config, "__dataclass_params__", None), "frozen", False):
        raise promise.broken(who, "it is no frozen dataclass", "decorate the class with @dataclass(frozen=True)")
    lacking = [name for name in (*MEMBERS, "build") if not hasattr(config, name)]
    if lacking:
        remedy = "derive it from plastax.methods.base.Settings, which has defaults"
        raise promise.broken(who, f"it has no {', '.join(lacking)}", remedy)


def keeps_its_state(trial: Trial) -> None:
    """Structure, shapes and types, weak ones included: a step that changes them compiles twice."""
    method = trial.build()
    params = jax.eval_shape(trial.model.init, tree.key_like())
    state = jax.eval_shape(method.init, params)
    later = jax.eval_shape(functools.partial(trial.step, method), params, state, tree.key_like(), jnp.int32(3))[:2]

    def same(a: Any, b: Any) -> bool:
        return (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)

    for name, got, expected in zip(("parameters", "state"), later, (params, state)):
        if found := difference(got, expected, same):
            raise Promise(MethodConfig, "build").broken(
                trial.who,
                f"a step changes the {name}' structure or types: {found}",
                "return updates typed like the gradients, and a state like init's (jnp.zeros((), jnp.int32), not 0)",
            )


def is_a_pure_function(trial: Trial) -> None:
    """It depends on its arguments alone: it keeps nothing elsewhere, and draws with its key."""
    args = jax.tree.map(lambda x: x[0], trial.fields), jax.random.key(0), jax.random.key(0)
    remedy = "keep everything in the state, and draw with jax.random and the argument `key`, not with NumPy"
    check_pure(Promise(MethodArgs, "key"), trial.who, trial.train, *args, remedy=remedy)
    first = trial.run()
    if found := difference(trial.run(), first):
        raise Promise(MethodArgs, "key").broken(trial.who, f"the same training ends otherwise, {found}", remedy)
    # In steps and switches: `init` has no key.
    method = trial.build()
    acts: list[Callable[..., Any]] = [functools.partial(trial.step, method, clock=jnp.int32(3))]
    if trial.config.needs_boundary:
        acts.append(functools.partial(trial.switch, method))
    texts = [traced(act, *first[:2], args[1])[0] for act in acts]
    if any("random_bits" in text for text in texts) and not difference(trial.run(drawing=1), first):
        raise Promise(MethodArgs, "key").broken(
            trial.who,
            f"it draws random numbers, and they are the same under another key for {STEPS} steps",
            "draw with the argument `key`; if it draws rarely, check it under settings with which it draws often",
        )


def stays_finite(trial: Trial) -> None:
    """Parameters and losses; the state may have infinite entries, such as bounds of what is free, but no NaN."""
    params, state, losses = trial.run()

    def finite(a: Any, _: Any) -> bool:
        return bool(np.isfinite(plain(a)).all())

    def known(a: Any, _: Any) -> bool:
        return not np.isnan(plain(a)).any()

    learned = params, losses
    if wrong := difference(learned, learned, finite) or difference(state, state, known):
        raise Promise(MethodConfig).broken(
            trial.who,
            f"{STEPS} steps on a small network end in numbers that are not finite, {wrong}",
            "guard divisions and roots against zero, or check it under milder settings",
        )


def uses_every_setting(trial: Trial) -> None:
    """No setting is accepted and then ignored."""
    before = trial.run(seed=2)[-1]
    for field, value in trial.fields.items():
        if field not in trial.idle and np.array_equal(before, trial.run(seed=2, other={field: value[1]})[-1]):
            raise Promise(MethodConfig).broken(
                trial.who,
                f"the setting {field} changes nothing in {STEPS} steps: {value[0]} and {value[1]} train alike",
                "use it or remove it; if it acts later, check it under settings with which it acts, or give "
                f"idle=({field!r},)",
            )


def is_off_when_off(trial: Trial) -> None:
    """With the settings `off` it is the optimiser, bit for bit."""
    if trial.config.off is None:
        return
    off, draw, view = trial.build(EXACT, **trial.config.off), quick(trial.model.init), quick(trial.seen)
    drawn = [draw(jax.random.key(i)) for i in range(4)]
    start, params, *grads = [jax.tree.map(lambda x: jnp.asarray(np.round(8 * x)), tree) for tree in drawn]
    batches = [jax.tree.map(lambda x, t=t: jnp.asarray(x[t]), trial.batches) for t in range(len(grads))]
    steps = [(jnp.int32(t), g, b, view(params, b)) for t, (g, b) in enumerate(zip(grads, batches))]

    def both(states: Any, step: Any) -> Any:
        clock, grads, batch, (_, seen) = step
        args = trial.args(jax.random.key(clock), clock, batch, seen)
        got, state = off.update(grads, states[0], params, **args)
        expected, inner_state = EXACT.update(grads, states[1], params)
        return (state, inner_state), (got, expected)

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *steps)
    _, (got, expected) = quick(lambda s: jax.lax.scan(both, (off.init(start), EXACT.init(start)), s))(stacked)
    if found := difference(got, expected):
        raise Promise(MethodConfig, "off").broken(
            trial.who,
            f"with off = {dict(trial.config.off)} its updates are not the optimiser's, {found}",
            "name settings that switch it off, or say off = None",
        )


def acts_at_switches(trial: Trial) -> None:
    """With ``needs_boundary`` it acts at task switches, whether the boundary is traced or not."""
    if not trial.config.needs_boundary:
        return
    method, (params, state, _) = trial.build(), trial.run()

    @quick
    def both(traced: Array) -> list[Any]:
        return [trial.switch(method, params, state, jax.random.key(7), b) for b in (traced, True, False)]

    traced_yes, yes, no = both(jnp.asarray(True))
    traced_no = both(jnp.asarray(False))[0]
    for got, expected in ((traced_yes, yes), (traced_no, no)):
        if found := difference(got, expected, close(1e-6, 2e-7)):
            raise Promise(MethodArgs, "boundary").broken(
                trial.who,
                f"a traced boundary and a Python one give different results, {found}",
                "wrap the method with plastax.methods.base.at_boundary, or take jax.lax.cond(boundary, ...)",
            )
    if not difference(yes, (params, state)) or not difference(yes, no):
        raise Promise(MethodConfig, "needs_boundary").broken(
            trial.who,
            "it says needs_boundary, and at a task switch it does nothing, or what it does in every step",
            "act where `boundary` is true, or say needs_boundary = False",
        )


def trains_many_seeds_at_once(trial: Trial) -> None:
    """Under `vmap`, over seeds and settings: each network trains as it does alone, with draws of its own."""
    chosen = np.array([(0, 0), (0, 1), (1, 0)] if trial.fields else [(0, 0), (0, 1)])
    settings = jax.tree.map(lambda x: x[chosen[:, 0]], trial.fields)
    keys = jax.vmap(jax.random.key)(chosen[:, 1])
    *_, together = quick(jax.vmap(trial.train))(settings, keys, keys)
    remedy = "look at no other network: take no mean over seeds, and no Python branch on an array"
    for found, (setting, seed) in zip(together, chosen.tolist(), strict=True):
        alone = trial.run(setting, seed)[-1]
        # Rounding grows with the steps.
        if wrong := difference(found[:30], alone[:30], close(2e-4, 0)):
            what = f"among others, a network does not train as it does alone (setting {setting}, seed {seed}), {wrong}"
            raise Promise(Program).broken(trial.who, what, remedy)
    if any(np.array_equal(together[0], other) for other in together[1:] if not trial.idle):
        raise Promise(Program).broken(trial.who, "different seeds or settings train alike", remedy)


PROMISES: tuple[Callable[[Trial], None], ...] = (
    keeps_its_state, is_a_pure_function, stays_finite, uses_every_setting, is_off_when_off,
    acts_at_switches, trains_many_seeds_at_once,
)  # fmt: skip
"""What `check_method` checks, in this order."""


def check_method(
    config: Any, *, model: Model | None = None, idle: Collection[str] = (), batches: Examples = BATCHES
) -> None:
    """Checks that a method keeps what `plastax.types.MethodConfig` and `MethodArgs` promise; takes some seconds.

    It trains a network of 8 hidden units for 200 steps, with a task switch in between if the method acts at switches.

    Args:
      config: the method's settings, or their class. Give settings under which each of them matters in 200 steps.
      model: another network, for the inputs and targets of ``batches``; None: an MLP with the method's options.
      idle: names of settings that need not matter.
      batches: what it is trained on, one batch a step, with a leading axis of 200; by default inputs ``[B, 3]`` and
        targets ``[B, 1]``. The loss is the mean squared error; of tokens (`Model.counted`), their cross-entropy.

    Raises:
      AssertionError: a promise is broken; it says what is wrong, where the promise stands, and what to do.

    Examples:
      >>> from plastax import methods, testing
      >>> testing.check_method(methods.L2(l2=0.1))
    """
    trial = Trial(config() if isinstance(config, type) else config, model, idle, batches)
    for promise in PROMISES:
        promise(trial)
