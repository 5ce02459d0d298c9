"""What a media file says of itself: its streams, and where it must end."""

import struct
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import av
from av.container import InputContainer

MP4_BOXES = set(b"ftyp styp moov moof mdat mfra sidx ssix emsg prft pdin free skip wide uuid meta".split())
SLACK = 8  # some writers count a RIFF header's own 8 bytes


def open_container(path: str | PathLike) -> InputContainer:
    """PyAV's container; titles in GBK or Latin-1, which are common, are no reason to refuse a clip."""
    return av.open(str(path), metadata_errors="replace")


class DamagedError(Exception):
    """What headers or decoders show, and decoding hides; ``media_boundary`` names the file."""


def check_whole(path: Path) -> None:
    """Raise ``DamagedError`` if the file ends before its own headers say; a few bytes of it are read.

    Decoders take such a file for a shorter clip. Live streams, raw frames and MP3 without a Xing header announce none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(189)
        file.seek(0)
        end = next((announce(file, size) for fits, announce in ANNOUNCED if fits(head)), 0)
    if end > size + SLACK:
        raise DamagedError(f"cut short: {size:,} bytes are there of {end:,} or more")


def _riff_end(file: BinaryIO, size: int) -> int:
    """WAV and AVI: the end of the last RIFF chunk (AVI has one per GB). Writers to a pipe leave 0 or all ones."""
    position = end = 0
    while len(head := file.read(8)) == 8 and head[:4] == b"RIFF":
        length = struct.unpack("<I", head[4:])[0]
        if length in (0, 2**32 - 1):
            return 0
        end = position + 8 + length
        position = end + length % 2
        file.seek(position)
    return end


def _mp4_end(file: BinaryIO, size: int) -> int:
    """The end of the last box. Junk behind it does no harm, but between fragments FFmpeg drops all that follows."""
    position, fragmented = 0, False
    while len(head := file.read(8)) == 8:
        if head[4:] not in MP4_BOXES:
            if fragmented:
                raise DamagedError(f"no box of MP4 at byte {position:,}, after a fragment")
            break
        fragmented |= head[4:] == b"moof"
        length = struct.unpack(">I", head[:4])[0]
        if length == 1:
            length = struct.unpack(">Q", file.read(8))[0]
        if length < 8:  # 0: to the end of the file
            return size
        position += length
        file.seek(min(position, size))
    return position


def _matroska_end(file: BinaryIO, size: int) -> int:
    """The end of the segment; 0 if it was written as a stream, without a length."""

    def length() -> int:
        first = file.read(1)[0]
        width = 8 - first.bit_length()  # bytes that follow
        value = int.from_bytes(bytes([first & (0x7F >> width)]) + file.read(width))
        return -1 if value == 2 ** (7 * (width + 1)) - 1 else value

    file.seek(4)
    file.seek(length(), 1)
    segment = file.read(4)
    known = length() if segment == b"\x18\x53\x80\x67" else -1
    return file.tell() + known if known >= 0 else 0


def _gif_end(file: BinaryIO, size: int) -> int:
    """By the trailer, a semicolon, behind which some writers leave zeros or a line's end."""
    file.seek(max(size - 64, 0))
    return size if file.read().rstrip(b"\0\r\n").endswith(b";") else size + 1 + SLACK


def _transport_end(file: BinaryIO, size: int) -> int:
    return size if size % 188 == 0 else size + 188 - size % 188 + SLACK


def _mp3_end(file: BinaryIO, size: int) -> int:
    """By the Xing header of the first frame, behind the ID3 tag."""
    head = file.read(10)
    start = 10 + int("".join(f"{byte:07b}" for byte in head[6:]), 2) if head[:3] == b"ID3" else 0
    file.seek(start)
    frame = file.read(256)
    found = max(frame.find(b"Xing"), frame.find(b"Info"))
    if found < 0 or not frame[found + 7] & 2:
        return 0
    return start + struct.unpack_from(">I", frame, found + 8 + 4 * (frame[found + 7] & 1))[0]


# (does the file's head look like it, where must the file end)
ANNOUNCED: list[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], int]]] = [
    (lambda head: head[:4] == b"RIFF", _riff_end),
    (lambda head: head[4:8] in MP4_BOXES, _mp4_end),
    (lambda head: head[:4] == b"\x1a\x45\xdf\xa3", _matroska_end),
    (lambda head: head[:4] == b"GIF8", _gif_end),
    (lambda head: len(head) == 189 and head[0] == head[188] == 0x47, _transport_end),
    (lambda head: head[:3] == b"ID3" or (head[0] == 0xFF and head[1:2] >= b"\xe0"), _mp3_end),
]
