// json.js: JSON is indented without another change, at every length of it; what is no JSON is left alone.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pretty } from '../../../polargrid_local/web/json.js';

const DOCUMENTS = [
  '{}',
  ' [ ] ',
  '{"a":1,"b":[true,false,null],"c":{"d":"e"}}',
  '[1,-2.50,3e10,0.1E-7,12345678901234567890123,[[]],{}]',
  '{"a b":"{\\"x\\": [1, 2], \\\\ \\u00e9 é 😀 \u2028 , : }","":""}',
  '{"a":1,"a":2,"__proto__":{"x":1}}',
  '\n{\n "x" :\t[ 1 , 2 ]\r\n}\n',
  '"alone"',
  '-12.5e3',
  'true',
];
const NO_JSON = [
  '',
  '  ',
  'text',
  '{a: 1}',
  "{'a': 1}",
  '{"a": 1,}',
  '[1,]',
  '[,1]',
  '{"a" 1}',
  '{"a":1 "b":2}',
  '{"a"}',
  '[1] See the first source.',
  '[site](https://example.org)',
  '[x] done',
  '{"a":1}{"b":2}',
  '[}',
  '}',
  '{"a":"line\nbreak"}',
  '{"a":"\\x"}',
  '[01]',
  '[tru, 1]',
  '{1:2}',
  `${'['.repeat(100_000)}`,
];
// Blanks between the tokens taken out: what is left must be the same before and after.
const tokens = (text) => text.replace(/("(?:[^"\\]|\\.)*(?:"|\\?$))|[ \t\r\n]+/g, (all, string) => string ?? '');

test('each document, whole and cut anywhere, keeps its tokens', () => {
  for (const text of DOCUMENTS) {
    assert.deepEqual(JSON.parse(pretty(text, true)), JSON.parse(text));
    for (let end = text.search(/\S/) + 1; end <= text.length; end++) {
      const part = text.slice(0, end);
      const shown = pretty(part, true);
      assert.notEqual(shown, null, part);
      assert.equal(tokens(shown), tokens(part));
      assert.equal(pretty(shown, true), shown);
    }
  }
});

test('it is indented', () => {
  assert.equal(pretty('{"a":[1,{}]}'), '{\n  "a": [\n    1,\n    {}\n  ]\n}');
  const value = { list: [1, [2, [], {}]], text: 'a, b: {c}', deep: { deeper: { deepest: null } } };
  assert.equal(pretty(JSON.stringify(value)), JSON.stringify(value, null, 2));
});

test('other text is no JSON', () => {
  for (const text of NO_JSON) assert.equal(pretty(text, true), null, text.slice(0, 40));
  for (const text of ['"alone"', '12', 'true', 'nu', '-']) assert.equal(pretty(text), null, text);
});
