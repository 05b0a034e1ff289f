"""`Listening`: who hears what whom said, in the next round of agents."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from parallel_decode.reasoning.author import Reply
from parallel_decode.reasoning.interaction.routing import Route, check_route, dispersed


@dataclass(frozen=True)
class Listening:
    """All to all, or sparse. One that failed is not heard, and hears the others.

    Args:
        peers: others whom an agent hears; None for all of them.
        route: whom, where there are more.
        strangers: texts to be heard instead, such as those of another question: a control.
    """

    peers: int | None = None
    route: Route = dispersed
    strangers: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.peers is not None and self.peers < 0:
            raise ValueError(f"peers must not be negative, got {self.peers}")

    def heard(self, replies: Sequence[Reply], rng: random.Random) -> list[list[str]]:
        """The texts that each agent hears of the others'."""
        if self.strangers:
            count = len(replies) - 1 if self.peers is None else self.peers
            return [list(self.strangers[:count]) for _ in replies]
        texts = [reply.text for reply in replies]
        sound = [place for place, reply in enumerate(replies) if reply.error is None]
        everyone = [[p for p in sound if p != place] for place in range(len(replies))]
        if self.peers is None or self.peers >= len(sound) - 1:
            return [[texts[p] for p in others] for others in everyone]
        route = self.route([texts[place] for place in sound], self.peers, rng)
        check_route(route, len(sound))
        routed = {place: [sound[p] for p in row] for place, row in zip(sound, route, strict=True)}
        return [
            [texts[p] for p in routed.get(place, others[: self.peers])]
            for place, others in enumerate(everyone)
        ]
