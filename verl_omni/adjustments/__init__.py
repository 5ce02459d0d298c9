"""Adjustments of verl and vLLM, where they have no extension point: one file each, named like its diff in ``patches/``.

``verl_omni.plugin`` lists them all and installs each right after the module that it concerns is imported.
"""
