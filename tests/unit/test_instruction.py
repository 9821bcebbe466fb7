"""Re-indexing: every mention follows its image, everything else stays, and permuting back gives the prompt again."""

import json
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.instruction import draw, mentions, orders, reindex
from datamodules.numerals import HAN, ORDINALS, WORDS
from firered_lit.errors import UserError

SWAPPED = [  # two references that change places
    # nouns, case, spacing, signs
    ("Put the hat of image 1 on image 2.", "Put the hat of image 2 on image 1."),
    ("Figure 1 and Figure 2", "Figure 2 and Figure 1"),
    ("FIG. 1 over fig.2", "FIG. 2 over fig.1"),
    ("Fig 2's sky behind fig 1", "Fig 1's sky behind fig 2"),
    ("use PICTURE 2 as the background of Picture 1", "use PICTURE 1 as the background of Picture 2"),
    ("Photo 1: a cat. Photo 2: a dog.", "Photo 2: a cat. Photo 1: a dog."),
    ("Match the palette of reference 2", "Match the palette of reference 1"),
    ("take reference image 1, keep Ref 2", "take reference image 2, keep Ref 1"),
    ("the pose in image  2", "the pose in image  1"),
    ("image1's dress on image2", "image2's dress on image1"),
    ("image #1 into Image No. 2", "image #2 into Image No. 1"),
    ("image number 2 (the room), image_1, image-1", "image number 1 (the room), image_2, image-2"),
    ("the woman (image 1) hugs the man (Image 2)", "the woman (image 2) hugs the man (Image 1)"),
    ("the woman in image (2)", "the woman in image (1)"),
    ("<image1> wears the coat of <image 2>", "<image2> wears the coat of <image 1>"),
    ("@img1 next to [Picture 2]", "@img2 next to [Picture 1]"),
    ("#1 stands beside #2", "#2 stands beside #1"),
    ("Put # 2 to the left of #1.", "Put # 1 to the left of #2."),
    ("photograph 02 in the style of photograph 01", "photograph 01 in the style of photograph 02"),
    # lists and ranges
    ("Merge images 1 and 2", "Merge images 2 and 1"),
    ("Merge Images 1, 2 together", "Merge Images 2, 1 together"),
    ("Blend photos 1 & 2", "Blend photos 2 & 1"),
    ("Blend figs. 1 + 2", "Blend figs. 2 + 1"),
    ("Blend image 1 and 2.", "Blend image 2 and 1."),
    ("images 1-2 side by side", "images 2-1 side by side"),
    ("pictures #1 or #2", "pictures #2 or #1"),
    # words and ordinals
    ("the shoes of image one on image two", "the shoes of image two on image one"),
    ("Image One with IMAGE TWO", "Image Two with IMAGE ONE"),
    ("combine images one and two", "combine images two and one"),
    ("the first image on top of the second image", "the second image on top of the first image"),
    ("The First photo, the SECOND picture", "The Second photo, the FIRST picture"),
    ("the 1st image and the 2nd image", "the 2nd image and the 1st image"),
    ("the first and second images", "the second and first images"),
    ("the first and the second reference image", "the second and the first reference image"),
    ("the dog from the first image onto the second.", "the dog from the second image onto the first."),
    ("the girl of the first image into the second one.", "the girl of the second image into the first one."),
    ("the first of the two images", "the second of the two images"),
    ("Images 1,2 in a row", "Images 2,1 in a row"),
    ("use the last image as the background", "use the first image as the background"),
    ("My second photo is the background", "My first photo is the background"),
    # Chinese
    ("把图1的帽子戴到图2的人头上", "把图2的帽子戴到图1的人头上"),
    ("将图 1 和图 2 合成", "将图 2 和图 1 合成"),
    ("图一的猫放进图二", "图二的猫放进图一"),
    ("图片1与图片2", "图片2与图片1"),
    ("图像2的风格用于照片1", "图像1的风格用于照片2"),
    ("参考图1，修改参考图2", "参考图2，修改参考图1"),
    ("参考2的配色", "参考1的配色"),
    ("第一张图的衣服换到第二张图", "第二张图的衣服换到第一张图"),
    ("第1张图片放在第2张图片左边", "第2张图片放在第1张图片左边"),
    ("第二幅图的背景", "第一幅图的背景"),
    ("第一张的人物，第二张的背景", "第二张的人物，第一张的背景"),
    ("第一个图和第二个图", "第二个图和第一个图"),
    ("第一张照片里的人和第二张参考图里的狗", "第二张照片里的人和第一张参考图里的狗"),
    ("第一和第二张图", "第二和第一张图"),
    ("图1和2拼在一起", "图2和1拼在一起"),
    ("图1、2左右排列", "图2、1左右排列"),
    ("图１换成图２", "图２换成图１"),
    ("图①的花放到图②", "图②的花放到图①"),
    ("1号图的车换成2号图的", "2号图的车换成1号图的"),
    ("一号图片和二号图片", "二号图片和一号图片"),
    ("最后一张图的天空", "第一张图的天空"),
    ("用图一把图二的天空换掉", "用图二把图一的天空换掉"),
    ("和图一一样的颜色", "和图二一样的颜色"),
    ("图一样式用于图二", "图二样式用于图一"),
    ("图一下方加图二角色", "图二下方加图一角色"),
    ("图1年轻女子和图2米色外套", "图2年轻女子和图1米色外套"),
    ("图1只保留人物", "图2只保留人物"),
    ("提升图2层次感、图1分辨率", "提升图1层次感、图2分辨率"),
    ("第 一 张图和第 2 张 图片", "第 二 张图和第 1 张 图片"),
    ("圖1的人穿第二張圖的衣服", "圖2的人穿第一張圖的衣服"),
    # mixed
    ("把 image 1 的狗放到 Image2 里", "把 image 2 的狗放到 Image1 里"),
    ("Put 图1 behind Figure 2", "Put 图2 behind Figure 1"),
    ("Picture 1的人穿Picture 2的衣服", "Picture 2的人穿Picture 1的衣服"),
    # a mention beside what only looks like one
    ("In image 1, 2 dogs are playing", "In image 2, 2 dogs are playing"),
    ("image 1 and 2 cats", "image 2 and 2 cats"),
    ("Scale image 2 to 1920x1080 and version 2", "Scale image 1 to 1920x1080 and version 2"),
    ("图1和2只猫放到图2", "图2和2只猫放到图1"),
    ("图1中加2张照片", "图2中加2张照片"),
    ("make image 1 more vivid", "make image 2 more vivid"),
    ('Write "Figure 1" below image 1', 'Write "Figure 1" below image 2'),
    ('Change the text "Image 1" to "Image 2" in image 2', 'Change the text "Image 1" to "Image 2" in image 1'),
    ("将“图1”中的人放到“图2”里", "将“图2”中的人放到“图1”里"),
    ("在图2上写“图1”", "在图1上写“图1”"),
]

UNCHANGED = [
    "version 2", "2 images", "combine the two images", "both images", "one of the images", "another image",
    "a second photo", "Figure skating", "an image 1920x1080", "image 1920 x 1080", "image 1x2 m", "image 2x larger",
    "make the image 2 times larger", "crop the image 1:1", "image 16:9", "figure 1.5", "image 2%",
    "reduce image 2 % of noise", "image 1/2", "image 1,000", "scale image 2.5", "image1.png", "save as photo_2.JPG",
    "image 2 pixels wider", "rotate the photo 2 degrees", "preference 1", "configure 1", "image 10", "image 21",
    "IMG_0001", "image 1a", "image 2D art", "Figure 2-tone", "add to the image two cats", "give this image 2 suns",
    "make this image one of a kind", "image one day", "edit the images one by one", "a 5 second photo",
    "a 1-second image", "add a first photo frame", "her second picture", "the second photo from the left",
    "the first picture on the wall", "the second picture book", "#1 fan", "#1a2b3c", "the colour #111111", "#222",
    "we are #1", "player #2", "a mug that says #1 Dad", "the first two images", "first two people", "images 1st",
    "in 2 seconds", "Edit the image 1. add a hat 2. remove the man", "in the image I see 2 cats", "image", "",
    "imagine 1 cat", 'a sign that reads "Image 1"', "the words 'Photo 2' in red",
    'replace the text "Fig. 1" with "Fig. 2"', "图一样", "与原图一致", "给图一个标题", "在图四周加边框", "图片二维码",
    "图片一角加水印", "图片一侧", "生成图1张", "放大图片2倍", "图1920", "图1:1", "图片16:9", "图2.0", "图3D化",
    "图1/2", "两张图", "前两张图", "2张图片", "地图1", "拼图2", "企图一举", "构图1", "第一个图标", "第二个图案",
    "第二个图层", "第一张桌子", "第二张椅子", "第二次修图", "照片一键美化", "图一百", "图二次元化", "图十字",
    "第一个人", "一寸照片2寸", "修改图片1、删除人物2、添加文字", "文字改为“图2”", "加上“图1”字样", "图一定要清晰",
    "版本2", "图片一起调亮",
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "expected"), SWAPPED)
def test_two_references_change_places(prompt, expected):
    assert reindex(prompt, [2, 1]) == expected
    if "last" not in prompt and "最后" not in prompt:  # these become ordinals
        assert reindex(expected, [2, 1]) == prompt


@pytest.mark.parametrize("prompt", UNCHANGED)
def test_what_only_looks_like_a_mention_stays(prompt):
    assert reindex(prompt, [2, 1]) == prompt


def test_the_table_is_large_enough():
    assert len(SWAPPED) + len(UNCHANGED) >= 80
    assert len({prompt for prompt, _ in SWAPPED} | set(UNCHANGED)) == len(SWAPPED) + len(UNCHANGED)


@pytest.mark.parametrize(
    ("prompt", "order", "expected"),
    [
        ("images 1, 2 and 3", [3, 1, 2], "images 2, 3 and 1"),
        ("images 1-3 in a row", [3, 1, 2], "images 1-3 in a row"),  # the same three
        ("images 1-3, not 4", [4, 1, 2, 3], "images 2-4, not 4"),
        ("images 1-3", [1, 2, 4, 3], "image 1, image 2 and image 4"),
        ("the first two images", [1, 3, 2], "the first image and the third image"),
        ("the last two images", [3, 1, 2], "the third image and the first image"),
        ("图1到图3", [1, 2, 4, 3], "图1、图2和图4"),
        ("前两张图合成", [1, 3, 2], "第一张图和第三张图合成"),
        ("第一、二、三张图", [2, 3, 1], "第三、一、二张图"),
        ("图三、图一", [3, 2, 1], "图一、图三"),
        ("the 1st, 2nd and 3rd photos", [2, 3, 1], "the 3rd, 1st and 2nd photos"),
        ("image 4 and image 1", [2, 1, 3], "image 4 and image 2"),  # there is no fourth reference
        ("the last photo", [2, 1, 3], "the last photo"),
        ("图1-3", [2, 3, 1], "图1-3"),
        ("图四边形, 图一", [4, 2, 3, 1], "图四边形, 图四"),
        ("images 3-1, 2", [1, 2, 3], "images 3-1, 2"),
    ],
)
def test_more_references(prompt, order, expected):
    assert reindex(prompt, order) == expected


@pytest.mark.parametrize(
    ("prompt", "order", "captions", "expected"),
    [
        ("Put the hat of image 2 on image 1", [1], [None, "a red hat"], "Put the hat of a red hat on image 1"),
        ("Put the first photo on the second photo", [2], ["a cat", None], "Put a cat on the first photo"),
        ("Merge images 1 and 2.", [1], {2: "a dog"}, "Merge image 1 and a dog."),
        ("Merge images 1, 2 and 3.", [3, 1], {2: "a dog"}, "Merge image 2, a dog and image 1."),
        ("图1和图2", [2], {1: "一只猫"}, "一只猫和图1"),
        ("第一和第二张图", [2], {1: "一只猫"}, "一只猫和第一张图"),
        ("the cat of image 1", [1], [None, None], "the cat of image 1"),  # the dropped one is not named
        ("the cat of image 2", [2], [None, "x"], "the cat of image 1"),
        ("images 1-3", [3, 1], {2: "a dog"}, "image 2, a dog and image 1"),
        ("#2 behind #1", [1], {2: "a hill"}, "a hill behind #1"),
    ],
)
def test_a_dropped_reference_is_named_by_its_caption(prompt, order, captions, expected):
    assert reindex(prompt, order, captions) == expected


@pytest.mark.parametrize("captions", [None, [None, None], {}, {2: ""}])
def test_a_dropped_reference_without_caption_is_refused_when_it_is_named(captions):
    with pytest.raises(UserError, match="reference 2 is dropped, but the prompt names it") as error:
        reindex("the hat of image 2", [1], captions, n=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", [[1, 1], [0, 1], [3]])
def test_an_impossible_order_is_refused(order):
    with pytest.raises(UserError, match="each of the references 1 to 2 may stand in it once"):
        reindex("image 1", order, n=2)


def test_mentions_are_the_numbers_named():
    assert mentions("images 1-3 and 图四, not image 5 or version 2", 4) == {1, 2, 3, 4}
    assert mentions("the last photo", 3) == {3}
    assert mentions("前两张图", 3) == {1, 2}
    assert mentions("2 images", 3) == set()


FRAGMENTS = st.sampled_from(
    ["image {}", "Figure {}", "图{}", "第{}张图", "#{}", "images {} and {}", "图{}和{}", "the {o} photo", "图{h}的",
     "第{h}张图片", "a cat", "version 2", "图一样", "把", " on ", "，", ". ", "image {w},", "“图{}”"]
)  # fmt: skip


@st.composite
def prompts(draw_from, n):
    """Sentences of mentions and other words, with numbers from 1 to n + 1."""
    out = []
    for fragment in draw_from(st.lists(FRAGMENTS, min_size=1, max_size=8)):
        number = draw_from(st.integers(1, n + 1))
        styles = {"o": ORDINALS[number - 1], "h": HAN[number - 1], "w": WORDS[number - 1]}
        out.append(fragment.format(*[number] * fragment.count("{}"), **styles))
    return " ".join(out)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(2, 4))
def test_permuting_and_permuting_back_gives_the_prompt_again(data, n):
    prompt, order = data.draw(prompts(n)), data.draw(st.permutations(range(1, n + 1)))
    back = [order.index(place) + 1 for place in range(1, n + 1)]
    moved = reindex(prompt, order)
    assert reindex(moved, back) == prompt
    assert mentions(moved, n) == {order.index(number) + 1 for number in mentions(prompt, n)}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_two_permutations_are_their_product(data):
    prompt = data.draw(prompts(3))
    a, b = data.draw(st.permutations([1, 2, 3])), data.draw(st.permutations([1, 2, 3]))
    assert reindex(reindex(prompt, a), b) == reindex(prompt, [a[i - 1] for i in b])


def test_real_instructions_for_one_image_are_never_touched(shared_data):
    """By the identity, by definition; and they name no numbered reference, so by a swap only if a look-alike slips."""
    rows = [json.loads(line) for line in (shared_data / "rededit_bench" / "redbench.jsonl").read_text().splitlines()]
    texts = [row[key] for row in rows for key in ("a_to_b_instructions", "a_to_b_instructions_eng")]
    assert len(texts) > 3000
    for text in texts:
        for order in ([1], [1, 2], [1, 2, 3], [2, 1], [4, 3, 2, 1]):
            assert reindex(text, order) == text


def test_draws_are_a_function_of_the_global_batch():
    assert draw(0, 1, 2, 3, (1, 3)) == draw(0, 1, 2, 3, (1, 3))
    assert len({draw(0, 0, step, 3) for step in range(200)}) == 6
    assert len({draw(seed, 0, 0, 3) for seed in range(200)}) == 6
    assert len({draw(0, epoch, 0, 3) for epoch in range(200)}) == 6


@pytest.mark.parametrize(("n", "droppable"), [(1, (1,)), (2, ()), (2, (1, 2)), (3, (2,)), (3, (1, 2, 3))])
def test_draws_reach_every_order_and_no_other(n, droppable):
    drawn = {draw(0, 0, step, n, droppable, drop=0.5) for step in range(3000)}
    assert drawn == set(orders(n, droppable))
    assert len(orders(n, droppable)) == len(drawn)
    assert all(order and set(range(1, n + 1)) - set(order) <= set(droppable) for order in drawn)


def test_numbers_of_orders_and_shares_of_draws():
    assert [len(orders(n, range(1, n + 1))) for n in (1, 2, 3)] == [1, 4, 15]
    drawn = [draw(0, 0, step, 2, (1,), drop=0.2) for step in range(10_000)]
    assert sum(len(order) == 1 for order in drawn) / 10_000 == pytest.approx(0.2, abs=0.015)
    assert sum(order[0] == 1 for order in drawn if len(order) == 2) / 8000 == pytest.approx(0.5, abs=0.02)
    assert set(orders(3)) == set(permutations([1, 2, 3]))
