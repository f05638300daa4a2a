"""How tests have programs compiled; what is not said to be otherwise is compiled quickly (`conftest`)."""

from __future__ import annotations

AS_USERS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}
"""Options of `jax.jit` for what has to hold, to the bit, of the programs that users run."""
