"""Interaction within one model: branches that see each other, tell each other, or fork in doubt."""

from parallel_decode.reasoning.interaction.entropy_branching import EntropyBranching
from parallel_decode.reasoning.interaction.group_think import GroupThink
from parallel_decode.reasoning.interaction.hogwild import Hogwild
from parallel_decode.reasoning.interaction.leap import LeaP
from parallel_decode.reasoning.interaction.reasoner_format import (
    PEERS,
    TEAM,
    reasoner_peers,
    reasoner_team,
)
from parallel_decode.reasoning.interaction.routing import (
    Route,
    at_random,
    clustered,
    dispersed,
    hybrid,
)
from parallel_decode.reasoning.interaction.seat import SEAT
from parallel_decode.reasoning.interaction.termination import (
    Termination,
    low_entropy,
    secretary,
    semantic_entropy,
)

__all__ = [
    "PEERS",
    "SEAT",
    "TEAM",
    "EntropyBranching",
    "GroupThink",
    "Hogwild",
    "LeaP",
    "Route",
    "Termination",
    "at_random",
    "clustered",
    "dispersed",
    "hybrid",
    "low_entropy",
    "reasoner_peers",
    "reasoner_team",
    "secretary",
    "semantic_entropy",
]
