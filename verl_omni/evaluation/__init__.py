"""Evaluation: answers from vLLM, one line on disk each, and what they are worth."""
