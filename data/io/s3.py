"""Opens ``s3://`` with s3fs, which retries, and with errors that name the object and the cause.

Importing :mod:`posefleet.data` registers it with fsspec. Credentials, region, endpoint and the number of tries come
from the environment, as for every AWS tool: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL,
AWS_MAX_ATTEMPTS, ..., or from the role of the machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem


class Bucket(S3FileSystem):  # type: ignore[misc]  # it has no types
    """The file system of s3fs; its errors are ``OSError`` whose message begins with the address of the object."""

    async def _call_s3(self, method: str, *options: Any, **named: Any) -> Any:
        with _explained("/".join(named[part] for part in ("Bucket", "Key") if named.get(part)) or method):
            return await super()._call_s3(method, *options, **named)

    call_s3 = sync_wrapper(_call_s3)  # open files call this; s3fs's own would bypass the method above

    async def _lsdir(self, path: str, *options: Any, **named: Any) -> Any:
        with _explained(path):
            return await super()._lsdir(path, *options, **named)


@contextmanager
def _explained(path: str) -> Iterator[None]:
    address = f"s3://{path.removeprefix('s3://')}"
    try:
        yield
    except (FileNotFoundError, FileExistsError):  # answers, not failures
        raise
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise PermissionError(f"{address}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except PermissionError as error:
        raise PermissionError(
            f"{address}: {_reason(error)}; check that the credentials in the environment allow it"
        ) from error
    except (OSError, BotoCoreError) as error:
        raise OSError(f"{address}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error.args[-1] if isinstance(error, OSError) and error.args else error)
