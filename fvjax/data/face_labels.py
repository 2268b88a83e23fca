"""The labels of Face-LLaVA's five tasks: expressions, action units, attributes, age and deepfakes."""

from __future__ import annotations

TASKS = ("expression", "action_units", "attributes", "age", "deepfake")

EXPRESSIONS = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")  # of DFEW and RAF-DB
CREMAD_EXPRESSIONS = ("happy", "sad", "neutral", "angry", "disgust", "fear")

# Names of the Facial Action Coding System.
ACTION_UNITS: dict[int, str] = {
    1: "inner brow raiser",
    2: "outer brow raiser",
    4: "brow lowerer",
    5: "upper lid raiser",
    6: "cheek raiser",
    7: "lid tightener",
    9: "nose wrinkler",
    10: "upper lip raiser",
    12: "lip corner puller",
    14: "dimpler",
    15: "lip corner depressor",
    17: "chin raiser",
    20: "lip stretcher",
    23: "lip tightener",
    24: "lip pressor",
    25: "lips part",
    26: "jaw drop",
}
DISFA = (1, 2, 4, 6, 9, 12, 25, 26)  # usually taken as active from intensity 2
BP4D = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)

# CelebA's, in its order.
ATTRIBUTES = tuple(
    [
        "5_o_Clock_Shadow",
        "Arched_Eyebrows",
        "Attractive",
        "Bags_Under_Eyes",
        "Bald",
        "Bangs",
        "Big_Lips",
        "Big_Nose",
        "Black_Hair",
        "Blond_Hair",
        "Blurry",
        "Brown_Hair",
        "Bushy_Eyebrows",
        "Chubby",
        "Double_Chin",
        "Eyeglasses",
        "Goatee",
        "Gray_Hair",
        "Heavy_Makeup",
        "High_Cheekbones",
        "Male",
        "Mouth_Slightly_Open",
        "Mustache",
        "Narrow_Eyes",
        "No_Beard",
        "Oval_Face",
        "Pale_Skin",
        "Pointy_Nose",
        "Receding_Hairline",
        "Rosy_Cheeks",
        "Sideburns",
        "Smiling",
        "Straight_Hair",
        "Wavy_Hair",
        "Wearing_Earrings",
        "Wearing_Hat",
        "Wearing_Lipstick",
        "Wearing_Necklace",
        "Wearing_Necktie",
        "Young",
    ]
)

OLDEST = 116  # of UTKFace
REALITIES = ("real", "fake")
