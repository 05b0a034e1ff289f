"""Chat templates: as transformers renders them, and programs that mean harm."""
# ruff: noqa: E501 (templates have long lines)

import time
import tracemalloc
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from parallel_decode.model import ChatTemplate

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = """{% if messages[0]['role'] == 'system' %}
    {%- set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}
{%- else %}
    {%- set loop_messages = messages %}{% set system_message = false %}
{%- endif %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if loop.index0 == 0 and system_message != false %}
        {%- set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {%- else %}
        {%- set content = message['content'] %}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + content | trim + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + content | trim + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}"""
QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool_response>')
        and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- generation %}{{- '<|im_start|>' ~ message.role ~ '\\n<think>\\n' ~ reasoning ~ content }}{%- endgeneration %}
    {%- elif message.role == "skip" %}{%- continue %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- call.name | upper }}({% for key, value in call.arguments | items %}{{ key }}={{ value }}{{ ', ' if not loop.last }}{% endfor %})
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
{{ ['a', 'b'] | join('-') }} {{ 'x' * 3 }} {{ (1, 2) }} {{ {'k': [1, none]} | tojson(indent=2) }}
{{ 'a b' | replace('a', 'c') | title | indent(2, true) }} {{ 'aXbX'.replace('X', '') }} {{ '-'.join(['p', 'q']) }}
{% macro show(x) %}<{{ x }}>{% endmacro %}{{ show(1) ~ show('two') }} {{ range(3) | list }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}"""
MESSAGES = [
    {"role": "user", "content": "What is 2 + 2? <&> é 漢"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"},
    {"role": "user", "content": " Sure? "},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"a": "é"}}}]


@pytest.mark.parametrize("source", [SMOLLM2, LLAMA2, QWEN3], ids=["smollm2", "llama2", "qwen3"])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize(
    "variables", [{}, {"tools": TOOLS, "enable_thinking": False}], ids=range(2)
)
def test_as_transformers(source: str, prompt: bool, variables: dict[str, Any]) -> None:
    theirs, _ = render_jinja_template(
        [MESSAGES],
        chat_template=source,
        add_generation_prompt=prompt,
        bos_token="<s>",
        eos_token="</s>",
        **variables,
    )
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    assert template.render(MESSAGES, prompt, **variables) == theirs[0]
    assert template.render(MESSAGES, prompt, **variables) == theirs[0]  # the budget is refilled


def test_a_long_conversation_is_fine() -> None:
    messages = [{"role": "user", "content": "word " * 5000}] * 60
    assert len(ChatTemplate(SMOLLM2).render(messages)) > 1_500_000


def test_the_template_may_refuse() -> None:
    with pytest.raises(ValueError, match="Roles must alternate"):
        ChatTemplate(LLAMA2).render([{"role": "assistant", "content": "hi"}])


def test_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": "a", "list": [1]}]
    harm = "{% do messages[0].list.append(2) %}"
    with pytest.raises(ValueError, match="does not compile"):
        ChatTemplate(harm)
    with pytest.raises(ValueError, match="failed"):
        ChatTemplate("{{ messages[0].list.append(2) }}").render(messages)
    assert messages[0]["list"] == [1]


@pytest.mark.parametrize("bad", [[{"role": "user", "content": object()}], [{1, 2}], [b"x"]])
def test_messages_must_be_plain(bad: Any) -> None:
    with pytest.raises(ValueError, match="plain JSON values"):
        ChatTemplate(SMOLLM2).render(bad)


@pytest.mark.parametrize(
    "source",
    ["{% if %}", "{{ 'a", "{% for x in %}{% endfor %}", "{% endfor %}", "{{ x | nothing }}"],
    ids=range(5),
)
def test_templates_that_do_not_compile(source: str) -> None:
    with pytest.raises(ValueError, match="does not compile"):
        ChatTemplate(source)


ESCAPES = {
    "class": "{{ ''.__class__ }}",
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "subscript": "{{ ''['__class__'] }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "map attribute": "{{ ['']|map(attribute='__class__')|list }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "format map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "percent": "{{ '%s' % ''.__class__ }}",
    "globals of range": "{{ range.__globals__ }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "code of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__code__ }}",
    "self": "{{ self.__init__.__globals__ }}",
    "self context": "{{ self._TemplateReference__context }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "lipsum": "{{ lipsum.__globals__ }}",
    "joiner": "{{ joiner.__init__.__globals__.os }}",
    "namespace": "{{ namespace.__init__.__globals__ }}",
    "namespace attribute": "{% set n = namespace(__class__=1) %}{{ n }}",
    "namespace set": "{% set n = namespace() %}{% set n.__class__ = 3 %}{{ n.x }}",
    "dict": "{{ dict.__subclasses__() }}",
    "dict mro": "{{ dict.mro() }}",
    "caller": "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "loop": "{% for i in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "import": "{% import 'os' as os %}{{ os }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "to_bytes": "{{ (1).to_bytes(10) }}",
    "encode": "{{ 'a'.encode() }}",
    "generator frame": "{{ (messages|map('upper')).gi_frame }}",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_no_way_out(name: str) -> None:
    try:
        text = ChatTemplate(ESCAPES[name]).render(MESSAGES)
    except ValueError:
        return
    # jinja2 gives an undefined value for some names, which prints as nothing.
    assert text in ("", "[Undefined]")


DOUBLING = "{% set x = 'ab' %}" + "{% set x = EXPRESSION %}" * 60
BOMBS = {
    "range": "{% for i in range(10**8) %}{% endfor %}",
    "list of a range": "{{ range(10**9)|list }}",
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "loops that print": "{% for a in range(9999) %}{% for b in range(999) %}ab{% endfor %}{% endfor %}",
    "string product": "{{ 'a' * 10**9 }}",
    "product of a list": "{{ ([1] * 10**9)|length }}",
    "turned product": "{{ 10**9 * 'a' }}",
    "power": "{{ 9**9**9**9 }}",
    "integer": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "width": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "center": "{{ 'a'.center(10**9) }}",
    "center filter": "{{ 'a'|center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "tabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ 'a\nb'|indent(10**9) }}",
    "indent by a text": "{% set x = 'a' * 10**6 %}{{ ('a\n' * 10**5)|indent(x) }}",
    "json indent": "{{ [1]|tojson(indent=10**9) }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "sum of lists": "{{ ([[1] * 10**5] * 10**5)|sum(start=[])|length }}",
    "concatenation": DOUBLING.replace("EXPRESSION", "x ~ x") + "{{ x }}",
    "addition": DOUBLING.replace("EXPRESSION", "x + x") + "{{ x }}",
    "block": DOUBLING.replace("{% set x = EXPRESSION %}", "{% set x %}{{ x }}{{ x }}{% endset %}")
    + "{{ x }}",
    "nested lists": DOUBLING.replace("EXPRESSION", "[x, x]") + "{{ x }}",
    "nested lists as json": DOUBLING.replace("EXPRESSION", "[x, x]") + "{{ x|tojson }}",
    "compared lists": DOUBLING.replace("EXPRESSION", "[x, x]") + "{{ x == x }}",
    "nested tuples": DOUBLING.replace("EXPRESSION", "(x, x)") + "{{ x }}",
    "nested dictionaries": DOUBLING.replace("EXPRESSION", "{'a': x, 'b': x}") + "{{ x }}",
    "nested dict()": DOUBLING.replace("EXPRESSION", "dict(a=x, b=x)") + "{{ x }}",
    "nested namespaces": DOUBLING.replace("EXPRESSION", "namespace(a=x, b=x)") + "{{ x }}",
    "namespaces in lists": DOUBLING.replace("EXPRESSION", "namespace(a=[x, x])")
    + "{{ x.a|string }}",
    "join": DOUBLING.replace("EXPRESSION", "[x, x]|join") + "{{ x }}",
    "join of lists": DOUBLING.replace("EXPRESSION", "[x, x]|join(x)") + "{{ x }}",
    "join method": DOUBLING.replace("EXPRESSION", "x.join([x, x])") + "{{ x }}",
    "replace": DOUBLING.replace("EXPRESSION", "x|replace('', x)") + "{{ x }}",
    "replace method": DOUBLING.replace("EXPRESSION", "x.replace('a', x)") + "{{ x }}",
    "replace method of no text": DOUBLING.replace("EXPRESSION", "x.replace('', x)") + "{{ x }}",
    "macro": "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(9) }}",
    "wide macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% else %}"
    + "a" * 1000
    + "{% endif %}{% endmacro %}{{ f(40) }}",
    "recursive loop": "{% for a in [[1]] recursive %}{{ loop(a) }}{{ loop(a) }}{% endfor %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep list": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "long": "a" * 2_000_000,
    "filter block": "{% filter replace('', 'aaaaaaaaaa') %}" * 8 + "a" * 99 + "{% endfilter %}" * 8,
    "sorted": "{% for i in range(99999) %}{{ range(99999)|sort|length }}{% endfor %}",
    "batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "wordwrap": "{{ ('a' * 10**6)|wordwrap(1, wrapstring='b' * 10**6) }}",
    "date": "{{ strftime_now('%1000000000d' * 99) }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_defused(name: str) -> None:
    start = time.perf_counter()
    tracemalloc.start()
    try:
        text = ChatTemplate(BOMBS[name]).render(MESSAGES)
        assert name in ("date", "replace"), f"{len(text)} characters"
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 256 << 20, f"{peak >> 20} MiB"
    assert time.perf_counter() - start < 60
