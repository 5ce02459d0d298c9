"""The paper's study as stages: commands that a user types, run one after the other, resumable."""
