"""MXNet RecordIO files of faces, as insightface packs them (train.rec, train.idx, property), converted to stores.

A .rec is a sequence of parts, each at a multiple of four bytes: the magic number, a word of kind (3 bits) and length
(29 bits), that many bytes, and zeros up to the next multiple of four. Kind 0 is a whole record. Where a record's own
bytes contain the magic number at a multiple of four, the writer leaves it out and cuts the record there: kinds 1, 2, …,
2, 3 (dmlc-core, recordio.h). The magic number therefore marks parts and nothing else, and a reader can skip damage by
looking for the next one.

A record is IRHeader (flag uint32, label float32, id uint64, id2 uint64), ``flag`` float32 labels that replace the
header's, and the bytes of an image file. Its identity is the first label. insightface adds header records, which have
two labels and no image: the one of key 0 gives the range of keys (first and last + 1) that belong to identities, and
each of those gives the range of keys of that identity's images.

The .rec is read from end to end and is sufficient by itself. The files beside it are used only if they agree with it:
.idx ("key<TAB>offset" a line; without it a record's key is its header's id), property ("identities,112,112"), .lst
("key<TAB>label…<TAB>path", as im2rec writes it).

A conversion works in .NAME.partial beside its destination, a shard at a time, and leaves the finished shards there when
it is killed; the same command then does the rest. The bytes of the store depend neither on interruptions nor on the
number of workers.

    records      the format of one record
    scanner      every record of a .rec
    companions   the files beside a .rec
    shard_jobs   writing shards in several processes
    conversion   a .rec to stores
"""
