"""The budget: how much work a chat template may do. Counted, not timed: slow machines refuse no more than fast ones."""

from __future__ import annotations

from polargrid_local.errors import TemplateError

# One unit of work is about a microsecond of an ordinary core, or 64 bytes of new memory, whichever is more.
PER_RENDER = 400_000
PER_MESSAGE = 2_000  # some templates look back through the whole conversation at every message
PER_CHAR = 1
MAX_WORK = 4_000_000
PROBE = 20_000  # for each small conversation that `capabilities` tries a template with; known templates need 500

CHARS_MADE = 16  # characters of new text per unit: each takes up to four bytes
CHARS_READ = 1_024  # characters compared or searched per unit
ITEMS_MADE = 4  # items of a new list per unit

MAX_DEPTH = 90  # levels: of the syntax tree, of data, and of macros that call macros
MAX_ITEMS = 100_000
MAX_BITS = 4_096  # of a whole number
MAX_DIGITS = 1_200  # the same, as text
MAX_WIDTH = 9_999  # of a formatted field


class Budget:
    """Every operation of a template is paid for before it runs."""

    def __init__(self, work: int = 2**63) -> None:
        self.work = self.left = work

    @classmethod
    def for_input(cls, n_messages: int, n_chars: int) -> Budget:
        return cls(min(PER_RENDER + PER_MESSAGE * n_messages + PER_CHAR * n_chars, MAX_WORK))

    def spend(self, work: int) -> None:
        """Raises TemplateError when so much work is not left."""
        self.left -= work
        if self.left < 0:
            raise TemplateError(
                f"chat template: takes more work, or makes more text, than its input allows ({self.work} units)",
                details={"limit": self.work},
            )

    def make(self, n_chars: int) -> None:
        """Before a string of so many characters is made."""
        self.spend(1 + n_chars // CHARS_MADE)

    def read(self, n_chars: int) -> None:
        """Before so many characters are looked at or compared."""
        self.spend(1 + n_chars // CHARS_READ)

    def items(self, n: int) -> None:
        """Before a list of so many items is made."""
        self.spend(1 + n // ITEMS_MADE)


def over_limit(what: str, limit: int) -> TemplateError:
    return TemplateError(f"chat template: {what}", details={"limit": limit})


def printable(message: str) -> str:
    """A template's or Jinja's message as an error may hold it: of bounded size, sendable, and without user text."""
    return "".join("…" if ord(char) >= 0x30000 or 0xD800 <= ord(char) < 0xE000 else char for char in message[:500])
