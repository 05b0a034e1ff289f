"""Models: configuration, weights, tokenizer, chat template and the transformer itself."""

from parallel_decode.model.chat_template import ChatTemplate
from parallel_decode.model.checkpoint import Checkpoint, TrunkHeads, open_checkpoint, open_heads
from parallel_decode.model.classifier import Classifier
from parallel_decode.model.config import ModelConfig
from parallel_decode.model.rope import inverse_frequencies, rope_tables
from parallel_decode.model.rope_scaling import RopeScaling
from parallel_decode.model.tokenizer import StreamDecoder, Tokenizer
from parallel_decode.model.transformer import Transformer

__all__ = [
    "ChatTemplate",
    "Checkpoint",
    "Classifier",
    "ModelConfig",
    "RopeScaling",
    "StreamDecoder",
    "Tokenizer",
    "Transformer",
    "TrunkHeads",
    "inverse_frequencies",
    "open_checkpoint",
    "open_heads",
    "rope_tables",
]
