"""The one error of the data path."""


class DataError(ValueError):
    """Data, or a request for data, that can't be served: what, where, and what to do."""
