"""Drawing: one seed one picture, styles and options, guides, and replay to the pixel for files of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sojourn import engine
from sojourn.again import replay
from sojourn.errors import DataError, InvalidInput, NotFound, PromptError, Unsupported
from sojourn.picture import Picture, read_recipe
from sojourn.schema import Prompt
from sojourn.wishes import conditions

KINDS = ("flow", "dcgan", "vae")


@pytest.fixture(scope="module")
def models(packages_folder: Path) -> dict[str, engine.Model]:
    return {name: engine.load(packages_folder / name) for name in (*KINDS, "lm")}


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.pil, np.int16)


@pytest.mark.parametrize("kind", KINDS)
def test_picture_i_is_seed_plus_i(models: dict[str, engine.Model], kind: str) -> None:
    prompt = "" if kind == "vae" else "3"
    four = models[kind].imagine(prompt, n=4, seed=10)
    assert [item.seed for item in four] == [10, 11, 12, 13]
    alone = models[kind].imagine(prompt, n=1, seed=12)
    assert np.abs(pixels(four[2]) - pixels(alone[0])).max() <= 2
    assert np.abs(pixels(four[2]) - pixels(four[3])).max() > 2


def test_words_steps_and_guidance_change_the_picture(models: dict[str, engine.Model]) -> None:
    model = models["flow"]
    base = pixels(model.imagine("3", n=1, seed=1)[0])
    for other in ("8", "3 --steps 9", "3 --guidance 7"):
        assert np.abs(base - pixels(model.imagine(other, n=1, seed=1)[0])).max() > 0, other


def test_a_negative_and_weights_bend_the_walk(models: dict[str, engine.Model]) -> None:
    model = models["flow"]
    base = pixels(model.imagine("3", n=1, seed=1)[0])
    for other in ("3 --no 8", "3::2 8::-0.5", "3:: 5::"):
        assert np.abs(base - pixels(model.imagine(other, n=1, seed=1)[0])).max() > 0, other


def test_the_mask_keeps_the_rest_and_a_source_at_zero_stays(models: dict[str, engine.Model]) -> None:
    model = models["flow"]
    source = model.imagine("5", n=1, seed=3)[0].pil
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (4, 0, 8, 8))
    drawn = pixels(model.imagine("1", n=2, seed=4, source=source, mask=mask)[0])
    assert np.abs(drawn - np.asarray(source, np.int16))[:, :4].max() == 0
    assert np.abs(drawn - np.asarray(source, np.int16))[:, 4:].max() > 1
    same = pixels(model.imagine("1", n=1, seed=4, source=source, strength=0.0)[0])
    assert np.abs(same - np.asarray(source, np.int16)).max() <= 1


@pytest.mark.parametrize(
    ("kind", "prompt", "error", "words"),
    [
        ("flow", "3 --tile", Unsupported, "--tile"),
        ("flow", "3 --chaos 50 --sref a.png", Unsupported, "--chaos, --sref"),
        ("vae", "3 --steps 4 --guidance 2", None, ""),
        ("dcgan", "3 --guidance 2", Unsupported, "--guidance"),
        ("flow", "3 --style noto", Unsupported, "--style"),
        ("flow", "three", NotFound, "nearest of 10"),
        ("flow", "3 --steps 1e9", PromptError, "must be 1..1000"),
        ("lm", "春", Unsupported, "does not draw"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(
    models: dict[str, engine.Model], kind: str, prompt: str, error: type[Exception] | None, words: str
) -> None:
    if error is None:
        with pytest.raises(Unsupported, match="--guidance"):
            models[kind].imagine(prompt)
        return
    with pytest.raises(error, match=words):
        models[kind].imagine(prompt)


def test_frames_show_the_walk(models: dict[str, engine.Model]) -> None:
    model = models["flow"]
    frames = list(model.walk(model.request("3", n=2, seed=0)))
    assert [frame.step for frame in frames] == [1, 2, 3, 4]
    assert len(frames[0].pictures) == 2
    first, last = (np.asarray(frames[i].pictures[0], np.int16) for i in (0, -1))
    assert np.abs(first - last).max() > 0


def test_replay_of_ten_files_is_equal_to_the_pixel(
    models: dict[str, engine.Model], packages_folder: Path, tmp_path: Path
) -> None:
    """Ten files of different kinds: families, prompts, options, guides, batches."""
    flow, dcgan, vae = (models[kind] for kind in KINDS)
    source = flow.imagine("5", n=1, seed=3)[0].pil
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 8, 4))
    drawn = [
        (flow, flow.imagine("3", n=4, seed=5)[2]),
        (flow, flow.imagine("3", n=1, seed=5)[0]),
        (flow, flow.imagine("3 --steps 7 --guidance 2.5", n=3, seed=8)[1]),
        (flow, flow.imagine("3 --no 8", n=2, seed=8)[1]),
        (flow, flow.imagine("3::2 8::-0.5", n=2, seed=8)[0]),
        (flow, flow.imagine("1", n=2, seed=9, source=source, strength=0.7)[1]),
        (flow, flow.imagine("1", n=2, seed=9, source=source, mask=mask)[0]),
        (flow, list(flow.sample([Prompt.plain(str(i % 10)) for i in range(10)], 100, batch=4))[9]),
        (dcgan, dcgan.imagine("4", n=4, seed=1)[3]),
        (vae, vae.imagine("", n=4, seed=1)[3]),
    ]
    for i, (model, picture) in enumerate(drawn):
        path = picture.save(tmp_path / f"{i}.png")
        inputs = {"source": source, "mask": mask} if picture.recipe["inputs"] else {}
        inputs = {name: inputs[name] for name in picture.recipe["inputs"]}
        again, gap = replay(path, model=model, inputs=inputs)
        assert gap == 0, f"{i}: {picture.recipe}"
        assert again.recipe == picture.recipe


def test_replay_notices_a_changed_pixel_and_a_wrong_source(models: dict[str, engine.Model], tmp_path: Path) -> None:
    flow = models["flow"]
    picture = flow.imagine("3", n=1, seed=5)[0]
    changed = picture.pil.copy()
    changed.putpixel((0, 0), 255 - int(changed.getpixel((0, 0))))  # type: ignore[arg-type]
    path = Picture(changed, picture.seed, picture.recipe).save(tmp_path / "a.png")
    assert replay(path, model=flow)[1] > 0
    edited = flow.imagine("1", n=1, seed=9, source=picture.pil)[0].save(tmp_path / "b.png")
    with pytest.raises(InvalidInput, match="give the same one as --source"):
        replay(edited, model=flow)
    Image.new("L", (8, 8)).save(tmp_path / "c.png")
    with pytest.raises(InvalidInput, match="holds no recipe"):
        replay(tmp_path / "c.png", model=flow)
    with pytest.raises(NotFound, match="is not here"):
        replay(path)


@pytest.mark.parametrize("wrong", [
    {"rows": 10**9}, {"rows": 0}, {"row": 9}, {"row": -1}, {"threads": 0}, {"threads": 10**12}, {"threads": [1]},
    {"strength": "x"}, {"inputs": {"x": "y"}}, {"inputs": 3}, {"options": 3}, {"seed": None}, {"prompt": "3 --n x"},
], ids=str)  # fmt: skip
def test_a_recipe_that_somebody_wrote_is_one_line(
    wrong: dict[str, object], models: dict[str, engine.Model], tmp_path: Path
) -> None:
    picture = models["flow"].imagine("3", n=1, seed=5)[0]
    path = Picture(picture.pil, picture.seed, {**picture.recipe, **wrong}).save(tmp_path / "a.png")
    with pytest.raises(InvalidInput):
        replay(path, model=models["flow"])


def test_damaged_pixels_are_one_line(models: dict[str, engine.Model], tmp_path: Path) -> None:
    path = models["flow"].imagine("3", n=1, seed=5)[0].save(tmp_path / "a.png")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"IDAT") + 20])
    with pytest.raises(DataError, match="truncated"):
        replay(path, model=models["flow"])
    size = data.index(b"IHDR") + 4
    path.write_bytes(data[:size] + (60_000).to_bytes(4, "big") * 2 + data[size + 8 :])
    with pytest.raises(InvalidInput):
        replay(path, model=models["flow"])


def test_a_picture_and_a_mask_may_be_given_as_they_were_uploaded(
    models: dict[str, engine.Model], tmp_path: Path
) -> None:
    """An upload keeps no alpha that hides nothing; where a mask is transparent is where it may change."""
    flow = models["flow"]
    source = flow.imagine("5", n=1, seed=3)[0].pil.convert("RGB")
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 8, 4))
    clear = Image.merge("RGBA", [Image.new("L", (8, 8), 9)] * 3 + [mask.point(lambda v: 255 - v)])
    path = flow.imagine("1", n=1, seed=9, source=source, mask=mask)[0].save(tmp_path / "a.png")
    assert replay(path, model=flow, inputs={"source": source.convert("RGBA"), "mask": clear})[1] == 0
    with pytest.raises(InvalidInput, match="--mask"):
        replay(path, model=flow, inputs={"source": source, "mask": clear.convert("RGB")})
    plain = flow.imagine("1", n=1, seed=9)[0].save(tmp_path / "b.png")
    assert replay(plain, model=flow, inputs={"source": source, "mask": mask})[1] == 0, "it was drawn from none"


def test_options_of_a_family_are_taken_by_name(models: dict[str, engine.Model]) -> None:
    drawn = models["flow"].imagine("3", n=1, seed=5, sampler="euler", steps=7)[0]
    assert (drawn.recipe["options"]["sampler"], drawn.recipe["options"]["steps"]) == ("euler", 7)
    with pytest.raises(InvalidInput, match='options of "flow": label_weight is 99'):
        models["flow"].imagine("3", n=1, label_weight=99)
    with pytest.raises(InvalidInput, match="unknown parameter --sampling"):
        models["flow"].imagine("3", n=1, sampling="euler")


def test_a_file_holds_its_recipe_and_a_notebook_gets_a_picture(models: dict[str, engine.Model], tmp_path: Path) -> None:
    four = models["flow"].imagine("3", n=4, seed=5)
    assert four._repr_png_().startswith(b"\x89PNG")
    assert four.grid.size[0] == four.grid.size[1]
    path = four[1].save(tmp_path / "x.png")
    recipe = read_recipe(path)
    assert recipe == json.loads(json.dumps(dict(four[1].recipe)))
    assert recipe["seed"] == 6
    assert recipe["rows"] == 4
    assert recipe["row"] == 1


def test_many_samples_do_not_depend_on_where_they_stopped(models: dict[str, engine.Model]) -> None:
    rows = [Prompt.plain(str(i % 10)) for i in range(10)]
    whole = list(models["flow"].sample(rows, 7, batch=4))
    tail = list(models["flow"].sample(rows, 7, batch=4, start=4))
    assert len(whole) == 10
    for a, b in zip(whole[4:], tail, strict=True):
        assert np.array_equal(pixels(a), pixels(b))


def test_writing_goes_on_from_the_prompt_in_whole_characters(models: dict[str, engine.Model]) -> None:
    pieces = list(models["lm"].write("春", seed=3))
    again = list(models["lm"].write("春", seed=3))
    assert pieces == again
    assert "".join(pieces)
    assert "\ufffd" not in "".join(pieces)


def test_one_weight_is_one_whatever_its_size(models: dict[str, engine.Model]) -> None:
    """Weights are shares; only those that all but cancel are held back."""
    drawn = {
        words: pixels(models["flow"].imagine(words, n=1, seed=5)[0]) for words in ("3", "3::0.02", "3::0.05", "3::5")
    }
    assert all(np.abs(drawn["3"] - other).max() <= 1 for other in drawn.values())
    request = models["flow"].request("3::1 7::-0.95", n=1, seed=5)
    guide = conditions(models["flow"].package, request)[1][0]
    assert [round(weight, 2) for _, weight in guide.terms] == [5.13, -4.87]


def test_a_package_of_classes_leaves_out_one(models: dict[str, engine.Model]) -> None:
    assert len(models["flow"].imagine("7 --no 1", n=1, seed=0)) == 1
    with pytest.raises(InvalidInput, match="can leave out one of them; found 1, 2"):
        models["flow"].imagine("7 --no 1,2", n=1, seed=0)


def test_the_last_seed_can_be_replayed(models: dict[str, engine.Model]) -> None:
    top = 2**53 - 1
    assert models["flow"].imagine("7", n=2, seed=top - 1)[1].recipe["seed"] == top
    with pytest.raises(InvalidInput, match="choose a smaller seed"):
        models["flow"].imagine("7", n=2, seed=top)
    with pytest.raises(InvalidInput, match="choose a smaller seed"):
        next(models["flow"].sample([Prompt.plain("7")] * 2, top))


def test_a_walk_that_is_looked_at_leaves_gradients_as_they_are(models: dict[str, engine.Model]) -> None:
    walk = models["flow"].walk(models["flow"].request("7", n=1, seed=0))
    frame = next(walk)
    assert torch.is_grad_enabled()
    assert not frame.state.x.requires_grad
    words = models["lm"].writes("春", seed=0)
    next(words)
    assert torch.is_grad_enabled()
