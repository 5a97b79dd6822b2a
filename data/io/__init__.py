"""Files of any storage: whole writes, JSON in streams, tars from strangers, S3, and Ray Data.

Doors: ``files``, ``json_stream``, ``tars``, ``s3``, ``cluster``."""
