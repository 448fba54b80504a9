"""Templates from strangers: none reaches the interpreter, none takes more than its share of work or memory.

Each is rendered in this process, where a counter bounds the work and no clock is asked; and those that could make
something large again in a child whose address space cannot grow by more than MEMORY_BYTES.
"""

import json
import os
import subprocess
import sys
from datetime import datetime

import pytest

from polargrid_local.chat import budget, compiler
from polargrid_local.chat.template import ChatTemplate
from polargrid_local.errors import TemplateError

NOW = datetime(2026, 1, 2, 3, 4, 5)
SECRET = "PGL_TEMPLATE_SECRET"
MEMORY_BYTES = 256 << 20
BIG = "'" + "x" * 50_000 + "'"  # a literal of the template's own


def grow(step, start="'aaaaaaaaaa'", n=64, end="{{ ns.x }}"):
    return (
        "{% set ns = namespace(x=START) %}{% for i in range(COUNT) %}{% set ns.x = STEP %}{% endfor %}".replace(
            "START", start
        )
        .replace("COUNT", str(n))
        .replace("STEP", step)
        + end
    )


def forever(step, n=100_000):
    """`step` again and again, on a string of a million characters."""
    return (
        "{% set big = 'ab' * 500000 %}{% for i in range(" + str(n) + ") %}{% if " + step + " %}{% endif %}{% endfor %}"
    )


# Ways to the interpreter's insides. Each must fail, or show nothing of them.
ENVIRON = "__init__.__globals__"
FORM = "{0." + ENVIRON + "[os].environ}"
ESCAPES = [
    *(
        source.replace("FORM", form).replace("OBJECT", target)
        for form in (FORM, "{0.__class__}", "{0._environment}", "{0.__class__.__mro__[1].__subclasses__}")
        for target in ("cycler", "range", "messages[0].content", "messages", "namespace(a=1)")
        for source in (
            "{{ (messages[0].content ~ 'FORM').format(OBJECT) }}",
            "{{ 'FORM'.format(OBJECT) }}",
            "{{ (messages[0].content ~ 'FORM' | replace('0', 'x')).format_map({'x': OBJECT}) }}",
        )
    ),
    *(
        f"{{{{ {source} }}}}"
        for source in (
            f"('' ~ messages[0].content ~ '{FORM}').format(joiner)",
            f"('' ~ messages[0].content ~ '{FORM}')['format'](joiner)",
            f"('' ~ messages[0].content ~ '{FORM}') | attr('format')(joiner)",
            f"(messages[0].content ~ '{FORM}').join(['a', 'b']).format(cycler)",
            f"(messages[0].content + '{FORM}')[1:].format(cycler)",
            f"(messages[0].content ~ '{FORM}').upper().lower().format(cycler)",
            f"[messages[0].content ~ '{FORM}'] | map('format', cycler) | join",
            "(messages[0].content ~ '%(a)s').__mod__({'a': cycler})",
            "(messages[0].content ~ '%s') % cycler",
            "(messages[0].content ~ '%r') % (cycler,)",
            "'%s' | format(cycler)",
            "'%s' % range",
            "'{}'.format(cycler)",
            "'{!r}'.format(cycler)",
            "'{:>{}}'.format(cycler, 3)",
            "'{0[__class__]}'.format(messages)",
            "'{0[0].__class__.__mro__}'.format(messages)",
            "cycler ~ ''",
            "range | string",
            "[cycler] | string",
            "{'a': raise_exception}",
            "[range] | join",
            "(range,) | tojson",
            "messages[0].content | attr('__class__')",
            "(messages | map(attribute='content.__class__.__mro__') | list)[0].x",
            "(messages | map(attribute='__class__') | list)[0].x",
            "(messages | groupby('__class__'))[0][0].x",
            "(messages | sort(attribute='__class__.__mro__'))[0].x.y",
            "(messages | selectattr('__class__.__subclasses__') | list)[0].x",
            "''.__class__.__mro__[1].__subclasses__()",
            "messages[0].content.__class__.__mro__",
            "messages[0].content['__class__']['__mro__']",
            "messages[0].content._taints._pieces",
            "messages[0].content._known.x",
            "messages[0].content.encode.__func__",
            "messages[0].content.upper.__func__.__globals__",
            "messages[0].content.split.__self__.__class__",
            "cycler.__init__.__globals__",
            "namespace.__init__.__globals__",
            "raise_exception.__globals__",
            "strftime_now.__wrapped__",
            "self.__init__.__globals__",
            "self._TemplateReference__context",
            "self",
            "loop.x.y",
            "lipsum.__globals__",
            "lipsum()",
            "range.__self__.x",
            "environment.x",
            "context.x",
            "messages.__class__.__base__.x",
            "messages.append(1)",
            "messages[0].update({'a': 1})",
            "messages[0].pop('content')",
            "messages[0].clear()",
            "{}.fromkeys([1]).x",
            "(1).__class__.__base__",
            "(1).to_bytes(1000000000, 'big')",
            "''.encode()",
            "''.maketrans('a', 'b')",
            "'a'.translate({97: 'b' * 100000})",
            "'a'.expandtabs(1000000000)",
            "'a\\t'.expandtabs(99999)",
            "nothing.here",
            "none.x.y",
            "messages | random",
            "messages | pprint",
            "{'a': 1} | xmlattr",
            "'http://x' | urlize",
            "messages()",
            "messages[0].content()",
            "true()",
        )
    ),
    "{% include 'x' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% from 'os' import environ %}",
    "{% extends 'x' %}",
    "{% autoescape true %}{{ messages }}{% endautoescape %}",
    "{% macro m() %}{% endmacro %}{{ m }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{{ caller._func }}{% endmacro %}{% call m() %}{% endcall %}{{ nothing.x }}",
    "{% for x in [1] %}{{ loop }}{% endfor %}",
    "{% for x in [1] %}{{ loop._iterable.x }}{% endfor %}",
    "{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for x in [1] recursive %}{{ loop._recurse.__globals__ }}{% endfor %}",
    "{% block x %}{{ self.x() }}{% endblock %}",
    "{% set ns = namespace() %}{{ ns.__init__.__globals__ }}",
    "{% set ns = namespace() %}{{ ns._Namespace__attrs.x }}",
    "{% set ns = namespace(**{'__self__': 'x', '__name__': 'format'}) %}{{ ns('x') }}",
]

# Small sources of much text, many items or large numbers.
MEMORY = [
    *(
        f"{{{{ {source} }}}}"
        for source in (
            "'a' * 10**10",
            "10000000000 * 'a'",
            "'a' * 4000000",
            "messages[0].content * 10**9",
            "[1] * 10000000",
            "(1,) * 100000000",
            "[[1] * 1000] * 100000 | string",
            "[BIG] * 100000",
            "([BIG] * 4000) | join",
            "[BIG] * 4000 | string",
            "'x' | center(10000000)",
            "'x' | center(10**9)",
            "'x'.ljust(1000000000)",
            "'x'.rjust(99999999)",
            "'x'.center(10**8)",
            "'x'.zfill(10**9)",
            "messages[0].content.ljust(10**9)",
            "messages[0].content.zfill(10**8)",
            "'%1000000000d' % 1",
            "'%99999d' % 1",
            "'%*d' % (1000000000, 1)",
            "'%.*f' % (1000000000, 1)",
            "'%.999999999f' % 1",
            "'%1000000000s' % 'a'",
            "'%1000000000d' | format(1)",
            "'%(a)1000000000d' % {'a': 1}",
            "messages[0].content % 1",
            "'{:>1000000000}'.format(1)",
            "'{:>{}}'.format(1, 1000000000)",
            "'{:.1000000000f}'.format(1.5)",
            "'{:>{w}}'.format(1, w=1000000000)",
            "(messages[0].content ~ '{:>1000000000}').format(1)",
            "(messages[0].content ~ '%1000000000d') % 1",
            "('%9999d' * 20000) % (1, 2)",
            "('{0:>9999}' * 20000).format(1)",
            "('%(a)s' * 40000) % {'a': BIG}",
            "('{0}' * 40000).format(BIG)",
            "('{0!r}' * 40000).format([BIG])",
            "'x' | indent(10000000)",
            "('a\n' * 100000) | indent(99999)",
            "('a\n' * 3000) | indent('x' * 30000)",
            "('\n' * 9999) | indent(9999, true, true)",
            "messages | tojson(indent=99999999)",
            "([[[[[[[[1]]]]]]]] * 5000) | tojson(indent=9999)",
            "[1, 2, 3, 4] * 1000 | list | tojson(indent='x' * 100000)",
            "([1] * 9999) | tojson(separators=('x' * 99999, ':'))",
            "([BIG] * 1000) | tojson",
            "range(1000000) | list",
            "range(10**18)",
            "range(-(10**12), 10**12, 10**10)",
            "range(100000) | map('string') | join('x' * 900000)",
            "range(100000) | join(BIG)",
            "(BIG * 100).replace('x', BIG)",
            "(BIG * 100) | replace('x', BIG)",
            "(BIG * 10).replace('', BIG)",
            "BIG.join(BIG)",
            "BIG.join(range(9999) | map('string'))",
            "(BIG * 4).split('x') | map('replace', '', BIG) | list",
            "(BIG * 400) | list",
            "(BIG * 100).split('x')",
            "('a ' * 3000000).split()",
            "('\n' * 5000000).splitlines()",
            "BIG.partition('x') * 9999999",
            "[1] | batch(100000, BIG) | map('join', BIG) | list",
            "[1] | batch(10**9, 1) | list",
            "[1] | slice(10**9) | list",
            "range(100000) | slice(99999, 1) | map('join', BIG) | list",
            "2 ** 100000",
            "2.5 ** 100000",
            "10 ** (10 ** 10)",
            "9 ** (9 ** 9)",
            "(2 ** 64) ** 64 ** 2",
            "1 | round(-1000000000)",
            "5 | round(-99999999, 'ceil')",
            "1.5 | round(10**9, 'floor')",
            "('9' * 100000) | int",
            "('9' * 1000000) | int(0, 10)",
            "('f' * 100000) | int(base=16)",
            "('9' * 1000000) | float",
            "strftime_now('%9999999d')",
            "strftime_now('%_9999999Y')",
            "strftime_now('%' * 100000)",
            "strftime_now('%c' * 100000)",
            "strftime_now('%-99999S%^9999999B')",
            "'%999999999d' is odd",
            "'%999999999d' is even",
            "'%999999999d' is divisibleby 3",
            "([[]] * 50000) | sum(start=[[]] * 50000)",
            "raise_exception(BIG * 1000)",
            "{}[[BIG] * 10000].x",
            "dict(a=[BIG] * 9999) | string",
        )
    ),
    *(
        grow(step)
        for step in (
            "ns.x + ns.x",
            "ns.x ~ ns.x",
            "ns.x * 2",
            "ns.x.replace('a', ns.x)",
            "ns.x | replace('a', ns.x)",
            "ns.x.join([ns.x, ns.x, ns.x])",
            "[ns.x, ns.x]",
            "(ns.x, ns.x)",
            "{'a': ns.x, 'b': ns.x}",
            "dict(a=ns.x, b=ns.x)",
            "[ns.x, ns.x] | join",
            "'%s%s' % (ns.x, ns.x)",
            "'{}{}'.format(ns.x, ns.x)",
            "'{0}{0}'.format(ns.x)",
            "'%(x)s%(x)s' % {'x': ns.x}",
            "(ns.x ~ '\n' ~ ns.x) | indent(999)",
            "ns.x | format ~ ns.x",
            "ns.x | tojson | tojson",
            "[ns.x, ns.x] | string",
            "[ns.x, ns.x] | tojson",
            "ns.x | string ~ ns.x | upper",
            "ns.x.center(99999) ~ ns.x",
            "(ns.x | list) * 3",
            "ns.x | e | replace('a', ns.x)",
            "[ns.x] | batch(9, ns.x) | list",
            "namespace(x=[ns.x, ns.x]).x",
        )
    ),
    *(
        grow(step, start, n, end)
        for step, start, n, end in (
            ("ns.x + ns.x", "[1]", 64, ""),
            ("ns.x * ns.x", "10", 99, ""),
            ("ns.x + ns.x", "messages[0].content", 64, ""),
            ("ns.x ~ messages[0].content ~ ns.x", "''", 64, ""),
            ("[ns.x]", "[]", 20_000, "{{ ns.x }}"),
            ("(ns.x,)", "()", 20_000, "{{ {ns.x: 1} }}"),
            ("{'a': ns.x}", "1", 20_000, "{{ ns.x | tojson }}"),
            ("(ns.x,)", "()", 20_000, "{{ ns.x == (ns.x,) }}"),
            ("ns.x | map('upper')", "['a']", 20_000, "{{ ns.x | list }}{{ 1 + '' }}"),
            ("ns.x | reverse", "['a']", 100_000, "{{ ns.x | list }}{{ 1 + '' }}"),
            ("ns.x + [i]", "[]", 100_000, ""),
            ("ns.x ~ 'xxxxxxxxxxxxxxxxxxxx'", "''", 100_000, ""),
            ("ns.x.append(i)", "[]", 100_000, "{{ ns.x }}"),
            ("messages[0].content[::-1] ~ ns.x", "''", 100_000, ""),
            ("ns.x.splitlines(true) | join('\n')", "'\n' * 999", 64, ""),
        )
    ),
    "{% set x %}{% for i in range(99999) %}{{ BIG }}{% endfor %}{% endset %}",
    "{% for a in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% filter replace('x', BIG) %}{{ BIG }}{{ BIG }}{% endfilter %}",
    "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}" + "{{ " + "m(" * 40 + "'aaaaaaaa'" + ")" * 40 + " }}",
    "{% call(x) BIG() %}{% endcall %}",
]

# Small sources of much computing.
WORK = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999) | list | length }}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999) | select('odd') | first }}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999) | map('string') | max }}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999) | reverse | first }}{% endfor %}",
    "{% for i in range(99999) %}{% if 'x' in range(99999) %}{% endif %}{% endfor %}",
    "{% set r = range(99999) | list %}{% for i in r %}{% if 'x' in r %}{% endif %}{% endfor %}",
    "{% set r = range(99999) | list %}{% for i in r %}{{ r.index(99998) }}{% endfor %}",
    "{% set r = range(99999) | list %}{% for i in r %}{{ r.count(i) }}{% endfor %}",
    "{% set r = range(99999) | list %}{% for i in r %}{{ r[1:] | length }}{% endfor %}",
    "{% set r = range(99999) | list %}{% for i in r %}{% if r == r[:] %}{% endif %}{% endfor %}",
    "{% set r = range(99999) | list %}{% for i in r %}{{ r | first }}{% endfor %}",
    "{% set r = range(99999) | list %}{% for i in r %}{{ cycler(*r).next() }}{% endfor %}",
    (
        "{% set r = range(9999) | list %}{% for i in r %}"
        "{% for j in r if j == i %}{{ loop.changed(r) }}{% endfor %}{% endfor %}"
    ),
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    (
        "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{% for i in range(99999) %}"
        "{% for j in range(999) %}{% endfor %}{% endfor %}{% endcall %}"
    ),
    "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{% macro m(f) %}{{ f(f) }}{% endmacro %}{{ m(m) }}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{% set ns = namespace(x=1) %}{% for i in range(99999) %}" + "{% if ns %}{% endif %}" * 1500 + "{% endfor %}",
    "{% for i in range(99999) %}" + "{% set a = 1 %}" * 1500 + "{% endfor %}",
    "{% macro m() %}" + "{% set a = 1 %}" * 1500 + "{% endmacro %}{% for i in range(99999) %}{{ m() }}{% endfor %}",
    "{% set big = messages[0].content * 100000 %}{% for c in big %}{% endfor %}{{ big }}{% for c in big %}{% endfor %}",
    *(
        forever(step)
        for step in (
            "big == big ~ ''",
            "big < big ~ 'a'",
            "'x' in big",
            "big.count('b')",
            "big.find('ac')",
            "big.rfind('ac')",
            "big.startswith(big)",
            "big.endswith((big, big))",
            "big | length and big.upper()",
            "big.isalpha()",
            "big.islower()",
            "big is lower",
            "big.strip(big)",
            "big | trim(big)",
            "big.rstrip('b' * 9999)",
            "big.title()",
            "big | title",
            "big | capitalize",
            "big | lower",
            "big.swapcase()",
            "big.casefold()",
            "big | replace('c', 'd')",
            "big.split('c')",
            "big.rsplit('c', 1)",
            "big.partition('c')",
            "big.rpartition('c')",
            "big | e",
            "big | tojson",
            "[big] | string",
            "big | string ~ ''",
            "big[1:]",
            "big[::2]",
            "big | truncate(9999)",
            "big | indent",
            "{big: 1}[big]",
            "{big: 1} and big in {big ~ '': 1}",
            "dict([(big, 1)])",
            "[big, big ~ ''] | max",
            "[big ~ '', big] | min",
            "[big ~ 'b', big ~ 'a'] | sort",
            "[big, big ~ ''] | unique | list",
            "[{'a': big}] | groupby('a')",
            "{big: big} | dictsort",
            "big in [big ~ 'a'] * 100",
            "[big ~ ''] == [big ~ '']",
            "(big ~ '') in [[big]]",
            "[big].count(big ~ '')",
            "big is eq(big ~ '')",
            "big is in [big ~ '']",
            "'%s' % big",
            "'{}'.format(big)",
            "'%9999s' % big",
            "big.join(['', ''])",
            "big | list",
        )
    ),
    "{{ ('a' * 500000).rfind('b' + 'a' * 250000) }}",
    "{{ ('a' * 500000).rindex('b' + 'a' * 250000) }}",
    "{{ ('a' * 500000).rsplit('b' + 'a' * 250000) }}",
    "{{ ('a' * 500000).rpartition('b' + 'a' * 250000) }}",
    "{{ (messages[0].content ~ 'a' * 500000).rfind('b' + 'a' * 250000) }}",
    "{{ ('a' * 500000).strip('b' * 500000 ~ 'a') }}",
    "{% set r = range(1000) | list %}{{ r | map('string') | map('replace', '', 'x' * 99999) | sort }}",
    (
        "{% set s = ('a' * 9999 ~ ' ') * 400 %}{{ s.split() | sort | length }}"
        "{{ s.split() | sort | min }}{{ (s * 20).split() | sort }}"
    ),
    "{% set s = ['a' * 40000] * 20000 %}{{ s | sort | length }}{{ s | unique | list }}",
    "{% set s = [['a' * 40000] * 100] * 1000 %}{{ s | max | length }}{{ s | sort }}",
    "{{ [" + ", ".join(str(i * (2**61 - 1)) for i in range(1, 1500)) + "] | unique | list }}",
    "{% set d = {" + ", ".join(f"{i * (2**61 - 1)}: 1" for i in range(1, 1500)) + "} %}{{ d }}",
    "{{ {(1, 2): 3} }}",
    "{{ namespace([((1, 2), 3)]) }}",
]

# Sources that take long, or much memory, to compile.
COMPILE = [
    "x" * (compiler.MAX_SOURCE_BYTES + 1),
    "é" * (compiler.MAX_SOURCE_BYTES // 2 + 1),
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "{{ " + "{'a': " * 300 + "1" + "}" * 300 + " }}",
    "{{ " + "not " * 5000 + "1 }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{{ 1" + " + 1" * 5000 + " }}",
    "{{ 1" + " ** 1" * 3000 + " }}",
    "{{ 1" + " and 1" * 5000 + " }}",
    "{{ a" + ".a" * 5000 + " }}",
    "{{ a" + "[0]" * 3000 + " }}",
    "{{ a" + "()" * 3000 + " }}",
    "{{ a" + " | upper" * 5000 + " }}",
    "{{ a" + " is odd" * 3000 + " }}",
    "{{ a" + " if a else a" * 3000 + " }}",
    "{{ " + "a if a else " * 3000 + "a }}",
    "{% if a %}" * 500 + "{% endif %}" * 500,
    "{% for a in b %}" * 100 + "{% endfor %}" * 100,
    "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    "{% macro m() %}" * 200 + "{% endmacro %}" * 200,
    "{% call m() %}" * 200 + "{% endcall %}" * 200,
    "{% filter upper %}" * 200 + "{% endfilter %}" * 200,
    "{% with a = 1 %}" * 300 + "{% endwith %}" * 300,
    "{% set a %}" * 300 + "{% endset %}" * 300,
    "{% generation %}" * 2000 + "{% endgeneration %}" * 2000,
    "".join(f"{{% set a{i} = 1 %}}" for i in range(1500)) + "{% if a %}{% endif %}" * 1000,
    "".join(f"{{% macro m{i}() %}}{{% endmacro %}}" for i in range(1500)),
    "".join(f"{{% block b{i} %}}{{% endblock %}}" for i in range(3000)),
    "{{ a }}" * 30_000,
    "{{ [" + "1," * 60_000 + "] }}",
    "{{ {" + "1:1," * 30_000 + "} }}",
    "{{ " + "1 ~ " * 30_000 + "1 }}",
    "{{ f(" + "a," * 30_000 + ") }}",
    "{% if a %}" + "{% elif a %}" * 10_000 + "{% endif %}",
    "{{ " + "9" * 100_000 + " }}",
    "{{ 0x" + "f" * 100_000 + " }}",
    "{{ 0b" + "1" * 100_000 + " }}",
    "{{ 1" + "_1" * 50_000 + " }}",
    "{{ 1." + "9" * 100_000 + " }}",
    "{{ 'a' * 10**10 if false else 'b' }}{{ 1 + '' }}",
    "{{ ('a' * 10**9) | upper }}",
    "{{ 'a' ~ ('b' * 10**9) }}",
    "{{ ['a' * 10**9] | length }}",
    "{{ {'a': 'b' * 10**9} }}",
    "{{ ('%1000000000d' % 1)[0] }}",
    "{{ (1, 2, 3) * 10**9 }}",
    "{% if 9 ** (9 ** 9) %}{% endif %}",
    "{% set x = 9 ** (9 ** 9) %}",
    "{% for x in [9 ** (9 ** 9)] %}{% endfor %}",
    "{{ f(x='a' * 10**9) }}",
    "{% if x",
    "{{ '",
    "{% raw %}" + "{{" * 50_000,
    "{#" * 100_000,
    "{% " + "a " * 10_000 + "%}",
    "a\0b",
    "{{ messages }}\ud800",
    "{{ '\ud800' }}",
    "{{ '\\ud800' }}",
    "{{ '\\x00' }}",
    "{{ '\\udfff' ~ messages[0].content }}",
    "{{ strftime_now('\\ud800%d') }}{{ '\\ud800' }}",
    "{{ strftime_now('\\x00') }}{{ '\\x00' }}",
    "{{ raise_exception('\\ud800') }}",
]

LARGE = list(dict.fromkeys(source.replace("BIG", BIG) for source in (*MEMORY, *COMPILE)))
HOSTILE = list(dict.fromkeys([*ESCAPES, *LARGE, *WORK]))


def outcome(source):
    """The error's message. A template that renders must have shown nothing but text of its own."""
    messages = [{"role": "user", "content": "Hi there"}]
    try:
        spans = ChatTemplate(source).render(messages, now=NOW)
    except TemplateError as error:
        error.message.encode()
        return error.message
    return spans


def test_there_are_enough():
    assert len(HOSTILE) > 400


@pytest.mark.parametrize("source", HOSTILE, ids=lambda source: source[:60].encode("ascii", "backslashreplace").decode())
def test_a_hostile_template_is_refused(source, monkeypatch):
    monkeypatch.setenv(SECRET, "the secret")
    made = []
    for_input = budget.Budget.for_input
    monkeypatch.setattr(budget.Budget, "for_input", lambda *size: made.append(for_input(*size)) or made[-1])
    message = outcome(source)
    assert isinstance(message, str), message
    assert message.startswith("chat template")
    assert len(message) < 1000
    assert "the secret" not in message
    assert " at 0x" not in message
    # The last thing asked for may be more than what was left; then it was not made.
    assert all(one.left <= one.work <= budget.PER_RENDER + budget.PER_MESSAGE + 100 for one in made)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space hold on Linux")
def test_they_fit_into_a_share_of_memory():
    done = subprocess.run(
        [sys.executable, __file__],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert len(said) == len(LARGE)
    assert [source[:200] for source, words in zip(LARGE, said) if not isinstance(words, str)] == []
    # The limit was not what stopped them: each knew before.
    assert [source[:200] for source, words in zip(LARGE, said) if "MemoryError" in words] == []


if __name__ == "__main__":
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))
    print(json.dumps([outcome(source) for source in LARGE]))
