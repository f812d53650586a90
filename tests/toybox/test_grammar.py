"""The toybox's words: captions and back, what is held out, who is who."""

import dataclasses
import itertools

import numpy as np
import pytest

from imagen_booth.errors import InputError
from imagen_booth.toybox import captions, examples, grammar, packing, subjects
from imagen_booth.toybox.bodies import Pose
from imagen_booth.toybox.grammar import WORDS, Attributes
from imagen_booth.toybox.subjects import ToyboxSubject


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("a dog", Attributes(noun="dog")),
        (
            "a red car on the beach",
            Attributes(noun="car", colour="red", context="beach"),
        ),
        (
            "a painting of a cat wearing a hat",
            Attributes(noun="cat", style="painting", accessory="hat"),
        ),
        ("a teapot seen from the back", Attributes(noun="teapot", view="back")),
        (
            "a photo of a blue car in the snow",
            Attributes(noun="car", colour="blue", context="snow"),
        ),
        (
            "an orange dog wearing a scarf on the street seen from the side",
            Attributes(
                noun="dog",
                colour="orange",
                accessory="scarf",
                context="street",
                view="side",
            ),
        ),
    ],
)
def test_prompt_forms(text, attributes):
    assert captions.parse(text) == attributes
    assert captions.caption(attributes, photo=text.startswith("a photo")) == text


def test_captions_read_back_as_what_they_say():
    rng = np.random.default_rng(0)
    for _ in range(300):
        shown = grammar.draw_attributes(rng)
        for photo in (False, True):
            assert captions.parse(captions.caption(shown, photo=photo)) == shown
        said = captions.parse(captions.training_caption(rng, shown))
        for field in dataclasses.fields(said):
            value = getattr(said, field.name)
            usual = getattr(Attributes(noun=shown.noun), field.name)
            assert value in (getattr(shown, field.name), usual)


def test_identifier_is_skipped_where_it_stands_for_the_subject():
    plain = captions.parse("a red dog wearing a hat in the snow")
    assert captions.parse("a red [V] dog wearing a hat in the snow") == plain


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a dgo on the beach", "'dgo'.*noun.*'dog'"),
        ("a dog on the beech", "'beech'.*context.*'beach'"),
        ("a dog wearing a scraf", "'scraf'.*accessory.*'scarf'"),
        ("a dog seen from the sied", "'sied'.*view.*'side'"),
        ("a paintin of a dog", "'paintin'.*style.*'painting'"),
        ("a dog riding the beach", "'riding'"),
        ("a dog wearing", "ends where its accessory"),
        ("", "ends where its noun"),
    ],
)
def test_words_outside_the_grammar_are_named(prompt, message):
    with pytest.raises(InputError, match=message):
        captions.parse(prompt)


def test_held_out_combinations_never_train():
    rng = np.random.default_rng(1)
    drawn = [grammar.draw_attributes(rng) for _ in range(3000)]
    seen = {(a.noun, a.colour, a.context) for a in drawn}
    kept = set(grammar.held_out_combinations())
    assert not seen & kept
    total = len(WORDS.nouns) * len(WORDS.colours) * len(WORDS.contexts)
    assert 0.08 < len(kept) / total < 0.17
    # The parts of what is held out are all taught, in other combinations.
    nouns, colours, contexts = zip(*seen, strict=True)
    assert set(nouns) == set(WORDS.nouns)
    assert set(colours) == set(WORDS.colours)
    assert set(contexts) == {*WORDS.contexts, None}


def test_index_names_one_example():
    first, again = (examples.example(3, 17) for _ in range(2))
    assert first == again
    others = [examples.example(3, 18), examples.example(4, 17)]
    assert all(first.scene != other.scene for other in others)


def test_every_combination_of_class_place_and_wear_can_be_drawn():
    choices = itertools.product(
        WORDS.nouns, (None, *WORDS.contexts), (None, *WORDS.accessories)
    )
    for i, (noun, context, accessory) in enumerate(choices):
        shown = Attributes(
            noun=noun,
            context=context,
            accessory=accessory,
            style=WORDS.styles[i % len(WORDS.styles)],
            view=WORDS.views[i % len(WORDS.views)],
        )
        packed = packing.pack(examples.scene_of(shown, (8, i)))
        assert all(np.isfinite(array).all() for array in packed.values())


@pytest.mark.parametrize("noun", grammar.BODIES)
def test_traits_are_drawn_before_the_pose_is_looked_at(noun):
    poses = [
        Pose(stance=stance, wag=wag, head_yaw=10.0)
        for stance, wag in (("stand", 0.0), ("sit", 0.5), ("lie", -1.0))
    ]
    ends = []
    for pose in poses:
        rng = np.random.default_rng(5)
        grammar.BODIES[noun](rng, "brown", pose)
        ends.append(rng.random())
    assert len(set(ends)) == 1


@pytest.mark.parametrize("noun", grammar.BODIES)
def test_subject_keeps_its_materials_in_every_picture(noun):
    subject = ToyboxSubject(noun, 4)
    individual = subject.individual
    assert individual == ToyboxSubject(noun, 4).individual
    materials = [
        {
            s.material
            for s in grammar.BODIES[noun](
                np.random.default_rng(individual.seed), individual.colour, pose
            ).shapes
        }
        for pose in (Pose(), Pose(wag=0.7, head_yaw=12.0, head_roll=-5.0))
    ]
    assert materials[0] == materials[1]
    for made in (
        *subjects.photo_scenes(subject, 6),
        subjects.truth_scene(subject, f"a [V] {noun} in the snow"),
    ):
        own = {s.material for s in made.shapes}
        # Which parts show depends on the stance; what they are made of does not.
        assert len(own & materials[0]) >= 0.6 * len(materials[0])


def test_subjects_and_photos_differ():
    dogs = [ToyboxSubject("dog", seed).individual for seed in range(8)]
    assert len({d.seed for d in dogs}) == 8
    bodies = {
        frozenset(
            s.material
            for s in grammar.BODIES["dog"](
                np.random.default_rng(d.seed), d.colour, Pose()
            ).shapes
        )
        for d in dogs
    }
    assert len(bodies) == 8
    scenes = subjects.photo_scenes(ToyboxSubject("dog", 1), 6)
    assert len({s.camera for s in scenes}) == 6
    assert len({s.ground for s in scenes}) == 6


def test_subjects_are_strangers_to_pretraining():
    spaces = {ToyboxSubject("cat", seed).individual.seed[0] for seed in range(5)}
    assert examples.SPACE not in spaces


def test_truth_follows_the_prompt():
    subject = ToyboxSubject("duck", 2)
    plain = subjects.truth_scene(subject, "a [V] duck")
    assert plain.style == "photo"
    assert plain.ground.kind == "studio"
    painted = subjects.truth_scene(subject, "a painting of a [V] duck in the snow")
    assert painted.style == "painting"
    assert painted.ground.kind == "snow"
    takes = [subjects.truth_scene(subject, "a [V] duck", take=i) for i in range(3)]
    assert len({t.camera for t in takes}) == 3


def test_unknown_noun_and_count_are_refused():
    with pytest.raises(InputError, match=r"'dragon'"):
        ToyboxSubject("dragon", 1)
    with pytest.raises(InputError, match="count is 9"):
        subjects.photo_attributes(9)


def test_pictures_texts_and_attributes_are_those_of_their_index():
    made = examples.example(2, 3)
    images, texts, attributes = examples.render_examples(2, [3, 0])
    assert images.shape == (2, 64, 64, 3)
    assert images.dtype == np.uint8
    assert texts[0] == made.caption
    assert attributes[0] == made.attributes
