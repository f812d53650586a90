"""Suites of prompts: the paper's six applications, and DreamBench's two lists.

Source: DreamBooth, arXiv 2208.12242, section 5.1 (templates) and its figures (their
fillers); google/dreambooth, dataset/prompts_and_classes.txt (the lists of
DreamBench and the class of each of its subjects).
"""

_SEEN_FROM = ("above", "below", "the side", "behind")
_PAINTERS = (
    "Vincent van Gogh",
    "Rembrandt",
    "Johannes Vermeer",
    "Pierre-Auguste Renoir",
    "Leonardo da Vinci",
)

# family -> (template, fillers of {})
_APPLICATIONS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "recontextualisation": (
        (
            "a [V] [N] {}",
            (
                "in the snow",
                "on the beach",
                "in the jungle",
                "on a mountain",
                "in a bucket",
                "in front of the Eiffel Tower",
                "at the Grand Canyon",
                "under water",
            ),
        ),
    ),
    "art": (
        ("a painting of a [V] [N] in the style of {}", _PAINTERS),
        ("a statue of a [V] [N] in the style of {}", ("Michelangelo",)),
    ),
    "expression": (
        (
            "a {} [V] [N]",
            ("sad", "joyous", "sleeping", "crying", "frowning", "screaming"),
        ),
    ),
    "view": (("a [V] [N] seen from {}", _SEEN_FROM),),
    "accessories": (
        (
            "a [V] [N] wearing {}",
            (
                "a police outfit",
                "a chef outfit",
                "a witch outfit",
                "a nurse outfit",
                "a purple wizard outfit",
                "a red hat",
                "sunglasses",
                "angel wings",
            ),
        ),
    ),
    "properties": (
        ("a {} [V] [N]", ("red", "purple", "yellow", "blue", "pink")),
        (
            "a cross of a [V] [N] and {}",
            ("a bear", "a panda", "a koala", "a lion", "a hippopotamus"),
        ),
    ),
}

_ANYWHERE = (
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
)
_OBJECTS_ELSEWHERE = (
    "with a wheat field in the background",
    "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background",
    "floating on top of water",
    "floating in an ocean of milk",
    "on top of green grass with sunflowers around it",
    "on top of a mirror",
    "on top of the sidewalk in a crowded street",
    "on top of a dirt road",
    "on top of a white rug",
)
_WORN = (
    "wearing a red hat",
    "wearing a santa hat",
    "wearing a rainbow scarf",
    "wearing a black top hat and a monocle",
    "in a chef outfit",
    "in a firefighter outfit",
    "in a police outfit",
    "wearing pink glasses",
    "wearing a yellow shirt",
    "in a purple wizard outfit",
)
_PROPERTIES = ("red", "purple", "shiny", "wet", "cube shaped")

# The 30 subjects of DreamBench and their classes.
DREAMBENCH_CLASSES = {
    "backpack": "backpack",
    "backpack_dog": "backpack",
    "bear_plushie": "stuffed animal",
    "berry_bowl": "bowl",
    "can": "can",
    "candle": "candle",
    "cat": "cat",
    "cat2": "cat",
    "clock": "clock",
    "colorful_sneaker": "sneaker",
    "dog": "dog",
    "dog2": "dog",
    "dog3": "dog",
    "dog5": "dog",
    "dog6": "dog",
    "dog7": "dog",
    "dog8": "dog",
    "duck_toy": "toy",
    "fancy_boot": "boot",
    "grey_sloth_plushie": "stuffed animal",
    "monster_toy": "toy",
    "pink_sunglasses": "glasses",
    "poop_emoji": "toy",
    "rc_car": "toy",
    "red_cartoon": "cartoon",
    "robot_toy": "toy",
    "shiny_sneaker": "sneaker",
    "teapot": "teapot",
    "vase": "vase",
    "wolf_plushie": "stuffed animal",
}
LIVING = ("cat", "dog")  # classes that use the prompts for live subjects
DREAMBENCH = "dreambench"  # the list for a subject's class


def dreambench(class_noun: str) -> str:
    """Name of DreamBench's suite for subjects of a class."""
    kind = "living" if class_noun in LIVING else "objects"
    return f"{DREAMBENCH}_{kind}"


def fitting_suite(source: str, class_noun: str) -> str:
    """The source of prompts, with ``DREAMBENCH`` replaced by the suite of the class."""
    return dreambench(class_noun) if source == DREAMBENCH else source


def _families() -> dict[str, tuple[tuple[str, str], ...]]:
    return {
        family: tuple(
            (family, template.format(filler))
            for template, fillers in templates
            for filler in fillers
        )
        for family, templates in _APPLICATIONS.items()
    }


def _dreambench(places: tuple[str, ...], worn: tuple[str, ...]):
    return (
        *(("recontextualisation", f"a [V] [N] {place}") for place in places),
        *(("accessories", f"a [V] [N] {what}") for what in worn),
        *(("properties", f"a {what} [V] [N]") for what in _PROPERTIES),
    )


# name -> (family, prompt) of each prompt
SUITES: dict[str, tuple[tuple[str, str], ...]] = {
    "applications": tuple(each for some in _families().values() for each in some),
    **_families(),
    "dreambench_objects": _dreambench(_ANYWHERE + _OBJECTS_ELSEWHERE, ()),
    "dreambench_living": _dreambench(_ANYWHERE, _WORN),
}
