"""Scripted experiments on servers. Each is done once a session; several checks read what it saw."""
