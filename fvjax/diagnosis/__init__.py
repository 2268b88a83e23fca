"""Is a pipeline broken? Checks of face crops, labels, pairs and scores, each finding with its evidence and its remedy.

    findings     what a check says
    face_sets    opens a store, an insightface .bin or a folder of crops
    pictures     colours, values, alignment and template, compared with reference.json
    mean_face    where the faces of a set are
    labels       names, order and direction of labels, with a descriptor that needs no training
    protocols    the folds of a benchmark
    scores       a model's scores: how its input is read, and the threshold
    examination  all of them in order

Nothing here imports jax: a model comes as a function that scores pairs of pictures.
"""
