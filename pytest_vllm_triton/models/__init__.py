"""The model under test: found, fetched or generated."""
