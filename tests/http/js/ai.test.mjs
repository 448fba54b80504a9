// The AI SDK, unchanged, against a real server through four of its providers: objects and calls of a real model, all
// bounded and forced.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } from 'ai';
import { z } from 'zod';

const { SMOLLM2, SAID: said, POLARGRID_BASE_URL } = process.env;
const SAID = JSON.parse(said).join('');
const at = { baseURL: `${POLARGRID_BASE_URL}/v1`, apiKey: 'any' };
const openai = createOpenAI(at);
const PROVIDERS = {
  'openai-compatible': createOpenAICompatible({
    ...at,
    name: 'polargrid',
    supportsStructuredOutputs: true,
    includeUsage: true,
  }),
  'openai, by responses': openai, // its default
  'openai, by chats': openai.chat,
  anthropic: createAnthropic(at),
};
const limits = { maxRetries: 0, maxOutputTokens: 300, temperature: 0 };
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

for (const [name, provider] of Object.entries(PROVIDERS)) {
  const model = provider(SMOLLM2);

  test(`text, plain and streamed: ${name}`, async () => {
    const asked = { model: provider('scripted'), prompt: '\ue001', maxRetries: 0 };
    const { text, finishReason, usage } = await generateText(asked);
    assert.deepEqual([text, finishReason], [SAID, 'stop']);
    assert.ok(usage.inputTokens > 0 && usage.outputTokens >= 5);
    const stream = streamText(asked);
    let streamed = '';
    for await (const piece of stream.textStream) streamed += piece;
    assert.equal(streamed, SAID);
    assert.equal((await stream.usage).outputTokens, usage.outputTokens);
  });

  test(`an object, plain and streamed: ${name}`, async () => {
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

  test(`an object as the output of a text: ${name}`, async () => {
    const output = Output.object({ schema: z.strictObject({ mood: z.enum(['glad', 'sad']) }) });
    const answer = await generateText({ model, output, prompt: 'Describe a person.', ...limits });
    assert.ok(['glad', 'sad'].includes(answer.output.mood));
  });

  test(`a choice: ${name}`, async () => {
    const sides = ['left', 'right'];
    const { object } = await generateObject({ model, output: 'enum', enum: sides, prompt: 'Pick.', ...limits });
    assert.ok(sides.includes(object));
  });

  test(`a call, plain and streamed: ${name}`, async () => {
    const asked = { model, tools: { weather }, toolChoice: 'required', prompt: 'How is the weather?', ...limits };
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

  test(`a call and the answer after it: ${name}`, async () => {
    const { steps, text } = await generateText({
      model,
      tools: { weather },
      prompt: 'How is the weather?',
      stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => ({
        toolChoice: stepNumber === 0 ? { type: 'tool', toolName: 'weather' } : 'none',
      }),
      ...limits,
      maxOutputTokens: 100,
    });
    assert.equal(steps.length, 2);
    assert.ok(steps[0].toolCalls.length > 0 && text.length > 0);
  });

  test(`what is wrong is said: ${name}`, async () => {
    const asked = { model: provider('nope'), prompt: 'x', maxRetries: 0 };
    await assert.rejects(generateText(asked), ({ name, statusCode, message }) => {
      assert.deepEqual([name, statusCode], ['AI_APICallError', 404]);
      return message.includes('nope');
    });
  });
}
