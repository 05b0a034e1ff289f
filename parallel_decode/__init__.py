"""A decoding engine for parallel reasoning: many branches over one stored prefix."""

__version__ = "0.1.0"
