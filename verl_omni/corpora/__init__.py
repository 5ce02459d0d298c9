"""The study's corpora: from their published layouts on disk to rows for verl.

Each module's ``read`` lists one corpus, and raises ``CorpusError`` where a file, column, name or label is not as it was
published. The module's docstring says where layout and counts come from, and what could not be confirmed.
"""
