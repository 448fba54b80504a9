// Ollama's own client for JavaScript, unchanged, against a real server.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Ollama } from 'ollama';

const { SMOLLM2, SAID: said, POLARGRID_BASE_URL } = process.env;
const SAID = JSON.parse(said);
const ollama = new Ollama({ host: POLARGRID_BASE_URL });
const scripted = { model: 'scripted', messages: [{ role: 'user', content: '\ue001' }] };
const options = { temperature: 0, num_predict: 200 };

test('chat, plain and streamed', async () => {
  const answer = await ollama.chat(scripted);
  assert.deepEqual([answer.message.content, answer.done_reason], [SAID.join(''), 'stop']);
  const pieces = [];
  let last;
  for await (const part of await ollama.chat({ ...scripted, stream: true })) {
    if (part.message.content) pieces.push(part.message.content);
    last = part;
  }
  assert.deepEqual([pieces, last.done, last.eval_count], [SAID, true, answer.eval_count]);
});

test('generate, embed, list, show, ps', async () => {
  assert.equal((await ollama.generate({ model: 'scripted', prompt: '\ue001' })).response, SAID.join(''));
  const { embeddings } = await ollama.embed({ model: SMOLLM2, input: ['one', 'two'] });
  assert.deepEqual([embeddings.length, embeddings[0].length], [2, 576]);
  for (const { models } of [await ollama.list(), await ollama.ps()])
    assert.ok(models.some(({ name }) => name.split(':')[0] === SMOLLM2));
  assert.ok((await ollama.show({ model: SMOLLM2 })).model_info);
});

test('an answer in a format', async () => {
  const format = {
    type: 'object',
    properties: { mood: { enum: ['glad', 'sad'] } },
    required: ['mood'],
    additionalProperties: false,
  };
  const messages = [{ role: 'user', content: 'Describe a person.' }];
  const { message } = await ollama.chat({ model: SMOLLM2, messages, format, options });
  assert.ok(['glad', 'sad'].includes(JSON.parse(message.content).mood));
});

test('abort ends a stream; the client stays usable', async () => {
  const stream = await ollama.chat({ ...scripted, model: 'random', options: { num_predict: 1900 }, stream: true });
  await assert.rejects(
    async () => {
      for await (const part of stream) if (part.message.content) stream.abort();
    },
    { name: 'AbortError' },
  );
  assert.equal((await ollama.chat(scripted)).message.content, SAID.join(''));
});

test('errors', async () => {
  await assert.rejects(ollama.chat({ ...scripted, model: 'nope' }), ({ name, status_code, message }) => {
    assert.deepEqual([name, status_code], ['ResponseError', 404]);
    return message.includes('nope');
  });
});
