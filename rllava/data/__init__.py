"""Benchmarks and instruction data as Parquet shards; image preprocessing; the embedded easy-VQA data."""
