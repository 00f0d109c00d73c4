"""The conformance suite: one module per group of requirements."""
