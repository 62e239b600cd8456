import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from advcam_fast.store import StoreError
from advcam_fast.store.maps import decode_maps, encode_maps


def some_maps(count: int = 2, height: int = 9, width: int = 13, full: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = {
        "classes": torch.arange(count),
        "strided": torch.rand(count, (height + 3) // 4, (width + 3) // 4, generator=generator),
        "initial": torch.rand(count, height, width, generator=generator),
    }
    return maps | {"full": torch.rand(count, height, width, generator=generator)} if full else maps


def stored(tmp_path: Path, content: bytes | memoryview) -> Path:
    path = tmp_path / "maps.npz"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("store", "error"), [("fp32", 0.0), ("fp16", 2**-11), ("uint8", 1 / 510 + 1e-7)])
@pytest.mark.parametrize("full", [True, False])
def test_maps_come_back_within_their_dtype(tmp_path: Path, store: str, error: float, full: bool) -> None:
    maps = some_maps(full=full)
    back = decode_maps(stored(tmp_path, encode_maps(maps, store)))
    assert set(back) == set(maps)
    assert back["classes"].dtype == torch.int64 and torch.equal(back["classes"], maps["classes"])
    for name in set(maps) - {"classes"}:
        assert back[name].dtype == torch.float32
        assert (back[name] - maps[name]).abs().max() <= error


@pytest.mark.parametrize(("store", "dtype"), [("fp32", "float32"), ("fp16", "float16"), ("uint8", "uint8")])
def test_the_file_is_an_npz_without_pickles(tmp_path: Path, store: str, dtype: str) -> None:
    with np.load(stored(tmp_path, encode_maps(some_maps(), store)), allow_pickle=False) as file:
        assert {name: str(file[name].dtype) for name in file.files} == {
            "classes": "int64",
            "strided": dtype,
            "initial": dtype,
            "full": dtype,
        }


def test_uint8_is_rounded_and_read_as_255ths(tmp_path: Path) -> None:
    values = torch.tensor([[[0.0, 1.0, 0.5, 0.0019, 0.0020]]])
    maps = {"classes": torch.tensor([4]), "strided": values, "initial": values}
    back = decode_maps(stored(tmp_path, encode_maps(maps, "uint8")))
    assert torch.equal(back["strided"] * 255, torch.tensor([[[0.0, 255.0, 128.0, 0.0, 1.0]]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_of_any_floating_dtype_and_numpy_are_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    maps = {name: values if name == "classes" else values.to(dtype) for name, values in some_maps().items()}
    back = decode_maps(stored(tmp_path, encode_maps(maps, "fp32")))
    assert torch.equal(back["full"], maps["full"].float())
    arrays = {name: values.numpy() for name, values in some_maps().items()}
    assert encode_maps(arrays, "fp16") == encode_maps(some_maps(), "fp16")


def test_tensors_that_need_gradients_or_are_strided_are_taken(tmp_path: Path) -> None:
    maps = some_maps()
    flipped = {**maps, "full": maps["full"].transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()}
    assert encode_maps(flipped, "fp32") is not None
    assert torch.equal(decode_maps(stored(tmp_path, encode_maps(flipped, "fp32")))["full"], maps["full"])


def test_no_classes_at_all(tmp_path: Path) -> None:
    back = decode_maps(stored(tmp_path, encode_maps(some_maps(count=0), "uint8")))
    assert back["classes"].shape == (0,) and back["full"].shape == (0, 9, 13)


def test_the_same_maps_give_the_same_bytes() -> None:
    assert bytes(encode_maps(some_maps(), "fp16")) == bytes(encode_maps(some_maps(), "fp16"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"full": torch.full((2, 3, 3), torch.nan)}, "full has values from nan to nan, wanted 0 to 1"),
        ({"initial": torch.full((2, 3, 3), 1.5)}, "initial has values from 1.5 to 1.5, wanted 0 to 1"),
        ({"strided": torch.full((2, 3, 3), -0.1)}, "strided has values from -0.1"),
        ({"strided": torch.zeros(3, 3, 3)}, r"strided is \[3, 3, 3\], wanted \[2, h, w\]"),
        ({"strided": torch.zeros(3, 3)}, r"strided is \[3, 3\], wanted \[2, h, w\]"),
        ({"classes": torch.zeros(2)}, r"classes is float32 \[2\], wanted integers \[n\]"),
        ({"classes": torch.zeros(2, 1).long()}, r"classes is int64 \[2, 1\]"),
        ({"other": torch.zeros(2)}, "maps named classes, strided, initial, full, other, wanted classes, strided"),
    ],
)
def test_wrong_maps_are_refused(change: dict[str, torch.Tensor], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        encode_maps(some_maps() | change, "fp16")


@pytest.mark.parametrize("name", ["classes", "strided", "initial"])
def test_maps_that_lack_a_part_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="wanted classes, strided, initial and perhaps full"):
        encode_maps({key: value for key, value in some_maps().items() if key != name}, "fp16")


class Malicious:
    def __init__(self, victim: Path) -> None:
        self._victim = victim

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self._victim,)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    content = io.BytesIO()
    np.savez(content, **{name: np.array([Malicious(victim)], object) for name in ("classes", "strided", "initial")})
    with pytest.raises(StoreError, match="not a whole map file"):
        decode_maps(stored(tmp_path, content.getvalue()))
    assert not victim.exists()


def test_damaged_files_give_one_line(tmp_path: Path) -> None:
    whole = bytes(encode_maps(some_maps(), "fp16"))
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 1
    pickled = io.BytesIO()
    np.savez(pickled, **{name: np.array([{}], object) for name in ("classes", "strided", "initial")})
    renamed = io.BytesIO()
    np.savez(renamed, classes=np.zeros(1))
    foreign = io.BytesIO()
    with zipfile.ZipFile(foreign, "w") as file:
        file.writestr("a.txt", "text")
    plain = io.BytesIO()
    np.save(plain, np.zeros(3))
    cases = [b"", b"\0" * len(whole), whole[:-1], whole[: len(whole) // 2], middle, b"text", pickled.getvalue()]
    for content in [*cases, renamed.getvalue(), foreign.getvalue(), plain.getvalue()]:
        path = stored(tmp_path, bytes(content))
        with pytest.raises(StoreError, match="not a whole map file") as caught:
            decode_maps(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="no such map file"):
        decode_maps(tmp_path / "none.npz")
