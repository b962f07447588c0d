"""Our template of dialogues in the form of transformers: Jinja, which renders what `twinstep.data.chat` makes.

What stands within {% generation %} is learned: `apply_chat_template(..., return_assistant_tokens_mask=True)` and TRL's
`assistant_only_loss` read it there. Unlike ours, transformers makes text first and then tokens of all of it, so that a
special token's name within a message becomes that token.
"""

CHAT_TEMPLATE = r"""
{{- bos_token -}}
{%- set opening = namespace(text='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- if not loop.first -%}{{- raise_exception('a system message may only come first') -}}{%- endif -%}
{%- set opening.text = message.content + '\n\n' -%}
{%- elif message.role == 'user' -%}
{{- '<|user_start|>' + opening.text + message.content + '<|user_end|>' -}}
{%- set opening.text = '' -%}
{%- elif message.content is string -%}
{{- '<|assistant_start|>' -}}
{%- generation -%}{{- message.content + '<|assistant_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- '<|assistant_start|>' -}}
{%- for part in message.content -%}
{%- if part.type == 'python_output' -%}
{{- '<|output_start|>' + part.text + '<|output_end|>' -}}
{%- elif part.type == 'python' -%}
{%- generation -%}{{- '<|python_start|>' + part.text + '<|python_end|>' -}}{%- endgeneration -%}
{%- else -%}
{%- generation -%}{{- part.text -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- generation -%}{{- '<|assistant_end|>' -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}
""".strip()
