// JSON text, indented for reading, also while it is still coming. Every token stays as it was written.

const MAX_CHARS = 200_000; // a longer text, or one that is nested deeper, is left as it is
const MAX_DEPTH = 64;
const BLANK = /[ \t\n\r]*/y;
const ESCAPE = /\\(?:["\\/bfnrt]|u[\da-fA-F]{4})/.source;
const INSIDE = /[^"\\\x00-\x1f]*/.source;
const CUT_ESCAPE = /(?:\\(?:u[\da-fA-F]{0,3})?)?/.source;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/.source;
const STRING = `"${INSIDE}(?:${ESCAPE}${INSIDE})*(?:"|${CUT_ESCAPE}$)`;
const TOKEN = new RegExp(`[{}[\\],:]|${STRING}|${NUMBER}|true|false|null`, 'y');
const CUT_NUMBER = /^-?(?:(?:0|[1-9]\d*)(?:\.\d*)?(?:(?<=\d)[eE][+-]?\d*)?)?$/;

/**
 * `text` indented, if it is JSON or the beginning of it; null if it is not. A text, a number, true, false or null on
 * its own counts where `scalars` says so.
 */
export function pretty(text, scalars = false) {
  if (text.length > MAX_CHARS) return null;
  const ends = []; // the marks that end what is open
  let out = '';
  let before = 'start'; // what the last token was: start, open, key, colon, comma, value
  for (let at = skipBlank(text, 0); at < text.length; at = skipBlank(text, at)) {
    const token = tokenAt(text, at);
    at += token.length;
    const inObject = ends.at(-1) === '}';
    const first = token[0];
    if (first === '}' || first === ']') {
      if (ends.pop() !== first || (before !== 'open' && before !== 'value')) return null;
      out += before === 'open' ? first : `${newLine(ends)}${first}`;
      before = 'value';
    } else if (first === ',') {
      if (before !== 'value' || !ends.length) return null;
      out += first;
      before = 'comma';
    } else if (first === ':') {
      if (before !== 'key') return null;
      out += ': ';
      before = 'colon';
    } else {
      const begins = before === 'open' || before === 'comma';
      const isKey = inObject && begins;
      const opens = first === '{' || first === '[';
      if (!token || (isKey && first !== '"') || (!begins && before !== 'colon' && before !== 'start')) return null;
      if (before === 'start' && !opens && !scalars) return null;
      out += (begins ? newLine(ends) : '') + token;
      before = opens ? 'open' : isKey ? 'key' : 'value';
      if (opens && ends.push(first === '{' ? '}' : ']') > MAX_DEPTH) return null;
    }
  }
  return before === 'start' ? null : out;
}

const newLine = (ends) => `\n${'  '.repeat(ends.length)}`;

function skipBlank(text, at) {
  BLANK.lastIndex = at;
  BLANK.test(text);
  return BLANK.lastIndex;
}

// The token at `at`, which may be cut by the end of the text; "" where there is none.
function tokenAt(text, at) {
  TOKEN.lastIndex = at;
  const token = TOKEN.exec(text)?.[0] ?? '';
  const rest = text.slice(at);
  const isCut = ['true', 'false', 'null'].some((word) => word.startsWith(rest)) || CUT_NUMBER.test(rest);
  return isCut ? rest : token;
}
