"""Processes that nothing of may outlive us, and what makes sure of that.

``client`` starts a command under a supervisor and is our side of it. The supervisor is a program of
its own: this folder, run by path. All that it consists of is in ``standalone``.
"""
