"""Encoders that other libraries build: timm, open_clip, transformers.

Nothing here is imported before an encoder of the family is built, as those libraries take seconds to import.
"""
