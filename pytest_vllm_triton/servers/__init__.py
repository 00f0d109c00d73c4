"""The servers of a session: what they are made from, and their lives."""
