"""The conformance suite: a module for each subject."""
