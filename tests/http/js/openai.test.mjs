// The official OpenAI client for Node, unchanged, against a real server.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';

const { SMOLLM2, ALIAS, SAID: said, POLARGRID_BASE_URL } = process.env;
const SAID = JSON.parse(said);
const openai = new OpenAI({ baseURL: `${POLARGRID_BASE_URL}/v1`, apiKey: 'any' });
const scripted = { model: 'scripted', messages: [{ role: 'user', content: '\ue001' }] };

test('chat', async () => {
  const reply = await openai.chat.completions.create(scripted);
  assert.equal(reply.choices[0].message.content, SAID.join(''));
  assert.deepEqual([reply.choices[0].finish_reason, reply.usage.completion_tokens], ['stop', SAID.length]);
  assert.match(reply._request_id, /^req_/);
});

test('chat, streamed with usage', async () => {
  const pieces = [];
  let reason = null;
  let usage = null;
  for await (const chunk of await openai.chat.completions.create({
    ...scripted,
    stream: true,
    stream_options: { include_usage: true },
  })) {
    if (chunk.choices[0]?.delta.content) pieces.push(chunk.choices[0].delta.content);
    reason ??= chunk.choices[0]?.finish_reason;
    usage ??= chunk.usage;
  }
  assert.deepEqual([pieces, reason, usage.completion_tokens], [SAID, 'stop', SAID.length]);
});

test('the stream helper puts the message together', async () => {
  const message = await openai.chat.completions.stream(scripted).finalMessage();
  assert.equal(message.content, SAID.join(''));
});

test('text, embeddings, models', async () => {
  const text = await openai.completions.create({ model: 'scripted', prompt: '\ue000', max_tokens: 50 });
  assert.equal(text.choices[0].text, SAID.join(''));
  const { data } = await openai.embeddings.create({ model: SMOLLM2, input: 'hello' });
  assert.ok(data[0].embedding.length > 100 && data[0].embedding.every(Number.isFinite));
  // Without encoding_format this client asks for base64.
  const floats = await openai.embeddings.create({ model: SMOLLM2, input: 'hello', encoding_format: 'float' });
  assert.equal(floats.data[0].embedding.length, data[0].embedding.length);
  floats.data[0].embedding.forEach((x, i) => assert.ok(Math.abs(x - data[0].embedding[i]) < 1e-6));
  const ids = [];
  for await (const model of openai.models.list()) ids.push(model.id);
  assert.ok(ids.includes(SMOLLM2));
  assert.equal((await openai.models.retrieve(ALIAS)).id, ALIAS);
});

test('leaving a stream stops it; the client stays usable', async () => {
  const stream = await openai.chat.completions.create({
    model: 'random',
    messages: scripted.messages,
    max_tokens: 15_000,
    stream: true,
  });
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  assert.ok(stream.controller.signal.aborted);
  assert.equal((await openai.chat.completions.create(scripted)).choices[0].message.content, SAID.join(''));
});

test('errors', async () => {
  const bare = (error, kind, code) =>
    error instanceof kind && error.code === code && typeof error.error.message === 'string';
  await assert.rejects(openai.chat.completions.create({ ...scripted, model: 'nope' }), (error) =>
    bare(error, OpenAI.NotFoundError, 'model_not_loaded'),
  );
  await assert.rejects(openai.chat.completions.create({ ...scripted, temperature: 9 }), (error) =>
    bare(error, OpenAI.BadRequestError, 'invalid_request'),
  );
  await assert.rejects(openai.chat.completions.create({ ...scripted, messages: [] }), OpenAI.BadRequestError);
});

test('runTools calls, tells the results and goes on', async () => {
  const asked = [];
  const runner = openai.chat.completions.runTools(
    {
      model: SMOLLM2,
      messages: [{ role: 'user', content: 'How is the weather?' }],
      tool_choice: { type: 'function', function: { name: 'weather' } },
      max_tokens: 200,
      seed: 1,
      tools: [
        {
          type: 'function',
          function: {
            name: 'weather',
            description: 'Tells the weather.',
            parameters: {
              type: 'object',
              properties: { city: { enum: ['Paris', 'Rome'] } },
              required: ['city'],
              additionalProperties: false,
            },
            parse: JSON.parse,
            function: ({ city }) => {
              asked.push(city);
              return `sunny in ${city}`;
            },
          },
        },
      ],
    },
    { maxChatCompletions: 1 },
  );
  await runner.done();
  assert.ok(asked.length > 0 && asked.every((city) => ['Paris', 'Rome'].includes(city)));
  assert.equal(runner.messages.at(-1).role, 'tool');
});
