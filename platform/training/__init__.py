"""Training: one loop, alone or on Ray, that resumes exactly.

Doors: ``launch`` (start), ``loop`` (fit), ``run`` (folder and MLflow run), ``step``, ``state``, ``optim``, ``ema``."""
