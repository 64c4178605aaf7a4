"""S3 as those answer it that only speak its protocol, to keys that may do little; and what its refusals mean.

Imported when a storage is on S3, since its client takes a while to import.
"""

import os
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NotConnected
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

ATTEMPTS = 8
"""Of one request, with growing pauses of at most 20 s: a store that asks to slow down is given about half a minute."""

EXISTS = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})
"""Answers to a conditional put: the object is there, or another one is being put at this moment."""

NO_CONDITIONS = frozenset({"NotImplemented", "501", "MethodNotAllowed", "405", "InvalidArgument", "InvalidRequest"})
"""Answers to a conditional put of stores that do not know it."""

_MEANINGS = {
    "NoSuchBucket": "there is no such bucket; create it first",
    "InvalidBucketName": "that is no name of a bucket; write s3://BUCKET/PREFIX",
    "InvalidAccessKeyId": "the access key is unknown there; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired; renew them",
    "InvalidToken": "the session token is not valid; renew the credentials, or unset AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock is wrong by more than the store allows; set it (timedatectl)",
    "AuthorizationHeaderMalformed": "the bucket lies in another region than AWS_REGION says; set it to the bucket's",
    "IllegalLocationConstraintException": "the bucket lies in another region than AWS_REGION says; set it",
    "PermanentRedirect": "the bucket lies in another region than AWS_REGION says; set it to the bucket's",
    "301": "the bucket lies in another region than AWS_REGION says; set it to the bucket's",
    "SlowDown": "the store asks to slow down, also after several attempts; try again later",
    "503": "the store asks to slow down, also after several attempts; try again later",
    "ServiceUnavailable": "the store does not serve now, also after several attempts; try again later",
}
_ABSENT = frozenset({"NoSuchKey", "404"})
"""An object is not there: no fault of the store, and often how another error's story began."""

_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "403"})
_OF_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError")


class S3(S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """S3 for keys that may read, write and list below a prefix and nothing else.

    Such a key is answered 403, not 404, where an object is not there, and may not look whether the bucket is.

    Attributes:
        conditional: whether ``pipe_file(mode="create")`` is known to refuse an object that is there; None: not tried.
    """

    conditional: bool | None = None

    async def _info(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            info: dict[str, Any] = await super()._info(path, *args, **kwargs)
        except PermissionError as denied:
            name = self._strip_protocol(path)
            if await self._first_below(f"{name}/", denied) is not None:
                return {"name": name, "size": 0, "type": "directory", "StorageClass": "DIRECTORY"}
            if await self._first_below(name, denied) == name:
                raise
            raise FileNotFoundError(path) from denied
        return info

    async def _cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        try:
            content: bytes = await super()._cat_file(path, *args, **kwargs)
        except PermissionError as denied:
            if await self._first_below(path, denied) == self._strip_protocol(path):
                raise
            raise FileNotFoundError(path) from denied
        return content

    async def _pipe_file(self, path: str, data: bytes, *args: Any, mode: str = "overwrite", **kwargs: Any) -> Any:
        """Creates as Amazon does, or as well as a store can that does not know how: ``conditional`` is false then."""
        if mode != "create" or self.conditional is False:
            if mode == "create" and await self._exists(path):
                raise FileExistsError(path)
            return await super()._pipe_file(path, data, *args, **kwargs)
        try:
            put = await super()._pipe_file(path, data, *args, mode=mode, **kwargs)
            if self.conditional is None:
                # Some stores take no notice of the condition: what was just put must not be put again.
                self.conditional = False
                await super()._pipe_file(path, data, *args, mode=mode, **kwargs)
        except OSError as error:
            refused = isinstance(error, FileExistsError) or error_code(error) in EXISTS
            if refused and self.conditional is False:
                self.conditional = True
                return put
            if refused:
                raise FileExistsError(path) from error
            if error_code(error) not in NO_CONDITIONS:
                raise
            self.conditional = False
            return await self._pipe_file(path, data, *args, mode=mode, **kwargs)
        return put

    async def _mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Folders come with their objects, and a bucket is never made by the way."""

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """As :meth:`_mkdir`."""

    mkdir, makedirs = sync_wrapper(_mkdir), sync_wrapper(_makedirs)

    async def _first_below(self, path: str, denied: PermissionError) -> str | None:
        """The first object whose path begins like this one; what was denied is raised where that is denied too."""
        bucket, key, _ = self.split_path(path)
        try:
            page = await self._call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
        except OSError:
            raise denied from None
        return next((f"{bucket}/{entry['Key']}" for entry in page.get("Contents", ())), None)


def open_s3(attempts: int = ATTEMPTS) -> S3:
    """S3 with the credentials and the endpoint that the AWS variables and files say.

    Args:
        attempts: of one request, unless ``AWS_MAX_ATTEMPTS`` says how many.

    Returns:
        An fsspec file system. Listings are never cached: other processes write beside us.
    """
    config: dict[str, Any] = {}
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        config["retries"] = {"mode": "standard", "total_max_attempts": attempts}
    if {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"} & os.environ.keys():
        # Not every store that speaks S3 knows the checksums that Amazon's client adds on its own.
        for name in ("request_checksum_calculation", "response_checksum_validation"):
            if f"AWS_{name}".upper() not in os.environ:
                config[name] = "when_required"
    return S3(use_listings_cache=False, config_kwargs=config)


def check_s3(path: str) -> None:
    """Asks whether a prefix can be listed, with few attempts: what is wrong with a bucket is known in seconds.

    Args:
        path: ``bucket/prefix``.

    Raises:
        OSError: or an error of Amazon's client, which :func:`explain` explains.
    """
    bucket, _, prefix = path.partition("/")
    open_s3(attempts=2).call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", MaxKeys=1)


def error_code(error: BaseException) -> str | None:
    """The code of the answer that an error stands for.

    Args:
        error: as s3fs raises it.

    Returns:
        S3's code, or the HTTP status where the store gave none; None if no answer is behind it.
    """
    for cause in _causes(error):
        if isinstance(cause, ClientError):
            code = cause.response.get("Error", {}).get("Code")
            return str(code or cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")) or None
    return None


def explain(error: BaseException, url: str) -> str | None:
    """What is the case when a request failed, and the remedy, in one line.

    Args:
        error: as s3fs raises it.
        url: of the storage; empty where it is not known.

    Returns:
        The line, without the storage's name; None if the error is not one of S3, or says that an object is not there.
    """
    causes = list(_causes(error))
    code = error_code(error)
    if code in _MEANINGS:
        return _MEANINGS[code]
    if code in _ABSENT or isinstance(error, FileNotFoundError):
        return None
    if code in _DENIED:
        client = next(cause for cause in causes if isinstance(cause, ClientError))
        below = f"{url.rstrip('/')}/" if url else "it"
        return (
            f"the key may not do {client.operation_name} there; it needs s3:ListBucket for the prefix, and "
            f"s3:GetObject, s3:PutObject and s3:DeleteObject for what is below {below}"
        )
    if code is not None:
        client = next(cause for cause in causes if isinstance(cause, ClientError))
        said = " ".join(str(client.response.get("Error", {}).get("Message", "")).split())
        return f"the store refused {client.operation_name} with {code}{f' ({said})' if said else ''}"
    for cause in causes:
        if type(cause).__name__ in _OF_CREDENTIALS:
            return (
                "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give "
                f"the machine a role ({_first_line(cause)})"
            )
        if isinstance(cause, (NotConnected, HTTPClientError)):
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            where = f"at AWS_ENDPOINT_URL {endpoint}" if endpoint else "at Amazon's endpoint"
            return f"no S3 answers {where}; check it, the network and its proxies ({_first_line(cause)})"
        if isinstance(cause, BotoCoreError):
            return f"the S3 client gave up ({_first_line(cause)}); check the AWS_* variables"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
