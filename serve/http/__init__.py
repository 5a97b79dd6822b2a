"""The HTTP interface: routes, uploads, problems, schema and security. Imports no model.

Doors: ``routes``, ``gateway``."""
