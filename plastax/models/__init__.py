"""Networks: flax linen modules given out as pure functions (`plastax.types.Model`).

`MODELS` names what an experiment can select; each entry is the frozen configuration whose `build` makes the model.
"""

from plastax.models.actor_critic import ActivationName, ActorCritic, ConvActorCritic

MODELS = {"mlp": ActorCritic(), "conv": ConvActorCritic()}

__all__ = ["MODELS", "ActivationName", "ActorCritic", "ConvActorCritic"]
