"""Questions with exact answers, and what the models that are asked them get."""

from .prompt import asked, prompt_of
from .question import Question
from .question_set import load_questions

__all__ = ["Question", "asked", "load_questions", "prompt_of"]
