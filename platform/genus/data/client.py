"""obstore's clients for buckets: their urls, time-outs and credentials."""

from __future__ import annotations

import importlib.util
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from genus.errors import DataError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, GCSStore, HTTPStore, RetryConfig, S3Store

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def check_url(url: str) -> None:
    """DataError for a url of a bucket that can't be, or that holds a secret."""
    parts = urlsplit(url)
    if not parts.netloc:
        raise DataError(f"'{url}' names no bucket: expected {parts.scheme}://bucket/folder")
    if "@" in parts.netloc or parts.query or parts.fragment:
        # urls end up in logs, configs and messages
        raise DataError(
            f"a url of data can't hold a login, '?' or '#' ({parts.scheme}://"
            f"{parts.netloc.rpartition('@')[2]}...): give credentials by the environment"
        )


def make_client(url: str, stall: float, limit: float) -> S3Store | GCSStore | HTTPStore:
    """A client for the folder ``url``, which sends every request once.

    ``stall``: seconds without any byte after which a request is given up; ``limit``: seconds of a
    whole request. Credentials, region and endpoint come from the environment.
    """
    from obstore.store import GCSStore, HTTPStore, S3Store

    parts = urlsplit(url)
    endpoints = [os.environ.get(name, "") for name in _ENDPOINTS]
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=min(10.0, stall)),
        "read_timeout": timedelta(seconds=stall),
        "timeout": timedelta(seconds=limit),
        # only where the user wrote http:// themselves
        "allow_http": any(text.startswith("http://") for text in [url, *endpoints]),
    }
    once: RetryConfig = {"max_retries": 0}  # Bucket tries again itself, body included
    if parts.scheme in ("http", "https"):
        return HTTPStore(url, client_options=options, retry_config=once)
    prefix = parts.path.strip("/") or None
    if parts.scheme == "gs":
        return GCSStore(parts.netloc, prefix=prefix, client_options=options, retry_config=once)
    return S3Store(
        parts.netloc,
        prefix=prefix,
        client_options=options,
        retry_config=once,
        credential_provider=_profile(),
    )


def _profile() -> Any:
    """Credentials from ~/.aws by boto3, where the environment has none and there is a profile.

    None leaves it to obstore, which knows the environment, web identities and instance roles.
    """
    files = {"AWS_SHARED_CREDENTIALS_FILE": "credentials", "AWS_CONFIG_FILE": "config"}
    exists = "AWS_PROFILE" in os.environ or any(
        Path(os.environ.get(variable) or Path.home() / ".aws" / file).exists()
        for variable, file in files.items()
    )
    has_own = {"AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"} & set(os.environ)
    if has_own or not exists or importlib.util.find_spec("boto3") is None:
        return None
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except ValueError:  # the files hold settings only
        return None
    except Exception as error:  # botocore's errors have no common base outside of it
        raise DataError(
            f"can't use the AWS profile ({error}): check ~/.aws and AWS_PROFILE"
        ) from None
