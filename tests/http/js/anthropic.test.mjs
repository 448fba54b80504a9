// Anthropic's own client for JavaScript, unchanged, against a real server.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import Anthropic from '@anthropic-ai/sdk';

const { SMOLLM2, SAID: said, POLARGRID_BASE_URL } = process.env;
const SAID = JSON.parse(said);
const anthropic = new Anthropic({ baseURL: POLARGRID_BASE_URL, apiKey: 'any', maxRetries: 0 });
const scripted = { model: 'scripted', max_tokens: 50, messages: [{ role: 'user', content: '\ue001' }] };

test('a message, plain and streamed', async () => {
  const message = await anthropic.messages.create(scripted);
  assert.deepEqual(
    message.content.map(({ text }) => text),
    [SAID.join('')],
  );
  assert.equal(message.stop_reason, 'end_turn');
  const pieces = [];
  const stream = anthropic.messages.stream(scripted).on('text', (piece) => pieces.push(piece));
  const { content, usage } = await stream.finalMessage();
  assert.deepEqual([pieces, content[0].text], [SAID, SAID.join('')]);
  assert.equal(usage.output_tokens, message.usage.output_tokens);
});

test('a call, plain and streamed', async () => {
  const asked = {
    model: SMOLLM2,
    max_tokens: 200,
    messages: [{ role: 'user', content: 'How is the weather?' }],
    tools: [
      {
        name: 'weather',
        input_schema: {
          type: 'object',
          properties: { city: { enum: ['Paris', 'Rome'] } },
          required: ['city'],
          additionalProperties: false,
        },
      },
    ],
    tool_choice: { type: 'tool', name: 'weather', disable_parallel_tool_use: true },
  };
  const message = await anthropic.messages.create(asked);
  const streamed = await anthropic.messages.stream(asked).finalMessage();
  for (const { content, stop_reason } of [message, streamed]) {
    assert.deepEqual([content.length, content[0].name, stop_reason], [1, 'weather', 'tool_use']);
    assert.ok(['Paris', 'Rome'].includes(content[0].input.city));
  }
});

test('models, counts, errors', async () => {
  const ids = [];
  for await (const { id } of anthropic.models.list()) ids.push(id);
  assert.ok(ids.includes(SMOLLM2));
  const { model, messages } = scripted;
  assert.ok((await anthropic.messages.countTokens({ model, messages })).input_tokens > 0);
  await assert.rejects(anthropic.messages.create({ ...scripted, model: 'nope' }), Anthropic.NotFoundError);
});
