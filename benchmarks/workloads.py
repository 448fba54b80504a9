"""What answers repeat: requests of five kinds, each with an answer such as a good model gives it.

The story is the beginning of "Alice's Adventures in Wonderland" (1865); all else was written for this file.
"""

from __future__ import annotations

from typing import NamedTuple


class Workload(NamedTuple):
    """`prediction`: what a client that knows what it asks for sends along."""

    kind: str
    prompt: str
    answer: str
    prediction: str = ""


STORY = """\
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or twice \
she had peeped into the book her sister was reading, but it had no pictures or conversations in it, "and what is the \
use of a book," thought Alice "without pictures or conversations?"

So she was considering in her own mind (as well as she could, for the hot day made her feel very sleepy and stupid), \
whether the pleasure of making a daisy-chain would be worth the trouble of getting up and picking the daisies, when \
suddenly a White Rabbit with pink eyes ran close by her.

There was nothing so very remarkable in that; nor did Alice think it so very much out of the way to hear the Rabbit \
say to itself, "Oh dear! Oh dear! I shall be late!" (when she thought it over afterwards, it occurred to her that she \
ought to have wondered at this, but at the time it all seemed quite natural)."""

PROGRAM = '''\
"""Orders of a small shop: what was bought, what it costs and what is sent."""

from dataclasses import dataclass, field


@dataclass
class Item:
    name: str
    price: int  # cents
    count: int = 1

    def total(self) -> int:
        return self.price * self.count


@dataclass
class Order:
    customer: str
    items: list[Item] = field(default_factory=list)
    discount: int = 0  # percent

    def add(self, name: str, price: int, count: int = 1) -> None:
        self.items.append(Item(name, price, count))

    def subtotal(self) -> int:
        return sum(item.total() for item in self.items)

    def total(self) -> int:
        return self.subtotal() * (100 - self.discount) // 100

    def summary(self) -> str:
        lines = [f"{item.count} x {item.name}: {item.total()}" for item in self.items]
        return "\\n".join([f"Order of {self.customer}", *lines, f"Total: {self.total()}"])
'''

EDIT = """\
Orders get a shipping fee that counts in the total and shows in the summary.

<<<<<<< SEARCH
    items: list[Item] = field(default_factory=list)
    discount: int = 0  # percent

    def add(self, name: str, price: int, count: int = 1) -> None:
        self.items.append(Item(name, price, count))
=======
    items: list[Item] = field(default_factory=list)
    discount: int = 0  # percent
    shipping: int = 0  # cents

    def add(self, name: str, price: int, count: int = 1) -> None:
        self.items.append(Item(name, price, count))
>>>>>>> REPLACE

<<<<<<< SEARCH
    def total(self) -> int:
        return self.subtotal() * (100 - self.discount) // 100

    def summary(self) -> str:
        lines = [f"{item.count} x {item.name}: {item.total()}" for item in self.items]
        return "\\n".join([f"Order of {self.customer}", *lines, f"Total: {self.total()}"])
=======
    def total(self) -> int:
        return self.subtotal() * (100 - self.discount) // 100 + self.shipping

    def summary(self) -> str:
        lines = [f"{item.count} x {item.name}: {item.total()}" for item in self.items]
        lines.append(f"Shipping: {self.shipping}")
        return "\\n".join([f"Order of {self.customer}", *lines, f"Total: {self.total()}"])
>>>>>>> REPLACE
"""

SUMMARY = """\
The story opens with Alice, bored beside her sister on the bank, "having nothing to do". The book that her sister has \
does not interest her, because "it had no pictures or conversations in it", and she asks herself "what is the use of a \
book" of that kind. While she is "considering in her own mind" whether "making a daisy-chain would be worth the \
trouble of getting up and picking the daisies", something changes: "suddenly a White Rabbit with pink eyes ran close \
by her". Even the Rabbit's words, "Oh dear! Oh dear! I shall be late!", do not surprise her then. Only later "it \
occurred to her that she ought to have wondered at this, but at the time it all seemed quite natural"."""

PEOPLE = """\
Maria Lopez, 34, is a nurse in Lima and speaks Spanish and English. Tom Baker, 51, is a carpenter in Leeds and speaks \
English. Aiko Tanaka, 28, is an engineer in Osaka and speaks Japanese and English. Jonas Weber, 45, is a teacher in \
Bremen and speaks German and French. Amina Diallo, 39, is a journalist in Dakar and speaks French and Wolof."""

PEOPLE_JSON = """\
[
  {"name": "Maria Lopez", "age": 34, "profession": "nurse", "city": "Lima", "languages": ["Spanish", "English"]},
  {"name": "Tom Baker", "age": 51, "profession": "carpenter", "city": "Leeds", "languages": ["English"]},
  {"name": "Aiko Tanaka", "age": 28, "profession": "engineer", "city": "Osaka", "languages": ["Japanese", "English"]},
  {"name": "Jonas Weber", "age": 45, "profession": "teacher", "city": "Bremen", "languages": ["German", "French"]},
  {"name": "Amina Diallo", "age": 39, "profession": "journalist", "city": "Dakar", "languages": ["French", "Wolof"]}
]"""

CHAT = """\
A heat pump moves heat instead of making it. In winter it takes heat from the air outside, from the ground or from \
water, and brings it into the house; in summer some of them can work the other way round.

Here is how it works:

1. **Evaporation.** A cold liquid, the refrigerant, takes up heat from outside and becomes a gas.
2. **Compression.** A compressor squeezes the gas. Its pressure rises, and so does its temperature.
3. **Condensation.** The hot gas gives its heat to the water of the heating and becomes a liquid again.
4. **Expansion.** A valve lets the pressure fall. The liquid becomes cold, and the circle begins again.

The compressor needs electricity, but much less than the heat that comes out: a good heat pump gives three to four \
kilowatt hours of heat for every kilowatt hour of electricity. It works best when the heating needs only warm water, \
for example with underfloor heating, and when the house keeps its heat well."""

MORE = """\
Gladly. In step 2, **compression**, the compressor squeezes the gas. Think of a bicycle pump: if you squeeze the air, \
it becomes warm. In the same way the pressure of the refrigerant rises, and so does its temperature, up to 60 or 70 \
degrees. This is the only step that needs much electricity.

In step 3, **condensation**, the hot gas flows through a heat exchanger and gives its heat to the heating water. \
The gas becomes a liquid again, as steam becomes water on a cold window. The water of the heating is warm now, and the \
refrigerant goes on to step 4, **expansion**, where a valve lets the pressure fall and the circle begins again."""

WORKLOADS = [
    Workload(
        "edit a file",
        f"{PROGRAM}\nAdd a shipping fee to orders. Answer with search and replace blocks.\n\n",
        EDIT,
        PROGRAM,
    ),
    Workload(
        "rewrite a document",
        f'{STORY}\n\nWrite the text again, and call the girl "Clara".\n\n',
        STORY.replace("Alice", "Clara"),
        STORY,
    ),
    Workload("summary with quotes", f"{STORY}\n\nSummarise the text and quote from it.\n\n", SUMMARY),
    Workload("extract JSON", f"{PEOPLE}\n\nGive the people as a JSON array.\n\n", PEOPLE_JSON),
    Workload("chat", "How does a heat pump work?\n\n", CHAT),
    Workload("chat, second turn", f"How does a heat pump work?\n\n{CHAT}\n\nExplain steps 2 and 3 again.\n\n", MORE),
]
