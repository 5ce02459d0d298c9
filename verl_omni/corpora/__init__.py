"""The study's corpora: from their published layouts on disk to rows for verl.

Each module reads one corpus; its docstring says where layout and counts come from and what could not be confirmed.
"""
