// merge.js: whatever two tabs do to one chat, in whatever order they store it, both end alike and nothing is lost.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { applied, changes, isNothing } from '../../../polargrid_local/web/merge.js';

const message = (id, content = id) => ({ id, role: 'user', content });
const chat = (...messages) => ({ id: 'c', title: '', system: '', updated: 1, messages });
const ids = ({ messages }) => messages.map(({ id }) => id);

test('what both add stays, what one removes is gone, fields merge one by one', () => {
  const base = chat(message('a'), message('b'));
  const left = { ...chat(message('a'), message('b'), message('l')), title: 'named', updated: 5 };
  const right = { ...chat(message('a'), message('r', 'more')), system: 'brief', updated: 3 };
  const stored = applied(applied(base, changes(base, left)), changes(base, right));
  assert.deepEqual(ids(stored), ['a', 'l', 'r']);
  assert.deepEqual([stored.title, stored.system, stored.updated], ['named', 'brief', 5]);
});

test('a chat that was removed does not come back with an answer, only as a new one', () => {
  const base = chat(message('a'));
  assert.equal(applied(undefined, changes(base, chat(message('a'), message('b')))), null);
  assert.deepEqual(ids(applied(undefined, changes(undefined, chat(message('a'))))), ['a']);
  const grown = changes(base, chat(message('a', 'longer')));
  assert.deepEqual(ids(applied(chat(), grown)), []); // the message alone was removed
  assert.ok(isNothing(changes(base, structuredClone(base))));
});

// A small generator of numbers, the same in every run.
function* numbers(seed) {
  for (let n = seed; ; n = (n * 1103515245 + 12345) % 2147483648) yield n >> 8;
}

test('two tabs at random converge, keep what was added and not removed; a change repeated changes nothing', () => {
  for (let seed = 1; seed <= 300; seed++) {
    const source = numbers(seed);
    const next = (n) => source.next().value % n;
    let stored = chat(message('m0'));
    const tabs = [0, 1].map(() => ({ base: structuredClone(stored), shown: structuredClone(stored) }));
    const added = new Set(['m0']);
    const removed = new Set();
    const save = (tab) => {
      const change = changes(tab.base, tab.shown);
      stored = applied(stored, change);
      assert.deepEqual(applied(stored, change), stored);
      tab.base = structuredClone(stored);
      tab.shown = structuredClone(stored);
    };
    for (let step = 1; step <= 30; step++) {
      const tab = tabs[next(2)];
      const { messages } = tab.shown;
      switch (next(4)) {
        case 0:
          messages.push(message(`m${step}`));
          added.add(`m${step}`);
          break;
        case 1:
          if (messages.length) messages.at(-1).content += '+';
          break;
        case 2:
          for (const { id } of messages.splice(1 + next(messages.length + 1))) removed.add(id);
          break;
        default:
          save(tab);
      }
    }
    for (const tab of [...tabs, ...tabs]) save(tab);
    assert.deepEqual(tabs[0].shown, tabs[1].shown);
    assert.deepEqual(new Set(ids(stored)), new Set([...added].filter((id) => !removed.has(id))));
  }
});
