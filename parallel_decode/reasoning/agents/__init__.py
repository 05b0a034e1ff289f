"""Agents: models of one process that exchange text, in rounds, chains or layers."""

from parallel_decode.reasoning.agents.chain_of_agents import ChainOfAgents, LastParagraphAsks
from parallel_decode.reasoning.agents.debate import Debate
from parallel_decode.reasoning.agents.judged_debate import MultiAgentDebate
from parallel_decode.reasoning.agents.listening import Listening
from parallel_decode.reasoning.agents.mixture import MixtureOfAgents
from parallel_decode.reasoning.agents.reconcile import (
    Confidence,
    ReConcile,
    stated_confidence,
    vote_weight,
)

__all__ = [
    "ChainOfAgents",
    "Confidence",
    "Debate",
    "LastParagraphAsks",
    "Listening",
    "MixtureOfAgents",
    "MultiAgentDebate",
    "ReConcile",
    "stated_confidence",
    "vote_weight",
]
