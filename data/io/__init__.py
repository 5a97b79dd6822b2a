"""Files of any storage: atomic writes, streamed JSON, untrusted tars, S3, and Ray Data.

Doors: ``files`` (write whole files, read JSON), ``json_stream`` (lists larger than memory), ``tars`` (members of
untrusted tars), ``ranges`` (bytes of many files), ``cluster`` (Ray Data). ``s3`` is what fsspec opens ``s3://``
with."""
