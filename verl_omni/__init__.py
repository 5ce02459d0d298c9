"""R1-Omni for verl: video + audio emotion reasoning with GRPO, as a plug-in."""

__version__ = "0.1.0"
