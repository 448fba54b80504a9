// Markdown text -> DOM nodes. The parser (syntax.js) only finds the structure; every node is made here, and all text is
// set as text, so that nothing a model writes becomes markup. Images are shown as links: fetching one would tell its
// host about the chat.

import { copyButton, el } from './dom.js';
import { pretty } from './json.js';
import { tokensOf } from './syntax.js';

const MAX_CHARS = 200_000; // beyond: plain text
const MAX_DEPTH = 40; // of nested blocks and spans; deeper levels are shown as their source
const NAMED = {
  amp: '&',
  lt: '<',
  gt: '>',
  quot: '"',
  apos: "'",
  nbsp: '\u00a0',
  copy: '©',
  mdash: '—',
  ndash: '–',
  hellip: '…',
  times: '×',
  rarr: '→',
};

/**
 * Shows `text` in `node`; blocks that did not change since the last call keep their elements, and so does code that
 * grows. JSON is shown as code; `isJson`: even a number or a text on its own is JSON.
 */
export function showMarkdown(node, text, isJson) {
  const blocks = blocksOf(text, isJson);
  const old = node.shownBlocks ?? [];
  let same = 0;
  while (same < blocks.length && same < old.length && blocks[same].raw === old[same].raw) same++;
  if (blocks[same]?.type === 'code' && old[same]?.type === 'code') {
    old[same] = { ...blocks[same], element: old[same].element };
    setCode(old[same].element, blocks[same].text, languageOf(blocks[same]));
    same++;
  }
  for (const { element } of old.slice(same)) element.remove();
  for (const block of blocks.slice(same)) {
    block.element = render(block, 0);
    node.append(block.element);
  }
  node.shownBlocks = [...old.slice(0, same), ...blocks.slice(same)];
}

function blocksOf(text, isJson) {
  const plain = [{ type: 'plain', raw: text }];
  if (text.length > MAX_CHARS) return plain;
  const json = pretty(text, isJson);
  if (json !== null) return [{ type: 'code', lang: 'json', text: json, raw: text }];
  try {
    const tokens = tokensOf(text).filter(({ type }) => type !== 'space');
    level(tokens.filter(({ type }) => type === 'heading'));
    return tokens;
  } catch {
    // too deeply nested for the parser
    return plain;
  }
}

// The page uses h1 and h2. Whatever level an answer begins with becomes h3, and none is skipped on the way down.
function level(headings) {
  let last = 2;
  for (const heading of headings) {
    last = Math.min(last + 1, 6, Math.max(3, 3 + heading.depth - headings[0].depth));
    heading.level = last;
  }
}

function render(token, depth) {
  if (depth > MAX_DEPTH) return document.createTextNode(token.raw ?? '');
  const inside = (tokens = token.tokens) => tokens.map((child) => render(child, depth + 1));
  switch (token.type) {
    case 'paragraph':
      return el('p', { dir: directionOf(token) }, inside());
    case 'heading':
      // Those within lists and quotes have no level.
      return token.level
        ? el(`h${token.level}`, { dir: directionOf(token) }, inside())
        : el('p', { dir: directionOf(token) }, el('strong', {}, inside()));
    case 'code':
      return codeBlock(token.text, languageOf(token));
    case 'blockquote':
      return el('blockquote', { dir: sideOf(token) }, inside());
    case 'list':
      return list(token, depth);
    case 'list_item':
      return el('li', { class: token.task ? 'task' : null, value: token.value }, inside());
    case 'checkbox':
      return el('input', {
        type: 'checkbox',
        disabled: true,
        checked: token.checked,
        'aria-label': token.checked ? 'done' : 'to do',
      });
    case 'table':
      return table(token, depth);
    case 'hr':
      return el('hr');
    case 'br':
      return el('br');
    case 'math':
      return el('code', { class: 'math', dir: 'ltr' }, token.raw);
    case 'formula':
      return el('div', { class: 'formula', dir: 'ltr' }, el('code', { class: 'math' }, token.raw.trim()));
    case 'verbatim':
      return document.createTextNode(token.raw);
    case 'strong':
      return el('strong', {}, inside());
    case 'em':
      return el('em', {}, inside());
    case 'del':
      return el('del', {}, inside());
    case 'codespan':
      return el('code', { dir: 'ltr' }, token.text);
    case 'link':
      return link(token.href, inside(), token.raw);
    case 'image':
      return link(token.href, [token.text || token.href], token.raw);
    case 'escape':
      return document.createTextNode(token.text);
    case 'text':
      if (!token.tokens) return document.createTextNode(decoded(token.text));
      return el('span', { dir: directionOf(token) }, inside());
    case 'plain':
      return plain(token.raw);
    case 'html':
      return token.block ? plain(token.raw.trim()) : document.createTextNode(token.raw);
    case 'def': // shown too: models write notes and sources that no link refers to
      return plain(token.raw.trim());
    default:
      return document.createTextNode(token.raw ?? '');
  }
}

const languageOf = ({ lang }) => /^[\w+#.-]{1,30}/.exec(lang ?? '')?.[0] ?? '';

/** A block of code that can be copied, below its language or another name, and with further buttons. */
export function codeBlock(text, name, label = 'Code', ...buttons) {
  const code = el('code', {});
  const figure = el(
    'figure',
    { class: 'code', dir: 'ltr' },
    el('figcaption', {}, el('span', {}), copyButton(`Copy ${label.toLowerCase()}`, () => code.textContent), buttons),
    el('pre', { 'tabindex': '0', 'role': 'region', 'data-label': label }, code),
  );
  setCode(figure, text, name);
  return figure;
}

/** Another text, or more of it, in a block that `codeBlock` made. */
export function setCode(figure, text, name) {
  const [caption, pre] = figure.children;
  const { label } = pre.dataset;
  caption.firstElementChild.textContent = name || 'text';
  pre.setAttribute('aria-label', name && name !== label ? `${label}, ${name}` : label);
  pre.classList.toggle('wraps', name === 'json');
  pre.firstElementChild.textContent = text;
}

const plain = (text) => el('div', { class: 'plain', dir: 'auto' }, text);

// Each item keeps the number that it was written with; Markdown would count on from the first.
function list(token, depth) {
  const numbers = token.items.map(({ raw }) => Number(/^\s*(\d{1,9})[.)]/.exec(raw)?.[1]));
  const counted = numbers.every((number, at) => number === numbers[0] + at) || new Set(numbers).size < numbers.length;
  return el(
    token.ordered ? 'ol' : 'ul',
    { start: token.ordered && token.start !== 1 ? token.start : null, dir: sideOf(token) },
    token.items.map((item, at) =>
      render(token.ordered && !counted ? { ...item, value: numbers[at] } : item, depth + 1),
    ),
  );
}

function table(token, depth) {
  const { header, rows, raw } = token;
  const cell = (tag, { tokens, align }) =>
    el(
      tag,
      { class: align && `to-${align}` },
      el('span', { dir: directionOf({ tokens }) }, tokens.map((token) => render(token, depth + 1))),
    );
  const row = (cells, tag, line = '') =>
    el(
      'tr',
      {},
      cells.map((one) => cell(tag, one)),
      cellsOf(line) // Markdown drops cells beyond those of the header
        .slice(header.length)
        .map((text) => cell(tag, { tokens: [{ type: 'verbatim', raw: text }] })),
    );
  const lines = raw.split('\n').slice(2);
  return el(
    'div',
    { class: 'table', dir: sideOf(token), tabindex: '0', role: 'region', 'aria-label': 'Table' },
    el(
      'table',
      {},
      el('thead', {}, row(header, 'th')),
      el('tbody', {}, rows.map((cells, at) => row(cells, 'td', lines[at]))),
    ),
  );
}

const cellsOf = (line) =>
  line
    .trim()
    .replace(/^\||(?<!\\)\|$/g, '')
    .split(/(?<!\\)\|/)
    .map((text) => text.trim());

const FROM_RIGHT = '\\p{Script=Hebrew}\\p{Script=Arabic}\\p{Script=Syriac}\\p{Script=Thaana}\\p{Script=Nko}';
const FIRST_FROM_RIGHT = new RegExp(`^[^\\p{L}]*[${FROM_RIGHT}]`, 'u');
const WORD_FROM_RIGHT = new RegExp(`[${FROM_RIGHT}][\\p{L}\\p{M}]*`, 'gu');

// The words of a block, without code, formulas and addresses.
function proseOf(token) {
  const parts = token.tokens ?? token.items ?? (token.rows && [...token.header, ...token.rows.flat()]);
  if (parts) return parts.map(proseOf).join(token.items || token.rows ? '\n' : '');
  return { text: token.text, escape: token.text, br: '\n' }[token.type] ?? ' ';
}

function isMostlyFromRight(text) {
  const fromRight = text.match(WORD_FROM_RIGHT)?.length ?? 0;
  return fromRight > 0 && 2 * fromRight >= text.match(/\p{L}[\p{L}\p{M}]*/gu).length;
}

// The direction of a paragraph: that of its first letter, unless it is a text from right to left that begins with a
// foreign word. Where lines differ, each has its own direction.
function directionOf(token) {
  const lines = proseOf(token).split('\n').filter((line) => /\p{L}/u.test(line));
  const odd = lines.some((line) => !FIRST_FROM_RIGHT.test(line));
  return lines.length && odd && lines.every(isMostlyFromRight) ? 'rtl' : 'auto';
}

// The side that a list, a table or a quote begins on.
const sideOf = (token) => (isMostlyFromRight(proseOf(token)) ? 'rtl' : 'ltr');

function link(href, children, raw) {
  let url = null;
  try {
    url = new URL(href);
  } catch {
    /* relative addresses mean nothing here */
  }
  if (!['http:', 'https:', 'mailto:'].includes(url?.protocol)) return document.createTextNode(raw);
  return el(
    'a',
    { href: url.href, target: '_blank', rel: 'noopener noreferrer nofollow', title: url.href },
    children,
  );
}

const decoded = (text) =>
  text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|(\w{2,8}));/gi, (all, decimal, hex, name) => {
    const code = decimal ? Number(decimal) : parseInt(hex, 16);
    if (name) return NAMED[name] ?? all;
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : all;
  });
