"""The studies: what is run, what it costs, what counts as shown, and the page."""

import dataclasses
import json
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from imagen_booth import dreambooth
from imagen_booth.cascade import by_name
from imagen_booth.config import build, presets
from imagen_booth.data import image_files
from imagen_booth.errors import InputError, Stopped
from imagen_booth.evaluation import toybox_judge
from imagen_booth.evaluation.scores import Score
from imagen_booth.experiments import (
    claims,
    cost,
    judge_readings,
    measure,
    plan,
    report,
    runner,
)
from imagen_booth.experiments.image_store import ImageStore
from imagen_booth.experiments.plan import StudySize
from imagen_booth.models.toybox_judge import Judge as Network
from imagen_booth.preflight import jaxpr_cost, memory
from imagen_booth.sampling.text_embeddings import replace_rows
from imagen_booth.toybox.grammar import WORDS
from imagen_booth.training import train_step

HERE = epath.Path("work")
TEXT = build.to_job(presets.textual_inversion("tiny")).text
WHOLE = build.to_job(presets.dreambooth("tiny")).base


@pytest.fixture(scope="module")
def job():
    return build.to_job(presets.dreambooth("tiny:lora"))


def planned(job, size=plan.FULL, names=plan.STUDIES):
    studies = plan.plan_studies(job, by_name("tiny"), HERE, names, size, TEXT, WHOLE)
    return {study.name: study.arms for study in studies}


def test_the_plan_has_every_study_and_shares_runs(job):
    studies = planned(job)
    assert list(studies) == list(plan.STUDIES)
    runs = plan.distinct_runs(
        plan.plan_studies(
            job, by_name("tiny"), HERE, plan.STUDIES, plan.FULL, TEXT, WHOLE
        )
    )
    # prior 8 x 3 x 3, baselines and sr 8 x 2 more, then over 3 subjects: sampler 3,
    # noun 3, identifier 2, photos 4; prior_source 8 x 2 x 10, adapters 8 x 5 more.
    assert len(runs) == 72 + 16 + 16 + 9 + 9 + 6 + 12 + 160 + 40
    assert len({run.name for run in runs}) == len(runs)
    usual = studies["fidelity"][plan.TUNED]
    assert len(usual) == 3
    for study, arm in (
        ("noun", plan.CORRECT),
        ("identifier", plan.RARE),
        ("photos", "5"),
        ("sampler", plan.ANCESTRAL),
    ):
        assert studies[study][arm] == usual
    assert set(usual) <= set(studies["prior"][plan.ON])
    four = studies["baselines"]
    assert set(four[plan.DREAMBOOTH]) <= set(studies["prior"][plan.ON])
    assert set(four[plan.NAIVE]) <= set(studies["prior"][plan.OFF])
    assert {len(some) for some in four.values()} == {8}
    for run in runs:
        assert run.subject.seed < 9000
        assert run.job.cache == "work/cache"
        assert run.job.subject.photos.startswith("work/photos/")


def test_arms_with_the_settings_of_the_default_job_are_its_runs():
    job = build.to_job(presets.dreambooth(presets.DEFAULT))
    whole = build.to_job(presets.dreambooth("toybox")).base
    size = dataclasses.replace(plan.QUICK, subjects=3)
    studies = plan.plan_studies(
        job, by_name("toybox"), HERE, plan.STUDIES, size, TEXT, whole
    )
    arms = {study.name: study.arms for study in studies}
    usual = arms["fidelity"][plan.TUNED]
    sources = arms["prior_source"]
    assert arms["adapters"]["LoRA, rank 16, all kernels"] == usual
    assert sources[plan.prior_arm("frozen model, photos and noise", 1.0)] == usual
    assert usual == arms["prior"][plan.ON_FROZEN]
    images = sources[plan.prior_arm(plan.IMAGES, 1.0)]
    assert images == arms["prior"][plan.ON] == arms["sampler"][plan.ANCESTRAL]
    for run in images:
        assert run.job.uses_class_images("base")
    for run in arms["adapters"][plan.WHOLE]:
        assert not run.job.base.adapts
        assert run.job.prior == job.prior


def test_the_quick_form_is_part_of_the_full_one(job):
    full, quick = (
        plan.distinct_runs(
            plan.plan_studies(
                job, by_name("tiny"), HERE, plan.STUDIES, size, TEXT, WHOLE
            )
        )
        for size in (plan.FULL, plan.QUICK)
    )
    assert set(quick) <= set(full)
    assert len({run.subject for run in quick}) == 2
    assert len(quick) == 4 + 4 + 4 + 6 + 4 + 4 + 6 + 6 + 10


def test_the_arms_of_the_prior_loss_differ_in_nothing_else(job):
    arms = planned(job, names=["prior"])["prior"]
    for on, off in zip(arms[plan.ON], arms[plan.OFF], strict=True):
        assert on.subject == off.subject
        assert on.job.base.class_rows > 0
        assert off.job.base.class_rows == 0
        rows = on.job.base.class_rows
        base = dataclasses.replace(off.job.base, class_rows=rows)
        assert dataclasses.replace(off.job, base=base) == on.job
    seeds = {(run.subject, run.job.seed) for run in arms[plan.ON]}
    assert len(seeds) == len(arms[plan.ON]) == 24


def test_the_sources_of_the_prior_differ_in_nothing_else(job):
    arms = planned(job, names=["prior_source"])["prior_source"]
    assert len(arms) == 1 + 4 * 3
    assert {len(runs) for runs in arms.values()} == {16}
    usual = arms[plan.prior_arm(plan.IMAGES, 1.0)]
    assert usual[0] == planned(job, names=["prior"])["prior"][plan.ON][0]
    for source, share in plan.FROZEN.items():
        for weight in (0.3, 1.0, 3.0):
            for run, before in zip(
                arms[plan.prior_arm(source, weight)], usual, strict=True
            ):
                assert run.job.frozen_model.from_noise == share
                assert run.job.base.prior_weight == weight
                assert not run.job.uses_class_images("base")
                assert run.job.frozen_prior("sr256") is None
                same = dataclasses.replace(run.job.base, prior_weight=1.0)
                assert before.job == dataclasses.replace(
                    run.job,
                    base=same,
                    prior="class_images",
                    frozen_model=before.job.frozen_model,
                )


def test_the_baselines_tune_what_their_names_say(job):
    """One of them the U-Net, one a word, one nothing; all from the same photos."""
    arms = planned(job, names=["baselines"])["baselines"]
    for usual, naive, inverted, described in zip(*arms.values(), strict=True):
        photos = {run.job.subject.photos for run in (usual, naive, inverted, described)}
        assert len(photos) == 1
        assert usual.job.finetuned_parts == naive.job.finetuned_parts == ("base",)
        assert (usual.job.base.class_rows, naive.job.base.class_rows) == (2, 0)
        assert inverted.job.finetuned_parts == ("text",)
        assert inverted.job.text.steps == TEXT.steps
        assert described.job.finetuned_parts == ()
        words = described.job.subject.description.split()
        assert words == [described.subject.individual.colour, described.subject.noun]


def test_the_arms_of_class_images_differ_in_their_sampler(job):
    arms = planned(job, names=["sampler"])["sampler"]
    for usual, *others in zip(*arms.values(), strict=True):
        samplers = [run.job.class_images.sampler for run in (usual, *others)]
        methods = ["ancestral", "ancestral", "dpmpp_2m", "dpmpp_2m"]
        assert [s.method for s in samplers] == methods
        assert [s.steps for s in samplers] == [4, 40, 2, "ays_if"]
        for run in others:
            same = dataclasses.replace(run.job, class_images=usual.job.class_images)
            assert same == usual.job


def test_the_arms_of_noun_and_identifier(job):
    studies = planned(job)
    for correct, none, wrong, long in zip(
        *(
            studies["noun"][arm]
            for arm in (plan.CORRECT, plan.NO_NOUN, plan.WRONG, plan.WRONG_LONG)
        ),
        strict=True,
    ):
        noun = correct.subject.noun
        assert correct.job.subject.class_noun == noun
        words = (none.job.subject.identifier, none.job.subject.class_noun)
        assert len({*words, noun}) == 3
        assert not none.job.base.class_rows
        assert wrong.job.subject.class_noun in WORDS.nouns
        assert wrong.job.subject.class_noun != noun
        assert wrong.job.subject.photos == correct.job.subject.photos
        assert long.job.base.steps == 3 * wrong.job.base.steps
    for run in studies["identifier"][plan.COMMON]:
        assert run.job.subject.identifier in WORDS.colours
        assert run.job.subject.identifier != run.subject.individual.colour


def test_the_arms_of_super_resolution(job):
    arms = planned(job, names=["sr"])["sr"]
    for low, normal in zip(arms[plan.LOW], arms[plan.NORMAL], strict=True):
        for stage in ("sr256", "sr1024"):
            assert (
                low.job.finetuning(stage).level == job.finetuning(stage).level == 1e-5
            )
            assert normal.job.finetuning(stage).level == 1e-3
            assert normal.job.finetuning(stage).steps == job.finetuning(stage).steps
        assert low.job.base.steps == normal.job.base.steps == 0


@pytest.mark.parametrize("names", [["priors"], [], ["sr", ""]])
def test_studies_that_are_none(job, names):
    with pytest.raises(InputError, match="vanilla, sr, fidelity, prior"):
        planned(job, names=names)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"subjects": 0}, "--subjects=0 should be from 1 to 8"),
        ({"subjects": 9}, "--subjects=9 should be from 1 to 8"),
        ({"seeds": 0}, "--seeds=0 should be 1 or more"),
    ],
)
def test_sizes_that_are_none(settings, told):
    with pytest.raises(InputError, match=told):
        StudySize(**settings)


def test_prompts_stay_within_what_was_taught():
    known = plan.known_prompts({})
    assert known == plan.known_prompts(dataclasses.asdict(WORDS))
    assert known["expression manipulation"] == ()
    assert known["art renditions"] == ("a painting of a [V] [N]",)
    assert "a [V] [N] in the desert" not in known["recontextualisation"]
    assert len(known["accessorisation"]) == 2


def test_the_plan_is_priced_without_what_is_shared_or_done(job, monkeypatch):
    monkeypatch.setattr(cost, "run_flops", lambda store, run, measured: 60.0)
    monkeypatch.setattr(cost, "class_image_flops", lambda store, job: 6000.0)
    names = ["prior", "noun"]
    studies = plan.plan_studies(
        job, by_name("tiny"), HERE, names, plan.QUICK, TEXT, WHOLE
    )
    done = {studies[0].arms[plan.ON][0].name}
    lines = cost.cost_table(mock.Mock(), studies, done, (1.0, 0.02), 0).splitlines()
    # 5 runs to go at a minute, and one set of class images: the other's run is done.
    assert lines[1].split() == ["prior", "6", "1", "105"]
    # No noun has no class images; the first subject's noun is a dog, the second's a
    # teapot, so the wrong ones are a car and a cat.
    assert lines[2].split() == ["noun", "6", "0", "206"]
    assert "12 runs, about 311 minutes" in lines[3]
    assert "20 ms" in lines[3]


def test_class_images_by_other_samplers_are_paid_for(job, monkeypatch):
    monkeypatch.setattr(cost, "run_flops", lambda store, run, measured: 0.0)
    monkeypatch.setattr(cost, "class_image_flops", lambda store, job: 60.0)
    studies = plan.plan_studies(
        job, by_name("tiny"), HERE, ["baselines", "sampler"], plan.QUICK, TEXT, WHOLE
    )
    lines = cost.cost_table(mock.Mock(), studies, (), (1.0, 0.02), 0).splitlines()
    # Of two nouns: one set each by default, and one each by either other sampler.
    assert lines[1].split() == ["baselines", "8", "0", "2"]
    assert lines[2].split() == ["sampler", "6", "0", "6"]


def test_inversion_costs_its_passes(job, tmp_path):
    """Counted in the program that is differentiated, of which weights are no part."""
    store = ImageStore(job, epath.Path(tmp_path))
    cascade, stage = store.cascade, store.cascade.stage("base")
    text = dataclasses.replace(TEXT, subject_rows=4)
    priced = cost.inversion_flops(store, dataclasses.replace(job, text=text))
    parts = {name: store.pretrained_part(name) for name in ("text", "base")}
    batch = memory.batch_shapes(cascade, stage, 4)
    tokens = jax.ShapeDtypeStruct((4, cascade.text.length), jnp.int32)
    batch = {name: batch[name] for name in ("image", "weight", "group")}

    def loss(rows, batch):
        encoder = replace_rows(parts["text"].params, (2018,), rows)
        whole = {"text": encoder, "unet": parts["base"].params}
        applies = parts["base"].apply, parts["text"].apply
        return train_step.batch_loss(
            stage, *applies, train_step.LossConfig(), whole, batch, jax.random.key(0)
        )[0]

    rows = jax.ShapeDtypeStruct((1, cascade.text.encoder.width), jnp.float32)
    there = jaxpr_cost.count_flops(loss, rows, batch | {"tokens": tokens})
    counted = jaxpr_cost.count_flops(jax.grad(loss), rows, batch | {"tokens": tokens})
    assert priced == pytest.approx(2 * there * text.steps, rel=0.02)
    assert 0.5 * priced < counted * text.steps < 1.5 * priced


def test_no_measured_picture_shares_noise_with_a_class_image(job, tmp_path):
    """Neither on the tiny cascade nor by the settings of the studies themselves."""
    store = ImageStore(job, epath.Path(tmp_path))
    requests = store.requests(["a [N]", "a [N] in the snow"], range(100), "", "dog")
    assert [each.name for each in requests[99:101]] == ["00_99", "01_0"]
    assert requests[0].seed == requests[100].seed
    seeds = {request.seed for request in requests}
    real = build.to_job(presets.dreambooth(presets.DEFAULT))
    studies = plan.plan_studies(
        real, by_name("toybox"), HERE, plan.STUDIES, plan.FULL, TEXT, WHOLE
    )
    for run in plan.distinct_runs(studies):
        first, count = run.job.seed, run.job.class_images.count
        assert count >= 100
        assert not seeds & set(range(first, first + count))


def test_longer_fitting_costs_its_steps(job, tmp_path):
    store = ImageStore(job, epath.Path(tmp_path))
    arms = planned(job, plan.QUICK)["noun"]
    short, long = (
        cost.run_flops(store, arms[arm][0], 7) for arm in (plan.WRONG, plan.WRONG_LONG)
    )
    stage = store.cascade.stage("base")
    step = memory.stage_cost(store.cascade, stage, job.base, 4).step_flops
    assert long - short == pytest.approx(2 * job.base.steps * step, rel=1e-6)
    per_second, seconds = cost.measure_speed(store)
    assert per_second > 0
    assert 0 < seconds < 60


def score(low, mean, high):
    return Score(mean, low, high, 3, 9)


@pytest.mark.parametrize(
    ("above", "below", "found"),
    [
        (score(0.5, 0.6, 0.7), score(0.1, 0.2, 0.4), claims.SHOWN),
        (score(0.3, 0.6, 0.7), score(0.1, 0.2, 0.4), claims.OPEN),
        (score(0.1, 0.2, 0.4), score(0.3, 0.6, 0.7), claims.OPEN),
        (score(0.4, 0.5, 0.6), score(0.1, 0.2, 0.4), claims.OPEN),
        (score(0.1, 0.2, 0.4), score(0.5, 0.6, 0.7), claims.REVERSED),
    ],
)
def test_verdicts(above, below, found):
    assert claims.verdict(above, below, score(-0.1, 0.1, 0.2)) == found


def test_where_subjects_differ_more_than_arms_pairs_decide():
    spread = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    apart = np.array([0.02, 0.03, 0.02, 0.04, 0.02])

    def found(one, other):
        arms = {
            arm: {"pres": [np.array([value]) for value in some]}
            for arm, some in ((plan.OFF, one), (plan.ON, other))
        }
        return claims.verdicts("prior", arms)[0]["verdict"]

    assert found(spread + apart, spread) == claims.PAIRED
    assert found(spread, spread + apart) == claims.PAIRED_REVERSED
    assert found(spread, spread + [0.02, -0.01, 0.02, -0.04, 0.02]) == claims.OPEN
    # Of few subjects chance alone would do.
    assert found((spread + apart)[:4], spread[:4]) == claims.OPEN


def values(*means):
    """Four values around each subject's mean."""
    return [mean + np.array([-0.01, 0.0, 0.0, 0.01]) for mean in means]


def test_claims_are_judged_from_values():
    arms = {
        plan.ON: {"pres": values(0.4, 0.5, 0.45), "div": values(0.1, 0.9, 0.5)},
        plan.OFF: {"pres": values(0.7, 0.8, 0.75), "div": values(0.1, 0.8, 0.5)},
    }
    pres, div = claims.verdicts("prior", arms)
    assert pres["metric"] == "pres"
    assert pres["verdict"] == claims.SHOWN
    assert pres["difference"]["mean"] == pytest.approx(0.3)
    assert pres["difference"]["low"] == pytest.approx(0.3)
    assert div["verdict"] == claims.OPEN
    assert claims.verdicts("noun", arms) == []
    swapped = {plan.ON: arms[plan.OFF], plan.OFF: arms[plan.ON]}
    assert claims.verdicts("prior", swapped)[0]["verdict"] == claims.REVERSED


def test_every_claim_is_of_an_arm_that_is_run(job):
    studies = planned(job)
    for claim in claims.CLAIMS:
        arms = {*studies[claim.study], plan.UNTUNED}
        assert {claim.above, claim.below} <= arms, claim
        assert claim.metric in report.METRICS
    for study, arms in claims.PAPER.items():
        assert set(arms) <= {*studies[study], "photos"}


@pytest.mark.parametrize(("mean", "found"), [(0.9, "shown"), (0.875, "not shown")])
def test_goals(mean, found):
    assert claims.target("", score(0.8, mean, 0.95), 0.9)["verdict"] == found


def wave(amplitude, radians, side=66):
    """A wave along the rows, 64 pixels of it inside the border."""
    row = 128 + amplitude * np.sin(radians * np.arange(side))
    return np.round(np.broadcast_to(row[None, :, None], (side, side, 3))).astype(
        np.uint8
    )


@pytest.mark.parametrize("radians", [np.pi / 2, np.pi / 4])
def test_high_frequency_error_of_a_wave(radians):
    flat = np.full((66, 66, 3), 77, np.uint8)
    truth = wave(100, radians)
    expected = 100 / np.sqrt(2) * (2 - 2 * np.cos(radians))
    assert measure.high_frequency_error(flat, truth) == pytest.approx(
        expected, rel=0.01
    )
    assert measure.high_frequency_error(truth, truth) == 0.0
    assert measure.high_frequency_ratio(flat, truth) == 0.0
    assert measure.high_frequency_ratio(wave(50, radians), truth) == pytest.approx(
        0.5, rel=0.02
    )
    assert measure.high_frequency_error(wave(50, radians), truth) == pytest.approx(
        expected / 2, rel=0.02
    )


def test_a_shade_is_no_detail():
    ramp = np.broadcast_to(np.arange(66, dtype=np.uint8)[:, None, None], (66, 66, 3))
    assert measure.high_frequency_error(ramp, np.zeros_like(ramp)) == 0.0


def hand_made(folder):
    """Results of two studies, and their pictures."""
    rng = np.random.default_rng(0)
    for name, size in (("a", 64), ("b", 64), ("large", 256)):
        image = rng.integers(0, 255, (size, size, 3)).astype(np.uint8)
        image_files.save_png(folder / f"{name}.png", image)
    arms = {
        plan.ON: {"pres": values(0.4, 0.5, 0.45), "subject": values(0.6, 0.7, 0.5)},
        plan.OFF: {"pres": values(0.7, 0.8, 0.75), "subject": values(0.6, 0.5, 0.7)},
    }
    cells = [
        {"caption": "<a dog>", "files": ["a.png", "b.png"], "crop": 0},
        {"caption": "256 px", "files": ["large.png"], "crop": 64},
    ]
    about = {"measured": "now", "subjects": ["dog 301"]}
    vanilla = {
        "tables": [{"noun": {"right": dataclasses.asdict(score(0.7, 0.8, 0.9))}}],
        "claims": [claims.target("Class right.", score(0.7, 0.8, 0.9), 0.9)],
        "pictures": [],
        "notes": [],
    }
    read = {"noun": {"right": 0.991, "even": 0.9}}
    return {
        "weights": {
            "text": {"pretrained": True, "fingerprint": "a" * 64},
            "base": {"pretrained": False, "fingerprint": "b" * 64},
        },
        "judge": {"held_out": {"words": read}, "sha256": "c" * 64},
        "studies": {
            "prior": measure.entry("prior", [arms], cells, ["A note."]) | about,
            "vanilla": vanilla | about,
        },
    }


def test_the_page_says_what_was_found(tmp_path):
    folder = epath.Path(tmp_path)
    results = json.loads(json.dumps(hand_made(folder)))
    text = re.sub("</?small>", "", report.write(folder, results).read_text())
    rows = {
        row.split("</td>")[0].removeprefix("<td>"): row
        for row in re.findall("<tr>(.*?)</tr>", text)
    }
    drift = next(row for claim, row in rows.items() if "PRES lower" in claim)
    assert "<b>Shown</b>" in drift
    assert "difference 0.300 [0.300, 0.300]" in drift
    cost_of_it = next(row for claim, row in rows.items() if "costs a little" in claim)
    assert "<b>Not shown</b>" in cost_of_it
    assert "overlap" in cost_of_it
    goal = rows["Class right."]
    assert "<b>Not shown</b>" in goal
    assert "0.80 [0.70, 0.90], wanted 0.90" in goal
    scores = rows[plan.ON]
    assert "0.450 [" in scores
    assert "0.493" in scores  # the paper's
    assert "base: these weights are random" in text
    assert "99.1 %" in text
    assert f"base {'b' * 12}, judge {'c' * 12}." in text
    assert "A note." in text
    assert "Subjects: dog 301." in text
    assert "&lt;a dog&gt;" in text
    # The prior comes first, as in the plan, and nothing is loaded from elsewhere.
    assert text.index('id="the-prior"') < text.index('id="prior-preservation"')
    sources = re.findall('src="([^"]*)"', text)
    assert len(sources) == 2
    assert all(source.startswith("data:") for source in sources)
    assert 'width="256" height="128"' in text
    assert 'width="64" height="64"' in text


@pytest.fixture
def little(monkeypatch):
    """One subject, few pictures, a judge that knows nothing."""
    one = dataclasses.replace(plan.QUICK, subjects=1)
    monkeypatch.setattr(plan, "QUICK", one)
    # Attention of this cascade has no rank above 16.
    ranks = {
        name: (rank // 4, kernels) for name, (rank, kernels) in plan.ADAPTERS.items()
    }
    monkeypatch.setattr(plan, "ADAPTERS", ranks)
    monkeypatch.setattr(judge_readings, "PICTURES", 2)
    monkeypatch.setattr(judge_readings, "CLASS_PICTURES", 2)
    monkeypatch.setattr(measure, "HELD_OUT", 4)
    monkeypatch.setattr(judge_readings, "TAKES", 1)
    monkeypatch.setattr(
        runner, "shipped_vocabulary", lambda _: dataclasses.asdict(WORDS)
    )
    blank = jnp.zeros((1, 64, 64, 3))
    params = Network(toybox_judge.CONFIG).init(jax.random.key(0), blank)["params"]
    monkeypatch.setattr(toybox_judge, "load", lambda: toybox_judge.Judge(dict(params)))


@pytest.mark.slow
def test_the_four_way_comparison_on_the_tiny_cascade(job, little, tmp_path):
    """Every arm is run, measured by the same four scores, and on the page."""
    folder = epath.Path(tmp_path)
    names = ["baselines", "sampler", "prior_source", "adapters"]
    path = runner.run_studies(job, folder, names, plan.QUICK, TEXT, WHOLE)
    results = json.loads((folder / "results.json").read_text())["studies"]
    for scores in results["prior_source"]["tables"][0].values():
        assert scores.pop("seconds")["mean"] > 0
    adapters = results["adapters"]["tables"][0]
    costs = {
        arm: [scores.pop(n)["mean"] for n in ("seconds_tuning", "memory", "export")]
        for arm, scores in adapters.items()
    }
    for arm in plan.ADAPTERS:  # less to keep, and less to export
        assert 0 < costs[arm][1] < costs[plan.WHOLE][1]
        assert 0 < costs[arm][2] < costs[plan.WHOLE][2] / 2
    for name, arms in planned(job, plan.QUICK, names).items():
        [table] = results[name]["tables"]
        assert set(table) == set(arms)
        for scores in table.values():
            assert set(scores) == {"subject", "prompt", "pres", "div"}
            for score in scores.values():
                assert score["low"] <= score["mean"] <= score["high"]
    # What tunes no network leaves the class as it was; the other two do not.
    pres = {arm: each["pres"]["mean"] for arm, each in table_of(results).items()}
    assert pres[plan.INVERTED] == pres[plan.DESCRIBED]
    assert pres[plan.DREAMBOOTH] != pres[plan.INVERTED] != pres[plan.NAIVE]
    prompts = {
        arm: image_files.read_png_metadata(
            folder / "pictures" / "subject" / name / "00_0.png"
        )["prompt"]
        for arm, name in (
            (plan.DREAMBOOTH, "dog_301"),
            (plan.INVERTED, "dog_301.inverted"),
            (plan.DESCRIBED, "dog_301.described"),
        )
    }
    assert re.fullmatch("a [a-z]+ dog in the snow", prompts[plan.DREAMBOOTH])
    assert re.fullmatch("a [a-z]+ in the snow", prompts[plan.INVERTED])
    assert prompts[plan.DESCRIBED].startswith("a ")
    text = path.read_text()
    for arm in (*table_of(results), plan.MORE_STEPS, plan.SOLVER, plan.LISTED):
        assert f"<td>{arm}</td>" in text
    assert "0.668" in text
    assert "The descriptions: " in text


def table_of(results):
    return results["baselines"]["tables"][0]


@pytest.mark.slow
def test_all_studies_on_the_tiny_cascade(job, little, tmp_path, monkeypatch):
    """Stopped once and run twice."""
    folder = epath.Path(tmp_path)
    run, started = dreambooth.run, []

    def stopping(job, work, overwrite):
        started.append(work.name)
        if len(started) == 2:
            raise Stopped("stopped as asked")
        return run(job, work, overwrite)

    monkeypatch.setattr(dreambooth, "run", stopping)
    with pytest.raises(Stopped):
        runner.run_studies(job, folder, plan.STUDIES, plan.QUICK, TEXT, WHOLE)
    path = runner.run_studies(job, folder, plan.STUDIES, plan.QUICK, TEXT, WHOLE)
    # The first run is not done again, the one that was stopped is.
    assert started[1] == started[2]
    assert len(started) == len(set(started)) + 1 == 24
    results = json.loads((folder / "results.json").read_text())
    assert set(results["studies"]) == set(plan.STUDIES)
    # Of one subject only this much can be claimed: every claim has its verdict.
    found = [
        (study, claim["text"])
        for study, each in results["studies"].items()
        for claim in each["claims"]
    ]
    assert set(found) >= {(claim.study, claim.text) for claim in claims.CLAIMS}
    assert "a statue of a" in " ".join(results["studies"]["fidelity"]["notes"])
    assert "these weights are random" in path.read_text()
    drawn = folder / "pictures" / "subject" / "dog_301" / "drawn.json"
    before = drawn.stat().mtime
    runner.run_studies(job, folder, ["prior"], plan.QUICK, TEXT, WHOLE)
    assert len(started) == 24
    assert drawn.stat().mtime == before
    again = json.loads((folder / "results.json").read_text())
    assert set(again["studies"]) == set(plan.STUDIES)
    assert again["studies"]["prior"]["tables"] == results["studies"]["prior"]["tables"]
