"""The version of plastax."""

__version__ = "0.1.0"
