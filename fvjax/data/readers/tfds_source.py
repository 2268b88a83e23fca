"""A prepared TFDS dataset as a source of faces, without tensorflow: encoded images, and identities as names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from fvjax.data import names
from fvjax.data.stores.shards import EXAMPLE


class Source:
    """One split of a TFDS dataset in ArrayRecord format.

    Args:
        name: a dataset below TFDS_DATA_DIR (~/tensorflow_datasets) such as "lfw", "lfw:0.1.1" or "name/config", or a
            directory with features.json. Nothing is downloaded, and no code of the dataset is run.
        split: may be None if the dataset has a single one.
        image: the feature with the images; may be None if only one is an Image. The features of a feature are named
            with a slash: "identity/Identity_No".
        identity: the feature with the identities; may be None if only one is a ClassLabel, a Text or an integer.
    Attributes:
        identities: the identity of each record.
    Raises:
        ValueError: no such dataset, not in ArrayRecord format, damaged, or an ambiguous split or feature.
    """

    def __init__(self, name: str, split: str | None, image: str | None, identity: str | None):
        self.name = f"tfds:{name}"
        builder = _builder(name)
        info = builder.info
        self.split = _choose(split, list(info.splits), f"{self.name}: --split", "splits")
        if not isinstance(info.features, tfds.features.FeaturesDict):
            raise ValueError(f"{self.name}: its features have no names; expected an image and an identity")
        features = self._features = dict(_flat(info.features))
        pictures = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
        kinds = tfds.features.ClassLabel, tfds.features.Text
        people = [key for key, f in features.items() if isinstance(f, kinds) or _is_integer(f)]
        self._image = _choose(image, pictures, f"{self.name}: --image-feature", "images")
        self._identity = _choose(identity, people, f"{self.name}: --identity-feature", "identities")
        try:
            # Raw bytes: decoding would need tensorflow for some features, and time for all.
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._records: Any = builder.as_data_source(self.split, deserialize_method=raw)
            self.identities = self._read_identities(features[self._identity])
        except NotImplementedError as error:
            remedy = "prepare it with download_and_prepare(file_format='array_record') in another data_dir"
            raise ValueError(f"{self.name}: {info.file_format.value} is not read, array_record is; {remedy}") from error
        except (IndexError, RuntimeError) as error:
            raise ValueError(f"{self.name}: damaged ({error}); prepare it again") from error

    def image(self, i: int) -> bytes:
        """Return record ``i``'s image file as it is stored."""
        return self._value(i, self._image)

    def booleans(self, prefix: str) -> list[str]:
        """Return the boolean features below a feature, sorted by name. Raises ValueError if there are none.

        (features.json has no order: it is read as a protobuf map.)

        Args:
            prefix: such as "attributes/".
        """
        chosen = sorted(key for key, f in self._features.items() if key.startswith(prefix) and _is_boolean(f))
        if not chosen:
            every = sorted({key.rpartition("/")[0] for key, f in self._features.items() if _is_boolean(f)})
            available = ", ".join(folder for folder in every if folder) or "none"
            raise ValueError(f"{self.name}: no booleans in {prefix.rstrip('/')!r}; features with booleans: {available}")
        return chosen

    def values(self, i: int, features: Sequence[str]) -> list[Any]:
        """Return the values of several features of record ``i``, each a single number or text."""
        record = self._record(i)
        return [self._only(record, i, feature) for feature in features]

    def records(self, people: list[str]) -> Iterator[tuple[int, str]]:
        """Yield (record, identity) of these identities in their order, as folders of their names would.

        Identities are compared and named as :func:`fvjax.data.names.identity` gives them.
        """
        records_of: dict[str, list[int]] = {name: [] for name in people}
        for i, name in enumerate(map(names.identity, self.identities)):
            if name in records_of:
                records_of[name].append(i)
        return ((i, name) for name in people for i in records_of[name])

    def _read_identities(self, feature: Any) -> list[str]:
        classes = feature.names if isinstance(feature, tfds.features.ClassLabel) and feature.names else None
        values = [self._value(i, self._identity) for i in range(len(self._records))]
        if classes and min(values) < 0:  # TFDS writes -1 where there is no label
            raise ValueError(f"{self.name}: record {values.index(min(values))} has no {self._identity!r}")
        return [classes[x] if classes else x.decode() if isinstance(x, bytes) else f"{x}" for x in values]

    def _value(self, i: int, feature: str) -> Any:
        return self._only(self._record(i), i, feature)

    def _record(self, i: int) -> Any:
        try:
            return EXAMPLE.FromString(self._records[i]).features.feature
        except DecodeError as error:
            raise ValueError(f"{self.name}: record {i} is damaged ({error}); prepare it again") from error

    def _only(self, record: Any, i: int, feature: str) -> Any:
        """Return the only value of a feature in a record."""
        entry = record[feature]
        values = entry.bytes_list.value or entry.int64_list.value
        if len(values) != 1:
            raise ValueError(f"{self.name}: record {i} has {len(values)} values of {feature!r}, expected one")
        return values[0]


def split_names(name: str) -> list[str]:
    """Return the names of a dataset's splits. Raises ValueError as :class:`Source`."""
    return list(_builder(name).info.splits)


def _builder(name: str) -> Any:
    path = _directory(name)
    try:
        description = json.loads((path / "features.json").read_text(encoding="utf-8"))
        ours = "tensorflow_datasets.core.features."
        if foreign := [kind for kind in _class_names(description) if not kind.startswith(ours)]:
            raise ValueError(f"features.json names {foreign[0]!r:.100}, and TFDS would import that; refused")
        return tfds.builder_from_directory(path)
    except OSError:
        raise
    except Exception as error:  # TFDS and protobuf raise many types for a malformed features.json
        raise ValueError(f"tfds:{name}: {path} is no TFDS dataset that can be read ({error})") from error


def _directory(name: str) -> Path:
    """Find a dataset's directory, from files alone: tfds.builder would run the dataset's code and use the network."""
    if (Path(name) / "features.json").is_file():
        return Path(name)
    dataset, _, version = name.partition(":")
    below = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser() / dataset
    files = sorted(below.glob("*/features.json"))
    if version:
        files = [file for file in files if file.parent.name == version]
    if len(files) > 1:
        versions = ", ".join(f"tfds:{dataset}:{file.parent.name}" for file in files)
        raise ValueError(f"tfds:{name}: there are several versions; choose one of {versions}")
    if not files:
        command = f"tfds.builder({name!r}).download_and_prepare(file_format='array_record')"
        problem = f"neither a directory with features.json nor prepared in {below}/VERSION (TFDS_DATA_DIR)"
        raise ValueError(f"tfds:{name}: {problem}; {command} prepares it, for some with tensorflow")
    return files[0].parent


def _is_integer(feature: Any) -> bool:
    return feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)


def _is_boolean(feature: Any) -> bool:
    return feature.shape == () and np.issubdtype(feature.np_dtype, np.bool_)


def _flat(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, feature) of all features, those of a feature named as TFDS stores them: "attributes/Bald"."""
    for key, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _flat(feature, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", feature


def _class_names(description: Any) -> Iterator[str]:
    """Yield every class that a features.json names."""
    for key, value in description.items() if isinstance(description, dict) else ():
        if key in ("type", "pythonClassName") and isinstance(value, str):
            yield value
    if isinstance(description, dict | list):
        for value in description.values() if isinstance(description, dict) else description:
            yield from _class_names(value)


def _choose(name: str | None, available: list[str], flag: str, plural: str) -> str:
    """Return ``name``, or the only one available. Raises ValueError naming the flag if that is not possible."""
    if name is None and len(available) == 1:
        return available[0]
    if name not in available:
        problem = f"{flag}={name} does not exist" if name else f"{flag} is needed"
        raise ValueError(f"{problem}; its {plural}: {', '.join(sorted(available)) or 'none'}")
    return name
