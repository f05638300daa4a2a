"""Networks: Flax modules given out as pure functions (`plastax.types.Model`).

`SUPERVISED` has what experiments on images, regression or tokens select by ``--model``, `ACTOR_CRITICS` what those in
reinforcement learning do. Each entry is a frozen configuration, whose `build` makes the model. `tapped` and `roles`
take other Flax modules.

Examples:
  >>> import jax, jax.numpy as jnp
  >>> from plastax.models import MLP
  >>> model = MLP(hidden=(4,)).build((3,), 2)
  >>> outputs, features = model.apply(model.init(jax.random.key(0)), jnp.ones((5, 3)))
  >>> outputs.shape, features["dense_0"].shape
  ((5, 2), (5, 4))
"""

from plastax.models.actor_critic import ActorCritic, ConvActorCritic
from plastax.models.cnn import CNN
from plastax.models.gpt import GPT
from plastax.models.layers import ActivationName, InitializerName
from plastax.models.mlp import MLP
from plastax.models.resnet import ResNet18
from plastax.models.taps import tapped
from plastax.models.traced import roles
from plastax.models.vit import ViT

ACTOR_CRITICS = {"mlp": ActorCritic(), "conv": ConvActorCritic()}
SUPERVISED = {"mlp": MLP(), "cnn": CNN(), "resnet18": ResNet18(), "vit": ViT(), "gpt": GPT()}

__all__ = [
    "ACTOR_CRITICS",
    "CNN",
    "GPT",
    "MLP",
    "SUPERVISED",
    "ActivationName",
    "ActorCritic",
    "ConvActorCritic",
    "InitializerName",
    "ResNet18",
    "ViT",
    "roles",
    "tapped",
]
