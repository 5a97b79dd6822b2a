"""What an image with people is, and how it is stored, read and scored."""

from fsspec import register_implementation

for scheme in ("s3", "s3a"):  # imported when such an address is opened
    register_implementation(
        scheme,
        "posefleet.data.io.s3.Bucket",
        clobber=True,
        errtxt=f"{scheme}:// needs s3fs: pip install 'posefleet[s3]'",
    )
