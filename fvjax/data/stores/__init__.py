"""Face stores: TFDS dataset directories in ArrayRecord format, plus a manifest that describes them.

    DIR/features.json, dataset_info.json, identity.labels.txt    read by any TFDS user (builder_from_directory)
    DIR/faces-SPLIT.array_record-00000-of-00001                  image (JPEG bytes), identity (int64), source (text)
    DIR/index.npz                                                labels and sources, readable without any record
    DIR/pairs_NAME.csv                                           a benchmark: columns a,b,same,fold
    DIR/manifest.json                                            counts, hashes, sources, rejections, benchmarks

All images of a store have one size, 112x112 unless the manifest's `image_size` says otherwise. Records may have further
features, which the manifest declares (:class:`Feature`): landmarks, labels, frames, text.

The writer works in a directory beside the destination and renames it at the end, so a killed writer leaves nothing that
looks like a store.

The data_hash is sha256 over the records' digests in order. A record's digest is sha256 over the image, the identity's
name and the source, and over name, type and bytes of each further feature in alphabetical order; each of these parts
follows its length (8 bytes, little-endian). The data_hash is therefore independent of the division into shards.

Conversations about pictures of any size have stores of their own (:mod:`fvjax.data.stores.conversations`).
"""

from fvjax.data.stores.features import Feature
from fvjax.data.stores.protocol import Pairs, check_folds, read_pairs, write_pairs
from fvjax.data.stores.store import Store
from fvjax.data.stores.writer import Writer, write

__all__ = ["Feature", "Pairs", "Store", "Writer", "check_folds", "read_pairs", "write", "write_pairs"]
