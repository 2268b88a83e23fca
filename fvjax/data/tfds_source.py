"""A prepared TFDS dataset as a source of faces, without tensorflow: images as they are encoded, identities as names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from fvjax.data.store import EXAMPLE


class Source:
    """One split of a TFDS dataset in ArrayRecord format.

    Args:
        name: a dataset below TFDS_DATA_DIR (~/tensorflow_datasets) such as "lfw", "lfw:0.1.1" or "name/config", or a
            directory that holds features.json. Nothing is downloaded, and no code comes from the dataset.
        split: None where it has a single one.
        image, identity: features, None where only one is an image and only one a ClassLabel, a Text or an integer.
    Attributes:
        identities: of each record.
    Raises:
        ValueError: not there, not in ArrayRecord format, damaged, or what of it is meant is not said.
    """

    def __init__(self, name: str, split: str | None, image: str | None, identity: str | None):
        self.name = f"tfds:{name}"
        builder = self._builder(name)
        info, features = builder.info, builder.info.features
        self.split = _chosen(split, list(info.splits), f"{self.name}: --split", "splits")
        if not isinstance(features, tfds.features.FeaturesDict):
            raise ValueError(f"{self.name}: its features have no names; expected an image and an identity")
        pictures = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
        kinds = tfds.features.ClassLabel, tfds.features.Text
        people = [key for key, f in features.items() if isinstance(f, kinds) or _is_number(f)]
        self._image = _chosen(image, pictures, f"{self.name}: --image-feature", "images")
        self._identity = _chosen(identity, people, f"{self.name}: --identity-feature", "identities")
        label = features[self._identity]
        names = label.names if isinstance(label, tfds.features.ClassLabel) and label.names else None
        try:
            raw = tfds.decode.DeserializeMethod.RAW_BYTES  # decoding would need tensorflow for some, and time for all
            self._records: Any = builder.as_data_source(self.split, deserialize_method=raw)
            found = [self._value(i, self._identity) for i in range(len(self._records))]
            if names and min(found) < 0:  # what TFDS writes where there is no label
                raise ValueError(f"{self.name}: record {found.index(min(found))} has no {self._identity!r}")
            self.identities = [names[x] if names else x.decode() if isinstance(x, bytes) else f"{x}" for x in found]
        except NotImplementedError as error:
            remedy = "prepare it with download_and_prepare(file_format='array_record') in another data_dir"
            raise ValueError(f"{self.name}: {info.file_format.value} is not read, array_record is; {remedy}") from error
        except (IndexError, RuntimeError) as error:
            raise ValueError(f"{self.name}: damaged ({error}); prepare it again") from error

    def image(self, i: int) -> bytes:
        """Record ``i``'s image file as it is stored."""
        return self._value(i, self._image)

    def records(self, names: list[str]) -> Iterator[tuple[int, str]]:
        """(record, identity) of these identities, in their order, as a folder for each would give them."""
        of: dict[str, list[int]] = {name: [] for name in names}
        for i, name in enumerate(self.identities):
            if name in of:
                of[name].append(i)
        return ((i, name) for name in names for i in of[name])

    def _value(self, i: int, feature: str) -> Any:
        try:
            entry = EXAMPLE.FromString(self._records[i]).features.feature[feature]
        except DecodeError as error:
            raise ValueError(f"{self.name}: record {i} is damaged ({error}); prepare it again") from error
        values = entry.bytes_list.value or entry.int64_list.value
        if len(values) != 1:
            raise ValueError(f"{self.name}: record {i} has {len(values)} values of {feature!r}, expected one")
        return values[0]

    def _builder(self, name: str) -> Any:
        path = _directory(name)
        try:
            told = json.loads((path / "features.json").read_text(encoding="utf-8"))
            if foreign := [kind for kind in _types(told) if not kind.startswith("tensorflow_datasets.core.features.")]:
                raise ValueError(f"features.json names {foreign[0]!r:.100}, and TFDS would import that; refused")
            return tfds.builder_from_directory(path)
        except OSError:
            raise
        except Exception as error:  # TFDS and protobuf raise many types on what is no features.json
            raise ValueError(f"{self.name}: {path} is no TFDS dataset that can be read ({error})") from error


def _directory(name: str) -> Path:
    """Where a dataset lies. By files alone: tfds.builder would run the dataset's code and ask the network."""
    if (Path(name) / "features.json").is_file():
        return Path(name)
    dataset, _, version = name.partition(":")
    below = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser() / dataset
    there = sorted(below.glob("*/features.json"))
    if version:
        there = [file for file in there if file.parent.name == version]
    if len(there) > 1:
        versions = ", ".join(f"tfds:{dataset}:{file.parent.name}" for file in there)
        raise ValueError(f"tfds:{name}: there are several versions; choose one of {versions}")
    if not there:
        make = f"tfds.builder({name!r}).download_and_prepare(file_format='array_record')"
        told = f"neither a directory with features.json nor prepared in {below}/VERSION (TFDS_DATA_DIR)"
        raise ValueError(f"tfds:{name}: {told}; {make} prepares it, for some with tensorflow")
    return there[0].parent


def _is_number(feature: Any) -> bool:
    return feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)


def _types(told: Any) -> Iterator[str]:
    """Every class that a features.json names."""
    for key, value in told.items() if isinstance(told, dict) else ():
        if key in ("type", "pythonClassName") and isinstance(value, str):
            yield value
    for value in told.values() if isinstance(told, dict) else told if isinstance(told, list) else ():
        yield from _types(value)


def _chosen(given: str | None, there: list[str], flag: str, what: str) -> str:
    if given is None and len(there) == 1:
        return there[0]
    if given not in there:
        told = f"{flag}={given} is not there" if given else f"{flag} must say which"
        raise ValueError(f"{told}; its {what}: {', '.join(sorted(there)) or 'none'}")
    return given
