"""Native fork-join: the model itself forks and joins, by control tokens that it was trained on."""

from parallel_decode.reasoning.fork_join.apar import APAR
from parallel_decode.reasoning.fork_join.apr import APR
from parallel_decode.reasoning.fork_join.fork_join import ForkJoin
from parallel_decode.reasoning.fork_join.multiverse import Multiverse
from parallel_decode.reasoning.fork_join.para_thinker import ParaThinker
from parallel_decode.reasoning.fork_join.pasta import Pasta
from parallel_decode.reasoning.fork_join.paths import Paths
from parallel_decode.reasoning.fork_join.reasoner_format import PARALLEL, reasoner_tags
from parallel_decode.reasoning.fork_join.tag_parser import (
    Closed,
    Item,
    Items,
    Malformed,
    TagParser,
)
from parallel_decode.reasoning.fork_join.tags import Tags
from parallel_decode.reasoning.fork_join.thread_weaver import ThreadWeaver

__all__ = [
    "PARALLEL",
    "APAR",
    "APR",
    "Closed",
    "ForkJoin",
    "Item",
    "Items",
    "Malformed",
    "Multiverse",
    "ParaThinker",
    "Pasta",
    "Paths",
    "TagParser",
    "Tags",
    "ThreadWeaver",
    "reasoner_tags",
]
