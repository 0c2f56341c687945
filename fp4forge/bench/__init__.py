"""Benchmarks: suites as data, vLLM's own load generator, results that can be compared."""
