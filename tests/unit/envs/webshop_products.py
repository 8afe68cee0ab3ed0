"""An invented shop in the layout of WebShop's published files; the prompt's examples are played in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retro.types import Split, Task

MUG, STEEL_MUG, CAMPING_MUG = "B0MUGS0001", "B0MUGS0002", "B0MUGS0003"
ROSE_CREAM, OAT_CREAM = "B0CARE0001", "B0CARE0002"
WOOL_SOCKS, COTTON_SOCKS = "B0SOCK0001", "B0SOCK0002"
CHARGER, BISCUITS = "B0POWR0001", "B0FOOD0001"

MUG_TASK = Task("webshop", f"{MUG}-human-1", Split.TRAIN, "garden")
CREAM_TASK = Task("webshop", f"{OAT_CREAM}-human-0", Split.TRAIN, "beauty")
BUY_MUG = ["search[ceramic travel mug]", f"click[{MUG}]", "click[sage green]", "click[16 ounce]", "click[Buy Now]"]


def product(
    asin: str,
    name: str,
    category: str,
    query: str,
    path: str,
    features: list[str],
    pricing: str | None,
    options: dict[str, list[str]] | None = None,
    description: str = "",
) -> dict[str, Any]:
    """One entry of ``items_shuffle.json``."""
    choices = {name: [{"value": value, "image": None} for value in values] for name, values in (options or {}).items()}
    return {
        "asin": asin,
        "name": name,
        "category": category,
        "query": query,
        "product_category": path,
        "full_description": description,
        "small_description": features,
        "pricing": pricing,
        "customization_options": choices or None,
        "images": ["https://example.org/picture.jpg"],
        "brand": "Visit the shop",
    }


MUGS = "Home & Kitchen › Kitchen & Dining › Travel Mugs"
CREAMS = "Beauty & Personal Care › Skin Care › Face › Creams"
SOCKS = "Clothing › Women › Socks"

PRODUCTS = [
    product(
        MUG,
        "Larkfell Ceramic Travel Mug with Silicone Lid",
        "garden",
        "travel mugs",
        MUGS,
        ["Dishwasher safe, lid and all.", "Lead free glaze.", "Keeps a drink warm for an hour."],
        "$18.50",
        {"Color": ["Sage Green", "Slate", "Cream"], "Size": ["12 Ounce", "16 Ounce"]},
        "A mug for the way to work.\nThrown and glazed by hand.",
    ),
    product(
        STEEL_MUG,
        "Tarn Stainless Steel Travel Mug, Double Wall",
        "garden",
        "travel mugs",
        MUGS,
        ["Double wall: hot for six hours.", "Wash by hand."],
        "$24.00",
        {"Size": ["16 Ounce", "20 Ounce"]},
    ),
    product(
        CAMPING_MUG,
        "Pinmoor Enamel Camping Mugs, Set of 4",
        "garden",
        "camping mugs",
        "Sports & Outdoors › Camping › Mugs",
        ["Chip resistant enamel."],
        "$31.99",
    ),
    product(
        ROSE_CREAM,
        "Brackwater Face Cream for Sensitive Skin, Rose",
        "beauty",
        "face creams",
        CREAMS,
        ["Scented with rose oil.", "For dry and sensitive skin."],
        "$12.00",
        {"Size": ["2 Ounce", "4 Ounce"]},
    ),
    product(
        OAT_CREAM,
        "Brackwater Face Cream for Sensitive Skin, Oat",
        "beauty",
        "face creams",
        CREAMS,
        ["Fragrance free.", "Oat milk and glycerine for sensitive skin."],
        "$14.00",
        {"Size": ["2 Ounce", "4 Ounce/Pack of 1"]},
    ),
    product(
        WOOL_SOCKS,
        "Hollin Wool Hiking Socks for Women, Pack of 3",
        "fashion",
        "women's socks",
        SOCKS,
        ["Machine wash."],
        "$22.00 - $26.00",
        {"Color": ["Navy Blue", "Red"], "Size": ["Small", "Large"]},
    ),
    product(COTTON_SOCKS, "Hollin Cotton Ankle Socks", "fashion", "women's socks", SOCKS, ["Machine wash."], None),
    product(
        CHARGER,
        "Kestrel 2 Port Wall Charger, 30W",
        "electronics",
        "wall chargers",
        "Electronics › Power › Chargers",
        ["Fast charging."],
        "$999.00",
    ),
    product(BISCUITS, "Millrace Oat Biscuits", "grocery", "biscuits", "Grocery › Biscuits", ["Gluten free."], "$4.25"),
]

ATTRIBUTES: dict[str, dict[str, Any]] = {
    MUG: {
        "attributes": ["dishwasher safe", "lead free"],
        "instruction": "Find me a dishwasher safe travel mug",
        "instruction_attributes": ["dishwasher safe"],
    },
    STEEL_MUG: {"attributes": ["double wall", "stainless steel"], "instruction": None, "instruction_attributes": None},
    ROSE_CREAM: {"attributes": ["sensitive skin", "dry skin"]},
    OAT_CREAM: {"attributes": ["fragrance free", "sensitive skin"]},
    WOOL_SOCKS: {
        "attributes": ["machine wash"],
        "instruction": "Find me machine wash women's socks",
        "instruction_attributes": ["machine wash"],
    },
    COTTON_SOCKS: {"attributes": ["machine wash"]},
    CHARGER: {
        "attributes": ["fast charging"],
        "instruction": "Find me a fast charging wall charger",
        "instruction_attributes": ["fast charging"],
    },
}


def human(instruction: str, attributes: list[str], options: list[str]) -> dict[str, Any]:
    """One entry of a product's list in ``items_human_ins.json``."""
    return {
        "instruction": instruction,
        "attributes": attributes,
        "options": [],
        "instruction_attributes": attributes,
        "instruction_options": options,
        "worker_id": "nobody",
    }


HUMAN = {
    MUG: [
        human("i want any mug at all.", [], []),
        human(
            "i want a dishwasher safe travel mug in sage green that holds 16 ounces.",
            ["dishwasher safe"],
            ["sage green", "16 ounce"],
        ),
    ],
    OAT_CREAM: [
        human(
            "i need a fragrance free face cream for sensitive skin, the 4 ounce one",
            ["fragrance free", "sensitive skin"],
            ["4 ounce | pack of 1"],
        )
    ],
    CHARGER: [human("find a fast charging wall charger.", ["fast charging"], [])],
}


def write_shop(
    folder: Path,
    products: list[dict[str, Any]] | None = None,
    instructions: dict[str, list[dict[str, Any]]] | None = None,
) -> Path:
    """The invented shop as the three published files; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("items_shuffle.json", PRODUCTS if products is None else products),
        ("items_ins_v2.json", ATTRIBUTES),
        ("items_human_ins.json", HUMAN if instructions is None else instructions),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def lamps(folder: Path, count: int, shop: list[dict[str, Any]] | None = None) -> Path:
    """``count`` lamps beside the products of ``shop`` (by default the invented ones), each with a human instruction."""
    made = [product(f"B0LAMP{n:04d}", f"Lamp {n}", "garden", "lamps", "Lamps", ["Bright."], "$5") for n in range(count)]
    instructions = HUMAN | {lamp["asin"]: [human("a bright lamp", ["bright"], [])] for lamp in made}
    return write_shop(folder, [*(PRODUCTS if shop is None else shop), *made], instructions)
