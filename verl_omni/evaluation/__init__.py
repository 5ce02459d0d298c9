"""Evaluation: answers from vLLM, one line on disk each, and what they are worth.

answering.py    rows and media to answers with vLLM, resumable
results.py      the results file
ablation.py     the same rows with the picture blanked or the sound muted
scoring.py      WAR, UAR, recall, confusion, intervals
consistency.py  does an explanation name the emotion it answers?
"""
