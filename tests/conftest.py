"""Puts tests/ on the import path, for what its folders share, and exposes shared fixtures."""

from __future__ import annotations

from object_storage import bucket_url, proxy, s3, s3_environment

__all__ = ["bucket_url", "proxy", "s3", "s3_environment"]
