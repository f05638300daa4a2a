"""Networks of one's own as models: what is found in their trace is what they compute."""

from __future__ import annotations

import functools
import io
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from plastax import methods, roles, tree
from plastax.curvature import losses
from plastax.errors import ConfigError
from plastax.models import own
from plastax.output import Console
from plastax.program import learner, passes
from plastax.rl import objective, policy
from plastax.rl.environment import Discrete
from plastax.rl.objective import PPO, RolloutBatch
from plastax.study.api import Study
from plastax.testing.models import check_model
from plastax.types import Examples, Model, Params

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
IMAGE, OUTPUTS, EXAMPLES = (6, 6, 2), 3, 4


class Linen(nn.Module):
    """Convolution, pooling, flattening, both normalisations, and a residual connection."""

    outputs: int
    width: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.LayerNorm()(nn.Dense(self.width)(x.reshape(x.shape[0], -1))))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(self.width, use_bias=False)(x)))
        x = x + nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.outputs)(x)


class Nnx(nnx.Module):
    def __init__(self, input_shape: tuple[int, ...], outputs: int, *, rngs: nnx.Rngs, width: int = 4) -> None:
        self.layers = nnx.List([nnx.Linear(math.prod(input_shape), width, rngs=rngs)])
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(jnp.tanh(self.norm(self.layers[0](x.reshape(x.shape[0], -1)))))


class ActorCritic(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = nn.silu(nn.Dense(5)(x))
        return nn.Dense(self.outputs)(hidden), nn.Dense(1)(hidden)


def functions(input_shape: tuple[int, ...], outputs: int, width: int = 4) -> Any:
    """Two layers side by side in one dict, units first, and what is no float among the parameters."""

    def init(key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        size = math.prod(input_shape)
        kernels = {"w1": jax.random.normal(first, (width, size)), "w2": jax.random.normal(second, (outputs, 2 * width))}
        return kernels | {"b1": jnp.zeros(width), "scale": jnp.int32(2), "none": None}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        z = x.reshape(x.shape[0], -1) @ params["w1"].T + params["b1"][None]
        hidden = jnp.concatenate([jax.nn.relu(z), jax.nn.relu(-z)], axis=-1)
        return params["scale"] * jnp.einsum("bi,oi->bo", hidden, params["w2"])

    return init, apply


def equinox_network(outputs: int, key: jax.Array) -> Any:
    equinox = pytest.importorskip("equinox")
    first, second = jax.random.split(key)
    return equinox.nn.Sequential([
        equinox.nn.Lambda(lambda x: jnp.moveaxis(x, -1, 0)),
        equinox.nn.Conv2d(IMAGE[-1], 4, 3, key=first),
        equinox.nn.Lambda(jax.nn.relu),
        equinox.nn.MaxPool2d(2, 2),
        equinox.nn.Lambda(lambda x: jnp.moveaxis(x, 0, -1).reshape(-1)),
        equinox.nn.Linear(16, outputs, key=second),
    ])  # fmt: skip


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linen": (Linen, IMAGE),
    "nnx": (Nnx, (3, 2)),
    "functions": (functions, (5,)),
    "equinox": (equinox_network, IMAGE),
    "actor-critic": (ActorCritic, (4,)),
}
FOUND: Mapping[str, tuple[str, ...]] = {  # network -> its layers; the last is the output layer
    "linen": ("Conv_0", "Dense_0", "Dense_1", "Dense_2", "Dense_3"),
    "nnx": ("layers/0", "head"),
    "functions": ("w1", "w2"),
    "equinox": ("layers/1", "layers/5"),
    "actor-critic": ("Dense_0", "Dense_1", "Dense_2"),
}
WITHOUT_UNITS = {"linen": {"Dense_1", "Dense_2"}}
ACTIVATIONS = {"nnx": "tanh", "functions": "crelu", "actor-critic": "silu"}
every_network = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def build(name: str) -> tuple[Model, Params, jax.Array]:
    """The model, parameters with nothing left at zero, and inputs."""
    obj, shape = NETWORKS[name]
    model = own.entry(obj, name).build(shape, OUTPUTS, continuous=False if name == "actor-critic" else None)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), x.dtype), shapes)
    x = jnp.asarray(rng.standard_normal((EXAMPLES, *shape)), jnp.float32)
    return model, params, x


@every_network
def test_layers_features_and_outputs_are_found(name: str) -> None:
    model, params, x = build(name)
    heads = 2 if name == "actor-critic" else 1
    assert model.layers == FOUND[name]
    assert model.hidden == FOUND[name][:-heads]
    assert set(model.units) == set(model.hidden) - WITHOUT_UNITS.get(name, set())
    assert set(model.lacking) == WITHOUT_UNITS.get(name, set())
    assert model.activation == ACTIVATIONS.get(name, "relu")
    found = roles.of_model(model).of(params)
    assert {role.layer for role in found.values() if role.output} == set(FOUND[name][-heads:])
    assert {role.layer for role in found.values() if role.kind == "kernel"} == set(FOUND[name])
    features = jax.eval_shape(model.apply, params, x)[1]
    assert all(features[layer].shape[-1] == unit.width * unit.copies for layer, unit in model.units.items())


class Reader(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.Embed(self.outputs, 6, name="embed")(x)
        h = h + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(h), mask=nn.make_causal_mask(x))
        return nn.Dense(self.outputs, name="head")(nn.relu(nn.Dense(5, name="hidden")(h)))


def test_a_network_of_tokens() -> None:
    model = own.entry(Reader, "reader").build((4,), 7, tokens=True)
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    outputs, features = jax.eval_shape(model.apply, params, x)
    assert outputs.shape == (2, 4, 7)
    assert features["hidden"].shape == (2, 4, 5)
    projections = [f"MultiHeadDotProductAttention_0/{part}" for part in ("query", "key", "value", "out")]
    assert model.layers == (*projections, "hidden", "head")
    assert [*model.factored] == ["embed", "LayerNorm_0", *model.layers]
    assert ([*model.units], model.activation) == (["hidden"], "relu")
    found = roles.of_model(model).of(params)
    assert (found["embed/embedding"].kind, found["head/kernel"].output) == ("embedding", True)
    with pytest.raises(ConfigError, match=r"reader gives \[B, 4, 7\], and the stream needs \[B, 4, 8\]"):
        own.entry(Reader(7), "reader").build((4,), 8, tokens=True)


@every_network
def test_units_and_taps_keep_the_contract_of_models(name: str) -> None:
    """Each unit is its incoming entries and acts through its outgoing ones; taps are pre-activations."""
    check_model(build(name)[0], NETWORKS[name][1], OUTPUTS)


def test_features_are_the_modules_own_activations() -> None:
    model, params, x = build("linen")
    module = Linen(OUTPUTS)
    stats = module.init(jax.random.key(0), x)["batch_stats"]
    outputs, state = module.apply(
        {"params": params, "batch_stats": stats},
        x,
        capture_intermediates=True,
        mutable=["intermediates", "batch_stats"],
    )
    seen = {layer: values["__call__"][0] for layer, values in state["intermediates"].items() if layer != "__call__"}
    given, features = jit(model.apply)(params, x)
    np.testing.assert_allclose(given, outputs, atol=1e-5)
    expected = {"Conv_0": "Conv_0", "Dense_0": "LayerNorm_0", "Dense_1": "BatchNorm_0"}
    for layer, last in expected.items():
        np.testing.assert_allclose(features[layer], nn.relu(seen[last]), atol=1e-5)
    # Where layers are added, the features are the sum.
    np.testing.assert_allclose(features["Dense_2"], features["Dense_1"] + nn.relu(seen["Dense_2"]), atol=1e-5)
    assert jax.eval_shape(model.apply, params, x[:1])[1]["Conv_0"].shape == (1, 6, 6, 4)


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_running_statistics_follow_training_and_serve_evaluation(name: str) -> None:
    model, params, x = build(name)
    assert model.train is not None
    assert model.evaluate is not None
    outputs, _, _, moved = jit(model.train)(params, model.stats, {}, x)
    np.testing.assert_allclose(outputs, jit(model.apply)(params, x)[0], atol=1e-5)
    start, after = (next(iter(tree.named_leaves(stats).values())) for stats in (model.stats, moved))
    assert np.abs(np.asarray(after) - np.asarray(start)).max() > 1e-4
    assert jax.tree.structure(moved) == jax.tree.structure(model.stats)
    evaluate = jit(model.evaluate)
    np.testing.assert_allclose(evaluate(params, moved, x[:1])[0], evaluate(params, moved, x)[0][:1], atol=1e-5)


def test_seeds_draw_and_objects_keep_their_weights() -> None:
    drawn = own.entry(Nnx, "net").build((3,), 2)
    a, b = (drawn.init(jax.random.key(i))["layers"]["0"]["kernel"] for i in range(2))
    assert np.abs(a - b).max() > 1e-2
    module = Nnx((3,), 2, rngs=nnx.Rngs(5))
    kept = own.entry(module, "net").build((3,), 2)
    for i in range(2):
        np.testing.assert_array_equal(kept.init(jax.random.key(i))["head"]["kernel"], module.head.kernel[...])
    for method in (methods.Reset(), methods.ResetHead(), methods.ShrinkAndPerturb(), methods.ReDo()):
        with pytest.raises(ConfigError, match=r"model: net is an object with weights of its own.*give its class"):
            method.build(optax.sgd(0.1), kept)
    params = kept.init(jax.random.key(0))
    reset = methods.reset(optax.sgd(0.1))
    with pytest.raises(ConfigError, match="model: net is an object with weights of its own"):
        reset.update(params, reset.init(params), params, key=jax.random.key(0), init_fn=kept.init, boundary=True)


@pytest.mark.parametrize("name", ["linen", "functions", "nnx"])
def test_a_gradient_step_is_that_of_the_network(name: str) -> None:
    """Through the learner that all programs share; the norm of the gradient counts every parameter."""
    model, params, x = build(name)
    batch = Examples(x, jnp.arange(EXAMPLES) % OUTPUTS)
    loss = losses.get("cross_entropy")
    network = learner.network(model, loss, lambda o, b: (loss.value(o, b), {}), lambda batch: batch.x)
    seen, norm = jit(lambda p: (lambda seen: (seen.grads, passes.grad_norm(seen)))(
        network.backward(p, model.stats, batch)))(params)  # fmt: skip
    grads = jit(jax.grad(lambda p: loss.value(model.tapped(p, {}, x)[0], batch)))(params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), seen, grads)
    np.testing.assert_allclose(norm, tree.norm(grads), rtol=1e-4)


def test_settings_are_the_arguments_with_defaults() -> None:
    entry = own.entry(Linen, "net")
    assert repr(entry) == "Own(width=5)"
    wider = type(entry)(width=7).build(IMAGE, 2)
    assert jax.eval_shape(wider.init, jax.random.key(0))["Dense_0"]["kernel"].shape == (36, 7)


def test_features_that_a_network_names_itself_are_its_features() -> None:
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> Any:
            hidden = nn.relu(nn.Dense(4)(x))
            return nn.Dense(OUTPUTS)(nn.relu(nn.Dense(4)(hidden))), {"body": hidden}

    model = own.entry(Named(), "net").build((3,), OUTPUTS)
    assert (model.hidden, set(model.units)) == (("body",), {"body"})
    assert model.units["body"].outgoing[0].name == "Dense_2/kernel"


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer = nn.Dense(3)
        return nn.Dense(OUTPUTS)(nn.relu(layer(nn.relu(layer(x)))))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(OUTPUTS)(nn.RNN(nn.SimpleCell(4))(x[:, :, None])[:, -1])


@pytest.mark.parametrize(
    ("module", "lacks", "why"),
    [
        (Twice(), "Dense_0", "it is called twice"),
        (Recurrent(), "SimpleCell_0/i/kernel", "no layer was found that has it"),
    ],
)
def test_what_is_not_found_is_said(module: nn.Module, lacks: str, why: str) -> None:
    model = own.entry(module, "net").build((3,), OUTPUTS)
    assert model.lacking[lacks] == why
    assert not model.units
    found = roles.of_model(model).of(jax.eval_shape(model.init, jax.random.key(0)))
    assert len({role.layer for role in found.values() if role.output}) == 1
    with pytest.raises(ConfigError, match="redo is not allowed for a model without hidden units"):
        methods.ReDo().build(optax.sgd(0.1), model)


def test_a_function_may_return_a_whole_model() -> None:
    def build(input_shape: tuple[int, ...], outputs: int) -> Model:
        model = own.entry(Recurrent(), "net").build(input_shape, outputs)
        return model._replace(activation="tanh")

    assert own.entry(build, "net").build((3,), OUTPUTS).activation == "tanh"


def continuous(outputs: int) -> Any:
    def init(key: jax.Array) -> Any:
        return {"w": jax.random.normal(key, (4, outputs)), "log_std": jnp.zeros(outputs), "v": jnp.ones((4, 1))}

    return init, lambda p, x: (x @ p["w"], p["log_std"], x @ p["v"])


def test_continuous_policies_give_their_deviation() -> None:
    model = own.entry(continuous, "net").build((4,), 2, continuous=True)
    outputs, _ = model.apply(model.init(jax.random.key(0)), jnp.ones((5, 4)))
    assert jax.tree.map(jnp.shape, outputs) == {"policy": (5, 2), "log_std": (5, 2), "value": (5,)}


REFUSED = {
    "no network": (3, {}, r"net is an object of builtins.int; give a module of flax.linen, flax.nnx or Equinox"),
    "an argument": (lambda size: None, {}, r"asks for the argument 'size', which nothing gives; give it a default"),
    "gives no network": (lambda: 1, {}, r"gives an object of builtins.int; give a module"),
    "another width": (
        nn.Dense(7),
        {},
        r"gives \[B, 7\], and the stream needs \[B, 3\]; let .* take the argument outputs",
    ),
    "two outputs": (ActorCritic, {}, r"gives \(\[B, 3\], \[B, 1\]\), and the stream needs \[B, 3\]"),
    "no value": (nn.Dense(3), {"continuous": False}, r"gives \[B, 3\], and PPO needs \(policy, value\) of the shapes"),
    "no deviation": (ActorCritic, {"continuous": True}, r"PPO needs \(policy, log_std, value\)"),
    "another input": (
        lambda rngs: nnx.Linear(5, 3, rngs=rngs),
        {},
        r"cannot be called with inputs \[B, 4\]: TypeError",
    ),
    "dropout": (
        lambda rngs: nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)),
        {},
        r"net draws random numbers \(dropout\?\)",
    ),
    "statistics": (nn.Sequential([nn.Dense(3), nn.BatchNorm(True)]), {}, r"let its __call__ take an argument train"),
    "statistics of an agent": (Nnx, {"continuous": False}, "batch statistics, which PPO would act without"),
    "no parameters": ((lambda key: {"n": 3}, lambda p, x: x), {}, "no parameters of floating point"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_network_is_refused_in_one_line(case: str) -> None:
    obj, options, says = REFUSED[case]
    with pytest.raises(ConfigError, match=f"model: .*{says}") as error:
        own.entry(obj, "net").build((4,), OUTPUTS, **options)
    assert "\n" not in str(error.value)


class Residual(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first = nn.relu(nn.Dense(4)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.outputs)(first + nn.relu(nn.Dense(4)(first)))


def test_a_study_says_before_it_compiles_what_was_not_found(tmp_path: pathlib.Path) -> None:
    said = io.StringIO()
    options: dict[str, Any] = {"preset": "smoke", "seeds": 1, "model": Residual, "probes": [], "runs_dir": tmp_path}
    study = Study("random_label", methods=["backprop"], settings={"dry_run": True}, **options)
    study.experiment.run(study.config, Console(file=said))
    assert "model: Dense_0 has no units: its features are added to those of other layers" in " ".join(
        said.getvalue().split()
    )
    refused = Study("random_label", methods=["redo"], settings={"dry_run": True}, **options)
    with pytest.raises(ConfigError, match="redo is not allowed for a model without hidden units"):
        refused.experiment.run(refused.config, Console(file=said))


def test_ppo_learns_with_a_network_of_logits_and_value() -> None:
    model, params, x = build("actor-critic")
    network = objective.network(PPO(), model, policy.make(Discrete(OUTPUTS)))
    ones = jnp.ones(EXAMPLES)
    batch = RolloutBatch(x, jnp.arange(EXAMPLES) % OUTPUTS, -ones, ones, jnp.arange(1.0 * EXAMPLES), ones)
    seen = jit(lambda p: network.backward(p, (), batch).grads)(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(seen))
