"""Structured search: partial solutions grow step by step, are scored, kept or dropped."""

from parallel_decode.reasoning.search.step_beam import StepBeam

__all__ = ["StepBeam"]
