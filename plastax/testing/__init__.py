"""What plastax's own parts promise, as functions that check yours: `check_method` and the like, without pytest.

Each raises an AssertionError that says what is wrong, where the promise stands, and what to do. They need no
accelerator and take seconds. plastax's own tests call the same functions.
"""

from plastax.testing.environments import check_environment_stream
from plastax.testing.methods import check_method
from plastax.testing.models import check_model
from plastax.testing.probes import check_probe
from plastax.testing.streams import check_stream

__all__ = ["check_environment_stream", "check_method", "check_model", "check_probe", "check_stream"]
