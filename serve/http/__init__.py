"""The HTTP interface: routes, uploads, error responses, schema and security. It decodes no image and runs no network.

Doors: ``routes``, ``gateway``."""
