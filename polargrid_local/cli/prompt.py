"""The prompt of the interactive chat: one message at a time from the person at the terminal, of one line or of many."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polargrid_local.errors import ValidationError

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

ASK, MORE = "> ", "... "  # before the first line of a message, and before the others
QUOTES = '"""'
HISTORY_BYTES = 1 << 20
PASTE_GAP_S = 0.02  # a key that comes this soon after Enter was pasted with it, not typed


def open_prompt() -> LinePrompt | EditorPrompt:
    """An editor where the terminal can carry one, else plain lines."""
    is_dumb = sys.platform != "win32" and os.environ.get("TERM", "") in ("", "dumb", "unknown")
    if is_dumb or not (sys.stdout.isatty() or sys.stderr.isatty()):
        return LinePrompt()
    try:
        return EditorPrompt()
    except Exception as error:  # a console without cursor, a frozen program without the library
        sys.stderr.write(f"plain input, one line at a time: {type(error).__name__}: {error}\n")
        return LinePrompt()


def is_open_block(text: str) -> bool:
    """Whether a message that begins with three quotes still wants its closing ones."""
    return text.startswith(QUOTES) and text.count(QUOTES) % 2 == 1


def message_of(typed: str) -> tuple[str, bool]:
    """(The message, whether it stood between three quotes, where nothing is a command). ValidationError: it is no text.

    Indentation stays; blank lines around it and blanks after it go. Quotes that are part of pasted code, with text
    behind the closing ones or with pairs of them inside, are text like any other.
    """
    try:
        # Bytes that the terminal's declared encoding could not read came through as surrogates.
        typed = typed.encode("utf-8", "surrogateescape").decode("utf-8")
    except ValueError:
        raise ValidationError(
            "the message holds bytes that are not UTF-8 text; does the terminal's encoding fit the locale?"
        ) from None
    text = re.sub(r"\A(?:[ \t]*\n)+", "", typed).rstrip()
    if text.startswith(QUOTES) and text.endswith(QUOTES) and len(text) >= 2 * len(QUOTES):
        inside = text[len(QUOTES) : -len(QUOTES)]
        if QUOTES not in inside or (inside.startswith("\n") and inside.endswith("\n")):
            return inside.removeprefix("\n").removesuffix("\n"), True
    return text, False


class LinePrompt:
    """Plain lines, for terminals that can do no more. Between three quotes, a message may have several."""

    keys = "Enter sends."

    def __init__(self) -> None:
        with contextlib.suppress(AttributeError):
            sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # absent: suppressed above
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # its import alone gives input() editing and history

    def ask(self, offered: str = "") -> str:
        """What was typed; EOFError after Ctrl-D, KeyboardInterrupt after Ctrl-C. `offered` waits in the history."""
        text = self._line(ASK)
        while is_open_block(text):
            text += "\n" + self._line(MORE)
        return text

    def confirm(self, question: str) -> bool:
        try:
            return self._line(question).strip().lower() in ("y", "yes")
        except EOFError:
            return False

    def __enter__(self) -> LinePrompt:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def _line(self, prompt: str) -> str:
        if sys.stdout.isatty():
            return input(prompt)
        sys.stderr.write(prompt)  # stdout goes elsewhere, and input() would prompt there
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")


class EditorPrompt:
    """Several lines with history: Enter sends, Alt-Enter (or Esc, Enter) and a paste make new lines."""

    keys = """Enter sends; Alt-Enter, or Esc and Enter, begins a new line. A paste stays one message.
Up and Down bring back what was typed, also in earlier chats; Ctrl-R searches it."""

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.input import create_input
        from prompt_toolkit.output import create_output
        from prompt_toolkit.output.vt100 import Vt100_Output

        self._input, self._output = create_input(), create_output(always_prefer_tty=True)
        if isinstance(self._output, Vt100_Output):
            # Asks the terminal where the cursor is: not every one answers, and nothing here needs to know.
            self._output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            prompt_continuation=MORE,
            key_bindings=self._keys(),
            history=_history(),
            enable_suspend=True,
            input=self._input,
            output=self._output,
        )
        self._session.app.key_processor.after_key_press += self._after_key
        self._typed_ahead = self._keys_left = False
        self._at_end = contextlib.ExitStack()

    def ask(self, offered: str = "") -> str:
        """What was typed; EOFError after Ctrl-D, KeyboardInterrupt after Ctrl-C. `offered` is there to be edited."""
        self._typed_ahead = self._keys_left or self._can_read(0)
        try:
            return self._session.prompt(ASK, default=offered)
        finally:
            self._mark_pastes()

    def confirm(self, question: str) -> bool:
        from prompt_toolkit import PromptSession

        try:
            answer = PromptSession[str](input=self._input, output=self._output).prompt(question)
        except (EOFError, KeyboardInterrupt):
            return False
        finally:
            self._mark_pastes()
        return answer.strip().lower() in ("y", "yes")

    def __enter__(self) -> EditorPrompt:
        """Until the chat ends: keys that come between two prompts are kept for the next one and not shown, a paste is
        one piece, and Ctrl-C is a signal."""
        with contextlib.suppress(ImportError):  # Windows keeps keys by itself
            import termios

            fd = self._input.fileno()
            before, silent = termios.tcgetattr(fd), termios.tcgetattr(fd)
            silent[3] = silent[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH  # NOFLSH: Ctrl-C keeps typed keys
            silent[0] &= ~termios.ICRNL
            self._at_end.callback(termios.tcsetattr, fd, termios.TCSANOW, before)
            termios.tcsetattr(fd, termios.TCSANOW, silent)
        self._mark_pastes()
        return self

    def __exit__(self, *exc: object) -> None:
        self._output.disable_bracketed_paste()
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._output.flush()
        self._at_end.close()

    def _mark_pastes(self) -> None:
        self._output.enable_bracketed_paste()
        self._output.flush()

    def _keys(self) -> KeyBindings:
        from prompt_toolkit.enums import DEFAULT_BUFFER
        from prompt_toolkit.filters import has_focus
        from prompt_toolkit.key_binding import KeyBindings

        keys, typing = KeyBindings(), has_focus(DEFAULT_BUFFER)  # and not searching the history

        @keys.add("escape", "enter", filter=typing)
        @keys.add("escape", "c-j", filter=typing)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @keys.add("enter", filter=typing)
        def _(event: KeyPressEvent) -> None:
            if is_open_block(event.current_buffer.text) or (not self._typed_ahead and self._text_follows(event)):
                event.current_buffer.newline(copy_margin=False)
                return
            self._keys_left = bool(event.key_processor.input_queue)
            event.current_buffer.validate_and_handle()

        @keys.add("tab", filter=typing)  # nothing here completes, and pasted code has them
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\t")

        @keys.add("c-c", filter=typing)
        def _(event: KeyPressEvent) -> None:
            if event.current_buffer.text:
                event.current_buffer.reset(append_to_history=True)
            else:
                event.app.exit(exception=KeyboardInterrupt)

        return keys

    def _text_follows(self, event: KeyPressEvent) -> bool:
        """Whether text comes right behind an Enter: a paste, by a terminal that does not mark pastes."""
        from prompt_toolkit.keys import Keys

        waiting = event.key_processor.input_queue
        while not any(len(press.key) == 1 or press.key in (Keys.Enter, Keys.ControlJ, Keys.Tab) for press in waiting):
            if not self._can_read(PASTE_GAP_S):
                return False
            event.key_processor.feed_multiple(self._input.read_keys())
            if self._input.closed:
                return False
        return True

    def _can_read(self, timeout_s: float) -> bool:
        if sys.platform == "win32":  # where the library itself tells a paste from typing
            return False
        return bool(select.select([self._input.fileno()], [], [], timeout_s)[0])

    def _after_key(self, processor: Any) -> None:
        if not processor.input_queue:
            self._typed_ahead = False


# --- history ---


def _history() -> History:
    """What was typed in earlier runs, out of the file that $POLARGRID_LOCAL_HISTORY names (empty: no file), else one in
    the user's state directory. Only the user may read it, and its size is limited."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class BoundedHistory(FileHistory):
        def store_string(self, string: str) -> None:
            if len(string) < HISTORY_BYTES // 16:  # in this run, a longer one is remembered all the same
                with contextlib.suppress(OSError):  # a full disk must not stop a chat
                    super().store_string(string)

    name = os.environ.get("POLARGRID_LOCAL_HISTORY")
    if name is None:
        from platformdirs import user_state_dir

        name = os.path.join(user_state_dir("polargrid-local", appauthor=False), "chat_history")
    if not name:
        return InMemoryHistory()
    path = Path(name).expanduser()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "rb") as file:
            if not path.is_file():  # such as /dev/null
                return InMemoryHistory()
            path.chmod(0o600)
            if os.fstat(file.fileno()).st_size > HISTORY_BYTES:
                _keep_newest(path, HISTORY_BYTES // 2)
    except OSError as error:
        sys.stderr.write(f"no history across runs: {error}\n")
        return InMemoryHistory()
    return BoundedHistory(path)


def _keep_newest(path: Path, n_bytes: int) -> None:
    """Drop the oldest entries. An entry is a blank line, `# time`, and lines that begin with `+`."""
    end = path.read_bytes()[-n_bytes:]
    fresh = path.with_name(path.name + ".new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(b"".join(b"\n# " + entry + b"\n" for entry in end.split(b"\n\n# ")[1:]))
    os.replace(fresh, path)
