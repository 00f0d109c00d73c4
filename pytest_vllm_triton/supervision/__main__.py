"""The supervisor as a program: ``python -I -S -B FOLDER CONFIG``, FOLDER being this one.

Python puts the folder that it runs on ``sys.path``, so that ``standalone`` is a package at the top
there: the supervisor needs nothing of ours beside it, and no site-packages.
"""

from __future__ import annotations

import sys

from standalone.supervisor import main  # type: ignore[import-not-found]

sys.exit(main(sys.argv[1:]))
