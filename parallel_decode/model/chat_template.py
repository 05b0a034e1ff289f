"""`ChatTemplate`: messages to one prompt text, as the model's own jinja2 template says."""

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from parallel_decode.model.template_sandbox import TemplateSandbox

MAX_SOURCE_CHARS = 1 << 20


class ChatTemplate:
    """A compiled template.

    Templates come with the model and are not trusted: they run in `TemplateSandbox`, and whatever
    they do wrong is a `ValueError`.

    Args:
        source: jinja2 text, as in `tokenizer_config.json` or `tokenizer.chat_template` of GGUF.
        bos_token, eos_token: what the template's variables of these names hold.
        max_chars: longest prompt, and longest text on the way to it.
        max_steps: loop passes, calls and operators of one rendering.
    """

    def __init__(
        self,
        source: str,
        bos_token: str = "",
        eos_token: str = "",
        max_chars: int = 4_000_000,
        max_steps: int = 1_000_000,
    ) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise ValueError(f"chat template of {len(source)} characters is too long")
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._sandbox = TemplateSandbox(max_chars, max_steps)
        self._lock = threading.Lock()  # the sandbox counts the steps of one rendering at a time
        try:
            self._template = self._sandbox.from_string(source)
        except Exception as error:  # a template may fail in any way that Python can
            raise ValueError(f"chat template does not compile: {_reason(error)}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt text of `messages`, each with a `role` and a `content`.

        `variables` reach the template as they are (`tools`, `enable_thinking`); values must be
        what JSON can hold. Encode the text with `add_bos=False`: a template writes its own bos.
        """
        try:
            # A template gets copies in plain JSON types, so it can call no method of an object.
            values = json.loads(json.dumps({"messages": list(messages), **variables}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"chat messages must be plain JSON values: {error}") from error
        values = {**self._tokens, **values, "add_generation_prompt": add_generation_prompt}
        parts: list[str] = []
        num_chars = 0
        with self._lock:
            self._sandbox.refill()
            try:
                for part in self._template.generate(values):
                    num_chars += len(part)
                    self._sandbox.check_length(num_chars)
                    parts.append(part)
            except Exception as error:  # a template may fail in any way that Python can
                raise ValueError(f"chat template failed: {_reason(error)}") from error
        return "".join(parts)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
