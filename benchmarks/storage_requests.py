"""What a stretch of code asks of a storage: calls of S3's protocol, or openings of files and folders of a disk."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiobotocore.client import AioBaseClient  # type: ignore[import-untyped]


@dataclass
class Requests:
    """What was asked for.

    Attributes:
        calls: by kind: S3's operations, or ``open`` and ``list`` of a local disk.
        received: bytes in the bodies of S3's answers to GET.
    """

    calls: Counter[str] = field(default_factory=Counter)
    received: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(self.calls.items())) or "none"


@contextmanager
def counted_on_s3() -> Iterator[Requests]:
    """Counts what this process asks of S3, retries left out.

    Yields:
        The counts, which grow.
    """
    requests = Requests()
    real = AioBaseClient._make_api_call

    async def counting(client: Any, operation: str, parameters: Any) -> Any:
        requests.calls[operation] += 1
        answer = await real(client, operation, parameters)
        if operation == "GetObject":
            requests.received += int(answer["ContentLength"])
        return answer

    AioBaseClient._make_api_call = counting
    try:
        yield requests
    finally:
        AioBaseClient._make_api_call = real


@contextmanager
def counted_on_disk(folder: str) -> Iterator[Requests]:
    """Counts the files and folders below a folder that this process opens.

    Yields:
        The counts, which grow.
    """
    requests = Requests()
    kinds = {"open": "open", "os.listdir": "list", "os.scandir": "list"}
    active = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event in kinds:
            with suppress(IndexError, TypeError):
                if str(arguments[0]).startswith(folder):
                    requests.calls[kinds[event]] += 1

    sys.addaudithook(watch)  # there is no way to take it back, only to make it idle
    try:
        yield requests
    finally:
        active = False
