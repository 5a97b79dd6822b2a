"""Images with people: their data structures, transforms, files, loading and evaluation.

Doors: ``structures``, ``transforms``, ``images``, ``video_file`` (films that browsers play), ``image_limits`` and
``decode_process`` (images of strangers), ``findings`` (what can be wrong) and ``errors`` here; ``schemas`` (what the
keypoints are), ``coco`` (annotation files), ``yolo`` (text files), ``doctor`` (check a data set), ``shards`` (write and
read shards), ``loading`` (batches), ``evaluation`` (AP), ``io`` (files of any storage), ``synthetic`` (generated data).
Importing this package registers ``s3://`` with fsspec.
"""

from fsspec import register_implementation

for scheme in ("s3", "s3a"):  # the class is imported when such an address is opened
    register_implementation(
        scheme,
        "posefleet.data.io.s3.Bucket",
        clobber=True,
        errtxt=f"{scheme}:// needs s3fs: pip install 'posefleet[s3]'",
    )
