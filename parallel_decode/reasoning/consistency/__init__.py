"""Self-consistency and its kin: independent samples, and a vote."""

from parallel_decode.reasoning.consistency.adaptive_consistency import AdaptiveConsistency
from parallel_decode.reasoning.consistency.cisc import CISC
from parallel_decode.reasoning.consistency.deep_conf import DeepConf
from parallel_decode.reasoning.consistency.deep_conf_online import DeepConfOnline
from parallel_decode.reasoning.consistency.deep_prune import DeepPrune
from parallel_decode.reasoning.consistency.dynasor import Dynasor
from parallel_decode.reasoning.consistency.early_stopping import EarlyStopping
from parallel_decode.reasoning.consistency.p_true import PTrue
from parallel_decode.reasoning.consistency.self_consistency import SelfConsistency
from parallel_decode.reasoning.consistency.soft_self_consistency import SoftSelfConsistency
from parallel_decode.reasoning.consistency.universal_self_consistency import (
    ReadingPrompt,
    UniversalSelfConsistency,
)

__all__ = [
    "CISC",
    "AdaptiveConsistency",
    "DeepConf",
    "DeepConfOnline",
    "DeepPrune",
    "Dynasor",
    "EarlyStopping",
    "PTrue",
    "ReadingPrompt",
    "SelfConsistency",
    "SoftSelfConsistency",
    "UniversalSelfConsistency",
]
