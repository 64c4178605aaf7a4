"""The DeepSpeed loop, and its Ray Train adapter."""
