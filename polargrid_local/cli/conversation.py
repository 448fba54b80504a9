"""The conversation with the person at the terminal: messages and /commands in, answers out, the turns kept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polargrid_local.cli.answer import Form, note, write_answer
from polargrid_local.cli.prompt import EditorPrompt, LinePrompt, message_of
from polargrid_local.errors import ContextLengthError, PolarGridError

if TYPE_CHECKING:
    from polargrid_local.api.params import MessageParam
    from polargrid_local.engine import ChatStream

    Open = Callable[[list[MessageParam]], ChatStream[Any]]  # messages -> a running stream

HELP = '''/reset          forget the conversation
/system [TEXT]  say who the model shall be; without TEXT, nobody
/help, /?       this
/bye            leave (so do /exit, /quit, Ctrl-D, and Ctrl-C twice)

{keys}
Between """ and """ a message may have any lines, and nothing in it is a command.
A message that begins with / is sent by beginning it with //.
Ctrl-C stops an answer and keeps the chat; what was said until then stays in the conversation.
Ctrl-C at the prompt clears it.'''
HELP_COMMANDS, LEAVE_COMMANDS = ("/help", "/?"), ("/bye", "/exit", "/quit")


class Conversation:
    """`open_stream` starts the answer to a list of messages; `system` is the first system message."""

    def __init__(self, prompt: LinePrompt | EditorPrompt, open_stream: Open, system: str | None, form: Form) -> None:
        self._prompt = prompt
        self._open = open_stream
        self._system = system
        self._form = form
        self._turns: list[MessageParam] = []
        self._offered = ""  # what was typed in vain: stands at the next prompt
        self._interrupted = False  # the last thing that came was Ctrl-C at an empty prompt

    def run(self) -> None:
        """Until Ctrl-D or /bye. Raises KeyboardInterrupt for Ctrl-C twice at the prompt."""
        going_on = True
        while going_on:
            try:
                going_on = self._turn()
            except KeyboardInterrupt:  # pressed once too often to stop an answer
                continue
        if self._interrupted:
            raise KeyboardInterrupt

    def _turn(self) -> bool:
        """Take one message or command; False when the person leaves."""
        offered, self._offered = self._offered, ""
        try:
            typed = self._prompt.ask(offered)
        except EOFError:
            self._interrupted = False
            sys.stderr.write("\n")
            return False
        except KeyboardInterrupt:
            if self._interrupted:
                return False
            self._interrupted = True
            note("Ctrl-C again, Ctrl-D or /bye to leave")
            return True
        self._interrupted = False
        try:
            text, literal = message_of(typed)
        except PolarGridError as error:
            note(f"error: {error}")
            return True
        if text.startswith("/") and not literal:
            return self._slash(text, typed)
        if text:
            self._say(text, typed)
        return True

    def _slash(self, text: str, typed: str) -> bool:
        """A text that begins with /: a command, or a message after all. False when the person leaves."""
        command = text.split(maxsplit=1)[0]
        if command == "/system":
            self._system = text.removeprefix(command).strip() or None
            note("system message set" if self._system else "system message removed")
        elif text in LEAVE_COMMANDS:
            return False
        elif text in HELP_COMMANDS:
            note(HELP.format(keys=self._prompt.keys))
        elif text == "/reset":
            self._turns.clear()
            note("conversation forgotten")
        elif "\n" in text:  # a pasted list of paths, or code that begins with a comment
            self._say(text, typed)
        elif text.startswith("//"):
            self._say(text[1:], typed)
        else:
            known = command in (*LEAVE_COMMANDS, *HELP_COMMANDS, "/reset")
            what = f"{command} takes nothing more" if known else f"unknown command {command} (/help lists them)"
            if self._prompt.confirm(f"{what}: send it as a message? [y/N] "):
                self._say(text, typed)
            else:
                self._offered = typed
        return True

    def _say(self, text: str, typed: str) -> None:
        system: list[MessageParam] = [{"role": "system", "content": self._system}] if self._system else []
        asked: MessageParam = {"role": "user", "content": text}
        stream, said = None, ""
        try:
            stream = self._open([*system, *self._turns, asked])
            write_answer(stream, self._form, sys.stdout)
            said = stream.text
            if stream.finish_reason == "length":
                note("[stopped: --max-tokens or the context is used up]")
        except KeyboardInterrupt:
            said = stream.text if stream is not None else ""
            self._end_line(said)
            note("[stopped]")
        except OSError:  # stdout is full or closed
            raise
        except Exception as error:
            self._end_line(stream.text if stream is not None else "")
            self._offered = typed
            hint = "; /reset forgets the conversation" if self._turns and isinstance(error, ContextLengthError) else ""
            kind = "error" if isinstance(error, PolarGridError) else f"internal error: {type(error).__name__}"
            note(f"{kind}: {error}{hint}")
        finally:
            if said:  # a turn without an answer would leave two user messages in a row
                self._turns += [asked, {"role": "assistant", "content": said}]

    def _end_line(self, said: str) -> None:
        """Leave the line of an answer that broke off."""
        if self._form is Form.text and said and not said.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
