"""The questions to the judges of the benchmarks, byte for byte, as a recording server receives them."""

import base64
import io

import pytest
from PIL import Image, ImageOps
from support.stub_judge import KINDS, StubJudge

from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks import gedit_requests, imgedit_requests, rededit_requests
from firered_lit.evaluation.protocols import Asking, Item
from firered_lit.judges.client import Client
from firered_lit.judges.reply import Kind
from firered_lit.judges.request import ChatRequest, user

ORIENTATION = 0x0112
INSTRUCTION = "把“春”改成 <b>“夏”</b>"
PROMPTS = {
    "_context_no_delimit": 'CONTEXT, answer {"score": []}',
    "_prompts_0shot_two_image_edit_rule": "TWO IMAGES",
    "_prompts_0shot_tie_rule_SC": "EDIT <instruction>",
    "_prompts_0shot_rule_PQ": "QUALITY",
}


def gradient(size, mode="RGB"):
    """A picture without two equal quarters."""
    image = Image.linear_gradient("L").resize(size)
    across = image.transpose(Image.Transpose.ROTATE_90).resize(size)
    return Image.merge("RGB", (image, across, ImageOps.invert(image))).convert(mode)


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, format=form, **options)
    return file.getvalue()


def turned_jpeg(size):
    """A JPEG file that is to be shown turned by a quarter."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return saved(gradient(size), "JPEG", exif=exif)


def item(suite):
    return Item(suite, "7", "text", "zh", INSTRUCTION, ("text/text-7.png",), "text/text-7.png")


@pytest.fixture
def sent():
    """Sends requests to a recording server; returns the bodies that came."""

    def send(requests):
        with StubJudge() as judge, Client(judge.url, timeout=20.0) as client:
            for request in requests:
                assert client.ask(request).kind is Kind.ANSWERED
            return judge.bodies

    return send


def shown(part):
    """The type and the file of a picture in a body."""
    kind, _, data = part["image_url"]["url"].partition(";base64,")
    assert set(part["image_url"]) == {"url"}
    return kind.removeprefix("data:"), base64.b64decode(data)


def pixels(data):
    return Image.open(io.BytesIO(data))


def test_rededit_sends_both_pictures_as_png_of_their_own_sizes_then_the_prompt(sent) -> None:
    source = gradient((40, 30), "RGBA")
    edited = gradient((24, 50))
    prompt = "Judge: <edit_prompt>!"
    files = saved(source, "PNG"), saved(edited, "WEBP", lossless=True)
    (body,) = sent(rededit_requests.requests(item("rededit_cn"), files[:1], files[1], prompt, Asking()))

    assert list(body) == ["model", "messages", "temperature", "top_p", "max_tokens"]
    assert body["model"] == "gemini-3-flash-preview"
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.1, 0.95, 8192)
    (message,) = body["messages"]
    parts = message["content"]
    assert [part["type"] for part in parts] == ["image_url", "text", "image_url", "text", "text"]
    assert [parts[i]["text"] for i in (1, 3, 4)] == [
        "这是原图A",
        "这是编辑后的图B。请进行评估。",
        f"Judge: {INSTRUCTION}!",
    ]
    for part, original in ((parts[0], source), (parts[2], edited)):
        kind, data = shown(part)
        assert kind == "image/png"
        assert data == saved(original.convert("RGB"), "PNG")
        assert pixels(data).size == original.size


def test_rededit_does_not_turn_a_picture_by_its_exif_tag(sent) -> None:
    source = turned_jpeg((40, 30))
    (body,) = sent(rededit_requests.requests(item("rededit_en"), [source], source, "", Asking()))
    _, data = shown(body["messages"][0]["content"][0])
    assert pixels(data).size == (40, 30)


def test_imgedit_sends_the_prompt_then_both_files_as_they_are_called_png(sent) -> None:
    source = turned_jpeg((40, 30))
    edited = saved(gradient((16, 16), "RGBA"), "PNG")
    requests = imgedit_requests.requests(item("imgedit"), [source], edited, "<edit_prompt> - <edit_prompt>", Asking())
    (body,) = sent(requests)

    assert list(body) == ["model", "messages", "stream"]
    assert body["model"] == "gpt-4o"
    assert body["stream"] is False
    parts = body["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "image_url"]
    assert parts[0]["text"] == f"{INSTRUCTION} - {INSTRUCTION}"
    assert shown(parts[1]) == ("image/png", source)
    assert shown(parts[2]) == ("image/png", edited)


def test_gedit_asks_semantics_of_both_and_quality_of_the_edited_picture_in_the_sources_size(sent) -> None:
    source = gradient((40, 30), "P")
    edited = gradient((24, 50), "RGBA")
    files = saved(source, "PNG"), saved(edited, "PNG")
    first, second = sent(gedit_requests.requests(item("gedit_cn"), files[:1], files[1], PROMPTS, Asking()))

    for body in (first, second):
        assert list(body) == ["model", "messages", "max_tokens"]
        assert body["model"] == "gpt-4.1"
        assert body["max_tokens"] == 1400
    semantics = first["messages"][0]["content"]
    quality = second["messages"][0]["content"]
    assert [part["type"] for part in semantics] == ["text", "image_url", "image_url"]
    assert [part["type"] for part in quality] == ["text", "image_url"]
    assert semantics[0]["text"] == f'CONTEXT, answer {{"score": []}}\nTWO IMAGES\nEDIT {INSTRUCTION}'
    assert quality[0]["text"] == 'CONTEXT, answer {"score": []}\nQUALITY'

    before = saved(source.convert("RGB"), "JPEG", quality=75)
    after = saved(edited.convert("RGB").resize((40, 30)), "JPEG", quality=75)
    assert shown(semantics[1]) == ("image/jpeg", before)
    assert shown(semantics[2]) == shown(quality[1]) == ("image/jpeg", after)


def test_gedit_turns_a_source_by_its_exif_tag_after_the_edited_picture_took_its_stored_size(sent) -> None:
    edited = saved(gradient((64, 64)), "PNG")
    first, _ = sent(gedit_requests.requests(item("gedit_en"), [turned_jpeg((40, 30))], edited, PROMPTS, Asking()))
    _, before, after = first["messages"][0]["content"]
    assert pixels(shown(before)[1]).size == (30, 40)
    assert pixels(shown(after)[1]).size == (40, 30)


BUILDERS = {
    "rededit": (rededit_requests.requests, "<edit_prompt>"),
    "imgedit": (imgedit_requests.requests, "<edit_prompt>"),
    "gedit": (gedit_requests.requests, PROMPTS),
}


@pytest.mark.parametrize(("build", "prompt"), BUILDERS.values(), ids=BUILDERS)
def test_a_users_settings_join_the_official_ones_and_none_removes_one(build, prompt) -> None:
    picture = saved(gradient((8, 8)), "PNG")
    asking = Asking("judge-7b", {"temperature": 0, "max_tokens": None, "stream": None, "seed": 3})
    for request in build(item("a"), [picture], picture, prompt, asking):
        assert request.model == "judge-7b"
        assert request.settings["temperature"] == 0
        assert request.settings["seed"] == 3
        assert not {"max_tokens", "stream"} & set(request.settings)


@pytest.mark.parametrize(("build", "prompt"), BUILDERS.values(), ids=BUILDERS)
def test_the_same_files_make_the_same_requests(build, prompt) -> None:
    picture = saved(gradient((8, 8)), "PNG")
    first, again = (build(item("a"), [picture], picture, prompt, Asking()) for _ in range(2))
    assert [request.body() for request in first] == [request.body() for request in again]


DAMAGED = {"text": b"no picture", "empty": b"", "torn": saved(gradient((64, 64)), "PNG")[:120]}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize(("build", "prompt"), BUILDERS.values(), ids=BUILDERS)
def test_a_damaged_picture_is_named_in_one_line(build, prompt, data) -> None:
    picture = saved(gradient((8, 8)), "PNG")
    for source, edited, name in ((data, picture, "text/text-7.png"), (picture, data, "edited picture")):
        with pytest.raises(UserError, match=name) as caught:
            build(item("a"), [source], edited, prompt, Asking())
        assert "\n" not in str(caught.value)


# The stub of the other tests


def question(number):
    return ChatRequest("judge", [user(f"How good is number {number}?")])


def test_the_stub_answers_each_request_by_itself_alone_whatever_came_before() -> None:
    answers = []
    for order in (range(30), reversed(range(30))):
        with StubJudge() as judge, Client(judge.url) as client:
            answers.append({number: client.ask(question(number)).text for number in order})
            assert judge.count == 30
    assert answers[0] == answers[1]
    assert len(set(answers[0].values())) == 30


EXPECTED = {
    "limited": Kind.ANSWERED,
    "half": Kind.ANSWERED,
    "late": Kind.ANSWERED,
    "broken": Kind.ANSWERED,
    "refused": Kind.REFUSED,
    "filtered": Kind.REFUSED,
    "declined": Kind.ANSWERED,
    "garbage": Kind.ANSWERED,
    "garbage_once": Kind.ANSWERED,
    "foreign": Kind.ANSWERED,
    "cut": Kind.CUT,
    "gone": Kind.ERROR,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_planted_fault_reaches_the_client_as_it_is_called(kind) -> None:
    judge = StubJudge(plant={kind: 1.0}, retry_after=0.05, lateness=5.0)
    with judge, Client(judge.url, timeout=0.5, retries=1, backoff=0.01) as client:
        reply = client.ask(question(1))
    assert reply.kind is EXPECTED[kind]
    assert judge.faults[kind] == (2 if kind == "gone" else 1)
