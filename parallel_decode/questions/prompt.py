"""A question as a model wants it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from parallel_decode.engine import Engine
from parallel_decode.questions.question import Question


def prompt_of(engine: Engine, text: str, chat: bool = True) -> str | Sequence[int]:
    """A line for the bundled reasoner; in the chat template of a model that has one, where `chat`
    says so; else the text as it is."""
    if engine.name.startswith("reasoner"):
        return text if text.endswith("\n") else text + "\n"
    if chat and engine.chat_template is not None:
        return engine.chat_prompt([{"role": "user", "content": text}])
    return text


def asked(engine: Engine, questions: Sequence[Question], chat: bool = True) -> list[Question]:
    """The same questions with prompts for this engine's model."""
    return [
        dataclasses.replace(question, prompt=prompt_of(engine, question.prompt, chat))
        if isinstance(question.prompt, str)
        else question
        for question in questions
    ]
