"""Adjustments of verl and vLLM, where they have no extension point: one file each, named like its diff in ``patches/``.

``verl_omni.plugin`` lists them all and installs each right after the module that it concerns is imported. A second call
with a module does nothing (``functools.cache``, where a function does not look for itself), and a run that has neither
this package's rows nor its rewards nor its model goes on as without.
"""
