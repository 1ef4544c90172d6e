"""What the board of photographs uses of its sets, and its weights, as one archive that travels.

    python tests/benchmarks/pack_photographs.py DATA OUT.tar.xz [--image-size 80] [--quality 75]
    tar xJf OUT.tar.xz -C PACK                       # on the other machine, which needs no network
    PYTHONPATH=PACK/packages tests/benchmarks/photographs.sh PACK/sets STORE RESULTS

DATA has Imagenette and CIFAR-10 as folders of pictures, and MNIST. The pictures that some split of
the scenario takes are carried as they are: the data's revision, and so every key, is that of DATA.
All others are one pixel of a colour of their own, so that counts and draws stay as they were; the
pack is good for this scenario, its size and its seed alone. With ``--quality`` Imagenette is
carried at the scenario's size, as WebP of that quality: smaller, and a revision of its own.

At 80x80 pixels, with Imagenette as JPEG of 96x96: 68.8 MB as they are, which ``split -b 45000000``
makes two files of, and 37.1 MB with ``--quality 75``; 17 MB of both are weights.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import shutil
import struct
import tarfile
import tempfile
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from sophon_bench.data.domains import read_set
from sophon_bench.data.images import decode
from sophon_bench.data.kept import FIRST, ImageSet
from sophon_bench.data.published import sets_in
from sophon_bench.data.sets import SETS
from sophon_bench.models.packaged_weights import PACKAGES
from sophon_bench.plugins.registry import scenarios
from sophon_bench.results.store import Store, default_root

SCENARIO, BACKBONE = "imagenette-cifar10", "tf_efficientnet_lite0"


def pack_sets(
    data: Path, out: Path, *, size: int, cache: Path | None, quality: int | None = None
) -> str:
    """Write the sets into ``out``, in the layouts of those in ``data``; the scenario's revision."""
    with sets_in(data):
        built = scenarios.get(SCENARIO).cls(image_size=size).build(cache)
        for domain in built.domains:
            if domain.name not in SETS:  # drawn
                continue
            used = {source for images in domain.splits.values() for source in images.sources}
            found = read_set(domain.name, size, cache)
            root, layout = SETS[domain.name].place(size)
            if layout.read is None:
                lossy = None if domain is not built.original or quality is None else (size, quality)
                name = layout.files[0]
                _pack_pictures(root / name, out / name, found, used, lossy)
            elif domain.name == "mnist":
                _pack_idx(out / Path(layout.files[0]).parent, found, used)
            else:
                raise SystemExit(f"{domain.name} has to be a folder of pictures, to be packed")
    return built.revision


def _pack_pictures(
    folder: Path,
    out: Path,
    found: ImageSet,
    used: Collection[str],
    lossy: tuple[int, int] | None,
) -> None:
    for number, (source, twin) in enumerate(_twins(found).items()):
        file = out / source
        file.parent.mkdir(parents=True, exist_ok=True)
        if twin != source:
            shutil.copyfile(out / twin, file)
        elif source not in used:
            colour = tuple(number.to_bytes(3, "big"))
            file.write_bytes(_encoded(Image.new("RGB", (1, 1), colour), "PNG"))
        elif lossy is None:
            shutil.copyfile(folder / source, file)
        else:
            size, quality = lossy
            image = Image.fromarray(decode(folder / source, size).transpose(1, 2, 0))
            file.write_bytes(_encoded(image, "WEBP", quality=quality, method=6))


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _pack_idx(out: Path, found: ImageSet, used: Collection[str]) -> None:
    """IDX files, with bands of three grey levels for the images that are not used."""
    _, arrays = SETS["mnist"].arrays()
    twins = _twins(found)
    places = {
        source: (part, number)
        for part, images in found.parts.items()
        for number, source in enumerate(images.sources.tolist())
    }
    packed = {part: images.copy() for part, (images, _) in arrays.items()}
    for index, (source, twin) in enumerate(twins.items()):
        part, number = places[source]
        if twin != source:
            of, at = places[twin]
            packed[part][number] = packed[of][at]
        elif source not in used:
            bands = np.frombuffer(index.to_bytes(3, "big"), np.uint8)
            packed[part][number] = np.resize(bands.repeat(10), 28)[:, None]
    out.mkdir(parents=True)
    for part, name in (("train", "train"), ("test", "t10k")):
        labels = arrays[part][1].astype(np.uint8)
        head = struct.pack(">4i", 0x803, *packed[part].shape)
        for kind, content in (
            ("images-idx3", head + packed[part].tobytes()),
            ("labels-idx1", struct.pack(">2i", 0x801, len(labels)) + labels.tobytes()),
        ):
            out.joinpath(f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(content, mtime=0))


def _twins(found: ImageSet) -> dict[str, str]:
    """By the source of every image, that of the first with equal pixels, in order of `FIRST`."""
    first: dict[bytes, str] = {}
    twins = {}
    for part in sorted(found.parts, key=FIRST.index):
        images = found.parts[part]
        for pixels, source in zip(images.pixels, images.sources.tolist(), strict=True):
            digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
            twins[source] = first.setdefault(digest, source)
    return twins


def pack_weights(out: Path) -> None:
    """Copy the installed file of ImageNet weights to where a path of Python modules finds it."""
    package = PACKAGES[BACKBONE]
    spec = find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package.distribution} is not installed: the extra [pretrained]")
    target = out / package.module / package.file
    target.parent.mkdir(parents=True)
    shutil.copyfile(Path(spec.submodule_search_locations[0]) / package.file, target)


def main() -> None:
    """Write the archive, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--image-size", type=int, default=80)
    parser.add_argument("--quality", type=int)
    parser.add_argument("--store", default=default_root())
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        pack = Path(temporary)
        cache = Store(given.store).data
        revision = pack_sets(
            given.data, pack / "sets", size=given.image_size, cache=cache, quality=given.quality
        )
        pack_weights(pack / "packages")
        with sets_in(pack / "sets"):
            packed = scenarios.get(SCENARIO).cls(image_size=given.image_size).build().revision
        if given.quality is None and packed != revision:
            raise SystemExit(f"packed data has the revision {packed}, not {revision}")
        with tarfile.open(given.out, "w:xz", preset=1) as archive:
            archive.add(pack, ".")
    print(f"{given.out}: {given.out.stat().st_size / 1e6:.1f} MB, revision {packed}")


if __name__ == "__main__":
    main()
