from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

from capreward.processing import open_image, with_images


def encoded(colour: Any, size: tuple[int, int] = (20, 16), *, mode: str = "RGB", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind)
    return buffer.getvalue()


RED = encoded((255, 0, 0))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


BOMB = (
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
)


@pytest.fixture(scope="module")
def processor() -> Any:
    return tiny.llava()[1]


class TestWithImages:
    def test_as_many_tokens_as_an_image_needs(self, processor: Any) -> None:
        tokens, images = with_images(processor, "a<image>b", [RED])
        image = processor.tokenizer.convert_tokens_to_ids("<image>")
        letters = processor.tokenizer.convert_tokens_to_ids(["a", "b"])
        assert [token for token in tokens if token != processor.tokenizer.bos_token_id] == [
            letters[0],
            *[image] * 4,
            letters[1],
        ]
        # what stands for the text is with the tokens alone
        assert list(images) == ["pixel_values"]
        assert images["pixel_values"].shape == (1, 3, 16, 16)

    def test_several(self, processor: Any) -> None:
        _, images = with_images(processor, "<image><image>", [RED, encoded((0, 0, 255), (50, 30))])
        assert images["pixel_values"].shape[0] == 2
        assert not torch.equal(*images["pixel_values"])

    def test_none(self, processor: Any) -> None:
        tokens, images = with_images(processor, "ab", [])
        assert images == {}
        assert processor.tokenizer.decode(tokens, skip_special_tokens=True) == "ab"

    @pytest.mark.parametrize(
        ("bos", "text", "added"), [("<s>", "<s>a", False), ("<s>", "a<s>", True), (None, "a", True)]
    )
    def test_one_token_for_the_beginning(self, processor: Any, bos: Any, text: str, added: bool) -> None:
        """Whether the template holds it or leaves it to the tokenizer."""
        given = []

        class Spy:
            tokenizer = SimpleNamespace(bos_token=bos)

            def __call__(self, **options: Any) -> Any:
                given.append(options["add_special_tokens"])
                return processor(**options)

        with_images(Spy(), text, [])
        assert given == [added]

    def test_an_image_that_cannot_be_read(self, processor: Any) -> None:
        with pytest.raises(OSError, match="cannot identify"):
            with_images(processor, "<image>", [b"no picture"])


class TestOpenImage:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
    def test_is_rgb(self, mode: str) -> None:
        opened = open_image(encoded(1, mode=mode))
        assert (opened.mode, opened.size) == ("RGB", (20, 16))

    @pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF"])
    def test_of_any_format(self, kind: str) -> None:
        assert open_image(encoded((255, 0, 0), kind=kind)).getpixel((0, 0)) == (255, 0, 0)

    def test_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "red.png").write_bytes(RED)
        assert open_image(tmp_path / "red.png").tobytes() == open_image(RED).tobytes()

    def test_has_more_pixels_than_pil_takes(self, processor: Any) -> None:
        with pytest.raises(OSError, match=r"cannot be read: Image size \(3600000000 pixels\) exceeds"):
            open_image(BOMB)
        with pytest.raises(OSError, match="cannot be read"):
            with_images(processor, "<image>", [BOMB])

    @pytest.mark.parametrize("error", [SyntaxError("broken"), struct.error("broken"), ValueError("broken")])
    def test_is_broken_in_a_way_that_pil_says_otherwise(
        self, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_: Any) -> Any:
            raise error

        monkeypatch.setattr(Image, "open", broken)
        with pytest.raises(OSError, match="the image cannot be read: broken"):
            open_image(RED)

    @pytest.mark.parametrize("image", [b"", b"no picture", RED[:50], Path("nowhere.png")])
    def test_cannot_be_read(self, image: Any) -> None:
        with pytest.raises(OSError, match=r"cannot identify|truncated|No such file|Truncated"):
            open_image(image)
