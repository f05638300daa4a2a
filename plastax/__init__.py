"""plastax: find out why neural networks stop learning, and stop it."""

from plastax.records.loading import load

__version__ = "0.1.0"

__all__ = ["__version__", "load"]
