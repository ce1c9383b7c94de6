from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from service.errors import StartError
from service.process.messages import MAX_PATH_BYTES, MessageStream, connect, serve


async def test_messages_arrive_in_order_and_the_end_of_a_process_is_seen() -> None:
    received = []
    ended = asyncio.Event()

    async def attend(stream: MessageStream) -> None:
        while (message := await stream.receive()) is not None:
            received.append(message)
            stream.send({"got": message})
        ended.set()

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "socket"
        with pytest.raises(OSError, match="No such file"):
            await connect(path)
        async with await serve(path, attend):
            stream = await connect(path)
            messages = [{"number": number, "text": "line\nand é" * number} for number in range(50)]
            for message in messages:
                stream.send(message)
            assert [await stream.receive() for _ in messages] == [{"got": message} for message in messages]
            stream.close()
            await asyncio.wait_for(ended.wait(), 10)
            stream.send({"lost": True})
            assert received == messages


async def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    async def attend(stream: MessageStream) -> None:
        raise AssertionError

    with pytest.raises(StartError, match="TMPDIR"):
        await serve(tmp_path / ("x" * MAX_PATH_BYTES), attend)
