"""FaceInsight in small: a frozen VLM says which attributes procedural faces have, on a laptop's CPU.

    python -m fvjax.main --config=configs/faceinsight_quickstart.py

Tower and decoder are frozen, and the decoder is random; adapters and graph are trained. Rows of the ladder:

    org        the picture alone
    maps       and its segmentation map
    graph      and the graph over the attributes' correlations
    logic      and the loss of broken rules

and controls: `shuffled_maps` (each picture gets another's map), `identity` and `permuted` (graphs that know nothing).

In these faces, hidden attributes (Sailor, Musician, Teacher) have labels in few training pictures and go with a visible
attribute, and only the maps show earrings and necklaces (fvjax/data/attribute_faces.py). The table is about people whom
training has not seen.
"""

from fvjax.config import base

MAPS = {"attributes": {"maps": True}}
GRAPH = {"attributes": {"maps": True, "graph": "conditional"}}
ROWS = {
    "org": {},
    "maps": MAPS,
    "graph": GRAPH,
    "logic": {"attributes": {**GRAPH["attributes"], "logic": "linear"}},
    "shuffled_maps": {"attributes": {"maps": True, "shuffle_maps": True}},
    "identity": {"attributes": {"maps": True, "graph": "identity"}},
    "permuted": {"attributes": {"maps": True, "graph": "random"}},
}


def get_config(row: str = ""):
    """Return the config of all rows, or of one `row` (--config=configs/faceinsight_quickstart.py:graph)."""
    if row and row not in ROWS:
        raise ValueError(f"configs/faceinsight_quickstart.py has no row {row!r}; there are {', '.join(ROWS)}")
    c = base()
    c.name = "faceinsight_quickstart"
    c.task = "attributes"
    c.model.kind = "vlm"
    c.model.vision_transformer.update(
        {"image_size": 112, "patch_size": 14, "width": 128, "depth": 4, "heads": 4, "mlp_dim": 512}
    )
    c.model.decoder.update(
        {"vocab": 512, "width": 128, "depth": 3, "heads": 4, "kv_heads": 2, "head_dim": 32, "mlp_dim": 384}
    )
    c.init_parts.vision = "fvjax/pretrained/tiny_internvit"
    c.trainable = (("params/projector/.*", "adapter"), ("head/.*", "adapter"), (".*", "frozen"))
    c.prompt.ids = (294, 64, 75)
    c.prompt.yes_no_ids = (56, 45)
    c.attributes.update(
        {
            "maps": False,
            "graph": "none",
            "hidden": 128,
            "text_width": 64,
            "rules": "procedural",
            "rule_sets": ("anatomical", "groups"),
            "labelled": 0.03,
        }
    )
    c.data.synthetic.identities = 120
    c.data.synthetic.images = 10
    c.data.synthetic.test_identities = 60
    c.data.synthetic.test_images = 5
    c.epochs = 3
    c.batch_size = 32
    c.optimizer.update(
        {"name": "adamw", "lr": 4e-3, "weight_decay": 0.0, "clip": 1.0, "schedule": "cosine", "warmup_ratio": 0.03}
    )
    c.eval.batch_size = 100
    c.eval.before_training = False
    c.eval.bootstrap = 200
    c.checkpoint.every_steps = 1000
    if row:
        c.name = f"faceinsight_quickstart_{row}"
        c.update(ROWS[row])
    else:
        c.rows.update(ROWS)
    return c
