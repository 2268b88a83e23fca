"""The words by which answers name expressions, action units and attributes, as regular expressions of lower-case text.

Face-LLaVA's lists of synonyms are not public; these are our own. No word stands for two expressions.
"""

from __future__ import annotations

EXPRESSIONS: dict[str, str] = {
    "happy": r"happ(?:y|ily|iness|ier)|joy(?:ful|fully|ous)?|cheer(?:ful|fully|fulness)|delight(?:ed)?|smil(?:e|es|"
    r"ing)|"
    r"amus(?:ed|ement)|pleased|glad|elat(?:ed|ion)|laugh(?:s|ing|ter)?",
    "sad": r"sad(?:ness|ly|dened)?|sorrow(?:ful)?|unhapp(?:y|iness)|melanchol(?:y|ic)|grie(?:f|ving)|gloom(?:y)?|"
    r"dejected|"
    r"downcast|depress(?:ed|ion)|despair|tearful|crying|heartbroken",
    "neutral": r"neutral(?:ity)?|expressionless|emotionless|calm(?:ness)?|impassive|composed|blank expression",
    "angry": r"ang(?:ry|er|rily|ered)|furious|fury|rag(?:e|ing)|irritat(?:ed|ion)|annoy(?:ed|ance)|mad|hostil(?:e|ity)|"
    r"outraged?|frustrat(?:ed|ion)",
    "surprise": r"surpris(?:e|ed|ing)|astonish(?:ed|ment)|amaze(?:d|ment)|shock(?:ed)?|startled",
    "disgust": r"disgust(?:ed|ing)?|revulsion|revolted|repulsed|repulsion|distaste|aversion",
    "fear": r"fear(?:ful|fully)?|afraid|scared|fright(?:ened)?|terrif(?:ied|ying)|terror|panic(?:ked)?",
}
# "No emotion" is an answer, not a denial.
NO_EXPRESSION = r"\b(?:no|without|lack of|absence of|lacks)(?: \w+){0,3} (?:emotions?|expressions?)\b|\bat rest\b"

_BROWS = r"(?:eye)?brows?"
ACTION_UNITS: dict[int, str] = {
    1: rf"inner {_BROWS} (?:(?:is|are) )?(?:rais(?:ed|er|e|ing)|lifted)|rais(?:ed|ing|es) (?:the )?inner {_BROWS}|"
    rf"(?<!outer )(?<!inner ){_BROWS} (?:is|are) raised|raised {_BROWS}",
    2: rf"outer {_BROWS} (?:(?:is|are) )?(?:rais(?:ed|er|e|ing)|lifted)|rais(?:ed|ing|es) (?:the )?outer {_BROWS}|"
    rf"(?<!outer )(?<!inner ){_BROWS} (?:is|are) raised|raised {_BROWS}",
    4: rf"{_BROWS} (?:(?:is|are) )?(?:lower(?:ed|er|ing)?|furrowed|knitted|drawn together)|(?:lowered|"
    rf"furrowed) {_BROWS}",
    5: r"upper (?:eye)?lids? (?:(?:is|are) )?rais(?:ed|er|e)|raised upper (?:eye)?lids?|widened eyes|"
    r"eyes (?:are )?wide(?:ned)?",
    6: r"cheeks? (?:(?:is|are) )?rais(?:ed|er|e)|raised cheeks?",
    7: r"(?:eye)?lids? (?:(?:is|are) )?tight(?:ened|ener|en)|tightened (?:eye)?lids?|squint(?:ing|ed)?",
    9: r"nose (?:is )?wrinkl(?:ed|er|e|ing)|wrinkled nose",
    10: r"upper lip (?:is )?rais(?:ed|er|e)|raised upper lip",
    12: r"lip corners? (?:(?:is|are) )?pull(?:ed|er|s)?(?: up(?:wards?)?)?|corners of the (?:lips|"
    r"mouth) (?:are )?(?:pulled|"
    r"turned|raised) ?up(?:wards?)?|pulled lip corners?",
    14: r"dimpl(?:er|es?|ed|ing)",
    15: r"lip corners? (?:(?:is|are) )?(?:depress(?:ed|or)|pulled down(?:wards?)?|turned down(?:wards?)?)|"
    r"corners of the "
    r"(?:lips|mouth) (?:are )?(?:pulled|turned) down(?:wards?)?",
    17: r"chin (?:is )?rais(?:ed|er|e)|raised chin",
    20: r"lips? (?:(?:is|are) )?stretch(?:ed|er)|stretched lips?",
    23: r"lips? (?:(?:is|are) )?tight(?:ened|ener)|tightened lips?",
    24: r"lips? (?:(?:is|are) )?press(?:ed|or)(?: together)?|pressed lips?",
    25: r"lips? (?:(?:is|are) )?(?:slightly )?part(?:ed|s|ing)?|parted lips?|mouth (?:is )?(?:slightly )?open",
    26: r"jaw (?:is |has )?drop(?:ped|s)?|dropped jaw",
}
NO_ACTION_UNIT = (
    r"\b(?:no|none of the|without any)(?: \w+){0,3} (?:action units?|aus?|facial muscles?)\b|"
    r"\bneutral face\b|\bat rest\b"
)

# What names an attribute beside its own name with blanks for underscores.
ATTRIBUTES: dict[str, str] = {
    "5_o_Clock_Shadow": r"(?:5|five)[ -]o['’]?[ -]?clock shadow|stubble",
    "Arched_Eyebrows": r"arched (?:eye)?brows?",
    "Attractive": r"attractive|beautiful|handsome|good[ -]looking",
    "Bags_Under_Eyes": r"bags under (?:the |his |her )?eyes|under[ -]?eye bags|eye bags",
    "Bald": r"bald(?:ness)?",
    "Bangs": r"bangs|fringe",
    "Big_Lips": r"(?:big|full|large|thick|plump) lips",
    "Big_Nose": r"(?:big|large|broad|prominent) nose",
    "Black_Hair": r"(?:black|dark[ -]black)(?:,? \w+)? hair",
    "Blond_Hair": r"(?:blonde?|golden)(?:,? \w+)? hair|blonde?",
    "Blurry": r"blurry|blurred|out of focus",
    "Brown_Hair": r"(?:brown|brunette|chestnut)(?:,? \w+)? hair|brunette",
    "Bushy_Eyebrows": r"(?:bushy|thick) (?:eye)?brows?",
    "Chubby": r"chubby|plump face|round and full face",
    "Double_Chin": r"double chin",
    "Eyeglasses": r"(?:eye)?glasses|spectacles|eyewear",
    "Goatee": r"goatee",
    "Gray_Hair": r"(?:gr[ae]y|white|silver)(?:,? \w+)? hair|gr[ae]ying",
    "Heavy_Makeup": r"heavy make[ -]?up|heavily made[ -]up",
    "High_Cheekbones": r"(?:high|prominent) cheekbones",
    "Male": r"male|man|boy|gentleman",
    "Mouth_Slightly_Open": r"mouth (?:is )?(?:slightly |partly |partially )?open|(?:slightly |partly )?open mouth|"
    r"(?:slightly )?parted lips|lips (?:are )?(?:slightly )?parted",
    "Mustache": r"mo?ustaches?",
    "Narrow_Eyes": r"narrow(?:ed)? eyes|eyes (?:are )?narrow(?:ed)?",
    "No_Beard": r"clean[ -]shaven|beardless",
    "Oval_Face": r"oval(?:[ -]shaped)? face|face (?:is )?oval",
    "Pale_Skin": r"(?:pale|fair) (?:skin|complexion)",
    "Pointy_Nose": r"(?:pointy|pointed) nose",
    "Receding_Hairline": r"receding hair(?:line)?",
    "Rosy_Cheeks": r"(?:rosy|flushed) cheeks|blush",
    "Sideburns": r"sideburns",
    "Smiling": r"smil(?:e|es|ing)|grin(?:s|ning)?",
    "Straight_Hair": r"straight(?:,? \w+)? hair",
    "Wavy_Hair": r"(?:wavy|curly)(?:,? \w+)? hair",
    "Wearing_Earrings": r"earrings?",
    "Wearing_Hat": r"hat|cap|beanie",
    "Wearing_Lipstick": r"lipstick",
    "Wearing_Necklace": r"necklaces?",
    "Wearing_Necktie": r"(?:neck)?tie",
    "Young": r"young|youthful",
}
BEARD = r"\bbeards?\b"  # denied, it is CelebA's No_Beard
NO_ATTRIBUTE = r"\bno(?: \w+){0,3} attributes?\b|\bnone of the(?: \w+){0,3} attributes?\b"

FAKE = (
    r"\b(?:deep[ -]?fakes?|fake[dry]*|faked|manipulat(?:ed|ions?|ive)|forge(?:d|ry|ries)|synthetic(?:ally)?|"
    r"synthesi[sz]ed|"
    r"alter(?:ed|ations?)|tamper(?:ed|ing)|doctored|(?:ai|computer|artificially)[ -]generated|inauthentic|unreal|"
    r"edited|"
    r"editing|face[ -]swap(?:ped)?|artificial)\b"
)
REAL = r"\b(?:real|genuine|authentic(?:ity)?|unaltered|unmanipulated|unedited|original|natural)\b"

_TO_NINETEEN = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
NUMBERS = {name: number for number, name in enumerate(_TO_NINETEEN)}
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
TENS = {name: 10 * number for number, name in enumerate(_TENS, 2)}
DECADES = {name.removesuffix("y") + "ies": value for name, value in TENS.items()} | {"teens": 10}
