// Which Markdown is honoured: what marked reads, except where a model writes the same characters to mean themselves.
//
// TeX, paths, regular expressions, ranges and products keep every character:
// \(a_1\), C:\new\table, \d+\.\d, 3~5, 2*3*4.

import { Lexer, Marked, Tokenizer } from './vendor/marked.js';

const MAX_MATH = 5000; // characters of one formula
const MAX_MISSES = 200; // opening marks without an end: a text with more is not TeX, and searching it would take long
const PAIRS = [
  ['\\(', '\\)'],
  ['\\[', '\\]'],
  ['$$', '$$'],
];
const ENVIRONMENT = /^\\begin\{([a-zA-Z]{1,20}\*?)\}/;
// $x$: no space inside the marks, no word after them ($5-$10, $HOME/$USER), and within them one word, or a text with
// one of a formula's signs.
const ONE_WORD = /[^\s$`]{1,200}?/.source;
const WITH_SIGNS = /(?=[^$\n]*[\\^_{}=<>+|])(?:\\.|[^\\$\n`]){1,500}?/.source;
const DOLLARS = new RegExp(`^\\$(?![\\s$])(?:${ONE_WORD}|${WITH_SIGNS})(?<![\\s\\\\])\\$(?![\\w$])`);
const FORMULA_BEGINS = /^ {0,3}(?=\\\[|\$\$|\\begin\{)/;

// One character of a run without spaces, or a backslash and the character after it. Emphasis marks at the end of a word
// do not belong to the run.
const UNIT =
  '(?:\\\\(?![(\\[])[!-~]|[*_~](?=[*_~]*[\\p{L}\\p{N}\\\\])|(?![\\[\\]`<$\\\\*_~])[!-~\\p{L}\\p{M}\\p{N}])';
const RUN = new RegExp(`${UNIT}{1,300}`, 'uy');
// A backslash before a letter or digit is no escape of Markdown: the run is a path, a regular expression or TeX.
const LITERAL_RUN = new RegExp(`(?=${UNIT}{0,60}?\\\\[A-Za-z0-9])${UNIT}{1,300}`, 'uy');
const DUNDER = /(?<![\w*])__[a-z]\w*?__(?!\w)/y;

function matched(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text)?.[0] ?? '';
}

// The formula that stands at `at`, or "".
function mathAt(lexer, text, at) {
  if (lexer.misses > MAX_MISSES) return '';
  const rest = text.slice(at, at + MAX_MATH);
  const [open, close] = PAIRS.find(([mark]) => rest.startsWith(mark)) ?? [];
  const [begin, name] = ENVIRONMENT.exec(rest) ?? [];
  if (!open && !begin) return rest[0] === '$' ? (DOLLARS.exec(rest)?.[0] ?? '') : '';
  const last = close ?? `\\end{${name}}`;
  const end = rest.indexOf(last, 2);
  if (end > 2) return rest.slice(0, end + last.length);
  lexer.misses++;
  return '';
}

// What stands at `at` and means itself: {type: "math" | "verbatim", raw}; undefined: Markdown decides.
function sourceAt(lexer, text, at) {
  const before = at < 12 ? `\n${text.slice(0, at)}` : text.slice(at - 12, at);
  if (text[at] === '$' && /[\w\\$]$/.test(before)) return undefined;
  const math = mathAt(lexer, text, at);
  if (math) return { type: 'math', raw: math };
  if (text[at] === '$') return undefined;
  const run = matched(LITERAL_RUN, text, at) || (/[^A-Za-z][A-Za-z]:$/.test(before) && matched(RUN, text, at));
  if (run) return { type: 'verbatim', raw: run };
  const next = text[at + 1] ?? '';
  if (escapes(next, before, text[at + 2])) return undefined;
  return { type: 'verbatim', raw: /[!-/:-@[-`{-~]/.test(next) ? `\\${next}` : '\\' };
}

// True where a backslash is there to keep `next` from being markup.
function escapes(next, before, afterwards) {
  if (next === '$') return /\d/.test(afterwards);
  if (next === '-' || next === '+') return /\n {0,3}$/.test(before);
  if (next === '.' || next === ')') return /\n {0,3}\d{1,9}$/.test(before);
  return next !== '' && '*_`~|#<>'.includes(next);
}

const source = {
  name: 'source',
  level: 'inline',
  start: (text) => text.indexOf('$'),
  tokenizer(text) {
    const whole = this.lexer.source;
    return text[0] === '\\' || text[0] === '$' ? sourceAt(this.lexer, whole, whole.length - text.length) : undefined;
  },
};

// A formula on lines of its own. One that is not closed yet takes the rest, where the text ends in it.
const formula = {
  name: 'formula',
  level: 'block',
  start(text) {
    if (this.lexer.misses > MAX_MISSES) return undefined;
    const end = text.indexOf('\n\n');
    const found = /\n {0,3}(?:\\\[|\$\$|\\begin\{)/.exec(end < 0 ? text : text.slice(0, end));
    return found ? found.index + 1 : undefined;
  },
  tokenizer(text) {
    const indent = FORMULA_BEGINS.exec(text)?.[0];
    if (indent === undefined) return undefined;
    const math = mathAt(this.lexer, text, indent.length);
    if (!math) {
      const isShort = text.length < MAX_MATH;
      const open = isShort && /^ *(?:\\\[|\$\$[ \t]*\n)/.test(text) && !/\n[ \t]*\n/.test(text.trimEnd());
      return open ? { type: 'formula', raw: text } : undefined;
    }
    const rest = /^[ \t]*[.,;:]?[ \t]*(?:\n|$)/.exec(text.slice(indent.length + math.length));
    return rest ? { type: 'formula', raw: indent + math + rest[0] } : undefined;
  },
};

class Source extends Lexer {
  source = ''; // the text whose inline tokens are being found
  misses = 0;

  inlineTokens(text, tokens) {
    const outer = this.source;
    this.source = text;
    try {
      return super.inlineTokens(text, tokens);
    } finally {
      this.source = outer;
    }
  }
}

class Marks extends Tokenizer {
  // A masked mark is text. The characters before and after a mark decide what it does; after tokens of our own, marked
  // does not say which character came before, but `masked` holds it.
  emStrong(text, masked, before) {
    if (masked.at(-text.length) !== text[0]) return undefined;
    return super.emStrong(text, masked, before || (masked[masked.length - text.length - 1] ?? ''));
  }

  // One tilde is "about", or a range: 3~5.
  del(text, masked, before) {
    return text.startsWith('~~') ? super.del(text, masked, before) : undefined;
  }
}

// marked looks for the ends of emphasis in `masked`, where code, links and escapes are already blanked out. Here the
// marks that mean themselves are, too: those within a word, as in 2*3*4 and x**2, unless they end an emphasis that
// began at the start of a word, as in **word**s.
function emStrongMask(masked) {
  const text = this.lexer.source;
  const open = new Set(); // lengths of the runs of * that may still be ended
  let out = '';
  for (let at = 0; at < text.length;) {
    let raw = '';
    let keep = 1;
    if (text[at] === '\\' && '\\+'.includes(masked[at])) {
      raw = sourceAt(this.lexer, text, at)?.raw ?? '';
      keep = 2;
    } else if (text[at] === '$' && masked[at] === '$') {
      raw = sourceAt(this.lexer, text, at)?.raw ?? '';
    } else if (masked[at] === '_') {
      raw = matched(DUNDER, text, at);
    } else if (masked[at] === '*') {
      const stars = /^\*+/.exec(text.slice(at, at + 100))[0];
      const inWord = /[A-Za-z0-9)\]]/.test(text[at - 1] ?? '') && /[A-Za-z0-9(]/.test(text[at + stars.length] ?? '');
      if (inWord && !open.delete(stars.length)) raw = stars;
      else if (/[^\s*]/.test(text[at - 1] ?? '')) open.delete(stars.length);
      else open.add(stars.length);
      keep = stars.length;
    }
    out += raw ? 'a'.repeat(raw.length) : masked.slice(at, at + keep);
    at += raw.length || keep;
  }
  return out;
}

const { defaults } = new Marked({ gfm: true, breaks: true, extensions: [source, formula] });

/** The tokens of marked's lexer and three more: "math" in a line, "formula" on lines of its own, "verbatim" text. */
export const tokensOf = (text) =>
  new Source({ ...defaults, tokenizer: new Marks(), hooks: { emStrongMask } }).lex(text);
