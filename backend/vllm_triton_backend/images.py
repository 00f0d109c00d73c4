"""Images of a request: base64 text or data: URLs -> PIL images. Runs off the event loop."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

from vllm_triton_backend.errors import invalid

# What Pillow may read a client's bytes as. It knows more, and for PostScript it runs Ghostscript.
_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")


def decode_images(encoded: Sequence[bytes]) -> Any:
    """One `PIL.Image` in RGB for one element, a list for several.

    Raises:
        RequestError: INVALID_ARG naming the element that is not base64 or not an image.
    """
    images = [_decode(data, index) for index, data in enumerate(encoded)]
    return images[0] if len(images) == 1 else images


def _decode(data: bytes, index: int) -> Any:
    from PIL import Image, ImageOps, UnidentifiedImageError

    if data[:5] == b"data:":
        header, comma, data = data.partition(b",")
        if not comma or not header.endswith(b";base64"):
            raise invalid(f"Input 'image'[{index}]: only base64 data: URLs are supported.")
    try:
        raw = base64.b64decode(b"".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"Input 'image'[{index}] is not valid base64: {error}") from None
    try:
        Image.init()
        image = Image.open(io.BytesIO(raw), formats=[f for f in _FORMATS if f in Image.OPEN])
        image.load()
        return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise invalid(f"Input 'image'[{index}] is not an image of a known format.") from None
    except Exception as error:
        raise invalid(f"Input 'image'[{index}] cannot be read as an image: {error}") from None
