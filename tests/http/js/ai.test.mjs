// The AI SDK, unchanged, against a real server: objects and calls of a real model, all bounded and forced.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from 'ai';
import { z } from 'zod';

const { SMOLLM2, SAID: said, POLARGRID_BASE_URL } = process.env;
const SAID = JSON.parse(said).join('');
const provider = createOpenAICompatible({
  name: 'polargrid',
  baseURL: `${POLARGRID_BASE_URL}/v1`,
  apiKey: 'any',
  supportsStructuredOutputs: true,
});
const model = provider(SMOLLM2);
const limits = { maxRetries: 0, maxOutputTokens: 900, seed: 1 };
const schema = z.strictObject({
  name: z.string().max(12),
  age: z.number().int().min(0).max(120),
  mood: z.enum(['glad', 'sad']),
});
const weather = tool({
  description: 'Tells the weather.',
  inputSchema: z.strictObject({ city: z.enum(['Paris', 'Rome']) }),
  execute: ({ city }) => `sunny in ${city}`,
});

test('text, plain and streamed', async () => {
  const asked = { model: provider('scripted'), prompt: '\ue001', maxRetries: 0 };
  assert.equal((await generateText(asked)).text, SAID);
  let streamed = '';
  for await (const piece of streamText(asked).textStream) streamed += piece;
  assert.equal(streamed, SAID);
});

test('an object, plain and streamed', async () => {
  const asked = { model, schema, prompt: 'Describe a person.', ...limits };
  const { object, finishReason } = await generateObject(asked);
  assert.deepEqual(schema.parse(object), object);
  assert.equal(finishReason, 'stop');
  const stream = streamObject(asked);
  const parts = [];
  for await (const part of stream.partialObjectStream) parts.push(part);
  assert.deepEqual(await stream.object, parts.at(-1));
  assert.deepEqual(schema.parse(parts.at(-1)), object);
  assert.ok(parts.length > 2 && parts[0].mood === undefined);
});

test('a choice', async () => {
  const sides = ['left', 'right'];
  const { object } = await generateObject({ model, output: 'enum', enum: sides, prompt: 'Pick.', ...limits });
  assert.ok(sides.includes(object));
});

for (const toolChoice of ['required', { type: 'tool', toolName: 'weather' }]) {
  test(`a call, plain and streamed: ${JSON.stringify(toolChoice)}`, async () => {
    const asked = { model, tools: { weather }, toolChoice, prompt: 'How is the weather?', ...limits };
    const { toolCalls, toolResults, finishReason } = await generateText(asked);
    assert.equal(finishReason, 'tool-calls');
    assert.ok(toolCalls.every(({ toolName }) => toolName === 'weather'));
    assert.ok(toolCalls.every(({ input }) => ['Paris', 'Rome'].includes(input.city)));
    assert.deepEqual(
      toolResults.map(({ output }) => output),
      toolCalls.map(({ input }) => `sunny in ${input.city}`),
    );
    const stream = streamText(asked);
    const kinds = new Set();
    for await (const part of stream.fullStream) kinds.add(part.type);
    assert.deepEqual(
      (await stream.toolCalls).map(({ input }) => input),
      toolCalls.map(({ input }) => input),
    );
    for (const kind of ['tool-input-start', 'tool-input-delta', 'tool-call', 'tool-result', 'finish'])
      assert.ok(kinds.has(kind), kind);
  });
}

test('a call and the answer after it', async () => {
  const { steps, text } = await generateText({
    model,
    tools: { weather },
    prompt: 'How is the weather?',
    stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? 'required' : 'none' }),
    ...limits,
    maxOutputTokens: 200,
  });
  assert.equal(steps.length, 2);
  assert.ok(steps[0].toolCalls.length > 0 && text.length > 0);
});
