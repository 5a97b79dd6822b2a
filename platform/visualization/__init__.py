"""Images, figures, tables and reports that people look at.

Doors: ``drawing``, ``plots``, ``figures``, ``tables``, ``report``."""
