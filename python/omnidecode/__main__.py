"""``python -m omnidecode`` is the command ``omnidecode``."""

from .cli import main

raise SystemExit(main())
