"""Networks: flax linen modules given out as pure functions (`plastax.types.Model`).

`SUPERVISED` names what an experiment on images or regression can select, `MODELS` what one in reinforcement learning
can; each entry is the frozen configuration whose `build` makes the model.
"""

from plastax.models.actor_critic import ActorCritic, ConvActorCritic
from plastax.models.cnn import CNN
from plastax.models.layers import ActivationName, InitializerName
from plastax.models.mlp import MLP
from plastax.models.resnet import ResNet18
from plastax.models.taps import tapped
from plastax.models.traced import roles

MODELS = {"mlp": ActorCritic(), "conv": ConvActorCritic()}
SUPERVISED = {"mlp": MLP(), "cnn": CNN(), "resnet18": ResNet18()}

__all__ = [
    "CNN",
    "MLP",
    "MODELS",
    "SUPERVISED",
    "ActivationName",
    "ActorCritic",
    "ConvActorCritic",
    "InitializerName",
    "ResNet18",
    "roles",
    "tapped",
]
