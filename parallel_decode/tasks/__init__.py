"""Reasoning tasks with exact answers and exact step verdicts."""

from .problem import Problem
from .split import DEFAULT_MIX, SPLITS, TASKS, Mix, load_split, split_of, stream
from .task import Task, split_steps

__all__ = [
    "DEFAULT_MIX",
    "SPLITS",
    "TASKS",
    "Mix",
    "Problem",
    "Task",
    "load_split",
    "split_of",
    "split_steps",
    "stream",
]
