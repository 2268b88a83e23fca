"""Faces in photographs, aligned to ArcFace's five points: the 112x112 crops that every model here expects.

A detector is any function uint8 [h, w, 3] RGB -> list of :class:`detectors.Face`; :func:`detectors.detector` has two.
Each photograph is reduced for it to at most 640 pixels a side, the face nearest the centre is chosen, and the original
photograph is warped, bilinearly and without antialiasing, as insightface does and its models are used to. OpenCV and
the detectors are optional (`uv sync --extra align`, `--extra scrfd`) and imported where used.
"""
