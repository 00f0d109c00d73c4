"""The supervisor, and what it does that we do too, should it be gone.

Its modules import the standard library and each other, relatively: they are part of our package,
and a package of their own where the supervisor is run by path.
"""
