"""Answers of a given structure: a JSON schema, a grammar, a regular expression, or one of some texts.

    what was asked ──► a grammar, in the syntax of llguidance ──► a matcher ──► which tokens may come
    (`asked.py`)       (`json_schema.py`, `gbnf.py`, `lark.py`)                 (`constraint.py`)

llguidance (MIT, an extra: edgellm[structure]) follows the grammar over the model's own vocabulary. It is imported when
a structure is asked for.
"""
