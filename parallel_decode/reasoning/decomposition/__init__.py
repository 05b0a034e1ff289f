"""Decomposition by prompts: sub-questions, a plan, a skeleton of points written at once."""

from parallel_decode.reasoning.decomposition.least_to_most import LeastToMost
from parallel_decode.reasoning.decomposition.numbered import numbered
from parallel_decode.reasoning.decomposition.plan_and_solve import PlanAndSolve
from parallel_decode.reasoning.decomposition.skeleton_of_thought import SkeletonOfThought

__all__ = ["LeastToMost", "PlanAndSolve", "SkeletonOfThought", "numbered"]
