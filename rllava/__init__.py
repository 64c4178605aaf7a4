"""rllava: which vision encoder should a multi-modal LLM be built on if it must survive adversarial images?"""

__version__ = "0.1.0"
