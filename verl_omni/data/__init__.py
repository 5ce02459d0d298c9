"""Rows, verl datasets over them, and the corpora they come from."""
