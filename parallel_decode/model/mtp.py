"""Heads for multi-token prediction that some checkpoints carry behind their layers."""

import re
from collections.abc import Iterable

NAMES = re.compile(
    r"""(?:model\.)?mtp(?:_layers)?\..+             # mtp.layers.0.*, model.mtp_layers.0.*
    |model\.layers\.(?P<layer>\d{1,6})\..+          # a layer behind the last one
    |blk\.\d{1,6}\.nextn\..+                        # of a GGUF file
    """,
    re.VERBOSE,
)


def mtp_tensors(names: Iterable[str], num_layers: int) -> tuple[str, ...]:
    """Those of the names that belong to MTP heads (Gloeckle et al. 2024; DeepSeek-AI 2024), sorted.

    A model of `num_layers` layers decodes without them. What stands in a layer behind the last one
    is part of such a head, as DeepSeek-V3 and its kin store them.
    """
    found = []
    for name in names:
        match = NAMES.fullmatch(name)
        if match and (match["layer"] is None or int(match["layer"]) >= num_layers):
            found.append(name)
    return tuple(sorted(found))
