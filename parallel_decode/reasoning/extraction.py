"""`answers_of`: runs an extractor, of whatever kind, over the texts of one question."""

import asyncio
import inspect
import numbers
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Batched:
    """An extractor that gets all texts of a question at once.

    Args:
        over: list of texts to one answer or None each, in their order; may be an `async def`.
    """

    over: Callable[[list[str]], Any]


Extractor = Callable[[str], Any] | Batched
"""The text of a branch to its answer, None where there is none. Any callable will do, an `async
def` too, and `Batched` for one that takes a list of texts. A number is an answer as printed."""


def answers_of(extract: Extractor, texts: Sequence[str]) -> list[str | None]:
    """The answer of each text, None where it has none.

    An `async def` runs for all texts at a time, and to its end: the engine waits for it.

    Raises:
        ValueError: a batched extractor gave a wrong number of answers.
        TypeError: an answer is neither text nor a number nor None.
    """
    if isinstance(extract, Batched):
        found = extract.over(list(texts)) if texts else []
        if inspect.isawaitable(found):
            [found] = _completed([found])
        found = list(found)
        if len(found) != len(texts):
            raise ValueError(f"the extractor gave {len(found)} answers for {len(texts)} texts")
    else:
        found = [extract(text) for text in texts]
        waiting = [number for number, answer in enumerate(found) if inspect.isawaitable(answer)]
        if waiting:
            for number, answer in zip(
                waiting, _completed([found[number] for number in waiting]), strict=True
            ):
                found[number] = answer
    return [_as_text(answer) for answer in found]


def normalised(extract: Extractor, normalise: Callable[[str], str | None]) -> Batched:
    """Answers of `extract`, each brought to one spelling before they vote."""

    def over(texts: list[str]) -> list[str | None]:
        answers = answers_of(extract, texts)
        return [None if answer is None else normalise(answer) for answer in answers]

    return Batched(over)


def _as_text(answer: Any) -> str | None:
    if answer is None or isinstance(answer, str):
        return answer
    if isinstance(answer, numbers.Number):
        return str(answer)
    raise TypeError(f"an answer must be text, a number or None, got {answer!r}")


def _completed(awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
    async def gather() -> list[Any]:
        return list(await asyncio.gather(*awaitables))

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(gather())
    # A loop that runs in this thread can't be waited for in it.
    return _in_another_thread(gather())


def _in_another_thread(coroutine: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
