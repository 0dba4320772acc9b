"""Performance-critical operations: one folder each, with a public API and a reference."""
