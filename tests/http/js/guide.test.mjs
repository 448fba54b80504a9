// The streaming guide's loops and every other method, in Node against a real server: POLARGRID_BASE_URL, three models.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NotFoundError, PolarGrid, ServerError, ValidationError } from '../../../polargrid_local/web/polargrid.js';

const { SMOLLM2, ALIAS, SAID: said } = process.env;
const SAID = JSON.parse(said);
const ANSWER = '\ue001'; // makes the scripted model say SAID in a chat
const PROMPT = '\ue000'; // and here as plain text
const client = new PolarGrid({ apiKey: 'pg_any', timeout: 120_000 });
const collect = async (stream) => {
  const all = [];
  for await (const chunk of stream) all.push(chunk);
  return all;
};
const running = async () => {
  const text = await (await fetch(`${client.baseUrl}/metrics`)).text();
  return Number(/^polargrid_\w*running\w*(?:\{[^}]*model="random"[^}]*\})? (\d+)/m.exec(text)[1]);
};

test('the chat loop', async () => {
  const stream = client.chatCompletionStream({
    model: ALIAS,
    messages: [{ role: 'user', content: 'Tell me a story' }],
    maxTokens: 12,
  });
  let story = '';
  let reason = null;
  for await (const chunk of stream) {
    const content = chunk.choices[0]?.delta?.content;
    if (content) story += content;
    if (chunk.choices[0]?.finishReason) reason = chunk.choices[0].finishReason;
    assert.deepEqual([chunk.object, chunk.model], ['chat.completion.chunk', ALIAS]);
  }
  assert.ok(story.length > 5);
  assert.equal(reason, 'length');
});

test('the text loop', async () => {
  let text = '';
  const reasons = [];
  for await (const chunk of client.completionStream({ prompt: 'The meaning of life is', model: ALIAS, maxTokens: 8 })) {
    text += chunk.choices[0].text;
    reasons.push(chunk.choices[0].finishReason);
  }
  assert.ok(text.length > 3);
  assert.equal(reasons.pop(), 'length');
  assert.ok(reasons.every((reason) => reason === null));
});

test('one event per piece, whatever characters it has; the joined stream is the plain answer', async () => {
  const request = { model: 'scripted', messages: [{ role: 'user', content: ANSWER }], maxTokens: 50 };
  const chunks = await collect(client.chatCompletionStream({ ...request, streamOptions: { includeUsage: true } }));
  assert.equal(chunks[0].choices[0].delta.role, 'assistant');
  assert.deepEqual(chunks.map((chunk) => chunk.choices[0]?.delta.content).filter(Boolean), SAID);
  assert.equal(chunks.at(-2).choices[0].finishReason, 'stop');
  const reply = await client.chatCompletion(request);
  assert.equal(reply.choices[0].message.content, SAID.join(''));
  assert.deepEqual(chunks.at(-1).usage.totalTokens, reply.usage.totalTokens);
  assert.equal(
    (await client.completion({ model: 'scripted', prompt: PROMPT, maxTokens: 50 })).choices[0].text,
    SAID.join(''),
  );
});

test('one client, many streams at once', async () => {
  const ask = async () =>
    (await collect(client.chatCompletionStream({ model: 'scripted', messages: [{ role: 'user', content: ANSWER }] })))
      .map((chunk) => chunk.choices[0].delta.content ?? '')
      .join('');
  assert.deepEqual(await Promise.all(Array.from({ length: 6 }, ask)), Array(6).fill(SAID.join('')));
});

test('break and abort stop the engine', async () => {
  const endless = { model: 'random', messages: [{ role: 'user', content: 'go on' }], maxTokens: 15_000 };
  for await (const chunk of client.chatCompletionStream(endless)) if (chunk.choices[0].delta.content) break;
  const controller = new AbortController();
  await assert.rejects(
    async () => {
      for await (const chunk of client.chatCompletionStream(endless, { signal: controller.signal }))
        if (chunk.choices[0].delta.content) controller.abort();
    },
    { name: 'AbortError' },
  );
  const late = AbortSignal.timeout(120_000);
  while ((await running()) > 0) late.throwIfAborted();
});

test('seed and stop reach the engine', async () => {
  const request = {
    model: SMOLLM2,
    messages: [{ role: 'user', content: 'Name three colours' }],
    maxTokens: 16,
    temperature: 1.2,
    seed: 5,
  };
  const [first, second] = [await client.chatCompletion(request), await client.chatCompletion(request)];
  assert.equal(first.choices[0].message.content, second.choices[0].message.content);
  const stopped = await client.chatCompletion({
    model: 'scripted',
    messages: [{ role: 'user', content: ANSWER }],
    stop: ['café'],
  });
  assert.deepEqual(
    [stopped.choices[0].message.content, stopped.choices[0].finishReason],
    [SAID.slice(0, 2).join('') + ' ', 'stop'],
  );
});

test('models, machine, embeddings', async () => {
  const ids = (await client.listModels()).data.map(({ id }) => id);
  assert.ok(
    [SMOLLM2, 'random', 'scripted'].every((id) => ids.includes(id)),
    ids,
  );
  assert.equal((await client.getModel(ALIAS)).id, ALIAS);
  assert.equal((await client.unloadModel('scripted')).status, 'success');
  assert.equal((await client.getModelStatus()).loadingStatus.scripted, 'unloaded');
  const loaded = await client.loadModel({ modelName: 'scripted', forceReload: true });
  assert.deepEqual([loaded.status, loaded.forceReload], ['success', true]);
  assert.ok((await client.getModelStatus()).loaded.includes('scripted'));
  assert.equal((await client.health()).status, 'healthy');
  const status = await client.getGPUStatus();
  assert.equal(status.totalGpus, status.gpus.length);
  assert.equal((await client.getGPUMemory()).status, 'success');
  assert.ok((await client.getStatus()).regions[0].models.some(({ modelId }) => modelId === SMOLLM2));
  assert.ok((await client.getUsage()).usage.totalRequests > 0);
  const { data, usage } = await client.embeddings({ model: SMOLLM2, input: ['one', 'two'] });
  assert.deepEqual([data.length, data[1].index, usage.promptTokens > 0], [2, 1, true]);
  assert.equal(data[0].embedding.length, data[1].embedding.length);
  const answer = await client.generate({ prompt: ANSWER, model: 'scripted' });
  assert.deepEqual([answer.content, answer.usage.completionTokens], [SAID.join(''), SAID.length]);
});

test('refusals by type', async () => {
  const messages = [{ role: 'user', content: 'hi' }];
  await assert.rejects(
    client.chatCompletion({ model: 'no-such-model', messages }),
    (error) =>
      error instanceof NotFoundError &&
      error.code === 'model_not_loaded' &&
      error.param === 'model' &&
      error.message.startsWith('Model not loaded'),
  );
  await assert.rejects(
    collect(client.chatCompletionStream({ model: SMOLLM2, messages, temperature: 9 })),
    (error) => error instanceof ValidationError && /temperature/.test(error.message),
  );
  await assert.rejects(
    collect(
      client.chatCompletionStream({ model: SMOLLM2, messages: [{ role: 'user', content: 'word '.repeat(4000) }] }),
    ),
    { name: 'ValidationError', code: 'context_length_exceeded' },
  );
  const response = await fetch(`${client.baseUrl}/v1/audio/speech`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: '{}',
  });
  assert.equal(response.status, 501);
  await assert.rejects(
    client.textToSpeech({}),
    (error) => error instanceof ServerError && error.statusCode === response.status,
  );
});
